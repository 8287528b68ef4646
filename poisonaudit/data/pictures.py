"""What the loaders of picture data share: files under a root, resizing, and the Source they end in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poisonaudit.data.dataset import Source
from poisonaudit.data.digits import resize
from poisonaudit.data.options import MAX_BYTES
from poisonaudit.errors import InputRefused, StorageError, UsageError
from poisonaudit.spec import Spec
from poisonaudit.store import sha256_bytes
from poisonaudit.store.atomic import os_refusal

SIZES = (4, 512)
Array = NDArray[Any]


def root_of(spec: Spec) -> Path:
    """The folder that the name's argument points to.

    Args:
        spec: e.g. `cifar10:ROOT`.

    Returns:
        The folder.

    Raises:
        InputRefused: PA201, there is no such folder.
    """
    root = Path(spec.argument).expanduser()
    if not spec.argument or not root.is_dir():
        raise InputRefused(
            "PA201",
            f"{spec.argument or '(no path)'} is not a folder. Write --data {spec.name}:ROOT with the data set's files "
            "under ROOT; nothing is downloaded.",
        )
    return root


def find_file(spec: Spec, root: Path, folders: Iterable[str], names: Iterable[str]) -> Path:
    """The first of several places where a data set keeps a file.

    Args:
        spec: for the message.
        root: the data set's root.
        folders: places under the root, in order.
        names: spellings of the file, in order.

    Returns:
        The path.

    Raises:
        InputRefused: PA201, none of them is there.
    """
    folders, names = list(folders), list(names)
    for folder in folders:
        for name in names:
            path = root / folder / name
            if path.is_file():
                return path
    wanted = root / folders[0] / names[0]
    raise InputRefused("PA201", f"{spec.text}: {wanted} is missing. Put the data set there; nothing is downloaded.")


def read_capped(path: Path, cap: int = MAX_BYTES) -> bytes:
    """A file's bytes.

    Args:
        path: the file.
        cap: largest accepted size.

    Returns:
        Its content.

    Raises:
        InputRefused: PA204, it is larger than the cap.
        StorageError: PA503, it cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > cap:
            raise InputRefused("PA204", f"{path.name} has {size} bytes, the cap is {cap}. Give fewer rows.")
        return path.read_bytes()
    except OSError as error:
        raise StorageError("PA503", os_refusal("read", path, error)) from error


def damaged(path: Path, trouble: object) -> InputRefused:
    """Return (not raise) the refusal of a file that is not what it should be."""
    reason = " ".join(str(trouble).split())[:150]
    return InputRefused("PA202", f"{path.name} is damaged or of another format: {reason}. Fetch it again.")


def picture_source(
    spec: Spec,
    train: tuple[Array, Array],
    test: tuple[Array, Array] | None,
    classes: tuple[str, ...],
    files: Mapping[str, bytes],
    notes: tuple[str, ...] = (),
) -> Source:
    """Pictures (n, channels, height, width) as uint8 with class numbers, in the form all loaders share.

    Args:
        spec: `?size=N` resizes to N x N.
        train: pictures and labels.
        test: the same where the data set has its own split, else None.
        classes: names.
        files: name -> bytes, for the provenance.
        notes: remarks.

    Returns:
        The source; values are divided by 255 when the rows are chosen, the box is [0, 1].

    Raises:
        UsageError: PA335, a size outside 4..512.
        InputRefused: PA211, pictures and labels do not fit each other.
    """
    parts = [train] if test is None else [train, test]
    for pictures, labels in parts:
        if pictures.ndim != 4 or len(pictures) != len(labels):
            raise InputRefused(
                "PA211",
                f"{spec.name} holds pictures of shape {pictures.shape} and {len(labels)} labels. Fetch it again.",
            )
    x = train[0] if test is None else np.concatenate([train[0], test[0]])
    y = np.concatenate([labels for _, labels in parts]).astype(np.int64)
    preprocessing: dict[str, object] = {"divide_by": 255}
    if "size" in spec.options:
        size = spec.integer("size", 0)
        if not SIZES[0] <= size <= SIZES[1]:
            raise UsageError(
                "PA335", f"{spec.text}: ?size={size} is not in {SIZES[0]}..{SIZES[1]}. Pass ?size=32, for example."
            )
        preprocessing["resize"] = {"from": list(x.shape[2:]), "to": size, "method": "bilinear"}
        x = resize(x.astype(np.float32) / 255, size)
    shape = x.shape[1:]
    split = None
    if test is not None:
        split = np.arange(len(train[0])), np.arange(len(train[0]), len(x))
    return Source(
        name=spec.name,
        x=x,
        y=y,
        classes=classes,
        image_shape=tuple(shape),
        sources={name: sha256_bytes(content) for name, content in files.items()},
        preprocessing=preprocessing,
        parts=split,
        limits=(np.zeros(shape), np.ones(shape)),
        notes=notes,
    )
