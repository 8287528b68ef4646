"""What poison really does to a model: crafted at a fixed budget, then trained by the model's own procedure."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.predictive_plan import RETRAINED, Model, budget_of, data_of, flip_targets, retrained, test_rows, trained
from poisonaudit import Problem, craft, fit
from poisonaudit.attack import Budget, FlipPrediction, Objective, Poison, ValidationLoss, outcome
from poisonaudit.attack.poison import embed
from poisonaudit.operators import linearise
from poisonaudit.sensitivity import solver_for
from poisonaudit.training import relative_gradient

# Fresh seeds; one where there is a single minimum.
SEEDS = 3
STEPS = {"validation": 4, "flip": 3}
# Relative gradient of retraining while crafting, and of the minimum at which models that are not at one are attacked.
CRAFTING, POLISH, POLISH_GRADIENTS = 1e-3, 1e-8, 4_000
# Starts and most steps of the search for the worst displacement.
STARTS, ASCENT = 3, 30


def damage(model: Model) -> dict[str, Any]:
    """Train, poison, train again.

    Args:
        model: of the plan.

    Returns:
        Figures of the three kinds of attack; where one failed, its reason under `failed`.
    """
    victim = _Victim(model)
    attacks = {
        "displacement": _kept(functools.partial(_displacement, victim)),
        "validation": _kept(functools.partial(_validation, victim)),
        "flips": [_kept(functools.partial(_flip, victim, *each)) for each in flip_targets(model.data)],
    }
    reached = [figure for figure in victim.reached if figure is not None]
    return {
        **victim.facts(),
        **attacks,
        "retrainings": len(victim.reached),
        "retrainings_above_tolerance": sum(figure > RETRAINED for figure in reached),
        "highest_relative_gradient_of_retraining": max(reached, default=None),
        "seconds_of_clean_training": victim.seconds,
    }


class _Victim:
    """A model, its clean training from every seed, and the point that attacks are crafted at."""

    def __init__(self, model: Model) -> None:
        begun = time.perf_counter()
        self.model, self.problem = model, trained(model)
        # An attacker knows rows and objective, not where the owner will stop: poison is crafted at the minimum.
        self.attacked = self.problem
        if model.training != "tight":
            limits: Any = {"dense_test": False, "max_gradients": POLISH_GRADIENTS}
            self.attacked = fit(self.problem, POLISH, **limits).problem
        single = model.convex and model.training == "tight"
        self.seeds = [model.seed + 1 + turn for turn in range(1 if single else SEEDS)]
        self.reached: list[float | None] = []
        self.controls = {seed: self._retrained(self.problem, seed) for seed in self.seeds}
        self.seconds = time.perf_counter() - begun

    def facts(self) -> dict[str, Any]:
        """How the model and the point of the attacks were reached."""
        moved = (self.attacked.weights - self.problem.weights).norm() / self.problem.weights.norm()
        figures = outcome(self.problem, self.problem.weights, test=test_rows(self.model.data))
        return {
            "weights": self.problem.size,
            "relative_gradient": relative_gradient(self.problem),
            "relative_gradient_attacked": relative_gradient(self.attacked),
            "polished_by": float(moved),
            "test_accuracy": figures["test_accuracy"],
            "train_accuracy": figures["train_accuracy"],
            "seeds": self.seeds,
        }

    def crafted(self, objective: Objective, steps: int) -> Poison:
        """A poison at the budget of the data set."""
        budget, seed = budget_of(self.model.data), self.model.seed
        return craft(self.attacked, objective, budget, seed, steps=steps, tolerance=CRAFTING)

    def poisoned(self, mu: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Weights on poisoned rows: from the model's own start, and from every fresh seed.

        Its own start is the clean weights where training was tight (warm), else the seed it was trained from.
        """
        poisoned = self.problem.with_data(self.problem.x + mu)
        return self._retrained(poisoned, None), {seed: self._retrained(poisoned, seed) for seed in self.seeds}

    def _retrained(self, problem: Problem, seed: int | None) -> Tensor:
        weights, reached = retrained(self.model, problem, seed)
        self.reached.append(reached)
        return weights


def _kept(attack: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The attack's figures, or why there are none: one failure must not hide the model's other figures."""
    begun = time.perf_counter()
    try:
        found = attack()
    except Exception as trouble:
        found = {"failed": f"{type(trouble).__name__}: {' '.join(str(trouble).split())}"}
    return {**found, "seconds": time.perf_counter() - begun}


def _displacement(victim: _Victim) -> dict[str, Any]:
    """`|w^p - w| / |w|`."""
    clean = victim.problem.weights
    rows, delta, predicted = worst_displacement(victim.attacked, budget_of(victim.model.data), victim.model.seed)
    own, fresh = victim.poisoned(embed(victim.problem, rows, delta))
    return {
        "own_start": float((own - clean).norm() / clean.norm()),
        "fresh": [float((fresh[seed] - each).norm() / each.norm()) for seed, each in victim.controls.items()],
        "predicted": predicted / float(clean.norm()),
    }


def _validation(victim: _Victim) -> dict[str, Any]:
    """Rise of the test loss and drop of the test accuracy, each training against its clean counterpart."""
    test = test_rows(victim.model.data)
    poison = victim.crafted(ValidationLoss(*test), STEPS["validation"])
    own, fresh = victim.poisoned(poison.perturbation(victim.problem))

    def changes(clean: Tensor, after: Tensor) -> tuple[float, float]:
        before, now = (outcome(victim.problem, weights, test=test) for weights in (clean, after))
        return now["test_loss"] - before["test_loss"], before["test_accuracy"] - now["test_accuracy"]

    rise, drop = changes(victim.problem.weights, own)
    every = [changes(clean, fresh[seed]) for seed, clean in victim.controls.items()]
    return {
        "own_start": {"loss_rise": rise, "accuracy_drop": drop},
        "fresh": {"loss_rise": [each[0] for each in every], "accuracy_drop": [each[1] for each in every]},
        "predicted_loss_rise": poison.predicted["validation_loss_rise"],
        "notes": list(poison.notes),
    }


def _flip(victim: _Victim, row: int, wanted: int) -> dict[str, Any]:
    """Margin of the wanted class on one test row, clean beside poisoned."""
    objective = FlipPrediction(data_of(victim.model.data).x_test[row], wanted)
    poison = victim.crafted(objective, STEPS["flip"])
    margin = objective.bind(victim.problem).margin
    own, fresh = victim.poisoned(poison.perturbation(victim.problem))
    return {
        "row": row,
        "wanted": wanted,
        "own_start": {"clean": margin(victim.problem.weights), "poisoned": margin(own)},
        "fresh": {
            "clean": [margin(weights) for weights in victim.controls.values()],
            "poisoned": [margin(fresh[seed]) for seed in victim.controls],
        },
        "predicted_margin": poison.predicted["margin"],
        "notes": list(poison.notes),
    }


def worst_displacement(problem: Problem, budget: Budget, seed: int) -> tuple[Tensor, Tensor, float]:
    """The poison in the budget that moves the weights furthest to first order, as far as ascent finds it.

    `|H^+ B mu|` is convex in mu, so that the corner which is best for its gradient `B^T H^+ H^+ B mu / |H^+ B mu|`
    is never worse than mu (Frank-Wolfe with full steps), the rows chosen anew each time by their gain. It starts from
    random displacements.

    Args:
        problem: at its minimum.
        budget: rows, radius and box; with norm "linf".
        seed: of the starts.

    Returns:
        Positions (k,), their perturbations (k, ...) and `|H^+ B mu|`.
    """
    solver, kept = solver_for(problem), linearise(problem)
    allowed, count = budget.around(problem.x), budget.count(problem.rows)
    generator = torch.Generator().manual_seed(seed)
    best: tuple[Tensor, Tensor, float] | None = None
    for _ in range(STARTS):
        moved = torch.randn(problem.size, generator=generator, dtype=problem.dtype)
        length = -1.0
        for _ in range(ASCENT):
            slope = kept.mixed_adjoint(solver.inverse(moved / moved.norm()))
            corner = allowed.best_linear(slope)
            rows = (slope * corner).flatten(1).sum(1).topk(count).indices.sort().values
            mu = embed(problem, rows, corner[rows])
            moved, before = solver.inverse(kept.mixed(mu)), length
            length = float(moved.norm())
            if best is None or length > best[2]:
                best = rows, corner[rows], length
            if length <= before * (1 + 1e-9):
                break
    assert best is not None
    return best
