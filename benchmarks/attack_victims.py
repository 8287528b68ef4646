"""Flips on other victims, and one poison for several solutions: margins in pairs, tight and loose.

A ReLU network and a small convolution, whose minima may lie on kinks (their relative gradient is stored), and a tanh
network on which crafting for one solution stands beside crafting for three. Effects are changes of the margin from the
clean training on the same seed, averaged over seeds: one number an image, tested by Wilcoxon's signed ranks.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from benchmarks.drawn_flips import DrawnFlips
from benchmarks.journal import measured
from benchmarks.timing import write
from poisonaudit import craft
from poisonaudit.attack import Budget
from poisonaudit.attack.baselines import run_baseline
from poisonaudit.verify import paired_test

NAME = "attack_victims"
SEED = 20261122
IMAGES, ROWS, DECAY = 16, 400, 1e-3
# Crafting on kinks takes minutes: the first of the drawn images, and one solution.
FEWER = 8
BUDGET = Budget(radius=32 / 255, share=0.05, box=(0.0, 1.0))
SEEDS = {"tight": 2, "loose": 5}
METHODS = {
    "tanh": ("solution_set", "three_solutions", "gradient_matching"),
    "relu": ("solution_set", "gradient_matching"),
    "cnn": ("solution_set", "gradient_matching"),
}


def tanh() -> nn.Module:
    """64-16-10."""
    return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()


def relu() -> nn.Module:
    """64-16-10."""
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()


def cnn() -> nn.Module:
    """One 3 x 3 convolution of 6 channels, pooled to 4 x 4."""
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 10)]
    return nn.Sequential(*layers).double()


VICTIMS: dict[str, Callable[[], nn.Module]] = {"tanh": tanh, "relu": relu, "cnn": cnn}


def case(victim: str, index: int) -> dict[str, Any]:
    """Every method on one image."""
    setting = setting_of(victim)
    problem, goal = setting.victim, setting.goal(index, "drawn")
    # On kinks the gradient does not vanish: no training there gets below 1e-4.
    tolerance = 1e-6 if victim == "tanh" else 1e-4
    ours = craft(problem, goal, BUDGET, seed=index, tolerance=tolerance)
    found = {
        "solution_set": ours,
        "gradient_matching": run_baseline("gradient_matching", problem, goal, BUDGET, ours.rows, seed=index),
    }
    if "three_solutions" in METHODS[victim]:
        found["three_solutions"] = craft(problem, goal, BUDGET, seed=index, solutions=3, tolerance=tolerance)
    methods = {
        name: {
            **setting.margins(index, "drawn", poison.poisoned(problem)),
            "crafting_seconds": poison.seconds,
            "crafting_gradients": poison.gradients,
        }
        for name, poison in found.items()
    }
    facts = setting.facts(index, "drawn")
    return {"victim": victim, **facts, "methods": methods, "stationarity": setting.stationarity()}


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean change of the margin and flips by victim and way, and what pairs of methods differ in."""
    told: dict[str, Any] = {}
    for victim in VICTIMS:
        own = [each for each in cases if each["victim"] == victim]
        for way in SEEDS if own else ():
            change = {
                name: [
                    statistics.fmean(a - b for a, b in zip(each["methods"][name][way], each["clean"][way], strict=True))
                    for each in own
                ]
                for name in METHODS[victim]
            }
            flips = {
                name: sum(sum(m > 0 for m in each["methods"][name][way]) > SEEDS[way] / 2 for each in own)
                for name in METHODS[victim]
            }
            spread = statistics.fmean(statistics.stdev(each["clean"][way]) for each in own)
            told[f"{victim}, {way}"] = {
                "images": len(own),
                "mean_margin_change": {name: statistics.fmean(values) for name, values in change.items()},
                "flipped": flips,
                "clean_margin_deviation_between_seeds": spread,
                "ours_minus_gradient_matching": _paired(change["solution_set"], change["gradient_matching"]),
            }
            if "three_solutions" in change:
                told[f"{victim}, {way}"]["three_solutions_minus_one"] = _paired(
                    change["three_solutions"], change["solution_set"]
                )
    return told


def _paired(first: list[float], second: list[float]) -> dict[str, Any]:
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return {"mean": statistics.fmean(differences), **asdict(paired_test(differences))}


@functools.cache
def setting_of(victim: str) -> DrawnFlips:
    """A trained victim with its images."""
    torch.manual_seed(0)
    return DrawnFlips(VICTIMS[victim](), ROWS, DECAY, SEED, IMAGES, SEEDS, pictures=victim == "cnn")


def work(part: int = 0, parts: int = 1) -> list[dict[str, Any]]:
    """The cases of one part."""
    plan = {
        f"{victim}, image {index}": functools.partial(case, victim, index)
        for victim in VICTIMS
        for index in range(part, IMAGES if victim == "tanh" else FEWER, parts)
    }
    settings = {"seed": SEED, "images": IMAGES, "rows": ROWS, "decay": DECAY, "seeds": SEEDS}
    return measured(NAME, plan, json.loads(json.dumps(settings)), f"{part}of{parts}" if parts > 1 else "")


def run() -> None:
    """Finish the cases and store them with their summary."""
    cases = work()
    write(NAME, {"seed": SEED, "images": IMAGES, "summary": summary(cases), "cases": cases})


if __name__ == "__main__":
    work(*map(int, sys.argv[1:3]))
