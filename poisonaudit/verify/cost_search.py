"""Which budget to try next, on the way to the smallest one that succeeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from poisonaudit.attack import Budget
from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name
from poisonaudit.verify.cost_result import Over

_PRECISION = 0.1
# Doublings of the first radius tried, where nothing else ends the search upwards.
_DOUBLINGS = 10


@dataclass(frozen=True)
class Search:
    """Which budget to try next, given which ones succeeded and failed.

    Upwards by doubling until one succeeds, where no largest budget is given; downwards by halving until one fails,
    where no smallest one is given; then bisection. Last, one budget well below the largest failure, because attacks are
    not sure to be monotone in their budget: if that one succeeds, the search goes on below it.

    Attributes:
        over: "radius" or "rows".
        start: first budget to try where `high` is not given.
        low: smallest budget to try; None for no limit.
        high: largest budget to try, tried first; None to find it by doubling.
        ceiling: beyond it doubling does not go.
        precision: the bracket is narrow enough at this share of its upper end (for rows also at one row).
    """

    over: Over
    start: float
    low: float | None
    high: float | None
    ceiling: float
    precision: float

    def next(self, won: Sequence[float], lost: Sequence[float]) -> float | None:
        """The next budget, None when the search is over.

        Args:
            won: budgets that succeeded.
            lost: budgets that failed.

        Returns:
            A budget that was not tried yet.
        """
        if not won:
            return self._upwards(lost)
        upper = min(won)
        lower = max((amount for amount in lost if amount < upper), default=0)
        if self.low is not None and (upper <= self.low or lower == 0):
            return None if upper <= self.low else self.low
        gap = upper - lower > self.precision * upper
        middle: float
        if self.over == "rows":
            middle = (int(lower) + int(upper)) // 2
        else:
            middle = math.sqrt(lower * upper) if lower > 0 else upper / 2
        return middle if gap and lower < middle < upper else self._below(lower, (*won, *lost))

    def _upwards(self, lost: Sequence[float]) -> float | None:
        if self.high is not None:
            return None if self.high in lost else self.high
        if not lost:
            return min(self.start, self.ceiling)
        return None if max(lost) >= self.ceiling else min(2 * max(lost), self.ceiling)

    def _below(self, lower: float, tried: Sequence[float]) -> float | None:
        """A budget well below the largest failure, if none was tried there."""
        below = int(lower) // 2 if self.over == "rows" else lower / 2
        if below <= 0 or (self.low is not None and below < self.low) or min(tried) <= below:
            return None
        return below

    def end(self) -> str:
        """What the largest budget of the search is, in words."""
        if self.high is not None:
            return "the largest asked for"
        if self.over == "rows":
            return "all there are"
        return "as far as the search doubles" if self.ceiling >= self.start * 2**_DOUBLINGS else "all the box allows"


def checked_search(
    problem: Problem, budget: Budget, over: Over, low: float | None, high: float | None, precision: float | None
) -> Search:
    """The plan of the search, its arguments checked.

    Args:
        problem: to be attacked.
        budget: all that is not searched over.
        over: "radius" or "rows".
        low: smallest budget to try, or None.
        high: largest budget to try, or None.
        precision: None for the default of this kind of budget.

    Returns:
        The plan.

    Raises:
        UsageError: PA346, range or precision do not fit; PA301, no such `over`.
    """
    if over not in ("radius", "rows"):
        raise unknown_name(str(over), ("radius", "rows"), "budget to search over")
    whole = over == "rows"
    if whole and not isinstance(budget.choice, str):
        raise UsageError("PA346", "the rows are named, so their number cannot be searched over. Search the radius.")
    for name, end in (("low", low), ("high", high)):
        good = end is None or (
            0 < end < math.inf and (not whole or (float(end).is_integer() and 1 <= end <= problem.rows))
        )
        if not good:
            kind = f"whole number from 1 to {problem.rows}" if whole else "finite number > 0"
            raise UsageError("PA346", f"{name} is {end}; searching the {over} needs a {kind}. Correct it.")
    if low is not None and high is not None and not low < high:
        raise UsageError("PA346", f"low is {low} and high is {high}. Give low < high.")
    wanted = (0.0 if whole else _PRECISION) if precision is None else precision
    if not (wanted >= 0.0 if whole else wanted > 0.0) or wanted >= 1.0:
        raise UsageError("PA346", f"precision is {precision}; it must be a share below 1. Pass 0.1 for 10 %.")
    own = budget.count(problem.rows) if whole else float(budget.radius)
    start = own if low is None else low
    if whole:
        integer = [None if end is None else int(end) for end in (low, high)]
        return Search(over, int(start), integer[0], integer[1], problem.rows, wanted)
    # A radius beyond the farthest corner of the box changes nothing any more.
    ceiling = min(_reach(problem, budget), start * 2**_DOUBLINGS)
    return Search(over, start, low, high, ceiling, wanted)


def _reach(problem: Problem, budget: Budget) -> float:
    """Largest norm that the box leaves to one row's perturbation; infinite without a box."""
    allowed = dataclasses.replace(budget, spacing=None).around(problem.x)
    sizes = torch.maximum(-allowed.lower, allowed.upper).flatten(1)
    if allowed.scale is not None:
        sizes = sizes / allowed.scale.flatten()
    order = {"l1": 1.0, "l2": 2.0}.get(budget.norm, math.inf)
    largest = float(torch.linalg.vector_norm(sizes, order, dim=1).max())
    # Rows that cannot move at all would make the search start at 0.
    return largest if largest > 0 else math.inf
