"""Hurt the accuracy on a class or a subgroup: turn its rows to other predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poisonaudit.attack.objectives.base import SurrogateGoal, fitting_labels, fitting_rows, margins
from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem

_LEAST_TEMPERATURE = 1e-6


@dataclass(frozen=True, eq=False)
class GroupAccuracy:
    """Rows of a class or subgroup that the poisoner wants misjudged.

    Crafting makes the smooth accuracy small, the mean of `sigmoid(margin / temperature)`: rows near the decision
    boundary count most, and rows that are lost already count no further.

    Attributes:
        x: rows of the group (m, ...).
        y: their true classes (m,).
        success_at: drop of the accuracy, as a share in (0, 1], that counts as success; None leaves it undefined.
        temperature: None for the median size of the clean model's margins.

    Raises:
        UsageError: PA375, success_at or temperature is out of range.
    """

    x: Tensor
    y: Tensor
    success_at: float | None = None
    temperature: float | None = None

    kind = "group_accuracy"

    def __post_init__(self) -> None:
        bad_drop = self.success_at is not None and not 0.0 < self.success_at <= 1.0
        if bad_drop or (self.temperature is not None and not self.temperature > 0.0):
            raise UsageError(
                "PA375",
                f"success_at is {self.success_at} and temperature is {self.temperature}; a drop in (0, 1] and a "
                "positive number are needed. Leave them out, or correct them.",
            )

    def bind(self, problem: Problem) -> GroupGoal:
        """The objective at a clean trained problem.

        Args:
            problem: clean, at wbar.

        Returns:
            The bound objective.

        Raises:
            InputRefused: PA211, rows, labels or the model's outputs do not fit; PA210, a row is not finite.
            UsageError: PA366, no such class.
        """
        rows = fitting_rows(problem, self.x, "the group's rows")
        labels = fitting_labels(problem, rows, self.y, "the group's classes")
        with torch.no_grad():
            typical = float(margins(problem.outputs(x=rows), labels).abs().median())
        chosen = max(typical, _LEAST_TEMPERATURE) if self.temperature is None else self.temperature
        return GroupGoal(problem, rows, labels, self.success_at, chosen)

    def describe(self) -> dict[str, Any]:
        """JSON form: kind, number of rows, success_at."""
        return {"kind": self.kind, "rows": len(self.x), "success_at": self.success_at}


@dataclass(frozen=True, eq=False)
class GroupGoal(SurrogateGoal):
    """Smooth accuracy on the group at the clean problem's model.

    Attributes:
        problem: gives the model.
        rows: (m, ...).
        labels: true classes (m,).
        success_at: drop that counts as success, or None.
        temperature: of the sigmoid, in logits.
    """

    problem: Problem
    rows: Tensor
    labels: Tensor
    success_at: float | None
    temperature: float

    def surrogate(self, weights: Tensor) -> Tensor:
        """Mean of `sigmoid(margin / temperature)`."""
        return (margins(self.problem.outputs(weights, self.rows), self.labels) / self.temperature).sigmoid().mean()

    def accuracy(self, weights: Tensor) -> float:
        """Share of the group judged rightly."""
        with torch.no_grad():
            return float((self.problem.outputs(weights, self.rows).argmax(1) == self.labels).double().mean())

    def success(self, weights: Tensor) -> bool | None:
        """The accuracy fell by at least `success_at` below the clean model's."""
        if self.success_at is None:
            return None
        return self.accuracy(self.problem.weights) - self.accuracy(weights) >= self.success_at - 1e-9

    def figures(self, weights: Tensor, reference: Tensor) -> dict[str, Any]:
        """Accuracy on the group, its drop from `reference`, success."""
        accuracy = self.accuracy(weights)
        drop = self.accuracy(reference) - accuracy
        return {
            "group_accuracy": accuracy,
            "group_accuracy_drop": drop,
            "success": None if self.success_at is None else drop >= self.success_at - 1e-9,
        }

    def describe(self) -> dict[str, Any]:
        """JSON form: kind, number of rows, success_at, temperature, the clean model's accuracy on them."""
        return {
            "kind": GroupAccuracy.kind,
            "rows": len(self.rows),
            "success_at": self.success_at,
            "temperature": self.temperature,
            "clean_accuracy": self.accuracy(self.problem.weights),
        }
