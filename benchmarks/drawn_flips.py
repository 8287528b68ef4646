"""Drawn flips of test digits: a victim, images with wanted classes, and training from drawn seeds, tight and loose."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from poisonaudit import Problem, fit
from poisonaudit.attack import FlipPrediction
from poisonaudit.data import load_data
from poisonaudit.training import relative_gradient
from poisonaudit.verify import loose_trainer

# Of tight retraining: where the linearisation counts as valid. A saddle that a hundred products do not see passes.
TIGHT = 1e-6


class DrawnFlips:
    """The victim, the drawn images and classes, and clean training on every seed.

    Args:
        model: takes rows shaped (64,), or (1, 8, 8) with `pictures`.
        rows: training rows of digits.
        decay: of the objective.
        seed: of the draw.
        images: test digits.
        seeds: of retraining, by way: "tight" or "loose" -> how many.
        pictures: rows are pictures.
    """

    def __init__(
        self, model: nn.Module, rows: int, decay: float, seed: int, images: int, seeds: dict[str, int],
        *, pictures: bool = False,
    ) -> None:  # fmt: skip
        data = load_data("digits", limit=rows, images=pictures)
        problem = Problem(model, "cross_entropy", data.x_train.double(), data.y_train, decay=decay)
        fitted = fit(problem, 1e-10, 0, start="fresh")
        self.victim, self.relative_gradient = fitted.problem, fitted.relative_gradient
        self.test, labels = data.x_test.double(), data.y_test
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randperm(len(self.test), generator=generator)[:images].tolist()
        steps = torch.randint(1, 10, (images,), generator=generator).tolist()
        self.truth = [int(labels[image]) for image in self.images]
        drawn = [(own + step) % 10 for own, step in zip(self.truth, steps, strict=True)]
        nearest = self.victim.outputs(x=self.test[self.images]).topk(2, 1).indices.tolist()
        # The likeliest class but the true one, also where the clean model is wrong.
        nearer = [first if first != own else second for own, (first, second) in zip(self.truth, nearest, strict=True)]
        self.wanted = {"drawn": drawn, "runner_up": nearer}
        drawn_seeds = torch.randint(1, 2**30, (max(seeds.values()),), generator=generator).tolist()
        self.seeds = {way: drawn_seeds[:count] for way, count in seeds.items()}
        self.clean = {way: [self.trained(way, problem, one) for one in own] for way, own in self.seeds.items()}

    def trained(self, way: str, problem: Problem, seed: int) -> Tensor:
        """Weights from a fresh seed: tight to `TIGHT`, loose by 40 epochs of Adam."""
        if way == "loose":
            return loose_trainer()(problem, seed)
        return fit(problem, TIGHT, seed, start="fresh", dense_test=False).problem.weights

    def goal(self, index: int, variant: str) -> FlipPrediction:
        """Of one image."""
        return FlipPrediction(self.test[self.images[index]], self.wanted[variant][index])

    def margins(
        self, index: int, variant: str, problem: Problem, ways: tuple[str, ...] = ("tight", "loose")
    ) -> dict[str, list[float]]:
        """Margin of the wanted class after training on these rows from every seed."""
        goal = self.goal(index, variant).bind(self.victim)
        own = {way: seeds for way, seeds in self.seeds.items() if way in ways}
        return {way: [goal.margin(self.trained(way, problem, one)) for one in seeds] for way, seeds in own.items()}

    def clean_margins(self, index: int, variant: str) -> dict[str, list[float]]:
        """The same without poison."""
        goal = self.goal(index, variant).bind(self.victim)
        return {way: [goal.margin(weights) for weights in found] for way, found in self.clean.items()}

    def facts(self, index: int, variant: str) -> dict[str, Any]:
        """Which image, and what is wanted of it."""
        return {
            "index": index,
            "variant": variant,
            "image": self.images[index],
            "truth": self.truth[index],
            "wanted": self.wanted[variant][index],
            "clean": self.clean_margins(index, variant),
        }

    def stationarity(self) -> dict[str, Any]:
        """How near the victim and its tight clean retrainings are to stationary points."""
        retrained = [relative_gradient(self.victim.at(weights)) for weights in self.clean.get("tight", [])]
        return {"victim": self.relative_gradient, "tight_controls": retrained}
