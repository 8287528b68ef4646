"""Several solutions of one training problem, attacked by one poison: goals and estimates taken together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from poisonaudit.attack.inner import EstimatedMap
from poisonaudit.attack.objectives import Goal
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.problem import Problem
from poisonaudit.sensitivity import graphical_derivative
from poisonaudit.training import Progress, fit

Aggregate = Literal["mean", "worst"]
AGGREGATES = ("mean", "worst")
# Seeds of the solutions that crafting trains for itself lie far from those that verification draws.
_FIRST_SEED = 1_000_000


def gathered(values: Sequence[float], aggregate: Aggregate) -> float:
    """Mean of the goals over the solutions, or the one that the poisoner has reached least (the largest)."""
    return max(values) if aggregate == "worst" else sum(values) / len(values)


def shares(values: Sequence[float], aggregate: Aggregate) -> list[float]:
    """Derivative of `gathered` in each value: equal shares, or 1 for the largest."""
    if aggregate == "worst":
        worst = max(range(len(values)), key=values.__getitem__)
        return [float(index == worst) for index in range(len(values))]
    return [1.0 / len(values)] * len(values)


def trained_solutions(
    problem: Problem, solutions: int | Sequence[Tensor], tolerance: float, seed: int, progress: Progress | None = None
) -> tuple[list[Problem], int]:
    """The clean problem at several solutions, its own first.

    Args:
        problem: at its trained weights.
        solutions: how many in all, the others trained from fresh seeds; or weights (p,) of further solutions.
        tolerance: relative gradient of the fits.
        seed: base of the fresh seeds.
        progress: called with a message and a fraction.

    Returns:
        The problems and the gradients that training took.

    Raises:
        UsageError: PA341, fewer than one solution.
        InputRefused: PA125, weights of another length.
    """
    if isinstance(solutions, int):
        if solutions < 1:
            raise UsageError("PA341", f"{solutions} solutions are asked for; the model itself is the first. Pass >= 1.")
        found, gradients = [problem], 0
        for index in range(1, solutions):
            fitted = fit(problem, tolerance, _FIRST_SEED + seed + index, start="fresh", progress=progress)
            found.append(fitted.problem)
            gradients += fitted.gradients
        return found, gradients
    for weights in solutions:
        if weights.shape != problem.weights.shape:
            raise InputRefused(
                "PA125",
                f"a solution has weights {tuple(weights.shape)}, this problem {tuple(problem.weights.shape)}. "
                "Flatten in named_parameters() order.",
            )
    return [problem, *(problem.at(weights.to(problem.weights)) for weights in solutions)], 0


def training_seeds(count: int, seed: int) -> list[int]:
    """What the owner's training is called with while crafting, far from the seeds of verification."""
    return [_FIRST_SEED + seed + index for index in range(count)]


@dataclass(frozen=True, eq=False)
class MemberGoal:
    """A goal over several members of the estimated solution set: each lies at a kernel offset from the nearest one.

    Attributes:
        goal: at one solution.
        offsets: (m, p), the first row 0.
        aggregate: "mean" or "worst" over the members.
    """

    goal: Goal
    offsets: Tensor
    aggregate: Aggregate

    @property
    def convex(self) -> bool:
        """Means and maxima of convex functions are convex."""
        return self.goal.convex

    @property
    def is_distance(self) -> bool:
        """As the goal."""
        return self.goal.is_distance

    def value(self, weights: Tensor) -> float:
        """Gathered over the members."""
        return gathered(self._values(weights), self.aggregate)

    def gradient(self, weights: Tensor) -> Tensor:
        """Gradient of `value`; for "worst" that of the worst member."""
        parts = shares(self._values(weights), self.aggregate) if self.aggregate == "worst" else None
        total = torch.zeros_like(weights)
        for index, offset in enumerate(self.offsets):
            share = 1.0 / len(self.offsets) if parts is None else parts[index]
            if share:
                total = total + share * self.goal.gradient(weights + offset)
        return total

    def success(self, weights: Tensor) -> bool | None:
        """Success at the element itself, which training started there reaches."""
        return self.goal.success(weights)

    def figures(self, weights: Tensor, reference: Tensor) -> dict[str, Any]:
        """Those of the element itself."""
        return self.goal.figures(weights, reference)

    def describe(self) -> dict[str, Any]:
        """The goal's, with the number of members."""
        return {**self.goal.describe(), "members": len(self.offsets), "aggregate": self.aggregate}

    def _values(self, weights: Tensor) -> list[float]:
        return [self.goal.value(weights + offset) for offset in self.offsets]


def over_members(problem: Problem, goal: Goal, count: int, radius: float, aggregate: Aggregate, seed: int) -> Goal:
    """The goal averaged over `count` sampled members of the solution set; the goal itself where the kernel is trivial.

    Args:
        problem: clean, at one solution.
        goal: bound there.
        count: members beside the element itself.
        radius: norm of their kernel parts, relative to the norm of the weights.
        aggregate: "mean" or "worst".
        seed: of the draws.

    Returns:
        The goal over the members.
    """
    derivative = graphical_derivative(problem, torch.zeros_like(problem.x))
    offsets = derivative.members(count, radius * float(problem.weights.norm()), seed) - derivative.displacement
    if not bool((offsets.norm(dim=1) > 0).any()):
        return goal
    return MemberGoal(goal, torch.cat([torch.zeros_like(offsets[:1]), offsets]), aggregate)


class JointMap:
    """`EstimatedMap`s of several solutions that share the rows: weights are concatenated, (K p,)."""

    def __init__(self, problems: Sequence[Problem], rows: Tensor) -> None:
        self._maps = [EstimatedMap(problem, rows) for problem in problems]
        self.weights = torch.cat([each.weights for each in self._maps])

    @property
    def products(self) -> int:
        """Operator products used so far, over all solutions."""
        return sum(each.products for each in self._maps)

    def step(self, mu: Tensor) -> Tensor:
        """Estimated moves of all solutions, (K p,)."""
        return torch.cat([each.step(mu) for each in self._maps])

    def adjoint(self, slope: Tensor) -> Tensor:
        """Transpose of `step`, (k, ...)."""
        parts = slope.chunk(len(self._maps))
        total = self._maps[0].adjoint(parts[0])
        for each, part in zip(self._maps[1:], parts[1:], strict=True):
            total = total + each.adjoint(part)
        return total


@dataclass(frozen=True, eq=False)
class JointGoal:
    """The goals of several solutions as one function of their concatenated weights (K p,)."""

    goals: Sequence[Goal]
    aggregate: Aggregate

    @property
    def convex(self) -> bool:
        """Where all are."""
        return all(goal.convex for goal in self.goals)

    def value(self, weights: Tensor) -> float:
        """Gathered over the solutions."""
        return gathered(self._values(weights), self.aggregate)

    def gradient(self, weights: Tensor) -> Tensor:
        """(K p,)."""
        parts = shares(self._values(weights), self.aggregate)
        chunks = weights.chunk(len(self.goals))
        return torch.cat(
            [share * goal.gradient(part) for share, goal, part in zip(parts, self.goals, chunks, strict=True)]
        )

    def _values(self, weights: Tensor) -> list[float]:
        return [goal.value(part) for goal, part in zip(self.goals, weights.chunk(len(self.goals)), strict=True)]
