"""Unit, kind and direction of every measure, and the ways a measure can end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from poisonaudit.results import Direction, Kind, Measure


@dataclass(frozen=True)
class Fact:
    """What a measure's number is, whatever the model."""

    unit: str
    kind: Kind
    direction: Direction


_WEIGHTS = "weight norm per input norm"
_TANGENT = "squared second derivatives, summed"
_LOGITS = "logit norm per input norm"

FACTS: dict[str, Fact] = {
    "stationarity.relative_gradient": Fact(
        "gradient norm per largest curvature times weight norm", "estimate", "neutral"
    ),
    "solution.modulus": Fact(_WEIGHTS, "exact", "lower_is_safer"),
    "solution.row_modulus_max": Fact(_WEIGHTS, "exact", "lower_is_safer"),
    "solution.poison_budget": Fact("input norm (Frobenius) that moves the weights by 1 %", "exact", "higher_is_safer"),
    "solution.theorem2_max": Fact(f"{_WEIGHTS} (proxy, not a bound)", "statistic", "lower_is_safer"),
    "solution.theorem3": Fact(f"{_WEIGHTS} (proxy, not a bound)", "statistic", "lower_is_safer"),
    "tangent.sensitivity": Fact(_TANGENT, "exact", "lower_is_safer"),
    "tangent.sensitivity_normalised": Fact(
        f"{_TANGENT} with squared weights; kept when neurons of ReLU-like nets are rescaled", "exact", "lower_is_safer"
    ),
    "tangent.bound_path": Fact(_TANGENT, "upper", "lower_is_safer"),
    "tangent.bound_theorem31": Fact(_TANGENT, "upper", "lower_is_safer"),
    "tangent.bound_theorem32": Fact(_TANGENT, "upper", "lower_is_safer"),
    "lipschitz.upper.linf": Fact(f"{_LOGITS} (l_inf)", "upper", "lower_is_safer"),
    "lipschitz.upper.l1": Fact(f"{_LOGITS} (l_1)", "upper", "lower_is_safer"),
    "lipschitz.lower.linf": Fact(f"{_LOGITS} (l_inf)", "lower", "lower_is_safer"),
    "lipschitz.lower.l1": Fact(f"{_LOGITS} (l_1)", "lower", "lower_is_safer"),
    "lipschitz.certified_radius_median": Fact("input distance (l_inf)", "lower", "higher_is_safer"),
    "weight_noise.rms": Fact("output change per output norm, 10 % noise in all weights", "estimate", "lower_is_safer"),
    "weight_noise.flip_rate": Fact(
        "share of predictions changed by 10 % noise in all weights", "estimate", "lower_is_safer"
    ),
    "weight_noise.condition_relative_max": Fact(
        "relative output change per relative weight change (Frobenius)", "exact", "lower_is_safer"
    ),
    "art.empirical_robustness": Fact("relative l_inf perturbation (FGSM)", "estimate", "higher_is_safer"),
    "art.loss_sensitivity": Fact("l_2 norm of the loss gradient in the input", "statistic", "lower_is_safer"),
    "art.clever": Fact("input norm (l_2)", "estimate", "higher_is_safer"),
    "art.shapr": Fact("Shapley value of a training row times their number", "statistic", "lower_is_safer"),
    "art.pdtp": Fact(
        "ratio of probabilities with and without a training row, bins of 1 %", "statistic", "lower_is_safer"
    ),
}
_UNKNOWN = Fact("", "estimate", "neutral")


def measured(
    measure: str,
    value: float,
    *,
    valid: bool = True,
    reason: str = "",
    details: Mapping[str, Any] | None = None,
    kind: Kind | None = None,
) -> Measure:
    """A number; infinity becomes `details.infinite`, NaN a failure.

    Args:
        measure: id.
        value: the number, infinity allowed.
        valid: whether it may be used.
        reason: why not, or a remark.
        details: what lies behind it.
        kind: where it depends on the model, else that of `FACTS`.

    Returns:
        The measure.
    """
    fact = FACTS.get(measure, _UNKNOWN)
    behind = dict(details or {})
    if math.isnan(value):
        return ended(measure, "failed", "the computation returned NaN", behind)
    if math.isinf(value):
        behind["infinite"] = True
    return Measure(
        id=measure,
        value=None if math.isinf(value) else value,
        unit=fact.unit,
        kind=kind or fact.kind,
        direction=fact.direction,
        valid=valid,
        reason=reason,
        details={"status": "measured", **behind},
    )


def ended(measure: str, status: str, reason: str, details: Mapping[str, Any] | None = None) -> Measure:
    """A measure without a number: status "not applicable", "skipped" or "failed"."""
    fact = FACTS.get(measure, _UNKNOWN)
    behind = {**(details or {}), "status": status}
    return Measure(measure, None, fact.unit, fact.kind, fact.direction, False, reason, behind)


def not_applicable(measure: str, reason: str, details: Mapping[str, Any] | None = None) -> Measure:
    """The measure says nothing about this model; distinct from passing."""
    return ended(measure, "not applicable", reason, details)


def skipped(measure: str, reason: str) -> Measure:
    """The measure was left out."""
    return ended(measure, "skipped", reason)
