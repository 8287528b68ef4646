"""Noise in the weights: relative movement of the outputs, flipped predictions, condition numbers."""

from __future__ import annotations

import math
from typing import Any

import torch

from poisonaudit.audit.context import COST_LIMIT, Context
from poisonaudit.audit.facts import measured, not_applicable, skipped
from poisonaudit.audit.lipschitz import sampled, told_rows
from poisonaudit.results import Measure
from poisonaudit.weight_noise import (
    RHOS,
    JointNoise,
    WeightConditions,
    first_order,
    joint_weight_noise,
    weight_conditions,
    weight_noise_curve,
)
from poisonaudit.weight_noise.costs import NoiseCosts, noise_costs

_RHO = 0.1
_DRAWS = 64
# Draws of the curve where they are dear, and no more than `_DRAWS`.
_FEWEST_DRAWS = 16
# Seconds for Jacobians and for the curve, each; beyond, they are taken of a sample of at least so many rows.
_AT_MOST = 60.0
_FEWEST_ROWS = 16


def rms(context: Context) -> Measure:
    """Root mean square over test rows and draws of |dv| / |v| with 10 % noise in all weight matrices at once."""
    name = "weight_noise.rms"
    if reason := _too_dear(context, name):
        return skipped(name, reason)
    noise = _noise(context)
    details = {
        **_settings(context),
        "standard_error": _plain(noise.standard_error),
        "interval": _ends(noise.interval),
        "median_row": _plain(noise.median),
        "rows_with_zero_outputs": noise.zero_outputs,
        "rms_of_other_rows": _plain(noise.rms_elsewhere),
        **_formula(context),
        "curve": _curve(context),
    }
    reason = ""
    if noise.zero_outputs and math.isinf(noise.rms):
        reason = (
            f"infinite, for {noise.zero_outputs} of {noise.inputs} rows have outputs that are exactly 0; "
            f"{noise.rms_elsewhere:.4g} over the others"
        )
    return measured(name, noise.rms, reason=reason, details=details)


def flip_rate(context: Context) -> Measure:
    """Share of predictions that 10 % noise in all weight matrices changes, over test rows and draws."""
    name = "weight_noise.flip_rate"
    if not context.has_classes:
        return not_applicable(name, "not applicable: there are no classes whose prediction could flip")
    if reason := _too_dear(context, name):
        return skipped(name, reason)
    noise = _noise(context)
    details = {
        **_settings(context),
        "standard_error": noise.flip_standard_error,
        "interval": _ends(noise.flip_interval),
        "curve": _curve(context),
    }
    return measured(name, noise.flip_rate, details=details)


def condition_relative_max(context: Context) -> Measure:
    """Largest over the layers of the test-row median of |dv/dW_i|_2 |W_i|_F / |v|."""
    name = "weight_noise.condition_relative_max"
    costs = _costs(context)
    if reason := context.too_dear(name, _FEWEST_ROWS * costs.jacobian if math.isfinite(costs.jacobian) else 1e6):
        return skipped(name, reason)
    conditions, told = _conditions(context)
    medians = conditions.relative.median(dim=1).values.tolist()
    layers = dict(zip(conditions.names, medians, strict=True))
    worst = max(layers, key=lambda layer: layers[layer])
    details = {
        "rows": told,
        "norm": "Frobenius",
        "layer": worst,
        "rows_with_zero_outputs": conditions.zero_outputs,
        "median_by_layer": {layer: _plain(value) for layer, value in layers.items()},
    }
    return measured(name, layers[worst], details=details)


def _noise(context: Context) -> JointNoise:
    return context.once(
        "weight noise",
        lambda: joint_weight_noise(context.model, context.evaluation_rows, _RHO, _DRAWS, context.seed, formula=False),
    )


def _costs(context: Context) -> NoiseCosts:
    return context.once("weight noise costs", lambda: noise_costs(context.model, context.evaluation_rows))


def _conditions(context: Context) -> tuple[WeightConditions, str]:
    """Condition numbers of all rows, or of a sample where all would take long; and which, in words."""
    every = context.evaluation_rows
    count = max(_FEWEST_ROWS, int(_AT_MOST / max(_costs(context).jacobian, 1e-9)))
    rows = sampled(every, count, context.seed)[0]
    found = context.once("weight conditions", lambda: weight_conditions(context.model, rows))
    return found, told_rows(context, len(rows))


def _formula(context: Context) -> dict[str, Any]:
    """The first-order formula, where Jacobians are within reach: of all matrices at once and of each alone."""
    if _FEWEST_ROWS * _costs(context).jacobian > COST_LIMIT:
        return {"first_order_formula": None}
    conditions, told = _conditions(context)
    size = conditions.outputs.double().norm(dim=1)
    relative = torch.where(conditions.spread > 0, _RHO * conditions.spread.double() / size, 0.0)
    alone = relative.square().mean(1).sqrt().tolist()
    return {
        "first_order_formula": _plain(first_order(conditions, _RHO)),
        "first_order_rows": told,
        "first_order_by_layer": {layer: _plain(value) for layer, value in zip(conditions.names, alone, strict=True)},
    }


def _curve(context: Context) -> dict[str, Any]:
    """Movement and flips against the size of the noise, from 0.1 % to 200 %, all matrices at once."""
    every, costs = context.evaluation_rows, _costs(context)
    one = len(RHOS) * (costs.overhead + costs.draw * len(every))
    draws = min(_DRAWS, max(_FEWEST_DRAWS, int(_AT_MOST / one)))
    passes = draws * len(RHOS)
    count = max(_FEWEST_ROWS, int((_AT_MOST - passes * costs.overhead) / max(passes * costs.draw, 1e-12)))
    rows = sampled(every, count, context.seed)[0]
    frame = context.once(
        "weight noise curve",
        lambda: weight_noise_curve(context.model, rows, RHOS, draws, context.seed, layers=False, formula=False),
    )
    columns = {
        "rho": "rho",
        "rms": "relative_rms", "rms_low": "relative_low", "rms_high": "relative_high",
        "flip_rate": "flip_rate", "flip_low": "flip_low", "flip_high": "flip_high",
    }  # fmt: skip
    found = {key: [_plain(value) for value in frame[column].tolist()] for key, column in columns.items()}
    return {"rows": told_rows(context, len(rows)), "draws": draws, **found}


def _too_dear(context: Context, name: str) -> str:
    """Why the draws are left out: estimated from counted operations."""
    costs = _costs(context)
    return context.too_dear(name, _DRAWS * (costs.overhead + costs.draw * len(context.evaluation_rows)))


def _settings(context: Context) -> dict[str, object]:
    return {
        "rows": context.evaluated_on,
        "rho": _RHO,
        "draws": _DRAWS,
        "seed": context.seed,
        "perturbed": "weight matrices and kernels; biases and normalisation stay",
        "norm": "Frobenius",
    }


def _ends(interval: tuple[float, float]) -> list[float | None]:
    return [_plain(end) for end in interval]


def _plain(value: float) -> float | None:
    """A number that JSON can hold."""
    return value if math.isfinite(value) else None
