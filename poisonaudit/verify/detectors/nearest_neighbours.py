"""Deep k-NN: rows whose label is not the most frequent one among their nearest neighbours in feature space."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from poisonaudit.errors import UsageError
from poisonaudit.losses import class_labels
from poisonaudit.problem import Problem
from poisonaudit.verify.detectors.detection import Detection, checked_share, not_applicable
from poisonaudit.verify.detectors.features import penultimate_features, why_no_classes

NAME = "nearest_neighbours"
_ROWS_AT_ONCE = 1024


def nearest_neighbours(
    problem: Problem, weights: Tensor, *, expected_share: float, seed: int, k: int | None = None
) -> Detection:
    """Share of the k nearest rows that carry another label, in penultimate activations (Peri et al., 2020).

    Flagged is a row whose own label is less frequent among its neighbours than another one; a tie keeps it. A row is
    not its own neighbour. Poisons that are many in one place vouch for each other: k has to exceed twice their number.

    Args:
        problem: poisoned rows.
        weights: trained on them, (p,).
        expected_share: not used: the method sets no quota.
        seed: not used: nothing is drawn.
        k: number of neighbours; None for half the median class size.

    Returns:
        The detection, scores in [0, 1] in steps of 1/k.

    Raises:
        UsageError: PA304, k is not between 1 and n - 1, or a share outside (0, 1).
    """
    checked_share(expected_share)
    if k is not None and not 1 <= k < problem.rows:
        raise UsageError("PA304", f"k is {k}; {problem.rows} rows have 1 to {problem.rows - 1} neighbours. Pass those.")
    labels = class_labels(problem.y)
    if labels is None or why_no_classes(problem):
        return not_applicable(NAME, problem, why_no_classes(problem))
    found, where = penultimate_features(problem, weights)
    features = found.double().cpu().numpy()
    names, classes = np.unique(labels.cpu().numpy(), return_inverse=True)
    if k is None:
        k = min(max(1, round(float(np.median(np.bincount(classes))) / 2)), problem.rows - 1)
    votes = _votes(features, classes, len(names), k)
    own = votes[np.arange(problem.rows), classes]
    return Detection(
        NAME,
        torch.as_tensor(1.0 - own / k).to(problem.x),
        torch.as_tensor(votes.max(1) > own, device=problem.device),
        {"k": k},
        where,
    )


def _votes(features: Any, classes: Any, count: int, k: int) -> Any:
    """How many of the k nearest other rows are of each class, (n, classes)."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=k + 1).fit(features)
    votes = np.zeros((len(features), count), dtype=np.int64)
    for start in range(0, len(features), _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(features)))
        near = index.kneighbors(features[rows], return_distance=False)
        itself = near == rows[:, None]
        # Among more than k equal rows a row may miss itself; the farthest then makes room.
        itself[~itself.any(1), -1] = True
        others = classes[near[~itself].reshape(len(rows), k)]
        for label in range(count):
            votes[rows, label] = (others == label).sum(1)
    return votes
