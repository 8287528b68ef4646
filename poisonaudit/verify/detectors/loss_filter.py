"""Loss filter: the rows that the trained model fits worst."""

from __future__ import annotations

import torch
from torch import Tensor

from poisonaudit.problem import Problem
from poisonaudit.verify.detectors.detection import Detection, checked_share

NAME = "loss_filter"


def loss_filter(problem: Problem, weights: Tensor, *, expected_share: float, seed: int) -> Detection:
    """Training loss of each row at the trained weights, without decay; the `expected_share` of largest loss is flagged.

    The trimming of Shen and Sanghavi (2019), once and after training. It finds wrong labels; a poison that training
    fits well has a small loss and passes.

    Args:
        problem: poisoned rows; regression too.
        weights: trained on them, (p,).
        expected_share: share of all rows that is flagged, at least one row.
        seed: not used: nothing is drawn.

    Returns:
        The detection; of rows with equal losses the first are flagged.

    Raises:
        UsageError: PA304, a share outside (0, 1).
    """
    share = checked_share(expected_share)
    with torch.no_grad():
        scores = problem.losses(weights).detach()
    count = max(1, round(share * problem.rows))
    flagged = torch.zeros(problem.rows, dtype=torch.bool, device=problem.device)
    flagged[scores.sort(descending=True, stable=True).indices[:count]] = True
    return Detection(NAME, scores, flagged, {"expected_share": share, "loss": _loss_name(problem)})


def _loss_name(problem: Problem) -> str:
    return problem.loss if isinstance(problem.loss, str) else getattr(problem.loss, "__name__", "callable")
