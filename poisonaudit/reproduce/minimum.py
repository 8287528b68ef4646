"""From near a minimum to a stated relative gradient, within a budget of gradients: Newton-CG for decayed problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from poisonaudit.newton import polish
from poisonaudit.operators import linearise
from poisonaudit.problem import Problem
from poisonaudit.training import Progress, finest_tolerance, fit, relative_gradient

# Up to here `fit` with its dense polish is quicker than anything.
_DENSE = 2_000
# Entries of the scaled Jacobian that the preconditioner may hold.
_ENTRIES = 80_000_000
_ITERATIONS = 200
_STRETCH = 50
# Of the length of the first preconditioned step.
_FIRST_RADIUS = 0.3
_LEAST_RADIUS = 1e-12


@dataclass(frozen=True)
class Settled:
    """A point and how near to stationary it is.

    Attributes:
        problem: at the weights reached.
        relative_gradient: `|R| / (lambda_max |w|)` there.
        converged: it is at most the tolerance asked for.
        gradients: gradient-sized evaluations spent, a product counted as two.
        reason: why it stopped.
    """

    problem: Problem
    relative_gradient: float
    converged: bool
    gradients: int
    reason: str


def settle(problem: Problem, tolerance: float, budget: int, progress: Progress | None = None) -> Settled:
    """Move to the minimum of `J` near the problem's weights.

    Three ways, by size: `fit` for small problems; Newton steps solved by conjugate gradients, preconditioned with
    the Gauss-Newton matrix in sample space, for decayed problems whose scaled Jacobian can be held; else the Newton
    polish of `fit`, step by step until the budget is spent.

    Args:
        problem: the start.
        tolerance: wanted relative gradient; in float32 at least 1e-6.
        budget: most gradient-sized evaluations, checked between steps.
        progress: called with a message and a fraction.

    Returns:
        The point reached; where it fell short, `reason` says why.
    """
    tolerance = max(tolerance, finest_tolerance(problem.dtype))
    alone = problem.at(problem.weights)
    alone.cache.clear()
    if problem.size <= _DENSE:
        reached = fit(alone, tolerance, progress=progress)
        return Settled(reached.problem, reached.relative_gradient, reached.converged, reached.gradients, reached.reason)
    if problem.decay > 0 and fits_sample_space(problem):
        return _trust_region(alone, tolerance, budget, progress)
    return _polished(alone, tolerance, budget, progress)


def fits_sample_space(problem: Problem) -> bool:
    """Whether the scaled Jacobian, a row of p entries per training row and output, may be held."""
    with torch.no_grad():
        outputs = problem.outputs()
    return outputs.dim() == 2 and outputs.numel() * problem.size <= _ENTRIES


def descend(problem: Problem, iterations: int, progress: Progress | None = None) -> Problem:
    """L-BFGS on the whole objective: from where noisy training ends to where Newton steps begin to pay.

    Args:
        problem: the start.
        iterations: most iterations; it ends earlier where the line search finds nothing lower.
        progress: called with a message and a fraction.

    Returns:
        The problem at lower weights, or at the same where a step left the finite numbers.
    """
    weights = problem.weights.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [weights],
        max_iter=_STRETCH,
        history_size=20,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimiser.zero_grad()
        with torch.enable_grad():
            value = problem.objective(weights)
            value.backward()
        return float(value.detach())

    before = float(problem.objective())
    for done in range(0, iterations, _STRETCH):
        optimiser.step(closure)
        if not bool(torch.isfinite(weights).all()):
            return problem
        value = float(problem.objective(weights.detach()))
        if progress is not None:
            progress(f"L-BFGS: {done + _STRETCH} iterations, objective {value:.6g}", (done + _STRETCH) / iterations)
        if before - value <= 1e-6 * abs(value):
            break
        before = value
    return problem.at(weights.detach())


def _polished(at: Problem, tolerance: float, budget: int, progress: Progress | None) -> Settled:
    """The library's Newton polish, one step at a time so that the budget is kept."""
    spent, best, figure, reason = 0, at, relative_gradient(at), "no step was made"
    while figure > tolerance and spent < budget:
        done = polish(best, tolerance, max_steps=1, progress=progress)
        spent += done.gradients
        stuck = done.relative_gradient >= figure and "stopped after" not in done.reason
        best, figure, reason = done.problem, done.relative_gradient, done.reason
        if stuck:
            break
    if figure <= tolerance:
        reason = "relative gradient below the tolerance"
    elif spent >= budget:
        reason = f"the budget of {budget:,} gradients is spent"
    return Settled(best, figure, figure <= tolerance, spent, reason)


def _trust_region(at: Problem, tolerance: float, budget: int, progress: Progress | None) -> Settled:
    """Newton steps by preconditioned conjugate gradients inside a trust region (Steihaug, 1983; Toint, 1981).

    Lengths are measured in the norm of the preconditioner, so that the flat directions, along which most of the way
    lies, are not held back by the steep ones. Negative curvature is followed to the edge of the region.

    Returns:
        The point reached.
    """
    figure = relative_gradient(at)
    scale = float(linearise(at).gradient.norm()) / figure if figure > 0 else 1.0
    spent, radius, age = 62, 0.0, 0
    inverse: Callable[[Tensor], Tensor] | None = None
    while True:
        kept = linearise(at)
        length = float(kept.gradient.norm())
        if length <= tolerance * scale:
            # The scale lambda_max |w| is asked for again only where the last one says that the goal is reached.
            figure = relative_gradient(at)
            scale, spent = length / figure if figure > 0 else scale, spent + 60
        if progress is not None:
            text = f"Newton-CG: {spent:,} gradients, relative gradient {length / scale:.1e}"
            progress(text, min(1.0, spent / budget))
        if length <= tolerance * scale:
            return Settled(at, length / scale, True, spent, "relative gradient below the tolerance")
        if spent >= budget:
            return Settled(at, length / scale, False, spent, f"the budget of {budget:,} gradients is spent")
        if inverse is None:
            inverse, age = sample_space_inverse(at), 0
            spent += 3 * at.outputs().shape[-1]
        accuracy = max(1e-8, min(1e-2, (length / scale) ** 0.5))
        if radius == 0.0:
            radius = _FIRST_RADIUS * float(kept.gradient.dot(inverse(kept.gradient))) ** 0.5
        trial = _steihaug(kept.hessian, kept.gradient, inverse, radius, accuracy)
        spent += 2 * trial.products + 2
        moved = at.at(at.weights + trial.step)
        value, after = float(at.objective()), float(moved.objective())
        ratio = (value - after) / trial.predicted if trial.predicted > 0 else -1.0
        rounding = 1e3 * torch.finfo(at.dtype).eps * abs(value)
        if trial.predicted <= rounding and abs(value - after) <= rounding:
            # Objective values cannot tell any more; the gradient can.
            ratio = 1.0 if float(linearise(moved).gradient.norm()) < length else -1.0
        if ratio < 0.25:
            radius = 0.25 * min(radius, trial.length)
            if radius < _LEAST_RADIUS:
                return Settled(at, length / scale, False, spent, "no step lowers the objective: rounding, or a kink")
        elif ratio > 0.75 and trial.length > 0.99 * radius:
            radius *= 3.0
        if ratio > 1e-3:
            at, age = moved, age + 1
        # A preconditioner of an earlier point serves while solves are short.
        if trial.products > 60 or age >= 10:
            inverse = None


def sample_space_inverse(at: Problem) -> Callable[[Tensor], Tensor]:
    """`(decay I + J^T L'' J / n)^-1` by Woodbury: `(v - A^T (decay I + A A^T)^-1 A v) / decay`.

    A holds a row per training row and output, `A^T A = J^T L'' J / n` with L'' the second derivative of the row's
    loss in its outputs. A preconditioner only: the solves it serves use exact Hessian products.

    Args:
        at: a point with decay > 0 and outputs (n, c).

    Returns:
        v (p,) -> the inverse times v.
    """
    scaled = scaled_jacobian(at)
    small = scaled @ scaled.T
    small.diagonal().add_(at.decay)
    factor = torch.linalg.cholesky(small)

    def apply(v: Tensor) -> Tensor:
        inner = torch.cholesky_solve((scaled @ v)[:, None], factor)[:, 0]
        return (v - scaled.T @ inner) / at.decay

    return apply


def scaled_jacobian(at: Problem) -> Tensor:
    """A with `A^T A = J^T L'' J / n` where L'' is positive semi-definite, (n c, p)."""
    outputs = at.outputs().detach()

    def row_loss(output: Tensor, label: Tensor) -> Tensor:
        return at.loss_per_row(output[None], label[None])[0]

    curved = vmap(jacrev(jacrev(row_loss)))(outputs, at.y)
    values, vectors = torch.linalg.eigh(curved)
    roots = vectors * values.clamp(min=0).sqrt()[:, None, :]
    model = at.module()
    names = dict(model.named_parameters())
    pieces = []
    for row in range(at.rows):
        parameters = {name: value.detach().requires_grad_(True) for name, value in names.items()}
        with torch.enable_grad():
            output = functional_call(model, parameters, (at.x[row : row + 1],))[0]
        for column in roots[row].T:
            parts = torch.autograd.grad(
                output, list(parameters.values()), column, retain_graph=True, materialize_grads=True
            )
            pieces.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(pieces) / at.rows**0.5


@dataclass(frozen=True)
class _Trial:
    """A trial step, the decrease its model predicts, its length in the preconditioner's norm, and products made."""

    step: Tensor
    predicted: float
    length: float
    products: int


def _steihaug(
    operator: Callable[[Tensor], Tensor],
    gradient: Tensor,
    inverse: Callable[[Tensor], Tensor],
    radius: float,
    accuracy: float,
) -> _Trial:
    """Least `g.s + s.H s / 2` over the Krylov space within `|s|_M <= radius`, M the preconditioner, by truncated CG."""
    step, image, residual = torch.zeros_like(gradient), torch.zeros_like(gradient), -gradient
    pulled = inverse(residual)
    direction, size = pulled, float(residual.dot(pulled))
    # Inner products in M, by recurrence: step.step, step.direction, direction.direction.
    inside, across, ahead = 0.0, 0.0, size
    goal = accuracy * float(gradient.norm())
    made = 0
    while made < _ITERATIONS:
        made += 1
        curved = operator(direction)
        curvature = float(direction.dot(curved))
        length = size / curvature if curvature > 0 else float("inf")
        if inside + 2 * length * across + length**2 * ahead >= radius**2 or curvature <= 0:
            length = (-across + max(across**2 + ahead * (radius**2 - inside), 0.0) ** 0.5) / ahead
            step, image = step + length * direction, image + length * curved
            inside = radius**2
            break
        step, image, residual = step + length * direction, image + length * curved, residual - length * curved
        inside += 2 * length * across + length**2 * ahead
        if float(residual.norm()) <= goal:
            break
        pulled = inverse(residual)
        before, size = size, float(residual.dot(pulled))
        share = size / before
        across = share * (across + length * ahead)
        ahead = size + share**2 * ahead
        direction = pulled + share * direction
    predicted = -float(gradient.dot(step)) - 0.5 * float(step.dot(image))
    return _Trial(step, predicted, inside**0.5, made)
