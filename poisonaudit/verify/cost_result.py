"""Results of the search for the smallest budget that retraining confirms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from poisonaudit.attack.poison import Poison
from poisonaudit.verify.retrained import Retrained
from poisonaudit.verify.statistics import Rate, success_rate

Over = Literal["radius", "rows"]


@dataclass(frozen=True)
class CostTrial:
    """One budget, attacked and retrained.

    Attributes:
        amount: the radius or the number of rows that was tried.
        succeeded: at least the needed number of fresh runs reached the objective, their own clean controls not.
        rate: those runs among the fresh seeds, with the exact Clopper-Pearson interval.
        controls: fresh seeds whose clean control met the objective by itself.
        warm: what warm retraining from the clean weights said.
        predicted: what the prediction said, before any retraining.
        predicted_valid: may the prediction be trusted.
        not_converged: fresh poisoned runs that missed the tolerance.
        rows: rows perturbed.
        radius: of each.
        crafting_seconds: wall time of crafting.
        retraining_seconds: wall time of the poisoned runs.
        products: operator products of crafting.
        gradients: cost of crafting in full gradients.
        poison: what was tried; None where the trial was read back.
    """

    amount: float
    succeeded: bool
    rate: Rate
    controls: int
    warm: bool
    predicted: bool
    predicted_valid: bool
    not_converged: int
    rows: int
    radius: float
    crafting_seconds: float
    retraining_seconds: float
    products: int
    gradients: int
    poison: Poison | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data without the poison; `budget` is the amount, `lower` and `upper` the ends of the interval."""
        return {
            "budget": self.amount,
            "succeeded": self.succeeded,
            "successes": self.rate.successes,
            "trials": self.rate.trials,
            "rate": self.rate.rate,
            "lower": self.rate.lower,
            "upper": self.rate.upper,
            "level": self.rate.level,
            "controls": self.controls,
            "warm": self.warm,
            "predicted": self.predicted,
            "predicted_valid": self.predicted_valid,
            "not_converged": self.not_converged,
            "rows": self.rows,
            "radius": self.radius,
            "crafting_seconds": self.crafting_seconds,
            "retraining_seconds": self.retraining_seconds,
            "products": self.products,
            "gradients": self.gradients,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> CostTrial:
        """Read the stored form."""
        kept = ("succeeded", "controls", "warm", "predicted", "predicted_valid", "not_converged", "rows", "radius")
        spent = ("crafting_seconds", "retraining_seconds", "products", "gradients")
        rate = success_rate(int(body["successes"]), int(body["trials"]), float(body["level"]))
        return cls(amount=body["budget"], rate=rate, **{key: body[key] for key in (*kept, *spent)})


def judge_trial(amount: float, poison: Poison, retrained: Retrained, need: int) -> CostTrial:
    """A trial from a poison and what retraining said about it.

    Args:
        amount: the radius or number of rows it stands for.
        poison: as crafted.
        retrained: with at least one fresh seed, under an objective that defines success.
        need: fresh runs that have to reach the objective while their own controls do not.

    Returns:
        The trial.
    """
    alone = [bool(run.outcome["success"]) for run in retrained.control.fresh]
    reached = [bool(run.outcome["success"]) for run in retrained.fresh]
    owed = sum(poisoned and not clean for poisoned, clean in zip(reached, alone, strict=True))
    return CostTrial(
        amount=amount,
        succeeded=owed >= need,
        rate=success_rate(owed, len(reached)),
        controls=sum(alone),
        warm=bool(retrained.warm.outcome["success"]),
        predicted=bool(poison.predicted.get("success")),
        predicted_valid=bool(poison.predicted.get("valid")),
        not_converged=sum(not run.converged for run in retrained.fresh),
        rows=len(poison.rows),
        radius=float(poison.budget.radius),
        crafting_seconds=poison.seconds,
        retraining_seconds=sum(run.seconds for run in (retrained.warm, *retrained.fresh)),
        products=poison.products,
        gradients=poison.gradients,
        poison=poison,
    )


@dataclass(frozen=True)
class VerifiedCost:
    """The smallest budget at which retraining confirmed the attack: an upper bound of the true minimal cost.

    A poison inside a budget is inside every larger one, so the true minimal cost is at most `value`, whatever happened
    at other budgets. A failure speaks of the attack that was tried, not of all attacks: `lower` bounds nothing.

    Attributes:
        over: "radius" or "rows".
        value: smallest verified success; None, for `reason`, if there was none.
        lower: largest budget below `value` shown not to succeed (largest of all if there is no value); 0 if none.
        upper: the other end of the bracket, equal to `value`.
        unit: of the budget.
        trials: every budget tried, smallest first.
        monotone: no smaller budget succeeded where a larger one failed.
        predicted: smallest budget whose valid prediction succeeded; never to be shown alone.
        reason: why there is no value, or what the value means and what limits it.
        seconds: of crafting and retraining over all trials, controls left out.
    """

    over: Over
    value: float | None
    lower: float
    upper: float | None
    unit: str
    trials: Sequence[CostTrial]
    monotone: bool
    predicted: float | None
    reason: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain data, with `kind` "upper"."""
        return {
            "over": self.over,
            "value": self.value,
            "unit": self.unit,
            "lower": self.lower,
            "upper": self.upper,
            "trials": [trial.to_json() for trial in self.trials],
            "monotone": self.monotone,
            "predicted": self.predicted,
            "reason": self.reason,
            "kind": "upper",
        }
