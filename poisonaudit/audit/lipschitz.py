"""Global Lipschitz bounds of the logits in the input, from both sides."""

from __future__ import annotations

from typing import Any

from poisonaudit.audit.context import Context
from poisonaudit.audit.facts import measured
from poisonaudit.lipschitz import LipschitzBounds, lipschitz_bounds
from poisonaudit.results import Measure

_BOUNDS = (
    *("k_star", "k1", "k2", "k3", "k4", "k5", "k6", "ellipsoid", "exact"),
    *("best", "winner", "certified", "certified_winner", "lower", "norm"),
)


def upper_linf(context: Context) -> Measure:
    """Certified upper bound of the Lipschitz constant of the logits, l_inf, rounding included."""
    return _upper(context, "linf")


def upper_l1(context: Context) -> Measure:
    """Certified upper bound of the Lipschitz constant of the logits, l_1, rounding included."""
    return _upper(context, "l1")


def lower_linf(context: Context) -> Measure:
    """Largest norm of the true input Jacobian found, l_inf."""
    return _lower(context, "linf")


def lower_l1(context: Context) -> Measure:
    """Largest norm of the true input Jacobian found, l_1."""
    return _lower(context, "l1")


def _upper(context: Context, norm: str) -> Measure:
    bounds = _bounds(context, norm)
    return measured(f"lipschitz.upper.{norm}", bounds.certified, details=_details(context, bounds))


def _lower(context: Context, norm: str) -> Measure:
    bounds = _bounds(context, norm)
    return measured(f"lipschitz.lower.{norm}", bounds.lower, details=_details(context, bounds))


def _bounds(context: Context, norm: str) -> LipschitzBounds:
    return context.once(
        ("lipschitz", norm),
        lambda: lipschitz_bounds(context.model, norm=norm, x=context.evaluation_rows, seed=context.seed),
    )


def _details(context: Context, bounds: LipschitzBounds) -> dict[str, Any]:
    found = {name: getattr(bounds, name, None) for name in _BOUNDS}
    return {**found, "lower_searched_on": context.evaluated_on}
