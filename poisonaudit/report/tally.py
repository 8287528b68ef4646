"""Several retrainings in a few numbers: warm start, mean and range over fresh seeds, success rate, accuracy change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from poisonaudit.quantities import Quantity, flat_outcome
from poisonaudit.report.formats import figure, items_of, mapping_of, number

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Tally:
    """What a set of retrainings on the same data gave.

    Attributes:
        warm: primary number of the warm start, None where not stored.
        values: primary numbers of the fresh seeds that have one.
        wins: fresh seeds that reached the goal.
        judged: fresh seeds of which that is known.
        rate: the success rate with its interval in words, "" where nothing is known.
        accuracy: the change of test accuracy in words, "" where it is not stored.
    """

    warm: float | None
    values: Sequence[float]
    wins: int
    judged: int
    rate: str
    accuracy: str

    @property
    def mean(self) -> float | None:
        """Mean over the fresh seeds, None without any."""
        return fmean(self.values) if self.values else None

    @property
    def spread(self) -> str:
        """Range over the fresh seeds in words, "" where there is none to state."""
        return span(self.values) if len(self.values) > 1 else ""

    @property
    def share(self) -> float | None:
        """Share of the judged fresh seeds that reached the goal, None without any."""
        return self.wins / self.judged if self.judged else None

    @property
    def empty(self) -> bool:
        """True if nothing at all is stored."""
        return self.warm is None and not self.values and not self.rate


def tally(quantity: Quantity, warm: Any, fresh: Any, summary: Any = None) -> Tally:
    """Condense stored retrainings; anything may be missing or null.

    Args:
        quantity: the primary number and what counts as reached.
        warm: outcome of the warm start.
        fresh: outcomes of the fresh seeds.
        summary: stored summary with `success` and `accuracy_change`, preferred to counting.

    Returns:
        The numbers.
    """
    outcomes = [flat_outcome(item) for item in items_of(fresh)]
    found = [value for item in outcomes if (value := figure(item, quantity.key)) is not None and math.isfinite(value)]
    votes = [vote for item in outcomes if (vote := reached(item, quantity)) is not None]
    told = told_rate(mapping_of(mapping_of(summary).get("success")))
    if not told and votes:
        told = f"{sum(votes)} of {len(votes)}"
    return Tally(
        warm=figure(flat_outcome(warm), quantity.key),
        values=found,
        wins=sum(votes),
        judged=len(votes),
        rate=told,
        accuracy=told_change(mapping_of(mapping_of(summary).get("accuracy_change"))),
    )


def reached(outcome: Mapping[str, Any], quantity: Quantity) -> bool | None:
    """Whether an outcome reaches the attacker's goal, None where it cannot be told."""
    if isinstance(outcome.get("success"), bool):
        return bool(outcome["success"])
    return quantity.reached(figure(outcome, quantity.key))


def told_rate(stored: Mapping[str, Any]) -> str:
    """One success rate in words, e.g. "2 of 3 (95 % interval 0.094 to 0.992)"."""
    successes, trials = figure(stored, "successes"), figure(stored, "trials")
    if successes is None or not trials:
        return ""
    low, high, level = (figure(stored, key) for key in ("lower", "upper", "level"))
    told = f"{successes:.0f} of {trials:.0f}"
    if low is None or high is None:
        return told
    share = "" if level is None else f"{number(100 * level, 3)} % "
    return f"{told} ({share}interval {number(low, 3)} to {number(high, 3)})"


def told_change(stored: Mapping[str, Any]) -> str:
    """A mean change with its standard error in words, e.g. "−0.012 ± 0.004"."""
    mean, error = figure(stored, "mean"), figure(stored, "standard_error")
    if mean is None:
        return ""
    mean = unrounded(mean)
    return str(number(mean, 3)) if error is None else f"{number(mean, 3)} ± {number(unrounded(error), 2)}"


def unrounded(change: float) -> float:
    """A change of shares of rows without what rounding made of an exact 0: no share is of fewer than 1e-9 rows."""
    return 0.0 if abs(change) < _ROUNDING else change


def span(values: Sequence[float | None]) -> str:
    """The range of values: "0.41", "0.39 to 0.42" or "no number"."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return "no number"
    low, high = str(number(known[0], 3)), str(number(known[-1], 3))
    return low if low == high else f"{low} to {high}"
