"""The crafting loop: linearise, move the rows, retrain warm, linearise there again; keep the best after retraining."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from poisonaudit.attack.budget import Budget
from poisonaudit.attack.inner import METHODS, EstimatedMap, MethodName, minimise_estimate
from poisonaudit.attack.objectives import Goal, Objective
from poisonaudit.attack.outcome import TestRows
from poisonaudit.attack.perturbations import PerturbationSet
from poisonaudit.attack.poison import Poison, embed
from poisonaudit.attack.prediction import predict
from poisonaudit.attack.rows import choose_rows
from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name
from poisonaudit.sensitivity import coderivative, graphical_derivative
from poisonaudit.training import Progress, fit

_HALVINGS = 2
# How many of the best steps are judged by training from the clean weights; it stops at the first that holds.
_FINALISTS = 4
# An outer step that gains less than this share of the first objective is the last one.
_ENOUGH = 1e-3
_METHODS = ("auto", "corner", *METHODS)


@dataclass(frozen=True, eq=False)
class _Task:
    """What stays the same over the whole run."""

    problem: Problem
    goal: Goal
    rows: Tensor
    allowed: PerturbationSet
    tolerance: float
    seed: int
    method: str
    max_products: int | None


@dataclass(frozen=True, eq=False)
class _Point:
    """A poison on the rows and the solution that warm retraining reached with it."""

    delta: Tensor
    problem: Problem
    value: float


@dataclass(frozen=True, eq=False)
class _Trial:
    """One move, predicted to first order and retrained."""

    point: _Point
    predicted: float
    phi: float | None
    converged: bool
    products: int
    gradients: int


def craft(
    problem: Problem,
    objective: Objective,
    budget: Budget,
    seed: int = 0,
    *,
    steps: int = 6,
    method: Literal["auto", "corner", "apg", "adam", "lbfgsb"] = "auto",
    max_products: int | None = None,
    tolerance: float = 1e-8,
    test: TestRows | None = None,
    progress: Progress | None = None,
) -> Poison:
    """Find a perturbation of a few training rows that moves training toward an objective.

    Each step linearises the solution map at the present point, proposes a perturbation, retrains warm from there and
    linearises again; a step that does not help after retraining is halved. Proposals come from the inner problem
    (`minimise_estimate`: the goal at the estimated weights, over the budget), or are the corner of the budget along the
    coderivative `B^T u`, `H u = -grad_w`, which is exact where the goal is linear in mu. Goals that are a distance
    (target weights or region, predictions to match) get the whole budget from the first step; others a growing share of
    it, so that each move stays inside the reach of its linearisation. What comes back is the best poison *after
    retraining*, not the best predicted one.

    Args:
        problem: clean, at a tight minimum (see `fit`).
        objective: one of `poisonaudit.attack.OBJECTIVES`, or your own `Objective`.
        budget: which rows, how far, inside which box.
        seed: of random rows and of power iterations; equal seeds and thread counts repeat bit for bit.
        steps: most outer linearisations.
        method: "apg", "adam" or "lbfgsb" for the inner problem, "corner", or "auto": apg for distances, else corner.
        max_products: most operator products of one inner problem; None for no limit.
        tolerance: relative gradient of each warm retraining.
        test: (x, y) test rows for the predicted accuracy.
        progress: called with a message and a fraction.

    Returns:
        The poison, its history and its predicted outcome.

    Raises:
        UsageError: PA367, steps below 1; PA301, no method has that name.
    """
    if steps < 1:
        raise UsageError("PA367", f"steps is {steps}; at least one linearisation is needed. Pass steps=6.")
    if method not in _METHODS:
        raise unknown_name(str(method), _METHODS, "crafting method")
    begun = time.perf_counter()
    goal = objective.bind(problem)
    if method == "auto":
        method = "apg" if goal.is_distance else "corner"
    rows = choose_rows(problem, goal, budget, seed)
    allowed = budget.around(problem.x[rows])
    task = _Task(problem, goal, rows, allowed, tolerance, seed, method, max_products)
    current = _Point(torch.zeros_like(problem.x[rows]), problem, goal.value(problem.weights))
    history = [_entry(0, current, _Trial(current, current.value, None, True, 0, 0), 0.0, 0, begun)]
    best, reached, products, gradients = current, [current], 0, 0
    for step in range(1, steps + 1):
        if progress is not None:
            progress(f"step {step} of {steps}, objective {best.value:.4g}", (step - 1) / steps)
        started = time.perf_counter()
        aim, used = _propose(task, current, step, steps)
        for halving in range(_HALVINGS + 1):
            delta = allowed.project(current.delta + 0.5**halving * (aim - current.delta))
            trial = _advance(task, current, delta)
            used, gradients = used + trial.products, gradients + trial.gradients
            history.append(_entry(step, best, trial, allowed.used(delta), used, started))
            products, used, started = products + used, 0, time.perf_counter()
            if trial.point.value < current.value:
                break
        gained = current.value - trial.point.value
        if gained > 0:
            current = trial.point
            reached.append(current)
            best = current if current.value < best.value else best
        # Distances are worked on with the whole budget from the first step on; other goals from the middle on.
        whole = step > steps // 2 or goal.is_distance
        if whole and gained <= _ENOUGH * abs(history[0]["retrained_objective"]):
            break
    best, notes, judged = _select(task, reached)
    predicted, used = predict(problem, embed(problem, rows, best.delta), objective, test)
    if progress is not None:
        progress(f"done, objective {best.value:.4g}", 1.0)
    return Poison(
        rows=rows,
        delta=best.delta,
        predicted=predicted,
        history=tuple(history),
        budget=budget,
        objective=objective,
        weights=best.problem.weights,
        products=products + used,
        seconds=time.perf_counter() - begun,
        notes=(*_notes(task, best, history), *notes),
        gradients=gradients + judged + 2 * (products + used),
    )


def _propose(task: _Task, current: _Point, step: int, steps: int) -> tuple[Tensor, int]:
    """The perturbation that the linear model at the current point calls best, and the products it took."""
    # A share of the budget that grows with the steps keeps each move inside the reach of its linearisation; the
    # second half of the steps has the whole budget.
    share = 1.0 if task.goal.is_distance else min(1.0, 2 * step / (steps + 1))
    allowed = task.allowed if share == 1.0 else task.allowed.scaled(share)
    if task.method == "corner":
        slope = coderivative(current.problem, task.goal.gradient(current.problem.weights))
        return allowed.best_linear(-slope.value[task.rows]), slope.products
    model = EstimatedMap(current.problem, task.rows)
    # Whole steps and few entries are relaxed here; `craft` moves to the nearest admissible point.
    found = minimise_estimate(
        model,
        task.goal,
        allowed.relaxed(),
        current.delta,
        method=cast(MethodName, task.method),
        max_products=task.max_products,
        seed=task.seed,
    )
    return found.mu, found.products


def _advance(task: _Task, current: _Point, delta: Tensor) -> _Trial:
    """Predict the move to `delta` by one linear step, then retrain warm from there or from the current point."""
    change = embed(task.problem, task.rows, delta - current.delta)
    derivative = graphical_derivative(current.problem, change)
    estimate = current.problem.weights + derivative.displacement
    poisoned = current.problem.with_data(task.problem.x + embed(task.problem, task.rows, delta))
    # The estimate is only a start for training, and only where training itself would prefer it.
    better = bool(poisoned.objective(estimate) < poisoned.objective())
    fitted = fit(poisoned.at(estimate) if better else poisoned, task.tolerance, task.seed)
    point = _Point(delta, fitted.problem, task.goal.value(fitted.problem.weights))
    return _Trial(
        point, task.goal.value(estimate), derivative.phi, fitted.converged, derivative.products, fitted.gradients
    )


def _select(task: _Task, reached: list[_Point]) -> tuple[_Point, tuple[str, ...], int]:
    """The best point when training starts from the clean weights, as the owner's warm retraining does."""
    # Along the way training followed the poison step by step; a network may then sit in another minimum.
    best, notes, gradients = reached[0], [], 0
    scale = abs(best.value)
    for point in sorted(reached[1:], key=lambda each: each.value)[:_FINALISTS]:
        fitted = fit(
            task.problem.with_data(task.problem.x + embed(task.problem, task.rows, point.delta)),
            task.tolerance,
            task.seed,
        )
        gradients += fitted.gradients
        warm = _Point(point.delta, fitted.problem, task.goal.value(fitted.problem.weights))
        best = warm if warm.value < best.value else best
        if not fitted.converged:
            notes.append(f"retraining from the clean weights did not converge: {fitted.reason}")
        if warm.value <= point.value + _ENOUGH * scale:
            break
        notes.append(
            f"retraining from the clean weights reached objective {warm.value:.4g}, following the poison step by "
            f"step {point.value:.4g}: there is more than one minimum"
        )
    return best, tuple(notes), gradients


def _entry(step: int, best: _Point, trial: _Trial, budget_used: float, products: int, started: float) -> dict[str, Any]:
    """One line of the history."""
    return {
        "step": step,
        "predicted_objective": trial.predicted,
        "retrained_objective": trial.point.value,
        "phi": trial.phi,
        "budget_used": budget_used,
        "converged": trial.converged,
        "kept": trial.point.value < best.value,
        "products": products,
        "seconds": time.perf_counter() - started,
    }


def _notes(task: _Task, best: _Point, history: list[dict[str, Any]]) -> tuple[str, ...]:
    """What the reader of the result should know."""
    notes = []
    if task.goal.success(task.problem.weights):
        notes.append("the clean model already meets the objective")
    if task.allowed.outside:
        notes.append(
            f"{task.allowed.outside} of the chosen rows lie outside the box; their entries there may stay or come "
            "back, never go further out"
        )
    if not bool(best.delta.any()):
        notes.append("no perturbation in the budget improved the objective after retraining")
    failed = sum(not entry["converged"] for entry in history)
    if failed:
        notes.append(f"{failed} of {len(history) - 1} warm retrainings while crafting did not reach the tolerance")
    return tuple(notes)
