"""Flip the prediction of one chosen test row, or of several: raise the logit of a wanted class above all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from poisonaudit.attack.arguments import as_tensor, class_number
from poisonaudit.attack.objectives.base import SurrogateGoal, fitting_labels, fitting_rows, margins
from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name

Surrogate = Literal["margin", "cross_entropy"]
SURROGATES = ("margin", "cross_entropy")


@dataclass(frozen=True, eq=False)
class FlipPrediction:
    """One test row and the class that the poisoner wants the model to predict for it.

    Attributes:
        x: the row, shaped like one training row or with a leading 1; a tensor or an array.
        label: wanted class, a whole number.
        surrogate: what crafting makes small: "margin" (the largest other logit minus the wanted one) or
            "cross_entropy" to the wanted class, which is smooth where two other classes tie.

    Raises:
        UsageError: PA301, no surrogate has that name; PA366, the class is no whole number.
        InputRefused: PA127, the row holds no numbers.
    """

    x: Tensor
    label: int
    surrogate: Surrogate = "margin"

    kind = "flip"

    def __post_init__(self) -> None:
        if self.surrogate not in SURROGATES:
            raise unknown_name(str(self.surrogate), SURROGATES, "surrogate")
        object.__setattr__(self, "x", as_tensor(self.x, "the row to flip"))
        object.__setattr__(self, "label", class_number(self.label))

    def bind(self, problem: Problem) -> FlipGoal:
        """The objective at a clean trained problem.

        Args:
            problem: clean, at wbar.

        Returns:
            The bound objective.

        Raises:
            InputRefused: PA211, the row's shape or the model's outputs do not fit; PA210, it is not finite.
            UsageError: PA366, no such class.
        """
        x = self.x if self.x.shape == problem.x.shape[1:] else self.x.squeeze(0)
        row = fitting_rows(problem, x if x.shape == problem.x.shape[1:] else self.x[:0], "the row to flip")
        return FlipGoal(problem, row, fitting_labels(problem, row, [self.label], "the wanted class"), self.surrogate)

    def describe(self) -> dict[str, Any]:
        """JSON form: kind, wanted class, surrogate."""
        return {"kind": self.kind, "wanted": self.label, "surrogate": self.surrogate}


@dataclass(frozen=True, eq=False)
class FlipPredictions:
    """Several test rows and the classes wanted for them, by one poison.

    Attributes:
        x: rows (m, ...).
        labels: wanted classes (m,).
        surrogate: see `FlipPrediction`; "margin" counts a row no further than `enough` beyond its flip.
        success_at: share of the rows that has to be flipped.
        enough: margin beyond which a row counts as won.

    Raises:
        UsageError: PA301, no surrogate has that name; PA375, success_at or enough is out of range.
        InputRefused: PA127, rows or classes are no numbers.
    """

    x: Tensor
    labels: Tensor | Sequence[int]
    surrogate: Surrogate = "margin"
    success_at: float = 1.0
    enough: float = 1.0

    kind = "flips"

    def __post_init__(self) -> None:
        if self.surrogate not in SURROGATES:
            raise unknown_name(str(self.surrogate), SURROGATES, "surrogate")
        if not 0.0 < self.success_at <= 1.0 or not self.enough >= 0.0:
            raise UsageError(
                "PA375",
                f"success_at is {self.success_at} and enough is {self.enough}; a share in (0, 1] and a margin >= 0 are "
                "needed. Leave them out for 1 and 1.",
            )
        object.__setattr__(self, "x", as_tensor(self.x, "the rows to flip"))
        object.__setattr__(self, "labels", as_tensor(self.labels, "the wanted classes"))

    def bind(self, problem: Problem) -> FlipsGoal:
        """The objective at a clean trained problem.

        Args:
            problem: clean, at wbar.

        Returns:
            The bound objective.

        Raises:
            InputRefused: PA211, rows, labels or the model's outputs do not fit; PA210, a row is not finite.
            UsageError: PA366, no such class.
        """
        rows = fitting_rows(problem, self.x, "the rows to flip")
        labels = fitting_labels(problem, rows, self.labels, "the wanted classes")
        return FlipsGoal(problem, rows, labels, self.surrogate, self.success_at, self.enough)

    def describe(self) -> dict[str, Any]:
        """JSON form: kind, wanted classes, surrogate, success_at."""
        wanted = torch.as_tensor(self.labels).tolist()
        return {"kind": self.kind, "wanted": wanted, "surrogate": self.surrogate, "success_at": self.success_at}


@dataclass(frozen=True, eq=False)
class FlipGoal(SurrogateGoal):
    """The margin of one row at the clean problem's model.

    Attributes:
        problem: gives the model.
        row: (1, ...).
        label: wanted class, (1,).
        kind_of_surrogate: "margin" or "cross_entropy".
    """

    problem: Problem
    row: Tensor
    label: Tensor
    kind_of_surrogate: Surrogate

    @property
    def wanted_class(self) -> int:
        """The class that the row is to get."""
        return int(self.label)

    def surrogate(self, weights: Tensor) -> Tensor:
        """Minus the margin, or the cross-entropy to the wanted class."""
        logits = self.problem.outputs(weights, self.row)
        if self.kind_of_surrogate == "margin":
            return -margins(logits, self.label)[0]
        return functional.cross_entropy(logits, self.label)

    def margin(self, weights: Tensor) -> float:
        """Logit of the wanted class minus the largest other one; positive once flipped."""
        with torch.no_grad():
            return float(margins(self.problem.outputs(weights, self.row), self.label)[0])

    def success(self, weights: Tensor) -> bool | None:
        """The model predicts the wanted class."""
        return self.margin(weights) > 0.0

    def figures(self, weights: Tensor, reference: Tensor) -> dict[str, Any]:
        """Margin, its change from `reference`, prediction, success."""
        margin = self.margin(weights)
        return {
            "margin": margin,
            "margin_change": margin - self.margin(reference),
            "prediction": self._prediction(weights),
            "success": margin > 0.0,
        }

    def describe(self) -> dict[str, Any]:
        """JSON form: kind, wanted class, surrogate, the clean model's margin and prediction."""
        return {
            "kind": FlipPrediction.kind,
            "wanted": int(self.label),
            "surrogate": self.kind_of_surrogate,
            "clean_margin": self.margin(self.problem.weights),
            "clean_prediction": self._prediction(self.problem.weights),
        }

    def _prediction(self, weights: Tensor) -> int:
        with torch.no_grad():
            return int(self.problem.outputs(weights, self.row)[0].argmax())


@dataclass(frozen=True, eq=False)
class FlipsGoal(SurrogateGoal):
    """The margins of several rows at the clean problem's model.

    Attributes:
        problem: gives the model.
        rows: (m, ...).
        labels: wanted classes (m,).
        kind_of_surrogate: "margin" or "cross_entropy".
        success_at: share of rows that counts as success.
        enough: margin beyond which a row counts as won.
    """

    problem: Problem
    rows: Tensor
    labels: Tensor
    kind_of_surrogate: Surrogate
    success_at: float
    enough: float

    def surrogate(self, weights: Tensor) -> Tensor:
        """Mean over the rows: minus the margin, at least `-enough`, or the cross-entropy to the wanted class."""
        logits = self.problem.outputs(weights, self.rows)
        if self.kind_of_surrogate == "margin":
            return (-margins(logits, self.labels)).clamp(min=-self.enough).mean()
        return functional.cross_entropy(logits, self.labels)

    def success(self, weights: Tensor) -> bool | None:
        """At least the wanted share of the rows is flipped."""
        return self._flipped(weights) >= self.success_at * len(self.rows) - 1e-9

    def figures(self, weights: Tensor, reference: Tensor) -> dict[str, Any]:
        """Margins (mean and each), change of the mean from `reference`, predictions, number and share flipped."""
        margin, flipped = self._margins(weights), self._flipped(weights)
        with torch.no_grad():
            predictions = self.problem.outputs(weights, self.rows).argmax(1).tolist()
        return {
            "margin": float(margin.mean()),
            "margin_change": float((margin - self._margins(reference)).mean()),
            "margins": margin.tolist(),
            "predictions": predictions,
            "flipped": flipped,
            "flipped_share": flipped / len(self.rows),
            "success": self.success(weights),
        }

    def describe(self) -> dict[str, Any]:
        """JSON form: kind, wanted classes, surrogate, success_at, the clean model's margins."""
        return {
            "kind": FlipPredictions.kind,
            "wanted": self.labels.tolist(),
            "surrogate": self.kind_of_surrogate,
            "success_at": self.success_at,
            "clean_margins": self._margins(self.problem.weights).tolist(),
        }

    def _margins(self, weights: Tensor) -> Tensor:
        with torch.no_grad():
            return margins(self.problem.outputs(weights, self.rows), self.labels)

    def _flipped(self, weights: Tensor) -> int:
        return int((self._margins(weights) > 0).sum())
