"""How far the trained weights follow the training data: modulus, rows, budget and the paper's proxies."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from poisonaudit.audit.context import Context
from poisonaudit.audit.facts import measured, not_applicable, skipped
from poisonaudit.audit.fragile import fragile_rows
from poisonaudit.operators import linearise
from poisonaudit.results import Measure, Validity
from poisonaudit.row_statistics import median
from poisonaudit.sensitivity import Modulus, lipschitz_modulus, row_moduli, solver_for, theorem2_moduli
from poisonaudit.sensitivity.curvature import DENSE_LIMIT, assess_here, kernel_is_trivial
from poisonaudit.training import relative_gradient
from poisonaudit.validity import at_infinity

# Float64 operations per second that two busy cores deliver on these shapes.
_SPEED = 1e10
# Factorisations that the displacement test makes where H has a kernel: 3 directions, 2 sizes, a few corrections.
_PATH_FACTORISATIONS = 24
# By products, at p from 6,000 to 17,000: solves of a joint modulus and of one row's, products of a solve, and seconds
# that a product's orthogonalisation takes for each weight.
_JOINT_SOLVES = 30
_ROW_SOLVES = 12
_PRODUCTS_OF_A_SOLVE = 500
_ORTHOGONAL_SECONDS = 4e-7
_MOVED = 0.01
_BLOCK_ENTRIES = 2.5e8
_REFUSED = (
    "refused: cross-entropy without decay on rows that the model separates has its minimum at infinity; "
    "train with decay"
)


@dataclass(frozen=True)
class _Point:
    """What is known of the curvature at the trained weights."""

    validity: Validity
    kernel_dimension: int | None
    details: Mapping[str, Any]


def modulus(context: Context) -> Measure:
    """kappa: weight change per data change, to first order, the perturbation being free over all measured rows."""
    name = "solution.modulus"
    if (early := _unavailable(context, name)) is not None:
        return early
    found, point = _modulus(context), _point(context)
    details = {**point.details, **_modulus_details(context, found)}
    return _over_rows(
        context,
        name,
        found.value,
        valid=point.validity.ok,
        reason=_because(point, found.reason),
        details=details,
        kind="exact" if point.kernel_dimension == 0 else "estimate",
    )


def row_modulus_max(context: Context) -> Measure:
    """Largest kappa_k: weight change per change of one training row; the rows it names are the fragile ones."""
    name = "solution.row_modulus_max"
    if (early := _unavailable(context, name)) is not None:
        return early
    values = context.once("row moduli", lambda: row_moduli(context.problem, context.rows, warn=False))
    point = _point(context)
    finite = values[torch.isfinite(values)]
    # Row by row the rank condition is not tried: where the joint map jumps, these values are lower estimates.
    joint = None if kernel_is_trivial(solver_for(context.problem)) else _modulus(context)
    jumps = joint is not None and not joint.finite
    details = {
        **point.details,
        "rows": len(values),
        "median": median(finite) if len(finite) else None,
        "infinite_rows": len(values) - len(finite),
        "fragile": fragile_rows(context, values),
    }
    return _over_rows(
        context,
        name,
        float(values.max()),
        valid=point.validity.ok and not jumps,
        reason=_because(point, f"a lower estimate only: {joint.reason}" if joint is not None and jumps else ""),
        details=details,
        kind="exact" if point.kernel_dimension == 0 else "estimate",
    )


def poison_budget(context: Context) -> Measure:
    """Least data change (Frobenius norm) that can move the weights by 1 % of their norm, to first order."""
    name = "solution.poison_budget"
    if (early := _unavailable(context, name)) is not None:
        return early
    found, point = _modulus(context), _point(context)
    distance = _MOVED * float(context.problem.weights.norm())
    if found.value == 0 or distance == 0:
        value = math.inf if found.value == 0 else 0.0
    else:
        value = distance / found.value
    details = {**point.details, **_modulus_details(context, found), "distance": distance, "modulus": found.value}
    return _over_rows(
        context,
        name,
        value,
        valid=point.validity.ok,
        reason=_because(point, found.reason if not found.finite else ""),
        details=details,
        kind="exact" if point.kernel_dimension == 0 else "estimate",
    )


def theorem2_max(context: Context) -> Measure:
    """Largest factor of the source paper's Theorem 2 over rows and layers: a cheap proxy, not a bound."""
    return _theorem(context, "solution.theorem2_max", 1.0)


def theorem3(context: Context) -> Measure:
    """The source paper's Theorem 3, sqrt(n) times the largest Theorem 2 factor: a cheap proxy, not a bound."""
    return _theorem(context, "solution.theorem3", math.sqrt(_count(context)))


def _theorem(context: Context, name: str, factor: float) -> Measure:
    problem = context.problem
    if at_infinity(problem):
        return not_applicable(name, _REFUSED)
    if not any(len(shape) >= 2 for shape in problem.shapes):
        return not_applicable(name, "not applicable: the model has no weight matrix")
    entries = problem.rows * context.outputs * problem.size
    seconds = 4.0 * entries * (context.outputs + 4) / _SPEED
    if entries > _BLOCK_ENTRIES:
        # The Jacobians of all rows are held at once.
        seconds = max(seconds, 2 * 300.0)
    if reason := context.too_dear(name, seconds):
        return skipped(name, reason)
    values: Tensor = context.once("theorem 2", lambda: theorem2_moduli(problem))
    measured_rows = values if context.rows is None else values[context.rows]
    figure = relative_gradient(problem)
    valid = figure < 1e-6
    details = {"rows": _count(context), "bound": False, "relative_gradient": figure}
    reason = "a proxy of the source paper, not a bound of the solution map"
    if not valid:
        reason = f"not stationary: relative gradient {figure:.1e}, needed below 1e-06 (fit on, or audit with --polish)"
    return measured(name, factor * float(measured_rows.max()), valid=valid, reason=reason, details=details)


def _count(context: Context) -> int:
    return context.problem.rows if context.rows is None else len(context.rows)


def _unavailable(context: Context, name: str) -> Measure | None:
    """Refused where the minimum is at infinity, skipped where the solves are too dear."""
    if at_infinity(context.problem):
        return not_applicable(name, _REFUSED, {"relative_gradient": relative_gradient(context.problem)})
    size, by_rows = context.problem.size, name == "solution.row_modulus_max"
    if size > DENSE_LIMIT:
        solves = _ROW_SOLVES * _count(context) if by_rows else _JOINT_SOLVES
        seconds = solves * _solve_seconds(context)
    else:
        seconds = _factorisation_seconds(context)
        if by_rows:
            seconds += 4.0 * _count(context) * context.problem.x[0].numel() * size**2 / _SPEED
    if reason := context.too_dear(name, seconds):
        return skipped(name, reason)
    if not by_rows and not kernel_is_trivial(solver_for(context.problem)):
        # A kernel means that the map itself is tried along paths, at each point of which H is solved with anew.
        again = _solve_seconds(context) if size > DENSE_LIMIT else _factorisation_seconds(context)
        if reason := context.too_dear(name, _PATH_FACTORISATIONS * again):
            return skipped(name, reason)
    return None


def _factorisation_seconds(context: Context) -> float:
    """Hessian by p products and its eigendecomposition."""
    size = context.problem.size
    return (12.0 * context.problem.rows * size**2 + 10.0 * size**3) / _SPEED


def _solve_seconds(context: Context) -> float:
    """A solve by products: some hundred of them, timed once, and what making them orthogonal takes."""

    def look() -> float:
        kept = linearise(context.problem)
        begun = time.perf_counter()
        kept.hessian(context.problem.weights)
        return time.perf_counter() - begun

    product = context.once("seconds of a product", look)
    return _PRODUCTS_OF_A_SOLVE * (product + _ORTHOGONAL_SECONDS * context.problem.size)


def _over_rows(context: Context, name: str, value: float, **rest: Any) -> Measure:
    """A measure whose unit says so where only some rows may move: its value is another quantity then."""
    found = measured(name, value, **rest)
    if context.rows is None:
        return found
    return replace(found, unit=f"{found.unit}, only the first {_count(context)} of {context.problem.rows} rows move")


def _modulus(context: Context) -> Modulus:
    return context.once("modulus", lambda: lipschitz_modulus(context.problem, context.rows, seed=context.seed))


def _modulus_details(context: Context, found: Modulus) -> dict[str, Any]:
    return {**found.details, "tolerance": found.tolerance, "truncated": found.truncated, "rows": _count(context)}


def _point(context: Context) -> _Point:
    def look() -> _Point:
        problem = context.problem
        solver = solver_for(problem)
        validity = assess_here(problem, solver)
        known = {key: value for key, value in validity.details.items() if value is not None}
        return _Point(validity, solver.kernel_dimension, known)

    return context.once("solution point", look)


def _because(point: _Point, remark: str) -> str:
    return "; ".join(point.validity.reasons) if point.validity.reasons else remark
