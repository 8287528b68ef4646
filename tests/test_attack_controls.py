"""What an attack has to beat and what no attack may claim: random signs, nothing at all, one linear step."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from poisonaudit import Problem, fit
from poisonaudit.attack import (
    Ball,
    Budget,
    FlipPrediction,
    FlipPredictions,
    GroupAccuracy,
    MatchPredictions,
    Objective,
    TargetRegion,
    TargetWeights,
    ValidationLoss,
    craft,
    outcome,
    predict,
    weights_from_label_flips,
)
from poisonaudit.attack.baselines import run_baseline
from poisonaudit.results import finite
from poisonaudit.validity import PHI_LIMIT
from poisonaudit.verify import paired_difference, paired_test, success_rate
from poisonaudit.verify.effects import effect, effect_name


def rows_of(name: str, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn import datasets

    loader = {"digits": datasets.load_digits, "breast_cancer": datasets.load_breast_cancer, "wine": datasets.load_wine}
    x, y = loader[name](return_X_y=True)
    x, y = torch.tensor(x), torch.tensor(y).long()
    if name == "digits":
        x, y = x[y < 5] / 16, y[y < 5]
    else:
        x = (x - x.mean(0)) / x.std(0)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:count]], y[order[:count]], x[order[count:]], y[order[count:]]


def convex(name: str, loss: str, decay: float, count: int = 120) -> Problem:
    x, y, _, _ = rows_of(name, count)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(x.shape[1], int(y.max()) + 1).double()
    found = fit(Problem(model, loss, x, y, decay))
    assert found.converged
    return found.problem


@pytest.fixture(scope="module")
def digits() -> Problem:
    return convex("digits", "cross_entropy", 1e-2, 100)


def warm(problem: Problem, poison: Any) -> Tensor:
    reached = fit(poison.poisoned(problem), 1e-9)
    assert reached.converged
    return reached.problem.weights


def close_flips(problem: Problem, count: int) -> list[FlipPrediction]:
    """The held-out rows that the model gets right by the least margins, each to its second class."""
    _, _, x, y = rows_of("digits", problem.rows)
    with torch.no_grad():
        top = problem.outputs(x=x).topk(2, 1)
    margins = top.values[:, 0] - top.values[:, 1]
    margins[top.indices[:, 0] != y] = math.inf
    # The very closest fall to anything: leave them out.
    chosen = margins.argsort()[4 : 4 + count]
    return [FlipPrediction(x[row], int(top.indices[row, 1])) for row in chosen.tolist()]


def test_random_signs_flip_no_more_than_chance_where_crafting_flips_most(digits: Problem) -> None:
    budget = Budget(radius=0.06, rows=15, box=(0.0, 1.0))
    crafted, drawn, mirrored, changes = [], [], [], []
    for number, flip in enumerate(close_flips(digits, 8)):
        margin = outcome(digits, digits.weights, flip)["margin"]
        assert margin < 0
        poison = craft(digits, flip, budget, steps=1)
        crafted.append(outcome(digits, warm(digits, poison), flip)["success"])
        control = run_baseline("random_signs", digits, flip, budget, poison.rows, seed=number)
        assert budget.around(digits.x[control.rows]).used(control.delta) == pytest.approx(1.0)
        told = outcome(digits, warm(digits, control), flip)
        drawn.append(told["success"])
        # What is blind to the target moves its margin as far the wrong way as often.
        mirrored.append(told["margin_change"] <= margin)
        changes.append(told["margin_change"])
    assert sum(drawn) <= sum(mirrored) + 1 and paired_test(changes).p_value > 0.05
    assert success_rate(sum(crafted), len(crafted)).lower > 0.5
    apart = paired_difference(crafted, drawn)
    assert apart.only_b == 0 and apart.p_value < 0.05


def objectives(problem: Problem) -> dict[str, Objective]:
    _, _, x, y = rows_of("digits", problem.rows)
    away = problem.weights + 0.1
    return {
        "target_weights": TargetWeights(away, success_at=0.2),
        "target_region": TargetRegion(Ball(away, 0.01)),
        "match_predictions": MatchPredictions(away, x[:20]),
        "flip": FlipPrediction(x[0], (int(y[0]) + 1) % 5),
        "flips": FlipPredictions(x[:3], (y[:3] + 1) % 5),
        "validation_loss": ValidationLoss(x[:20], y[:20]),
        "group": GroupAccuracy(x[:20], y[:20]),
    }


KINDS = ("target_weights", "target_region", "match_predictions", "flip", "flips", "validation_loss", "group")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_predicted_to_do_nothing(digits: Problem, kind: str) -> None:
    aim = objectives(digits)[kind]
    test = rows_of("digits", digits.rows)[2:]
    told, _ = predict(digits, torch.zeros_like(digits.x), aim, test)
    clean = outcome(digits, digits.weights, aim, test)
    assert told["phi"] is None and told["linear"]["phi"] is None
    assert told["valid"] and told["linear"]["valid"] and told["path"]["converged"]
    for way in (told, told["linear"], told["path"]):
        assert effect(way, effect_name(clean)) == pytest.approx(0.0, abs=1e-9)
        assert way.get("success") == clean.get("success")
        assert way["displacement_norm"] == pytest.approx(0.0, abs=1e-9)
        assert way["test_accuracy"] == clean["test_accuracy"]
    json.dumps(finite(told), allow_nan=False)


def flipped(problem: Problem, wanted: int, other: int, count: int) -> TargetWeights:
    chosen = (problem.y == wanted).nonzero().flatten()[:count]
    return TargetWeights(weights_from_label_flips(problem, (chosen, other)))


CONVEX = {
    "digits": ("digits", "cross_entropy", 1e-2, 3, 1, [0.015, 0.15]),
    "digits, little decay": ("digits", "cross_entropy", 1e-3, 2, 4, [0.008, 0.1]),
    "breast_cancer": ("breast_cancer", "cross_entropy", 1e-2, 0, 1, [0.03, 0.5]),
    "wine, ridge": ("wine", "half_squared", 1e-2, 0, 2, [0.03, 0.5]),
}


@pytest.mark.parametrize("name", CONVEX)
def test_relinearising_is_never_worse_and_short_steps_do_what_they_say(name: str) -> None:
    data, loss, decay, wanted, other, radii = CONVEX[name]
    problem = convex(data, loss, decay, 100)
    aim, vouched, gains = flipped(problem, wanted, other, 6), 0, []
    for radius in radii:
        budget = Budget(radius=radius, rows=10, box=(problem.x.amin(0), problem.x.amax(0)))
        once = craft(problem, aim, budget, steps=1, tolerance=1e-8)
        often = craft(problem, aim, budget, steps=3, tolerance=1e-8)
        first, last = (outcome(problem, warm(problem, poison), aim) for poison in (once, often))
        assert last["distance_ratio"] <= first["distance_ratio"] + 1e-6
        gains.append(first["distance_ratio"] - last["distance_ratio"])
        for poison, reached in ((once, first), (often, last)):
            linear = poison.predicted["linear"]
            assert reached["movement"] > 0
            assert reached["movement"] == pytest.approx(poison.predicted["movement"], rel=1e-4)
            if linear["phi"] <= PHI_LIMIT:
                vouched += 1
                assert reached["movement"] / linear["movement"] >= 0.9
    # Neither half of this test may be empty: some steps are vouched for, and relinearising gains somewhere.
    assert vouched >= 2 and max(gains) > 1e-3
