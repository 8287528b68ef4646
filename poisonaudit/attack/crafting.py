"""The crafting loop: linearise, move the rows, retrain warm, linearise there again; keep the best after retraining."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from poisonaudit.attack.arguments import expect_attack
from poisonaudit.attack.budget import Budget
from poisonaudit.attack.crafting_options import refuse_bad_options, refuse_beside_trainer, refuse_other_types
from poisonaudit.attack.ensemble import (
    Aggregate,
    MemberGoal,
    over_members,
    trained_solutions,
    training_seeds,
)
from poisonaudit.attack.first_step import DAMPINGS, best_first_step
from poisonaudit.attack.history import history_entry, limit_notes
from poisonaudit.attack.objectives import Membership, Objective
from poisonaudit.attack.outcome import TestRows
from poisonaudit.attack.poison import Poison, embed
from poisonaudit.attack.prediction import predict
from poisonaudit.attack.progress import CraftState
from poisonaudit.attack.rows import choose_rows
from poisonaudit.attack.stationary_target import craft_membership
from poisonaudit.attack.steps import (
    Outer,
    Point,
    Task,
    advance,
    entry,
    from_clean_weights,
    propose,
    slope_in_inputs,
    start_of,
)
from poisonaudit.errors import UsageError, counted
from poisonaudit.owner_training import Trainer, gradients_of, trained_weights
from poisonaudit.problem import Problem
from poisonaudit.training import Progress

_HALVINGS = 4
# Share of the linear model's gain that retraining has to confirm, or the step is halved.
_SUFFICIENT = 0.25
# How many of the best steps are judged by training from the clean weights; it stops at the first that holds.
_FINALISTS = 4
# An outer step that gains less than this share of the first objective is the last one.
_ENOUGH = 1e-3
# Kernel parts of sampled members, relative to the norm of the weights.
_MEMBER_RADIUS = 0.1
# First step of "pgd", as a share of the radius; later ones fall as a cosine. Few steps must be longer to get anywhere.
_FIRST_LENGTH = 0.7
# Of H at minima, relative to its largest eigenvalue.
_DAMPING = 1e-4


def craft(
    problem: Problem,
    objective: Objective,
    budget: Budget,
    seed: int = 0,
    *,
    steps: int = 12,
    method: Literal["auto", "corner", "pgd", "apg", "adam", "lbfgsb"] = "auto",
    outer: Outer = "retrain",
    solutions: int | Sequence[Tensor] = 1,
    members: int = 0,
    aggregate: Aggregate = "mean",
    max_products: int | None = None,
    damping: float | None = None,
    tolerance: float = 1e-6,
    trainer: Trainer | None = None,
    test: TestRows | None = None,
    state: CraftState | None = None,
    on_step: Callable[[CraftState], None] | None = None,
    progress: Progress | None = None,
) -> Poison:
    """Find a perturbation of a few training rows that moves training toward an objective.

    Each step linearises the solution map at the present point, proposes a perturbation, finds the solution it leads to
    and linearises again. Three kinds of proposals: the inner problem ("apg", "adam", "lbfgsb": the goal at the
    estimated weights, over the whole budget; see `minimise_estimate`), for goals that are a distance; the corner of a
    growing share of the budget along the coderivative `B^T u`, `H u = -grad_w` ("corner"), exact where the goal is
    linear in mu; and projected steps of falling length along it ("pgd"), each from the solution that the last one led
    to, with H damped a little, for near a fold of the solution path the undamped slope points along one direction only.
    Proposals of the first two kinds of whose promise retraining confirms less than a quarter are halved. What comes
    back is the best poison *after retraining*, not the best predicted one.

    With a `trainer`, each step is trained by the owner's own procedure instead, from `solutions` fresh seeds, and
    linearised where that ends, H damped more. An owner who stops early, or at a kink, is not at a minimum: what the
    tight solution would do there says little, and the poison is worked on where training really leads.

    Set-aware crafting takes the goal over several trained solutions (`solutions`), and over sampled members of the
    solution set at each, where its kernel is not trivial (`members`).

    Args:
        problem: clean, at a tight minimum (see `fit`).
        objective: one of `poisonaudit.attack.OBJECTIVES`, or your own `Objective`.
        budget: which rows, how far, inside which box.
        seed: of random rows, of further solutions and of power iterations; equal seeds and thread counts repeat bit
            for bit.
        steps: most outer linearisations.
        method: "apg", "adam" or "lbfgsb" for the inner problem, "corner", "pgd", or "auto": apg for distances,
            else pgd.
        outer: "retrain" finds each next solution by warm retraining, "path" follows it along the move
            (`follow_path`), and retrains only where the path is lost.
        solutions: how many trained solutions are attacked together, the others trained from fresh seeds; or the weights
            (p,) of the others.
        members: members of the solution set sampled beside each solution.
        aggregate: "mean" or "worst" over solutions and members.
        max_products: most operator products of one inner problem; None for no limit.
        damping: of H in the slopes and estimates of "pgd", relative to its largest eigenvalue; their phi in the history
            is that of the damped step. None for 1e-4, and with a trainer for what makes the first step best after
            training (see `first_step`).
        tolerance: relative gradient of each warm retraining; up to 1e-6 the linearisation there is valid.
        trainer: the owner's training, (problem, seed) -> weights (p,), a state dict or a module; see `loose_trainer`.
            It takes "pgd" and no members; `weights` of the result are those of the first seed.
        test: (x, y) test rows for the predicted accuracy.
        state: of an interrupted call with the same arguments, to go on from.
        on_step: called with the state after each step.
        progress: called with a message and a fraction.

    Returns:
        The poison, its history and its predicted outcome.

    Raises:
        UsageError: PA314, an argument of the wrong type; PA367, steps below 1, members or seed below 0, damping
            outside [0, 1e6], or options that do not go with a trainer or with membership; PA301, no method, outer step
            or aggregate has that name; PA341, fewer than one solution; PA360, a radius that cannot be squared; PA385,
            no entry of a row can move in this budget.
        InputRefused: PA125, further weights of another length.
    """
    expect_attack("craft", problem, objective, budget)
    if trainer is None and damping is None:
        damping = _DAMPING
    refuse_bad_options(steps, members, damping, method, outer, aggregate, seed)
    refuse_other_types(state, on_step, progress)
    if trainer is not None:
        refuse_beside_trainer(trainer, objective, solutions, members, method, outer)
    if isinstance(objective, Membership):
        # Its residual is a function of mu alone: no retraining between steps, nothing to resume.
        if solutions != 1 or members or outer != "retrain" or method in ("corner", "pgd"):
            raise UsageError(
                "PA367",
                "membership is crafted at the target weights alone: solutions, members, outer and the methods corner "
                "and pgd do not apply to it. Leave them out.",
            )
        inner: Any = "apg" if method == "auto" else method
        limits: Any = {"steps": steps, "method": inner, "max_products": max_products, "tolerance": tolerance}
        return craft_membership(problem, objective, budget, seed, **limits, test=test, progress=progress)
    begun, remarks = time.perf_counter(), budget.remarks(problem.x)
    problem = problem.without_cache(keep="dense")
    task, products, gradients = _task(
        problem,
        objective,
        budget,
        seed,
        method,
        outer,
        solutions,
        members,
        aggregate,
        max_products,
        damping,
        tolerance,
        trainer,
        _first_length(steps),
        state,
    )
    if state is None:
        first = start_of(task)
        history = [history_entry(0, first.value, first.value, seconds=time.perf_counter() - begun)]
        reached, done, finished = [first], 0, False
    else:
        reached, history = _reached(task, state), [dict(line) for line in state.history]
        done, products, gradients, finished = state.step, state.products, state.gradients, state.finished
        begun -= state.seconds
    # Signed steps go on from wherever they led; the others only from an improvement.
    walks = task.method == "pgd"
    for step in range(done + 1, steps + 1):
        if finished:
            break
        current, best = reached[-1], min(point.value for point in reached)
        if progress is not None:
            progress(f"step {step} of {steps}, objective {best:.4g}", (step - 1) / steps)
        started = time.perf_counter()
        # A share of the budget that grows with the steps keeps each move inside the reach of its linearisation; the
        # second half of the steps has the whole budget.
        share = min(1.0, 2 * step / (steps + 1)) if task.method == "corner" and not task.is_distance else 1.0
        length = 0.5 * _first_length(steps) * (1 + math.cos(math.pi * (step - 1) / steps))
        aim, used, ended = propose(task, current, share, length)
        tried: list[Point] = []
        for halving in range(1 if walks else _HALVINGS + 1):
            delta = task.allowed.project(current.delta + 0.5**halving * (aim - current.delta))
            trial = advance(task, current, delta)
            used, gradients = used + trial.products, gradients + trial.gradients
            seconds = time.perf_counter() - started
            history.append(entry(step, trial.point.value < best, trial, task.allowed.used(delta), used, seconds, ended))
            products, used, started = products + used, 0, time.perf_counter()
            tried.append(trial.point)
            # Any gain at all is not enough: far beyond the linear model's reach small gains only zigzag.
            promised = max(0.0, current.value - trial.predicted)
            if current.value - trial.point.value > _SUFFICIENT * promised:
                break
        following = tried[-1] if walks else min(tried, key=lambda point: point.value)
        gained = current.value - following.value
        if gained > 0 or walks:
            reached.append(following)
        # Distances are worked on with the whole budget from the first step on; other goals from the middle on.
        whole = step > steps // 2 or task.is_distance
        finished = not walks and whole and gained <= _ENOUGH * abs(history[0]["retrained_objective"])
        if on_step is not None:
            spent = time.perf_counter() - begun
            on_step(_state(task, step, reached, history, products, gradients, spent, finished))
    final, notes, judged = _select(task, reached)
    predicted, used = predict(problem, embed(problem, task.rows, final.delta), objective, test)
    if progress is not None:
        progress(f"done, objective {final.value:.4g}", 1.0)
    return Poison(
        rows=task.rows,
        delta=final.delta,
        predicted=predicted,
        history=tuple(history),
        budget=budget,
        objective=objective,
        weights=final.problems[0].weights,
        products=products + used,
        seconds=time.perf_counter() - begun,
        notes=(*remarks, *_notes(task, final, history, members), *notes),
        gradients=gradients + judged + 2 * (products + used),
    )


def _first_length(steps: int) -> float:
    return max(_FIRST_LENGTH, min(1.0, 4 / (steps + 1)))


def _task(
    problem: Problem,
    objective: Objective,
    budget: Budget,
    seed: int,
    method: str,
    outer: Outer,
    solutions: int | Sequence[Tensor],
    members: int,
    aggregate: Aggregate,
    max_products: int | None,
    damping: float | None,
    tolerance: float,
    trainer: Trainer | None,
    length: float,
    state: CraftState | None,
) -> tuple[Task, int, int]:
    """What stays the same, and the products and gradients that finding it took."""
    seeds = training_seeds(solutions, seed) if trainer is not None and isinstance(solutions, int) else []
    if state is not None:
        at, gradients = [problem.at(weights.to(problem.weights)) for weights in state.weights[0]], 0
    elif trainer is not None:
        at = [problem.at(trained_weights(trainer, problem, each)) for each in seeds]
        gradients = len(at) * gradients_of(trainer)
    else:
        at, gradients = trained_solutions(problem, solutions, tolerance, seed)
    goals = [objective.bind(each) for each in at]
    if members:
        goals = [
            over_members(each, goal, members, _MEMBER_RADIUS, aggregate, seed)
            for each, goal in zip(at, goals, strict=True)
        ]
    if method == "auto":
        method = "apg" if goals[0].is_distance and trainer is None else "pgd"

    def damped(value: float) -> Task:
        chosen = value if trainer is not None else 0.0
        if state is None:
            slope: Callable[[], Tensor] = lambda: slope_in_inputs(at, goals, aggregate, chosen)[0]  # noqa: E731
            rows = choose_rows(problem, goals[0], budget, seed, slope=slope)
        else:
            rows = state.rows.to(problem.device)
        allowed = budget.around(problem.x[rows])
        return Task(
            problem, at, goals, rows, allowed, tolerance, seed, method, max_products, aggregate, outer, value, trainer,
            seeds,
        )  # fmt: skip

    if state is not None:
        return damped(state.damping), 0, 0
    if damping is not None:
        return damped(damping), 0, gradients
    task, products, spent = best_first_step([damped(value) for value in DAMPINGS], length)
    return task, products, gradients + spent


def _state(
    task: Task,
    step: int,
    reached: Sequence[Point],
    history: Sequence[dict[str, Any]],
    products: int,
    gradients: int,
    seconds: float,
    finished: bool,
) -> CraftState:
    return CraftState(
        step=step,
        rows=task.rows,
        damping=task.damping,
        deltas=torch.stack([point.delta for point in reached]),
        weights=torch.stack([torch.stack([each.weights for each in point.problems]) for point in reached]),
        values=[point.value for point in reached],
        history=list(history),
        products=products,
        gradients=gradients,
        seconds=seconds,
        finished=finished,
    )


def _reached(task: Task, state: CraftState) -> list[Point]:
    """The points of an interrupted run."""
    points = []
    for delta, weights, value in zip(state.deltas, state.weights, state.values, strict=True):
        own = delta.to(task.problem.x)
        problems = tuple(task.poisoned(own, task.problem.at(each.to(task.problem.weights))) for each in weights)
        points.append(Point(own, problems, value))
    return points


def _select(task: Task, reached: Sequence[Point]) -> tuple[Point, tuple[str, ...], int]:
    """The best point when training starts from the clean weights, as the owner's warm retraining does."""
    if task.trainer is not None:
        # It starts from its own seeds every time: each step has been judged already.
        return min(reached, key=lambda each: each.value), (), 0
    # Along the way training followed the poison step by step; a network may then sit in another minimum.
    best, notes, gradients = reached[0], [], 0
    scale = abs(best.value)
    for point in sorted(reached[1:], key=lambda each: each.value)[:_FINALISTS]:
        warm, failures, spent = from_clean_weights(task, point.delta)
        gradients += spent
        best = warm if warm.value < best.value else best
        notes += [f"retraining from the clean weights did not converge: {reason}" for reason in failures]
        if warm.value <= point.value + _ENOUGH * scale:
            break
        notes.append(
            f"retraining from the clean weights reached objective {warm.value:.4g}, following the poison step by "
            f"step {point.value:.4g}: there is more than one minimum"
        )
    return best, tuple(notes), gradients


def _notes(task: Task, best: Point, history: Sequence[dict[str, Any]], members: int) -> tuple[str, ...]:
    """What the reader of the result should know."""
    notes, limited = [], limit_notes(history, task.max_products)
    if task.goals[0].success(task.problem.weights):
        notes.append("the clean model already meets the objective")
    if task.trainer is not None:
        notes.append(
            f"crafted through the owner's training, from {counted(len(task.seeds), 'seed')}, with H damped by "
            f"{task.damping:g} of its largest eigenvalue: where training ends need not be a minimum, so each step is a "
            "direction only; the predicted outcome is that of the model's own weights"
        )
    if members and not any(isinstance(goal, MemberGoal) for goal in task.goals):
        notes.append(
            f"members is {members} and changes nothing: H has no kernel here (decay {task.problem.decay:g}), so each "
            "solution set is a single point"
        )
    if task.allowed.outside:
        notes.append(
            f"{task.allowed.outside} of the chosen rows lie outside the box; their entries there may stay or come "
            "back, never go further out"
        )
    if not bool(best.delta.any()):
        which = "that was tried" if limited else "in the budget"
        notes.append(f"no perturbation {which} improved the objective after retraining")
    notes += limited
    failed = sum(not line["converged"] for line in history)
    if failed:
        notes.append(f"{failed} of {len(history) - 1} warm retrainings while crafting did not reach the tolerance")
    return tuple(notes)
