"""What a poison detector says about every training row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem


@dataclass(frozen=True, eq=False)
class Detection:
    """Suspicion of every training row, found without knowing which rows are poisoned.

    Attributes:
        name: of the detector.
        scores: (n,), higher is more suspicious; NaN throughout where the detector does not apply.
        flagged: (n,) bool, the rows that the detector would drop.
        parameters: what it ran with, plain data.
        note: what the reader should know, e.g. classes that were left out.
        applicable: False where the detector says nothing about this problem.
        reason: why not.
    """

    name: str
    scores: Tensor
    flagged: Tensor
    parameters: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    applicable: bool = True
    reason: str = ""


class Detector(Protocol):
    """One detector: the poisoned problem and the weights trained on it in, suspicion out."""

    def __call__(self, problem: Problem, weights: Tensor, *, expected_share: float, seed: int) -> Detection:
        """Suspicion of every row of `problem`."""
        ...


def not_applicable(name: str, problem: Problem, reason: str) -> Detection:
    """The detection of a detector that has nothing to say here.

    Args:
        name: of the detector.
        problem: gives the number of rows.
        reason: why, without the words "not applicable".

    Returns:
        A detection that flags nothing and scores NaN.
    """
    blank = torch.full((problem.rows,), torch.nan, dtype=problem.dtype, device=problem.device)
    return Detection(name, blank, blank > 0, applicable=False, reason=f"not applicable: {reason}")


def checked_share(expected_share: float) -> float:
    """The share of rows that the defender expects to be poisoned.

    Args:
        expected_share: in (0, 1).

    Returns:
        The share as a float.

    Raises:
        UsageError: PA304, it is not a share.
    """
    if not 0.0 < expected_share < 1.0:
        raise UsageError(
            "PA304", f"expected_share is {expected_share}; it must lie between 0 and 1. Pass 0.075 for 7.5 %."
        )
    return float(expected_share)
