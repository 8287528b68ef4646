"""Poison crafted through the owner's own training, 40 epochs of Adam, on the images of the other flip benchmarks.

The victims, drawn images, wanted classes and seeds of retraining are those of `attack_flips` and `attack_victims`, so
that the two tables lie side by side; crafting trains from seeds of its own. Gradient matching moves the same rows.
Gradient matching is retrained loosely only. Finished cases are kept in results/local, and processes may share them:
`python -m benchmarks.attack_training PART PARTS`.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from dataclasses import asdict
from typing import Any

from benchmarks import attack_flips, attack_victims
from benchmarks.drawn_flips import DrawnFlips
from benchmarks.journal import measured
from benchmarks.timing import write
from poisonaudit import craft
from poisonaudit.attack import Budget
from poisonaudit.attack.baselines import run_baseline
from poisonaudit.verify import loose_trainer, paired_difference, paired_test, success_over_images

NAME = "attack_training"
# Seeds that crafting trains from at each step.
SOLUTIONS = 2
METHODS = ("through_training", "gradient_matching")
# Our poison is also retrained on tightly, which it was not made for, on the first images.
TIGHT = 16
# (victim, eps in 1/255): how many of the drawn images.
PLAN = {
    ("mlp 64-32-10", 16): attack_flips.IMAGES,
    ("mlp 64-32-10", 32): attack_flips.IMAGES,
    ("tanh", 32): attack_victims.IMAGES,
    ("relu", 32): attack_victims.IMAGES,
    ("cnn", 32): attack_victims.FEWER,
}


def setting_of(victim: str) -> DrawnFlips:
    """A trained victim with its images."""
    return attack_flips.trained_setting() if victim == "mlp 64-32-10" else attack_victims.setting_of(victim)


def case(victim: str, radius: int, index: int) -> dict[str, Any]:
    """Both methods on one image."""
    setting = setting_of(victim)
    goal, budget = setting.goal(index, "drawn"), Budget(radius=radius / 255, share=0.05, box=(0.0, 1.0))
    ours = craft(setting.victim, goal, budget, seed=index, trainer=loose_trainer(), solutions=SOLUTIONS)
    found = {
        "through_training": ours,
        "gradient_matching": run_baseline("gradient_matching", setting.victim, goal, budget, ours.rows, seed=index),
    }
    methods = {}
    for name, poison in found.items():
        ways = ("loose", "tight") if name == METHODS[0] and index < TIGHT else ("loose",)
        begun = time.perf_counter()
        methods[name] = {
            **setting.margins(index, "drawn", poison.poisoned(setting.victim), ways),
            "crafting_seconds": poison.seconds,
            "crafting_gradients": poison.gradients,
            "retraining_seconds": time.perf_counter() - begun,
        }
    return {"victim": victim, "radius": radius, **setting.facts(index, "drawn"), "methods": methods}


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Flips with exact intervals, mean changes of the margin, and both methods in pairs, by victim, radius and way."""
    told: dict[str, Any] = {}
    for victim, radius in PLAN:
        own = [each for each in cases if (each["victim"], each["radius"]) == (victim, radius)]
        own.sort(key=lambda each: each["index"])
        for way in ("loose", "tight") if own else ():
            told[f"{victim}, {radius}/255, {way}"] = _compared(own[: None if way == "loose" else TIGHT], way)
    return told


def _compared(cases: list[dict[str, Any]], way: str) -> dict[str, Any]:
    methods = METHODS if way == "loose" else METHODS[:1]
    clean = [each["clean"][way] for each in cases]
    runs = {name: [each["methods"][name][way] for each in cases] for name in methods}
    flipped = {name: [[margin > 0 for margin in each] for each in found] for name, found in runs.items()}
    change = {
        name: [statistics.fmean(each) - statistics.fmean(before) for each, before in zip(found, clean, strict=True)]
        for name, found in runs.items()
    }
    spent = [each["methods"][methods[0]]["crafting_gradients"] for each in cases]
    told = {
        "images": len(cases),
        "rates": {name: asdict(success_over_images(found)) for name, found in flipped.items()},
        "none": asdict(success_over_images([[margin > 0 for margin in each] for each in clean])),
        "mean_margin_change": {name: statistics.fmean(values) for name, values in change.items()},
        "median_crafting_gradients": statistics.median(spent),
    }
    if len(methods) == 2:
        ours, other = (change[name] for name in methods)
        differences = [a - b for a, b in zip(ours, other, strict=True)]
        most = [[sum(each) > len(each) / 2 for each in flipped[name]] for name in methods]
        told["flips_in_pairs"] = asdict(paired_difference(*most))
        told["margin_in_pairs"] = {"mean": statistics.fmean(differences), **asdict(paired_test(differences))}
    return told


def work(part: int = 0, parts: int = 1) -> list[dict[str, Any]]:
    """The cases of one part."""
    plan = {
        f"{victim}, eps {radius}, image {index}": functools.partial(case, victim, radius, index)
        for (victim, radius), images in PLAN.items()
        for index in range(part, images, parts)
    }
    settings = {"flips": attack_flips.SEED, "victims": attack_victims.SEED, "solutions": SOLUTIONS}
    return measured(NAME, plan, json.loads(json.dumps(settings)), f"{part}of{parts}" if parts > 1 else "")


def run() -> None:
    """Finish the cases and store them with their summary."""
    cases = work()
    write(NAME, {"solutions": SOLUTIONS, "summary": summary(cases), "cases": cases})


if __name__ == "__main__":
    work(*map(int, sys.argv[1:3]))
