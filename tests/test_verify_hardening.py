"""Variants of a victim and what they cost to attack: kappa and movement in closed form, and trained models."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from poisonaudit.attack import Budget, FlipPrediction, TargetWeights
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.problem import Problem
from poisonaudit.results import finite
from poisonaudit.training import fit, relative_gradient
from poisonaudit.verify import compare_hardening, variant, variants


@pytest.fixture(scope="module")
def slope() -> Problem:
    """Least squares with one weight."""
    x = torch.tensor([1.0, 0.5, -1.0, 2.0, 1.5, -0.5]).double()
    y = torch.tensor([1.0, 1, -2, 1, 2, 0]).double()
    torch.manual_seed(0)
    return fit(
        Problem(nn.Linear(1, 1, bias=False).double(), "half_squared", x[:, None], y[:, None], 0.1), 1e-13
    ).problem


def solution(x: torch.Tensor, y: torch.Tensor, decay: float) -> float:
    return float(x.dot(y) / (x.dot(x) + len(x) * decay))


def least_radius(x: torch.Tensor, y: torch.Tensor, decay: float, row: int, wanted: float) -> float:
    total = float(x.dot(x)) + len(x) * decay
    a, b, c = wanted, 2 * wanted * float(x[row]) - float(y[row]), wanted * total - float(x.dot(y))
    return min(abs((-b + sign * math.sqrt(b * b - 4 * a * c)) / (2 * a)) for sign in (1, -1))


def test_variants_are_trained_on_what_they_name(slope):
    found = variants(slope, decays=(0.1, 2.0), row_counts=(4,), seed=3)
    assert list(found) == ["decay 0.1", "decay 2", "4 rows"]
    x, y = slope.x[:, 0], slope.y[:, 0]
    for label, decay, count in (("decay 0.1", 0.1, 6), ("decay 2", 2.0, 6), ("4 rows", 0.1, 4)):
        problem = found[label]
        assert (problem.decay, problem.rows) == (decay, count) and relative_gradient(problem) <= 1e-10
        assert float(problem.weights) == pytest.approx(solution(x[:count], y[:count], decay), rel=1e-8)
    assert torch.equal(slope.x, variant(slope, decay=1.0).x) and slope.decay == 0.1


@pytest.mark.parametrize("count", [0, 7, 2.5])
def test_rows_that_are_not_there_are_refused(slope, count):
    with pytest.raises(UsageError, match="PA347"):
        variants(slope, row_counts=(count,))
    with pytest.raises(InputRefused, match="PA123"):
        variant(slope, decay=-1.0)


def test_decay_lowers_kappa_and_raises_the_cost_of_a_given_movement(slope):
    step = 0.05
    problems = variants(slope, decays=(0.1, 1.0), row_counts=(4,))
    # Half of the way to a target one step beyond: the weight has to move by step.
    budget = Budget(radius=0.3, choice=[3])
    compared = compare_hardening(
        problems,
        lambda problem: TargetWeights(problem.weights + 2 * step, success_at=0.5),
        budget,
        fresh=1,
        steps=1,
        precision=0.2,
    )
    for found in compared.variants:
        x, y = problems[found.label].x[:, 0], problems[found.label].y[:, 0]
        w, n = solution(x, y, found.decay), found.rows
        # H = (|x|^2 + n decay) / n and B_i = (2 w x_i - y_i) / n.
        kappa = float((2 * w * x - y).norm() / (x.dot(x) + n * found.decay))
        assert found.kappa == pytest.approx(kappa, rel=1e-6) and found.kappa_valid
        exact = least_radius(x, y, found.decay, 3, w + step)
        assert found.cost.lower < exact <= found.cost.upper
        assert found.train_accuracy is None
    frame = compared.to_frame().set_index("label")
    assert frame.loc["decay 1", "kappa"] < frame.loc["decay 0.1", "kappa"]
    assert frame.loc["decay 1", "value"] > frame.loc["decay 0.1", "value"]
    body = json.loads(json.dumps(finite(compared.to_json()), allow_nan=False))
    assert [row["label"] for row in body] == list(problems) and body[0]["cost"]["kind"] == "upper"
    assert body[0]["value"] == body[0]["cost"]["value"] and body[0]["kappa_infinite"] is False


def test_classifiers_come_with_accuracies_and_a_flip_that_is_there_already_costs_nothing():
    from sklearn.datasets import load_digits

    x, y = load_digits(n_class=2, return_X_y=True)
    x, y = torch.tensor(x) / 16, torch.tensor(y).long()
    torch.manual_seed(0)
    problem = Problem(nn.Linear(64, 2).double(), "cross_entropy", x[:60], y[:60], 1e-2)
    said: list[str] = []
    compared = compare_hardening(
        variants(problem, decays=(1e-2,), row_counts=(30,)),
        lambda problem: FlipPrediction(x[100], int(y[100])),
        Budget(radius=0.1, rows=3),
        test=(x[60:], y[60:]),
        fresh=1,
        progress=lambda text, fraction: said.append(text),
    )
    for found in compared.variants:
        assert found.cost.value is None and "clean model already meets" in found.cost.reason
        assert found.train_accuracy == 1.0 and found.test_accuracy is not None and found.test_accuracy > 0.95
    assert [found.rows for found in compared.variants] == [60, 30]
    assert compared.to_frame()["value"].isna().all()
