"""Upper bounds of the tangent sensitivity, each beside the exact mean over the test rows."""

from __future__ import annotations

import math
from typing import Any

from poisonaudit.audit.context import Context
from poisonaudit.audit.facts import measured
from poisonaudit.results import Measure
from poisonaudit.tangent import TangentBound, TangentBounds, tangent_bounds


def bound_path(context: Context) -> Measure:
    """Sharp path bound of |S(x)|_F^2, for every input; details hold the form with the active units of these rows."""
    found = _bounds(context)
    beside = {name: _plain(getattr(found, name)) for name in ("path_active", "absolute")}
    return _measure(context, "tangent.bound_path", found.path, beside)


def bound_theorem31(context: Context) -> Measure:
    """Theorem 3.1 with the output layer counted, for every input."""
    return _measure(context, "tangent.bound_theorem31", _bounds(context).theorem31, {})


def bound_theorem32(context: Context) -> Measure:
    """Corrected theorem 3.2 with the empirical moment of the number of active units, for the mean over these rows."""
    found = _bounds(context)
    beside = {
        "order": found.order,
        "active_mean": found.active_mean,
        "active_deviation": found.active_deviation,
        "if_normal": _plain(found.theorem32_gaussian),
    }
    return _measure(context, "tangent.bound_theorem32", found.theorem32, beside)


def _bounds(context: Context) -> TangentBounds:
    return context.once("tangent bounds", lambda: tangent_bounds(context.model, context.evaluation_rows))


def _measure(context: Context, name: str, bound: TangentBound, beside: dict[str, Any]) -> Measure:
    found = _bounds(context)
    details = {
        "rows": context.evaluated_on,
        "convention": "jacobian",
        "holds": bound.holds,
        "log10": _finite(bound.log10),
        "exact": _finite(found.exact),
        "exact_standard_error": found.standard_error,
        "ratio": _finite(bound.ratio),
        **beside,
    }
    return measured(name, bound.value, details=details)


def _plain(bound: TangentBound) -> dict[str, Any]:
    return {"value": _finite(bound.value), "log10": _finite(bound.log10), "ratio": _finite(bound.ratio)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
