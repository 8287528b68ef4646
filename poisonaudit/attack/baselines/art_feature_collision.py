"""`FeatureCollisionAttack` of the Adversarial Robustness Toolbox on the last hidden layer, moved into our budget.

Shafahi, Huang, Najibi, Suciu, Studer, Dumitras and Goldstein, "Poison Frogs! Targeted Clean-Label Poisoning Attacks on
Neural Networks", NeurIPS 2018, as ART 1.20.1 implements it. Made for transfer learning, where features stay fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poisonaudit.art_estimator import art_classifier
from poisonaudit.attack.baselines.art_support import (
    admissible,
    as_numpy,
    hull,
    no_features,
    no_flip,
    other_classes,
    run_art,
    split_at_features,
    targets_of,
)
from poisonaudit.attack.baselines.base import begin
from poisonaudit.attack.baselines.options import refuse_bad_options
from poisonaudit.attack.budget import Budget
from poisonaudit.attack.objectives import Objective
from poisonaudit.attack.poison import Poison
from poisonaudit.problem import Problem
from poisonaudit.training import Progress


def why_not(problem: Problem, objective: Objective, budget: Budget) -> str:
    """Why ART's feature collision does not apply, "" where it does."""
    reason = no_flip(problem, objective)
    if reason:
        return reason
    targets = targets_of(problem, objective)
    if targets is not None and len(targets.x) > 1:
        return f"ART's feature collision has one target, the objective has {len(targets.x)}"
    return no_features(problem)


def art_feature_collision(
    problem: Problem,
    objective: Objective,
    budget: Budget,
    rows: Tensor | Sequence[int],
    seed: int = 0,
    *,
    steps: int = 120,
    progress: Progress | None = None,
    similarity_coeffs: Sequence[float] = (256.0, 16.0, 1.0),
    learning_rate: float = 0.02,
) -> Poison:
    """Move each row until its features meet those of the target, `|phi(x_i + mu_i) - phi(t)| + beta |mu_i|`.

    ART knows no budget: closeness is a penalty. So each row is crafted with several penalties, every result is moved
    to the nearest admissible point, and the one whose features then lie nearest to the target's is kept. ART's own
    defaults (256 and a rate of 127,500, for pixels up to 255 and 2,048 features) hardly move rows in [0, 1].

    Args:
        problem: clean; its model ends in a Linear layer with a layer before it.
        objective: the flip of one row.
        budget: any.
        rows: positions (k,); the method means them to be of the wanted class, a note counts the others.
        seed: nothing is drawn; taken so that all baselines can be called alike.
        steps: most iterations for each row and penalty (`max_iter`).
        progress: called for every row.
        similarity_coeffs: ART's `similarity_coeff`, strengths of the penalty to try.
        learning_rate: of ART's forward step.

    Returns:
        The poison; the objective of the history is the mean distance of the rows' features from the target's.

    Raises:
        InputRefused: PA281, it does not apply, or ART fails.
        UsageError: PA304, no coefficient, or one or a rate that is not above 0; PA361, PA363 or PA367 for rows and
            steps.
    """
    refuse_bad_options("art_feature_collision", similarity_coeffs=similarity_coeffs, learning_rate=learning_rate)
    start = begin("art_feature_collision", problem, objective, budget, rows, steps, why_not(problem, objective, budget))
    targets, split = targets_of(problem, objective), split_at_features(problem)
    assert targets is not None and not isinstance(split, str)
    _, notes = other_classes(start, targets.labels)

    def distances(delta: Tensor) -> Tensor:
        with torch.no_grad():
            reached, aim = (split[0](each.float().cpu()) for each in (start.x + delta, targets.x))
        return (reached - aim).norm(dim=1).to(start.x)

    classifier: Any = None

    def craft_row(row: Any, coefficient: float) -> Any:
        nonlocal classifier
        from art.attacks.poisoning import FeatureCollisionAttack

        from poisonaudit.attack.baselines.art_features import LAYER, FeatureClassifier

        if classifier is None:
            shape, limits = tuple(problem.x.shape[1:]), hull(problem, budget)
            classifier = art_classifier(split, shape, targets.classes, limits, kind=FeatureClassifier)
        # A new attack for each row: ART lowers its learning rate and keeps it for the rows that follow.
        attack = FeatureCollisionAttack(
            classifier,
            as_numpy(targets.x),
            LAYER,
            learning_rate=learning_rate,
            max_iter=steps,
            similarity_coeff=float(coefficient),
            verbose=False,
        )
        return attack.poison(row[None])[0]

    best = torch.zeros_like(start.x)
    nearest = distances(best)
    history = [{"step": 0, "objective": float(nearest.mean()), "seconds": start.seconds()}]
    for number, coefficient in enumerate(similarity_coeffs):
        found = []
        for index, row in enumerate(as_numpy(start.x)):
            if progress is not None:
                done = number * len(start.rows) + index
                total = len(similarity_coeffs) * len(start.rows)
                progress(f"ART feature collision: row {index + 1}, penalty {coefficient:g}", done / total)
            found.append(run_art(start, seed, partial(craft_row, row, coefficient)))
        # That ART leaves the budget is the rule here, so it is told once, below.
        delta, _ = admissible(start, np.concatenate(found))
        reached = distances(delta)
        nearer = (reached < nearest).view(-1, *[1] * (delta.dim() - 1))
        best, nearest = torch.where(nearer, delta, best), torch.minimum(reached, nearest)
    if progress is not None:
        progress("ART feature collision: done", 1.0)
    history.append({"step": steps, "objective": float(nearest.mean()), "seconds": start.seconds()})
    # Each iteration is two gradients in the input and two passes forward of one row, about three gradients of it.
    gradients = start.share(3.0 * steps * len(similarity_coeffs))
    told = "ART bounds the perturbation by a penalty only; its results were moved to the nearest points of the budget"
    return start.poison(best, gradients, history, notes=(*notes, told))
