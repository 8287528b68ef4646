"""Every objective: gradients against finite differences, figures against closed forms, crafting against retraining."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import digits_rows
from torch import Tensor, nn

from poisonaudit import Problem, craft, fit, retrain
from poisonaudit.attack import (
    OBJECTIVES,
    Ball,
    Box,
    Budget,
    FlipPrediction,
    FlipPredictions,
    GroupAccuracy,
    HalfSpace,
    MatchPredictions,
    Membership,
    Objective,
    TargetRegion,
    TargetWeights,
    ValidationLoss,
)
from poisonaudit.errors import InputRefused, PoisonAuditError, UsageError

Build = Callable[[Problem], Objective]


def direction(problem: Problem, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(problem.size, generator=generator, dtype=torch.float64)
    return found / found.norm()


OBJECTIVE_CASES: dict[str, Build] = {
    "target_weights": lambda p: TargetWeights(p.weights + direction(p)),
    "target_weights of a layer": lambda p: TargetWeights(p.weights + direction(p), layers=["2"]),
    "half space": lambda p: TargetRegion(HalfSpace(direction(p), float(direction(p).dot(p.weights)) + 0.6)),
    "ball": lambda p: TargetRegion(Ball(p.weights + direction(p), 0.7)),
    "box": lambda p: TargetRegion(Box(p.weights + 0.1, torch.full_like(p.weights, torch.inf))),
    "match_predictions": lambda p: MatchPredictions(p.weights + 2 * direction(p)),
    "divergence": lambda p: MatchPredictions(p.weights + 9 * direction(p), p.x[:9], "divergence", success_at=0.9),
    "membership": lambda p: Membership(p.weights + direction(p)),
    "flip": lambda p: FlipPrediction(p.x[3] * 0.9, 1),
    "flips": lambda p: FlipPredictions(p.x[:4] * 0.9, [1, 2, 3, 4]),
    "flips, cross entropy": lambda p: FlipPredictions(p.x[:4] * 0.9, [1, 2, 3, 4], "cross_entropy"),
    "validation_loss": lambda p: ValidationLoss(p.x[5:20] * 0.9, p.y[5:20], success_at=0.01),
    "group_accuracy": lambda p: GroupAccuracy(p.x[p.y == 3] * 0.9, p.y[p.y == 3], success_at=0.1),
}


@pytest.fixture(scope="module")
def trained() -> Problem:
    x, y = digits_rows(60)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10)).double()
    return fit(Problem(model, "cross_entropy", x, y, decay=1e-2)).problem


def test_every_objective_has_a_case(trained: Problem) -> None:
    assert {build(trained).kind for build in OBJECTIVE_CASES.values()} == OBJECTIVES.keys()


@pytest.mark.parametrize("name", OBJECTIVE_CASES)
def test_gradients_match_finite_differences(name: str, trained: Problem) -> None:
    goal = OBJECTIVE_CASES[name](trained).bind(trained)
    at = trained.weights + 0.05 * direction(trained, 7)
    gradient, h = goal.gradient(at), 1e-6
    for seed in range(5):
        along = direction(trained, 10 + seed)
        slope = (goal.value(at + h * along) - goal.value(at - h * along)) / (2 * h)
        assert float(gradient.dot(along)) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", OBJECTIVE_CASES)
def test_without_a_move_nothing_is_reported(name: str, trained: Problem) -> None:
    goal = OBJECTIVE_CASES[name](trained).bind(trained)
    figures = goal.figures(trained.weights, trained.weights)
    still = {"movement": 0.0, "region_distance_ratio": 1.0, "prediction_distance_ratio": 1.0, "margin_change": 0.0}
    still |= {"validation_loss_rise": 0.0, "group_accuracy_drop": 0.0}
    told = [key for key in still if key in figures]
    assert told and all(figures[key] == still[key] for key in told)
    assert figures["success"] in (None, False) and goal.success(trained.weights) in (None, False)
    assert goal.describe()["kind"] == OBJECTIVE_CASES[name](trained).describe()["kind"]


# Membership works on the gradient at the target, whatever training does; it has tests of its own.
@pytest.mark.parametrize("name", [name for name in OBJECTIVE_CASES if name != "membership"])
def test_crafting_moves_retraining_toward_the_objective(name: str, trained: Problem) -> None:
    objective = OBJECTIVE_CASES[name](trained)
    goal = objective.bind(trained)
    poison = craft(trained, objective, Budget(radius=0.15, share=0.3, box=(0.0, 1.0)), steps=3)
    done = retrain(trained, poison, fresh=0)
    before, after = goal.value(trained.weights), goal.value(done.warm.weights)
    assert after < before
    # The slope at the clean weights says how much one admissible step may gain to first order; a control does less.
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(poison.delta.shape, generator=generator, dtype=torch.float64).sign() * 0.15
    x = trained.x.clone()
    x[poison.rows] = (x[poison.rows] + random).clamp(0, 1)
    control = fit(trained.with_data(x)).problem.weights
    assert before - after > 2 * (before - goal.value(control))


def test_figures_of_regions_are_closed_forms(trained: Problem) -> None:
    w, v = trained.weights, direction(trained)
    half = TargetRegion(HalfSpace(2 * v, 2 * float(v.dot(w)) + 1.0)).bind(trained)
    assert half.value(w) == pytest.approx(0.125)
    assert half.figures(w + 0.25 * v, w)["region_distance_ratio"] == pytest.approx(0.5)
    assert half.success(w + 0.5 * v) is True and half.success(w + 0.49 * v) is False
    ball = TargetRegion(Ball(w + v, 0.25)).bind(trained)
    assert ball.figures(w + 0.5 * v, w)["region_distance"] == pytest.approx(0.25)
    box = TargetRegion(Box(torch.where(torch.arange(len(w)) == 3, w + 0.5, -torch.inf), w + 10)).bind(trained)
    assert box.value(w) == pytest.approx(0.125) and int((box.gradient(w) != 0).sum()) == 1


def test_a_layer_counts_alone(trained: Problem) -> None:
    v = direction(trained)
    goal = TargetWeights(trained.weights + v, success_at=0.5, layers=["2.weight"]).bind(trained)
    counted = torch.cat(
        [
            torch.full((value.numel(),), float(name == "2.weight"), dtype=torch.float64)
            for name, value in trained.parameters(trained.weights).items()
        ]
    )
    assert goal.value(trained.weights) == pytest.approx(0.5 * float((counted * v).square().sum()))
    elsewhere = trained.weights + 5 * (1 - counted) * v
    assert goal.figures(elsewhere, trained.weights)["movement"] == 0.0
    assert goal.figures(elsewhere + counted * v, trained.weights)["distance_ratio"] == pytest.approx(0.0, abs=1e-12)
    assert goal.success(trained.weights + 0.6 * counted * v) is True


def test_figures_of_function_objectives_read_the_outputs(trained: Problem) -> None:
    moved = trained.weights + 0.3 * direction(trained, 3)
    x, y = trained.x[5:20] * 0.9, trained.y[5:20]
    logits = trained.outputs(moved, x).detach()
    loss = ValidationLoss(x, y).bind(trained).figures(moved, trained.weights)
    assert loss["validation_loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, y)))
    group = GroupAccuracy(x, y).bind(trained).figures(moved, trained.weights)
    assert group["group_accuracy"] == pytest.approx(float((logits.argmax(1) == y).double().mean()))
    flips = FlipPredictions(x, logits.argmax(1), success_at=1.0).bind(trained)
    assert flips.figures(moved, trained.weights)["flipped"] == 15 and flips.success(moved) is True
    match = MatchPredictions(moved, x, success_at=1.0).bind(trained)
    assert match.figures(moved, trained.weights)["agreement"] == 1.0 and match.value(moved) == 0.0
    clean = trained.outputs(x=x).detach()
    assert match.value(trained.weights) == pytest.approx(0.5 * float((clean - logits).square().sum(1).mean()))
    kl = MatchPredictions(moved, x, "divergence").bind(trained).value(trained.weights)
    p = logits.softmax(1)
    assert kl == pytest.approx(float((p * (p / clean.softmax(1)).log()).sum(1).mean()))


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda p: FlipPredictions(p.x[:2], [1]).bind(p), InputRefused, "PA211"),
        (lambda p: FlipPredictions(p.x[:2], [1, 99]).bind(p), UsageError, "PA366"),
        (lambda p: FlipPredictions(p.x[:2], [1, 2], success_at=0.0), UsageError, "PA375"),
        (lambda p: FlipPredictions(p.x[:2, :5], [1, 2]).bind(p), InputRefused, "PA211"),
        (lambda p: ValidationLoss(p.x[:3], p.y[:2]).bind(p), InputRefused, "PA211"),
        (lambda p: ValidationLoss(p.x[:3] * torch.nan, p.y[:3]).bind(p), InputRefused, "PA210"),
        (lambda p: GroupAccuracy(p.x[:3], p.y[:3], success_at=2.0), UsageError, "PA375"),
        (lambda p: GroupAccuracy(p.x[:0], p.y[:0]).bind(p), InputRefused, "PA211"),
        (lambda p: MatchPredictions(p.weights).bind(p), UsageError, "PA364"),
        (lambda p: MatchPredictions(p.weights + 1, distance="divergense"), UsageError, "PA301 .*'divergence'"),
        (lambda p: TargetRegion(Ball(p.weights, 1.0)).bind(p), UsageError, "PA376"),
        (lambda p: TargetRegion(Ball(p.weights[:3], 1.0)).bind(p), InputRefused, "PA125"),
        (lambda p: TargetRegion(HalfSpace(0 * p.weights, 1.0)).bind(p), UsageError, "PA376"),
        (lambda p: TargetRegion(Box(p.weights + 1, p.weights)).bind(p), UsageError, "PA376"),
        (lambda p: TargetWeights(p.weights + 1, layers=["3.weight"]).bind(p), UsageError, "PA377"),
        (lambda p: TargetWeights(p.weights + 1, layers=[]).bind(p), UsageError, "PA377"),
    ],
)
def test_what_does_not_fit_is_refused(
    build: Callable[[Problem], Any], error: type[PoisonAuditError], words: str, trained: Problem
) -> None:
    with pytest.raises(error, match=words):
        build(trained)
