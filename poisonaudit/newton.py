"""Newton polish: from near a minimum to a stated relative gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.krylov_newton import krylov_step, most_negative
from poisonaudit.operators import dense_gauss_newton, dense_hessian, linearise
from poisonaudit.problem import Problem
from poisonaudit.solvers import DenseSpectrum, curvature_ends, default_tolerance
from poisonaudit.solvers.cholesky import solve_with_factor
from poisonaudit.validity import at_infinity

# Dense Newton up to here; beyond, steps come from a Krylov space.
DENSE_LIMIT = 5_000
_LONGEST_SEARCH = 30
# So many steps in a row shortened below 1/64 mean a kink: a quadratic model holds nowhere near.
_PATIENCE = 5
_SHORTENED = 7
_NO_MINIMUM = 1e-6
_FIRST_DAMPING = 1e-3
_SADDLE_CURVATURE = 1e-6
SADDLE = "left a saddle: stationary, but with negative curvature"
_AT_INFINITY = (
    "the minimum is at infinity: cross-entropy without decay on rows that the model separates falls to zero along a ray"
)
_KINK = (
    "no step lowers the gradient further: rounding, or a minimum on a kink of a piecewise smooth network, "
    "where the gradient does not vanish"
)


@dataclass(frozen=True)
class Polished:
    """Where the polish ended.

    Attributes:
        problem: at the weights reached.
        relative_gradient: there.
        steps: accepted Newton steps.
        gradients: gradient-sized evaluations; a product counts as two.
        reason: why it stopped.
    """

    problem: Problem
    relative_gradient: float
    steps: int
    gradients: int
    reason: str


def polish(
    problem: Problem,
    tolerance: float,
    *,
    max_steps: int = 100,
    max_gradients: float = math.inf,
    leave_saddles: bool = False,
    dense_test: bool = True,
    progress: Callable[[str, float | None], None] | None = None,
) -> Polished:
    """Newton steps with a line search until `|R| <= tolerance * lambda_max * |w|`.

    Where H is positive definite the step is Newton's; a factorisation serves several steps as a preconditioner, each
    solved with exact products to a falling accuracy. Where it is not: with decay, negative curvature is taken by its
    magnitude; without decay the solution set may be a manifold, and off it residual curvature fills the kernel of H
    with eigenvalues of the residual's size, along which a Newton step walks far. Damped Gauss-Newton steps stay in
    the range of the model's own curvature, so the point reached is near the one started from.

    A stationary point with negative curvature is left along it, and training has to go on from there.

    Args:
        problem: where to start.
        tolerance: wanted relative gradient.
        max_steps: most Newton steps.
        max_gradients: gradient-sized evaluations after which no further step is begun.
        leave_saddles: stop, at a lower point beside it, wherever H has negative curvature: first-order steps are the
            cheaper way on from there.
        dense_test: look for negative curvature with the dense matrix, where products saw none.
        progress: called with a message and a fraction.

    Returns:
        The best point reached and why it stopped there; where it left a saddle (`SADDLE`), a lower point beside it.
    """
    at, steps, gradients = problem, 0, 0
    shortened = 0
    # A neighbour's factorisation would make the last bits depend on what ran before.
    at.cache.pop("preconditioner", None)
    damping = _FIRST_DAMPING
    largest = _largest_curvature(at)
    gradients += 60
    while True:
        length = float(linearise(at).gradient.norm())
        figure = _relative(length, largest, at)
        if figure <= tolerance:
            largest = _largest_curvature(at)
            gradients += 60
            figure = _relative(length, largest, at)
        if progress is not None:
            progress(f"Newton: step {steps}, relative gradient {figure:.1e}", None)
        if figure <= tolerance:
            # A hundred products find most saddles at a tenth of the price of the dense matrix.
            quick = at.size <= DENSE_LIMIT and (leave_saddles or not dense_test)
            downhill, seen = _beside_saddle(at) if quick else (None, 0)
            gradients += 2 * seen
            if downhill is None and (dense_test or not quick):
                downhill = _negative_curvature(at)
            if downhill is not None:
                return Polished(downhill, float("inf"), steps, gradients, SADDLE)
            return Polished(at, figure, steps, gradients, "relative gradient below the tolerance")
        if float(at.objective()) < _NO_MINIMUM and at_infinity(at):
            return Polished(at, figure, steps, gradients, _AT_INFINITY)
        if shortened >= _PATIENCE:
            return Polished(at, figure, steps, gradients, _KINK)
        if steps >= max_steps:
            return Polished(at, figure, steps, gradients, f"stopped after {max_steps} Newton steps")
        if gradients >= max_gradients:
            return Polished(at, figure, steps, gradients, "the budget of gradients is spent")
        if leave_saddles and "preconditioner" not in at.cache:
            beside, products = _beside_saddle(at)
            gradients += 2 * products
            if beside is not None:
                return Polished(beside, float("inf"), steps, gradients, SADDLE)
        step, products = _newton_step(at, figure, damping)
        moved, tries = _search(at, step)
        gradients += 2 * products + 2 * tries
        # A full step earns less damping, a shortened one more; only damped steps look at it.
        damping = damping * (0.1 if tries == 1 else 4.0) if moved is not None else damping
        if moved is None and "preconditioner" in at.cache:
            # The direction came from an old factorisation; try once more with this point's own curvature.
            at.cache.pop("preconditioner")
            step, products = _newton_step(at, figure, damping)
            moved, tries = _search(at, step)
            gradients += 2 * products + 2 * tries
        if moved is None:
            return Polished(at, figure, steps, gradients, _KINK)
        at, steps, shortened = moved, steps + 1, shortened + 1 if tries >= _SHORTENED else 0


def _relative(length: float, largest: float, at: Problem) -> float:
    scale = largest * float(at.weights.norm())
    return 0.0 if length == 0 else length / scale if scale > 0 else float("inf")


def _largest_curvature(at: Problem) -> float:
    _, largest = curvature_ends(linearise(at).hessian, at.size, at.weights, steps=30)
    return abs(largest)


def _newton_step(at: Problem, figure: float, damping: float) -> tuple[Tensor, int]:
    """The step and the products it took."""
    kept = linearise(at)
    before = kept.products
    free = at.decay == 0.0
    interpolating = free and _fewer_equations_than_weights(at)
    accuracy = max(1e-8, min(1e-2, figure**0.5))
    if at.size > DENSE_LIMIT:
        return krylov_step(at, damping, accuracy, gauss_newton=interpolating)
    if not interpolating:
        step = solve_definite(at, -kept.gradient, accuracy)
        if step is not None:
            return step, kept.products - before
    if free:
        step = _damped_step(at, damping, gauss_newton=interpolating)
        return step, max(kept.products - before, at.size if interpolating else 0)
    spectrum = DenseSpectrum(dense_hessian_of(at), default_tolerance(at.dtype))
    kept_vectors = spectrum.vectors[:, spectrum.in_range]
    magnitudes = spectrum.eigenvalues[spectrum.in_range].abs()
    return -kept_vectors @ ((kept_vectors.T @ kept.gradient) / magnitudes), kept.products - before


def _fewer_equations_than_weights(at: Problem) -> bool:
    """Fewer outputs over all rows than weights: H is sure to have a kernel where the rows are interpolated."""
    with torch.no_grad():
        return at.outputs().numel() < at.size


def _damped_step(at: Problem, damping: float, *, gauss_newton: bool) -> Tensor:
    """`-(A + s I)^-1 R`, `s = damping * lambda_max` (Levenberg, Marquardt).

    A is the Gauss-Newton matrix if asked for, or where H has an eigenvalue below -s/2; else H, whose kernel is then
    filled with values that are small against s.

    Returns:
        The step, (p,).
    """
    gradient = linearise(at).gradient
    identity = torch.eye(at.size, dtype=at.dtype, device=at.device)
    matrix = dense_gauss_newton(at) if gauss_newton else dense_hessian_of(at)
    shift = max(damping, 10 * torch.finfo(at.dtype).eps) * float(matrix.diagonal().abs().max())
    if shift == 0.0:
        # No curvature at all: the gradient is everything known.
        return -gradient
    if not gauss_newton and int(torch.linalg.cholesky_ex(matrix + 0.5 * shift * identity)[1]) != 0:
        matrix = dense_gauss_newton(at)
    factor, trouble = torch.linalg.cholesky_ex(matrix + shift * identity)
    if int(trouble) != 0:
        return -gradient / shift
    return -solve_with_factor(factor, gradient)


def _negative_curvature(at: Problem) -> Problem | None:
    """A lower point along the most negative curvature, or None at a minimum as far as H, or 100 products, tell."""
    if at.size > DENSE_LIMIT:
        smallest, direction, largest = most_negative(at)
    else:
        matrix = dense_hessian_of(at)
        _, trouble = torch.linalg.cholesky_ex(matrix)
        if int(trouble) == 0:
            return None
        values, vectors = torch.linalg.eigh(matrix)
        smallest, direction, largest = float(values[0]), vectors[:, 0], float(values.abs().max())
    return _downhill(at, smallest, direction, largest)


def _beside_saddle(at: Problem) -> tuple[Problem | None, int]:
    """A lower point along negative curvature that 100 products see, None where they see none; and the products."""
    before = linearise(at).products
    found = _downhill(at, *most_negative(at))
    return found, linearise(at).products - before


def _downhill(at: Problem, smallest: float, direction: Tensor, largest: float) -> Problem | None:
    """A lower point along a direction of negative curvature, None where the curvature is not negative enough."""
    if smallest >= -_SADDLE_CURVATURE * largest:
        return None
    value, length = float(at.objective()), 0.1 * max(1.0, float(at.weights.norm()))
    while length > 1e-6:
        trials = [at.at(at.weights + sign * length * direction) for sign in (1.0, -1.0)]
        lowest = min(trials, key=lambda trial: float(trial.objective()))
        if float(lowest.objective()) < value:
            return lowest
        length *= 0.3
    return None


def solve_definite(at: Problem, rhs: Tensor, accuracy: float) -> Tensor | None:
    """Solve `H s = rhs` where H is positive definite, by conjugate gradients with exact products.

    The preconditioner is the Cholesky factor of a neighbouring point while that serves, else of this point.

    Args:
        at: the point; the factor is kept in its cache and inherited by its neighbours.
        rhs: (p,).
        accuracy: wanted relative residual.

    Returns:
        The solution, or None where H is not positive definite at the rank tolerance.
    """
    if "preconditioner" in at.cache:
        step = _preconditioned(at, at.cache["preconditioner"], rhs, accuracy)
        if step is not None:
            return step
    matrix = dense_hessian_of(at)
    factor, trouble = torch.linalg.cholesky_ex(matrix)
    floor = default_tolerance(at.dtype) * float(matrix.diagonal().max())
    if int(trouble) != 0 or float(factor.diagonal().min()) ** 2 <= floor:
        at.cache.pop("preconditioner", None)
        return None
    at.cache["preconditioner"] = factor
    return solve_with_factor(factor, rhs)


def dense_hessian_of(at: Problem) -> Tensor:
    """The dense Hessian of this point (p, p), kept where the solution map looks for it too."""
    key = ("dense", "hessian")
    if key not in at.cache:
        at.cache[key] = dense_hessian(at)
    return at.cache[key]


def _preconditioned(at: Problem, factor: Tensor, rhs: Tensor, accuracy: float, most: int = 40) -> Tensor | None:
    """Conjugate gradients on `H s = rhs` preconditioned by another point's Cholesky factor; None if it will not do."""
    kept = linearise(at)
    residual = rhs
    scale = float(residual.norm())
    step = torch.zeros_like(residual)
    direction = torch.zeros_like(residual)
    before = 1.0
    for iteration in range(most):
        preconditioned = solve_with_factor(factor, residual)
        product = float(residual.dot(preconditioned))
        direction = preconditioned + (product / before if iteration else 0.0) * direction
        image = kept.hessian(direction)
        curvature = float(direction.dot(image))
        if curvature <= 0:
            return None
        step = step + (product / curvature) * direction
        residual = residual - (product / curvature) * image
        before = product
        if float(residual.norm()) <= accuracy * scale:
            return step
    return None


def _search(at: Problem, step: Tensor) -> tuple[Problem | None, int]:
    """Halve the step until the objective falls enough, or, at rounding level, until the gradient does.

    The largest move is half the weights' own length: beyond it a quadratic model says nothing.

    Returns:
        The accepted point, or None, and the number of trials.
    """
    gradient = linearise(at).gradient
    value, length = float(at.objective()), float(gradient.norm())
    slope = float(step.dot(gradient))
    rounding = 10 * torch.finfo(at.dtype).eps * max(abs(value), 1e-300)
    longest = max(1.0, 0.5 * float(at.weights.norm()))
    factor = min(1.0, longest / max(float(step.norm()), 1e-300))
    for tries in range(1, _LONGEST_SEARCH + 1):
        trial = at.at(at.weights + factor * step)
        change = float(trial.objective()) - value
        if change <= 1e-4 * factor * slope < 0:
            return trial, tries
        if change <= rounding and float(linearise(trial).gradient.norm()) < (1 - 1e-3 * factor) * length:
            return trial, tries
        factor *= 0.5
    return None, _LONGEST_SEARCH
