from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from poisonaudit.attack import (
    Budget,
    FlipPrediction,
    Membership,
    TargetWeights,
    craft,
    outcome,
    weights_from_label_flips,
)
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.problem import Problem
from poisonaudit.results import finite
from poisonaudit.training import fit

HISTORY_KEYS = {
    "step",
    "predicted_objective",
    "retrained_objective",
    "phi",
    "budget_used",
    "converged",
    "kept",
    "products",
    "seconds",
    "ended",
}


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(n_class=5, return_X_y=True)
    x, y = torch.tensor(x) / 16, torch.tensor(y).long()
    return x[:150], y[:150], x[150:400], y[150:400]


@pytest.fixture(scope="module")
def logistic(digits):
    torch.manual_seed(0)
    found = fit(Problem(nn.Linear(64, 5).double(), "cross_entropy", digits[0], digits[1], 1e-2))
    assert found.converged
    return found.problem


@pytest.fixture(scope="module")
def target(logistic):
    threes = (logistic.y == 3).nonzero().flatten()[:12]
    return TargetWeights(weights_from_label_flips(logistic, (threes, 1)), success_at=0.2)


@pytest.fixture(scope="module")
def tanh_net(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    found = fit(Problem(model, "cross_entropy", digits[0], digits[1], 1e-2))
    assert found.converged
    return found.problem


def retrained_warm(problem, poison):
    """Independent of the crafting loop: train from the clean weights on the poisoned rows."""
    x = problem.x.clone()
    x[poison.rows] += poison.delta
    return fit(problem.with_data(x), 1e-9).problem.weights


def test_movement_toward_target_weights_grows_beats_random_rows_and_is_predicted(logistic, target, digits):
    moved = {}
    for radius, choice in [(0.05, "adjoint"), (0.1, "adjoint"), (0.1, "random")]:
        budget = Budget(radius=radius, rows=15, box=(0.0, 1.0), choice=choice)
        poison = craft(logistic, target, budget, seed=1, steps=4, tolerance=1e-8, test=digits[2:])
        weights = retrained_warm(logistic, poison)
        actual = outcome(logistic, weights, target, digits[2:])
        assert poison.predicted["method"] == "path" and poison.predicted["valid"]
        assert poison.predicted["movement"] == pytest.approx(actual["movement"], rel=1e-4)
        assert set(actual) <= set(poison.predicted)
        assert actual["movement"] > 0 and actual["distance_ratio"] < 1
        linear = poison.predicted["linear"]
        assert linear["valid"] == (linear["phi"] <= 0.3)
        # phi estimates the relative error of one step from itself, without retraining
        assert linear["movement"] == pytest.approx(actual["movement"], rel=1.5 * linear["phi"])
        torch.testing.assert_close(poison.weights, weights, rtol=1e-5, atol=1e-6)
        moved[radius, choice] = actual["movement"]
    assert moved[0.1, "adjoint"] > 1.4 * moved[0.05, "adjoint"]
    assert moved[0.1, "adjoint"] > 2 * moved[0.1, "random"]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_poison_lies_in_budget_and_box_and_repeats(logistic, target, norm):
    radius = 0.1 if norm == "linf" else 0.6
    budget = Budget(radius=radius, share=0.05, norm=norm, box=(0.0, 1.0))
    before = (logistic.x.clone(), logistic.y.clone(), logistic.weights.clone(), torch.get_rng_state())
    poison = craft(logistic, target, budget, steps=2, tolerance=1e-8)
    for old, new in zip(before, (logistic.x, logistic.y, logistic.weights, torch.get_rng_state()), strict=True):
        assert torch.equal(old, new)
    assert len(poison.rows) == 7 and poison.rows.tolist() == sorted(set(poison.rows.tolist()))
    norms = poison.delta.abs().amax(1) if norm == "linf" else poison.delta.norm(dim=1)
    assert float(norms.max()) <= radius + 1e-12 and float(norms.max()) > 0.9 * radius
    poisoned = poison.poisoned(logistic).x
    assert float(poisoned.min()) >= -1e-12 and float(poisoned.max()) <= 1 + 1e-12
    changed = (poison.perturbation(logistic) != 0).any(1).nonzero().flatten()
    assert set(changed.tolist()) <= set(poison.rows.tolist())
    again = craft(logistic, target, budget, steps=2, tolerance=1e-8)
    assert torch.equal(again.delta, poison.delta) and torch.equal(again.rows, poison.rows)
    assert torch.equal(again.weights, poison.weights)


def test_history_tells_every_step_and_the_best_is_kept(logistic, target):
    said = []
    poison = craft(
        logistic,
        target,
        Budget(radius=0.1, rows=10, box=(0.0, 1.0)),
        steps=3,
        tolerance=1e-8,
        progress=lambda text, fraction: said.append((text, fraction)),
    )
    assert all(set(entry) == HISTORY_KEYS for entry in poison.history)
    clean = 0.5 * float((logistic.weights - target.weights).square().sum())
    assert poison.history[0]["step"] == 0
    assert poison.history[0]["retrained_objective"] == pytest.approx(clean)
    best = min(entry["retrained_objective"] for entry in poison.history)
    reached = 0.5 * float((poison.weights - target.weights).square().sum())
    assert reached == pytest.approx(best, rel=1e-6)
    for entry in poison.history[1:]:
        assert 0 < entry["budget_used"] <= 1 + 1e-12 and entry["products"] > 0 and entry["converged"]
        if entry["phi"] < 0.1:
            assert entry["predicted_objective"] == pytest.approx(entry["retrained_objective"], rel=0.02)
    assert said[-1][1] == 1.0 and all(0 <= fraction <= 1 for _, fraction in said)
    assert poison.products >= sum(entry["products"] for entry in poison.history)
    json.dumps(finite(poison.predicted), allow_nan=False)
    json.dumps(finite(list(poison.history)), allow_nan=False)


def test_a_flip_on_a_tanh_net_goes_where_and_as_far_as_predicted(tanh_net, digits):
    x, y = digits[2], digits[3]
    with torch.no_grad():
        top = tanh_net.outputs(x=x).topk(2, 1)
    margins = top.values[:, 0] - top.values[:, 1]
    right = (top.indices[:, 0] == y).nonzero().flatten()
    row = int(right[margins[right].argsort()[3]])
    objective = FlipPrediction(x[row], int(top.indices[row, 1]))
    clean = outcome(tanh_net, tanh_net.weights, objective)
    assert clean["success"] is False
    gains = {}
    for choice in ("adjoint", "random"):
        budget = Budget(radius=0.05, rows=8, box=(0.0, 1.0), choice=choice)
        poison = craft(tanh_net, objective, budget, seed=2, steps=5)
        actual = outcome(tanh_net, retrained_warm(tanh_net, poison), objective)
        assert poison.predicted["method"] == "path"
        assert actual["margin_change"] > 0
        assert poison.predicted["margin_change"] == pytest.approx(actual["margin_change"], rel=1e-3)
        assert 0.4 < poison.predicted["linear"]["margin_change"] / actual["margin_change"] < 2.0
        gains[choice] = actual["margin_change"]
    assert gains["adjoint"] > 2 * gains["random"]


def test_cross_entropy_surrogate_raises_the_margin_too(tanh_net, digits):
    objective = FlipPrediction(digits[2][0], (int(digits[3][0]) + 1) % 5, "cross_entropy")
    poison = craft(tanh_net, objective, Budget(radius=0.05, rows=5, norm="l2", box=(0.0, 1.0)), steps=3)
    actual = outcome(tanh_net, poison.weights, objective)
    assert actual["margin_change"] > 0
    assert poison.predicted["margin_change"] == pytest.approx(actual["margin_change"], rel=0.05)


def test_wine_columns_stay_in_the_range_of_the_training_rows():
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    x = torch.tensor((x - x.mean(0)) / x.std(0))
    torch.manual_seed(0)
    problem = fit(Problem(nn.Linear(13, 3).double(), "half_squared", x, torch.tensor(y).long(), 1e-2)).problem
    target = TargetWeights(weights_from_label_flips(problem, (range(10), 2)))
    box = (x.amin(0), x.amax(0))
    poison = craft(problem, target, Budget(radius=0.5, rows=12, box=box), steps=4)
    poisoned = poison.poisoned(problem).x
    assert (poisoned >= box[0] - 1e-12).all() and (poisoned <= box[1] + 1e-12).all()
    # ridge regression: the retrained solution in closed form, without any fit
    ones = torch.cat([poisoned, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    normal = ones.T @ ones / len(x) + 1e-2 * torch.eye(14, dtype=torch.float64)
    solved = torch.linalg.solve(normal, ones.T @ problem.y / len(x))
    exact = torch.cat([solved[:13].T.reshape(-1), solved[13]])
    torch.testing.assert_close(poison.weights, exact, rtol=1e-5, atol=1e-7)
    actual = outcome(problem, exact, target)
    assert poison.predicted["movement"] == pytest.approx(actual["movement"], rel=1e-4)
    assert actual["movement"] > 0.1


def test_rows_outside_the_box_and_goals_already_met_are_told(logistic, digits):
    x, label = digits[2][0], int(digits[3][0])
    met = craft(logistic, FlipPrediction(x, label), Budget(radius=0.05, rows=3, box=(0.0, 0.9)), steps=1)
    assert any("already meets" in note for note in met.notes)
    assert any("outside the box" in note for note in met.notes)


def test_a_poison_that_cannot_help_is_empty_and_says_so(logistic, target):
    # the box holds the rows where they are: nothing is admissible but zero
    position = 4
    row = logistic.x[position]
    helps = craft(logistic, target, Budget(radius=1e-3, choice=[position]), steps=1).delta[0]
    assert bool((helps != 0).all())
    # The box has room on the other side only.
    other = row - 1e-3 * helps.sign()
    box = torch.minimum(row, other), torch.maximum(row, other)
    poison = craft(logistic, target, Budget(radius=0.1, choice=[position], box=box), steps=2)
    assert not poison.delta.any()
    assert any("no perturbation" in note for note in poison.notes)
    assert poison.predicted["movement"] == pytest.approx(0.0, abs=1e-9) and poison.predicted["phi"] is None
    assert torch.equal(poison.weights, logistic.weights)


@pytest.mark.parametrize("kind", [TargetWeights, Membership])
def test_a_limit_of_products_that_stops_the_solver_is_told(logistic, target, kind):
    budget = Budget(radius=0.1, rows=3, choice="random")
    goal = kind(target.weights)
    poison = craft(logistic, goal, budget, steps=2, max_products=1)
    (said,) = [note for note in poison.notes if "max_products" in note]
    assert said.startswith("max_products=1 stopped the inner problem in ")
    assert not any("no perturbation in the budget" in note for note in poison.notes)
    assert {line["ended"] for line in poison.history[1:]} == {"product limit"}
    free = craft(logistic, goal, budget, steps=2)
    assert not any("max_products" in note for note in free.notes) and free.delta.any()
    assert {line["ended"] for line in free.history[1:]} <= {"gap reached", "no more progress", "iteration limit"}


def test_misuse_is_refused(logistic, target, tanh_net):
    with pytest.raises(UsageError, match="PA367"):
        craft(logistic, target, Budget(radius=0.1, rows=1), steps=0)
    with pytest.raises(UsageError, match="PA361"):
        craft(logistic, target, Budget(radius=0.1, rows=1000))
    with pytest.raises(InputRefused, match="PA125"):
        craft(tanh_net, target, Budget(radius=0.1, rows=1))
    poison = craft(logistic, target, Budget(radius=0.1, rows=1, choice="random"), steps=1)
    shorter = Problem(nn.Linear(3, 5).double(), "cross_entropy", torch.zeros(4, 3).double(), torch.zeros(4).long())
    with pytest.raises(InputRefused, match="PA211 .*crafted for"):
        poison.perturbation(shorter)
    assert math.isfinite(poison.seconds)
