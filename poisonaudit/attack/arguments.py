"""What functions about attacks take from the user: refused in one line where it is of the wrong type."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from poisonaudit.arguments import whole_number
from poisonaudit.errors import InputRefused, UsageError, wrong_type
from poisonaudit.problem import expect_problem


def expect_attack(function: str, problem: object, objective: object, budget: object) -> None:
    """Refuse anything but a problem, an objective and a budget.

    Args:
        function: that needs them.
        problem: what was passed for each.
        objective: likewise.
        budget: likewise.

    Raises:
        UsageError: PA314, one of them is something else.
    """
    # Here, because the budget takes its own numbers from this module.
    from poisonaudit.attack.budget import Budget

    expect_problem(problem, function)
    if not all(callable(getattr(objective, name, None)) for name in ("bind", "describe")):
        needed = "Pass an object such as poisonaudit.attack.FlipPrediction(x, label); only recipes name objectives."
        raise wrong_type(function, "objective", objective, needed)
    if not isinstance(budget, Budget):
        raise wrong_type(function, "budget", budget, "Pass poisonaudit.attack.Budget(radius=..., rows=...).")


def as_tensor(values: Any, what: str) -> Tensor:
    """A tensor of what a user of NumPy passes; tensors stay what they are.

    Args:
        values: a tensor, an array or nested lists of numbers.
        what: what they are, for the message.

    Returns:
        The values as a tensor, detached.

    Raises:
        InputRefused: PA127, they are no numbers.
    """
    if isinstance(values, Tensor):
        return values.detach()
    try:
        return torch.as_tensor(np.ascontiguousarray(values))
    except (TypeError, ValueError, RuntimeError):
        raise InputRefused(
            "PA127", f"{what}: a {type(values).__name__} that holds no numbers. Pass a tensor or an array of numbers."
        ) from None


def class_number(label: Any) -> int:
    """The number of a class.

    Args:
        label: as given.

    Returns:
        It as an int.

    Raises:
        UsageError: PA366, it is no whole number.
    """
    found = whole_number(label)
    if found is None:
        raise UsageError("PA366", f"class {label!r} is wanted; classes are whole numbers from 0. Pass one of those.")
    return found
