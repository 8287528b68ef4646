"""How far poisons move a convex victim toward target weights, and whether that was predicted."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.journal import measured
from benchmarks.timing import write
from poisonaudit import Problem, fit
from poisonaudit.attack import Budget, Poison, TargetWeights, craft, weights_from_label_flips
from poisonaudit.data import load_data
from poisonaudit.validity import PHI_LIMIT
from poisonaudit.verify import retrain

ROWS, DECAY, PAIRS, SEED, FRESH = 1_000, 1e-3, 5, 20_261, 2
# Share of the class that the target's training had flipped -> budgets (share of rows, radius in 1/255).
BUDGETS = {
    0.1: [(0.05, 32), (0.5, 32)],
    0.3: [(0.05, 16), (0.05, 32), (0.5, 16), (0.5, 32), (0.5, 64)],
    1.0: [(0.05, 32), (0.5, 32), (0.5, 64)],
}
# One linear step alone, where it is short enough for the flag to vouch for it.
SHORT = [(0.05, 2), (0.05, 4), (0.05, 8), (0.5, 1), (0.5, 2), (0.5, 4)]
STEPS = 6
# Whole classes at half of the rows are not reached: is it the steps or the budget?
MORE_STEPS, LONGER = 24, [((2, 0), 32), ((5, 1), 32), ((2, 0), 64), ((5, 1), 64)]
# Least movement asked for, by budget; least retrained / predicted where phi is within its limit.
WANTED = {(0.05, 32): 0.40, (0.5, 32): 0.90}
RATIO = 0.9
# Two minima of one strictly convex problem, each at its own tolerance, differ by less.
SAME = 1e-6


@functools.cache
def victim() -> Problem:
    """Logistic regression at a tight minimum.

    Raises:
        RuntimeError: training did not reach it.
    """
    rows = load_data("digits", limit=ROWS).to(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(64, 10).double()
    fitted = fit(Problem(model, "cross_entropy", rows.x_train, rows.y_train, DECAY))
    if not fitted.converged:
        raise RuntimeError(fitted.reason)
    return fitted.problem


def pairs(count: int = PAIRS, classes: int = 10) -> list[tuple[int, int]]:
    """Ordered pairs of classes, drawn without repetition."""
    drawn = torch.randperm(classes * (classes - 1), generator=torch.Generator().manual_seed(SEED))[:count]
    parts = [divmod(index, classes - 1) for index in drawn.tolist()]
    return [(first, (first + 1 + further) % classes) for first, further in parts]


def target(problem: Problem, pair: tuple[int, int], share: float, seed: int) -> tuple[TargetWeights, Tensor]:
    """Weights of training with a share of one class labelled as the other, and the rows that were."""
    own = (problem.y == pair[0]).nonzero().flatten()
    count = max(1, round(share * len(own)))
    chosen = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))[:count]]
    return TargetWeights(weights_from_label_flips(problem, (chosen, pair[1]))), chosen


@functools.cache
def control() -> Any:
    """Clean trainings from the fresh seeds; with the clean weights they serve every case."""
    problem = victim()
    nothing = torch.zeros(1, 64, dtype=torch.float64)
    aim = TargetWeights(problem.weights + 1.0)
    poison = Poison(torch.tensor([0]), nothing, {}, (), Budget(radius=1.0, rows=1), aim, problem.weights, 0, 0.0)
    return retrain(problem, poison, FRESH, loose=False).control


def of_one_step(problem: Problem, aim: TargetWeights, budget: Budget) -> dict[str, Any]:
    """One linearisation: what it predicts, and where warm retraining ends."""
    poison = craft(problem, aim, budget, steps=1, tolerance=1e-8)
    judged = retrain(problem, poison, 0, loose=False)
    linear, reached = poison.predicted["linear"], judged.warm.outcome
    return {
        "predicted_movement": linear["movement"],
        "phi": linear["phi"],
        "movement": reached["movement"],
        "distance_ratio": reached["distance_ratio"],
        "ratio": reached["movement"] / linear["movement"],
        "halved": len(poison.history) - 2,
    }


def case(pair: tuple[int, int], flipped: float, share: float, radius: int, *, short: bool = False) -> dict[str, Any]:
    """One target and budget: one step, and relinearised, retrained warm and from fresh seeds."""
    problem = victim()
    aim, chosen = target(problem, pair, flipped, seed=SEED + PAIRS)
    budget = Budget(radius=radius / 255, share=share, box=(0.0, 1.0))
    offset = float((aim.weights - problem.weights).norm())
    body: dict[str, Any] = {
        "pair": list(pair),
        "flipped_share": flipped,
        "flipped_rows": len(chosen),
        "offset": offset,
        "offset_over_weights": offset / float(problem.weights.norm()),
        "share": share,
        "radius_255": radius,
        "one_step": of_one_step(problem, aim, budget),
    }
    if short:
        return body
    poison = craft(problem, aim, budget, steps=STEPS, tolerance=1e-8)
    judged = retrain(problem, poison, FRESH, loose=False, control=control())
    predicted, warm = poison.predicted, judged.warm.outcome
    return {
        **body,
        "relinearised": {
            "predicted_movement": predicted["movement"],
            "method": predicted["method"],
            "linear_movement": predicted["linear"]["movement"],
            "phi": predicted["linear"]["phi"],
            "movement": warm["movement"],
            "distance_ratio": warm["distance_ratio"],
            "cosine": warm["cosine"],
            "ratio": warm["movement"] / predicted["movement"],
            "ratio_linear": warm["movement"] / predicted["linear"]["movement"],
            "fresh_movement": [run.outcome["movement"] for run in judged.tight],
            "converged": judged.warm.converged and all(run.converged for run in judged.tight),
            "history": [
                {key: line[key] for key in ("step", "predicted_objective", "retrained_objective", "phi", "products")}
                for line in poison.history
            ],
            "crafting_seconds": poison.seconds,
            "gradients": poison.gradients,
        },
    }


def longer(pair: tuple[int, int], radius: int) -> dict[str, Any]:
    """A whole class flipped, half of the rows: where many more steps end, and what the linear model there promises."""
    problem = victim()
    aim, _ = target(problem, pair, 1.0, seed=SEED + PAIRS)
    poison = craft(
        problem, aim, Budget(radius=radius / 255, share=0.5, box=(0.0, 1.0)), steps=MORE_STEPS, tolerance=1e-8
    )
    start, last = poison.history[0]["retrained_objective"], poison.history[-1]["step"]
    whole = next(line for line in poison.history if line["step"] == last)
    warm = retrain(problem, poison, 0, loose=False).warm.outcome
    return {
        "pair": list(pair),
        "radius_255": radius,
        "steps": last,
        "movement": warm["movement"],
        "distance_ratio": warm["distance_ratio"],
        # Of the last linearisation, made near where the poison is, before any halving.
        "linear_distance_ratio": (whole["predicted_objective"] / start) ** 0.5,
        "gradients": poison.gradients,
    }


def scores(found: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Movement by target and budget, and how the requirements fare."""
    cases = list(found)
    whole = [each for each in cases if "relinearised" in each]
    table, short = [], []
    for flipped, budgets in BUDGETS.items():
        for share, radius in budgets:
            cell = [
                each
                for each in whole
                if (each["flipped_share"], each["share"], each["radius_255"]) == (flipped, share, radius)
            ]
            moved = [each["relinearised"]["movement"] for each in cell]
            wanted = WANTED.get((share, radius))
            table.append(
                {
                    "flipped_share": flipped,
                    "share": share,
                    "radius_255": radius,
                    "cases": len(cell),
                    "offset_over_weights": statistics.median(each["offset_over_weights"] for each in cell),
                    "movement": {"median": statistics.median(moved), "lowest": min(moved), "highest": max(moved)},
                    "linear_movement": statistics.median(each["relinearised"]["linear_movement"] for each in cell),
                    "one_step_movement": statistics.median(each["one_step"]["movement"] for each in cell),
                    "wanted": wanted,
                    "reached_by": None if wanted is None else sum(value >= wanted for value in moved),
                }
            )
    for each in cases:
        steps = [each["one_step"]]
        if "relinearised" in each:
            more = each["relinearised"]
            steps.append({"phi": more["phi"], "ratio": more["ratio_linear"]})
        short += [step["ratio"] for step in steps if step["phi"] is not None and step["phi"] <= PHI_LIMIT]
    followed = [each["relinearised"]["ratio"] for each in whole]
    return {
        "table": table,
        "one_step_better": sum(
            each["one_step"]["distance_ratio"] < each["relinearised"]["distance_ratio"] - SAME for each in whole
        ),
        "compared": len(whole),
        "linear_ratio_within_phi": {
            "cases": len(short),
            "lowest": min(short, default=None),
            "highest": max(short, default=None),
            "below": sum(value < RATIO for value in short),
        },
        "path_ratio": {"cases": len(followed), "lowest": min(followed), "highest": max(followed)},
        "fresh_against_warm": max(
            abs(value - each["relinearised"]["movement"])
            for each in whole
            for value in each["relinearised"]["fresh_movement"]
        ),
        "not_converged": sum(not each["relinearised"]["converged"] for each in whole),
    }


def run() -> None:
    """Measure and store every case."""
    drawn = pairs()
    plan = {}
    for flipped, budgets in BUDGETS.items():
        for share, radius in budgets:
            for pair in drawn:
                key = f"{pair[0]} to {pair[1]}, {flipped:g} flipped, {share:g} of rows, {radius}/255"
                plan[key] = functools.partial(case, pair, flipped, share, radius)
    for share, radius in SHORT:
        for pair in drawn:
            key = f"{pair[0]} to {pair[1]}, one step, {share:g} of rows, {radius}/255"
            plan[key] = functools.partial(case, pair, 0.3, share, radius, short=True)
    settings = {
        "rows": ROWS,
        "decay": DECAY,
        "pairs": [list(pair) for pair in drawn],
        "seed": SEED,
        "steps": STEPS,
        "fresh": FRESH,
        "threads": torch.get_num_threads(),
    }
    found = measured("attack_convex", plan, settings)
    more = {
        f"{pair[0]} to {pair[1]}, 1 flipped, 0.5 of rows, {radius}/255, up to {MORE_STEPS} steps": functools.partial(
            longer, pair, radius
        )
        for pair, radius in LONGER
    }
    further = measured("attack_convex", more, settings)
    body = {"settings": settings, **scores(found), "more_steps": further, "all_cases": found}
    write("attack_convex", body)
