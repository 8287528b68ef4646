"""Published attacks and controls to run beside `craft`: the same budget, the same rows, the same retraining.

One file each. A baseline is `name(problem, objective, budget, rows, seed=0, *, steps, progress, ...) -> Poison`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from poisonaudit.attack.arguments import expect_attack
from poisonaudit.attack.baselines.art_bullseye import art_bullseye
from poisonaudit.attack.baselines.art_bullseye import why_not as _no_bullseye
from poisonaudit.attack.baselines.art_feature_collision import art_feature_collision
from poisonaudit.attack.baselines.art_feature_collision import why_not as _no_collision
from poisonaudit.attack.baselines.art_gradient_matching import art_gradient_matching
from poisonaudit.attack.baselines.art_gradient_matching import why_not as _no_art_matching
from poisonaudit.attack.baselines.base import Baseline, anything
from poisonaudit.attack.baselines.gradient_canceling import gradient_canceling, needs_target
from poisonaudit.attack.baselines.gradient_matching import gradient_matching
from poisonaudit.attack.baselines.influence import influence
from poisonaudit.attack.baselines.options import refuse_bad_options
from poisonaudit.attack.baselines.random_signs import random_signs
from poisonaudit.attack.budget import Budget
from poisonaudit.attack.objectives import Objective
from poisonaudit.attack.poison import Poison
from poisonaudit.problem import Problem
from poisonaudit.registry import lookup, unknown_name
from poisonaudit.training import Progress

BASELINES: dict[str, Baseline] = {
    "gradient_matching": Baseline(gradient_matching, anything, "Geiping et al., ICLR 2021"),
    "gradient_canceling": Baseline(gradient_canceling, needs_target, "Lu, Kamath and Yu, ICML 2023"),
    "influence": Baseline(influence, anything, "Koh and Liang, ICML 2017"),
    "random_signs": Baseline(random_signs, anything, "control"),
    "art_gradient_matching": Baseline(art_gradient_matching, _no_art_matching, "Geiping et al., ICLR 2021; ART"),
    "art_feature_collision": Baseline(art_feature_collision, _no_collision, "Shafahi et al., NeurIPS 2018; ART"),
    "art_bullseye": Baseline(art_bullseye, _no_bullseye, "Aghakhani et al., EuroS&P 2021; ART"),
}
# What every baseline is called with; the rest of its parameters are its own options.
_COMMON = ("problem", "objective", "budget", "rows", "seed", "progress")


def applicable(name: str, problem: Problem, objective: Objective, budget: Budget) -> str:
    """Why a baseline cannot be used here, "" where it can; what depends on the chosen rows is told when it runs.

    Args:
        name: of the baseline.
        problem: clean, at wbar.
        objective: what is attacked.
        budget: how far rows may move.

    Returns:
        The reason, in words.

    Raises:
        UsageError: PA301, no baseline has that name.
    """
    return lookup(BASELINES, name, "baseline").applies(problem, objective, budget)


def options_of(name: str) -> dict[str, Any]:
    """A baseline's own options and their defaults, `steps` included.

    Args:
        name: of the baseline.

    Returns:
        Option -> default.

    Raises:
        UsageError: PA301, no baseline has that name.
    """
    parameters = inspect.signature(lookup(BASELINES, name, "baseline").run).parameters
    return {key: each.default for key, each in parameters.items() if key not in _COMMON}


def run_baseline(
    name: str,
    problem: Problem,
    objective: Objective,
    budget: Budget,
    rows: Tensor | Sequence[int],
    seed: int = 0,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Poison:
    """Run a baseline by name.

    Args:
        name: see `BASELINES`.
        problem: clean, at wbar.
        objective: what is attacked.
        budget: how far rows may move.
        rows: positions (k,) of the rows to perturb, usually those `craft` chose.
        seed: of what the method draws.
        progress: called with a message and a fraction.
        options: `steps` and the method's own, see `options_of`.

    Returns:
        The poison, its `method` the baseline's name.

    Raises:
        UsageError: PA301, no baseline or option has that name; others as the baseline says.
        InputRefused: PA281, the baseline is not applicable here.
    """
    expect_attack("run_baseline", problem, objective, budget)
    baseline = lookup(BASELINES, name, "baseline")
    known = options_of(name)
    for option in options:
        if option not in known:
            raise unknown_name(option, known, f"option of {name}")
    return baseline.run(problem, objective, budget, rows, seed, progress=progress, **options)


__all__ = [
    "BASELINES",
    "Baseline",
    "applicable",
    "art_bullseye",
    "art_feature_collision",
    "art_gradient_matching",
    "gradient_canceling",
    "gradient_matching",
    "influence",
    "options_of",
    "random_signs",
    "refuse_bad_options",
    "run_baseline",
]
