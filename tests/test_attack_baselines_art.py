"""ART's attacks on our rows, inside our budget, without traces; and what ART 1.20.1 gets wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from poisonaudit.attack import Budget, FlipPrediction, FlipPredictions, TargetWeights
from poisonaudit.attack.baselines import applicable, run_baseline
from poisonaudit.attack.baselines.art_support import split_at_features
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.problem import Problem
from poisonaudit.results import finite
from poisonaudit.training import fit

WRAPPED = ("art_gradient_matching", "art_feature_collision", "art_bullseye")
QUICK = {
    "art_gradient_matching": {"steps": 30, "restarts": 2},
    "art_feature_collision": {"steps": 15, "similarity_coeffs": (16.0, 1.0)},
    "art_bullseye": {"steps": 40},
}


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(n_class=4, return_X_y=True)
    x, y = torch.tensor(x) / 16, torch.tensor(y).long()
    return x[:100], y[:100], x[100:300], y[100:300]


@pytest.fixture(scope="module")
def net(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    found = fit(Problem(model, "cross_entropy", digits[0], digits[1], 1e-2), 1e-8)
    assert found.converged
    return found.problem


@pytest.fixture(scope="module")
def flip(net, digits):
    with torch.no_grad():
        top = net.outputs(x=digits[2]).topk(2, 1)
    row = int((top.values[:, 0] - top.values[:, 1]).argmin())
    return FlipPrediction(digits[2][row], int(top.indices[row, 1]))


def wanted_rows(problem, flip, count=4):
    return (problem.y == flip.label).nonzero().flatten()[:count]


@pytest.mark.parametrize("name", WRAPPED)
def test_runs_inside_the_budget_repeats_and_leaves_no_trace(name, net, flip, capsys):
    budget, rows = Budget(radius=0.1, rows=4, box=(0.0, 1.0)), wanted_rows(net, flip)
    assert applicable(name, net, flip, budget) == ""
    loader = torch.utils.data.DataLoader
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    x, weights = net.x.clone(), net.weights.clone()
    said: list[tuple[str, float | None]] = []
    poison = run_baseline(
        name, net, flip, budget, rows, seed=3, progress=lambda *told: said.append(told), **QUICK[name]
    )
    assert np.array_equal(np.random.get_state()[1], numpy_state) and torch.equal(torch.get_rng_state(), torch_state)
    assert torch.equal(net.x, x) and torch.equal(net.weights, weights) and torch.utils.data.DataLoader is loader
    assert not any(module._forward_hooks for module in net._module.modules())
    assert all(not value.requires_grad for value in net._module.parameters())
    assert capsys.readouterr() == ("", "")
    np.random.seed(11)
    again = run_baseline(name, net, flip, budget, rows, seed=3, **QUICK[name])
    assert torch.equal(again.delta, poison.delta)
    allowed = budget.around(net.x[rows])
    assert allowed.violation(poison.delta) <= 1e-12 and bool(poison.delta.any())
    assert poison.method == name and poison.delta.dtype == torch.float64 and torch.equal(poison.rows, rows)
    assert poison.history[-1]["objective"] < poison.history[0]["objective"]
    assert poison.gradients > 0 and poison.products == 0 and dict(poison.predicted) == {}
    assert said[0][1] == 0.0 and said[-1][1] == 1.0
    json.dumps(finite(list(poison.history)), allow_nan=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"radius": 0.5, "norm": "l2", "box": (0.0, 1.0)},
        {"radius": 1.0, "norm": "l1"},
        {"radius": 0.5, "norm": "l0", "entries": 4, "box": (0.0, 1.0)},
        {"radius": 0.1, "scale": [2.0] * 64},
    ],
)
def test_feature_collision_takes_every_norm_and_others_only_linf(settings, net, flip):
    budget, rows = Budget(rows=2, **settings), wanted_rows(net, flip, 2)
    poison = run_baseline("art_feature_collision", net, flip, budget, rows, steps=8, similarity_coeffs=(1.0,))
    assert budget.around(net.x[rows]).violation(poison.delta) <= 1e-12 and bool(poison.delta.any())
    for name in ("art_gradient_matching", "art_bullseye"):
        reason = applicable(name, net, flip, budget)
        assert ("scale" if "scale" in settings else "norm") in reason
        with pytest.raises(InputRefused, match="PA281"):
            run_baseline(name, net, flip, budget, rows)


@pytest.mark.parametrize("name", WRAPPED)
def test_a_box_of_columns_immutable_entries_and_steps_hold(name, net, flip):
    rows = wanted_rows(net, flip)
    upper = torch.linspace(0.3, 1.0, 64, dtype=torch.float64)
    budget = Budget(radius=0.2, rows=4, box=(torch.zeros(64), upper), immutable=[9, 10], spacing={20: 0.125})
    poison = run_baseline(name, net, flip, budget, rows, **QUICK[name])
    assert budget.around(net.x[rows]).violation(poison.delta) <= 1e-12
    assert not bool(poison.delta[:, [9, 10]].any()) and bool(poison.delta.any())
    assert any("nearest" in note for note in poison.notes)


def test_gradient_matching_of_art_leaves_rows_of_other_classes_alone(net, flip):
    mine, other = wanted_rows(net, flip, 3), (net.y != flip.label).nonzero().flatten()[:2]
    budget = Budget(radius=0.1, rows=5, box=(0.0, 1.0))
    rows = torch.cat([mine, other])
    poison = run_baseline("art_gradient_matching", net, flip, budget, rows, steps=10, restarts=1)
    moved = poison.delta.abs().amax(1) > 0
    assert set(poison.rows[moved].tolist()) == set(mine.tolist())
    assert any("2 of 5 rows are not of the wanted class" in note for note in poison.notes)
    with pytest.raises(InputRefused, match="PA281.*none of the rows"):
        run_baseline("art_gradient_matching", net, flip, budget, other)


def test_bullseye_as_shipped_does_not_look_at_the_target(net, digits):
    budget = Budget(radius=0.1, rows=4, box=(0.0, 1.0))
    targets = [FlipPrediction(digits[2][row], 1) for row in (0, 30)]
    rows = wanted_rows(net, targets[0])
    shipped = [run_baseline("art_bullseye", net, each, budget, rows, steps=20, as_shipped=True) for each in targets]
    ours = [run_baseline("art_bullseye", net, each, budget, rows, steps=20) for each in targets]
    assert torch.equal(shipped[0].delta, shipped[1].delta)
    assert not torch.equal(ours[0].delta, ours[1].delta)
    for with_target, without in zip(ours, shipped, strict=True):
        assert with_target.history[0]["objective"] == without.history[0]["objective"]
        assert with_target.history[-1]["objective"] < without.history[-1]["objective"]
    assert any("plays no part" in note for note in shipped[0].notes)


def test_several_targets(net, digits):
    budget, rows = Budget(radius=0.1, rows=4, box=(0.0, 1.0)), (net.y == 1).nonzero().flatten()[:4]
    same, mixed = FlipPredictions(digits[2][:2], [1, 1]), FlipPredictions(digits[2][:2], [1, 2])
    assert "one target" in applicable("art_feature_collision", net, same, budget)
    assert "one wanted class" in applicable("art_bullseye", net, mixed, budget)
    assert applicable("art_bullseye", net, same, budget) == ""
    assert applicable("art_gradient_matching", net, mixed, budget) == ""
    for name, objective in (("art_bullseye", same), ("art_gradient_matching", mixed)):
        poison = run_baseline(name, net, objective, budget, rows, **QUICK[name])
        assert poison.history[-1]["objective"] < poison.history[0]["objective"]


def test_what_art_cannot_do_is_not_applicable(net, flip, digits):
    budget = Budget(radius=0.1, rows=4)
    target = TargetWeights(net.weights + 1.0)
    squared = Problem(net.module(), "half_squared", digits[0], digits[1], 1e-2)
    flat = Problem(nn.Linear(64, 4).double(), "cross_entropy", digits[0], digits[1], 1e-2)
    nested = Problem(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double(), "cross_entropy", digits[0], digits[1], 1e-2
    )
    for name in WRAPPED:
        assert "flips predictions" in applicable(name, net, target, budget)
    assert "cross-entropy" in applicable("art_gradient_matching", squared, flip, budget)
    assert applicable("art_gradient_matching", flat, flip, budget) == ""
    for name in ("art_feature_collision", "art_bullseye"):
        assert applicable(name, squared, flip, budget) == ""
        for linear in (flat, nested):
            assert "no hidden layer" in applicable(name, linear, flip, budget)
    poison = run_baseline("art_bullseye", squared, flip, budget, wanted_rows(net, flip), steps=5)
    assert bool(poison.delta.any())


class Residual(nn.Module):
    """Not a Sequential, with its last Linear used before something else when `after` is set."""

    def __init__(self, after: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(5, 4)
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5), nn.Tanh())
        self.after = after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.head(self.body(x))
        return scores.tanh() if self.after else scores


def test_the_model_comes_apart_in_front_of_its_last_linear_layer(digits):
    torch.manual_seed(0)
    x = digits[0].reshape(-1, 1, 8, 8)
    problem = Problem(Residual().double(), "cross_entropy", x, digits[1], 1e-2)
    split = split_at_features(problem)
    assert isinstance(split, nn.Sequential) and split[0](x[:3].float()).shape == (3, 5)
    with torch.no_grad():
        torch.testing.assert_close(split(x[:3].float()).double(), problem.outputs(x=x[:3]), rtol=1e-4, atol=1e-5)
    later = split_at_features(Problem(Residual(after=True).double(), "cross_entropy", x, digits[1], 1e-2))
    assert isinstance(later, str) and "goes on after" in later
    budget, flip = Budget(radius=0.1, rows=3, box=(0.0, 1.0)), FlipPrediction(x[0], 2)
    for name in WRAPPED:
        poison = run_baseline(name, problem, flip, budget, wanted_rows(problem, flip, 3), **QUICK[name])
        assert poison.delta.shape == (3, 1, 8, 8) and bool(poison.delta.any())


def test_what_art_says_becomes_one_refusal_and_bad_options_are_refused(net, flip, monkeypatch):
    budget, rows = Budget(radius=0.1, rows=4, box=(0.0, 1.0)), wanted_rows(net, flip)

    def broken(*_: object, **__: object) -> None:
        raise ValueError("ART does not like this model")

    for name, options in (
        ("art_gradient_matching", {"restarts": 0}),
        ("art_feature_collision", {"similarity_coeffs": ()}),
        ("art_feature_collision", {"learning_rate": 0.0}),
        ("art_bullseye", {"learning_rate": -1.0}),
    ):
        with pytest.raises(UsageError, match="PA304"):
            run_baseline(name, net, flip, budget, rows, **options)
    state = torch.get_rng_state()
    monkeypatch.setattr("art.estimators.classification.PyTorchClassifier", broken)
    with pytest.raises(InputRefused, match="PA281.*does not like this model"):
        run_baseline("art_gradient_matching", net, flip, budget, rows)
    assert torch.equal(torch.get_rng_state(), state)
