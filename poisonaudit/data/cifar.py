"""CIFAR-10 and CIFAR-100 from their python batches, read without running what a pickle may hold."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from poisonaudit.data.dataset import Source
from poisonaudit.data.pictures import Array, damaged, find_file, picture_source, read_capped, root_of
from poisonaudit.errors import InputRefused
from poisonaudit.spec import Spec

_TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PIXELS = 3 * 32 * 32

# All that the batches of either data set, and arrays pickled by any numpy, are made of.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


def read_cifar10(spec: Spec) -> Source:
    """`cifar10:ROOT`: 32 x 32 colour pictures in ROOT/cifar-10-batches-py. ?size=N resizes."""
    spec.allow("size")
    root, folders = root_of(spec), ("cifar-10-batches-py", ".")
    files: dict[str, bytes] = {}
    names = [f"data_batch_{number}" for number in range(1, 6)]
    batches = [_batch(spec, root, folders, name, "labels", files) for name in names]
    train = np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])
    test = _batch(spec, root, folders, "test_batch", "labels", files)
    return picture_source(spec, train, test, _TEN, files)


def read_cifar100(spec: Spec) -> Source:
    """`cifar100:ROOT`: 32 x 32 colour pictures, 100 fine classes, in ROOT/cifar-100-python. ?size=N resizes."""
    spec.allow("size")
    root, folders = root_of(spec), ("cifar-100-python", ".")
    files: dict[str, bytes] = {}
    train = _batch(spec, root, folders, "train", "fine_labels", files)
    test = _batch(spec, root, folders, "test", "fine_labels", files)
    return picture_source(spec, train, test, _class_names(spec, root, folders, files), files)


def _class_names(spec: Spec, root: Path, folders: tuple[str, ...], files: dict[str, bytes]) -> tuple[str, ...]:
    path = find_file(spec, root, folders, ("meta",))
    files["meta"] = read_capped(path)
    names = _unpickled(path, files["meta"]).get("fine_label_names")
    if not isinstance(names, list) or len(names) != 100:
        raise damaged(path, "it does not name 100 fine classes")
    return tuple(name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names)


def _batch(
    spec: Spec, root: Path, folders: tuple[str, ...], name: str, key: str, files: dict[str, bytes]
) -> tuple[Array, Array]:
    """Pictures (n, 3, 32, 32) and labels of one batch."""
    path = find_file(spec, root, folders, (name,))
    files[name] = read_capped(path)
    content = _unpickled(path, files[name])
    pixels, labels = content.get("data"), content.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise damaged(path, "its data are not rows of 3,072 bytes")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise damaged(path, f"it has no list of {key}")
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def _unpickled(path: Path, content: bytes) -> dict[str, Any]:
    try:
        # The batches were pickled by Python 2: their byte strings are text.
        found = _Restricted(path.name, io.BytesIO(content)).load()
    except InputRefused:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise damaged(path, error) from error
    if not isinstance(found, dict):
        raise damaged(path, "it does not hold a dictionary")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}


class _Restricted(pickle.Unpickler):
    """Unpickles arrays, text, numbers, lists and dictionaries, and refuses every other name."""

    def __init__(self, name: str, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin1")
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        """The few names an array needs."""
        if (module, name) not in _ALLOWED:
            raise InputRefused(
                "PA203",
                f"{self._name} asks for {module}.{name}, which no CIFAR batch needs: loading it could run code. "
                "Fetch the data set again from its source.",
            )
        # The same objects under their present name, without a deprecation warning.
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)
