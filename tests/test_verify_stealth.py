from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from poisonaudit.attack import Budget, FlipPrediction, Poison, TargetWeights, craft, weights_from_label_flips
from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem
from poisonaudit.training import fit
from poisonaudit.verify import retrain
from poisonaudit.verify.detectors import run_detectors
from poisonaudit.verify.stealth import StealthCurve, budget_grid, stealth_damage


def curve(*pairs):
    points = [{"stealth": stealth, "damage": damage, "auroc": {"a": 0.5}} for stealth, damage in pairs]
    return StealthCurve(points, "movement", "warm", ("a",))


@pytest.fixture(scope="module")
def problem():
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    x, y = torch.tensor((x - x.mean(0)) / x.std(0)), torch.tensor(y).long()
    torch.manual_seed(0)
    return fit(Problem(nn.Linear(13, 3).double(), "cross_entropy", x[::2], y[::2], 1e-2)).problem


@pytest.fixture(scope="module")
def target(problem):
    ones = (problem.y == 1).nonzero().flatten()[:6]
    return TargetWeights(weights_from_label_flips(problem, (ones, 0)))


@pytest.fixture(scope="module")
def stored():
    return {}


@pytest.fixture(scope="module")
def found(problem, target, stored):
    budgets = budget_grid(Budget(radius=1.0, rows=1), [0.1, 0.8], [0.08, 15])
    return stealth_damage(problem, target, budgets, steps=1, store=stored.__setitem__)


def test_the_area_of_a_curve_by_hand():
    # (.5, .3) loses to (.6, .5) in both
    three = curve((0.2, 1.0), (0.6, 0.5), (0.5, 0.3))
    assert three.front == [(0.2, 1.0), (0.6, 0.5), (1.0, 0.0)]
    assert three.area == pytest.approx(0.2 * 1.0 + 0.4 * 0.75 + 0.4 * 0.25)
    assert curve((1.0, 0.4)).area == pytest.approx(0.4)
    assert curve((0.0, 0.8)).area == pytest.approx(0.4)
    assert curve((0.3, 0.0), (0.6, -0.2)).area == 0.0  # an attack that does nothing is not worth making
    assert curve((0.3, 0.7), (0.3, 0.9), (0.3, 0.7)).front == [(0.3, 0.9), (1.0, 0.0)]
    assert curve((None, 0.7)).area is None
    assert three.to_frame()["on_front"].tolist() == [True, True, False]


def test_a_straight_trade_off_has_the_area_of_its_triangle():
    pairs = [(i / 50, 2.0 * (1 - i / 50)) for i in range(50)]
    assert curve(*pairs).area == pytest.approx(1.0)


def test_points_are_what_crafting_retraining_and_detectors_say(found, problem, target):
    assert found.damage == "movement" and found.judged_on == "warm"
    assert [(point["radius"], point["rows"]) for point in found.points] == [(0.1, 7), (0.1, 15), (0.8, 7), (0.8, 15)]
    point = found.points[2]
    poison = craft(problem, target, Budget(radius=0.8, share=0.08), steps=1, tolerance=1e-10)
    judged = retrain(problem, poison, 0)
    assert point["damage"] == pytest.approx(judged.warm.outcome["movement"], rel=1e-9)
    assert point["predicted"] == pytest.approx(point["damage"], rel=1e-2)
    seen = run_detectors(poison.poisoned(problem), judged.warm.weights, poison.rows)
    assert point["auroc"] == {name: figures["auroc"] for name, figures in seen.items()}
    best = max(0.5, *point["auroc"].values())
    assert point["auroc"][point["best_detector"]] == best
    assert point["detectability"] == pytest.approx(2 * best - 1) and point["stealth"] == pytest.approx(2 - 2 * best)
    assert point["perceptibility"] == pytest.approx(float(poison.delta.norm() / problem.x[poison.rows].norm()))
    before = run_detectors(problem, problem.weights, poison.rows)
    for name, value in point["auroc_unpoisoned"].items():
        assert value == pytest.approx(before[name]["auroc"], abs=1e-6)
    assert point["damage_control"] == pytest.approx(0.0, abs=1e-9)


def test_more_radius_means_more_damage_and_more_to_see(found):
    by_key = {(point["radius"], point["rows"]): point for point in found.points}
    for rows in (7, 15):
        assert by_key[0.8, rows]["damage"] > 2 * by_key[0.1, rows]["damage"] > 0
        assert by_key[0.8, rows]["perceptibility"] > by_key[0.1, rows]["perceptibility"]
    assert 0 < found.area <= max(point["damage"] for point in found.points)
    frame = found.to_frame()
    assert len(frame) == 4 and {"auroc_loss_filter", "stealth", "damage", "on_front"} <= set(frame.columns)
    body = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert body["area"] == found.area and body["objective"]["kind"] == "target_weights"


def test_stored_points_are_not_made_again(found, stored, problem, target):
    def refuse(*given):
        raise AssertionError("crafted again")

    budgets = budget_grid(Budget(radius=1.0, rows=1), [0.1, 0.8], [0.08, 15])
    assert set(stored) == {(0.1, 7), (0.1, 15), (0.8, 7), (0.8, 15)}
    read = {key: json.loads(json.dumps(point, allow_nan=False)) for key, point in stored.items()}
    again = stealth_damage(problem, target, budgets, crafter=refuse, already=read)
    assert again.to_json() == found.to_json()
    with pytest.raises(UsageError, match="PA393 .*movement"):
        stealth_damage(problem, target, budgets, crafter=refuse, already=read, damage="displacement_norm")
    with pytest.raises(UsageError, match="PA393"):
        stealth_damage(problem, target, budgets, crafter=refuse, already=read, detectors=["loss_filter"])
    with pytest.raises(UsageError, match="PA393"):
        stealth_damage(problem, target, [budgets[0], budgets[0]])


def test_a_poison_that_changes_nothing_has_no_area(problem, target):
    def nothing(problem, objective, budget, seed):
        rows = torch.arange(budget.count(problem.rows)) * 4
        delta = torch.zeros_like(problem.x[rows])
        return Poison(rows, delta, {}, (), budget, objective, problem.weights, 0, 0.0, method="none")

    budgets = budget_grid(Budget(radius=1.0, rows=1), [0.1], [20])
    found = stealth_damage(problem, target, budgets, crafter=nothing)
    assert found.points[0]["damage"] == pytest.approx(0.0, abs=1e-9) and found.points[0]["predicted"] is None
    assert found.area == pytest.approx(0.0, abs=1e-9)
    assert found.points[0]["auroc"] == pytest.approx(found.points[0]["auroc_unpoisoned"])
    assert min(found.points[0]["auroc_p_value"].values()) > 0.01


def test_an_auroc_below_a_half_counts_as_a_half(problem, target):
    best = problem.losses().detach().argsort()[:10]  # the rows of smallest loss

    def quiet(problem, objective, budget, seed):
        delta = torch.full_like(problem.x[best], 1e-6)
        return Poison(best.sort().values, delta, {}, (), budget, objective, problem.weights, 0, 0.0)

    found = stealth_damage(
        problem, target, [Budget(radius=1.0, rows=10)], crafter=quiet, detectors=["loss_filter"]
    ).points[0]
    assert found["auroc"]["loss_filter"] < 0.05 and found["detectability"] == 0.0 and found["stealth"] == 1.0


def test_success_over_fresh_seeds(problem):
    with torch.no_grad():
        top = problem.outputs().topk(2, 1)
    row = int((top.values[:, 0] - top.values[:, 1]).argmin())
    objective = FlipPrediction(problem.x[row], int(top.indices[row, 1]))
    budgets = [Budget(radius=1.0, rows=20)]
    found = stealth_damage(
        problem, objective, budgets, fresh=2, damage="success", steps=2, detectors=["loss_filter", "nearest_neighbours"]
    )
    point = found.points[0]
    assert found.judged_on == "fresh" and point["fresh_runs"] == 2
    assert point["damage"] == 1.0 and point["damage_control"] == 0.0 and point["damage_standard_error"] == 0.0
    assert set(point["auroc"]) == {"loss_filter", "nearest_neighbours"}


def test_regression_lies_on_the_curve_by_its_losses_only():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator).double()
    y = x @ torch.tensor([[1.0], [2.0], [-1.0]]).double() + 0.1 * torch.randn(40, 1, generator=generator).double()
    problem = fit(Problem(nn.Linear(3, 1).double(), "half_squared", x, y, 1e-2)).problem
    target = TargetWeights(problem.weights * 0.9)
    found = stealth_damage(problem, target, [Budget(radius=0.3, rows=4)], steps=1)
    assert found.points[0]["best_detector"] == "loss_filter" and found.points[0]["auroc"]["spectral_signature"] is None
    blind = stealth_damage(problem, target, [Budget(radius=0.3, rows=4)], steps=1, detectors=["spectral_signature"])
    assert blind.points[0]["stealth"] is None and blind.area is None
    json.dumps(blind.to_json(), allow_nan=False)
    assert blind.to_frame()["on_front"].tolist() == [False]


def test_a_grid_needs_a_free_choice_of_rows():
    with pytest.raises(UsageError, match="PA361"):
        budget_grid(Budget(radius=1.0, choice=[1, 2]), [0.1], [2])
