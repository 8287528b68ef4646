"""What users pass to the bounds, checked."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused, UsageError, wrong_type
from poisonaudit.lipschitz.linear_maps import Shape
from poisonaudit.lipschitz.pieces import as_tensor, layout_of

Box = tuple[float | Tensor, float | Tensor]


def number_of(function: str, argument: str, value: Any) -> float:
    """A plain number.

    Args:
        function: that was called.
        argument: its name.
        value: what was passed.

    Returns:
        The number, which may be NaN or infinite.

    Raises:
        UsageError: PA314, it is none.
    """
    try:
        if not isinstance(value, str | bytes | bool):
            return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise wrong_type(function, argument, value, "Pass one number.")


def check_seed(seed: Any) -> None:
    """Refuse what cannot start a generator.

    Args:
        seed: what was passed.

    Raises:
        UsageError: PA303, no integer, or one of more than 62 bits.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UsageError("PA303", f"seed is {seed!r}. It starts a random generator. Pass an integer.")
    if abs(seed) >= 2**62:
        raise UsageError("PA303", "seed has more than 62 bits. It starts a random generator. Pass a smaller integer.")


def shape_of(input_shape: Any) -> Shape:
    """The shape of one row.

    Args:
        input_shape: what was passed.

    Returns:
        It in integers.

    Raises:
        UsageError: PA304, it is no shape.
    """
    try:
        shape = tuple(operator.index(size) for size in input_shape)
    except TypeError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(
            "PA304",
            f"input_shape is {input_shape!r}. The shape of one row was expected. Pass whole numbers above 0, such as "
            "(1, 28, 28).",
        )
    return shape


def row_shape(model: nn.Module) -> Shape | None:
    """Input shape that the first layer determines: that of a Linear; None for others."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            return (layer.in_features,)
        if list(layer.children()) or isinstance(layer, nn.Flatten | nn.Identity | nn.Dropout):
            continue
        return None
    return None


def rows_of(x: Any) -> Tensor:
    """Inputs in float64.

    Args:
        x: what was passed, (n, ...).

    Returns:
        The rows.

    Raises:
        InputRefused: PA230, no rows of finite real numbers.
    """
    if (layout := layout_of(x)) is not None:
        raise InputRefused("PA230", f"x is a {layout} tensor. Rows are read in full. Pass x.to_dense().")
    try:
        rows = as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as trouble:
        raise InputRefused(
            "PA230", f"x is a {type(x).__name__}, not an array of numbers. Pass rows of inputs, (n, ...)."
        ) from trouble
    if rows.dim() < 2 or not rows.numel() or rows.is_complex():
        raise InputRefused(
            "PA230", f"x is {rows.dtype} of shape {tuple(rows.shape)}. Rows of inputs were expected. Pass (n, ...)."
        )
    rows = rows.to(torch.float64)
    if not bool(torch.isfinite(rows).all()):
        raise InputRefused("PA230", "x holds NaN or infinity. Nothing holds around such a row. Clean the rows first.")
    return rows


def box_of(box: Any, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """The box as tensors like a row; the inputs have to lie in it, or their balls in it would be empty.

    Args:
        box: what was passed.
        rows: the inputs.

    Returns:
        Least and largest input, None for no box.

    Raises:
        UsageError: PA304, no box.
        InputRefused: PA230, inputs outside.
    """
    if box is None:
        return None
    try:
        low, high = (as_tensor(end).to(torch.float64).expand(rows.shape[1:]) for end in box)
    except (TypeError, ValueError, RuntimeError) as trouble:
        raise UsageError(
            "PA304",
            f"the box is no pair of numbers, or of tensors like a row of shape {tuple(rows.shape[1:])}. "
            "Pass (least, largest).",
        ) from trouble
    if bool((torch.isnan(low) | torch.isnan(high)).any()):
        raise UsageError("PA304", "the box holds NaN. It bounds all inputs. Pass (least, largest).")
    if bool((low > high).any()):
        raise UsageError("PA304", "the box is empty: a least input is above the largest. Pass (least, largest).")
    if not bool(((low <= rows) & (rows <= high)).all()):
        raise InputRefused("PA230", "some inputs lie outside the box. A ball in it means nothing there. Widen the box.")
    return low, high


def labels_of(labels: Any, count: int, outputs: int) -> Tensor:
    """Classes of the inputs.

    Args:
        labels: what was passed.
        count: inputs.
        outputs: of the network.

    Returns:
        (count,), whole numbers.

    Raises:
        InputRefused: PA230, they do not fit.
    """
    if (layout := layout_of(labels)) is not None:
        raise InputRefused("PA230", f"labels are a {layout} tensor. Every input needs one. Pass labels.to_dense().")
    try:
        found = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as trouble:
        raise InputRefused(
            "PA230", f"labels are a {type(labels).__name__}, not an array of numbers. Pass one class for each input."
        ) from trouble
    if found.shape != (count,) or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise InputRefused(
            "PA230",
            f"labels are {found.dtype} of shape {tuple(found.shape)}. One class for each of {count} inputs was "
            "expected. Pass whole numbers.",
        )
    if not bool(((0 <= found) & (found < outputs)).all()):
        raise InputRefused(
            "PA230",
            f"labels run from {int(found.min())} to {int(found.max())}, the network has {outputs} outputs. Pass 0 to "
            f"{outputs - 1}.",
        )
    return found


def radii_of(at: Any) -> Sequence[float]:
    """Radii of a curve.

    Args:
        at: what was passed.

    Returns:
        The numbers.

    Raises:
        UsageError: PA314, no sequence of numbers.
    """
    try:
        # The digits of a text are no list.
        radii = [math.nan] if isinstance(at, str | bytes) else [float(radius) for radius in at]
    except (TypeError, ValueError, RuntimeError):
        radii = [math.nan]
    if any(map(math.isnan, radii)):
        raise wrong_type("accuracy", "at", at, "Pass a list of radii, such as [0.0, 0.1].")
    return radii
