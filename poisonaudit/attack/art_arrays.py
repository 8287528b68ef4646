"""Arrays as users of the Adversarial Robustness Toolbox (ART) pass them, and as they get them back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from poisonaudit.errors import InputRefused

DTYPES = {"float64": torch.float64, "float32": torch.float32}


def class_numbers(y: ArrayLike, classes: int, what: str) -> NDArray[np.int64]:
    """Labels in any form that ART takes, as class numbers.

    Args:
        y: class numbers (n,) or (n, 1), or one-hot rows (n, classes).
        classes: how many there are.
        what: what they are, for messages.

    Returns:
        (n,).

    Raises:
        InputRefused: PA211, they are neither; PA212, a number is no class.
    """
    given = np.asarray(y)
    one_hot = given.ndim == 2 and given.shape[1] == classes and classes > 1
    if one_hot and bool(((given == 0) | (given == 1)).all()) and bool((given.sum(1) == 1).all()):
        return given.argmax(1).astype(np.int64)
    flat = given[:, 0] if given.ndim == 2 and given.shape[1] == 1 else given
    if one_hot or flat.ndim != 1 or flat.dtype.kind not in "iuf" or not np.array_equal(flat, np.floor(flat)):
        raise InputRefused(
            "PA211",
            f"{what} is {given.dtype} {given.shape}, neither class numbers nor one-hot rows of {classes} classes. "
            "Give those; labels that spread over classes have no place in this objective.",
        )
    if flat.size and not 0 <= flat.min() <= flat.max() < classes:
        raise InputRefused(
            "PA212",
            f"{what} runs from {flat.min():g} to {flat.max():g}, the classifier has {classes} classes. Use labels "
            f"0..{classes - 1}.",
        )
    return flat.astype(np.int64)


def target_rows(
    x_target: ArrayLike, y_target: ArrayLike, shape: tuple[int, ...], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rows whose prediction is to change, and the classes wanted for them.

    Args:
        x_target: one row, with or without a leading 1, or several.
        y_target: one class for all rows, or one for each, as numbers or one-hot.
        shape: of one row.
        classes: how many there are.

    Returns:
        Rows (m, ...) and class numbers (m,).

    Raises:
        InputRefused: PA211, shapes do not fit; PA212, no such class; PA210, a row is not finite.
    """
    rows = np.asarray(x_target, dtype=np.float64)
    rows = rows[None] if rows.shape == shape else rows
    if rows.shape[1:] != shape or not len(rows):
        raise InputRefused("PA211", f"x_target is {rows.shape}, one row is {shape}. Give rows of that shape.")
    if not np.isfinite(rows).all():
        raise InputRefused("PA210", "x_target holds NaN or infinite entries. Pass other rows.")
    given = np.asarray(y_target)
    if given.ndim == 0:
        given = np.full(len(rows), given)
    elif len(rows) == 1 and given.shape == (classes,) and classes > 1:
        given = given[None]
    labels = class_numbers(given, classes, "y_target")
    if len(labels) != len(rows):
        raise InputRefused("PA211", f"y_target has {len(labels)} classes for {len(rows)} rows. Give one a row.")
    return rows, labels


def floating(values: ArrayLike, what: str) -> NDArray[Any]:
    """Numbers that can be moved by small amounts.

    Args:
        values: any array.
        what: what it is, for messages.

    Returns:
        The array as NumPy's.

    Raises:
        InputRefused: PA211, it holds whole numbers or objects.
    """
    given = np.asarray(values)
    if given.dtype.kind != "f":
        raise InputRefused(
            "PA211",
            f"{what} is {given.dtype}; a perturbation of it would be rounded away. Pass {what}.astype(np.float32), "
            "and eps in the same units.",
        )
    return given


def tensor(values: ArrayLike, dtype: str, device: torch.device) -> Tensor:
    """A copy of the values as a tensor of a type in `DTYPES`."""
    return torch.from_numpy(np.array(values, dtype=np.float64)).to(dtype=DTYPES[dtype], device=device)


def added(clean: NDArray[Any], delta: NDArray[Any]) -> NDArray[Any]:
    """`clean + delta` in the type of `clean`, rounded towards `clean` where that type is coarser than float64.

    Args:
        clean: rows (k, ...).
        delta: what is added to them, inside budget and box.

    Returns:
        Rows that are inside budget and box to the last bit of their type.
    """
    moved = (clean.astype(np.float64) + delta).astype(clean.dtype)
    if clean.dtype.itemsize < 8:
        beyond = np.abs(moved.astype(np.float64) - clean) > np.abs(delta)
        moved[beyond] = np.nextafter(moved[beyond], clean[beyond])
    return moved
