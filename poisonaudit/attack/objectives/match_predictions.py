"""Make the model answer as other weights would: match the predictions of w_t on chosen rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from poisonaudit.attack.objectives.base import SurrogateGoal, class_count, fitting_rows
from poisonaudit.attack.objectives.target_weights import fitting_target
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name

Distance = Literal["outputs", "divergence"]
DISTANCES = ("outputs", "divergence")


@dataclass(frozen=True, eq=False)
class MatchPredictions:
    """Weights whose predictions, not values, training should reach.

    Attributes:
        weights: w_t, flat (p,).
        x: rows on which predictions are matched (m, ...); None for the training rows.
        distance: "outputs" (half the mean squared distance of the outputs) or "divergence" (mean Kullback-Leibler
            divergence of the class probabilities from those of w_t).
        success_at: share of the rows on which the predicted class has to be that of w_t; None leaves it undefined.

    Raises:
        UsageError: PA301, no distance has that name.
    """

    weights: Tensor
    x: Tensor | None = None
    distance: Distance = "outputs"
    success_at: float | None = None

    kind = "match_predictions"

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise unknown_name(str(self.distance), DISTANCES, "distance")

    def bind(self, problem: Problem) -> MatchGoal:
        """The objective at a clean trained problem.

        Args:
            problem: clean, at wbar.

        Returns:
            The bound objective.

        Raises:
            InputRefused: PA125 or PA124, the target does not fit; PA211 or PA210, the rows do not.
            UsageError: PA364, the target is the model itself.
        """
        target = fitting_target(problem, self.weights)
        rows = problem.x if self.x is None else fitting_rows(problem, self.x, "rows to match")
        if self.distance == "divergence" or self.success_at is not None:
            class_count(problem, rows)
        with torch.no_grad():
            wanted = problem.outputs(target, rows)
        return MatchGoal(problem, rows, wanted, self.distance, self.success_at)

    def describe(self) -> dict[str, Any]:
        """JSON form: kind, distance, rows, success_at."""
        rows = None if self.x is None else len(self.x)
        return {"kind": self.kind, "distance": self.distance, "rows": rows, "success_at": self.success_at}


@dataclass(frozen=True, eq=False)
class MatchGoal(SurrogateGoal):
    """Distance of the predictions from those of w_t at the clean problem's model.

    Attributes:
        problem: gives the model.
        rows: (m, ...).
        wanted: outputs of w_t there (m, c).
        distance: see `MatchPredictions`.
        success_at: share of matching classes that counts as success, or None.
    """

    problem: Problem
    rows: Tensor
    wanted: Tensor
    distance: Distance
    success_at: float | None
    is_distance = True

    def surrogate(self, weights: Tensor) -> Tensor:
        """The distance, mean over the rows."""
        outputs = self.problem.outputs(weights, self.rows)
        if self.distance == "outputs":
            return 0.5 * (outputs - self.wanted).square().sum() / len(outputs)
        return functional.kl_div(
            outputs.log_softmax(1), self.wanted.log_softmax(1), reduction="batchmean", log_target=True
        )

    def agreement(self, weights: Tensor) -> float | None:
        """Share of the rows whose predicted class is that of w_t; None for a single output."""
        if self.wanted.dim() != 2 or self.wanted.shape[1] < 2:
            return None
        with torch.no_grad():
            same = self.problem.outputs(weights, self.rows).argmax(1) == self.wanted.argmax(1)
        return float(same.double().mean())

    def success(self, weights: Tensor) -> bool | None:
        """The classes agree on at least `success_at` of the rows."""
        agreement = self.agreement(weights)
        return None if self.success_at is None or agreement is None else agreement >= self.success_at - 1e-9

    def figures(self, weights: Tensor, reference: Tensor) -> dict[str, Any]:
        """Distance relative to that of `reference`, agreement of the classes, success."""
        before = self.value(reference)
        return {
            "prediction_distance_ratio": self.value(weights) / before if before > 0 else None,
            "agreement": self.agreement(weights),
            "agreement_before": self.agreement(reference),
            "success": self.success(weights),
        }

    def describe(self) -> dict[str, Any]:
        """JSON form: kind, distance, rows, success_at, the clean model's agreement."""
        return {
            "kind": MatchPredictions.kind,
            "distance": self.distance,
            "rows": len(self.rows),
            "success_at": self.success_at,
            "clean_agreement": self.agreement(self.problem.weights),
        }
