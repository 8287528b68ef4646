"""Flip test digits of a tanh network, ours beside gradient matching and controls: 64 images, none dropped.

The images, their wanted classes and the seeds of retraining are drawn by `SEED` before anything is crafted. The drawn
class is any wrong one; `attack_flips_runner_up` turns each image to the clean model's runner-up instead, which lies
nearer. An image counts where most of its fresh seeds give the wanted class. Finished cases are kept in results/local,
so that a killed run goes on; processes may share the work: `python -m benchmarks.attack_flips VARIANT PART PARTS`.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.drawn_flips import DrawnFlips
from benchmarks.journal import measured
from benchmarks.timing import write
from poisonaudit import craft
from poisonaudit.attack import Budget, Poison
from poisonaudit.attack.baselines import run_baseline
from poisonaudit.models import build_model
from poisonaudit.verify import paired_difference, success_over_images

SEED = 20261121
IMAGES, SEEDS = 64, 3
RADII = (16, 32)
SHARE = 0.05
METHODS = ("solution_set", "gradient_matching", "art_gradient_matching", "random_signs")
# The wanted classes, and the methods that are tried on them.
VARIANTS = {"drawn": METHODS, "runner_up": METHODS[:1]}
NAMES = {"drawn": "attack_flips", "runner_up": "attack_flips_runner_up"}


@functools.cache
def trained_setting() -> DrawnFlips:
    """The trained victim with its images and seeds."""
    model = build_model("mlp:64-32-10?activation=tanh", input_shape=(64,), outputs=10)
    return DrawnFlips(model, 1000, 1e-3, SEED, IMAGES, {"tight": SEEDS, "loose": SEEDS})


def poisons(setting: DrawnFlips, index: int, radius: int, variant: str) -> dict[str, Poison]:
    """Ours, and the others on the same rows."""
    victim, goal = setting.victim, setting.goal(index, variant)
    budget = Budget(radius=radius / 255, share=SHARE, box=(0.0, 1.0))
    ours = craft(victim, goal, budget, seed=index)
    found = {"solution_set": ours}
    for name in VARIANTS[variant][1:]:
        try:
            found[name] = run_baseline(name, victim, goal, budget, ours.rows, seed=index)
        except ValueError as refused:
            # ART moves rows of the wanted class only; where we chose none, it has nothing to do.
            print(f"image {index}, {name}: {refused}", file=sys.stderr)
    return found


def case(setting: DrawnFlips, index: int, radius: int, variant: str) -> dict[str, Any]:
    """Every method on one image at one radius."""
    found: dict[str, Any] = {}
    for name, poison in poisons(setting, index, radius, variant).items():
        begun = time.perf_counter()
        found[name] = {
            **setting.margins(index, variant, poison.poisoned(setting.victim)),
            "crafting_seconds": poison.seconds,
            "crafting_gradients": poison.gradients,
            "retraining_seconds": time.perf_counter() - begun,
            "moved_rows": int((poison.delta != 0).flatten(1).any(1).sum()),
            "predicted": poison.predicted.get("margin"),
            "predicted_valid": poison.predicted.get("valid"),
        }
    return {"radius": radius, **setting.facts(index, variant), "methods": found}


def summary(cases: list[dict[str, Any]], variant: str) -> dict[str, Any]:
    """Images flipped by each method with exact intervals, and ours against each in pairs."""
    told: dict[str, Any] = {}
    for radius, way in itertools.product(RADII, ("tight", "loose")):
        own = [each for each in cases if each["radius"] == radius]
        told[f"eps {radius}/255, {way}"] = rates(own, VARIANTS[variant], way)
    return told


def rates(cases: list[dict[str, Any]], methods: tuple[str, ...], way: str) -> dict[str, Any]:
    """One table of the summary; where a method had nothing to do, the clean model is its result."""
    runs: Mapping[str, Any] = {
        name: [each["methods"].get(name, each["clean"])[way] for each in cases] for name in methods
    }
    flipped = {name: [[margin > 0 for margin in each] for each in found] for name, found in runs.items()}
    flipped["none"] = [[margin > 0 for margin in each["clean"][way]] for each in cases]
    most = {name: [sum(each) > SEEDS / 2 for each in found] for name, found in flipped.items()}
    return {
        "rates": {name: asdict(success_over_images(found)) for name, found in flipped.items()},
        "against": {name: asdict(paired_difference(most[methods[0]], most[name])) for name in methods[1:]},
    }


def work(variant: str, part: int = 0, parts: int = 1) -> list[dict[str, Any]]:
    """The cases of one part."""
    plan = {
        f"image {index}, eps {radius}, {variant}": functools.partial(_case, index, radius, variant)
        for index in range(part, IMAGES, parts)
        for radius in RADII
    }
    settings = {"seed": SEED, "share": SHARE, "methods": list(VARIANTS[variant])}
    return measured(NAMES[variant], plan, settings, f"{part}of{parts}" if parts > 1 else "")


def _case(index: int, radius: int, variant: str) -> dict[str, Any]:
    return case(trained_setting(), index, radius, variant)


def run(variant: str = "drawn") -> None:
    """Finish the cases and store them with their summary."""
    cases = work(variant)
    write(NAMES[variant], {"seed": SEED, "images": IMAGES, "summary": summary(cases, variant), "cases": cases})


if __name__ == "__main__":
    work(sys.argv[1], *map(int, sys.argv[2:4]))
