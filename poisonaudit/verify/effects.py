"""One number for how far an attack got, whatever its objective: 0 is no effect, more is worse for the owner."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from poisonaudit.errors import UsageError
from poisonaudit.registry import unknown_name

Figures = Mapping[str, Any]


def _approach(key: str) -> Callable[[Figures], float | None]:
    """One minus a distance relative to the unpoisoned one: 0 at the start, 1 at the aim."""
    return lambda figures: None if figures[key] is None else 1.0 - float(figures[key])


def _plain(key: str) -> Callable[[Figures], float | None]:
    return lambda figures: None if figures[key] is None else float(figures[key])


# Name -> (entry of an outcome that it is made from, how). The first whose entry is there is the objective's own.
_EFFECTS: dict[str, tuple[str, Callable[[Figures], float | None]]] = {
    "movement": ("movement", _plain("movement")),
    "margin_change": ("margin_change", _plain("margin_change")),
    "validation_loss_rise": ("validation_loss_rise", _plain("validation_loss_rise")),
    "group_accuracy_drop": ("group_accuracy_drop", _plain("group_accuracy_drop")),
    "region_approach": ("region_distance_ratio", _approach("region_distance_ratio")),
    "prediction_approach": ("prediction_distance_ratio", _approach("prediction_distance_ratio")),
    "success": ("success", _plain("success")),
    "displacement_norm": ("displacement_norm", _plain("displacement_norm")),
}


def effect_name(figures: Figures, wanted: str | None = None) -> str:
    """The name of the effect that an outcome can tell.

    Args:
        figures: from `outcome`.
        wanted: "movement", "margin_change", "validation_loss_rise", "group_accuracy_drop", "region_approach" (1 minus
            the relative distance to the region), "prediction_approach" (likewise), "success" (1 or 0),
            "displacement_norm"; None for the objective's own, the first of these.

    Returns:
        The name.

    Raises:
        UsageError: PA301, the outcome does not tell it.
    """
    there = [name for name, (key, _) in _EFFECTS.items() if figures.get(key) is not None]
    if wanted is None:
        return there[0]
    if wanted not in there:
        raise unknown_name(str(wanted), there, "effect of this objective")
    return wanted


def effect(figures: Figures, name: str) -> float:
    """The effect of one retraining, counted from the reference its outcome was made with.

    Args:
        figures: from `outcome`.
        name: from `effect_name`.

    Returns:
        The number, NaN where it is not defined.

    Raises:
        UsageError: PA301, there is no such effect.
    """
    if name not in _EFFECTS:
        raise unknown_name(name, _EFFECTS, "effect")
    key, read = _EFFECTS[name]
    if key not in figures:
        raise UsageError("PA301", f"this objective tells no {name}. Leave the effect out for the objective's own.")
    value = read(figures)
    return math.nan if value is None else value
