"""Which training rows to perturb: by first-order gain, by modulus, by class, at random, or as given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from poisonaudit.attack.budget import Budget
from poisonaudit.attack.objectives import Goal
from poisonaudit.errors import InputRefused, NumericalFailure, UsageError, counted
from poisonaudit.problem import Problem
from poisonaudit.sensitivity import coderivative, row_moduli


def adjoint_gains(problem: Problem, goal: Goal, budget: Budget) -> Tensor:
    """First-order decrease of the goal that each row alone can bring inside the budget.

    The gradient of `goal(w(mu))` in row i is `B_i^T u` with `H u = -grad_w goal` (the coderivative); the gain is
    `max <-B_i^T u, mu_i>` over the row's ball and box.

    Args:
        problem: clean, at wbar.
        goal: bound to it.
        budget: radius, norm and box; its number of rows does not matter here.

    Returns:
        Gains (n,), >= 0.

    Raises:
        NumericalFailure: PA431, the adjoint solve gave no finite answer.
    """
    return _gains(problem, coderivative(problem, goal.gradient(problem.weights)).value, budget)


def choose_rows(
    problem: Problem, goal: Goal, budget: Budget, seed: int = 0, *, slope: Callable[[], Tensor] | None = None
) -> Tensor:
    """Positions of the rows to perturb.

    "adjoint" takes the rows of largest gain (see `adjoint_gains`), "kappa" those of largest modulus
    `kappa_k = |H^+ B_k|_2`, whatever the goal; "class" draws from the rows of one class, the goal's wanted one unless
    the budget names another; "random" draws from all.

    Args:
        problem: clean, at wbar.
        goal: bound to it.
        budget: says how many, and by which choice.
        seed: of the draws.
        slope: gradient of the goal in all inputs (n, ...), where it is not that of this problem and goal alone.

    Returns:
        Sorted distinct positions (k,), int64.

    Raises:
        UsageError: PA361, more rows than there are; PA342, no class is named and the goal wants none, or the class has
            too few rows.
        InputRefused: PA211, the targets are no classes.
        NumericalFailure: PA431, the adjoint solve gave no finite answer.
    """
    count = budget.count(problem.rows)
    if not isinstance(budget.choice, str):
        chosen = torch.as_tensor(budget.choice)
    elif budget.choice == "random":
        chosen = torch.randperm(problem.rows, generator=torch.Generator().manual_seed(seed))[:count]
    elif budget.choice == "class":
        candidates = _rows_of_class(problem, goal, budget, count)
        order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))[:count]
        chosen = candidates[order.to(candidates.device)]
    elif budget.choice == "kappa":
        chosen = _largest(row_moduli(problem, warn=False), count)
    else:
        gains = adjoint_gains(problem, goal, budget) if slope is None else _gains(problem, slope(), budget)
        chosen = _largest(gains, count)
    return chosen.to(problem.device).sort().values


def _gains(problem: Problem, slope: Tensor, budget: Budget) -> Tensor:
    if not bool(torch.isfinite(slope).all()):
        raise NumericalFailure(
            "PA431",
            "the adjoint solve gave NaN or infinity. Check stationarity, or raise the rank tolerance.",
        )
    return budget.around(problem.x).gain(-slope)


def _largest(scores: Tensor, count: int) -> Tensor:
    # A stable sort keeps equal scores in row order, so that the choice does not depend on the machine.
    return scores.sort(descending=True, stable=True).indices[:count]


def _rows_of_class(problem: Problem, goal: Goal, budget: Budget, count: int) -> Tensor:
    labels = problem.y.argmax(1) if problem.y.dim() == 2 and problem.y.is_floating_point() else problem.y
    if labels.dim() != 1 or labels.is_floating_point():
        raise InputRefused("PA211", "the targets are no classes, so no class can be chosen. Pass choice='adjoint'.")
    wanted = budget.row_class if budget.row_class is not None else getattr(goal, "wanted_class", None)
    if wanted is None:
        raise UsageError(
            "PA342", "rows are to come from one class, and the objective wants none. Pass row_class=3, say."
        )
    found = (labels == wanted).nonzero().flatten()
    if len(found) < count:
        raise UsageError(
            "PA342",
            f"class {wanted} has {counted(len(found), 'training row')}, {count} are to be perturbed. Ask for fewer.",
        )
    return found
