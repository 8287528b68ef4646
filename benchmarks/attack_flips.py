"""Flip test digits of a tanh network, ours beside gradient matching and controls: 64 images, none dropped.

The images, their wanted classes and the seeds of retraining are drawn by `SEED` before anything is crafted; beside the
drawn class, which is any wrong one, each image is also turned to the clean model's runner-up, which lies nearer. An
image counts where most of its fresh seeds give the wanted class. Finished cases are kept in results/local, so that a
killed run goes on; several processes may share the work: `python -m benchmarks.attack_flips PART PARTS`.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import RESULTS, write
from poisonaudit import Problem, craft, fit
from poisonaudit.attack import Budget, FlipPrediction, Poison
from poisonaudit.attack.baselines import run_baseline
from poisonaudit.data import load_data
from poisonaudit.models import build_model
from poisonaudit.verify import loose_trainer, paired_difference, success_over_images

SEED = 20261121
IMAGES, SEEDS = 64, 3
RADII = (16, 32)
SHARE = 0.05
# Of tight retraining: where the linearisation counts as valid. A saddle that a hundred products do not see passes.
TIGHT = 1e-6
METHODS = ("solution_set", "gradient_matching", "art_gradient_matching", "random_signs")
# The wanted classes, and the methods that are tried on them.
VARIANTS = {"drawn": METHODS, "runner_up": METHODS[:2]}
LOCAL = RESULTS / "local"


class Setting:
    """The victim, the drawn images, and clean training on every seed."""

    def __init__(self) -> None:
        data = load_data("digits", limit=1000)
        model = build_model("mlp:64-32-10?activation=tanh", input_shape=data.input_shape, outputs=10)
        problem = Problem(model, "cross_entropy", data.x_train.double(), data.y_train, decay=1e-3)
        self.victim = fit(problem, 1e-10, 0, start="fresh").problem
        self.test, labels = data.x_test.double(), data.y_test
        generator = torch.Generator().manual_seed(SEED)
        self.images = torch.randperm(len(self.test), generator=generator)[:IMAGES].tolist()
        steps = torch.randint(1, 10, (IMAGES,), generator=generator).tolist()
        self.truth = [int(labels[image]) for image in self.images]
        drawn = [(own + step) % 10 for own, step in zip(self.truth, steps, strict=True)]
        nearest = self.victim.outputs(x=self.test[self.images]).topk(2, 1).indices.tolist()
        # The likeliest class but the true one, also where the clean model is wrong.
        nearer = [first if first != own else second for own, (first, second) in zip(self.truth, nearest, strict=True)]
        self.wanted = {"drawn": drawn, "runner_up": nearer}
        self.seeds = torch.randint(1, 2**30, (SEEDS,), generator=generator).tolist()
        self.clean = {way: [self.trained(way, problem, seed) for seed in self.seeds] for way in ("tight", "loose")}

    def trained(self, way: str, problem: Problem, seed: int) -> Tensor:
        """Weights from a fresh seed: tight to `TIGHT`, loose by 40 epochs of Adam."""
        if way == "loose":
            return loose_trainer()(problem, seed)
        return fit(problem, TIGHT, seed, start="fresh", dense_test=False).problem.weights

    def goal(self, index: int, variant: str) -> FlipPrediction:
        """Of one image."""
        return FlipPrediction(self.test[self.images[index]], self.wanted[variant][index])


def poisons(setting: Setting, index: int, radius: int, variant: str) -> dict[str, Poison]:
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


def case(setting: Setting, index: int, radius: int, variant: str) -> dict[str, Any]:
    """Every method on one image at one radius."""
    goal = setting.goal(index, variant).bind(setting.victim)
    found: dict[str, Any] = {}
    for name, poison in poisons(setting, index, radius, variant).items():
        begun = time.perf_counter()
        poisoned = poison.poisoned(setting.victim)
        margins = {
            way: [goal.margin(setting.trained(way, poisoned, seed)) for seed in setting.seeds]
            for way in ("tight", "loose")
        }
        found[name] = {
            **margins,
            "crafting_seconds": poison.seconds,
            "crafting_gradients": poison.gradients,
            "retraining_seconds": time.perf_counter() - begun,
            "moved_rows": int((poison.delta != 0).flatten(1).any(1).sum()),
            "predicted": poison.predicted.get("margin"),
            "predicted_valid": poison.predicted.get("valid"),
        }
    clean = {way: [goal.margin(weights) for weights in weights_of] for way, weights_of in setting.clean.items()}
    return {
        "index": index,
        "radius": radius,
        "variant": variant,
        "image": setting.images[index],
        "truth": setting.truth[index],
        "wanted": setting.wanted[variant][index],
        "clean": clean,
        "methods": found,
    }


def summary(cases: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Images flipped by each method with exact intervals, and ours against each in pairs."""
    told: dict[str, Any] = {}
    for variant, methods in VARIANTS.items():
        for radius in RADII:
            own = [each for each in cases if (each["radius"], each["variant"]) == (radius, variant)]
            for way in ("tight", "loose"):
                # Where a method had nothing to do, the clean model is its result.
                runs = {
                    name: [each["methods"].get(name, {way: each["clean"][way]})[way] for each in own]
                    for name in methods
                }
                runs["none"] = [each["clean"][way] for each in own]
                flipped = {name: [[margin > 0 for margin in each] for each in found] for name, found in runs.items()}
                most = {name: [sum(each) > SEEDS / 2 for each in found] for name, found in flipped.items()}
                told[f"{variant}, eps {radius}/255, {way}"] = {
                    "rates": {name: asdict(success_over_images(found)) for name, found in flipped.items()},
                    "against": {
                        name: asdict(paired_difference(most["solution_set"], most[name])) for name in methods[1:]
                    },
                }
    return told


def stored() -> list[dict[str, Any]]:
    """Finished cases, in order."""
    lines = [line for path in sorted(LOCAL.glob("attack_flips-*.jsonl")) for line in path.read_text().splitlines()]
    return sorted(
        (json.loads(line) for line in lines), key=lambda each: (each["variant"], each["radius"], each["index"])
    )


def work(part: int = 0, parts: int = 1) -> None:
    """Do the cases of one part that are not stored yet."""
    LOCAL.mkdir(parents=True, exist_ok=True)
    setting = Setting()
    done = {(each["radius"], each["index"], each["variant"]) for each in stored()}
    for index in range(part, IMAGES, parts):
        for radius, variant in itertools.product(RADII, VARIANTS):
            if (radius, index, variant) not in done:
                begun = time.perf_counter()
                line = json.dumps(case(setting, index, radius, variant))
                with (LOCAL / f"attack_flips-{part}.jsonl").open("a") as file:
                    file.write(line + "\n")
                seconds = time.perf_counter() - begun
                print(f"image {index}, eps {radius}, {variant}: {seconds:.0f} s", file=sys.stderr)


def run() -> None:
    """Finish the cases and store them with their summary."""
    work()
    cases = stored()
    write("attack_flips", {"seed": SEED, "images": IMAGES, "summary": summary(cases), "cases": cases})


if __name__ == "__main__":
    work(*map(int, sys.argv[1:3]))
