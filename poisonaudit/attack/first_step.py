"""How much H is damped where the owner's training stops short of a minimum: as much as makes the first step best.

A training that stops early has not followed the flat directions, much as a minimum of an objective with more decay has
not: a slope through the undamped H would promise moves that training never makes. How much is right depends on how far
the training goes, so it is found by training.
"""

from __future__ import annotations

from collections.abc import Sequence

from poisonaudit.attack.steps import Task, advance, propose, start_of

# Relative to the largest eigenvalue of H.
DAMPINGS = (1e-1, 3e-2, 1e-2, 5e-3, 2.5e-3, 1e-3)


def best_first_step(tasks: Sequence[Task], length: float) -> tuple[Task, int, int]:
    """The task whose first step leads furthest after training.

    Args:
        tasks: alike but for damping and the rows it chose; from the most damped to the least.
        length: of the step, as a share of the radius.

    Returns:
        The task, and the operator products and gradients that the trials took.
    """
    best, lowest, products, gradients = tasks[0], float("inf"), 0, 0
    for task in tasks:
        start = start_of(task)
        aim, used, _ = propose(task, start, 1.0, length)
        trial = advance(task, start, task.allowed.project(aim))
        products, gradients = products + used + trial.products, gradients + trial.gradients
        if trial.point.value < lowest:
            best, lowest = task, trial.point.value
    return best, products, gradients
