"""What is known of a model before it is poisoned: every audit measure, and the baselines."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.predictive_baselines import DIRECTIONS, baselines
from benchmarks.predictive_plan import Model, data_of, test_rows, trained
from poisonaudit import audit
from poisonaudit.audit import known_measures
from poisonaudit.results import Measure

# Named one by one, so that none is left out for its cost. PDTP trains once a row and is not among them.
MEASURES = (
    "stationarity.relative_gradient",
    *(f"solution.{name}" for name in ("modulus", "row_modulus_max", "poison_budget", "theorem2_max", "theorem3")),
    *(f"tangent.{name}" for name in ("sensitivity", "sensitivity_normalised")),
    *(f"tangent.bound_{name}" for name in ("path", "theorem31", "theorem32")),
    *(f"lipschitz.{side}.{norm}" for side in ("upper", "lower") for norm in ("linf", "l1")),
    "lipschitz.certified_radius_median",
    *(f"weight_noise.{name}" for name in ("rms", "flip_rate", "condition_relative_max")),
    *(f"art.{name}" for name in ("clever", "loss_sensitivity", "empirical_robustness", "shapr")),
)


def available() -> list[str]:
    """Those of `MEASURES` that this version has."""
    known = set(known_measures())
    return [name for name in MEASURES if name in known]


def scores(model: Model) -> dict[str, Any]:
    """Every measure and baseline of one model.

    Args:
        model: of the plan.

    Returns:
        {"scores": {name: {"value", "infinite", "valid", "status", "reason", "direction", "seconds"}}}.
    """
    problem = trained(model)
    test, data = test_rows(model.data), data_of(model.data)
    found = audit(problem, available(), test, seed=model.seed, box=data.box, image_shape=data.image_shape)
    told = {name: _audited(measure) for name, measure in found.measures.items()}
    begun = time.perf_counter()
    values = baselines(problem, test)
    seconds = time.perf_counter() - begun
    for name, value in values.items():
        rest = {"valid": True, "status": "measured", "reason": "", "direction": DIRECTIONS[name]}
        told[name] = {"value": value, "infinite": False, **rest, "seconds": seconds / len(values)}
    return {"scores": told}


def _audited(measure: Measure) -> dict[str, Any]:
    return {
        "value": measure.value,
        "infinite": measure.infinite,
        "valid": measure.valid,
        "status": measure.status,
        "reason": measure.reason,
        "direction": measure.direction,
        "seconds": measure.seconds,
    }
