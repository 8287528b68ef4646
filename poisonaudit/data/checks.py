"""What is refused in any data, and what is only worth a note."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from poisonaudit.data.dataset import Source
from poisonaudit.errors import InputRefused, counted

Array = NDArray[Any]


def check_source(source: Source) -> None:
    """Refuse what no problem can be built from.

    Args:
        source: as a loader read it.

    Raises:
        InputRefused: PA211 wrong shapes, PA210 NaN or infinity, PA212 labels, PA213 one class only, PA214
        too few
            rows.
    """
    x, y, name = source.x, source.y, source.name
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise InputRefused("PA211", f"{name}: inputs have shape {x.shape}. Give (rows, columns) or pictures.")
    if len(y) != len(x):
        raise InputRefused("PA211", f"{name}: {len(x)} rows and {len(y)} labels. Give one label per row.")
    if len(x) < 2:
        raise InputRefused("PA214", f"{name} has {len(x)} rows; at least 2 are needed. Give more data.")
    check_finite(name, "inputs", x)
    if source.classes is None:
        check_finite(name, "targets", y)
        return
    if y.min() < 0 or y.max() >= len(source.classes):
        raise InputRefused(
            "PA212",
            f"{name}: labels run from {y.min()} to {y.max()} for {len(source.classes)} classes. "
            f"Use 0..{len(source.classes) - 1}.",
        )


def check_finite(name: str, what: str, values: Array) -> None:
    """Refuse NaN, infinity and what float32 cannot hold.

    Args:
        name: of the data.
        what: inputs or targets.
        values: any floating array.

    Raises:
        InputRefused: PA210, with how many and where the first is.
    """
    bad = ~(np.abs(values) <= np.finfo(np.float32).max)  # NaN compares as false
    if bad.any():
        first = tuple(int(index) for index in np.argwhere(bad)[0])
        raise InputRefused(
            "PA210",
            f"{name}: {int(bad.sum())} of {values.size} {what} are missing, NaN, infinite or beyond "
            "float32, first at "
            f"row {first[0]}, entry {first[1:]}. Remove or impute those rows.",
        )


def refuse_vanished(name: str, what: str, given: Array, kept: Array) -> None:
    """Refuse values of which most become 0 in float32: what is left is another data set.

    Args:
        name: of the data.
        what: the values are.
        given: as the source has them.
        kept: the same in float32.

    Raises:
        InputRefused: PA210, most values that are not 0 are too small.
    """
    there = given != 0
    lost, total = int((there & (kept == 0)).sum()), int(there.sum())
    if 2 * lost > total:
        raise InputRefused(
            "PA210",
            f"{name}: {lost} of {total} {what} that are not 0 are too small for float32 and would become 0. Give them "
            "in another unit.",
        )


def check_one_class(name: str, labels: Array, classes: tuple[str, ...] | None) -> None:
    """Refuse training rows of a single class.

    Args:
        name: of the data.
        labels: of the training rows.
        classes: names, None for regression.

    Raises:
        InputRefused: PA213, all rows have one label.
    """
    if classes is not None and len(np.unique(labels)) < 2:
        only = classes[int(labels[0])]
        raise InputRefused(
            "PA213", f"{name}: all {len(labels)} training rows are of class {only!r}. Give rows of two classes or more."
        )


def notes_on(train: Array, test: Array, y_train: Array, ids: Array, classes: tuple[str, ...] | None) -> list[str]:
    """Remarks about duplicates, conflicting labels, train/test overlap and absent classes.

    Args:
        train: training rows (n, ...), float32.
        test: test rows (m, ...), float32.
        y_train: labels or targets.
        ids: row numbers of the training rows.
        classes: names, None for regression.

    Returns:
        One sentence each; empty if there is nothing to remark.
    """
    keys, test_keys = _keys(train), _keys(test)
    first_of: dict[bytes, int] = {}
    repeats: list[tuple[int, int]] = []
    for row, key in enumerate(keys):
        first = first_of.setdefault(key, row)
        if first != row:
            repeats.append((first, row))
    notes = []
    if repeats:
        notes.append(
            f"{counted(len(repeats), 'training row')} {'repeats' if len(repeats) == 1 else 'repeat'} another "
            f"(ids {ids[repeats[0][0]]} and {ids[repeats[0][1]]} the first); "
            "duplicated rows can make the Lipschitz modulus infinite"
        )
    conflicts = [(first, row) for first, row in repeats if not np.array_equal(y_train[first], y_train[row])]
    if conflicts:
        notes.append(
            f"{counted(len(conflicts), 'repeated training row')} {'has' if len(conflicts) == 1 else 'have'} another "
            "label than the copy "
            f"(ids {ids[conflicts[0][0]]} and {ids[conflicts[0][1]]} the first)"
        )
    overlap = sum(key in first_of for key in test_keys)
    if overlap:
        notes.append(f"{overlap} of {len(test_keys)} test rows are also training rows, so test accuracy is flattered")
    if classes is not None:
        absent = [name for number, name in enumerate(classes) if not (y_train == number).any()]
        if absent:
            shown = ", ".join(absent[:5]) + (" ..." if len(absent) > 5 else "")
            notes.append(f"{len(absent)} of {len(classes)} classes have no training row: {shown}")
    return notes


def _keys(rows: Array) -> list[bytes]:
    """Bytes of each row, with -0 and 0 the same."""
    flat = np.ascontiguousarray(rows.reshape(len(rows), -1) + np.float32(0))
    return [row.tobytes() for row in flat]
