"""From a data set's name to checked, split, scaled training and test rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poisonaudit.data.checks import check_finite, check_one_class, check_source, notes_on, refuse_vanished
from poisonaudit.data.cifar import read_cifar10, read_cifar100
from poisonaudit.data.csv_file import read_csv
from poisonaudit.data.dataset import DataSet, Source
from poisonaudit.data.digits import read_digits
from poisonaudit.data.folder import read_folder
from poisonaudit.data.mnist import read_fashion_mnist, read_mnist
from poisonaudit.data.npz import read_npz
from poisonaudit.data.svhn import read_svhn
from poisonaudit.data.tables import read_breast_cancer, read_wine
from poisonaudit.errors import InputRefused, UsageError, counted
from poisonaudit.registry import lookup
from poisonaudit.spec import Spec, parse_spec

Loader = Callable[[Spec], Source]

DATA: dict[str, Loader] = {
    "breast_cancer": read_breast_cancer,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "csv": read_csv,
    "digits": read_digits,
    "fashion_mnist": read_fashion_mnist,
    "folder": read_folder,
    "mnist": read_mnist,
    "npz": read_npz,
    "svhn": read_svhn,
    "wine": read_wine,
}
GROUP = "poisonaudit.data"
TEST_SHARE = 0.25


def load_data(spec: str, *, images: bool = False, limit: int | None = None) -> DataSet:
    """Load a data set by name.

    A source without its own split is split by `?split=N` (default 0): 25 % test rows, stratified by class,
    exactly `sklearn.model_selection.train_test_split(..., test_size=0.25, random_state=N, stratify=y)`.
    Tables are standardised with mean and deviation (ddof 0) of *all* training rows of the split, so that
    `limit` does not change the units a model was trained in; the box of tables is the range of the rows
    given.

    Args:
        spec: e.g. `digits?size=32`, `npz:FILE`, `csv:FILE?target=COL`.
        images: rows as pictures (channels, height, width) instead of flat.
        limit: keep the first `limit` training rows of the split.

    Returns:
        float32 rows with what is known about them.

    Raises:
        InputRefused: PA215, pictures are wanted from a table; see the loaders and `checks` for the others.
    """
    parsed = parse_spec(spec)
    source = lookup(DATA, parsed.name, "data set", group=GROUP)(parsed)
    check_source(source)
    if images and source.image_shape is None:
        raise InputRefused(
            "PA215",
            f"{spec} is a table, the model takes pictures. Pass --model mlp:... or linear, or picture data.",
        )
    train, test = _parts(source, parsed)
    x = source.x.astype(np.float64) if source.standardise else source.x
    preprocessing, notes = dict(source.preprocessing), list(source.notes)
    if source.standardise:
        mean, deviation, constant = _moments(x[train])
        x = (x - mean) / deviation
        preprocessing.update(mean=mean.tolist(), deviation=deviation.tolist())
        if constant:
            which = f"{counted(constant, 'column')} {'is' if constant == 1 else 'are'}"
            notes.append(f"{which} constant over the training rows and only centred")
    kept = train[: _checked_limit(limit, len(train), spec)]
    x_train, x_test = _to_float32(x[kept]), _to_float32(x[test])
    check_finite(source.name, "inputs", x_train)
    check_finite(source.name, "inputs", x_test)
    if x.dtype.kind == "f":
        refuse_vanished(source.name, "training inputs", x[kept], x_train)
    ids = np.arange(len(source.x)) if source.ids is None else source.ids
    check_one_class(source.name, source.y[kept], source.classes)
    notes += notes_on(x_train, x_test, source.y[kept], ids[kept], source.classes)
    lower, upper = source.limits or (x_train.min(0), x_train.max(0))
    shape = _row_shape(source, images)
    label_type = np.int64 if source.classes is not None else np.float32
    return DataSet(
        name=source.name,
        spec=spec,
        x_train=_tensor(x_train).reshape(-1, *shape),
        y_train=_tensor(source.y[kept].astype(label_type)),
        x_test=_tensor(x_test).reshape(-1, *shape),
        y_test=_tensor(source.y[test].astype(label_type)),
        train_ids=_tensor(ids[kept].astype(np.int64)),
        test_ids=_tensor(ids[test].astype(np.int64)),
        classes=source.classes,
        feature_names=source.feature_names or _feature_names(source),
        box=(_tensor(_to_float32(lower)).reshape(shape), _tensor(_to_float32(upper)).reshape(shape)),
        image_shape=source.image_shape,
        preprocessing=preprocessing,
        sources=dict(source.sources),
        notes=tuple(notes),
    )


def _parts(source: Source, spec: Spec) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of training and test rows."""
    if source.parts is not None:
        if "split" in spec.options:
            raise UsageError("PA332", f"{spec.text}: {source.name} has its own split. Leave ?split out.")
        return source.parts
    from sklearn.model_selection import train_test_split

    seed = spec.integer("split", 0)
    if not 0 <= seed < 2**32:
        raise UsageError(
            "PA332",
            f"{spec.text}: ?split={seed} is not in 0..{2**32 - 1}. Give a small whole number.",
        )
    check_one_class(source.name, source.y, source.classes)
    stratify = None if source.classes is None else source.y
    try:
        train, test = train_test_split(
            np.arange(len(source.x)), test_size=TEST_SHARE, random_state=seed, stratify=stratify
        )
    except ValueError as error:
        raise InputRefused(
            "PA214",
            f"{source.name}: {len(source.x)} rows cannot be split into 75 % and 25 % with every class in "
            f"both ({error}) "
            "Give more rows, or a file with x_train, y_train, x_test, y_test.",
        ) from None
    if len(train) < 2:
        raise InputRefused(
            "PA214",
            f"{source.name}: {counted(len(train), 'training row')} after the split. Give more data.",
        )
    return train, test


def _checked_limit(limit: int | None, available: int, spec: str) -> int:
    if limit is None:
        return available
    if isinstance(limit, bool) or not isinstance(limit, int) or not 2 <= limit <= available:
        raise UsageError(
            "PA333",
            f"limit {limit!r} is not in 2..{available}, the training rows of {spec}. Pass --limit {available}.",
        )
    return limit


def _moments(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Mean and deviation per column, 1 for constant columns, and how many those are."""
    mean, deviation = rows.mean(0), rows.std(0)
    # The computed deviation of a constant column can be rounding noise, that of a tiny one can underflow to 0.
    constant = (rows.max(0) == rows.min(0)) | (deviation == 0)
    return np.where(rows.max(0) == rows.min(0), rows[0], mean), np.where(constant, 1.0, deviation), int(constant.sum())


def _to_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype == np.uint8:
        # Pictures stay bytes until the rows are chosen: a quarter of the memory.
        return np.asarray(values / np.float32(255), dtype=np.float32)
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(values, order="C"))  # np.array copies: the tensor owns its memory


def _row_shape(source: Source, images: bool) -> tuple[int, ...]:
    if images and source.image_shape is not None:
        return source.image_shape
    return (int(np.prod(source.x.shape[1:])),)


def _feature_names(source: Source) -> tuple[str, ...]:
    if source.image_shape is None:
        return tuple(f"column_{number}" for number in range(int(np.prod(source.x.shape[1:]))))
    channels, height, width = source.image_shape
    places = [f"{row}_{column}" for row in range(height) for column in range(width)]
    if channels == 1:
        return tuple(f"pixel_{place}" for place in places)
    return tuple(f"pixel_{channel}_{place}" for channel in range(channels) for place in places)
