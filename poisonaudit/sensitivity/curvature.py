"""The curvature of the training objective, ready to be inverted: dense while small, by products beyond."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from poisonaudit.arguments import MOST_DAMPING, damping_share
from poisonaudit.errors import UsageError
from poisonaudit.operators import dense_gauss_newton, dense_hessian
from poisonaudit.operators.memory import PASSES_SHARE
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name
from poisonaudit.results import Validity
from poisonaudit.sensitivity.product_curvature import CurvatureName as CurvatureName
from poisonaudit.sensitivity.product_curvature import ProductCurvature
from poisonaudit.solvers import DenseSpectrum, Progress, Solve, curvature_ends, default_tolerance
from poisonaudit.solvers.cholesky import definite_factor
from poisonaudit.solvers.memory import solve_bytes
from poisonaudit.training import relative_gradient
from poisonaudit.validity import assess

DENSE_LIMIT = 5_000
# Curvature that products saw this far above the rank tolerance is no kernel.
_CLEAR = 10.0
METHODS = ("auto", "dense", "lanczos", "minres", "lsmr", "cg", "nystroem")
_DENSE = {"hessian": dense_hessian, "gauss_newton": dense_gauss_newton}


class KernelCurvature(Protocol):
    """What tests of the rank condition need of `A = H + damping * lambda_max I` (or of its Gauss-Newton part)."""

    @property
    def tolerance(self) -> float:
        """Relative rank tolerance."""
        ...

    @property
    def largest(self) -> float:
        """Largest eigenvalue of A; by products a lower estimate."""
        ...

    @property
    def smallest(self) -> float:
        """Smallest eigenvalue of A; by products an upper estimate."""
        ...

    @property
    def kernel_dimension(self) -> int | None:
        """Eigenvalues taken as zero, or None where only products are made."""
        ...

    def inverse(self, rhs: Tensor) -> Tensor:
        """`A^+ rhs` alone, for a vector or a block of columns."""
        ...

    def project_kernel(self, z: Tensor) -> Tensor:
        """`P_ker(A) z` at the rank tolerance, (p,) or (p, K)."""
        ...


class Curvature(KernelCurvature, Protocol):
    """The same with solves that say how they went."""

    @property
    def method(self) -> str:
        """How it solves."""
        ...

    @property
    def products(self) -> int:
        """Products with H made by all solves so far; a block of K counts K."""
        ...

    @property
    def range_vectors(self) -> Tensor | None:
        """Orthonormal basis of the range (p, rank), or None where only products are made."""
        ...

    def solve(self, rhs: Tensor) -> Solve:
        """Minimum-norm least-squares solution of `A v = rhs`, (p,) or (p, K)."""
        ...

    def solve_from(self, start: Tensor, rhs: Tensor) -> Solve:
        """The solution nearest to `start`: `start + A^+ (rhs - A start)`."""
        ...


def solver_for(
    problem: Problem,
    curvature: CurvatureName = "hessian",
    tolerance: float | None = None,
    *,
    method: str = "auto",
    damping: float = 0.0,
    accuracy: float | None = None,
    progress: Progress | None = None,
) -> Curvature:
    """The curvature at this point, ready to solve with, made once and kept with the problem.

    Methods: "dense" factorises (Cholesky where H is clearly definite, else eigenvectors). "lanczos" is the block
    Lanczos solver, whose space is kept with the point, so that later right-hand sides are cheap. "minres" holds a few
    vectors only. "lsmr" is SciPy's, as a reference. "cg" and "nystroem" (preconditioned, with damping) are for definite
    matrices and end where they meet negative curvature. "auto" is dense up to p = 5,000 and Lanczos beyond.

    Args:
        problem: the point.
        curvature: "hessian" (exact) or "gauss_newton" (named as such in results; never used silently).
        tolerance: rank tolerance relative to max |lambda|; default 1e-9 in float64, 1e-5 in float32.
        method: as above.
        damping: relative to the largest eigenvalue lambda_max of H: `H + damping * lambda_max I` is inverted.
        accuracy: relative residual wanted of solves by products; default 1e-10 in float64, 1e-5 in float32.
        progress: called with a message and a fraction.

    Returns:
        The curvature.

    Raises:
        UsageError: PA301, unknown curvature or method; PA304, a tolerance outside [0, 1), a damping outside
            [0, 1e6], an accuracy outside (0, 1); PA307, the problem's memory limit is too small for the method.
    """
    if tolerance is not None and not 0.0 <= tolerance < 1.0:
        raise UsageError("PA304", f"the rank tolerance is {tolerance}. Use a number from 0 to below 1, e.g. 1e-9.")
    share = damping_share(damping)
    if share is None:
        raise UsageError(
            "PA304",
            f"the damping is {damping!r}; it must lie in [0, {MOST_DAMPING:g}]. Use 0 for none, or a share of "
            "lambda_max such as 1e-3.",
        )
    damping = share
    if accuracy is not None and not 0.0 < accuracy < 1.0:
        raise UsageError("PA304", f"the accuracy is {accuracy}. Use a relative residual between 0 and 1, e.g. 1e-8.")
    if curvature not in _DENSE:
        raise unknown_name(curvature, _DENSE, "curvature")
    if method not in METHODS:
        raise unknown_name(method, METHODS, "method")
    chosen = method
    if method == "auto":
        chosen = "dense" if problem.size <= DENSE_LIMIT and _dense_fits(problem) else "lanczos"
    cut = default_tolerance(problem.dtype) if tolerance is None else tolerance
    key = ("curvature", curvature, cut, chosen, float(damping), None if chosen == "dense" else accuracy)
    if key not in problem.cache:
        if chosen == "dense":
            if not _dense_fits(problem):
                need = solve_bytes("dense", problem.size, itemsize=problem.weights.element_size())
                raise UsageError(
                    "PA307",
                    f"a dense solve needs {need} bytes beside the passes, the memory limit is {problem.memory_limit}. "
                    "Raise the limit, or use method='lanczos'.",
                )
            problem.cache[key] = _factorised(problem, curvature, cut, damping)
        else:
            problem.cache[key] = ProductCurvature(problem, curvature, cut, chosen, damping, accuracy)
    kept: Curvature = problem.cache[key]
    if isinstance(kept, ProductCurvature):
        kept.progress = progress
    return kept


def kernel_is_trivial(solver: KernelCurvature) -> bool:
    """Whether H has no kernel at the rank tolerance, as far as is known: by products only the ends met tell."""
    if solver.kernel_dimension is None:
        return solver.smallest > _CLEAR * solver.tolerance * solver.largest
    return solver.kernel_dimension == 0


def _dense_fits(problem: Problem) -> bool:
    limit = problem.memory_limit
    return (
        limit is None
        or solve_bytes("dense", problem.size, itemsize=problem.weights.element_size()) <= limit - limit // PASSES_SHARE
    )


def _factorised(problem: Problem, curvature: CurvatureName, tolerance: float, damping: float) -> Curvature:
    """Cholesky factor where the damped matrix is clearly definite, else its eigenvectors."""
    matrix = _dense_matrix(problem, curvature)
    if damping > 0.0:
        _, largest = curvature_ends(lambda v: matrix @ v, problem.size, matrix[0])
        matrix = matrix + damping * largest * torch.eye(problem.size, dtype=matrix.dtype, device=matrix.device)
    return definite_factor(matrix, tolerance) or DenseSpectrum(matrix, tolerance)


def assess_here(
    problem: Problem,
    solver: Curvature,
    solve: Solve | None = None,
    *,
    phi: float | None = None,
    kinks: float | None = None,
    rank_jump: str = "",
    approximate: str = "",
    ends: tuple[float, float] | None = None,
) -> Validity:
    """May numbers of the solution map be trusted at this point, as its curvature and a solve with it tell.

    Args:
        problem: the point.
        solver: its curvature.
        solve: the solve behind the number, if there was one.
        phi: Newton estimate of one step's relative error, where there is one.
        kinks: share of activations that change their linear piece, where it is known.
        rank_jump: why the rank of H is held to change nearby, if it is.
        approximate: why the number is another one than the derivative, if it is.
        ends: extreme curvatures of the Hessian, where the solver's are those of another matrix.

    Returns:
        The verdict with its figures.
    """
    if isinstance(solver, ProductCurvature):
        solver.note_stationarity()
    smallest, largest = (solver.smallest, solver.largest) if ends is None else ends
    ended: dict[str, Any] = {} if solve is None else {"solver_converged": solve.converged, "solver_ended": solve.ended}
    return assess(
        problem,
        relative_gradient=relative_gradient(problem),
        smallest=smallest,
        largest=largest,
        kernel_dimension=solver.kernel_dimension,
        tolerance=solver.tolerance,
        relative_residual=None if solve is None else solve.relative_residual,
        phi=phi,
        kinks=kinks,
        rank_jump=rank_jump,
        approximate=approximate,
        **ended,
    )


def _dense_matrix(problem: Problem, curvature: CurvatureName) -> Tensor:
    """The dense matrix, kept so that another tolerance does not compute it again."""
    key = ("dense", curvature)
    if key not in problem.cache:
        problem.cache[key] = _DENSE[curvature](problem)
    matrix: Tensor = problem.cache[key]
    return matrix
