"""Numbers asked for with damping, another curvature or another scaling: how far are they from the derivative?"""

from __future__ import annotations

from torch import Tensor

from poisonaudit.operators import linearise
from poisonaudit.problem import Problem
from poisonaudit.solvers import curvature_ends
from poisonaudit.validity import RESIDUAL_LIMIT

_STEPS = 60


def differences(curvature: str, damping: float) -> list[str]:
    """In which ways a solver's matrix is not the Hessian, in words."""
    found = [] if curvature == "hessian" else [f"curvature {curvature!r}"]
    return found + ([f"damping {damping:g}"] if damping > 0 else [])


def why_approximate(problem: Problem, v: Tensor, rhs: Tensor, names: list[str]) -> str:
    """What the undamped Hessian says about a solution of another system.

    Args:
        problem: the point.
        v: solution (p,).
        rhs: right-hand side of `H v = rhs` that the exact number solves (p,).
        names: in which ways the system that was solved differs.

    Returns:
        A reason not to take v for the exact number; empty where nothing differs or v solves `H v = rhs` all the same.
    """
    length = float(rhs.norm())
    if not names or length == 0.0:
        return ""
    left = float((linearise(problem).hessian(v) - rhs).norm()) / length
    if left <= RESIDUAL_LIMIT.get(problem.dtype, 1e-3):
        return ""
    return (
        f"approximate by choice ({', '.join(names)}): the equation of the derivative is left with a relative residual "
        f"of {left:.1e}"
    )


def hessian_ends(problem: Problem) -> tuple[float, float]:
    """Extreme Ritz values of the Hessian itself, from 60 products; kept with the problem.

    Args:
        problem: the point.

    Returns:
        `(smallest, largest)`; a negative one proves negative curvature.
    """
    if "hessian ends" not in problem.cache:
        hessian = linearise(problem).hessian
        problem.cache["hessian ends"] = curvature_ends(hessian, problem.size, problem.weights, steps=_STEPS)
    ends: tuple[float, float] = problem.cache["hessian ends"]
    return ends
