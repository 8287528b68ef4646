"""Graphical derivative of the solution map: where the set of solutions goes when the data moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from poisonaudit.errors import InputRefused, UsageError, expect_kind
from poisonaudit.operators import linearise
from poisonaudit.problem import Problem, expect_problem
from poisonaudit.results import Validity
from poisonaudit.sensitivity.approximation import differences, hessian_ends, why_approximate
from poisonaudit.sensitivity.curvature import Curvature, CurvatureName, assess_here, solver_for
from poisonaudit.sensitivity.kernel_response import kernel_response
from poisonaudit.sensitivity.solution_set import SolutionSet
from poisonaudit.sensitivity.trust import trust_radius
from poisonaudit.solvers import Solve
from poisonaudit.solvers.extremal import Progress
from poisonaudit.validity import kink_share


@dataclass(frozen=True)
class GraphicalDerivative:
    """The affine set `{v : H v + B mu = 0} = v0 + ker H`, or its least-squares set where it is empty.

    Attributes:
        displacement: v0 (p,), the minimum-norm element.
        relative_residual: `|H v0 + B mu| / |B mu|`; 0 up to rounding where B mu lies in the range of H.
        distance: `|v0|`, the distance of the present weights to the estimated set, and the Pompeiu-Hausdorff
            distance between the two parallel local pieces.
        phi: `|H^+ (R(x + mu, w + v0) - R(x, w))| / |v0|`, a Newton estimate of one step's relative error; None at
            v0 = 0 (no effect) and with scaling="paper".
        trust_radius: length of mu, in this direction, up to which phi stays below 0.3; None where phi is.
        validity: may the displacement be trusted as the derivative; a rank of H that changes along mu counts (see
            `kernel_response`), and so does what damping, another curvature or scaling="paper" leave of its equation.
        kernel_dimension: eigenvalues taken as zero; None where only products were made.
        tolerance: relative rank tolerance.
        curvature: "hessian" or "gauss_newton".
        scaling: "mean" (the true derivative) or "paper" (1/|K| in the mixed term, n/|K| too long).
        products: products with H, B and their adjoints made for it; the dense factorisation (p) counts once per point.
        solve: how the solver came to it.
        origin: the trained weights w, (p,).
    """

    displacement: Tensor
    relative_residual: float
    distance: float
    phi: float | None
    trust_radius: float | None
    validity: Validity
    kernel_dimension: int | None
    tolerance: float
    curvature: str
    scaling: str
    products: int
    solve: Solve = field(repr=False)
    origin: Tensor = field(repr=False)
    _solver: Curvature = field(repr=False)

    @property
    def solution_set(self) -> SolutionSet:
        """The estimated solution set `w + v0 + ker H` as an object: members, dimension, distances."""
        return SolutionSet(self.origin, self.displacement, self.tolerance, self._solver)

    def members(self, count: int, radius: float, seed: int = 0) -> Tensor:
        """Elements of the estimated set, as displacements: `v0 + radius * P_ker z / |P_ker z|` for Gaussian z.

        Where the kernel is trivial the set has one element, and every member is v0.

        Args:
            count: how many.
            radius: norm of each member's kernel part, >= 0.
            seed: of the draws.

        Returns:
            (count, p).

        Raises:
            UsageError: PA304, count < 1 or radius < 0.
        """
        return self.displacement + self.solution_set.kernel_draws(count, radius, seed)


def graphical_derivative(
    problem: Problem,
    mu: Tensor,
    curvature: CurvatureName = "hessian",
    scaling: Literal["mean", "paper"] = "mean",
    tolerance: float | None = None,
    *,
    method: str = "auto",
    damping: float = 0.0,
    progress: Progress | None = None,
) -> GraphicalDerivative:
    """`DF(x|w)(mu) = {v : H v + B mu = 0}`, Theorem 1 of Wang, Wang and Ban (2025) with 1/n in both terms.

    Args:
        problem: the point (x, w); w should be a minimum (see `validity`).
        mu: perturbation, shaped like `problem.x`, carrying its size.
        curvature: "hessian", or "gauss_newton" as a named approximation.
        scaling: "mean", or "paper" for that paper's 1/|K| in the mixed term.
        tolerance: rank tolerance relative to max |lambda|.
        method: solver for H, as in `solver_for`.
        damping: added to H, relative to lambda_max; the displacement is then that of a damped problem.
        progress: called with a message and a fraction.

    Returns:
        The set, through its minimum-norm element, and what is known about its accuracy.

    Raises:
        InputRefused: PA211, PA121 or PA210, mu does not fit or is not finite.
        UsageError: PA301 for an unknown curvature; PA304 for an unknown scaling.
    """
    expect_problem(problem, "graphical_derivative")
    if scaling not in ("mean", "paper"):
        raise UsageError("PA304", f"scaling is {scaling!r}. Use 'mean' (the derivative) or 'paper' (1/|K|).")
    check_perturbation(problem, mu)
    mu = mu.detach()
    rows = moved_rows(mu)
    solver = solver_for(problem, curvature, tolerance, method=method, damping=damping, progress=progress)
    solved = solver.products
    if rows.numel() == 0:
        true = rhs = torch.zeros_like(problem.weights)
    else:
        true = rhs = -linearise(problem, rows).mixed(mu[rows])
        if scaling == "paper":
            rhs = rhs * (problem.rows / rows.numel())
    solve = solver.solve(rhs)
    displacement = solve.value
    distance = float(displacement.norm())
    phi, rank_jump = None, ""
    if distance > 0 and scaling == "mean":
        moved = problem.gradient(problem.weights + displacement, problem.x + mu)
        phi = float(solver.inverse(moved - linearise(problem).gradient).norm()) / distance
        rank_jump = kernel_response(problem, solver, mu, displacement).reason
    kinks = kink_share(problem, mu, displacement)
    other = differences(curvature, damping)
    longer = ["scaling 'paper'"] if scaling == "paper" else []
    validity = assess_here(
        problem,
        solver,
        solve,
        phi=phi,
        kinks=kinks,
        rank_jump=rank_jump,
        approximate=why_approximate(problem, displacement, true, other + longer),
        ends=hessian_ends(problem) if other else None,
    )
    return GraphicalDerivative(
        displacement=displacement,
        relative_residual=solve.relative_residual,
        distance=distance,
        phi=phi,
        trust_radius=None if phi is None else trust_radius(phi, float(mu.norm())),
        validity=validity,
        kernel_dimension=solver.kernel_dimension,
        tolerance=solver.tolerance,
        curvature=curvature,
        scaling=scaling,
        products=solver.products - solved + 2,
        solve=solve,
        origin=problem.weights,
        _solver=solver,
    )


def moved_rows(mu: Tensor) -> Tensor:
    """Positions of the rows that mu moves at all."""
    return (mu.reshape(mu.shape[0], -1) != 0).any(1).nonzero()[:, 0]


def check_perturbation(problem: Problem, mu: Tensor) -> None:
    """Refuse a perturbation that does not fit the training rows.

    Raises:
        InputRefused: PA127 no tensor, PA211 shape, PA121 dtype, PA210 NaN or infinite entries.
    """
    expect_kind("mu", mu, Tensor)
    if mu.shape != problem.x.shape:
        raise InputRefused(
            "PA211",
            f"mu is {tuple(mu.shape)}, the training rows are {tuple(problem.x.shape)}. Zero rows stay unmoved.",
        )
    if mu.dtype != problem.dtype or mu.device != problem.device:
        raise InputRefused(
            "PA121",
            f"mu is {mu.dtype} on {mu.device}, the problem {problem.dtype} on {problem.device}. Convert with .to().",
        )
    if not bool(torch.isfinite(mu).all()):
        raise InputRefused("PA210", "mu holds NaN or infinite entries. Check the step that produced it.")
