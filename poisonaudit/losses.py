"""Per-row losses by name, and the check that labels fit outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from poisonaudit.errors import InputRefused
from poisonaudit.registry import unknown_name

PerRow = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """`-log softmax(outputs)[label]` of each row: outputs (n, c), labels (n,) -> (n,)."""
    return functional.cross_entropy(outputs, labels, reduction="none")


def class_labels(y: Tensor) -> Tensor | None:
    """Class numbers (n,) of integer labels or one-hot rows; None where the targets are no classes."""
    if not y.is_floating_point():
        return y.long() if y.dim() == 1 else None
    if y.dim() != 2 or y.shape[1] < 2:
        return None
    one_hot = bool(((y == 0) | (y == 1)).all()) and bool((y.sum(1) == 1).all())
    return y.argmax(1) if one_hot else None


def half_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """`1/2 sum (outputs - targets)^2` over the outputs of each row -> (n,)."""
    return 0.5 * (outputs - targets).square().reshape(outputs.shape[0], -1).sum(1)


LOSSES: dict[str, PerRow] = {"cross_entropy": cross_entropy, "half_squared": half_squared}


def resolve_loss(loss: str | PerRow, outputs: Tensor, y: Tensor) -> tuple[PerRow, Tensor]:
    """Return the per-row loss and the labels in the form it takes (one-hot for half_squared).

    Args:
        loss: a name from `LOSSES` or a callable `(outputs, y) -> (n,)`.
        outputs: the model's outputs on the training rows, used for their shape only.
        y: labels or targets as the user gave them.

    Returns:
        `(loss_per_row, y)`.

    Raises:
        UsageError: PA301, no loss has that name.
        InputRefused: PA211, shapes do not fit; PA212, labels out of range; PA210, targets not finite.
    """
    rows = outputs.shape[0]
    if y.shape[:1] != (rows,):
        raise InputRefused("PA211", f"labels have shape {tuple(y.shape)} for {rows} rows. Give one label per row.")
    if y.device != outputs.device:
        raise InputRefused("PA121", f"labels are on {y.device}, inputs on {outputs.device}. Move all to one device.")
    if y.is_floating_point() and not bool(torch.isfinite(y).all()):
        raise InputRefused("PA210", "targets hold NaN or infinite entries. Remove or impute those rows.")
    if callable(loss):
        values = loss(outputs, y)
        if values.shape != (rows,):
            raise InputRefused(
                "PA211",
                f"the loss returned shape {tuple(values.shape)} for {rows} rows. Return one value per row, (n,).",
            )
        return loss, y
    if loss not in LOSSES:
        raise unknown_name(loss, LOSSES, "loss")
    integer = not y.is_floating_point()
    if loss == "cross_entropy":
        if not integer or y.dim() != 1 or outputs.dim() != 2:
            raise InputRefused(
                "PA211",
                f"cross_entropy needs integer labels (n,) and outputs (n, c); got {y.dtype} {tuple(y.shape)} and "
                f"{tuple(outputs.shape)}. Use half_squared for real targets.",
            )
        _refuse_labels_out_of_range(y, outputs.shape[1])
        return cross_entropy, y.long()
    if integer and y.dim() == 1 and outputs.dim() == 2:
        _refuse_labels_out_of_range(y, outputs.shape[1])
        return half_squared, functional.one_hot(y.long(), outputs.shape[1]).to(outputs.dtype)
    if y.shape != outputs.shape or integer:
        raise InputRefused(
            "PA211",
            f"targets are {y.dtype} {tuple(y.shape)}, outputs {outputs.dtype} {tuple(outputs.shape)}. "
            "Give real targets of the outputs' shape, or integer labels (n,).",
        )
    if y.dtype != outputs.dtype:
        raise InputRefused("PA121", f"targets are {y.dtype}, outputs {outputs.dtype}. Convert with .to().")
    return half_squared, y


def _refuse_labels_out_of_range(labels: Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputRefused(
            "PA212",
            f"labels run from {low} to {high}, the model has {classes} outputs. Use labels 0..{classes - 1}.",
        )
