"""Raise the mean loss on chosen rows: the untargeted attack on a model's usefulness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from poisonaudit.attack.arguments import as_tensor
from poisonaudit.attack.objectives.base import SurrogateGoal, fitting_rows
from poisonaudit.errors import InputRefused
from poisonaudit.losses import resolve_loss
from poisonaudit.problem import Problem


@dataclass(frozen=True, eq=False)
class ValidationLoss:
    """Rows whose mean loss, without decay, the poisoner wants high.

    Attributes:
        x: rows (m, ...).
        y: their labels or targets (m, ...).
        success_at: increase of the mean loss from which on the attack counts as a success; None leaves it undefined.
    """

    x: Tensor
    y: Tensor
    success_at: float | None = None

    kind = "validation_loss"

    def bind(self, problem: Problem) -> LossGoal:
        """The objective at a clean trained problem.

        Args:
            problem: clean, at wbar.

        Returns:
            The bound objective.

        Raises:
            InputRefused: PA211, rows and labels do not fit the model; PA210, a row is not finite.
        """
        rows = fitting_rows(problem, self.x, "validation rows")
        labels = as_tensor(self.y, "labels of the validation rows").to(problem.device)
        labels = labels.to(problem.dtype) if labels.is_floating_point() else labels
        if len(labels) != len(rows):
            raise InputRefused("PA211", f"{len(rows)} validation rows have {len(labels)} labels. Give one a row.")
        return LossGoal(problem, rows, labels, self.success_at)

    def describe(self) -> dict[str, Any]:
        """JSON form: kind, number of rows, success_at."""
        return {"kind": self.kind, "rows": len(self.x), "success_at": self.success_at}


@dataclass(frozen=True, eq=False)
class LossGoal(SurrogateGoal):
    """Minus the mean loss on the rows at the clean problem's model.

    Attributes:
        problem: gives model and loss.
        rows: (m, ...).
        labels: (m, ...).
        success_at: increase that counts as success, or None.
    """

    problem: Problem
    rows: Tensor
    labels: Tensor
    success_at: float | None

    def surrogate(self, weights: Tensor) -> Tensor:
        """Minus the mean loss."""
        outputs = self.problem.outputs(weights, self.rows)
        per_row, targets = resolve_loss(self.problem.loss, outputs, self.labels)
        return -per_row(outputs, targets).mean()

    def success(self, weights: Tensor) -> bool | None:
        """The loss rose by at least `success_at` over the clean model's."""
        if self.success_at is None:
            return None
        return self._rise(weights, self.problem.weights) >= self.success_at

    def figures(self, weights: Tensor, reference: Tensor) -> dict[str, Any]:
        """Mean loss, its rise from `reference`, success."""
        rise = self._rise(weights, reference)
        return {
            "validation_loss": -self.value(weights),
            "validation_loss_rise": rise,
            "success": None if self.success_at is None else rise >= self.success_at,
        }

    def describe(self) -> dict[str, Any]:
        """JSON form: kind, number of rows, success_at, the clean model's loss."""
        return {
            "kind": ValidationLoss.kind,
            "rows": len(self.rows),
            "success_at": self.success_at,
            "clean_loss": -self.value(self.problem.weights),
        }

    def _rise(self, weights: Tensor, reference: Tensor) -> float:
        return self.value(reference) - self.value(weights)
