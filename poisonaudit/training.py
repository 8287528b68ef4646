"""Fit a Problem to a stated relative gradient: L-BFGS or Adam, then a Newton polish."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poisonaudit.errors import InputRefused, NumericalFailure, UsageError
from poisonaudit.newton import DENSE_LIMIT, SADDLE, Polished, polish
from poisonaudit.operators import linearise
from poisonaudit.problem import Problem, expect_problem
from poisonaudit.solvers import curvature_ends
from poisonaudit.warm_up import EPOCHS, in_statistics_of, needs_warm_up, warm_up

Progress = Callable[[str, float | None], None]

# A warm start this near goes straight to the polish.
_NEAR = 1e-3
# L-BFGS works until here, where Newton steps are sure to be short; a plateau before it is a kink or a flat valley.
_HANDED_OVER = 1e-5
# From so many weights on a dense Newton step costs as much as some hundred L-BFGS iterations, and between 1e-5 and 1e-7
# a network's Hessian is mostly indefinite: four to eleven times faster in all for p = 2,410.
_MANY_WEIGHTS, _HANDED_OVER_LATE = 1_000, 1e-7
_LOST_TO_INFINITY = 1e-13
_MOST_SADDLES = 5
# Rounds of 50 iterations without halving the gradient or lowering the loss by 1e-4: what is left is the polish's work.
_PATIENCE = 8


@dataclass(frozen=True)
class Fit:
    """A fitted problem.

    Attributes:
        problem: the problem at the weights reached.
        relative_gradient: `|R| / (lambda_max |w|)` there.
        converged: it is at most the tolerance asked for.
        reason: why it stopped, in words.
        steps: accepted steps of both phases.
        gradients: gradient-sized evaluations, Hessian products counted as two.
        seconds: wall time.
    """

    problem: Problem
    relative_gradient: float
    converged: bool
    reason: str
    steps: int
    gradients: int
    seconds: float


@torch.enable_grad()
def fit(
    problem: Problem,
    tolerance: float = 1e-10,
    seed: int = 0,
    *,
    method: Literal["lbfgs", "adam"] = "lbfgs",
    start: Literal["current", "fresh"] = "current",
    max_steps: int = 3_000,
    max_gradients: int | None = None,
    dense_test: bool = True,
    progress: Progress | None = None,
) -> Fit:
    """Minimise `J` to `|R| <= tolerance * lambda_max * |w|`; repeatable bit for bit for a seed and thread count.

    Models with batch normalisation or dropout begin in train mode (Adam, 40 epochs) where they start afresh, or where
    batch normalisation has no statistics yet; these are then frozen, and what is minimised is the eval-mode objective.
    A fresh start of a model that has statistics ends in weights for those statistics, so that both can be compared; one
    that had none returns a problem of its own, with the statistics found.

    Args:
        problem: gives the objective and, with `start="current"`, the first weights (a warm start).
        tolerance: wanted relative gradient; in float32 at least 1e-6.
        seed: of the fresh initialisation and of Adam's batches.
        method: "lbfgs" (full batch) or "adam" (shuffled batches) before the Newton polish.
        start: "current" continues from the problem's weights, "fresh" draws new ones from the modules' own
            `reset_parameters`.
        max_steps: most L-BFGS iterations or Adam epochs.
        max_gradients: most gradient-sized evaluations of L-BFGS and the polish together, looked at between rounds of 50
            iterations and between Newton steps; None for no limit.
        dense_test: False trusts a hundred products to see the negative curvature of a saddle, where up to p = 5,000
            the dense Hessian would be asked as well: for the many rough trainings of a search.
        progress: called with a message and a fraction.

    Returns:
        A Fit; when `converged` is False, `reason` says why and the best weights found are returned.

    Raises:
        UsageError: PA304, an argument is out of range.
        NumericalFailure: PA402, the objective is not finite at the start.
    """
    expect_problem(problem, "fit")
    budget = math.inf if max_gradients is None else max_gradients
    if (
        not 0.0 < tolerance < math.inf
        or max_steps < 0
        or budget < 1
        or method not in ("lbfgs", "adam")
        or start not in ("current", "fresh")
    ):
        raise UsageError(
            "PA304",
            f"fit got tolerance={tolerance}, max_steps={max_steps}, max_gradients={max_gradients}, method={method!r}, "
            f"start={start!r}. Use a positive tolerance, max_steps >= 0, max_gradients >= 1, lbfgs or adam, current or "
            "fresh.",
        )
    begun = time.perf_counter()
    # Single precision cannot resolve more.
    tolerance = max(tolerance, finest_tolerance(problem.dtype))
    fresh = start == "fresh"
    at = problem.at(initialise(problem, seed)) if fresh else problem
    if not bool(torch.isfinite(at.objective())):
        raise NumericalFailure(
            "PA402", "the loss is not finite at the first weights. Rescale the inputs or the weights."
        )
    # The scale of the first phase's goal: lambda_max |w| changes little once training is under way.
    steps = gradients = 0
    if needs_warm_up(problem.module(), fresh=fresh):
        at, steps, gradients = _warmed_up(at, seed, progress), EPOCHS, EPOCHS
    late = _hands_over_late(at)
    if relative_gradient(at) > max(tolerance, _HANDED_OVER_LATE if late else _NEAR):
        if method == "lbfgs":
            at, more, spent = _lbfgs(at, tolerance, max_steps, budget - gradients, progress)
        else:
            at, more, spent = _adam(at, seed, max_steps, progress)
        steps, gradients = steps + more, gradients + spent

    def finish(leave: bool) -> Polished:
        return polish(
            at,
            tolerance,
            max_gradients=budget - gradients,
            leave_saddles=leave,
            dense_test=dense_test,
            progress=progress,
        )

    polished = finish(late)
    for escape in range(1, _MOST_SADDLES + 1):
        if polished.reason != SADDLE:
            break
        steps, gradients = steps + polished.steps, gradients + polished.gradients
        at, more, spent = _lbfgs(polished.problem, tolerance, max_steps, budget - gradients, progress)
        steps, gradients = steps + more, gradients + spent
        polished = finish(late and escape < _MOST_SADDLES)
    reached = polished.relative_gradient
    return Fit(
        problem=polished.problem,
        relative_gradient=reached,
        converged=reached <= tolerance,
        reason=polished.reason,
        steps=steps + polished.steps,
        gradients=gradients + polished.gradients,
        seconds=time.perf_counter() - begun,
    )


def with_statistics(problem: Problem, seed: int = 0, progress: Progress | None = None) -> Problem:
    """The problem with batch statistics, found by training in train mode from fresh weights where it has none yet.

    Args:
        problem: any; without batch normalisation, or with statistics, it comes back as it is.
        seed: of the weights and batches.
        progress: called with a message and a fraction.

    Returns:
        A problem to whose weights all later fits, fresh or warm, can be compared.
    """
    if not needs_warm_up(problem.module(), fresh=False):
        return problem
    return _warmed_up(problem.at(initialise(problem, seed)), seed, progress)


def _warmed_up(problem: Problem, seed: int, progress: Progress | None) -> Problem:
    """The problem after training in train mode, its statistics frozen; where it had some they stay what they are."""
    before = problem.module()
    trained = warm_up(before, problem.loss_per_row, problem.x, problem.y, problem.decay, seed=seed, progress=progress)
    if not needs_warm_up(before, fresh=False):
        weights = [value.reshape(-1) for value in in_statistics_of(before, trained).parameters()]
        return problem.at(torch.cat(weights))
    limit = problem.memory_limit
    return Problem(trained, problem.loss, problem.x, problem.y, problem.decay, memory_limit=limit)


def relative_gradient(problem: Problem) -> float:
    """`|R| / (lambda_max |w|)`, the stationarity figure of the contract; 0 where R is exactly 0.

    lambda_max is the largest Ritz value of 30 Lanczos steps (a lower estimate, in practice to several digits).

    Returns:
        The figure; infinite where the weights or the curvature are zero but R is not.
    """
    if "relative_gradient" not in problem.cache:
        kept = linearise(problem)
        length = float(kept.gradient.norm())
        if length == 0.0:
            figure = 0.0
        else:
            _, largest = curvature_ends(kept.hessian, problem.size, problem.weights, steps=30)
            scale = abs(largest) * float(problem.weights.norm())
            figure = length / scale if scale > 0 else float("inf")
        problem.cache["relative_gradient"] = figure
    value: float = problem.cache["relative_gradient"]
    return value


def finest_tolerance(dtype: torch.dtype) -> float:
    """Smallest relative gradient that training in this type reaches reliably: 0 in float64, 1e-6 in float32."""
    return 0.0 if dtype == torch.float64 else 1e-6


def initialise(problem: Problem, seed: int) -> Tensor:
    """Fresh weights (p,) from the modules' own `reset_parameters`, seeded, the global generator left untouched.

    Returns:
        Flat weights in the problem's dtype and device.

    Raises:
        InputRefused: PA126, a module with parameters of its own has no `reset_parameters`.
    """
    model = copy.deepcopy(problem.module())
    with torch.random.fork_rng(devices=[problem.device] if problem.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            if not list(module.parameters(recurse=False)):
                continue
            reset = getattr(module, "reset_parameters", None)
            if not callable(reset):
                raise InputRefused(
                    "PA126",
                    f"layer {name or type(module).__name__} has parameters but no reset_parameters(), so a fresh start "
                    "cannot be drawn. Add that method, or pass your own trainer.",
                )
            reset()
    return torch.cat([value.detach().reshape(-1) for value in model.parameters()])


def _lbfgs(
    problem: Problem, tolerance: float, max_steps: int, budget: float, progress: Progress | None
) -> tuple[Problem, int, int]:
    """Full-batch L-BFGS with strong Wolfe line search until the gradient is small against its scale."""
    weights = problem.weights.clone().requires_grad_(True)
    optimiser = _new_lbfgs(weights)
    evaluations = 0

    def closure() -> float:
        nonlocal evaluations
        evaluations += 1
        optimiser.zero_grad()
        value = problem.objective(weights)
        value.backward()
        return float(value.detach())

    steps, at, before, scale, restarted = 0, problem, float("inf"), 0.0, False
    late = _hands_over_late(problem)
    enough = max(tolerance, _HANDED_OVER_LATE if late else _HANDED_OVER)
    patience = max(_PATIENCE, problem.size // 60) if late else _PATIENCE
    trail: list[tuple[float, float]] = []
    while steps < max_steps and evaluations < budget:
        optimiser.step(closure)
        steps += 50
        if not bool(torch.isfinite(weights).all()):
            return at, steps, evaluations
        at = problem.at(weights.detach())
        length, value = float(at.gradient().norm()), float(at.objective())
        # The scale lambda_max |w| costs 30 products: asked for again only where the last one says "near".
        if scale == 0.0 or length <= enough * scale:
            figure = relative_gradient(at)
            # The two gradients are summed in another order: one may be exactly 0 where the other is not.
            scale = length / figure if min(length, figure) > 0 else float("inf")
        if progress is not None:
            # At zero weights the scale is 0.
            relative = length / scale if scale > 0 else float("inf")
            progress(f"L-BFGS: {steps} iterations, relative gradient {relative:.1e}", steps / max_steps)
        if length <= enough * scale or value <= _LOST_TO_INFINITY:
            break
        trail.append((value, length))
        if len(trail) > patience:
            past_value, past_length = trail.pop(0)
            if past_value - value <= 1e-4 * abs(value) and min(recent for _, recent in trail) > 0.5 * past_length:
                break
        if before - value <= 1e-9 * abs(value):
            if restarted:
                break
            # A line search that failed leaves a history that fails again; one fresh history tells it from a plateau.
            optimiser, restarted = _new_lbfgs(weights), True
        else:
            restarted = False
        before = value
    return at, steps, evaluations


def _hands_over_late(problem: Problem) -> bool:
    return problem.decay > 0.0 and _MANY_WEIGHTS <= problem.size <= DENSE_LIMIT


def _new_lbfgs(weights: Tensor) -> torch.optim.LBFGS:
    return torch.optim.LBFGS(
        [weights],
        max_iter=50,
        history_size=20,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )


def _adam(problem: Problem, seed: int, max_steps: int, progress: Progress | None) -> tuple[Problem, int, int]:
    """Adam over shuffled batches with a decaying rate; the polish finishes what noise leaves."""
    weights = problem.weights.clone().requires_grad_(True)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    epochs = min(max_steps, 300)
    optimiser = torch.optim.Adam([weights], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=max(1, epochs))
    batch = max(1, min(problem.rows, 64))
    evaluations = 0
    for epoch in range(epochs):
        order = torch.randperm(problem.rows, generator=generator).to(problem.device)
        for rows in order.split(batch):
            optimiser.zero_grad()
            losses = problem.losses(weights, problem.x[rows], problem.y[rows])
            (losses.mean() + 0.5 * problem.decay * weights.dot(weights)).backward()
            optimiser.step()
        evaluations += 1
        schedule.step()
        if progress is not None and epoch % 20 == 0:
            progress(f"Adam: epoch {epoch}", epoch / epochs)
    return problem.at(weights.detach()), epochs, evaluations
