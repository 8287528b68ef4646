"""What all baselines share: the check of their arguments, the count of their cost, and the poison they hand back."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poisonaudit.attack.baselines.options import refuse_bad_options
from poisonaudit.attack.budget import Budget
from poisonaudit.attack.objectives import Objective
from poisonaudit.attack.perturbations import PerturbationSet
from poisonaudit.attack.poison import Poison
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.problem import Problem

# Passes through the rows, in gradients: one gradient in the weights, and its own gradient in the inputs.
GRADIENT = 1.0
GRADIENT_OF_GRADIENT = 2.0
# How many entries a history has, about.
_ENTRIES = 10


@dataclass(frozen=True)
class Baseline:
    """One entry of the table of baselines.

    Attributes:
        run: `(problem, objective, budget, rows, seed=0, *, steps, progress, ...) -> Poison`.
        applies: `(problem, objective, budget)` -> why the method cannot be used there, "" where it can.
        source: who proposed it, and whose code it runs.
    """

    run: Callable[..., Poison]
    applies: Callable[[Problem, Objective, Budget], str]
    source: str


@dataclass(frozen=True, eq=False)
class Start:
    """Checked arguments of one run.

    Attributes:
        name: of the baseline.
        problem: clean.
        objective: as given.
        budget: as given.
        rows: sorted positions (k,).
        allowed: admissible perturbations of those rows.
        begun: clock at the start.
        remarks: on the budget.
    """

    name: str
    problem: Problem
    objective: Objective
    budget: Budget
    rows: Tensor
    allowed: PerturbationSet
    begun: float
    remarks: Sequence[str] = ()

    @property
    def x(self) -> Tensor:
        """The clean rows (k, ...)."""
        return self.problem.x[self.rows]

    @property
    def y(self) -> Tensor:
        """Their labels (k, ...)."""
        return self.problem.y[self.rows]

    def share(self, passes: float) -> float:
        """Cost of passes through the k rows, in gradients over all n."""
        return passes * len(self.rows) / self.problem.rows

    def seconds(self) -> float:
        """Wall time so far."""
        return time.perf_counter() - self.begun

    def poison(
        self,
        delta: Tensor,
        gradients: float,
        history: Sequence[Mapping[str, Any]],
        *,
        products: int = 0,
        predicted: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> Poison:
        """The result, with the remarks that hold for every method.

        Args:
            delta: admissible perturbation (k, ...).
            gradients: cost in full gradients, products not counted.
            history: entries made on the way.
            products: operator products; each counts as two gradients.
            predicted: what the method predicts, if it does.
            notes: remarks of the method.

        Returns:
            The poison; its weights are the clean ones, for no baseline retrains.
        """
        told = [*self.remarks, *notes]
        if self.allowed.outside:
            told.append(
                f"{self.allowed.outside} of the rows lie outside the box; their entries there may stay or come back, "
                "never go further out"
            )
        if not bool(delta.any()):
            told.append("no perturbation in the budget was found that helps by this method's measure")
        return Poison(
            rows=self.rows,
            delta=delta.detach(),
            predicted={} if predicted is None else predicted,
            history=tuple(history),
            budget=self.budget,
            objective=self.objective,
            weights=self.problem.weights,
            products=products,
            seconds=self.seconds(),
            notes=tuple(told),
            method=self.name,
            gradients=math.ceil(round(gradients, 6)) + 2 * products,
        )


def begin(
    name: str,
    problem: Problem,
    objective: Objective,
    budget: Budget,
    rows: Tensor | Sequence[int],
    steps: int,
    reason: str = "",
) -> Start:
    """Check the arguments of a baseline.

    Args:
        name: of the baseline.
        problem: clean, at wbar.
        objective: what is attacked.
        budget: how far; its choice of rows does not matter.
        rows: positions (k,) of the rows to perturb, usually those `craft` chose.
        steps: at least 1.
        reason: why the method does not apply, "" where it does.

    Returns:
        The checked start.

    Raises:
        InputRefused: PA281, the method does not apply.
        UsageError: PA363, bad positions; PA361, more rows than the budget has; PA367, steps below 1; PA385, no entry of
            a row can move.
    """
    begun = time.perf_counter()
    if reason:
        raise refused(name, reason)
    refuse_bad_options(name, steps=steps)
    chosen = dataclasses.replace(budget, choice=torch.as_tensor(rows), rows=None, share=None)
    given, most = chosen.count(problem.rows), budget.count(problem.rows)
    if given > most:
        raise UsageError("PA361", f"{given} rows are given, the budget allows {most}. Give the rows that craft chose.")
    positions = torch.as_tensor(chosen.choice).to(problem.device).sort().values
    allowed, remarks = budget.around(problem.x[positions]), budget.remarks(problem.x)
    return Start(name, problem, objective, budget, positions, allowed, begun, remarks)


def refused(name: str, reason: str) -> InputRefused:
    """Return (not raise) the refusal of a method that does not apply."""
    return InputRefused(
        "PA281", f"baseline {name!r} is not applicable: {reason}. Ask `applicable` first, or take another baseline."
    )


def anything(problem: Problem, objective: Objective, budget: Budget) -> str:
    """Applies everywhere."""
    return ""


def worth_telling(step: int, steps: int) -> bool:
    """Whether the history gets an entry: the first, the last and about ten steps between."""
    return step in {0, steps} or step % max(1, steps // _ENTRIES) == 0


def weight_gradient(problem: Problem, weights: Tensor, x: Tensor, y: Tensor, *, graph: bool = False) -> Tensor:
    """`(1/n) sum_k grad_w L(f(x_k, w), y_k)` over the given rows, decay not included.

    Args:
        problem: gives model, loss and n.
        weights: (p,).
        x: rows (k, ...).
        y: their labels.
        graph: keep it differentiable in x.

    Returns:
        (p,).
    """
    point = weights.detach().requires_grad_(True)
    with torch.enable_grad():
        total = problem.losses(point, x, y).sum() / problem.rows
        (gradient,) = torch.autograd.grad(total, point, create_graph=graph, materialize_grads=True)
    return gradient
