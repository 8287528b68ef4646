"""Tangent sensitivity over the test rows: exact where a form allows, else by probes with a standard error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from poisonaudit.audit import context as audit_context
from poisonaudit.audit.context import Context
from poisonaudit.audit.facts import measured, skipped
from poisonaudit.audit.lipschitz import sampled, told_rows
from poisonaudit.errors import InputRefused
from poisonaudit.results import Measure
from poisonaudit.row_statistics import median
from poisonaudit.tangent.chain import dense_chain
from poisonaudit.tangent.mean import TangentMean, cheapest, largest_rows, tangent_mean
from poisonaudit.tangent.patterns import activation_patterns
from poisonaudit.tangent.preactivations import preactivations
from poisonaudit.tangent.probes import PILOT, ROWS_TOGETHER, fewest_passes, pass_seconds

_MOST_PROBES = 1000
_LARGEST = 10


def sensitivity(context: Context) -> Measure:
    """Mean over test rows of |S(x)|_F^2: how strongly the gradients of the outputs in the weights follow the input."""
    return _measure(context, "tangent.sensitivity", normalised=False)


def sensitivity_normalised(context: Context) -> Measure:
    """The same weighted by the squared weights: unchanged when neurons of ReLU-like nets are rescaled."""
    return _measure(context, "tangent.sensitivity_normalised", normalised=True)


def _measure(context: Context, name: str, *, normalised: bool) -> Measure:
    rows = context.evaluation_rows
    positions, most = torch.arange(len(rows)), _MOST_PROBES
    method = context.once("tangent.method", lambda: cheapest(context.model, rows))
    if method == "probes" and name not in context.named:
        passes, reason = _affordable(context, name)
        if reason:
            return skipped(name, reason)
        # Rows before probes: two probes on every row say more about the mean than many on a few.
        rows, positions = sampled(rows, ROWS_TOGETHER * ((passes - PILOT) // 2), context.seed)
        most = max(2, min(most, (passes - PILOT) // -(-len(rows) // ROWS_TOGETHER)))
    found = tangent_mean(context.model, rows, normalised=normalised, method=method, max_probes=most, seed=context.seed)
    details = {
        "rows": told_rows(context, len(rows)),
        "convention": "jacobian",
        **_told(context, found, positions),
        **context.once(("tangent.patterns", len(rows)), lambda: _patterns(context, rows)),
    }
    if normalised:
        details["kept_by_rescaling"] = context.once("tangent.homogeneous", lambda: _homogeneous(context))
    return measured(name, found.value, details=details, kind="exact" if found.exact else "estimate")


def _affordable(context: Context, name: str) -> tuple[int, str]:
    """Passes of a group of rows that fit into the time limit, and why not even the fewest do."""
    rows = context.evaluation_rows
    seconds = context.once("tangent.pass_seconds", lambda: pass_seconds(context.model, rows, seed=context.seed))
    least = fewest_passes(min(len(rows), ROWS_TOGETHER))
    return int(audit_context.COST_LIMIT / max(seconds, 1e-9)), context.too_dear(name, seconds * least)


def _told(context: Context, found: TangentMean, positions: Tensor) -> Mapping[str, Any]:
    """How the mean was found and what lies behind it."""
    values = found.values
    told: dict[str, Any] = {
        "method": found.method,
        "standard_error": found.standard_error if len(values) > 1 or not found.exact else None,
        "median": median(values),
        "largest": float(values.max()),
        "largest_rows": [int(positions[row]) for row in largest_rows(values, _LARGEST)],
    }
    if found.by_layer is not None:
        chain = dense_chain(context.model, context.evaluation_rows)
        names = chain.names if chain is not None else ()
        told["by_layer"] = dict(zip(names, found.by_layer.tolist(), strict=True))
    if not found.exact:
        told["standard_error_of_probes"] = found.probe_standard_error
        told["probes"] = found.probes
        told["interval"] = list(found.interval or ())
        told["largest_are"] = "estimates of single rows, the highest of which lie too high"
    return told


def _patterns(context: Context, rows: Tensor) -> Mapping[str, Any]:
    """Activation regions met, where the net has ReLU-like units."""
    try:
        found = activation_patterns(context.model, rows)
    except InputRefused as refusal:
        if refusal.code not in ("PA153", "PA154"):
            raise
        return {}
    told = {
        "distinct_regions": found.distinct,
        "mean_active_share": found.share,
        "active_units_mean": found.mean,
        "active_units_deviation": found.deviation,
        "active_units_normal_p": found.normality.p_value,
    }
    return {**told, "regions_leave_out": list(found.others)} if found.others else told


def _homogeneous(context: Context) -> bool:
    """Whether rescaling a neuron can be undone behind it, as far as the operators met tell."""
    return preactivations(context.model, context.evaluation_rows[:2]).homogeneous
