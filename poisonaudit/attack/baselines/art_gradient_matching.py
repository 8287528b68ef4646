"""`GradientMatchingAttack` of the Adversarial Robustness Toolbox, on exactly our rows and inside our budget.

Geiping et al., ICLR 2021, as ART 1.20.1 implements it: `tanh` keeps entries within epsilon, signed Adam with rate 0.1,
restarts drawn from global random states (seeded here, and put back).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from poisonaudit.art_estimator import art_classifier
from poisonaudit.attack.baselines.art_support import (
    admissible,
    as_numpy,
    hull,
    no_flip,
    no_plain_radius,
    other_classes,
    run_art,
    targets_of,
    without_workers,
)
from poisonaudit.attack.baselines.base import GRADIENT, GRADIENT_OF_GRADIENT, begin, refused
from poisonaudit.attack.baselines.gradient_matching import matching_loss
from poisonaudit.attack.baselines.options import refuse_bad_options
from poisonaudit.attack.budget import Budget
from poisonaudit.attack.objectives import FlipPrediction, FlipPredictions, Objective
from poisonaudit.attack.poison import Poison
from poisonaudit.losses import class_labels
from poisonaudit.problem import Problem
from poisonaudit.training import Progress

# ART's default schedule as shares of its 250 steps: rates 1e-1 .. 1e-4 after 100, 150, 200, 220.
_RATES, _SHARES = [1e-1, 1e-2, 1e-3, 1e-4], (100 / 250, 150 / 250, 200 / 250, 220 / 250)


def why_not(problem: Problem, objective: Objective, budget: Budget) -> str:
    """Why ART's gradient matching does not apply, "" where it does."""
    reason = no_flip(problem, objective) or no_plain_radius(budget)
    if not reason and not (problem.loss == "cross_entropy" and not problem.y.is_floating_point()):
        return "ART's gradient matching takes the cross-entropy with integer labels, the problem has another loss"
    return reason


def art_gradient_matching(
    problem: Problem,
    objective: Objective,
    budget: Budget,
    rows: Tensor | Sequence[int],
    seed: int = 0,
    *,
    steps: int = 250,
    progress: Progress | None = None,
    restarts: int = 4,
) -> Poison:
    """Run ART's gradient matching with the given rows as its whole training set, so that it can choose no others.

    ART poisons only rows whose label is a wanted class; the others come back untouched, and a note counts them.

    Args:
        problem: clean, cross-entropy with integer labels.
        objective: a flip, or several.
        budget: l_inf without scale.
        rows: positions (k,), some of them of a wanted class.
        seed: of ART's draws.
        steps: of each restart (`max_epochs`); its rates fall after the same shares as by default.
        progress: called at start and end; ART reports nothing between.
        restarts: `max_trials`, 8 by default in ART.

    Returns:
        The poison; the objective of the history is `1 - cos` over the rows that ART poisons, before and after.

    Raises:
        InputRefused: PA281, it does not apply, no row is of a wanted class, or ART fails.
        UsageError: PA304, restarts below 1; PA361, PA363 or PA367 for rows and steps.
    """
    refuse_bad_options("art_gradient_matching", restarts=restarts)
    start = begin("art_gradient_matching", problem, objective, budget, rows, steps, why_not(problem, objective, budget))
    targets, classes = targets_of(problem, objective), class_labels(problem.y)
    assert targets is not None and classes is not None
    fits, notes = other_classes(start, targets.labels)
    if not bool(fits.any()):
        raise refused(start.name, "none of the rows is of the wanted class, and ART poisons no others")
    if notes:
        notes = [f"{notes[0]}; ART leaves them untouched"]
    if progress is not None:
        progress(f"ART gradient matching: {restarts} restarts of {steps} steps", 0.0)

    def work() -> object:
        from art.attacks.poisoning import GradientMatchingAttack

        # ART moves its tensors to a GPU whenever torch sees one, so the classifier has to be there too.
        limits = hull(problem, budget)
        model = problem.module().float().requires_grad_(True)
        shape = tuple(problem.x.shape[1:])
        classifier = art_classifier(model, shape, targets.classes, None, device_type="gpu")
        attack = GradientMatchingAttack(
            classifier,
            percent_poison=1.0,
            epsilon=float(budget.radius),
            max_trials=restarts,
            max_epochs=steps,
            learning_rate_schedule=(_RATES, [max(1, round(share * steps)) for share in _SHARES]),
            batch_size=len(start.rows),
            clip_values=limits,
            verbose=0,
        )
        labels = classes[start.rows].cpu().numpy()
        with without_workers():
            return attack.poison(as_numpy(targets.x), targets.labels.cpu().numpy(), as_numpy(start.x), labels)[0]

    delta, more = admissible(start, run_art(start, seed, work))
    if progress is not None:
        progress("ART gradient matching: done", 1.0)
    assert isinstance(objective, FlipPrediction | FlipPredictions)
    aim = dataclasses.replace(objective, surrogate="cross_entropy").bind(problem).gradient(problem.weights)
    history = []
    for step, mu in ((0, torch.zeros_like(delta)), (steps, delta)):
        loss = float(matching_loss(problem, start.x[fits], start.y[fits], aim, mu[fits])[0])
        history.append({"step": step, "objective": loss, "similarity": 1.0 - loss, "seconds": start.seconds()})
    passes = float(fits.double().mean()) * start.share(GRADIENT + GRADIENT_OF_GRADIENT)
    gradients = 3 + restarts * ((steps + 1) * passes + len(targets.x) / problem.rows)
    return start.poison(delta, gradients, history, notes=(*notes, *more))
