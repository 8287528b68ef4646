"""Options of `craft` that no crafting can have, refused in one line before anything is computed."""

from __future__ import annotations

from poisonaudit.arguments import MOST_DAMPING, damping_share, whole_number
from poisonaudit.attack.ensemble import AGGREGATES
from poisonaudit.attack.inner import METHODS
from poisonaudit.attack.objectives import Membership, Objective
from poisonaudit.attack.progress import CraftState
from poisonaudit.errors import UsageError, wrong_type
from poisonaudit.registry import unknown_name

_METHODS = ("auto", "corner", "pgd", *METHODS)
_OUTER = ("retrain", "path")


def refuse_bad_options(
    steps: int, members: int, damping: float | None, method: str, outer: str, aggregate: str, seed: int
) -> None:
    """Refuse counts and names that no crafting can have.

    Args:
        steps: of `craft`, as all others.
        members: likewise.
        damping: likewise.
        method: likewise.
        outer: likewise.
        aggregate: likewise.
        seed: likewise.

    Raises:
        UsageError: PA367, PA301.
    """
    for name, count, least in (("steps", steps, 1), ("members", members, 0), ("seed", seed, 0)):
        whole = whole_number(count)
        if whole is None or whole < least:
            raise UsageError(
                "PA367", f"{name} is {count!r}; a whole number >= {least} is needed. Leave it out for the default."
            )
    if damping is not None and damping_share(damping) is None:
        raise UsageError(
            "PA367",
            f"damping is {damping!r}, a share of the largest eigenvalue; it must lie in [0, {MOST_DAMPING:g}]. Leave "
            "it out for the default.",
        )
    for name, known, what in (
        (method, _METHODS, "crafting method"),
        (outer, _OUTER, "outer step"),
        (aggregate, AGGREGATES, "aggregate"),
    ):
        if name not in known:
            raise unknown_name(str(name), known, what)


def refuse_other_types(state: object, on_step: object, progress: object) -> None:
    """Refuse what crafting can neither go on from nor call.

    Args:
        state: of `craft`, as all others.
        on_step: likewise.
        progress: likewise.

    Raises:
        UsageError: PA314, one of them is of the wrong type.
    """
    if state is not None and not isinstance(state, CraftState):
        raise wrong_type("craft", "state", state, "Pass the CraftState that on_step was called with, or leave it out.")
    for name, call, takes in (("on_step", on_step, "(state)"), ("progress", progress, "(message, fraction)")):
        if call is not None and not callable(call):
            raise wrong_type("craft", name, call, f"Pass a callable {takes}, or leave it out.")


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
