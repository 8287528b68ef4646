"""Options of `craft` that no crafting can have, refused in one line before anything is computed."""

from __future__ import annotations

import math

from poisonaudit.arguments import whole_number
from poisonaudit.attack.ensemble import AGGREGATES
from poisonaudit.attack.inner import METHODS
from poisonaudit.attack.objectives import Membership, Objective
from poisonaudit.errors import UsageError, wrong_type
from poisonaudit.registry import unknown_name

_METHODS = ("auto", "corner", "pgd", *METHODS)
_OUTER = ("retrain", "path")


def refuse_bad_options(steps: int, members: int, damping: float, method: str, outer: str, aggregate: str) -> None:
    """Refuse counts and names that no crafting can have.

    Args:
        steps: of `craft`, as all others.
        members: likewise.
        damping: likewise.
        method: likewise.
        outer: likewise.
        aggregate: likewise.

    Raises:
        UsageError: PA367, PA301.
    """
    counts = whole_number(steps), whole_number(members)
    real = isinstance(damping, int | float) and not isinstance(damping, bool)
    if None in counts or min(steps - 1, members) < 0 or not real or not 0.0 <= damping < math.inf:
        raise UsageError(
            "PA367",
            f"steps is {steps!r}, members is {members!r}, damping is {damping!r}; at least one linearisation is "
            "needed, the others must not be negative, and steps and members are whole numbers. Pass steps=12.",
        )
    for name, known, what in (
        (method, _METHODS, "crafting method"),
        (outer, _OUTER, "outer step"),
        (aggregate, AGGREGATES, "aggregate"),
    ):
        if name not in known:
            raise unknown_name(str(name), known, what)


def refuse_beside_trainer(
    trainer: object, objective: Objective, solutions: object, members: int, method: str, outer: str
) -> None:
    """Refuse what does not go with crafting through the owner's training.

    Args:
        trainer: of `craft`, as all others.
        objective: likewise.
        solutions: likewise.
        members: likewise.
        method: likewise.
        outer: likewise.

    Raises:
        UsageError: PA314, the trainer cannot be called; PA341, fewer than one solution; PA367, the other options.
    """
    if not callable(trainer):
        raise wrong_type("craft", "trainer", trainer, "Pass a callable (problem, seed) -> weights.")
    if isinstance(objective, Membership) or not isinstance(solutions, int) or members or outer != "retrain":
        raise UsageError(
            "PA367",
            "a trainer is called from fresh seeds at each step: membership, weights of further solutions, members and "
            "outer do not go with it. Leave them out, or leave the trainer out.",
        )
    if solutions < 1:
        raise UsageError("PA341", f"{solutions} solutions are asked for, each trained from its own seed. Pass >= 1.")
    if method not in ("auto", "pgd"):
        raise UsageError(
            "PA367", f"method is {method}, which needs minima; with a trainer crafting is by pgd. Leave method out."
        )
