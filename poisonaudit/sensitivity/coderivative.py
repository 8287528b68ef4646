"""Coderivative of the solution map: which data perturbations a change of the weights answers to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.errors import InputRefused
from poisonaudit.operators import linearise
from poisonaudit.problem import Problem, expect_problem
from poisonaudit.results import Validity
from poisonaudit.sensitivity.approximation import differences, hessian_ends, why_approximate
from poisonaudit.sensitivity.curvature import CurvatureName, assess_here, kernel_is_trivial, solver_for
from poisonaudit.sensitivity.kernel_response import kernel_response
from poisonaudit.solvers.extremal import Progress


@dataclass(frozen=True)
class Coderivative:
    """`D*F(x|w)(p) = {B^T u : H u = -p}` at the minimum-norm least-squares u.

    Attributes:
        value: `B^T u`, shaped like x. For a function of the weights with gradient p it is the gradient, in the
            data, of that function of the trained weights.
        adjoint: u (p,).
        relative_residual: `|H u + p| / |p|`; not small where p leaves the range of H.
        tolerance: relative rank tolerance.
        products: products made beyond the factorisation.
        validity: may the value be trusted at this point; its relative residual counts, and a rank of H that
            changes near the value (see `kernel_response`).
    """

    value: Tensor
    adjoint: Tensor
    relative_residual: float
    tolerance: float
    products: int
    validity: Validity


def coderivative(
    problem: Problem,
    p: Tensor,
    curvature: CurvatureName = "hessian",
    tolerance: float | None = None,
    *,
    method: str = "auto",
    damping: float = 0.0,
    progress: Progress | None = None,
) -> Coderivative:
    """One adjoint solve and one product with B^T (Theorem 1 of Wang, Wang and Ban, 2025).

    Args:
        problem: the point (x, w).
        p: direction in weight space, (p,), e.g. the gradient of an objective.
        curvature: "hessian", or "gauss_newton" as a named approximation.
        tolerance: rank tolerance relative to max |lambda|.
        method: solver for H, as in `solver_for`.
        damping: added to H, relative to lambda_max.
        progress: called with a message and a fraction.

    Returns:
        Value, adjoint and the residual of the solve.

    Raises:
        InputRefused: PA125, p is not shaped like the weights; PA210, it is not finite.
    """
    expect_problem(problem, "coderivative")
    if p.shape != problem.weights.shape or p.dtype != problem.dtype:
        raise InputRefused(
            "PA125",
            f"p is {tuple(p.shape)} {p.dtype}, the weights are {tuple(problem.weights.shape)} {problem.dtype}. "
            "Give one entry per weight.",
        )
    p = p.detach()
    if not bool(torch.isfinite(p).all()):
        raise InputRefused("PA210", "p holds NaN or infinite entries. Check the step that produced it.")
    solver = solver_for(problem, curvature, tolerance, method=method, damping=damping, progress=progress)
    solve = solver.solve(-p)
    value = linearise(problem).mixed_adjoint(solve.value)
    rank_jump = ""
    if not kernel_is_trivial(solver):
        # Tried along the value, from which every row departs at random: rows that agree are to part.
        generator = torch.Generator(device="cpu").manual_seed(0)
        draw = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        mu = value + value.norm() * draw / draw.norm()
        answer = solver.inverse(-linearise(problem).mixed(mu))
        rank_jump = kernel_response(problem, solver, mu, answer).reason
    other = differences(curvature, damping)
    validity = assess_here(
        problem,
        solver,
        solve,
        rank_jump=rank_jump,
        approximate=why_approximate(problem, solve.value, -p, other),
        ends=hessian_ends(problem) if other else None,
    )
    return Coderivative(value, solve.value, solve.relative_residual, solve.tolerance, solve.products + 1, validity)
