"""What every objective answers, before and after it is bound to a trained problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor

from poisonaudit.attack.arguments import as_tensor
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.problem import Problem


class Goal(Protocol):
    """An objective at one clean problem: a function of flat weights (p,) that the poisoner makes small."""

    @property
    def convex(self) -> bool:
        """It is convex in the weights, so that lower bounds can be proved."""
        ...

    @property
    def is_distance(self) -> bool:
        """It ends at 0, so that a step may go too far; else it is a slope to be followed."""
        ...

    def value(self, weights: Tensor) -> float:
        """The number that crafting makes small."""
        ...

    def gradient(self, weights: Tensor) -> Tensor:
        """Its gradient in the weights, (p,)."""
        ...

    def success(self, weights: Tensor) -> bool | None:
        """Was the aim reached; None where nothing was set to be reached."""
        ...

    def figures(self, weights: Tensor, reference: Tensor) -> dict[str, Any]:
        """The objective's own entries of an outcome; `reference` are the weights without poison."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON form, with its `kind`."""
        ...


class Objective(Protocol):
    """What the user writes down; it needs a trained problem to become a `Goal`."""

    @property
    def kind(self) -> str:
        """Name in the table of objectives."""
        ...

    def bind(self, problem: Problem) -> Goal:
        """The objective at a clean trained problem."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON form, with its `kind`."""
        ...


class SurrogateGoal(ABC):
    """A goal whose value is one differentiable expression in the weights; autograd does the rest."""

    convex = False
    is_distance = False

    @abstractmethod
    def surrogate(self, weights: Tensor) -> Tensor:
        """The value as a scalar tensor that remembers how it came from `weights`."""

    def value(self, weights: Tensor) -> float:
        """The surrogate's value."""
        with torch.no_grad():
            return float(self.surrogate(weights))

    def gradient(self, weights: Tensor) -> Tensor:
        """Gradient of the surrogate in the weights, (p,)."""
        point = weights.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.surrogate(point), point, materialize_grads=True)
        return gradient


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label minus the largest other one, (m,): positive where the label is predicted."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def fitting_rows(problem: Problem, x: Tensor, what: str) -> Tensor:
    """Rows of an objective in the type, device and shape that the model takes.

    Args:
        problem: whose model is to be asked.
        x: rows (m, ...), or one row without the leading 1; a tensor or an array.
        what: what they are, for messages.

    Returns:
        (m, ...).

    Raises:
        InputRefused: PA127, they are no numbers; PA211, the shape does not fit; PA210, there are NaN or infinite
            entries.
    """
    given = as_tensor(x, what)
    rows = given.to(problem.x)
    rows = rows[None] if rows.shape == problem.x.shape[1:] else rows
    if rows.shape[1:] != problem.x.shape[1:] or not len(rows):
        raise InputRefused(
            "PA211",
            f"{what} is {tuple(given.shape)}, a training row {tuple(problem.x.shape[1:])}. Give rows of that shape.",
        )
    if not bool(torch.isfinite(rows).all()):
        raise InputRefused("PA210", f"{what} holds NaN or infinite entries. Pass other rows.")
    return rows


def fitting_labels(problem: Problem, rows: Tensor, labels: Any, what: str) -> Tensor:
    """Class numbers for the rows of an objective.

    Args:
        problem: whose model gives the number of classes.
        rows: (m, ...), as `fitting_rows` returns them.
        labels: (m,) integers, a tensor or a sequence.
        what: what they are, for messages.

    Returns:
        (m,), int64.

    Raises:
        InputRefused: PA127, the labels are no numbers; PA211, the model does not tell two classes apart, or the number
            of labels differs.
        UsageError: PA366, no such class.
    """
    classes = class_count(problem, rows)
    given = as_tensor(labels, what).to(rows.device)
    if given.shape != (len(rows),) or given.is_floating_point():
        raise InputRefused(
            "PA211", f"{what} is {tuple(given.shape)} {given.dtype}, {len(rows)} class numbers are needed. Give those."
        )
    wrong = given[(given < 0) | (given >= classes)]
    if len(wrong):
        raise UsageError("PA366", f"class {int(wrong[0])} is wanted, the model has {classes} classes.")
    return given.long()


def class_count(problem: Problem, rows: Tensor) -> int:
    """Number of classes the model scores.

    Args:
        problem: whose model is to be asked.
        rows: any rows that fit it.

    Returns:
        The number.

    Raises:
        InputRefused: PA211, its outputs are not scores of at least two classes.
    """
    with torch.no_grad():
        outputs = problem.outputs(x=rows[:1])
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        raise InputRefused(
            "PA211",
            f"the model gives outputs {tuple(outputs.shape)} for one row; predictions need two classes. "
            "Use target weights for regression.",
        )
    return outputs.shape[1]
