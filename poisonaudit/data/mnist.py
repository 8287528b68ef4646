"""MNIST and Fashion-MNIST from their idx files, read by torchvision, never downloaded."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from pathlib import Path

import numpy as np

from poisonaudit.data.dataset import Source
from poisonaudit.data.options import MAX_BYTES
from poisonaudit.data.pictures import Array, damaged, find_file, picture_source, read_capped, root_of
from poisonaudit.errors import InputRefused
from poisonaudit.spec import Spec

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_mnist(spec: Spec) -> Source:
    """`mnist:ROOT`: 28 x 28 digits in ROOT/MNIST/raw (idx files, .gz or not). ?size=N resizes."""
    return _read(spec, "MNIST", _DIGITS)


def read_fashion_mnist(spec: Spec) -> Source:
    """`fashion_mnist:ROOT`: 28 x 28 clothes in ROOT/FashionMNIST/raw (idx files, .gz or not). ?size=N resizes."""
    return _read(spec, "FashionMNIST", _CLOTHES)


def _read(spec: Spec, folder: str, classes: tuple[str, ...]) -> Source:
    spec.allow("size")
    root = root_of(spec)
    places = (f"{folder}/raw", folder, "raw", ".")
    files: dict[str, bytes] = {}
    parts: dict[str, tuple[Array, Array]] = {}
    for part, names in _FILES.items():
        arrays = []
        for name, labels in zip(names, (False, True), strict=True):
            path = find_file(spec, root, places, (name, f"{name}.gz"))
            files[name] = _content(path)
            arrays.append(_idx(path, files[name], labels))
        parts[part] = (arrays[0][:, None], arrays[1])
    return picture_source(spec, parts["train"], parts["test"], classes, files)


def _content(path: Path) -> bytes:
    """The idx file's bytes, unpacked up to the cap."""
    content = read_capped(path)
    if path.suffix != ".gz":
        return content
    try:
        with gzip.open(path) as stream:
            unpacked = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, error) from error
    if len(unpacked) > MAX_BYTES:
        raise InputRefused("PA204", f"{path.name} unpacks to more than {MAX_BYTES} bytes. Give fewer rows.")
    return unpacked


def _idx(path: Path, content: bytes, labels: bool) -> Array:
    """Parse with torchvision's reader, which takes a path."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            values = (read_label_file if labels else read_image_file)(file.name).numpy()
        # The reader asserts and indexes its way through the header.
        except (AssertionError, ValueError, RuntimeError, KeyError, IndexError, TypeError) as error:
            raise damaged(path, str(error) or "its header does not fit its length") from error
    if values.ndim != (1 if labels else 3):
        raise damaged(path, f"it holds {values.ndim} axes")
    return np.ascontiguousarray(values)
