"""A setting in which ART's gradient matching works, before it serves as a baseline; and one in which it does not."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.journal import measured
from benchmarks.timing import write
from poisonaudit import Problem
from poisonaudit.art_estimator import art_classifier, art_session, silent
from poisonaudit.attack import Budget, FlipPrediction
from poisonaudit.attack.baselines import run_baseline
from poisonaudit.attack.baselines.art_support import without_workers
from poisonaudit.data import load_data
from poisonaudit.verify import loose_trainer, success_over_images

ROWS, DECAY, TARGETS, SEED, FRESH = 1_000, 1e-3, 12, 20_262, 3
# Share of all rows, radius per entry of pictures in [0, 1].
SETTINGS = [(0.2, 0.5), (0.05, 0.2)]
STEPS, RESTARTS = 250, 2
METHODS = ("art_direct", "art_gradient_matching", "gradient_matching", "random_signs")


@functools.cache
def victim() -> tuple[Problem, Tensor, Tensor]:
    """MLP 64-64-10 with ReLU after a short run (40 epochs of Adam), and the test rows."""
    rows = load_data("digits", limit=ROWS).to(torch.float64)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()
    problem = Problem(model, "cross_entropy", rows.x_train, rows.y_train, DECAY)
    return problem.at(loose_trainer()(problem, 0)), rows.x_test, rows.y_test


def target(number: int) -> tuple[int, FlipPrediction]:
    """A test row that the victim gets right, and another class wanted for it, both drawn."""
    problem, x, y = victim()
    with torch.no_grad():
        right = (problem.outputs(x=x).argmax(1) == y).nonzero().flatten()
    draw = torch.Generator().manual_seed(SEED)
    row = int(right[torch.randperm(len(right), generator=draw)[number]])
    further = torch.randint(1, 10, (TARGETS,), generator=draw)[number]
    return row, FlipPrediction(x[row], int((y[row] + further) % 10))


def art_direct(problem: Problem, flip: FlipPrediction, share: float, radius: float, seed: int) -> Tensor:
    """ART's own attack on the whole training set; it picks its rows among those of the wanted class."""
    from art.attacks.poisoning import GradientMatchingAttack

    with art_session(seed), silent(), torch.enable_grad(), without_workers():
        model = problem.module().float().requires_grad_(True)
        classifier = art_classifier(model, (64,), 10, (0.0, 1.0), device_type="gpu")
        attack = GradientMatchingAttack(
            classifier, percent_poison=share, epsilon=radius, max_trials=RESTARTS, max_epochs=STEPS, verbose=0
        )
        wanted, x, y = torch.tensor([flip.label]), problem.x.float(), problem.y
        trigger = flip.x.float().reshape(1, -1)
        found = attack.poison(trigger.numpy(), wanted.numpy(), x.numpy(), y.numpy())[0]
    return torch.as_tensor(found).double()


def crafted(method: str, flip: FlipPrediction, share: float, radius: float, seed: int) -> Tensor:
    """Poisoned inputs of all rows, those of other classes than the wanted one untouched."""
    problem = victim()[0]
    if method == "art_direct":
        return art_direct(problem, flip, share, radius, seed)
    own = (problem.y == flip.label).nonzero().flatten()
    most = min(len(own), int(share * problem.rows))
    rows = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))[:most]]
    budget = Budget(radius=radius, rows=most, box=(0.0, 1.0))
    options = {} if method == "random_signs" else {"steps": STEPS, "restarts": RESTARTS}
    return run_baseline(method, problem, flip, budget, rows, seed, **options).poisoned(problem).x


@functools.cache
def clean(seed: int) -> Problem:
    """The control of a fresh seed."""
    problem = victim()[0]
    return problem.at(loose_trainer()(problem, seed))


def case(number: int, share: float, radius: float, method: str) -> dict[str, Any]:
    """One target attacked and retrained loosely from fresh seeds."""
    problem = victim()[0]
    row, flip = target(number)
    x = crafted(method, flip, share, radius, seed=number)
    moved = (x - problem.x).flatten(1).abs().amax(1)
    hits, controls = [], []
    for seed in range(1, FRESH + 1):
        poisoned = problem.with_data(x)
        for found, weights in ((hits, loose_trainer()(poisoned, seed)), (controls, clean(seed).weights)):
            with torch.no_grad():
                found.append(int(problem.outputs(weights, flip.x.reshape(1, -1)).argmax()) == flip.label)
    return {
        "method": method,
        "share": share,
        "radius": radius,
        "test_row": row,
        "wanted": flip.label,
        "rows_moved": int((moved > 1e-6).sum()),
        "largest_move": float(moved.max()),
        "success": hits,
        "control_success": controls,
    }


def scores(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Targets hit in most of their retrainings, by setting and method, with exact intervals over targets."""
    table = []
    for share, radius in SETTINGS:
        for method in METHODS:
            mine = [
                each for each in found if (each["share"], each["radius"], each["method"]) == (share, radius, method)
            ]
            runs = [hit for each in mine for hit in each["success"]]
            table.append(
                {
                    "share": share,
                    "radius": radius,
                    "method": method,
                    "rows_moved": [min(each["rows_moved"] for each in mine), max(each["rows_moved"] for each in mine)],
                    "targets": asdict(success_over_images([each["success"] for each in mine])),
                    "controls": asdict(success_over_images([each["control_success"] for each in mine])),
                    "retrainings": {"successes": sum(runs), "trials": len(runs)},
                }
            )
    return table


def run() -> None:
    """Measure and store every case."""
    plan = {
        f"{method}, {share:g} of rows, radius {radius:g}, target {number}": functools.partial(
            case, number, share, radius, method
        )
        for number in range(TARGETS)
        for share, radius in SETTINGS
        for method in METHODS
    }
    settings = {
        "rows": ROWS,
        "decay": DECAY,
        "model": "MLP 64-64-10, ReLU",
        "training": str(loose_trainer()),
        "steps": STEPS,
        "restarts": RESTARTS,
        "fresh": FRESH,
        "seed": SEED,
        "threads": torch.get_num_threads(),
    }
    found = measured("attack_art_setting", plan, settings)
    versions = {"adversarial-robustness-toolbox": importlib.metadata.version("adversarial-robustness-toolbox")}
    body = {"settings": settings, "other_versions": versions, "table": scores(found), "all_cases": found}
    write("attack_art_setting", body)
