"""Retrain on the poisoned rows, warm and from fresh seeds, with a clean control on the same seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import index as index_of
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poisonaudit.arguments import finite_number
from poisonaudit.attack.objectives import Objective
from poisonaudit.attack.outcome import TestRows, outcome
from poisonaudit.errors import InputRefused, UsageError, wrong_type
from poisonaudit.owner_training import Trainer, trained_weights
from poisonaudit.problem import Problem, expect_problem
from poisonaudit.training import Progress, fit, initialise, relative_gradient
from poisonaudit.validity import STATIONARITY_LIMIT
from poisonaudit.verify.retrained import Control, Kind, Retrained, Retraining
from poisonaudit.verify.trainers import MinibatchTrainer, loose_trainer
from poisonaudit.verify.user_trainer import FileTrainer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poisonaudit.attack.poison import Poison

_KINDS: tuple[Kind, ...] = ("trainer", "tight", "loose")
# Relative gradient of tight training, at most: at a fresh start it is near 1, and what stops there was not trained.
COARSEST = 1e-3


@dataclass(frozen=True)
class Training:
    """One training to be done.

    Attributes:
        kind: how.
        seed: of the fresh start; None for a warm one.
        poisoned: on poisoned or on clean rows.
    """

    kind: Kind
    seed: int | None
    poisoned: bool

    @property
    def text(self) -> str:
        """What is done, in words."""
        if self.seed is None:
            return "retraining warm on poisoned rows" if self.poisoned else "control: clean weights polished"
        how = {"tight": "", "loose": "loose training, ", "trainer": "own training, "}[self.kind]
        return (
            f"{how}retraining seed {self.seed} on poisoned rows"
            if self.poisoned
            else (f"{how}control: seed {self.seed} on clean rows")
        )


def retrain(
    problem: Problem,
    poison: Poison,
    fresh: int | Sequence[int] = 5,
    trainer: Trainer | None = None,
    *,
    loose: Trainer | bool = True,
    tight: bool = True,
    seed: int = 0,
    objective: Objective | None = None,
    test: TestRows | None = None,
    tolerance: float = 1e-10,
    control: Control | None = None,
    progress: Progress | None = None,
) -> Retrained:
    """Train again with the poison in place and say what it did.

    Warm: `fit` from the clean weights on the poisoned rows. Fresh: new seeds `seed + 1 ... seed + fresh`, tight (by
    `fit`), loose (40 epochs of Adam) and by the user's own procedure; `.fresh` is the user's where one is given, else
    the tight. Control: the clean weights polished, and every fresh training again on clean rows. Runs that do not
    converge are kept and marked.

    Args:
        problem: clean, at the clean solution.
        poison: from `craft`.
        fresh: how many fresh seeds, or the seeds themselves.
        trainer: (problem, seed) -> weights (p,), a state dict or the trained module: the user's own training
            procedure; its weights are judged as they are, not polished. Global generators are seeded before each call
            and put back after it.
        loose: True for `loose_trainer()`, another trainer in its place, or False for none.
        tight: False leaves out the fresh fits, where the user's own training is all that can be paid for.
        seed: base of the fresh seeds.
        objective: what outcomes are judged by; default the poison's.
        test: (x, y) test rows for accuracies.
        tolerance: relative gradient of the fits, at most 1e-3.
        control: of an earlier call with the same problem, seeds and trainers, to save its training; what it lacks is
            trained.
        progress: called with a message and a fraction.

    Returns:
        All runs with their outcomes. Where the model cannot be initialised afresh and a trainer is given, tight and
        loose training from new seeds are left out, with a note.

    Raises:
        UsageError: PA314, an argument of the wrong type; PA371, bad seeds or tolerance; PA372, a control from other
            seeds or of another problem.
        InputRefused: PA124, PA125, a trainer's weights do not fit.
    """
    expect_problem(problem, "retrain")
    if not all(hasattr(poison, name) for name in ("perturbation", "objective", "predicted")):
        raise wrong_type("retrain", "poison", poison, "Pass what poisonaudit.craft returned.")
    for name, value in (("trainer", trainer), ("loose", loose)):
        if not (value is None or callable(value) or (name == "loose" and isinstance(value, bool))):
            needed = "Pass a callable (problem, seed) -> weights; only the command line takes FILE.py:train."
            raise wrong_type("retrain", name, value, needed)
    if not 0.0 < (finite_number(tolerance) or 0.0) <= COARSEST:
        raise UsageError(
            "PA371",
            f"tolerance is {tolerance!r}; tight training ends at a relative gradient of at most {COARSEST:g}. "
            "Pass 1e-10.",
        )
    seeds = _seeds(fresh, seed)
    if trainer is not None and not seeds:
        raise UsageError("PA371", "a trainer is given, but no fresh seed to train from. Pass fresh=5.")
    procedures: dict[Kind, Trainer] = {} if trainer is None else {"trainer": trainer}
    if loose is not False:
        procedures["loose"] = loose_trainer() if loose is True else loose
    plan: dict[Kind, Sequence[int]] = dict.fromkeys(procedures, seeds)
    if tight:
        plan["tight"] = seeds
    plan, notes = drawable(problem, plan)
    kept = {} if control is None else _kept(problem, control, plan)
    poisoned = problem.with_data(problem.x + poison.perturbation(problem))
    total, done = 2 + 2 * sum(map(len, plan.values())), 0

    def train(training: Training) -> Retraining:
        nonlocal done
        if progress is not None:
            progress(training.text, done / total)
        done += 1
        if training in kept:
            return kept[training]
        rows = poisoned if training.poisoned else problem
        if training.kind == "tight":
            return fitted(rows, tolerance, training.seed)
        assert training.seed is not None
        return trained(procedures[training.kind], rows, training.seed, tolerance)

    aim = poison.objective if objective is None else objective
    return retrainings(problem, plan, train, aim, poison.predicted, test, notes)


def retrainings(
    problem: Problem,
    plan: Mapping[Kind, Sequence[int]],
    train: Callable[[Training], Retraining],
    objective: Objective,
    predicted: Mapping[str, Any],
    test: TestRows | None = None,
    notes: Sequence[str] = (),
) -> Retrained:
    """Do every training of a plan, each fresh one after its control, and judge them all alike.

    Args:
        problem: clean, at the clean solution.
        plan: kind of training -> its seeds.
        train: does one training, or takes it from where it is kept.
        objective: what outcomes are judged by.
        predicted: the poison's predicted outcome.
        test: (x, y) test rows for accuracies.
        notes: what was left out, and why.

    Returns:
        All runs with their outcomes.
    """

    def judged(run: Retraining, kind: Kind, reference: Tensor | None = None) -> Retraining:
        return replace(run, outcome=outcome(problem, run.weights, objective, test, reference=reference), kind=kind)

    # The warm control first: it shows how far the clean weights were from the minimum.
    clean_warm = judged(train(Training("tight", None, False)), "tight")
    warm = judged(train(Training("tight", None, True)), "tight")
    clean: dict[Kind, list[Retraining]] = {kind: [] for kind in _KINDS}
    runs: dict[Kind, list[Retraining]] = {kind: [] for kind in _KINDS}
    # The user's own training first: what is wrong with it shows before the long fits.
    for kind in _KINDS:
        for each in plan.get(kind, ()):
            control = train(Training(kind, each, False))
            runs[kind].append(judged(train(Training(kind, each, True)), kind, control.weights))
            clean[kind].append(judged(control, kind))
    return Retrained(
        warm=warm,
        tight=tuple(runs["tight"]),
        control=Control(clean_warm, *(tuple(clean[kind]) for kind in ("tight", "loose", "trainer"))),
        predicted=predicted,
        loose=tuple(runs["loose"]),
        trainer=tuple(runs["trainer"]),
        notes=tuple(notes),
        remarks=_stood_still(problem, warm, clean_warm),
    )


def _stood_still(problem: Problem, warm: Retraining, clean: Retraining) -> tuple[str, ...]:
    """A note where warm retraining had nothing to do although the poison changed the gradient."""
    # Without any effect on the gradient there is nothing that a tighter tolerance would show.
    poisoned = warm.relative_gradient != clean.relative_gradient
    if not (warm.converged and poisoned and torch.equal(warm.weights, problem.weights)):
        return ()
    return (
        "the clean weights already meet the tolerance of retraining on the poisoned rows (relative gradient "
        f"{warm.relative_gradient:.1e}); warm retraining did not move. Retrain to a tighter tolerance",
    )


def fitted(problem: Problem, tolerance: float, seed: int | None, progress: Progress | None = None) -> Retraining:
    """One fit, warm from the problem's weights without a seed, fresh with one; its outcome still empty.

    Args:
        problem: to be trained.
        tolerance: relative gradient.
        seed: of the fresh start, or None.
        progress: called with a message and a fraction.

    Returns:
        The run.
    """
    alone = problem.without_cache()
    if seed is None:
        reached = fit(alone, tolerance, progress=progress)
    else:
        reached = fit(alone, tolerance, seed, start="fresh", progress=progress)
    return Retraining(
        reached.problem.weights,
        seed,
        reached.converged,
        reached.relative_gradient,
        reached.seconds,
        {},
        reached.reason,
    )


def trained(trainer: Trainer, problem: Problem, seed: int, tolerance: float) -> Retraining:
    """One training by loose training or by the user's own, its outcome still empty.

    Args:
        trainer: (problem, seed) -> weights (p,), a state dict or a module.
        problem: to be trained.
        seed: handed on.
        tolerance: relative gradient up to which the weights count as converged.

    Returns:
        The run.
    """
    begun = time.perf_counter()
    who = str(trainer) if isinstance(trainer, FileTrainer) else "the trainer"
    weights = trained_weights(trainer, problem, seed, who)
    seconds = time.perf_counter() - begun
    figure = relative_gradient(problem.at(weights))
    told = str(trainer) if isinstance(trainer, MinibatchTrainer | FileTrainer) else "the given trainer's weights"
    return Retraining(weights, seed, figure <= tolerance, figure, seconds, {}, told)


def drawable(problem: Problem, plan: Mapping[Kind, Sequence[int]]) -> tuple[dict[Kind, Sequence[int]], tuple[str, ...]]:
    """Leave tight and loose training out where fresh weights cannot be drawn and the user's own training can do it.

    Args:
        problem: whose model is to be initialised.
        plan: kind of training -> its seeds.

    Returns:
        The plan and a note on what was left out.
    """
    if not plan.get("trainer"):
        return dict(plan), ()
    try:
        initialise(problem, 0)
    except InputRefused as refusal:
        if refusal.code != "PA126":
            raise
        return {"trainer": plan["trainer"]}, (f"tight and loose training from new seeds: {refusal.message}",)
    return dict(plan), ()


def _seeds(fresh: int | Sequence[int], seed: int) -> list[int]:
    """The fresh seeds: never the base seed itself, which the clean model may have been trained with."""
    try:
        seeds = [seed + 1 + index for index in range(fresh)] if isinstance(fresh, int) else list(map(index_of, fresh))
    except TypeError:
        raise UsageError("PA371", f"fresh is {fresh!r}; give a number >= 0 or distinct seeds. Pass fresh=5.") from None
    if (isinstance(fresh, int) and fresh < 0) or len(set(seeds)) < len(seeds):
        raise UsageError("PA371", f"fresh is {fresh}; give a number >= 0 or distinct seeds. Pass fresh=5.")
    return seeds


def _kept(problem: Problem, control: Control, plan: Mapping[Kind, Sequence[int]]) -> dict[Training, Retraining]:
    """The runs of an earlier control that serve here."""
    if control.warm.converged and not relative_gradient(problem.at(control.warm.weights)) <= STATIONARITY_LIMIT:
        raise UsageError(
            "PA372", "the control was trained on another problem: its weights are no minimum here. Leave control out."
        )
    kept = {Training("tight", None, False): control.warm}
    for kind, seeds in plan.items():
        runs = control.runs(kind)
        if runs and [run.seed for run in runs] != list(seeds):
            raise UsageError(
                "PA372",
                f"the control was trained from seeds {[run.seed for run in runs]}, this run asks for {list(seeds)}. "
                "Pass the same seeds, or leave control out.",
            )
        kept |= {Training(kind, run.seed, False): run for run in runs}
    return kept
