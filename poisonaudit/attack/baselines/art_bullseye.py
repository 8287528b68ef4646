"""`BullseyePolytopeAttackPyTorch` of the Adversarial Robustness Toolbox on the last hidden layer, inside our budget.

Aghakhani, Meng, Wang, Kruegel and Vigna, "Bullseye Polytope: A Scalable Clean-Label Poisoning Attack with Improved
Transferability", EuroS&P 2021. ART 1.20.1 never looks at the target (see `CentreClassifier`): its optimiser is run here
on the loss of the paper, unless it is asked for as shipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poisonaudit.art_estimator import art_classifier
from poisonaudit.attack.baselines.art_support import (
    admissible,
    as_numpy,
    hull,
    no_features,
    no_flip,
    no_plain_radius,
    other_classes,
    run_art,
    split_at_features,
    targets_of,
)
from poisonaudit.attack.baselines.base import GRADIENT, begin
from poisonaudit.attack.baselines.options import refuse_bad_options
from poisonaudit.attack.budget import Budget
from poisonaudit.attack.objectives import Objective
from poisonaudit.attack.poison import Poison
from poisonaudit.problem import Problem
from poisonaudit.training import Progress


def why_not(problem: Problem, objective: Objective, budget: Budget) -> str:
    """Why ART's Bullseye Polytope does not apply, "" where it does."""
    reason = no_flip(problem, objective) or no_plain_radius(budget)
    if reason:
        return reason
    targets = targets_of(problem, objective)
    if targets is not None and len(targets.labels.unique()) > 1:
        return "Bullseye Polytope has one wanted class for all targets, the objective has several"
    return no_features(problem)


def art_bullseye(
    problem: Problem,
    objective: Objective,
    budget: Budget,
    rows: Tensor | Sequence[int],
    seed: int = 0,
    *,
    steps: int = 1000,
    progress: Progress | None = None,
    learning_rate: float = 4e-2,
    as_shipped: bool = False,
) -> Poison:
    """Put the target's features in the middle of the poisons': minimise `|mean_k phi(x_k + mu_k) - phi(t)| / |phi(t)|`.

    Args:
        problem: clean; its model ends in a Linear layer with a layer before it.
        objective: a flip, or several to one class; the features of several targets are averaged.
        budget: l_inf without scale.
        rows: positions (k,); the method means them to be of the wanted class, a note counts the others.
        seed: nothing is drawn; taken so that all baselines can be called alike.
        steps: of ART's Adam (`max_iter`, 4,000 by default in ART).
        progress: called at start and end; ART reports nothing between.
        learning_rate: as ART's default, for inputs in [0, 1].
        as_shipped: let ART 1.20.1 take what it takes for the target's features.

    Returns:
        The poison; the objective of the history is the loss above, before and after.

    Raises:
        InputRefused: PA281, it does not apply, or ART fails.
        UsageError: PA304, a rate that is not above 0; PA361, PA363 or PA367 for rows and steps.
    """
    refuse_bad_options("art_bullseye", learning_rate=learning_rate, as_shipped=as_shipped)
    start = begin("art_bullseye", problem, objective, budget, rows, steps, why_not(problem, objective, budget))
    targets, split = targets_of(problem, objective), split_at_features(problem)
    assert targets is not None and not isinstance(split, str)
    _, notes = other_classes(start, targets.labels)
    with torch.no_grad():
        centre = split[0](targets.x.float().cpu()).mean(0)

    def distance(delta: Tensor) -> float:
        with torch.no_grad():
            reached = split[0]((start.x + delta).float().cpu()).mean(0)
        return float((reached - centre).norm() / centre.norm())

    def work() -> Any:
        from art.attacks.poisoning import BullseyePolytopeAttackPyTorch

        from poisonaudit.attack.baselines.art_features import LAYER, CentreClassifier, FeatureClassifier

        kind = FeatureClassifier if as_shipped else CentreClassifier
        shape, limits = tuple(problem.x.shape[1:]), hull(problem, budget)
        # On the CPU: ART adds the loss up in a tensor that lies there.
        classifier = art_classifier(split, shape, targets.classes, limits, kind=kind)
        classifier.centre = centre
        attack = BullseyePolytopeAttackPyTorch(
            classifier,
            as_numpy(targets.x),
            LAYER,
            max_iter=steps,
            learning_rate=learning_rate,
            epsilon=float(budget.radius),
            batch_size=len(start.rows),
            verbose=False,
        )
        return attack.poison(as_numpy(start.x), targets.labels.cpu().numpy())[0]

    if progress is not None:
        progress(f"ART Bullseye Polytope: {steps} steps", 0.0)
    history = [{"step": 0, "objective": distance(torch.zeros_like(start.x)), "seconds": start.seconds()}]
    delta, more = admissible(start, run_art(start, seed, work))
    if progress is not None:
        progress("ART Bullseye Polytope: done", 1.0)
    history.append({"step": steps, "objective": distance(delta), "seconds": start.seconds()})
    told = (
        "as shipped: ART 1.20.1 takes the features of the base rows for the target's, so the target plays no part"
        if as_shipped
        else "ART 1.20.1 takes the features of the base rows for the target's; it was given the target's own"
    )
    return start.poison(delta, start.share(GRADIENT * steps), history, notes=(*notes, *more, told))
