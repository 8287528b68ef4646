"""Influence functions: the corner of the budget along the damped inverse-Hessian sensitivity of the objective.

Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017, section 5.2 and equation 5:
the influence of a change of training inputs, with a damped Hessian at the clean weights, and no retraining between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poisonaudit.attack.baselines.base import GRADIENT, GRADIENT_OF_GRADIENT, begin, weight_gradient, worth_telling
from poisonaudit.attack.baselines.options import refuse_bad_options
from poisonaudit.attack.baselines.signed_steps import descend
from poisonaudit.attack.budget import Budget
from poisonaudit.attack.objectives import Objective
from poisonaudit.attack.outcome import TestRows, outcome
from poisonaudit.attack.poison import Poison, embed
from poisonaudit.errors import NumericalFailure
from poisonaudit.problem import Problem
from poisonaudit.sensitivity import coderivative, graphical_derivative
from poisonaudit.training import Progress

# Shortest first step relative to the radius; with few steps they are longer, so that all of the budget is in reach.
_RATE = 0.1


def influence(
    problem: Problem,
    objective: Objective,
    budget: Budget,
    rows: Tensor | Sequence[int],
    seed: int = 0,
    *,
    steps: int = 1,
    progress: Progress | None = None,
    damping: float = 1e-2,
    test: TestRows | None = None,
) -> Poison:
    """Minimise `<u, R(x + mu, w)>` over the budget, `(H + damping lambda_max I) u = -grad_w A`, at the clean weights.

    A is the objective and `<u, R(x + mu, w)>` its change along one damped Newton step of retraining. With one step the
    corner `argmin <B^T u, mu>` is taken; with more, B is taken again at the moved rows (signed steps, u unchanged).

    Args:
        problem: clean, at wbar.
        objective: any.
        budget: how far rows may move.
        rows: positions (k,) of the rows to perturb.
        seed: nothing is drawn; taken so that all baselines can be called alike.
        steps: 1 for the corner, more for signed steps.
        progress: called with a message and a fraction.
        damping: relative to the largest eigenvalue of H; Koh and Liang take 0.01 of the loss's own unit.
        test: (x, y) test rows for the predicted accuracy.

    Returns:
        The poison; `predicted` is the outcome of one damped linear step, the objective of the history
        `<u, R(x + mu, w) - R(x, w)>`, an estimate of the change of A. Products are those beyond a factorisation of H.

    Raises:
        UsageError: PA304, damping outside [0, 1e6]; PA361, PA363 or PA367 for rows and steps.
        NumericalFailure: PA431, the solve gave no finite answer.
    """
    refuse_bad_options("influence", damping=damping, test=test)
    start = begin("influence", problem, objective, budget, rows, steps)
    if progress is not None:
        progress("influence: adjoint solve", 0.0)
    goal = objective.bind(problem)
    adjoint = coderivative(problem, goal.gradient(problem.weights), damping=damping)
    if not bool(torch.isfinite(adjoint.value).all()):
        raise NumericalFailure("PA431", "the adjoint solve gave NaN or infinity. Check stationarity, or raise damping.")
    base = weight_gradient(problem, problem.weights, start.x, start.y).dot(adjoint.adjoint)
    history: list[dict[str, Any]] = [{"step": 0, "objective": 0.0, "seconds": start.seconds()}]
    gradients = 1 + start.share(GRADIENT)

    def change(mu: Tensor) -> tuple[Tensor, Tensor]:
        point = mu.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            gradient = weight_gradient(problem, problem.weights, start.x + point, start.y, graph=True)
            value = gradient.dot(adjoint.adjoint) - base
            (slope,) = torch.autograd.grad(value, point, materialize_grads=True)
        return value.detach(), slope

    def watch(step: int, value: Tensor) -> None:
        if step and worth_telling(step, steps):
            history.append({"step": step, "objective": float(value), "seconds": start.seconds()})

    if steps == 1:
        delta = start.allowed.best_linear(-adjoint.value[start.rows])
        watch(1, weight_gradient(problem, problem.weights, start.x + delta, start.y).dot(adjoint.adjoint) - base)
        gradients += start.share(GRADIENT)
    else:
        found = descend(change, start.allowed, torch.zeros_like(start.x), steps, max(_RATE, 2.0 / steps), watch)
        delta = found.delta
        gradients += found.evaluations * start.share(GRADIENT + GRADIENT_OF_GRADIENT)
    if progress is not None:
        progress("influence: prediction", 0.5)
    derivative = graphical_derivative(problem, embed(problem, start.rows, delta), damping=damping)
    reasons = list(derivative.validity.reasons)
    predicted = {
        **outcome(problem, problem.weights + derivative.displacement, objective, test),
        "method": "influence",
        "valid": not reasons,
        "reasons": reasons,
        "phi": derivative.phi,
        "relative_residual": derivative.relative_residual,
        "damping": damping,
    }
    if progress is not None:
        progress("influence: done", 1.0)
    products = adjoint.products + derivative.products
    return start.poison(delta, gradients, history, products=products, predicted=predicted)
