"""Does phi tell which attack steps are predicted? Attack steps and random ones, each judged by warm retraining."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.journal import measured
from benchmarks.timing import write
from benchmarks.validity_flag import data, victim
from poisonaudit import Problem, coderivative, fit, graphical_derivative
from poisonaudit.attack import (
    Budget,
    EstimatedMap,
    FlipPrediction,
    Goal,
    Objective,
    PerturbationSet,
    TargetWeights,
    choose_rows,
    minimise_estimate,
    weights_from_label_flips,
)
from poisonaudit.attack.poison import embed
from poisonaudit.validity import PHI_LIMIT
from poisonaudit.verify import success_rate

# A prediction is good where it misses the retrained change by less than this share of that change.
GOOD = 0.3
VICTIMS = [
    ("digits", "linear", 1e-3),
    ("digits", "tanh", 1e-2),
    ("digits", "tanh", 1e-3),
    ("breast_cancer", "tanh", 1e-2),
]
# The first two are what crafting proposes, the others controls.
KINDS = ("corner", "least_squares", "random_corner", "random_uniform")
PIECES, CASES = 4, 32
# Radii per entry are drawn between these, evenly in their logarithm; of the range 1 of digits, in standard deviations
# of a table.
RADII = {"digits": (0.002, 0.4), "breast_cancer": (0.01, 1.0)}
MOST_ROWS = 24
# Of one inner problem: enough for a step as crafting makes it, and no more.
_PRODUCTS = 40
# Target weights in a piece; each takes a fit.
_TARGETS = 3


def target_weights(problem: Problem, generator: torch.Generator) -> TargetWeights:
    """Weights of training with some labels of one class flipped to another."""
    present = problem.y.unique()
    own, other = present[torch.randperm(len(present), generator=generator)[:2]].tolist()
    candidates = (problem.y == own).nonzero().flatten()
    count = int(torch.randint(1, len(candidates) + 1, (1,), generator=generator))
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
    return TargetWeights(weights_from_label_flips(problem, (chosen, int(other))))


def flip(problem: Problem, held_out: Tensor, generator: torch.Generator) -> FlipPrediction:
    """Second choice of the model on a row that was not trained on."""
    row = held_out[int(torch.randint(len(held_out), (1,), generator=generator))]
    with torch.no_grad():
        second = problem.outputs(x=row[None]).topk(2, 1).indices[0, 1]
    return FlipPrediction(row, int(second))


def proposal(
    at: Problem, goal: Goal, rows: Tensor, allowed: PerturbationSet, origin: Tensor, kind: str, draw: torch.Generator
) -> Tensor:
    """Total perturbation (k, ...) of the clean rows that one step at `at`, perturbed by `origin`, goes to."""
    if kind == "corner":
        return allowed.best_linear(-coderivative(at, goal.gradient(at.weights)).value[rows])
    if kind == "least_squares":
        return minimise_estimate(EstimatedMap(at, rows), goal, allowed, origin, max_products=_PRODUCTS).mu
    noise = torch.rand(allowed.lower.shape, generator=draw, dtype=torch.float64) - 0.5
    return allowed.best_linear(noise) if kind == "random_corner" else allowed.project(2 * allowed.radius * noise)


def cases(
    problem: Problem, held_out: Tensor, radii: Sequence[float], count: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Steps of every kind in turn; half of them second steps, from a point that was poisoned and retrained before.

    Args:
        problem: clean, at a tight minimum.
        held_out: rows to flip predictions of.
        radii: least and largest.
        count: how many.
        seed: of all draws.
    """
    draw = torch.Generator().manual_seed(seed)
    box = (problem.x.amin(0), problem.x.amax(0))
    targets = [target_weights(problem, draw) for _ in range(_TARGETS)]
    for index in range(count):
        kind = KINDS[index % len(KINDS)]
        aims_at_weights = kind == "least_squares" or _uniform(draw) < 0.5
        aim: Objective = targets[index % _TARGETS] if aims_at_weights else flip(problem, held_out, draw)
        radius = radii[0] * (radii[1] / radii[0]) ** _uniform(draw)
        wanted = int(torch.randint(1, MOST_ROWS + 1, (1,), generator=draw))
        choice = "random" if kind.startswith("random") else "adjoint"
        budget = Budget(radius=radius, rows=wanted, box=box, choice=choice)
        goal = aim.bind(problem)
        rows = choose_rows(problem, goal, budget, seed + index)
        allowed = budget.around(problem.x[rows])
        at, origin = problem, torch.zeros_like(allowed.lower)
        if _uniform(draw) < 0.5:
            # As in the second step of crafting: half the way was gone and retrained already.
            half = 0.5 * proposal(at, goal, rows, allowed, origin, kind, draw)
            before = fit(problem.with_data(problem.x + embed(problem, rows, half)), tolerance=1e-9)
            if before.converged:
                at, origin = before.problem, half
        mu = embed(problem, rows, proposal(at, goal, rows, allowed, origin, kind, draw) - origin)
        if not bool(mu.any()):
            continue
        step = graphical_derivative(at, mu)
        retrained = fit(at.with_data(at.x + mu), tolerance=1e-9)
        change = retrained.problem.weights - at.weights
        missed = float((step.displacement - change).norm())
        yield {
            "kind": kind,
            "objective": aim.kind,
            "second_step": at is not problem,
            "rows": wanted,
            "radius": radius,
            "phi": step.phi,
            "valid": step.validity.ok,
            "error": missed / float(change.norm()),
            "error_over_step": missed / step.distance,
            "retrained": retrained.converged,
        }


def scores(found: Iterable[dict[str, Any]], error: str = "error") -> dict[str, Any]:
    """How well `phi <= PHI_LIMIT` tells steps whose relative error is below `GOOD`.

    Args:
        found: cases; those without a retrained minimum are counted and left out.
        error: "error" (over the retrained change) or "error_over_step" (over the predicted one).

    Returns:
        Counts, `share_vouched` (phi within the limit), `share_good`, `precision` (good among vouched) with its exact
        95 % interval, `recall` (vouched among good), and both of the alarm `phi > PHI_LIMIT` for steps that are not
        good.
    """
    given = list(found)
    kept = [case for case in given if case["retrained"]]
    vouched = [case["phi"] <= PHI_LIMIT for case in kept]
    good = [case[error] < GOOD for case in kept]
    both = sum(one and other for one, other in zip(vouched, good, strict=True))
    neither = sum(not one and not other for one, other in zip(vouched, good, strict=True))
    return {
        "cases": len(kept),
        "without_a_retrained_minimum": len(given) - len(kept),
        "share_vouched": _share(sum(vouched), len(kept)),
        "share_good": _share(sum(good), len(kept)),
        "precision": _share(both, sum(vouched)),
        "precision_interval": [success_rate(both, sum(vouched)).lower, success_rate(both, sum(vouched)).upper],
        "recall": _share(both, sum(good)),
        "alarm_precision": _share(neither, len(kept) - sum(vouched)),
        "alarm_recall": _share(neither, len(kept) - sum(good)),
    }


def by_phi(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median errors between limits of phi."""
    kept = [case for case in found if case["retrained"]]
    limits = [0.0, 0.03, 0.1, 0.3, 1.0, math.inf]
    table = []
    for low, high in zip(limits[:-1], limits[1:], strict=True):
        inside = [case for case in kept if low < case["phi"] <= high]
        entry: dict[str, Any] = {"above": low, "to": None if math.isinf(high) else high, "cases": len(inside)}
        for key in ("error", "error_over_step"):
            entry[key] = statistics.median(case[key] for case in inside) if inside else None
        table.append(entry)
    return table


def _uniform(draw: torch.Generator) -> float:
    return float(torch.rand(1, generator=draw))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@functools.cache
def trained(name: str, kind: str, decay: float) -> Problem:
    """The victim, trained once."""
    return victim(name, kind, decay)


def piece(index: int, number: int, count: int = CASES) -> dict[str, Any]:
    """Some cases of one victim."""
    name, kind, decay = VICTIMS[index]
    problem, held_out = trained(name, kind, decay), data(name, held_out=True)[0]
    mine = cases(problem, held_out, RADII[name], count, seed=1_000 * index + number)
    return {"cases": [{"victim": f"{name} {kind} {decay:g}", **case} for case in mine]}


def run() -> None:
    """Measure and store every case."""
    plan = {
        f"{name} {kind} {decay:g}, {number}": functools.partial(piece, index, number)
        for index, (name, kind, decay) in enumerate(VICTIMS)
        for number in range(PIECES)
    }
    settings = {"cases": CASES, "radii": RADII, "most_rows": MOST_ROWS, "threads": torch.get_num_threads()}
    found = [case for part in measured("attack_flag", plan, settings) for case in part["cases"]]
    body = {
        "good": f"|step - change| / |change| < {GOOD}, change by warm retraining",
        "settings": settings,
        **scores(found),
        "over_the_step": scores(found, "error_over_step"),
        "by_phi": by_phi(found),
    }
    crafted = [case for case in found if not case["kind"].startswith("random")]
    drawn = [case for case in found if case["kind"].startswith("random")]
    body |= {"crafted_steps": scores(crafted), "random_steps": scores(drawn)}
    for group in ("victim", "kind", "objective", "second_step"):
        names = sorted({str(case[group]) for case in found})
        body[f"by_{group}"] = {each: scores(case for case in found if str(case[group]) == each) for each in names}
    write("attack_flag", {**body, "all_cases": found})
