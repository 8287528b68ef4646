"""What each kind of attack is measured by: one table that retraining, rules, reports and the command line read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

TOLERANCE = 0.25
_HALF_WAY = 0.5
# Shares of rows and drops of accuracies are differences of rounded quotients.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Quantity:
    """The primary number of one kind of objective.

    Attributes:
        kind: of the objective, as its `describe` says.
        attack: what such an attack is called.
        goal: what its attacker wants, in words.
        key: name of the primary number in outcomes.
        word: what it is called in running text.
        meaning: one line for the reader.
        confirmed_by: "size", a retraining confirms a prediction if its effect is within `TOLERANCE` of the predicted
            one; "side", if both reach the goal or both miss it.
        no_effect: the number where the poison does nothing; effects are counted from it.
        reached_at: value that counts as reaching the goal where no success is stored; None if that cannot be told.
        beyond: True if `reached_at` itself does not count.
        smaller_is_further: True if the attacker wants the number small.
        control: whether clean data can reach the goal without poison: "never", the number is counted from the control
            itself; "stored", where the control's success is stored; "value", by its number as well.
        paired: name of the change that is compared between a poisoned seed and its control.
        measure: the audit measure such attacks feed, or "".
    """

    kind: str
    attack: str
    goal: str
    key: str
    word: str
    meaning: str
    confirmed_by: Literal["size", "side"]
    no_effect: float
    reached_at: float | None
    beyond: bool
    smaller_is_further: bool
    control: Literal["never", "stored", "value"]
    paired: str
    measure: Literal["attack.movement", "attack.flip_success", ""]

    def reached(self, value: float | None) -> bool | None:
        """Whether a value reaches the goal, None where it cannot be told."""
        if value is None or self.reached_at is None:
            return None
        ahead = self.reached_at - value if self.smaller_is_further else value - self.reached_at
        return ahead > 0 if self.beyond else ahead >= -_ROUNDING

    def effect(self, value: float | None) -> float | None:
        """How far the value is from no effect, positive toward the attacker's goal."""
        if value is None:
            return None
        return self.no_effect - value if self.smaller_is_further else value - self.no_effect

    def confirms(self, value: float, predicted: float) -> bool:
        """Whether the effect of `value` is within `TOLERANCE` of the predicted one."""
        return abs(value - predicted) <= TOLERANCE * abs(predicted - self.no_effect) + _ROUNDING

    def ratio(self, value: float | None, predicted: float | None) -> float | None:
        """The effect of `value` over the predicted effect, None where either is missing or nothing was predicted."""
        got, expected = self.effect(value), self.effect(predicted)
        return None if got is None or not expected or not math.isfinite(expected) else got / expected

    def effect_ratio(self, outcome: Mapping[str, Any], predicted: Mapping[str, Any]) -> float | None:
        """Retrained over predicted effect, by the paired change where both have it: a margin is no effect."""
        key = self.paired
        if not key or not all(isinstance(each.get(key), int | float) for each in (outcome, predicted)):
            key = self.key
            return self.ratio(outcome.get(key), predicted.get(key)) if key != "margin" else None
        expected = predicted[key] - unmoved(key)
        return (outcome[key] - unmoved(key)) / expected if expected and math.isfinite(expected) else None


_MOVEMENT = "Movement: share of the way to the target weights (0 is no effect, 1 is all the way)."

QUANTITIES: dict[str, Quantity] = {
    each.kind: each
    for each in (
        Quantity(
            "target_weights", "target-weights", "move the retrained weights toward chosen target weights",
            "movement", "movement", _MOVEMENT,
            "size", 0.0, _HALF_WAY, False, False, "never", "movement", "attack.movement",
        ),
        Quantity(
            "membership", "membership", "make chosen target weights a stationary point of the poisoned training",
            "movement", "movement", _MOVEMENT,
            "size", 0.0, _HALF_WAY, False, False, "never", "movement", "attack.movement",
        ),
        Quantity(
            "target_region", "target-region", "move the retrained weights into a chosen region",
            "region_distance_ratio", "distance left to the region",
            "Distance left to the region, as a share of the unpoisoned one (1 is no effect, 0 is inside).",
            "size", 1.0, 0.0, False, True, "stored", "region_distance_ratio", "",
        ),
        Quantity(
            "match_predictions", "match-predictions", "make the retrained model predict as chosen weights do",
            "prediction_distance_ratio", "distance left to the wanted predictions",
            "Distance left to the wanted predictions, as a share of the unpoisoned one (1 is no effect, 0 is equal).",
            "size", 1.0, _HALF_WAY, False, True, "stored", "prediction_distance_ratio", "",
        ),
        Quantity(
            "flip", "flip", "give one chosen test row the attacker's label",
            "margin", "margin",
            "Margin: logit of the wanted label minus the largest other one (above 0 the prediction is flipped).",
            "side", 0.0, 0.0, True, False, "value", "margin_change", "attack.flip_success",
        ),
        Quantity(
            "flips", "several-flips", "give several chosen test rows the attacker's labels",
            "flipped_share", "share of rows flipped",
            "Share of the chosen rows that get the attacker's labels (1 is all of them).",
            "side", 0.0, 1.0, False, False, "value", "margin_change", "attack.flip_success",
        ),
        Quantity(
            "validation_loss", "validation-loss", "raise the mean loss on chosen rows",
            "validation_loss_rise", "rise of the loss",
            "Rise of the mean loss on the attacked rows over the unpoisoned model's (0 is no effect).",
            "size", 0.0, None, False, False, "never", "validation_loss_rise", "",
        ),
        Quantity(
            "group_accuracy", "group-accuracy", "lower the accuracy on a class or subgroup",
            "group_accuracy_drop", "drop of the group's accuracy",
            "Drop of the accuracy on the attacked group below the unpoisoned model's (0 is no effect).",
            "size", 0.0, None, False, False, "never", "group_accuracy_drop", "",
        ),
    )
}  # fmt: skip

# Changes in which predicted and retrained are compared: fresh seeds can share them although their levels differ.
PAIRED: tuple[str, ...] = tuple(
    dict.fromkeys(["movement", "margin_change", *(each.paired for each in QUANTITIES.values())])
)


def unmoved(key: str) -> float:
    """The value of a paired change at which the poison did nothing: 1 for ratios of distances, else 0."""
    quantity = _paired_quantity(key)
    return 0.0 if quantity is None else quantity.no_effect


def change_effect(key: str, value: float) -> float:
    """How far a paired change is from `unmoved`, positive toward the attacker's goal; others count from 0."""
    quantity = _paired_quantity(key)
    effect = None if quantity is None else quantity.effect(value)
    return value if effect is None else effect


def counted_from_control(key: str) -> bool:
    """Whether success in it is judged against the control of the same seed, so that no control can have it."""
    quantity = _paired_quantity(key)
    return quantity is not None and quantity.control == "never"


def _paired_quantity(key: str) -> Quantity | None:
    """The quantity whose primary number is itself the paired change of this name."""
    return next((each for each in QUANTITIES.values() if key == each.paired == each.key), None)


def quantity_of(recipe: Any, predicted: Any = None, retrained: Any = None) -> Quantity:
    """What a stored attack is measured by.

    Args:
        recipe: of the attack; its `objective.kind`, or its `objective`, names the kind.
        predicted: outcome of the prediction.
        retrained: {"warm": outcome, "fresh": [outcome]}.

    Returns:
        The entry of the table. Where the recipe names no kind, it is read off the stored numbers; where it names one
        that is not in the table, its own success is all that is judged.
    """
    kind = objective_kind(recipe)
    if kind in QUANTITIES:
        return QUANTITIES[kind]
    outcomes = stored_outcomes(predicted, retrained)
    # A flip of several rows stores a (mean) margin as well, so it is looked for first.
    order = ["flips", "flip", *(name for name in QUANTITIES if name not in ("flips", "flip"))]
    for name in order:
        if any(outcome.get(QUANTITIES[name].key) is not None for outcome in outcomes):
            return QUANTITIES[name] if not kind else _unknown(kind, QUANTITIES[name])
    if kind:
        return _unknown(kind, None)
    judged = any(outcome.get("success") is not None for outcome in outcomes)
    return QUANTITIES["flip" if judged else "target_weights"]


def objective_kind(recipe: Any) -> str:
    """The kind that a stored recipe names, "" where it names none."""
    objective = recipe.get("objective") if isinstance(recipe, Mapping) else None
    kind = objective.get("kind") if isinstance(objective, Mapping) else objective
    return kind if isinstance(kind, str) else ""


def stored_outcomes(predicted: Any, retrained: Any) -> list[Mapping[str, Any]]:
    """Every outcome of a stored attack, flat; anything may be missing or null."""
    source = retrained if isinstance(retrained, Mapping) else {}
    fresh = source.get("fresh")
    entries: Iterable[Any] = fresh if isinstance(fresh, Sequence) and not isinstance(fresh, str) else ()
    return [flat_outcome(entry) for entry in (predicted, source.get("warm"), *entries)]


def flat_outcome(entry: Any) -> Mapping[str, Any]:
    """A retraining flat: its outcome may be nested under `outcome`."""
    if not isinstance(entry, Mapping):
        return {}
    nested = entry.get("outcome")
    return {**entry, **nested} if isinstance(nested, Mapping) else entry


def _unknown(kind: str, near: Quantity | None) -> Quantity:
    """The entry of a kind that is not in the table, measured like `near` if its numbers are of that form."""
    if near is not None:
        return replace(near, kind=kind, attack=kind, goal=kind, measure="")
    return Quantity(
        kind, kind, kind, "success", "success", "The objective's own success.",
        "side", 0.0, None, False, False, "stored", "", "",
    )  # fmt: skip


ROWS_UNIT = "training rows"


def unconverged(entries: Iterable[Mapping[str, Any]]) -> int:
    """Tight trainings that missed their tolerance; the owner's own is judged as it is, for it aims at none."""
    return sum(entry.get("converged") is False and entry.get("kind", "tight") == "tight" for entry in entries)


def unconverged_controls(control: Mapping[str, Any], *, of_fresh: bool) -> int:
    """The same among the controls that movement is counted from.

    Args:
        control: stored controls of an attack.
        of_fresh: of the fresh seeds, else of the warm retraining.

    Returns:
        How many.
    """
    used = control.get("fresh") or () if of_fresh else [control.get("warm")]
    return unconverged(flat_outcome(entry) for entry in used)


@dataclass(frozen=True)
class VerifiedBudget:
    """The smallest budget that retraining confirmed, in the unit of what was searched.

    Attributes:
        value: the number, None where no budget succeeded.
        unit: what it counts: training rows, or the radius of each row in its norm and unit. Numbers in different units
            cannot be ranked.
        beside: the part of the budget that was not searched, in words.
        over: "rows" or "radius".
    """

    value: float | None
    unit: str
    beside: str
    over: Literal["rows", "radius"]


def verified_budget(cost: Any, budget: Any, rows: Any) -> VerifiedBudget:
    """Read a stored `verified_cost` beside the attack's own budget; anything may be missing or null.

    Args:
        cost: `verified_cost` of an attack.
        budget: of the attack.
        rows: ids of its poisoned rows.

    Returns:
        Number, unit and the rest of the budget.
    """
    found: Mapping[str, Any] = cost if isinstance(cost, Mapping) else {}
    known: Mapping[str, Any] = budget if isinstance(budget, Mapping) else {}
    norm = f"{known['norm']} " if isinstance(known.get("norm"), str) else ""
    value = _finite(found.get("value"))
    if found.get("over") == "radius":
        count = f"{len(rows)} {ROWS_UNIT}" if isinstance(rows, Sequence) and rows else "a number of rows not stated"
        return VerifiedBudget(value, f"{norm}radius in {found.get('unit') or 'input units'}", count, "radius")
    radius = _finite(known.get("radius"))
    unit = f" {known['unit']}" if isinstance(known.get("unit"), str) else ""
    told = "a radius not stated" if radius is None else f"{norm}radius {radius:.4g}{unit}"
    return VerifiedBudget(value, ROWS_UNIT, told, "rows")


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
