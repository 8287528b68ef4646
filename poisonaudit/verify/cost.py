"""Search for the smallest radius, or number of rows, at which retraining confirms an attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from poisonaudit.attack import Budget, craft
from poisonaudit.attack.arguments import expect_attack
from poisonaudit.attack.objectives import Objective
from poisonaudit.errors import UsageError
from poisonaudit.owner_training import Trainer
from poisonaudit.problem import Problem
from poisonaudit.training import Progress
from poisonaudit.verify.cost_result import CostTrial, Over, VerifiedCost, judge_trial
from poisonaudit.verify.cost_search import Search, checked_search
from poisonaudit.verify.retrained import Control
from poisonaudit.verify.retraining import retrain


def verified_cost(
    problem: Problem,
    objective: Objective,
    budget: Budget,
    *,
    over: Over = "radius",
    low: float | None = None,
    high: float | None = None,
    fresh: int | Sequence[int] = 3,
    need: int | None = None,
    precision: float | None = None,
    steps: int = 12,
    method: Literal["auto", "corner", "apg", "adam", "lbfgsb"] = "auto",
    max_products: int | None = None,
    crafting: Mapping[str, Any] | None = None,
    seed: int = 0,
    trainer: Trainer | None = None,
    tolerance: float = 1e-10,
    control: Control | None = None,
    most_trials: int = 40,
    unit: str | None = None,
    already: Sequence[CostTrial] = (),
    store: Callable[[CostTrial], None] | None = None,
    progress: Progress | None = None,
) -> VerifiedCost:
    """Smallest radius, or number of rows, at which the attack succeeds after retraining, by bisection over trials.

    Every trial crafts a poison in its budget and retrains on it from fresh seeds. It succeeds when at least `need` of
    them reach the objective while the clean control of the same seed does not. The prediction decides nothing. Controls
    do not depend on the budget: they are trained once. See `Search` for the order of the trials.

    Args:
        problem: clean, at a tight minimum.
        objective: one with a success criterion.
        budget: all that is not searched over; its own radius or number of rows is where a search without `high` begins.
        over: "radius" or "rows".
        low: smallest budget to try; None for no limit.
        high: largest budget to try; None to double until one succeeds, up to all rows, to what the box allows, or to
            1,024 times the first.
        fresh: how many fresh seeds, or the seeds themselves.
        need: how many of them have to succeed; None for most.
        precision: width of the last bracket relative to its upper end: default 0.1 for radii, 0 (exact) for rows.
        steps: most outer linearisations of each crafting.
        method: of crafting, see `craft`.
        max_products: of crafting, see `craft`.
        crafting: further options of `craft`, e.g. {"outer": "path", "solutions": 3}.
        seed: of crafting, and base of the fresh seeds.
        trainer: the user's own procedure, see `retrain`.
        tolerance: relative gradient of the retrainings.
        control: of an earlier retraining with the same seeds and trainer.
        most_trials: the search stops there, and says so.
        unit: of the budget, in words.
        already: trials of an interrupted search with the same arguments; those outside low..high are left out.
        store: called with each new trial, to keep it.
        progress: called with a message and a fraction.

    Returns:
        The cost with its bracket and all trials. It is an upper bound: a better attack could need less.

    Raises:
        UsageError: PA314, an argument of the wrong type; PA345, the objective defines no success; PA346, range, need,
            precision or number of trials do not fit; PA301, no such `over`.
    """
    expect_attack("verified_cost", problem, objective, budget)
    count = fresh if isinstance(fresh, int) else len(fresh)
    need = count // 2 + 1 if need is None else need
    search = checked_search(problem, budget, over, low, high, precision)
    if not 1 <= need <= count or most_trials < 1:
        raise UsageError(
            "PA346",
            f"{need} of {count} fresh runs are to succeed in at most {most_trials} trials. "
            "Pass fresh=3, need=2 and most_trials >= 1.",
        )
    met = objective.bind(problem).success(problem.weights)
    if met is None:
        raise UsageError(
            "PA345", "the objective does not say when it is reached, so no cost can be verified. Give it success_at."
        )
    kept = () if met else (trial for trial in already if _inside(trial.amount, low, high))
    trials = sorted(kept, key=lambda trial: trial.amount)
    stop = "the clean model already meets the objective" if met else _hopeless(trials, need)
    # Radii shorter than every whole step, or a box without room: nothing can move, so there is nothing to train.
    still: list[float] = []
    while not stop:
        won, lost = _by_result(trials)
        amount = search.next(won, [*lost, *still])
        if amount is None:
            break
        if len(trials) >= most_trials:
            stop = f"stopped after {len(trials)} trials, before the bracket was as narrow as asked"
            break
        tried = _with_amount(budget, over, amount)
        if not tried.moves(problem.x):
            still.append(amount)
            continue
        # Nothing that an earlier trial left behind, so that a resumed search repeats the same bits.
        clean = problem.at(problem.weights)
        clean.cache.clear()
        saying = _prefixed(progress, f"trial {len(trials) + 1}, {over} {amount:.4g}")
        limits: Any = {"steps": steps, "method": method, "max_products": max_products, **(crafting or {})}
        poison = craft(clean, objective, tried, seed, **limits, progress=saying)
        clean.cache.clear()
        retrained = retrain(
            clean,
            poison,
            fresh,
            trainer,
            loose=False,
            tight=trainer is None,
            seed=seed,
            tolerance=tolerance,
            control=control,
            progress=saying,
        )
        control = retrained.control
        trial = judge_trial(amount, poison, retrained, need)
        trials = sorted([*trials, trial], key=lambda each: each.amount)
        if store is not None:
            store(trial)
        stop = _hopeless(trials, need)
    return _result(search, trials, still, unit or _unit(over), f"{need} of {count}", stop)


def _result(
    search: Search, trials: Sequence[CostTrial], still: Sequence[float], unit: str, share: str, stop: str
) -> VerifiedCost:
    won, lost = _by_result(trials)
    lost += still
    value = min(won, default=None)
    lower = max((amount for amount in lost if value is None or amount < value), default=0)
    monotone = not any(failed > reached for failed in lost for reached in won)
    notes = []
    if value is None:
        notes.append(stop or f"no {search.over} up to {lower:.6g}, {search.end()}, succeeded")
    else:
        notes.append("an upper bound of the true minimal cost: a better attack could need less")
        notes.append(f"success means that {share} fresh seeds reach the objective and their clean controls do not")
        if search.low is not None and value <= search.low:
            notes.append("the smallest budget asked for succeeded, so the cost may lie below it")
        if stop:
            notes.append(stop)
    if still:
        notes.append(f"up to {max(still):.6g} no entry of a row can move (whole steps, box), so that was not trained")
    if not monotone:
        notes.append("a smaller budget succeeded where a larger one failed: the attack is not monotone in its budget")
    loose = sum(trial.not_converged for trial in trials)
    if loose:
        notes.append(f"{loose} of {sum(trial.rate.trials for trial in trials)} retrainings did not converge")
    return VerifiedCost(
        over=search.over,
        value=value,
        lower=lower,
        upper=value,
        unit=unit,
        trials=tuple(trials),
        monotone=monotone,
        predicted=min((each.amount for each in trials if each.predicted and each.predicted_valid), default=None),
        reason="; ".join(notes),
        seconds=sum(trial.crafting_seconds + trial.retraining_seconds for trial in trials),
    )


def _with_amount(budget: Budget, over: Over, amount: float) -> Budget:
    if over == "rows":
        return dataclasses.replace(budget, rows=int(amount), share=None)
    return dataclasses.replace(budget, radius=amount)


def _inside(amount: float, low: float | None, high: float | None) -> bool:
    return (low is None or amount >= low) and (high is None or amount <= high)


def _by_result(trials: Sequence[CostTrial]) -> tuple[list[float], list[float]]:
    """Budgets that succeeded, and budgets that failed."""
    return [each.amount for each in trials if each.succeeded], [each.amount for each in trials if not each.succeeded]


def _hopeless(trials: Sequence[CostTrial], need: int) -> str:
    """Why no budget can succeed: too many controls meet the objective without any poison."""
    if not trials or trials[0].rate.trials - trials[0].controls >= need:
        return ""
    first = trials[0]
    return (
        f"{first.controls} of {first.rate.trials} clean controls meet the objective without any poison, so fewer than "
        f"{need} runs can owe it to the poison"
    )


def _unit(over: Over) -> str:
    return "training rows" if over == "rows" else "input units"


def _prefixed(progress: Progress | None, text: str) -> Progress | None:
    if progress is None:
        return None
    return lambda message, fraction: progress(f"{text}: {message}", fraction)
