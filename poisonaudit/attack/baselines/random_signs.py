"""Control: a random corner of the budget, what any attack has to beat.

Random signs are the usual control of sign-gradient methods (Goodfellow, Shlens and Szegedy, 2015, section 8): as large
as the budget allows, and independent of the objective.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from poisonaudit.attack.baselines.base import begin
from poisonaudit.attack.budget import Budget
from poisonaudit.attack.objectives import Objective
from poisonaudit.attack.poison import Poison
from poisonaudit.problem import Problem
from poisonaudit.training import Progress

# Breaks ties between entries, also in float32; where few entries move, their sizes do not depend on it.
_TIES = 1e-3


def random_signs(
    problem: Problem,
    objective: Objective,
    budget: Budget,
    rows: Tensor | Sequence[int],
    seed: int = 0,
    *,
    steps: int = 1,
    progress: Progress | None = None,
) -> Poison:
    """`argmax <s, mu>` over the budget for random signs s: in l_inf the signs times the radius, cut by the box.

    Where only some entries can move ("l1", "l0") all entries are worth the same, and chance decides which.

    Args:
        problem: clean, at wbar.
        objective: kept in the result; the perturbation does not depend on it.
        budget: how far rows may move.
        rows: positions (k,) of the rows to perturb.
        seed: of the signs.
        steps: no steps are made; taken so that all baselines can be called alike.
        progress: called once.

    Returns:
        The poison, with an empty history.
    """
    start = begin("random_signs", problem, objective, budget, rows, steps)
    generator = torch.Generator().manual_seed(seed)
    signs = 2.0 * torch.randint(0, 2, start.x.shape, generator=generator).double() - 1.0
    if budget.norm in ("l1", "l0"):
        signs = signs * (1.0 + _TIES * torch.rand(start.x.shape, generator=generator, dtype=torch.float64))
    delta = start.allowed.best_linear(signs.to(start.x))
    if progress is not None:
        progress("random signs: done", 1.0)
    return start.poison(delta, 0, ())
