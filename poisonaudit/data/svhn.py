"""Street View House Numbers (cropped digits) from their MATLAB files."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from poisonaudit.data.dataset import Source
from poisonaudit.data.options import MAX_BYTES
from poisonaudit.data.pictures import Array, damaged, find_file, picture_source, read_capped, root_of
from poisonaudit.errors import InputRefused
from poisonaudit.spec import Spec


def read_svhn(spec: Spec) -> Source:
    """`svhn:ROOT`: 32 x 32 colour digits in ROOT/train_32x32.mat and ROOT/test_32x32.mat. ?size=N resizes."""
    spec.allow("size")
    root = root_of(spec)
    files: dict[str, bytes] = {}
    parts = []
    for name in ("train_32x32.mat", "test_32x32.mat"):
        path = find_file(spec, root, (".", "svhn", "SVHN"), (name,))
        files[name] = read_capped(path)
        parts.append(_matlab(path, files[name]))
    return picture_source(spec, parts[0], parts[1], tuple("0123456789"), files)


def _matlab(path: Path, content: bytes) -> tuple[Array, Array]:
    """Pictures (n, 3, 32, 32) and labels; the digit 0 is stored as class 10."""
    from scipy import io as matlab

    reader: Any = matlab  # its annotations forget that it reads open files
    try:
        declared = {name: shape for name, shape, _ in reader.whosmat(io.BytesIO(content))}
        size = sum(math.prod(shape) for shape in declared.values())
        if size > MAX_BYTES:
            raise InputRefused("PA204", f"{path.name} declares {size} entries, the cap is {MAX_BYTES}.")
        found = reader.loadmat(io.BytesIO(content), variable_names=["X", "y"])
    except InputRefused:
        raise
    except Exception as error:  # scipy raises a dozen kinds on damaged files
        raise damaged(path, error) from error
    pixels, labels = found.get("X"), found.get("y")
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape[:3] != (32, 32, 3):
        raise damaged(path, "it has no X of 32 x 32 x 3 x n bytes")
    if labels is None or labels.size != pixels.shape[3] or labels.dtype.kind not in "iuf":
        raise damaged(path, "it has no y with one label a picture")
    numbers = labels.reshape(-1).astype(np.int64)
    return np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), np.where(numbers == 10, 0, numbers)
