"""Gradient canceling: poison rows until the training gradient vanishes at target weights.

Lu, Kamath and Yu, "Exploring the Limits of Model-Targeted Indiscriminate Data Poisoning Attacks", ICML 2023, algorithm
1. Here rows are moved inside a budget where the paper adds rows, and the gradient includes decay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poisonaudit.attack.baselines.base import GRADIENT, GRADIENT_OF_GRADIENT, begin, weight_gradient, worth_telling
from poisonaudit.attack.baselines.options import refuse_bad_options
from poisonaudit.attack.baselines.spectral import minimise
from poisonaudit.attack.budget import Budget
from poisonaudit.attack.objectives import MatchPredictions, Objective, TargetWeights
from poisonaudit.attack.objectives.target_weights import fitting_target, weights_of_layers
from poisonaudit.attack.perturbations import PerturbationSet
from poisonaudit.attack.poison import Poison, embed
from poisonaudit.operators import linearise
from poisonaudit.problem import Problem
from poisonaudit.solvers import curvature_ends, default_tolerance
from poisonaudit.training import Progress

# Hessian products for the ends of the spectrum at the target.
_CURVATURE_STEPS = 30


def needs_target(problem: Problem, objective: Objective, budget: Budget) -> str:
    """Why gradient canceling does not apply, "" where it does."""
    if isinstance(objective, TargetWeights | MatchPredictions):
        return ""
    return f"it needs target weights, which the objective {objective.kind!r} does not have"


def gradient_canceling(
    problem: Problem,
    objective: Objective,
    budget: Budget,
    rows: Tensor | Sequence[int],
    seed: int = 0,
    *,
    steps: int = 500,
    progress: Progress | None = None,
    enough: float = 1e-6,
) -> Poison:
    """Minimise `1/2 |R(x + mu, w_t)|^2` over the budget, R the training gradient with decay.

    Spectral projected gradient from the clean rows. For budgets that are not convex the relaxed set comes first, then
    its nearest admissible point, then, for "l0", the entries that this one moves. Stationarity at w_t is not
    attraction: training may well end elsewhere, the curvature at w_t says whether w_t is a minimum at all.

    Args:
        problem: clean, at wbar.
        objective: target weights or predictions to match; where only some layers count, the other weights keep the
            values they have.
        budget: how far rows may move.
        rows: positions (k,) of the rows to perturb.
        seed: of the curvature's Lanczos start; the descent draws nothing.
        steps: most steps.
        progress: called with a message and a fraction.
        enough: residual ratio at which to stop.

    Returns:
        The poison. `predicted` holds `stationarity_ratio` (`|R(x + mu, w_t)| / |R(x, w_t)|`), `stationarity` (the
        numerator), `curvature_smallest` (an upper estimate of the least eigenvalue of H at w_t with the poison:
        below 0, w_t is no minimum) and `curvature_largest`. The objective of the history is the ratio's square.

    Raises:
        InputRefused: PA281, the objective has no target weights.
        UsageError: PA304, a negative `enough`; PA361, PA363 or PA367 for rows and steps.
    """
    refuse_bad_options("gradient_canceling", enough=enough)
    start = begin(
        "gradient_canceling", problem, objective, budget, rows, steps, needs_target(problem, objective, budget)
    )
    target = _target(problem, objective)
    whole = problem.gradient(target)
    length = float(whole.norm())
    clean = torch.zeros_like(start.x)
    if length == 0.0:
        note = "the target weights are stationary without poison, so there is nothing to cancel"
        return start.poison(
            clean,
            1,
            (),
            predicted={"method": start.name, "stationarity_ratio": None, "stationarity": 0.0},
            notes=(note,),
        )
    rest = whole - weight_gradient(problem, target, start.x, start.y)

    def loss(mu: Tensor) -> tuple[Tensor, Tensor]:
        point = mu.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            residual = rest + weight_gradient(problem, target, start.x + point, start.y, graph=True)
            value = (residual / length).square().sum()
            (slope,) = torch.autograd.grad(value, point, materialize_grads=True)
        return value.detach(), slope

    history: list[dict[str, Any]] = []

    def watch(step: int, value: float) -> None:
        if worth_telling(step, steps):
            history.append({"step": step, "objective": value, "seconds": start.seconds()})
            if progress is not None:
                progress(f"gradient canceling: step {step} of {steps}, residual ratio {value**0.5:.3g}", step / steps)

    allowed = start.allowed
    found = minimise(loss, allowed if allowed.convex else allowed.relaxed(), clean, steps, enough**2, watch)
    evaluations, notes = found.evaluations, [f"the descent ended: {found.ended}"]
    candidates = [allowed.project(found.delta)]
    if allowed.norm == "l0":
        refined = minimise(loss, _on_support(allowed, candidates[0]), candidates[0], steps, enough**2)
        evaluations += refined.evaluations
        candidates.append(allowed.project(refined.delta))
    best, value = clean, 1.0
    for candidate in candidates:
        reached = float(loss(candidate)[0])
        best, value = (candidate, reached) if reached < value else (best, value)
    history = [entry for entry in history if entry["step"] < found.steps]
    history.append({"step": found.steps, "objective": value, "seconds": start.seconds()})
    at_target = problem.with_data(problem.x + embed(problem, start.rows, best)).at(target)
    smallest, largest = curvature_ends(
        linearise(at_target).hessian, problem.size, target, steps=_CURVATURE_STEPS, seed=seed
    )
    if smallest < -default_tolerance(problem.dtype) * largest:
        notes.append("the Hessian at the target weights has negative curvature: training is driven away from them")
    predicted = {
        "method": start.name,
        "stationarity_ratio": value**0.5,
        "stationarity": value**0.5 * length,
        "curvature_smallest": smallest,
        "curvature_largest": largest,
    }
    if progress is not None:
        progress(f"gradient canceling: done, residual ratio {value**0.5:.3g}", 1.0)
    passes = start.share(GRADIENT + GRADIENT_OF_GRADIENT)
    gradients = 2 + (evaluations + len(candidates)) * passes
    products = min(_CURVATURE_STEPS, problem.size)
    return start.poison(best, gradients, history, products=products, predicted=predicted, notes=notes)


def _target(problem: Problem, objective: Objective) -> Tensor:
    """w_t (p,); weights that do not count stay where they are."""
    assert isinstance(objective, TargetWeights | MatchPredictions)
    target = fitting_target(problem, objective.weights)
    if isinstance(objective, TargetWeights) and objective.layers is not None:
        counts = weights_of_layers(problem, objective.layers)
        return torch.where(counts > 0, target, problem.weights)
    return target


def _on_support(allowed: PerturbationSet, delta: Tensor) -> PerturbationSet:
    """The box over the entries that `delta` moves."""
    low, high = allowed.limits()
    moved = (delta != 0).to(delta)
    # Infinite limits of entries that stay would turn into NaN by a product.
    low, high = (torch.where(moved > 0, end, torch.zeros_like(end)) for end in (low, high))
    return dataclasses.replace(allowed, lower=low, upper=high, norm="linf", entries=None, spacing=None)
