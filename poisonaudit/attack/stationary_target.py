"""Crafting for membership: least squares on the gradient at the target weights, and what its solution is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from poisonaudit.attack.budget import Budget
from poisonaudit.attack.history import history_entry, limit_notes
from poisonaudit.attack.inner import minimise_estimate
from poisonaudit.attack.objectives.membership import WARNING, Membership
from poisonaudit.attack.outcome import TestRows
from poisonaudit.attack.perturbations import PerturbationSet
from poisonaudit.attack.poison import Poison, embed
from poisonaudit.attack.prediction import predict
from poisonaudit.attack.rows import choose_rows
from poisonaudit.errors import UsageError
from poisonaudit.operators import linearise
from poisonaudit.problem import Problem
from poisonaudit.sensitivity import solver_for
from poisonaudit.training import Progress, fit, relative_gradient
from poisonaudit.validity import STATIONARITY_LIMIT

# Of the first residual; a step that gains less is the last one.
_ENOUGH = 1e-3
_HALVINGS = 4


class ResidualMap:
    """`mu -> B mu` at fixed weights, counted from a residual: `weights` are the residual vector (p,)."""

    def __init__(self, problem: Problem, rows: Tensor, residual: Tensor) -> None:
        self.weights = residual
        self.products = 0
        self._mixed = linearise(problem, rows)

    def step(self, mu: Tensor) -> Tensor:
        """`B mu`, (p,)."""
        self.products += 1
        return self._mixed.mixed(mu.contiguous())

    def adjoint(self, slope: Tensor) -> Tensor:
        """`B^T slope`, (k, ...)."""
        self.products += 1
        return self._mixed.mixed_adjoint(slope)


@dataclass(frozen=True)
class HalfSquare:
    """`1/2 |r|^2` of a residual r (p,), as a goal of the inner problem."""

    convex = True

    def value(self, weights: Tensor) -> float:
        """`1/2 |r|^2`."""
        return 0.5 * float(weights.square().sum())

    def gradient(self, weights: Tensor) -> Tensor:
        """The residual itself."""
        return weights


def craft_membership(
    problem: Problem,
    objective: Membership,
    budget: Budget,
    seed: int = 0,
    *,
    steps: int = 6,
    method: Literal["apg", "adam", "lbfgsb"] = "apg",
    max_products: int | None = None,
    tolerance: float = 1e-6,
    test: TestRows | None = None,
    progress: Progress | None = None,
) -> Poison:
    """Minimise `1/2 |R(x + mu, w_t)|^2` over the budget by Gauss-Newton steps, each convex and without an inverse.

    `predicted["membership"]` says how near w_t came to being a solution and what that is worth: `residual_ratio`
    (`|R(x + mu, w_t)| / |R(x, w_t)|`), `first_order_lower_bound` (no poison in the budget brings `|R + H v + B mu|`,
    relative to its value at mu = 0, below it on these rows, R, H and B at the clean weights: a value above 0 certifies
    that none makes w_t stationary to first order),
    `lowest_curvature` (smallest over largest eigenvalue of H at w_t with the poison; negative at a saddle), and `drift`
    (where training *started at w_t* ends, as a share of `|w_t - wbar|`).

    Args:
        problem: clean, at a tight minimum.
        objective: the target.
        budget: which rows, how far, inside which box.
        seed: of random rows, power iterations and retraining.
        steps: most linearisations.
        method: of the inner problem.
        max_products: most products of one inner problem.
        tolerance: relative gradient of the training started at w_t.
        test: (x, y) test rows for the predicted accuracy.
        progress: called with a message and a fraction.

    Returns:
        The poison; its prediction of what training does is that of any other poison. Its weights are where training
        from the clean weights ends.

    Raises:
        UsageError: PA364, the target is the model itself or solves the clean problem already; PA385, no entry of a row
            can move in this budget.
    """
    begun = time.perf_counter()
    remarks = budget.remarks(problem.x)
    goal = objective.bind(problem)
    target = problem.at(goal.target)
    if relative_gradient(target) < STATIONARITY_LIMIT:
        raise UsageError(
            "PA364",
            "the target weights solve the clean problem already, without any poison. Pass others to be reached.",
        )
    slope = target.gradient()
    rows = choose_rows(problem, goal, budget, seed, slope=lambda: linearise(target).mixed_adjoint(slope))
    allowed = budget.around(problem.x[rows])
    half = HalfSquare()
    delta, residual, at, products = torch.zeros_like(problem.x[rows]), slope, target, 1
    clean = half.value(residual)
    history = [history_entry(0, clean, clean, seconds=time.perf_counter() - begun)]
    for step in range(1, steps + 1):
        started, before = time.perf_counter(), half.value(residual)
        if progress is not None:
            ratio = math.sqrt(before / history[0]["retrained_objective"])
            progress(f"step {step} of {steps}, residual ratio {ratio:.3g}", (step - 1) / steps)
        model = ResidualMap(at, rows, residual)
        found = minimise_estimate(
            model, half, allowed.relaxed(), delta, method=method, max_products=max_products, seed=seed
        )
        for halving in range(_HALVINGS + 1):
            trial = allowed.project(delta + 0.5**halving * (found.mu - delta))
            there = target.with_data(problem.x + embed(problem, rows, trial))
            reached = there.gradient()
            if half.value(reached) < before:
                break
        gained = before - half.value(reached)
        products += found.products
        if gained > 0:
            delta, residual, at = trial, reached, there
        history.append(
            history_entry(
                step,
                found.value,
                half.value(reached),
                used=allowed.used(trial),
                kept=gained > 0,
                products=found.products,
                seconds=time.perf_counter() - started,
                ended=found.ended,
            )
        )
        if gained <= _ENOUGH * history[0]["retrained_objective"]:
            break
    facts, gradients, used = _worth(
        problem, goal.target, rows, delta, allowed.relaxed(), residual, slope, tolerance, seed
    )
    predicted, more = predict(problem, embed(problem, rows, delta), objective, test)
    products += used + more
    warm = fit(problem.with_data(problem.x + embed(problem, rows, delta)), tolerance, seed, dense_test=False)
    if progress is not None:
        progress(f"done, residual ratio {facts['residual_ratio']:.3g}", 1.0)
    return Poison(
        rows=rows,
        delta=delta,
        predicted={**predicted, "residual_ratio": facts["residual_ratio"], "membership": facts},
        history=tuple(history),
        budget=budget,
        objective=objective,
        weights=warm.problem.weights,
        products=products,
        seconds=time.perf_counter() - begun,
        notes=(WARNING, *remarks, *_notes(facts), *limit_notes(history, max_products)),
        gradients=gradients + warm.gradients + 2 * products,
    )


def _worth(
    problem: Problem,
    weights: Tensor,
    rows: Tensor,
    delta: Tensor,
    allowed: PerturbationSet,
    residual: Tensor,
    clean_residual: Tensor,
    tolerance: float,
    seed: int,
) -> tuple[dict[str, Any], int, int]:
    """What the poison makes of the target: the certificate, the curvature and the drift; gradients and products."""
    offset = weights - problem.weights
    kept = linearise(problem)
    image = kept.hessian(offset)
    first = minimise_estimate(
        ResidualMap(problem, rows, image + kept.gradient), HalfSquare(), allowed, torch.zeros_like(delta), seed=seed
    )
    scale = 0.5 * float((image + kept.gradient).square().sum())
    bound = None if first.lower_bound is None else math.sqrt(max(first.lower_bound, 0.0) / scale)
    poisoned = problem.with_data(problem.x + embed(problem, rows, delta)).at(weights)
    curvature = solver_for(poisoned)
    started = fit(poisoned, tolerance, seed)
    length = float(offset.norm())
    facts = {
        "residual_ratio": float(residual.norm() / clean_residual.norm()),
        "first_order_residual_ratio": math.sqrt(first.value / scale),
        "first_order_lower_bound": bound,
        "lowest_curvature": curvature.smallest / curvature.largest,
        "drift": float((started.problem.weights - weights).norm()) / length,
        "drift_converged": started.converged,
        "warning": WARNING,
    }
    return facts, started.gradients, first.products + curvature.products + 1


def _notes(facts: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    bound = facts["first_order_lower_bound"]
    if bound is not None and bound > _ENOUGH:
        notes.append(
            "to first order at the clean weights no poison in this budget on these rows makes the target stationary: "
            f"at least {bound:.3g} of H v is left; the true residual came down to {facts['residual_ratio']:.3g}"
        )
    if facts["lowest_curvature"] < 0:
        notes.append("with the poison the target is a saddle: the Hessian there has a negative eigenvalue")
    notes.append(
        f"training started at the target ended {facts['drift']:.3g} times the distance |w_t - wbar| away from it"
    )
    return tuple(notes)
