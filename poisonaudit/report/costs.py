"""The smallest budget at which retraining confirmed success, as it is told to a reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poisonaudit.quantities import verified_budget
from poisonaudit.report.findings import Finding
from poisonaudit.report.formats import figure, flat, items_of, mapping_of, number
from poisonaudit.report.tally import told_rate

MOST_TRIALS = 24


@dataclass(frozen=True)
class CostTrial:
    """One budget that was tried.

    Attributes:
        budget: the searched number, or the budget in words.
        succeeded: whether retraining confirmed success there, None where not stored.
        rate: success rate in words.
        predicted: whether success was predicted there, None where not stored.
    """

    budget: str
    succeeded: bool | None
    rate: str
    predicted: bool | None


@dataclass(frozen=True)
class Cost:
    """A search for the smallest budget.

    Attributes:
        over: "rows" or "radius".
        unit: of the budget, in words.
        value: smallest budget verified to succeed, None where there is none.
        lower: largest budget that retraining showed not to succeed, None where there is none.
        predicted: the predicted budget, None where none is stored or nothing was verified beside it.
        reason: why there is no value, or a remark.
        trials: the budgets that were tried.
    """

    over: str
    unit: str
    value: float | None
    lower: float | None
    predicted: float | None
    reason: str
    trials: Sequence[CostTrial]

    @property
    def amount(self) -> str:
        """The verified budget in words: "12 training rows", "radius 0.03 input units", "none found"."""
        return "none found" if self.value is None else self._told(self.value)

    @property
    def bracket(self) -> str:
        """What is known on the other side, "" where nothing is."""
        if self.lower is not None:
            return f"retraining showed no success at {self._short(self.lower)}"
        return "no smaller budget was shown to fail" if self.value is not None else ""

    @property
    def expected(self) -> str:
        """The predicted budget in words, to stand behind the verified one; "" where there is none."""
        if self.predicted is None:
            return ""
        return f"predicted: {self._short(self.predicted)}{'' if self.value is not None else ', not verified'}"

    @property
    def sentence(self) -> str:
        """All of it in one sentence."""
        head = (
            f"Smallest budget at which retraining confirmed success: {self.amount}"
            if self.value is not None
            else "Retraining confirmed success at none of the budgets tried"
        )
        return "; ".join(text for text in (head, self.bracket, self.expected, self.reason.rstrip(".")) if text) + "."

    def _told(self, amount: float) -> str:
        return f"{'radius ' if self.over == 'radius' else ''}{_plain(amount)} {self.unit}".rstrip()

    def _short(self, amount: float) -> str:
        """Without the unit where the verified budget has told it already."""
        return self._told(amount) if self.value is None else _plain(amount)


def _plain(amount: float) -> str:
    return str(number(int(amount) if amount == int(amount) else amount))


def cost_of(stored: Any) -> Cost | None:
    """A stored `verified_cost`, None where no search was made; anything in it may be missing or null."""
    found = mapping_of(stored)
    if not found:
        return None
    over = "radius" if found.get("over") == "radius" else "rows"
    value, lower = finite_figure(found, "value"), finite_figure(found, "lower")
    # A budget of nothing fails without being tried.
    lower = lower if lower is not None and lower > 0 else None
    trials = [mapping_of(item) for item in items_of(found.get("trials"))]
    # A predicted budget says nothing by itself: it is told only beside what retraining said.
    uneven = "A larger budget failed where a smaller one succeeded." if found.get("monotone") is False else ""
    beside = value is not None or lower is not None or bool(trials)
    return Cost(
        over=over,
        unit=str(found.get("unit") or ("" if over == "radius" else "training rows")),
        value=value,
        lower=lower,
        predicted=finite_figure(found, "predicted") if beside else None,
        reason=" ".join(text for text in (str(found.get("reason") or ""), uneven) if text),
        trials=[cost_trial(item) for item in trials[:MOST_TRIALS]],
    )


def cost_trial(stored: Mapping[str, Any]) -> CostTrial:
    """One budget that was tried."""
    budget = stored.get("budget")
    told = ", ".join(f"{name} {text}" for name, text in flat(budget)) if isinstance(budget, Mapping) else number(budget)
    succeeded, predicted = (
        stored.get(key) if isinstance(stored.get(key), bool) else None for key in ("succeeded", "predicted")
    )
    # The counts stand in the trial itself or under `success`.
    return CostTrial(str(told), succeeded, told_rate(mapping_of(stored.get("success")) or stored), predicted)


def finite_figure(stored: Mapping[str, Any], key: str) -> float | None:
    """A finite number, None where there is none."""
    value = figure(stored, key)
    return value if value is not None and abs(value) != float("inf") else None


def cheapest(findings: Sequence[Finding]) -> list[tuple[Finding, Cost]]:
    """Of several attacks on one model the cheapest verified one per goal and unit; attacks without a search left out.

    Args:
        findings: attacks on one model.

    Returns:
        Finding and cost; where no search for a goal found a budget, the one that looked furthest.
    """
    best: dict[tuple[str, str, str], tuple[Finding, Cost]] = {}
    for found in findings:
        cost = cost_of(found.attack.verified_cost)
        if cost is None:
            continue
        attack = found.attack
        unit = verified_budget(attack.verified_cost, attack.budget, attack.rows).unit
        key = (found.quantity.kind, cost.over, unit)
        if key not in best or _order(cost) < _order(best[key][1]):
            best[key] = (found, cost)
    return list(best.values())


def _order(cost: Cost) -> tuple[bool, float]:
    return (cost.value is None, cost.value if cost.value is not None else -(cost.lower or 0.0))
