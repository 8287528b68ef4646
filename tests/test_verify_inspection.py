from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from conftest import mlp
from torch import nn

from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem
from poisonaudit.sensitivity import row_moduli
from poisonaudit.training import fit
from poisonaudit.verify.detectors import nearest_neighbours
from poisonaudit.verify.inspection import (
    COMBINED,
    RANKINGS,
    Ranking,
    evaluate_ranking,
    inspection_order,
    random_average_precision,
    to_frame,
)


@pytest.fixture(scope="module")
def wine():
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:90]
    return torch.tensor((x - x.mean(0)) / x.std(0))[order], torch.tensor(y).long()[order]


@pytest.fixture(scope="module")
def logistic(wine):
    torch.manual_seed(0)
    return fit(Problem(nn.Linear(13, 3).double(), "cross_entropy", *wine, 1e-1)).problem


@pytest.fixture(scope="module")
def found(logistic):
    return inspection_order(logistic)


def test_recall_and_precision_by_hand():
    scores = torch.arange(40.0).flip(0)  # row 0 first
    judged = evaluate_ranking(scores, [0, 3, 20])
    recall = judged["recall"]
    assert [recall[name]["inspected"] for name in ("1%", "5%", "10%", "as_many_as_poisoned")] == [1, 2, 4, 3]
    assert [recall[name]["recall"] for name in recall] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1 / 3])
    assert recall["10%"]["random"] == pytest.approx(0.1)
    assert judged["average_precision"] == pytest.approx((1 / 1 + 2 / 4 + 3 / 21) / 3)
    assert judged["auroc"] == pytest.approx((37 + 35 + 19) / (3 * 37))
    json.dumps(judged, allow_nan=False)


@pytest.mark.parametrize(
    ("scores", "poisoned"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0]),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [1, 2, 5]),
        ([3.0, 2.0, 2.0, 2.0, 1.0, 1.0], [1, 4]),
        ([2.0, 3.0, 2.0, 1.0, 2.0, 1.0], [0, 2, 3, 5]),
        ([math.inf, 0.0, math.inf, 0.0, -math.inf, 0.0], [2, 3, 4]),
        ([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], [2, 5]),
    ],
)
def test_average_precision_against_every_order_of_ties(scores, poisoned):
    precisions = []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[one] >= scores[other] for one, other in itertools.pairwise(order)):
            depths = [depth for depth, row in enumerate(order, 1) if row in poisoned]
            precisions.append(np.mean([(count + 1) / depth for count, depth in enumerate(depths)]))
    judged = evaluate_ranking(torch.tensor(scores, dtype=torch.float64), poisoned)
    assert judged["average_precision"] == pytest.approx(np.mean(precisions), rel=1e-12)
    if len(set(scores)) == 1:
        assert judged["average_precision"] == pytest.approx(judged["average_precision_random"], rel=1e-12)
        assert judged["auroc"] == 0.5


def test_random_average_precision_in_closed_form():
    for poisoned, total in ((1, 2), (2, 2), (7, 1000), (1000, 1000)):
        harmonic = math.fsum(1.0 / depth for depth in range(1, total + 1))
        exact = (harmonic + (total - harmonic) * (poisoned - 1) / (total - 1)) / total
        assert random_average_precision(poisoned, total) == pytest.approx(exact, rel=1e-12)


def test_random_figures_against_every_order_and_draw():
    total, poisoned = 6, 2
    precisions, recalls = [], []
    for pair in itertools.combinations(range(total), poisoned):
        judged = evaluate_ranking(torch.arange(total, 0, -1.0), pair)
        precisions.append(judged["average_precision"])
        recalls.append(judged["recall"]["as_many_as_poisoned"]["recall"])
    assert random_average_precision(poisoned, total) == pytest.approx(np.mean(precisions))
    assert judged["average_precision_random"] == pytest.approx(np.mean(precisions))
    assert judged["recall"]["as_many_as_poisoned"]["random"] == pytest.approx(np.mean(recalls))
    limit = judged["recall"]["as_many_as_poisoned"]["random_95"]
    assert np.mean([recall <= limit for recall in recalls]) >= 0.95
    assert np.mean([recall < limit for recall in recalls]) < 0.95


def test_moduli_losses_neighbours_and_distances_are_what_they_say(found, logistic):
    assert set(found) == {*RANKINGS, COMBINED} and all(ranking.applicable for ranking in found.values())
    torch.testing.assert_close(found["row_modulus"].scores, row_moduli(logistic))
    torch.testing.assert_close(found["loss"].scores, logistic.losses().detach())
    near = nearest_neighbours(logistic, logistic.weights, expected_share=0.1, seed=0)
    assert torch.equal(found["neighbour_disagreement"].scores, near.scores)
    distances = torch.cdist(logistic.x, logistic.x).fill_diagonal_(torch.inf)
    distances[logistic.y[:, None] != logistic.y[None, :]] = torch.inf
    torch.testing.assert_close(found["same_class_distance"].scores, distances.amin(1))


def test_self_influence_is_the_move_of_the_weights_when_a_row_is_left_out(found, logistic):
    scores = found["self_influence"].scores
    hessian = torch.autograd.functional.hessian(logistic.objective, logistic.weights)
    weights = logistic.weights.clone().requires_grad_(True)
    for row in (0, 17, 60):
        (gradient,) = torch.autograd.grad(logistic.losses(weights)[row], weights)
        expected = torch.linalg.solve(hessian, gradient).norm() / logistic.rows
        assert float(scores[row]) == pytest.approx(float(expected), rel=1e-9)
    # the rest of the mean is reweighted by n / (n - 1) too, which the first order takes as the same objective
    moves = []
    checked = scores.argsort()[:: logistic.rows // 8]
    for row in checked.tolist():
        kept = torch.arange(logistic.rows) != row
        without = Problem(logistic.module(), "cross_entropy", logistic.x[kept], logistic.y[kept], 1e-1 * 90 / 89)
        moves.append(float((fit(without, 1e-9).problem.weights - logistic.weights).norm()))
    ratio = torch.tensor(moves).double() / scores[checked]
    assert 0.9 < float(ratio.min()) and float(ratio.max()) < 1.5


def test_moved_and_mislabelled_rows_come_first(wine):
    x, y = wine
    changed = [3, 11, 27, 40, 66]
    wrong = y.clone()
    wrong[changed] = (y[changed] + 1) % 3
    problem = fit(Problem(mlp([13, 6, 3]), "cross_entropy", x, wrong, 3e-2), 1e-8).problem
    for name, ranking in inspection_order(problem).items():
        judged = evaluate_ranking(ranking, changed)
        assert judged["average_precision_random"] < 0.12
        if name != "row_modulus":  # it asks how a row could still be moved, not whether it was
            assert judged["auroc"] > 0.85, name
            assert judged["average_precision"] > (0.2 if name == "same_class_distance" else 0.4), name
        assert judged["recall"]["10%"]["inspected"] == 9
    far = x.clone()
    far[changed] *= 6.0
    moved = inspection_order(fit(Problem(nn.Linear(13, 3).double(), "cross_entropy", far, y, 1e-1)).problem)
    assert evaluate_ranking(moved["same_class_distance"], changed)["recall"]["as_many_as_poisoned"]["recall"] == 1.0


def test_the_combined_order_is_that_of_the_mean_rank(found):
    parts = [ranking.scores for name, ranking in found.items() if name != COMBINED]
    ranks = [
        [1 + sum(float(o) > float(s) for o in part) + (sum(o == s for o in part) - 1) / 2 for s in part]
        for part in [part.tolist() for part in parts]
    ]
    mean = torch.tensor(ranks).double().mean(0)
    torch.testing.assert_close(-found[COMBINED].scores, mean)
    order = found[COMBINED].order
    assert bool((mean[order].diff() >= -1e-12).all()) and order.sort().values.tolist() == list(range(90))
    frame = to_frame(found)
    assert len(frame) == 90 and frame["loss_rank"].min() == 1.0
    assert int(frame["loss_rank"].idxmin()) == int(found["loss"].order[0])


def test_infinite_scores_come_first_and_nan_is_refused():
    judged = evaluate_ranking(torch.tensor([1.0, math.inf, 0.0, 2.0]), [1])
    assert judged["average_precision"] == 1.0 and judged["auroc"] == 1.0
    with pytest.raises(UsageError, match="PA304"):
        evaluate_ranking(torch.tensor([1.0, math.nan]), [1])


def test_what_does_not_apply_says_why(logistic):
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).double()
    regression = fit(Problem(nn.Linear(3, 1).double(), "half_squared", x, x.sum(1, keepdim=True), 1e-2)).problem
    found = inspection_order(regression)
    assert found["loss"].applicable and found[COMBINED].applicable
    for name in ("neighbour_disagreement", "same_class_distance"):
        judged = evaluate_ranking(found[name], [1])
        assert not judged["applicable"] and judged["reason"].startswith("not applicable: the targets are real")
    assert not any(name.startswith("same_class") for name in to_frame(found).columns)
    assert "no row is poisoned" in evaluate_ranking(Ranking("a", torch.ones(4)), [])["reason"]
    with pytest.raises(UsageError, match="PA301"):
        inspection_order(logistic, ["losses"])


def test_a_point_that_is_no_minimum_is_told(wine):
    torch.manual_seed(0)
    raw = Problem(nn.Linear(13, 3).double(), "cross_entropy", *wine, 1e-1)
    found = inspection_order(raw, ["row_modulus", "self_influence"])
    assert "row moduli" in found["row_modulus"].note
    assert "self-influence" in found["self_influence"].note


def test_orders_repeat(found, logistic):
    again = inspection_order(logistic.at(logistic.weights))
    for name, ranking in found.items():
        assert torch.equal(ranking.order, again[name].order)
