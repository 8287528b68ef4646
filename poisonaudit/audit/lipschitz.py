"""Global Lipschitz bounds of the logits in the input, from both sides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from poisonaudit.audit.context import Context
from poisonaudit.audit.facts import measured, skipped
from poisonaudit.lipschitz import LipschitzBounds, lipschitz_bounds
from poisonaudit.lipschitz.bounds import WORK_LIMIT
from poisonaudit.lipschitz.costs import Costs, bound_costs
from poisonaudit.results import Measure

# Multiplications in an audit: some ten seconds. A measure named in full gets the library's own limit.
AUDIT_WORK = 2e10
# Seconds for looking at the evaluation rows; at least so many are looked at.
_LOOKING = 5.0
_FEWEST_ROWS = 16
_BOUNDS = (
    *("k_star", "k1", "k2", "k3", "k4", "k5", "k6", "ellipsoid", "ellipsoid_tuned", "exact"),
    *("best", "winner", "certified", "certified_winner", "lower", "norm", "hidden_layers"),
)


def upper_linf(context: Context) -> Measure:
    """Certified upper bound of the Lipschitz constant of the logits, l_inf, rounding included."""
    return _measure(context, "upper", "linf")


def upper_l1(context: Context) -> Measure:
    """Certified upper bound of the Lipschitz constant of the logits, l_1, rounding included."""
    return _measure(context, "upper", "l1")


def lower_linf(context: Context) -> Measure:
    """Largest norm of the true input Jacobian found, l_inf."""
    return _measure(context, "lower", "linf")


def lower_l1(context: Context) -> Measure:
    """Largest norm of the true input Jacobian found, l_1."""
    return _measure(context, "lower", "l1")


def _measure(context: Context, side: str, norm: str) -> Measure:
    name = f"lipschitz.{side}.{norm}"
    limit = WORK_LIMIT if {f"lipschitz.{each}.{norm}" for each in ("upper", "lower")} & context.named else AUDIT_WORK
    costs = context.once(
        ("lipschitz costs", norm),
        lambda: bound_costs(context.model, tuple(context.evaluation_rows.shape[1:]), norm, limit),
    )
    if reason := context.too_dear(name, costs.upper + costs.search + _LOOKING):
        return skipped(name, reason)
    rows = _rows(context, costs)
    bounds = context.once(
        ("lipschitz", norm),
        lambda: lipschitz_bounds(context.model, norm=norm, x=rows, seed=context.seed, work_limit=limit),
    )
    reason = ""
    if bounds.restarts and limit < WORK_LIMIT and side == "upper":
        reason = f"restarted at {len(bounds.restarts)} nodes to save work; name {name} for a tighter bound"
    details = {**_details(bounds), "lower_searched_on": told_rows(context, len(rows))}
    return measured(name, bounds.certified if side == "upper" else bounds.lower, reason=reason, details=details)


def _rows(context: Context, costs: Costs) -> Tensor:
    """The inputs that the search for the lower bound looks at: all, or a sample where that would take long."""
    every = context.evaluation_rows
    return sampled(every, max(_FEWEST_ROWS, int(_LOOKING / max(costs.jacobian, 1e-9))), context.seed)[0]


def told_rows(context: Context, count: int) -> str:
    """Which of the evaluation rows were used, in words."""
    if count == len(context.evaluation_rows):
        return context.evaluated_on
    return f"{count} of {context.evaluated_on}, drawn with seed {context.seed}"


def sampled(rows: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most so many rows, drawn without replacement, and their positions in order."""
    if count >= len(rows):
        return rows, torch.arange(len(rows))
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    return rows[chosen.to(rows.device)], chosen


def _details(bounds: LipschitzBounds) -> Mapping[str, Any]:
    """All bounds; those without limit as None, which is what "not available" is stored as too."""
    found = {name: getattr(bounds, name) for name in _BOUNDS}
    ratio = bounds.certified / bounds.lower if bounds.lower > 0.0 else None
    found = {**found, "ratio": ratio, "restarts": list(bounds.restarts)}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in found.items()
    }
