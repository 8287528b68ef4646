"""Gradient matching: align the poisoned rows' training gradient with that of the adversarial objective.

Geiping, Fowl, Huang, Czaja, Taylor, Moeller and Goldstein, "Witches' Brew: Industrial Scale Data Poisoning via Gradient
Matching", ICLR 2021, equations 3 and 4. One model, no retraining while crafting, no augmentation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poisonaudit.attack.baselines.base import GRADIENT, GRADIENT_OF_GRADIENT, begin, weight_gradient, worth_telling
from poisonaudit.attack.baselines.options import refuse_bad_options
from poisonaudit.attack.baselines.signed_steps import descend, random_start
from poisonaudit.attack.budget import Budget
from poisonaudit.attack.objectives import FlipPrediction, FlipPredictions, Objective
from poisonaudit.attack.poison import Poison
from poisonaudit.problem import Problem
from poisonaudit.training import Progress


def gradient_matching(
    problem: Problem,
    objective: Objective,
    budget: Budget,
    rows: Tensor | Sequence[int],
    seed: int = 0,
    *,
    steps: int = 250,
    progress: Progress | None = None,
    restarts: int = 4,
    rate: float = 0.1,
    surrogate: str = "cross_entropy",
) -> Poison:
    """Minimise `1 - cos(grad_w A(w), (1/k) sum_i grad_w L(f(x_i + mu_i, w), y_i))` at the clean weights.

    A is the objective. Signed Adam from random points; the best restart is kept. Decay is not part of the training
    gradient, as in the paper.

    Args:
        problem: clean, at wbar.
        objective: any; flips are taken with the cross-entropy to the wanted class, as in the paper.
        budget: how far rows may move.
        rows: positions (k,) of the rows to perturb.
        seed: of the random starts.
        steps: of each restart; the step length falls to a tenth after 3/8, 5/8 and 7/8 of them.
        progress: called with a message and a fraction.
        restarts: how many; the paper takes 8.
        rate: first step length relative to the radius.
        surrogate: "cross_entropy" for flips, or "objective" to match the gradient of the objective's own surrogate.

    Returns:
        The poison; objective of the history is the loss above, 0 at perfect alignment.

    Raises:
        UsageError: PA301, no surrogate has that name; PA304, restarts below 1 or a rate that is not above 0; PA361,
            PA363 or PA367 for rows and steps.
    """
    refuse_bad_options("gradient_matching", surrogate=surrogate, restarts=restarts, rate=rate)
    start = begin("gradient_matching", problem, objective, budget, rows, steps)
    if surrogate == "cross_entropy" and isinstance(objective, FlipPrediction | FlipPredictions):
        aimed: Objective = dataclasses.replace(objective, surrogate="cross_entropy")
    else:
        aimed = objective
    aim = aimed.bind(problem).gradient(problem.weights)
    passes = start.share(GRADIENT + GRADIENT_OF_GRADIENT)
    clean_value = matching_loss(problem, start.x, start.y, aim, torch.zeros_like(start.x))[0]
    history: list[dict[str, Any]] = [_entry(0, 0, clean_value, start.seconds())]
    if not bool(aim.any()):
        note = "the objective has no gradient at the clean weights, so there is nothing to match"
        return start.poison(torch.zeros_like(start.x), 1 + passes, history, notes=(note,))
    generator = torch.Generator().manual_seed(seed)
    best, best_value, evaluations = torch.zeros_like(start.x), clean_value, 1
    for restart in range(1, restarts + 1):
        if progress is not None:
            progress(f"gradient matching: restart {restart} of {restarts}", (restart - 1) / restarts)

        def watch(step: int, value: Tensor, restart: int = restart) -> None:
            if worth_telling(step, steps):
                history.append(_entry(step, restart, value, start.seconds()))

        found = descend(
            lambda mu: matching_loss(problem, start.x, start.y, aim, mu),
            start.allowed,
            random_start(start.allowed, start.x, generator),
            steps,
            rate,
            watch,
        )
        evaluations += found.evaluations
        best = torch.where(found.value < best_value, found.delta, best)
        best_value = torch.minimum(found.value, best_value)
    if progress is not None:
        progress("gradient matching: done", 1.0)
    return start.poison(best, 1 + evaluations * passes, history)


def matching_loss(problem: Problem, x: Tensor, y: Tensor, aim: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """`1 - cos(aim, G(mu))` with `G(mu) = sum_i grad_w L(f(x_i + mu_i, w), y_i)`, and its gradient in mu.

    Args:
        problem: gives model, loss and weights.
        x: clean rows (k, ...).
        y: their labels.
        aim: gradient to match (p,).
        mu: perturbation (k, ...).

    Returns:
        (scalar, (k, ...)); the loss is 1 where G vanishes.
    """
    point = mu.detach().clone().requires_grad_(True)
    tiny = torch.finfo(mu.dtype).tiny
    with torch.enable_grad():
        gradient = weight_gradient(problem, problem.weights, x + point, y, graph=True)
        lengths = (gradient.norm() * aim.norm()).clamp(min=tiny)
        loss = 1.0 - gradient.dot(aim) / lengths
        (slope,) = torch.autograd.grad(loss, point, materialize_grads=True)
    return loss.detach(), slope.nan_to_num(0.0, 0.0, 0.0)


def _entry(step: int, restart: int, value: Tensor, seconds: float) -> dict[str, Any]:
    """One line of the history; restart 0 is the clean rows."""
    loss = float(value)
    return {"step": step, "restart": restart, "objective": loss, "similarity": 1.0 - loss, "seconds": seconds}
