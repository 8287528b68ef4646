"""Follow a solution along x + t mu: a predictor from the graphical derivative, a Newton corrector on R = 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.errors import UsageError
from poisonaudit.newton import dense_hessian_of, solve_definite
from poisonaudit.operators import dense_jacobian, linearise
from poisonaudit.problem import Problem, expect_problem
from poisonaudit.sensitivity.curvature import DENSE_LIMIT, solver_for
from poisonaudit.sensitivity.graphical_derivative import check_perturbation, moved_rows
from poisonaudit.solvers import default_tolerance
from poisonaudit.training import finest_tolerance, relative_gradient
from poisonaudit.validity import activation_changes

_SMALLEST_STEP = 1.0 / 64
_CORRECTIONS = 8
# A sub-step that took this few corrections was short: the next may be longer.
_FEW = 2
_GROWTH = 1.7
_WILD = 0.5
# Entries of a Jacobian held for Gauss-Newton corrections, and the residual that counts as none.
_DENSE_JACOBIAN = 50_000_000
_INTERPOLATED = 1e-6
# A branch whose smallest curvature fell to this share of its first value was running into a fold.
_FOLDING = 0.25


@dataclass(frozen=True)
class Path:
    """Where the solution went.

    Attributes:
        weights: (p,) at x + mu if converged, else at the last point reached on the path.
        converged: t = 1 was reached and the stationarity there is within the tolerance.
        steps: accepted sub-steps.
        reason: how it ended.
        relative_gradient: at the end.
        fraction: t reached, 1 if complete.
        problem: the problem at the end (moved data, moved weights).
        corrections: Newton corrections in all accepted sub-steps.
        fold_at: t at which a branch of minima was last seen before its curvature vanished; None where no fold was met.
        activation_changes: units times rows of piecewise linear activations whose sign changed from start to end; None
            where the model has no such module. Between two pieces R has a kink, and a path across many is piecewise.
    """

    weights: Tensor
    converged: bool
    steps: int
    reason: str
    relative_gradient: float
    fraction: float
    problem: Problem
    corrections: int = 0
    fold_at: float | None = None
    activation_changes: int | None = None


def follow_path(
    problem: Problem,
    mu: Tensor,
    *,
    steps: int = 4,
    tolerance: float = 1e-8,
    rank_tolerance: float | None = None,
    progress: Callable[[str, float | None], None] | None = None,
) -> Path:
    """Continuation of w along x + t mu, t from 0 to 1.

    Each sub-step predicts with the graphical derivative and corrects with minimum-norm Newton steps `-H^+ R`
    under a line search on |R|. A sub-step whose corrector fails is halved; below 1/64 of the way the path is
    reported as lost. Where H starts positive definite it must stay so: a point where it no longer is lies past a
    fold, and the branch of minima ends there.

    Args:
        problem: a solution (x, w).
        mu: perturbation, shaped like x.
        steps: sub-steps to try first.
        tolerance: wanted relative gradient at every accepted point; in float32 at least 1e-6.
        rank_tolerance: relative to max |lambda|, for predictor and corrector.
        progress: called with a message and a fraction.

    Returns:
        A Path; a failure is a Path with `converged` False and its reason.

    Raises:
        UsageError: PA304, steps < 1, or a tolerance out of range.
    """
    expect_problem(problem, "follow_path")
    if rank_tolerance is not None and not 0.0 <= rank_tolerance < 1.0:
        raise UsageError("PA304", f"the rank tolerance is {rank_tolerance}. Use a number from 0 to below 1, e.g. 1e-9.")
    if steps < 1 or not 0.0 < tolerance < float("inf"):
        raise UsageError(
            "PA304", f"follow_path got steps={steps}, tolerance={tolerance}. Use steps >= 1, a tolerance > 0."
        )
    check_perturbation(problem, mu)
    rows = moved_rows(mu)
    if rows.numel() == 0:
        figure = relative_gradient(problem)
        still = figure <= max(tolerance, finest_tolerance(problem.dtype))
        reason = "mu is zero" if still else f"mu is zero, and the start is no solution: relative gradient {figure:.1e}"
        return Path(problem.weights.clone(), still, 0, reason, figure, 1.0, problem)
    tolerance = max(tolerance, finest_tolerance(problem.dtype))
    # A copy without a neighbour's factorisation: the last bits must not depend on what ran before.
    reached, stride, taken, at = 0.0, 1.0 / steps, 0, problem.at(problem.weights)
    at.cache = {key: value for key, value in problem.cache.items() if key != "preconditioner"}
    definite = (
        problem.size <= DENSE_LIMIT and _solve(problem, torch.zeros_like(problem.weights), True, None) is not None
    )
    corrections = 0
    while reached < 1.0:
        stride = min(stride, 1.0 - reached)
        x_next = problem.x + (reached + stride) * mu
        moved = _sub_step(at, x_next, rows, stride * mu[rows], tolerance, rank_tolerance, definite)
        if moved is None:
            stride *= 0.5
            if stride < _SMALLEST_STEP:
                return _lost(problem, at, mu, reached, 2 * stride, taken, corrections, definite)
            continue
        (at, spent), reached, taken = moved, reached + stride, taken + 1
        corrections += spent
        if spent <= _FEW:
            stride *= _GROWTH
        if 1.0 - reached < 1e-12:
            reached = 1.0
        if progress is not None:
            progress(f"path: t = {reached:.3f}", reached)
    figure = relative_gradient(at)
    # Conjugate gradients only see the curvature they meet: the end point's own factorisation settles it.
    at.cache.pop("preconditioner", None)
    folded = definite and _solve(at, torch.zeros_like(at.weights), True, None) is None
    reason = "reached t = 1"
    if folded:
        reason += " at a stationary point that is no minimum: the branch of minima folds on the way"
    return Path(
        weights=at.weights,
        converged=figure <= tolerance and not folded,
        steps=taken,
        reason=reason,
        relative_gradient=figure,
        fraction=1.0,
        problem=at,
        corrections=corrections,
        fold_at=1.0 if folded else None,
        activation_changes=activation_changes(problem, mu, at.weights - problem.weights),
    )


def _lost(
    problem: Problem,
    at: Problem,
    mu: Tensor,
    reached: float,
    stride: float,
    taken: int,
    corrections: int,
    definite: bool,
) -> Path:
    """The path ends before t = 1: where, why, and whether one linear step would have come nearer."""
    reason = f"lost at t = {reached:.3f}: the corrector fails at every step down to {stride:.3f}"
    fold = None
    if definite:
        before, after = _smallest_curvature(problem), _smallest_curvature(at)
        if after <= _FOLDING * before:
            fold = reached
            reason += f"; the smallest curvature fell from {before:.1e} to {after:.1e}: the branch of minima folds"
    change = at.weights - problem.weights
    switched = activation_changes(problem, reached * mu, change)
    if switched:
        reason += f"; {switched} activations changed sign on the way"
    # At the moved data, is the last point of the path any better than one step of the graphical derivative?
    rows = moved_rows(mu)
    step = solver_for(problem).inverse(-linearise(problem, rows).mixed(mu[rows]))
    moved = problem.with_data(problem.x + mu)
    lengths = [float(moved.gradient(problem.weights + one).norm()) for one in (step, change)]
    if lengths[0] < lengths[1]:
        reason += f"; one linear step leaves the smaller gradient at t = 1, {lengths[0]:.1e} against {lengths[1]:.1e}"
    return Path(
        weights=at.weights,
        converged=False,
        steps=taken,
        reason=reason,
        relative_gradient=relative_gradient(at),
        fraction=reached,
        problem=at,
        corrections=corrections,
        fold_at=fold,
        activation_changes=switched,
    )


def _smallest_curvature(at: Problem) -> float:
    return solver_for(at).smallest


def _sub_step(
    at: Problem,
    x_next: Tensor,
    rows: Tensor,
    change: Tensor,
    tolerance: float,
    rank_tolerance: float | None,
    definite: bool,
) -> tuple[Problem, int] | None:
    """Predict and correct; None where the corrector does not come down to the tolerance.

    Returns:
        The corrected point and the corrections it took.
    """
    if not definite and at.loss == "half_squared" and at.decay == 0.0:
        # Where the moved rows can be interpolated again, minimum-norm steps on the outputs predict and correct at once,
        # and stay out of the kernel: H itself holds what residual is left, and its range is not quite that of J^T.
        reached = _interpolated(at.with_data(x_next), tolerance, rank_tolerance)
        if reached is not None:
            return reached
    prediction = _solve(at, -linearise(at, rows).mixed(change), definite, rank_tolerance)
    if prediction is None or not bool(torch.isfinite(prediction).all()):
        return None
    if float(prediction.norm()) > _WILD * float(at.weights.norm()):
        return None
    trial = at.with_data(x_next).at(at.weights + prediction)
    if definite:
        return _corrected(trial, tolerance, lambda here, rhs: _solve(here, rhs, True, None))
    # Off the solution set, residual curvature fills the kernel of H, and steps with H^+ would drift along it. Steps in
    # the range that H had at the solution do not; where they cannot reach R = 0, the rank has jumped.
    spectrum = solver_for(at, "hessian", rank_tolerance)
    basis = spectrum.range_vectors
    if basis is not None:
        reached = _corrected(trial, tolerance, lambda here, rhs: _solve_within(here, rhs, basis))
        if reached is not None:
            return reached
    return _corrected(trial, tolerance, lambda here, rhs: _solve(here, rhs, False, rank_tolerance))


def _corrected(
    trial: Problem, tolerance: float, solve: Callable[[Problem, Tensor], Tensor | None]
) -> tuple[Problem, int] | None:
    """Newton steps down to the tolerance, or None."""
    for spent in range(_CORRECTIONS):
        if relative_gradient(trial) <= tolerance:
            return trial, spent
        corrected = _correct(trial, solve)
        if corrected is None:
            return None
        trial = corrected
    return (trial, _CORRECTIONS) if relative_gradient(trial) <= tolerance else None


def _interpolated(trial: Problem, tolerance: float, rank_tolerance: float | None) -> tuple[Problem, int] | None:
    """Gauss-Newton steps `w - J^+ (f - y)` to zero residual, or None where they do not get there.

    Each step is the shortest that removes the residual to first order: it lies in the range of J^T and has no part
    along the solution set, so the path does not drift along it.

    Returns:
        The corrected point and the corrections it took.
    """
    with torch.no_grad():
        equations = trial.outputs().numel()
    if equations >= trial.size or equations * trial.size > _DENSE_JACOBIAN:
        return None
    cut = default_tolerance(trial.dtype) if rank_tolerance is None else rank_tolerance
    before = float("inf")
    for spent in range(_CORRECTIONS):
        with torch.no_grad():
            residual = (trial.outputs() - trial.y).reshape(-1)
        length = float(residual.norm())
        if relative_gradient(trial) <= tolerance:
            # A small gradient with a residual left is a least-squares solution: the general corrector's business.
            return (trial, spent) if length <= _INTERPOLATED * max(1.0, float(trial.y.norm())) else None
        if not length < 0.5 * before:
            return None
        before = length
        jacobian = dense_jacobian(trial).reshape(equations, trial.size)
        values, vectors = torch.linalg.eigh(jacobian @ jacobian.T)
        kept = values > cut * values[-1]
        coefficients = vectors[:, kept] @ ((vectors[:, kept].T @ residual) / values[kept])
        trial = trial.at(trial.weights - jacobian.T @ coefficients)
    return None


def _solve_within(here: Problem, rhs: Tensor, basis: Tensor) -> Tensor | None:
    """`V (V^T H V)^-1 V^T rhs` for an orthonormal basis V (p, r)."""
    if basis.shape[1] == 0:
        return None
    small = basis.T @ (dense_hessian_of(here) @ basis)
    solution, trouble = torch.linalg.solve_ex(small, (basis.T @ rhs)[:, None])
    return None if int(trouble) != 0 else basis @ solution[:, 0]


def _correct(trial: Problem, solve: Callable[[Problem, Tensor], Tensor | None]) -> Problem | None:
    """One Newton step with a line search on |R|; None where no step length lowers it."""
    gradient = linearise(trial).gradient
    step = solve(trial, -gradient)
    if step is None or not bool(torch.isfinite(step).all()):
        return None
    length = float(gradient.norm())
    factor = min(1.0, _WILD * float(trial.weights.norm()) / max(float(step.norm()), 1e-300))
    for _ in range(8):
        weights = trial.weights + factor * step
        if float(trial.gradient(weights).norm()) < (1.0 - 0.1 * factor) * length:
            return trial.at(weights)
        factor *= 0.5
    return None


def _solve(at: Problem, rhs: Tensor, definite: bool, rank_tolerance: float | None) -> Tensor | None:
    """`H^-1 rhs` where H is to be positive definite (None if it is not), else `H^+ rhs`."""
    if definite:
        return solve_definite(at, rhs, accuracy=1e-6)
    return solver_for(at, "hessian", rank_tolerance).inverse(rhs)
