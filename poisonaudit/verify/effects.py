"""One number for how far an attack got, whatever its objective: 0 is no effect, more is worse for the owner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from poisonaudit.errors import UsageError
from poisonaudit.quantities import change_effect
from poisonaudit.registry import unknown_name

Figures = Mapping[str, Any]

# Name -> entry of an outcome whose change it is. The first whose entry is there is the objective's own.
_EFFECTS = {
    "movement": "movement",
    "margin_change": "margin_change",
    "validation_loss_rise": "validation_loss_rise",
    "group_accuracy_drop": "group_accuracy_drop",
    "region_approach": "region_distance_ratio",
    "prediction_approach": "prediction_distance_ratio",
    "success": "success",
    "displacement_norm": "displacement_norm",
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
    there = [name for name, key in _EFFECTS.items() if figures.get(key) is not None]
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
    key = _EFFECTS[name]
    if key not in figures:
        raise UsageError("PA301", f"this objective tells no {name}. Leave the effect out for the objective's own.")
    value = figures[key]
    return math.nan if value is None else change_effect(key, float(value))
