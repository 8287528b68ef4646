"""The convex step toward target weights: `min 1/2 |v + H^+ B mu|^2` over the budget, by accelerated projection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.attack.perturbations import PerturbationSet
from poisonaudit.operators import linearise
from poisonaudit.problem import Problem
from poisonaudit.sensitivity import solver_for


class DisplacementModel:
    """`mu -> w - w_t` to first order at one point: `r(mu) = offset - H^+ B mu`, `offset = w - w_t`.

    With v = w_t - w this is `-(v + H^+ B mu)`, so that `1/2 |r|^2` is the displacement objective.

    Args:
        problem: linearised here; its inputs may be poisoned already, mu is counted from them.
        rows: positions (k,) that mu lives on.
        offset: `w - w_t` (p,).
    """

    def __init__(self, problem: Problem, rows: Tensor, offset: Tensor) -> None:
        self.offset = offset
        self.products = 0
        self._mixed = linearise(problem, rows)
        self._curvature = solver_for(problem)

    def step(self, mu: Tensor) -> Tensor:
        """`-H^+ B mu` for mu (k, ...) on the rows: one solve, (p,)."""
        return -self._solve(self._mixed.mixed(mu.contiguous()))

    def adjoint(self, residual: Tensor) -> Tensor:
        """`-B^T H^+ r`, the transpose of `step`: one solve, (k, ...)."""
        return -self._mixed.mixed_adjoint(self._solve(residual))

    def value(self, mu: Tensor) -> float:
        """`1/2 |v + H^+ B mu|^2`."""
        return _half_square(self.offset + self.step(mu))

    def gradient(self, mu: Tensor) -> Tensor:
        """`B^T H^+ (v + H^+ B mu)`, (k, ...): one solve and one adjoint solve."""
        return self.adjoint(self.offset + self.step(mu))

    def _solve(self, rhs: Tensor) -> Tensor:
        solved = self._curvature.solve(rhs)
        self.products += solved.products + 1
        return solved.value


@dataclass(frozen=True, eq=False)
class ConvexStep:
    """Result of the inner minimisation.

    Attributes:
        mu: the minimiser found (k, ...), inside the set.
        value: objective there.
        lower_bound: no admissible mu has a smaller objective in this linear model.
        iterations: accelerated steps, each one solve and one adjoint solve.
        products: operator products used.
        ended: how it ended, in words.
    """

    mu: Tensor
    value: float
    lower_bound: float
    iterations: int
    products: int
    ended: str


def minimise_displacement(
    model: DisplacementModel,
    allowed: PerturbationSet,
    origin: Tensor,
    *,
    accuracy: float = 1e-3,
    max_iterations: int = 200,
    max_products: int | None = None,
    seed: int = 0,
) -> ConvexStep:
    """Minimise `1/2 |offset - H^+ B (mu - origin)|^2` over `allowed` by FISTA with restart.

    Each iteration costs one solve and one adjoint solve: residuals are linear in mu, so those at extrapolated
    points come free. The step length comes from a power iteration and is corrected wherever the observed curvature
    is larger. Every gradient also gives a certified lower bound (the objective is convex and the linear maximiser
    over the set is exact), so the run stops at a stated gap, not at a guess.

    Args:
        model: linearised at the inputs `clean + origin`.
        allowed: admissible total perturbations of the clean rows.
        origin: perturbation the model is linearised at (k, ...), admissible; also the start.
        accuracy: wanted gap between objective and lower bound, relative to the objective at the start.
        max_iterations: most accelerated steps.
        max_products: most operator products; None for no limit.
        seed: of the power iteration's start.

    Returns:
        The best point found and its certificate.
    """
    start = _half_square(model.offset)
    goal, limit = accuracy * start, math.inf if max_products is None else max_products
    lipschitz = _largest_curvature(model, origin, seed)
    if lipschitz == 0.0 or start == 0.0:
        return ConvexStep(origin, start, start, 0, model.products, "no effect of the inputs on the weights")
    mu = point = best = origin
    residual = extrapolated = model.offset
    value = best_value = start
    momentum, bound, iterations, ended = 1.0, 0.0, 0, "iteration limit"
    while iterations < max_iterations:
        if model.products >= limit:
            ended = "product limit"
            break
        iterations += 1
        gradient = model.adjoint(extrapolated)
        vertex = allowed.best_linear(-gradient)
        bound = max(bound, _half_square(extrapolated) + float((gradient * (vertex - point)).sum()))
        while True:
            new = allowed.project(point - gradient / lipschitz)
            change = new - point
            moved, length = model.step(change), float(change.square().sum())
            observed = float(moved.square().sum()) / length if length > 0 else 0.0
            if observed <= lipschitz * (1 + 1e-9):
                break
            lipschitz = 1.1 * observed
        new_residual = extrapolated + moved
        new_value = _half_square(new_residual)
        if float((gradient * (new - mu)).sum()) > 0:
            momentum = 1.0
        following = 0.5 * (1 + math.sqrt(1 + 4 * momentum**2))
        weight = (momentum - 1) / following
        point = new + weight * (new - mu)
        extrapolated = new_residual + weight * (new_residual - residual)
        stalled = abs(value - new_value) <= 1e-12 * start and iterations > 1
        mu, residual, value, momentum = new, new_residual, new_value, following
        if value < best_value:
            best, best_value = mu, value
        if best_value - bound <= goal:
            ended = "gap reached"
            break
        if stalled:
            ended = "no more progress"
            break
    return ConvexStep(best, best_value, bound, iterations, model.products, ended)


def _largest_curvature(model: DisplacementModel, like: Tensor, seed: int, iterations: int = 6) -> float:
    """Slightly enlarged Rayleigh quotient of `B^T H^+ H^+ B` after a few power steps."""
    generator = torch.Generator().manual_seed(seed)
    probe = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
    largest = 0.0
    for _ in range(iterations):
        probe = probe / probe.norm()
        moved = model.step(probe)
        largest = max(largest, float(moved.square().sum()))
        probe = model.adjoint(moved)
        if float(probe.norm()) == 0.0:
            break
    return 1.1 * largest


def _half_square(residual: Tensor) -> float:
    return 0.5 * float(residual.square().sum())
