"""One outer step of crafting: propose a perturbation on the linear model, advance to the solution it leads to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from poisonaudit.attack.ensemble import Aggregate, JointGoal, JointMap, gathered, shares
from poisonaudit.attack.history import history_entry
from poisonaudit.attack.inner import EstimatedMap, MethodName, minimise_estimate
from poisonaudit.attack.objectives import Goal
from poisonaudit.attack.perturbations import PerturbationSet
from poisonaudit.attack.poison import embed
from poisonaudit.operators import linearise
from poisonaudit.owner_training import Trainer, gradients_of, trained_weights
from poisonaudit.problem import Problem
from poisonaudit.sensitivity import follow_path, graphical_derivative, solver_for
from poisonaudit.sensitivity.curvature import Curvature
from poisonaudit.training import fit

Outer = Literal["retrain", "path"]
# Up to here a dense factor is cheaper than the products of one damped solve.
_FEW_WEIGHTS = 700
# Relative residual of damped solves: their direction is all that is used.
_ACCURACY = 1e-4


@dataclass(frozen=True, eq=False)
class Task:
    """What stays the same over the whole run.

    Attributes:
        problem: clean; its inputs are what perturbations are added to.
        solutions: the clean problem at each solution that is attacked, the model's own first.
        goals: the objective bound at each.
        rows: positions (k,).
        allowed: admissible perturbations of those rows.
        tolerance: relative gradient of warm retraining.
        seed: of retraining and of power iterations.
        method: how the inner problem is solved.
        max_products: most products of one inner problem.
        aggregate: how the goals of several solutions are taken together.
        outer: how the next solution is found.
        damping: of the solves of method "pgd", relative to the largest curvature.
        trainer: the owner's own training, where it takes the place of tight retraining.
        seeds: what it is called with at each solution.
    """

    problem: Problem
    solutions: Sequence[Problem]
    goals: Sequence[Goal]
    rows: Tensor
    allowed: PerturbationSet
    tolerance: float
    seed: int
    method: str
    max_products: int | None
    aggregate: Aggregate
    outer: Outer
    damping: float
    trainer: Trainer | None = None
    seeds: Sequence[int] = ()

    @property
    def is_distance(self) -> bool:
        """The goal ends at 0 (see `Goal`)."""
        return self.goals[0].is_distance

    def poisoned(self, delta: Tensor, at: Problem) -> Problem:
        """The poisoned problem at the weights of `at`."""
        return at.with_data(self.problem.x + embed(self.problem, self.rows, delta))


@dataclass(frozen=True, eq=False)
class Point:
    """A poison on the rows and the solutions that were reached with it.

    Attributes:
        delta: (k, ...).
        problems: poisoned, at each solution.
        value: the goals there, taken together.
    """

    delta: Tensor
    problems: Sequence[Problem]
    value: float


@dataclass(frozen=True, eq=False)
class Trial:
    """One move, predicted to first order and retrained.

    Attributes:
        point: where it led.
        predicted: the goal at the linear estimate.
        phi: largest over the solutions; None where nothing moved, and where the owner's training stops short of a
            minimum.
        converged: every retraining reached the tolerance.
        products: used for the estimate.
        gradients: used by retraining.
    """

    point: Point
    predicted: float
    phi: float | None
    converged: bool
    products: int
    gradients: int


def start_of(task: Task) -> Point:
    """The clean solutions."""
    values = [goal.value(each.weights) for goal, each in zip(task.goals, task.solutions, strict=True)]
    return Point(torch.zeros_like(task.allowed.lower), task.solutions, gathered(values, task.aggregate))


def slope_in_inputs(
    problems: Sequence[Problem], goals: Sequence[Goal], aggregate: Aggregate, damping: float = 0.0
) -> tuple[Tensor, int]:
    """Gradient of the goals, taken together, in all inputs: `B^T u`, `H u = -grad_w` at each solution.

    Args:
        problems: at each solution.
        goals: bound at each.
        aggregate: "mean" or "worst".
        damping: of H, relative to its largest eigenvalue.

    Returns:
        A tensor like the inputs, and the products used.
    """
    values = [goal.value(each.weights) for goal, each in zip(goals, problems, strict=True)]
    total, products = torch.zeros_like(problems[0].x), 0
    for share, goal, each in zip(shares(values, aggregate), goals, problems, strict=True):
        if share:
            solver = _solver(each, damping)
            before = solver.products
            adjoint = solver.inverse(-share * goal.gradient(each.weights))
            total = total + linearise(each).mixed_adjoint(adjoint)
            products += solver.products - before + 1
    return total, products


def propose(task: Task, current: Point, share: float, length: float) -> tuple[Tensor, int, str | None]:
    """The perturbation that the linear model at the current point calls best.

    Args:
        task: what stays the same.
        current: linearised here.
        share: of the budget that may be used.
        length: of a step of "pgd", as a share of the radius.

    Returns:
        The total perturbation of the rows (k, ...), and operator products.
    """
    allowed = task.allowed if share == 1.0 else task.allowed.scaled(share)
    if task.method == "corner":
        slope, products = slope_in_inputs(current.problems, task.goals, task.aggregate)
        return allowed.best_linear(-slope[task.rows]), products, None
    if task.method == "pgd":
        slope, products = slope_in_inputs(current.problems, task.goals, task.aggregate, task.damping)
        return _projected_step(allowed, current.delta, -slope[task.rows], length), products, None
    several = len(task.goals) > 1
    # Whole steps and few entries are relaxed here; the caller moves to the nearest admissible point.
    found = minimise_estimate(
        JointMap(current.problems, task.rows) if several else EstimatedMap(current.problems[0], task.rows),
        JointGoal(task.goals, task.aggregate) if several else task.goals[0],
        allowed.relaxed(),
        current.delta,
        method=cast(MethodName, task.method),
        max_products=task.max_products,
        seed=task.seed,
    )
    return found.mu, found.products, found.ended


def _projected_step(allowed: PerturbationSet, delta: Tensor, direction: Tensor, length: float) -> Tensor:
    """One step of "pgd" from `delta`; `length` as a share of the radius."""
    if allowed.norm == "l1":
        # The steepest move is a single entry, which soon stands at its limit: walk toward the best point of the whole
        # set instead, which has as many entries as the set allows (Frank and Wolfe, 1956).
        return delta + length * (allowed.best_linear(direction) - delta)
    relaxed = allowed.relaxed()
    low, high = relaxed.limits()
    # What stands at its limit already takes no share of the step.
    stuck = ((direction > 0) & (delta >= high)) | ((direction < 0) & (delta <= low))
    # Few entries are chosen by slope; the caller keeps those that went furthest.
    moving = allowed if allowed.norm == "l0" else relaxed
    step = moving.step_along(direction.masked_fill(stuck, 0.0), length)
    return (
        torch.minimum(torch.maximum(delta + step, low), high) if allowed.norm == "l0" else relaxed.project(delta + step)
    )


def advance(task: Task, current: Point, delta: Tensor) -> Trial:
    """Predict the move to `delta` by one linear step, then go to the solutions it leads to.

    Args:
        task: what stays the same; `outer` "retrain" fits warm, "path" follows the solution along the move and fits
            only where the path is lost; a `trainer` takes the place of both.
        current: where the move starts.
        delta: total perturbation of the rows.

    Returns:
        The trial.
    """
    change = embed(task.problem, task.rows, delta - current.delta)
    reached, predicted, values = [], [], []
    phi: float | None = None
    converged, products, gradients = True, 0, 0
    for index, (goal, here) in enumerate(zip(task.goals, current.problems, strict=True)):
        displacement, error, used = _linear_step(task, here, change)
        products += used
        phi = error if phi is None else max(phi, error or 0.0)
        estimate = here.weights + displacement
        there, close, spent = _led_to(task, index, here, estimate, delta, change)
        converged, gradients = converged and close, gradients + spent
        reached.append(there)
        predicted.append(goal.value(estimate))
        values.append(goal.value(there.weights))
    point = Point(delta, tuple(reached), gathered(values, task.aggregate))
    return Trial(point, gathered(predicted, task.aggregate), phi, converged, products, gradients)


def _led_to(
    task: Task, index: int, here: Problem, estimate: Tensor, delta: Tensor, change: Tensor
) -> tuple[Problem, bool, int]:
    """Where one solution ends on the poisoned rows, whether training reached its tolerance, and its gradients."""
    poisoned = task.poisoned(delta, here)
    if task.trainer is not None:
        there = poisoned.at(trained_weights(task.trainer, poisoned, task.seeds[index]))
        return there, True, gradients_of(task.trainer)
    followed = follow_path(here, change) if task.outer == "path" else None
    if followed is not None and followed.converged:
        return poisoned.at(followed.weights), True, 0
    # The estimate is only a start for training, and only where training itself would prefer it.
    better = bool(poisoned.objective(estimate) < poisoned.objective())
    fitted = fit(poisoned.at(estimate) if better else poisoned, task.tolerance, task.seed, dense_test=False)
    return fitted.problem, fitted.converged, fitted.gradients


def _solver(at: Problem, damping: float) -> Curvature:
    """H itself or, damped, products only where the dense matrix would cost more than the step is worth."""
    method = "lanczos" if damping and at.size > _FEW_WEIGHTS else "auto"
    return solver_for(at, damping=damping, method=method, accuracy=_ACCURACY if method == "lanczos" else None)


def _linear_step(task: Task, here: Problem, change: Tensor) -> tuple[Tensor, float | None, int]:
    """Displacement of one linear step, its phi, and the products used; damped for "pgd" as its slopes are."""
    if task.method != "pgd" or task.damping == 0.0:
        derivative = graphical_derivative(here, change)
        return derivative.displacement, derivative.phi, derivative.products
    solver = _solver(here, task.damping)
    before = solver.products
    moved = linearise(here, task.rows).mixed(change[task.rows])
    displacement = -solver.inverse(moved)
    length = float(displacement.norm())
    phi = None
    # Without a minimum there is no solution map that a residual could be measured by.
    if length > 0 and task.trainer is None:
        beyond = here.gradient(here.weights + displacement, here.x + change) - linearise(here).gradient
        # The damping's own share of the residual is no error of the linear model.
        phi = float(solver.inverse(beyond + task.damping * solver.largest * displacement).norm()) / length
    return displacement, phi, solver.products - before + 2


def from_clean_weights(task: Task, delta: Tensor) -> tuple[Point, list[str], int]:
    """Where training from the clean solutions ends, as the owner's warm retraining does.

    Args:
        task: what stays the same.
        delta: total perturbation of the rows.

    Returns:
        The point, why fits did not converge, and the gradients used.
    """
    fits = [fit(task.poisoned(delta, each), task.tolerance, task.seed, dense_test=False) for each in task.solutions]
    values = [goal.value(fitted.problem.weights) for goal, fitted in zip(task.goals, fits, strict=True)]
    point = Point(delta, tuple(fitted.problem for fitted in fits), gathered(values, task.aggregate))
    failures = [fitted.reason for fitted in fits if not fitted.converged]
    return point, failures, sum(fitted.gradients for fitted in fits)


def entry(
    step: int, kept: bool, trial: Trial, used: float, products: int, seconds: float, ended: str | None
) -> dict[str, Any]:
    """One line of the history."""
    return history_entry(
        step,
        trial.predicted,
        trial.point.value,
        phi=trial.phi,
        used=used,
        converged=trial.converged,
        kept=kept,
        products=products,
        seconds=seconds,
        ended=ended,
    )
