"""A crafted poison: which rows, what is added to them, what that was predicted to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poisonaudit.attack.budget import Budget
from poisonaudit.attack.objectives import Objective
from poisonaudit.errors import InputRefused
from poisonaudit.problem import Problem


@dataclass(frozen=True, eq=False)
class Poison:
    """What `craft` returns.

    Attributes:
        rows: positions (k,) of the poisoned rows in `problem.x`, sorted.
        delta: what is added to them (k, ...), in input units, inside budget and box.
        predicted: outcome of the predicted weights (the keys of `outcome`), with `method` ("path" or "linear"),
            `valid`, `reasons`, `notes`, `phi`, `kernel_share`, and under `linear` and `path` what each of the two gave.
        history: one entry per linearisation: step, predicted_objective, retrained_objective, phi, budget_used,
            converged, kept, products, seconds, ended (of the inner problem). Step 0 is the clean model.
        budget: as given.
        objective: as given.
        weights: warm-retrained weights (p,) of the best step.
        products: operator products used in all.
        seconds: wall time.
        method: who made it: "solution_set" for `craft`, else the name of a baseline.
        gradients: cost in full gradients of the training loss: a product counts as two, and what retraining while
            crafting took is in it.
        notes: remarks, e.g. clean rows outside the box.
    """

    rows: Tensor
    delta: Tensor
    predicted: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    budget: Budget
    objective: Objective
    weights: Tensor
    products: int
    seconds: float
    notes: tuple[str, ...] = ()
    method: str = "solution_set"
    gradients: int = 0

    def perturbation(self, problem: Problem) -> Tensor:
        """The perturbation mu of all rows, zero outside `rows`.

        Args:
            problem: the problem that was attacked.

        Returns:
            A tensor like `problem.x`.

        Raises:
            InputRefused: PA211, the poison was made for other rows.
        """
        fits = self.delta.shape == (len(self.rows), *problem.x.shape[1:])
        if not fits or len(self.rows) == 0 or int(self.rows.max()) >= problem.rows:
            raise InputRefused(
                "PA211",
                f"the poison is {tuple(self.delta.shape)} with rows up to {int(self.rows.max())}, the training rows "
                f"are {tuple(problem.x.shape)}. Use the problem it was crafted for.",
            )
        return embed(problem, self.rows, self.delta)

    def poisoned(self, problem: Problem) -> Problem:
        """The problem with poisoned rows, its weights unchanged."""
        return problem.with_data(problem.x + self.perturbation(problem))


def embed(problem: Problem, rows: Tensor, delta: Tensor) -> Tensor:
    """`mu` like `problem.x` from its entries (k, ...) on the rows."""
    mu = torch.zeros_like(problem.x)
    mu[rows.to(problem.device)] = delta.to(problem.x)
    return mu
