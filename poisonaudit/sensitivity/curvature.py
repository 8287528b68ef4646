"""The curvature of the training objective, ready to be inverted: dense while small, Krylov beyond."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from poisonaudit.errors import UsageError
from poisonaudit.operators import Linearisation, dense_gauss_newton, dense_hessian, linearise
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name
from poisonaudit.results import Validity
from poisonaudit.solvers import DenseSpectrum, Solve, curvature_ends, default_tolerance, lanczos_least_squares
from poisonaudit.solvers.cholesky import definite_factor
from poisonaudit.training import relative_gradient
from poisonaudit.validity import assess

CurvatureName = Literal["hessian", "gauss_newton"]
DENSE_LIMIT = 5_000
_DENSE = {"hessian": dense_hessian, "gauss_newton": dense_gauss_newton}


class Curvature(Protocol):
    """What the solution map needs of H (or of its Gauss-Newton part)."""

    tolerance: float
    largest: float
    smallest: float
    kernel_dimension: int | None
    method: str
    products: int

    @property
    def range_vectors(self) -> Tensor | None:
        """Orthonormal basis of the range (p, rank), or None where only products are made."""
        ...

    def solve(self, rhs: Tensor) -> Solve:
        """Minimum-norm least-squares solution of `H v = rhs`."""
        ...

    def solve_from(self, start: Tensor, rhs: Tensor) -> Solve:
        """The solution nearest to `start`: `start + H^+ (rhs - H start)`."""
        ...

    def inverse(self, rhs: Tensor) -> Tensor:
        """`H^+ rhs` alone, for a vector or a block of columns."""
        ...

    def project_kernel(self, z: Tensor) -> Tensor:
        """`P_ker(H) z` at the rank tolerance."""
        ...


class KrylovCurvature:
    """Curvature through products only, for p beyond `DENSE_LIMIT`.

    The dimension of the kernel is not known here (None): counting it would take the whole spectrum.
    """

    kernel_dimension: int | None = None
    range_vectors: Tensor | None = None
    method = "lanczos"

    def __init__(self, kept: Linearisation, name: CurvatureName, tolerance: float) -> None:
        self.tolerance = tolerance
        self._product: Callable[[Tensor], Tensor] = kept.hessian if name == "hessian" else kept.gauss_newton
        self._kept = kept
        weights = kept.problem.weights
        self.smallest, self.largest = curvature_ends(self._product, weights.numel(), weights)

    @property
    def largest_magnitude(self) -> float:
        """Largest |lambda|, as far as the Lanczos run saw it."""
        return max(abs(self.smallest), abs(self.largest))

    @property
    def products(self) -> int:
        """Products made at this point so far."""
        return self._kept.products

    def solve_from(self, start: Tensor, rhs: Tensor) -> Solve:
        """The solution nearest to `start`."""
        solve = self.solve(rhs - self._product(start))
        return replace(solve, value=start + solve.value)

    def solve(self, rhs: Tensor) -> Solve:
        """Minimum-norm least-squares solution of `H v = rhs`."""
        if rhs.dim() == 2:
            solves = [self.solve(column.contiguous()) for column in rhs.T]
            worst = max(solves, key=lambda one: one.relative_residual)
            return replace(worst, value=torch.stack([one.value for one in solves], dim=1))
        return lanczos_least_squares(
            self._product,
            rhs,
            tolerance=self.tolerance,
            accuracy=1e-10 if rhs.dtype == torch.float64 else 1e-5,
            largest_magnitude=self.largest_magnitude,
        )

    def inverse(self, rhs: Tensor) -> Tensor:
        """`H^+ rhs`, column by column."""
        if rhs.dim() == 1:
            return self.solve(rhs).value
        return torch.stack([self.solve(column.contiguous()).value for column in rhs.T], dim=1)

    def project_kernel(self, z: Tensor) -> Tensor:
        """`z - H^+ H z`."""
        if z.dim() == 2:
            return torch.stack([self.project_kernel(column.contiguous()) for column in z.T], dim=1)
        return z - self.inverse(self._product(z))


def solver_for(
    problem: Problem,
    curvature: CurvatureName = "hessian",
    tolerance: float | None = None,
    *,
    method: str = "auto",
    damping: float = 0.0,
    progress: Any = None,
) -> Curvature:
    """The curvature at this point, factorised once and kept with the problem.

    Args:
        problem: the point.
        curvature: "hessian" (exact) or "gauss_newton" (named as such in results; never used silently).
        tolerance: rank tolerance relative to max |lambda|; default 1e-9 in float64, 1e-5 in float32.
        method: "auto", "dense" (Cholesky where H is clearly definite, else eigenvectors) or "lanczos".
        damping: relative to the largest curvature; 0 for none.
        progress: called with a message and a fraction.

    Returns:
        Dense up to p = 5,000, Krylov beyond.

    Raises:
        UsageError: PA301, unknown curvature; PA304, a tolerance outside [0, 1).
    """
    if tolerance is not None and not 0.0 <= tolerance < 1.0:
        raise UsageError("PA304", f"the rank tolerance is {tolerance}. Use a number from 0 to below 1, e.g. 1e-9.")
    if curvature not in _DENSE:
        raise unknown_name(curvature, _DENSE, "curvature")
    cut = default_tolerance(problem.dtype) if tolerance is None else tolerance
    key = ("curvature", curvature, cut, method, damping)
    if key not in problem.cache:
        if method == "dense" or (method == "auto" and problem.size <= DENSE_LIMIT):
            matrix = _dense_matrix(problem, curvature)
            problem.cache[key] = definite_factor(matrix, cut) or DenseSpectrum(matrix, cut)
        else:
            problem.cache[key] = KrylovCurvature(linearise(problem), curvature, cut)
    kept: Curvature = problem.cache[key]
    return kept


def assess_here(
    problem: Problem,
    solver: Curvature,
    solve: Solve | None = None,
    *,
    phi: float | None = None,
    kinks: float | None = None,
) -> Validity:
    """May numbers of the solution map be trusted at this point, as its curvature and a solve with it tell.

    Args:
        problem: the point.
        solver: its curvature.
        solve: the solve behind the number, if there was one.
        phi: Newton estimate of one step's relative error, where there is one.
        kinks: share of activations that change their linear piece, where it is known.

    Returns:
        The verdict with its figures.
    """
    ended: dict[str, Any] = {} if solve is None else {"solver_converged": solve.converged, "solver_ended": solve.ended}
    return assess(
        problem,
        relative_gradient=relative_gradient(problem),
        smallest=solver.smallest,
        largest=solver.largest,
        kernel_dimension=solver.kernel_dimension,
        tolerance=solver.tolerance,
        relative_residual=None if solve is None else solve.relative_residual,
        phi=phi,
        kinks=kinks,
        **ended,
    )


def _dense_matrix(problem: Problem, curvature: CurvatureName) -> Tensor:
    """The dense matrix, kept so that another tolerance does not compute it again."""
    key = ("dense", curvature)
    if key not in problem.cache:
        problem.cache[key] = _DENSE[curvature](problem)
    matrix: Tensor = problem.cache[key]
    return matrix
