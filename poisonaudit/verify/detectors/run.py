"""Run detectors by name and judge them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from poisonaudit.problem import Problem, expect_weights
from poisonaudit.registry import lookup
from poisonaudit.verify.detectors.activation_clustering import activation_clustering
from poisonaudit.verify.detectors.detection import Detection, Detector
from poisonaudit.verify.detectors.judging import judge, row_mask
from poisonaudit.verify.detectors.loss_filter import loss_filter
from poisonaudit.verify.detectors.nearest_neighbours import nearest_neighbours
from poisonaudit.verify.detectors.spectral_signature import spectral_signature

DETECTORS: Mapping[str, Detector] = {
    "activation_clustering": activation_clustering,
    "spectral_signature": spectral_signature,
    "nearest_neighbours": nearest_neighbours,
    "loss_filter": loss_filter,
}
# Tran et al. (2018) drop one and a half times as many rows as they expect to be poisoned.
_MULTIPLE = 1.5
_MOST = 0.5


def default_share(poisoned: int, rows: int) -> float:
    """The share that a defender who guesses well assumes: 1.5 times the poisoned one, at most a half.

    Args:
        poisoned: number of poisoned rows, at least 1.
        rows: number of rows.

    Returns:
        A share in (0, 1/2].
    """
    return min(_MULTIPLE * poisoned / rows, _MOST)


def detect(
    problem: Problem, weights: Tensor, names: Sequence[str] | None = None, *, expected_share: float, seed: int = 0
) -> dict[str, Detection]:
    """What the defender sees: every detector's suspicion of every row.

    Args:
        problem: with the poisoned rows.
        weights: trained on them, (p,).
        names: of `DETECTORS`; None for all.
        expected_share: share of rows that the defender expects to be poisoned.
        seed: of detectors that draw.

    Returns:
        Name -> detection.

    Raises:
        UsageError: PA314, no problem; PA301, an unknown detector; PA304, a share outside (0, 1).
        InputRefused: PA125, the weights are not as many as the problem's.
    """
    expect_weights(problem, weights, "detect")
    asked = {name: lookup(DETECTORS, name, "detector") for name in (DETECTORS if names is None else names)}
    return {name: run(problem, weights, expected_share=expected_share, seed=seed) for name, run in asked.items()}


def run_detectors(
    problem: Problem,
    weights: Tensor,
    poisoned_rows: Tensor | Sequence[int],
    names: Sequence[str] | None = None,
    expected_share: float | None = None,
    seed: int = 0,
    *,
    unpoisoned: tuple[Problem, Tensor] | None = None,
) -> dict[str, Any]:
    """Run detectors on a poisoned problem and judge them; the detectors are not told which rows are poisoned.

    Args:
        problem: with the poisoned rows.
        weights: trained on them, (p,).
        poisoned_rows: positions of the poisoned rows, for judging and for the default share.
        names: of `DETECTORS`; None for all.
        expected_share: what the defender assumes; None for 1.5 times the truth, at most a half.
        seed: of detectors that draw.
        unpoisoned: the clean problem and weights trained on it, which tell how well a detector singles out the same
            rows before they are poisoned: an attacker who chooses influential rows chooses conspicuous ones, and what
            is found then is the choice.

    Returns:
        Name -> the figures of `judge` with `auroc_unpoisoned` (None where it was not asked for) and `seconds`; plain
        JSON data.

    Raises:
        UsageError: PA314, no problem; PA301, an unknown detector; PA304, a share outside (0, 1); PA363, a position is
            not among the rows.
        InputRefused: PA125, the weights are not as many as the problem's.
    """
    expect_weights(problem, weights, "run_detectors")
    if unpoisoned is not None:
        expect_weights(*unpoisoned, "run_detectors")
    poisoned = int(row_mask(poisoned_rows, problem.rows).sum())
    asked = [(name, lookup(DETECTORS, name, "detector")) for name in (DETECTORS if names is None else names)]
    if expected_share is None:
        # Without poisoned rows no flag can be right; any share shows the false alarms.
        expected_share = default_share(max(1, poisoned), problem.rows)
    found = {}
    for name, run in asked:
        begun = time.perf_counter()
        detection = run(problem, weights, expected_share=expected_share, seed=seed)
        seconds = time.perf_counter() - begun
        before = None
        if unpoisoned is not None:
            before = judge(run(*unpoisoned, expected_share=expected_share, seed=seed), poisoned_rows)["auroc"]
        found[name] = {**judge(detection, poisoned_rows), "auroc_unpoisoned": before, "seconds": seconds}
    return found
