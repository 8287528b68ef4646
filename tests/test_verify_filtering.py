from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from poisonaudit.attack import Budget, FlipPrediction, TargetWeights, craft, weights_from_label_flips
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.problem import Problem
from poisonaudit.quantities import PAIRED, unmoved
from poisonaudit.training import fit
from poisonaudit.verify import retrain
from poisonaudit.verify.detectors import Detection
from poisonaudit.verify.detectors.detection import not_applicable
from poisonaudit.verify.effects import effect, effect_name
from poisonaudit.verify.filtering import on_rows, retrain_filtered


@pytest.fixture(scope="module")
def rows():
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    x, y = torch.tensor((x - x.mean(0)) / x.std(0)), torch.tensor(y).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order][:100], y[order][:100], x[order][100:], y[order][100:]


@pytest.fixture(scope="module")
def problem(rows):
    torch.manual_seed(0)
    return fit(Problem(nn.Linear(13, 3).double(), "cross_entropy", rows[0], rows[1], 1e-2)).problem


@pytest.fixture(scope="module")
def poison(problem):
    ones = (problem.y == 1).nonzero().flatten()[:6]
    target = TargetWeights(weights_from_label_flips(problem, (ones, 0)), success_at=0.2)
    return craft(problem, target, Budget(radius=0.6, rows=10), steps=2)


def flags(problem, *positions):
    flagged = torch.zeros(problem.rows).bool()
    for each in positions:
        flagged[each] = True
    return Detection("oracle", flagged.double(), flagged)


@pytest.fixture(scope="module")
def cleaned(problem, poison, rows):
    return retrain_filtered(problem, poison, flags(problem, poison.rows), (5, 6), test=rows[2:])


def test_without_the_poisoned_rows_the_attack_is_gone(cleaned, problem, poison, rows):
    assert cleaned["applicable"] and cleaned["effect"] == "movement"
    assert cleaned["poisoned_left"] == 0 and cleaned["rows_left"] == 90 and cleaned["flagged"] == 10
    effects = cleaned["effects"]
    assert effects["poisoned"]["warm"] > 0.3
    # what is left counts from clean training that lost the same rows: nothing
    assert cleaned["left"]["warm"] == pytest.approx(0.0, abs=1e-7)
    assert cleaned["left"]["mean"] == pytest.approx(0.0, abs=1e-7)
    assert cleaned["left"]["share"] == pytest.approx(0.0, abs=1e-6)
    # as many rows dropped at random leave most of it
    assert effects["random"]["mean"] > 0.6 * effects["poisoned"]["mean"]
    assert len(cleaned["random_poisoned_left"]) == 3 and sum(cleaned["random_poisoned_left"]) >= 21
    assert cleaned["success"]["poisoned"]["rate"] == 1.0 and cleaned["success"]["filtered"]["rate"] == 0.0
    # an independent fit on the rows that are left
    kept = torch.tensor([row for row in range(100) if row not in set(poison.rows.tolist())])
    alone = fit(Problem(nn.Linear(13, 3).double(), "cross_entropy", rows[0][kept], rows[1][kept], 1e-2)).problem
    expected = poison.objective.bind(problem).movement(alone.weights, problem.weights)
    assert effects["filtered"]["warm"] == pytest.approx(expected, abs=1e-6)
    assert effects["filtered"]["mean"] == pytest.approx(effects["clean_filtered"]["mean"], abs=1e-7)
    with torch.no_grad():
        right = float((alone.outputs(x=rows[2]).argmax(1) == rows[3]).double().mean())
    assert cleaned["accuracy"]["filtered"]["warm"] == pytest.approx(right)
    assert cleaned["accuracy_of"] == "test rows"
    change = cleaned["accuracy_change"]["filtered"]["warm"]
    assert change == pytest.approx(right - cleaned["accuracy"]["clean"]["warm"])
    assert not any(cleaned["not_converged"].values())
    assert [run["seed"] for run in cleaned["arms"]["random"]["runs"]] == [None, 5, 6]
    json.dumps(cleaned, allow_nan=False)


def test_half_of_the_poison_left_keeps_part_of_the_attack(problem, poison, cleaned):
    half = retrain_filtered(problem, poison, flags(problem, poison.rows[::2]), ())
    assert half["poisoned_left"] == 5 and half["left"]["mean"] is None
    assert 0.2 < half["left"]["share"] < 0.8
    assert half["success"]["filtered"] is None and half["accuracy_of"] == "clean training rows"


def test_an_earlier_retraining_saves_two_arms_and_says_the_same(problem, poison, rows, cleaned):
    earlier = retrain(problem, poison, (5, 6), test=rows[2:])
    again = retrain_filtered(problem, poison, flags(problem, poison.rows), (5, 6), test=rows[2:], retrained=earlier)
    for arm in cleaned["effects"]:
        assert again["effects"][arm]["mean"] == pytest.approx(cleaned["effects"][arm]["mean"], abs=1e-9)
    with pytest.raises(UsageError, match="PA372"):
        retrain_filtered(problem, poison, flags(problem, [0]), (1,), retrained=earlier)


def test_another_effect_and_another_objective(problem, poison, rows):
    flip = FlipPrediction(rows[2][0], (int(rows[3][0]) + 1) % 3)
    found = retrain_filtered(problem, poison, flags(problem, poison.rows), (), objective=flip)
    assert found["effect"] == "margin_change"
    norm = retrain_filtered(problem, poison, flags(problem, poison.rows), (), effect_wanted="displacement_norm")
    assert norm["left"]["warm"] == pytest.approx(0.0, abs=1e-6) and norm["effects"]["filtered"]["warm"] > 1e-3
    with pytest.raises(UsageError, match="PA301 .*movement"):
        retrain_filtered(problem, poison, flags(problem, poison.rows), (), effect_wanted="margin_change")


def test_nothing_to_train_says_why(problem, poison):
    assert "flags no row" in retrain_filtered(problem, poison, flags(problem))["reason"]
    everything = retrain_filtered(problem, poison, flags(problem, range(100)))
    assert not everything["applicable"] and "every row" in everything["reason"]
    missing = retrain_filtered(problem, poison, not_applicable("mine", problem, "there are no classes"))
    assert not missing["applicable"] and missing["reason"] == "not applicable: there are no classes"


def test_misuse_is_refused(problem, poison):
    with pytest.raises(UsageError, match="PA371"):
        retrain_filtered(problem, poison, flags(problem, [0]), (1, 1))
    short = replace(flags(problem, [0]), flagged=torch.zeros(5).bool())
    with pytest.raises(InputRefused, match="PA211"):
        retrain_filtered(problem, poison, short)


def test_a_problem_on_some_rows_has_the_mean_over_them(problem):
    kept = torch.arange(0, 100, 3)
    part = on_rows(problem, kept)
    decay = 0.5 * problem.decay * problem.weights.square().sum()
    assert float(part.objective()) == pytest.approx(float(problem.losses()[kept].mean() + decay))
    assert torch.equal(part.weights, problem.weights) and part.rows == 34
    squared = Problem(problem.module(), "half_squared", problem.x, problem.y, 0.1)
    assert torch.equal(on_rows(squared, kept).y, squared.y[kept])


def test_effects_of_every_kind_grow_from_zero():
    figures = {"region_distance_ratio": 0.25, "displacement_norm": 2.0, "success": False}
    assert effect_name(figures) == "region_approach" and effect(figures, "region_approach") == 0.75
    assert effect({"prediction_distance_ratio": 1.0}, "prediction_approach") == 0.0
    assert effect_name({"success": None, "margin_change": 1.0}) == "margin_change"
    assert effect({"success": True}, "success") == 1.0
    for key in PAIRED:
        name = {"region_distance_ratio": "region_approach", "prediction_distance_ratio": "prediction_approach"}
        assert effect({key: unmoved(key)}, name.get(key, key)) == 0.0
    with pytest.raises(UsageError, match="PA301"):
        effect(figures, "movement")
    with pytest.raises(UsageError, match="PA301"):
        effect_name({"success": None, "displacement_norm": 1.0}, "success")
