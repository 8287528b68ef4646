"""What a poisoner may change: how many rows, how far, which entries, inside which box."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poisonaudit.arguments import finite_number, whole_number
from poisonaudit.attack.entries import mask_of, refused, steps_of, units_of
from poisonaudit.attack.perturbations import NormName, PerturbationSet
from poisonaudit.errors import UsageError
from poisonaudit.registry import unknown_name

Bound = Tensor | float
NORMS = ("linf", "l2", "l1", "l0")
CHOICES = ("adjoint", "kappa", "class", "random")
# Columns that a remark names before it only counts them.
_MOST_NAMED = 8
# The first rows mostly tell that something can move.
_ROWS_AT_ONCE = 256
# Entries of a bound that are listed; those of larger rows are told by their range.
_MOST_LISTED = 1_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Budget:
    """At most `rows` (or a `share` of all) training rows move, each by `|mu_i / scale| <= radius`, inside the box.

    Entries are numbered along the first axis of a row where whole numbers name them: columns of a table, channels of a
    picture.

    Attributes:
        radius: largest norm of one row's perturbation, in the units of the inputs.
        rows: how many rows may be perturbed.
        share: the same as a share of the training rows in (0, 1], rounded down, at least one row.
        norm: "linf", "l2", "l1" or "l0", of each row by itself; "l0" lets at most `entries` entries of a row move, each
            by at most the radius.
        box: (lower, upper) limits of the perturbed rows, numbers or tensors that broadcast to one row; None
            for no limits. An entry outside the box already may stay or move towards it, never further away.
        choice: "adjoint" (largest first-order gain in this budget), "kappa" (largest modulus), "class" (drawn from one
            class), "random" (drawn from all), or positions of rows.
        row_class: class that "class" draws from; None for the one that the objective wants.
        entries: with "l0", how many entries of a row may move.
        scale: unit in which the radius measures each entry, > 0, shaped like one row, or one number a column.
        immutable: entries that stay: whole numbers, or a boolean tensor shaped like one row.
        spacing: entries that move in whole steps, column -> step, or a tensor of steps shaped like one row with 0 for
            entries that move freely; only with "linf" and "l0".

    Raises:
        UsageError: PA301 unknown norm or choice; PA342 a class without that choice; PA360 a bad radius; PA361 a bad
            number or share of rows; PA362 a bad box; PA363 bad positions; PA369 bad entries, scale, immutable entries
            or steps.
    """

    radius: float
    rows: int | None = None
    share: float | None = None
    norm: NormName = "linf"
    box: tuple[Bound, Bound] | None = None
    choice: str | Tensor | Sequence[int] = "adjoint"
    row_class: int | None = None
    entries: int | None = None
    scale: Tensor | Sequence[float] | None = None
    immutable: Tensor | Sequence[int] | None = None
    spacing: Tensor | Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        radius = finite_number(self.radius)
        if radius is None or radius <= 0.0:
            raise UsageError("PA360", f"radius is {self.radius!r}; it must be a finite number > 0. Pass e.g. 16/255.")
        object.__setattr__(self, "radius", radius)
        if self.norm not in NORMS:
            raise unknown_name(str(self.norm), NORMS, "norm")
        if isinstance(self.choice, str):
            if self.choice not in CHOICES:
                raise unknown_name(self.choice, CHOICES, "choice of rows")
        else:
            object.__setattr__(self, "choice", _positions(self.choice))
        _refuse_bad_count(self.rows, self.share, None if isinstance(self.choice, str) else len(self.choice))
        # NumPy's and torch's numbers as plain ones, which JSON takes.
        object.__setattr__(self, "rows", whole_number(self.rows))
        object.__setattr__(self, "share", finite_number(self.share))
        _refuse_other_types(self)
        if self.row_class is not None and self.choice != "class":
            raise UsageError("PA342", f"row_class is {self.row_class}, but the choice is not 'class'. Leave one out.")
        if self.box is not None:
            _refuse_bad_box(self.box)
        if (self.norm == "l0") != (self.entries is not None) or (self.entries is not None and self.entries < 1):
            raise refused(
                f"norm is {self.norm!r} and entries is {self.entries}",
                "norm 'l0' goes with a number of entries >= 1, the others with none",
                "Pass norm='l0', entries=5, say.",
            )
        if self.spacing is not None and self.norm not in ("linf", "l0"):
            raise refused(
                f"whole steps (spacing, integer in a recipe) and norm {self.norm!r} are given",
                "whole steps need norm 'linf' or 'l0'",
                "Pass one of those norms, or leave spacing (integer in a recipe) out.",
            )

    def count(self, total: int) -> int:
        """How many of `total` training rows may be perturbed.

        Args:
            total: number n of training rows.

        Returns:
            The number k of rows.

        Raises:
            UsageError: PA361, more rows than there are; PA363, a position is not among the rows.
        """
        if not isinstance(self.choice, str):
            positions = torch.as_tensor(self.choice)
            if int(positions.min()) < 0 or int(positions.max()) >= total:
                raise UsageError(
                    "PA363",
                    f"positions run from {int(positions.min())} to {int(positions.max())}, the problem has "
                    f"rows 0..{total - 1}. Give positions of training rows.",
                )
            return len(positions)
        if self.share is not None:
            return max(1, math.floor(self.share * total + 1e-9))
        if self.rows is None or self.rows > total:
            raise UsageError("PA361", f"{self.rows} rows of {total} cannot be perturbed. Ask for at most {total}.")
        return self.rows

    def around(self, rows: Tensor) -> PerturbationSet:
        """The set of admissible perturbations of the given rows.

        Args:
            rows: clean rows (k, ...).

        Returns:
            The set, with limits shaped like `rows`.

        Raises:
            UsageError: PA360, the radius has no square in the rows' type; PA362, the box does not broadcast to one
                row; PA369, scale, steps or immutable entries do not fit.
        """
        lower, upper, outside = self._limits(rows)
        scale = None if self.scale is None else units_of(self.scale, rows)
        _refuse_bad_reach(self.radius, scale, rows)
        fixed = None if self.immutable is None else mask_of(self.immutable, rows)
        if fixed is not None:
            lower, upper = lower.masked_fill(fixed, 0.0), upper.masked_fill(fixed, 0.0)
        return PerturbationSet(
            lower,
            upper,
            self.radius,
            self.norm,
            outside,
            scale=scale,
            entries=self.entries,
            spacing=None if self.spacing is None else steps_of(self.spacing, rows),
        )

    def remarks(self, rows: Tensor, names: Sequence[str] = ()) -> tuple[str, ...]:
        """What the reader of a result should know about this budget: columns that look free and cannot move.

        Args:
            rows: all training rows (n, ...).
            names: of their columns, to be told instead of numbers.

        Returns:
            One sentence, or none.

        Raises:
            UsageError: PA385, no entry of a row can move at all; PA363, a position is not among the rows; and those of
                `around`.
        """
        if not self.moves(rows):
            raise UsageError(
                "PA385",
                "no entry of a row can move: each is immutable, has no room in the box, or its whole step (spacing, "
                f"integer in a recipe) is longer than that room or than radius {self.radius:.4g} times its scale. "
                "Widen the box, or raise the radius or the scale.",
            )
        allowed, stuck = self.around(rows[:1]), self._stuck(rows)
        if not bool(stuck.any()):
            return ()
        assert allowed.spacing is not None
        told = []
        for column, (part, steps) in enumerate(zip(stuck, allowed.spacing, strict=True)):
            if bool(part.any()):
                some = "" if bool(part.all()) else f"{int(part.sum())} entries of "
                step = float(steps[part].max() if part.dim() else steps)
                told.append(f"{some}{names[column] if names else column} (step {step:.4g})")
        more = f" and {len(told) - _MOST_NAMED} more" if len(told) > _MOST_NAMED else ""
        return (
            f"{'column' if len(told) == 1 else 'columns'} {', '.join(told[:_MOST_NAMED])}{more} cannot move: one whole "
            f"step (spacing, integer in a recipe) is longer there than radius {self.radius:.4g} times scale",
        )

    def moves(self, rows: Tensor) -> bool:
        """Whether some entry of a row that may be chosen can move at all.

        It is not immutable, the box leaves it room, and its whole step is not longer than radius or room.

        Args:
            rows: all training rows (n, ...).

        Returns:
            Whether there is one.

        Raises:
            UsageError: PA363, a position is not among the rows; and those of `around`.
        """
        if not isinstance(self.choice, str):
            self.count(len(rows))
            rows = rows[torch.as_tensor(self.choice, device=rows.device)]
        for part in rows.split(_ROWS_AT_ONCE):
            low, high = self.around(part).limits()
            if bool((high > low).any()):
                return True
        return False

    def _stuck(self, rows: Tensor) -> Tensor:
        """Entries that are not immutable and whose whole step is longer than the radius, shaped like one row."""
        stuck = self.around(rows[:1]).stuck()
        return stuck if self.immutable is None else stuck & ~mask_of(self.immutable, rows)

    def _limits(self, rows: Tensor) -> tuple[Tensor, Tensor, int]:
        """How far each entry may go down and up for the box, and how many rows lie outside it."""
        if self.box is None:
            infinite = torch.full_like(rows, math.inf)
            return -infinite, infinite, 0
        try:
            lower, upper = (
                torch.as_tensor(bound, dtype=rows.dtype, device=rows.device).expand(rows.shape[1:]) - rows
                for bound in self.box
            )
        except RuntimeError:
            shapes = [tuple(torch.as_tensor(bound).shape) for bound in self.box]
            raise UsageError(
                "PA362",
                f"the box has shapes {shapes}, one row is {tuple(rows.shape[1:])}. Give bounds like one row.",
            ) from None
        # Zero is always admissible: an entry outside the box may stay where it is or come back.
        return lower.clamp(max=0.0), upper.clamp(min=0.0), _outside(lower, upper)

    def describe(self) -> dict[str, Any]:
        """JSON form: rows, share, radius, norm, box, choice, and what else is set."""
        box = None if self.box is None else [_plain(bound) for bound in self.box]
        choice = self.choice if isinstance(self.choice, str) else [int(position) for position in self.choice]
        body = {
            "rows": self.rows if isinstance(self.choice, str) else len(self.choice),
            "share": self.share,
            "radius": self.radius,
            "norm": self.norm,
            "box": box,
            "choice": choice,
        }
        for name in ("row_class", "entries", "scale", "immutable", "spacing"):
            value = getattr(self, name)
            if value is not None:
                body[name] = value.tolist() if isinstance(value, Tensor) else _plain_mapping(value)
        return body


def _positions(choice: Tensor | Sequence[int]) -> Tensor:
    try:
        positions = torch.as_tensor(choice)
    except (TypeError, ValueError, RuntimeError):
        positions = torch.empty(0)
    if positions.dim() != 1 or positions.numel() == 0 or positions.is_floating_point():
        raise UsageError("PA363", "positions of rows must be a non-empty 1-D list of integers. Pass e.g. [0, 5, 7].")
    if positions.dtype == torch.bool:
        raise UsageError("PA363", "positions of rows are booleans. Pass mask.nonzero().flatten() instead of a mask.")
    if len(set(positions.tolist())) < len(positions):
        raise UsageError("PA363", "a position of a row is given twice. Give each row once.")
    return positions.long().clone()


def _refuse_other_types(budget: Budget) -> None:
    """Entries that are named, or numbers that are none: names of columns are for recipes."""
    given = {"immutable": budget.immutable, "scale": budget.scale}
    given |= {"spacing": list(budget.spacing) if isinstance(budget.spacing, Mapping) else budget.spacing}
    for name, value in given.items():
        if value is None:
            continue
        try:
            fits = torch.as_tensor(value).dim() > 0
        except (TypeError, ValueError, RuntimeError):
            fits = False
        if not fits:
            raise refused(
                f"{name} is {value!r}", "columns are counted from 0 here; only recipes name them", "Pass numbers."
            )
    if budget.entries is not None and whole_number(budget.entries) is None:
        raise refused(f"entries is {budget.entries!r}", "entries are counted", "Pass a whole number >= 1.")
    object.__setattr__(budget, "entries", whole_number(budget.entries))


def _refuse_bad_count(rows: int | None, share: float | None, given: int | None) -> None:
    """Exactly one of rows, share and positions says how many (rows may repeat the number of positions)."""
    if given is not None:
        if share is not None or rows not in {None, given}:
            raise UsageError("PA361", f"{given} positions are given, so rows and share say nothing. Leave them out.")
        return
    if (rows is None) == (share is None):
        raise UsageError("PA361", f"rows is {rows} and share is {share}; exactly one is needed. Pass rows=20, say.")
    if rows is not None and (whole_number(rows) or 0) < 1:
        raise UsageError("PA361", f"rows is {rows!r}; it must be a whole number >= 1. Use share for part of the rows.")
    if share is not None and not 0.0 < (finite_number(share) or 0.0) <= 1.0:
        raise UsageError("PA361", f"share is {share!r}; it must lie in (0, 1]. Pass 0.05 for 5 %.")


def _refuse_bad_reach(radius: float, scale: Tensor | None, rows: Tensor) -> None:
    """Norms and projections square the radius in the units of the inputs."""
    units = [1.0] if scale is None else [float(scale.min()), float(scale.max())]
    kind = torch.finfo(rows.dtype)
    least, most = 1e3 * kind.tiny**0.5, 1e-3 * kind.max**0.5
    if not all(least <= radius * unit <= most for unit in units):
        name = str(rows.dtype).removeprefix("torch.")
        raise UsageError(
            "PA360",
            f"radius is {radius:g}; times the scale it must lie in [{least:.0e}, {most:.0e}], for {name} holds no "
            "squares beyond. Pass a radius in the units of the inputs.",
        )


def _refuse_bad_box(box: tuple[Bound, Bound]) -> None:
    if not isinstance(box, tuple | list) or len(box) != 2:
        raise UsageError("PA362", "the box must be a pair (lower, upper). Pass e.g. box=(0.0, 1.0).")
    try:
        lower, upper = (torch.as_tensor(bound, dtype=torch.float64) for bound in box)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError("PA362", f"the box is {box!r}; its limits must be numbers. Pass e.g. (0.0, 1.0).") from None
    if bool(lower.isnan().any() | upper.isnan().any()):
        raise UsageError("PA362", "the box holds NaN. Pass numbers, or infinity for no limit.")
    try:
        crossed = bool((lower > upper).any())
    except RuntimeError:
        raise UsageError(
            "PA362",
            f"the box's bounds have shapes {tuple(lower.shape)} and {tuple(upper.shape)}. Give equal shapes.",
        ) from None
    if crossed:
        raise UsageError("PA362", "the box's lower bound exceeds its upper bound somewhere. Pass box=(lower, upper).")


def _outside(lower: Tensor, upper: Tensor) -> int:
    """Number of rows with an entry outside the box: its lower slack above 0 or its upper slack below."""
    return int(((lower > 0) | (upper < 0)).flatten(1).any(1).sum())


def _plain(bound: Bound) -> Any:
    """A bound as a number where all its entries agree, else as nested lists; very many in words, by their range."""
    values = torch.as_tensor(bound)
    if bool((values == values.flatten()[0]).all()):
        return float(values.flatten()[0])
    if values.numel() > _MOST_LISTED:
        return f"{values.numel()} entries from {float(values.min()):.6g} to {float(values.max()):.6g}"
    return values.tolist()


def _plain_mapping(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): float(step) for key, step in value.items()}
    return list(value) if isinstance(value, Sequence) else value
