"""Entries of a row as users name them: by column or by a tensor, made into one number for every entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from poisonaudit.errors import UsageError


def mask_of(immutable: Tensor | Sequence[int], rows: Tensor) -> Tensor:
    """True where entries stay, shaped like one row.

    Args:
        immutable: numbers of entries, or a boolean tensor shaped like one row.
        rows: (k, ...).

    Returns:
        The mask.

    Raises:
        UsageError: PA369, it does not fit.
    """
    shape = rows.shape[1:]
    if isinstance(immutable, Tensor) and immutable.dtype == torch.bool:
        if immutable.shape != shape:
            raise refused(f"immutable is {tuple(immutable.shape)}", f"one row is {tuple(shape)}", "Give equal shapes.")
        return immutable.to(rows.device)
    mask = torch.zeros(shape, dtype=torch.bool, device=rows.device)
    for column in torch.as_tensor(immutable).tolist():
        mask[_column(column, shape)] = True
    return mask


def units_of(scale: Tensor | Sequence[float], rows: Tensor) -> Tensor:
    """Units of the radius, shaped like one row.

    Args:
        scale: for every entry, or one a column.
        rows: (k, ...).

    Returns:
        The units.

    Raises:
        UsageError: PA369, it does not fit, or an entry is not positive and finite.
    """
    given, shape = torch.as_tensor(scale).to(rows), rows.shape[1:]
    if given.dim() == 1 and len(shape) > 1 and len(given) == shape[0]:
        given = given.view(-1, *[1] * (len(shape) - 1))
    if given.dim() > len(shape) or any(
        own not in (1, wanted) for own, wanted in zip(reversed(given.shape), reversed(shape), strict=False)
    ):
        raise refused(f"scale is {tuple(given.shape)}", f"one row is {tuple(shape)}", "Give one number a column.")
    if not bool((given > 0).all() & given.isfinite().all()):
        raise refused("scale holds an entry that is not positive and finite", "the radius has no unit there", "Fix it.")
    return given.expand(shape).contiguous()


def steps_of(spacing: Tensor | Mapping[int, float], rows: Tensor) -> Tensor:
    """Step of every entry, 0 where it moves freely, shaped like one row.

    Args:
        spacing: column -> step, or a tensor of steps.
        rows: (k, ...).

    Returns:
        The steps.

    Raises:
        UsageError: PA369, it does not fit, or a step is negative or not finite.
    """
    shape = rows.shape[1:]
    if isinstance(spacing, Mapping):
        steps = torch.zeros(shape, dtype=rows.dtype, device=rows.device)
        for column, step in spacing.items():
            steps[_column(column, shape)] = float(step)
    else:
        steps = torch.as_tensor(spacing).to(rows)
    if steps.shape != shape or not bool((steps >= 0).all() & steps.isfinite().all()):
        raise refused(
            f"spacing (integer in a recipe) has shape {tuple(steps.shape)}, one row is {tuple(shape)}"
            if steps.shape != shape
            else "spacing (integer in a recipe) holds a step that is negative or not finite",
            "steps must be finite and >= 0",
            "Give one a column, 0 where it moves freely.",
        )
    return steps


def _column(column: int, shape: torch.Size) -> int:
    if isinstance(column, bool) or not isinstance(column, int) or not 0 <= column < shape[0]:
        raise refused(f"entry {column} is named", f"a row has entries 0..{shape[0] - 1}", "Name one of those.")
    return column


def refused(got: str, expected: str, advice: str) -> UsageError:
    """The error for entries that do not fit, PA369."""
    return UsageError("PA369", f"{got}; {expected}. {advice}")
