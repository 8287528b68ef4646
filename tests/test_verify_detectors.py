from __future__ import annotations

import copy
import itertools
import json
import pickle

import numpy as np
import pytest
import torch
from conftest import ToyNet, mlp
from torch import nn

from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem
from poisonaudit.training import fit
from poisonaudit.verify.detectors import (
    DETECTORS,
    Detection,
    activation_clustering,
    default_share,
    detect,
    judge,
    loss_filter,
    nearest_neighbours,
    penultimate_features,
    run_detectors,
    spectral_signature,
)
from poisonaudit.verify.detectors.judging import recall_after

OPTIONS = {"expected_share": 0.1, "seed": 0}


@pytest.fixture(scope="module")
def rows():
    from sklearn.datasets import load_digits

    x, y = load_digits(n_class=3, return_X_y=True)
    return torch.tensor(x[:180]) / 16, torch.tensor(y[:180]).long()


@pytest.fixture(scope="module")
def net(rows):
    found = fit(Problem(mlp([64, 12, 3]), "cross_entropy", *rows, 1e-2), 1e-8)
    assert found.converged
    return found.problem


def linear_problem(x, y, classes=2, loss="cross_entropy"):
    """Features of a linear model are its inputs."""
    return Problem(nn.Linear(x.shape[1], classes).double(), loss, x, y, 1e-2)


def test_judge_against_numbers_by_hand():
    flagged = torch.tensor([1, 0, 1, 1, 0, 0]).bool()
    detection = Detection("mine", torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), flagged, {"k": 3})
    found = judge(detection, [0, 3])
    assert found["flagged"] == 3 and found["true_positives"] == 2 and found["poisoned"] == 2
    assert found["precision"] == pytest.approx(2 / 3) and found["recall"] == 1.0
    assert found["false_positive_rate"] == pytest.approx(1 / 4)
    assert found["auroc"] == pytest.approx(6 / 8)  # of 2 x 4 pairs two are the wrong way round
    assert found["recall_at_poisoned"] == pytest.approx(1 / 2) and found["base_rate"] == pytest.approx(1 / 3)
    pairs = list(itertools.combinations(range(6), 2))
    wins = [sum(i < j for i in pair for j in set(range(6)) - set(pair)) for pair in pairs]
    assert found["auroc_p_value"] == pytest.approx(sum(win >= 6 for win in wins) / len(pairs))
    json.dumps(found, allow_nan=False)


def test_recall_with_ties_is_the_mean_over_all_orders():
    scores = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])
    poisoned = torch.tensor([False, True, False, True, True])
    for inspected in range(1, 6):
        expected = np.mean(
            [
                sum(bool(poisoned[i]) for i in [0, *middle, 4][:inspected]) / 3
                for middle in itertools.permutations([1, 2, 3])
            ]
        )
        assert recall_after(scores, poisoned, inspected) == pytest.approx(expected)


def test_no_poison_and_nothing_but_poison_are_not_judged():
    detection = Detection("mine", torch.arange(4.0), torch.tensor([True, False, False, False]))
    none = judge(detection, [])
    assert not none["applicable"] and "no row is poisoned" in none["reason"]
    assert none["auroc"] is None and none["recall"] is None
    assert none["false_positive_rate"] == 0.25 and none["flagged"] == 1
    assert not judge(detection, range(4))["applicable"]
    same = judge(Detection("mine", torch.zeros(4), torch.zeros(4).bool()), [1])
    assert same["auroc"] == 0.5 and same["auroc_p_value"] == 1.0 and same["precision"] is None


def test_the_features_are_what_the_last_weight_matrix_takes(net, rows):
    features, where = penultimate_features(net, net.weights)
    body = net.module()[:2]
    torch.testing.assert_close(features, body(rows[0]).detach())
    assert "layer 2" in where
    flat, where = penultimate_features(linear_problem(*rows, classes=3), torch.zeros(195).double())
    assert torch.equal(flat, rows[0]) and "only layer" in where
    x = torch.tensor([[1.0], [2.0]]).double()
    outputs, where = penultimate_features(
        Problem(ToyNet(), "half_squared", x, 2 * x), torch.tensor([1.0, 3.0]).double()
    )
    assert torch.equal(outputs, 3 * x) and "outputs" in where


def test_features_of_a_residual_network_are_the_pooled_activations():
    from poisonaudit.models import build_model

    model = build_model("resnet20", input_shape=(1, 16, 16), outputs=3)
    x = torch.rand(5, 1, 16, 16).double()
    problem = Problem(model, "cross_entropy", x, torch.tensor([0, 1, 2, 0, 1]))
    features, where = penultimate_features(problem, problem.weights)
    last = [module for module in problem.module().modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(last(features), problem.outputs())
    assert features.shape == (5, last.in_features) and where


@pytest.mark.parametrize("name", ["activation_clustering", "spectral_signature"])
def test_flags_are_those_of_art_on_a_model_that_ends_in_the_features(name, net):
    from art.defences.detector.poison import ActivationDefence, SpectralSignatureDefense
    from art.estimators.classification import PyTorchClassifier

    body = nn.Sequential(*net.module()[:2])
    classifier = PyTorchClassifier(body, nn.CrossEntropyLoss(), input_shape=(64,), nb_classes=3, device_type="cpu")
    x, y = net.x.numpy(), net.y.numpy()
    state = np.random.get_state()
    np.random.seed(7)
    if name == "activation_clustering":
        _, clean = ActivationDefence(classifier, x, y).detect_poison()
        mine = activation_clustering(net, net.weights, expected_share=0.1, seed=7)
    else:
        _, clean = SpectralSignatureDefense(classifier, x, y, 0.1, eps_multiplier=1.5).detect_poison()
        mine = spectral_signature(net, net.weights, expected_share=0.15, seed=7, centred=False)
    np.random.set_state(state)
    assert mine.applicable, mine.reason
    assert mine.flagged.tolist() == [verdict == 0 for verdict in clean]
    assert 0 < int(mine.flagged.sum()) < net.rows


def test_spectral_scores_are_the_papers_and_differ_from_arts_off_centre():
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.randn(40, 5, generator=generator).double()
    y = torch.arange(40) % 2
    x[:, 1] += 10.0 + torch.linspace(-3, 3, 40).double()  # both classes spread along their mean
    problem = linear_problem(x, y)
    centred = spectral_signature(problem, problem.weights, **OPTIONS).scores
    for label in (0, 1):
        part = x[y == label]
        moved = part - part.mean(0)
        direction = torch.linalg.eigh(moved.T @ moved).eigenvectors[:, -1]
        torch.testing.assert_close(centred[y == label], (moved @ direction).abs())
    raw = spectral_signature(problem, problem.weights, **OPTIONS, centred=False).scores
    assert float(np.corrcoef(centred.argsort().argsort(), raw.argsort().argsort())[0, 1]) < 0.5


def test_activation_clusters_of_a_planted_group():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 12, generator=generator).double()
    y = (torch.arange(60) >= 30).long()
    x[y == 1] -= 6.0
    x[:5] += torch.tensor([8.0, *[0.0] * 11]).double()
    problem = linear_problem(x, y)
    for analysis in ("smaller", "relative-size"):
        found = activation_clustering(problem, problem.weights, **OPTIONS, analysis=analysis)
        assert found.flagged[:30].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
        assert float(found.scores.abs().max()) <= 1.0 and "12 activations are few" in found.note
        if analysis == "smaller":
            # k-means puts a row with the nearer mean, so the sign of the score is the flag
            assert torch.equal(found.scores > 0, found.flagged)
    assert judge(found, range(5))["auroc"] > 0.95
    small = torch.cat([y[:55], torch.full((5,), 2)])
    few = activation_clustering(linear_problem(x, small, 3), torch.zeros(39).double(), **OPTIONS)
    assert not few.flagged[55:].any() and not few.scores[55:].any() and "1 classes of under 10" in few.note


def test_neighbours_against_all_distances():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(50, 3, generator=generator).double()
    x[10:18] = x[10]  # more equal rows than neighbours
    y = torch.randint(3, (50,), generator=generator)
    problem = linear_problem(x, y, 3)
    k = 5
    found = nearest_neighbours(problem, problem.weights, **OPTIONS, k=k)
    distances = torch.cdist(x, x).fill_diagonal_(torch.inf)
    for row in set(range(50)) - set(range(10, 18)):
        near = y[distances[row].argsort()[: k + 1]]
        if float(distances[row].sort().values[k] - distances[row].sort().values[k - 1]) < 1e-12:
            continue  # which of two equally far rows counts is open
        votes = torch.bincount(near[:k], minlength=3)
        assert float(found.scores[row]) == pytest.approx(1 - int(votes[y[row]]) / k)
        assert bool(found.flagged[row]) == bool(votes.max() > votes[y[row]])
    assert nearest_neighbours(problem, problem.weights, **OPTIONS).parameters["k"] == round(
        float(np.median(np.bincount(y))) / 2
    )


@pytest.mark.parametrize("hidden", [False, True], ids=["linear", "relu net"])
def test_gross_outliers_are_found(rows, hidden):
    x, y = rows
    outliers = (y == 0).nonzero().flatten()[:9]
    moved = x.clone()
    moved[outliers] += 4.0 * (x[y == 1].mean(0) - x[y == 0].mean(0))
    model = mlp([64, 16, 3], nn.ReLU) if hidden else nn.Linear(64, 3).double()
    problem = fit(Problem(model, "cross_entropy", moved, y, 1e-2), 1e-6).problem
    names = ["spectral_signature", "nearest_neighbours"]
    found = run_detectors(problem, problem.weights, outliers, names, expected_share=1.5 * 9 / 60)
    for name, figures in found.items():
        assert figures["auroc"] > 0.95, (name, figures)
        assert figures["recall"] == 1.0 and figures["auroc_p_value"] < 1e-4, (name, figures)
    # ART's quota is one of every class: all poison in one of three exceeds a share of all rows
    quota = run_detectors(problem, problem.weights, outliers, names[:1])["spectral_signature"]
    assert quota["parameters"]["expected_share"] == pytest.approx(1.5 * 9 / 180)
    assert quota["recall"] < 1.0 and quota["auroc"] == found["spectral_signature"]["auroc"]


def test_flipped_labels_are_found_by_loss_and_by_neighbours(rows):
    x, y = rows
    flips = torch.randperm(180, generator=torch.Generator().manual_seed(3))[:9]
    wrong = y.clone()
    wrong[flips] = (y[flips] + 1) % 3
    problem = fit(Problem(mlp([64, 12, 3]), "cross_entropy", x, wrong, 3e-2), 1e-6).problem
    found = run_detectors(problem, problem.weights, flips, ["loss_filter", "nearest_neighbours"])
    assert found["loss_filter"]["auroc"] > 0.95 and found["loss_filter"]["recall"] >= 8 / 9
    assert found["nearest_neighbours"]["auroc"] > 0.95
    clean = run_detectors(problem.with_data(x).at(problem.weights), problem.weights, flips[:0])
    assert all(not figures["applicable"] for figures in clean.values())


def test_loss_filter_flags_its_share_of_largest_losses(net):
    found = loss_filter(net, net.weights, expected_share=0.1, seed=0)
    torch.testing.assert_close(found.scores, net.losses().detach())
    assert int(found.flagged.sum()) == 18
    assert float(found.scores[found.flagged].min()) >= float(found.scores[~found.flagged].max())


def test_without_a_change_nothing_is_claimed(net):
    """Rows that were picked at random and not changed: AUROC is 1/2 on average, and p-values keep their level."""
    detections = detect(net, net.weights, expected_share=0.1)
    generator = torch.Generator().manual_seed(4)
    for name, detection in detections.items():
        judged = [judge(detection, torch.randperm(180, generator=generator)[:12]) for _ in range(200)]
        mean = np.mean([each["auroc"] for each in judged])
        # one AUROC deviates by about .085, the mean of 200 by .006
        assert mean == pytest.approx(0.5, abs=0.025), name
        assert np.mean([each["auroc_p_value"] <= 0.05 for each in judged]) < 0.1, name


def test_runs_repeat_and_leave_everything_as_it_was(rows):
    model = mlp([64, 12, 3])
    before = copy.deepcopy(model.state_dict())
    problem = Problem(model, "cross_entropy", *rows, 1e-2)
    np.random.seed(11)
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()
    first = detect(problem, problem.weights, expected_share=0.1, seed=5)
    again = detect(problem, problem.weights, expected_share=0.1, seed=5)
    assert np.array_equal(numpy_state[1], np.random.get_state()[1]) and numpy_state[2] == np.random.get_state()[2]
    assert torch.equal(torch_state, torch.get_rng_state())
    for name, detection in first.items():
        assert detection.applicable, detection.reason
        assert torch.equal(detection.scores, again[name].scores) and torch.equal(detection.flagged, again[name].flagged)
        assert detection.scores.dtype == problem.dtype and detection.name == name
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for module in [*model.modules(), *problem.module().modules()]:
        assert not module._forward_hooks and not module._forward_pre_hooks
    pickle.dumps(problem.module())


def test_regression_and_single_classes_are_not_applicable_but_losses_are():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(5)).double()
    regression = Problem(nn.Linear(4, 1).double(), "half_squared", x, x[:, :1].clone(), 1e-2)
    found = run_detectors(regression, regression.weights, [0, 1])
    assert found["loss_filter"]["applicable"] and found["loss_filter"]["auroc"] is not None
    for name in set(DETECTORS) - {"loss_filter"}:
        assert not found[name]["applicable"] and found[name]["reason"].startswith(
            "not applicable: the targets are real"
        )
        assert found[name]["auroc"] is None and found[name]["flagged"] is None
    json.dumps(found, allow_nan=False)
    single = linear_problem(x, torch.zeros(20).long())
    assert "one class" in run_detectors(single, single.weights, [0])["spectral_signature"]["reason"]


def test_one_hot_targets_are_classes_and_equal_rows_are_not_suspicious():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(6)).double()
    y = torch.arange(40) % 2
    x[y == 1] = 3.0
    for loss in ("cross_entropy", "half_squared"):
        problem = linear_problem(x, y, loss=loss)
        found = spectral_signature(problem, problem.weights, **OPTIONS)
        assert int(found.flagged[y == 0].sum()) == 2 and not found.flagged[y == 1].any()
        clusters = activation_clustering(problem, problem.weights, **OPTIONS)
        assert clusters.applicable and not clusters.flagged[y == 1].any()


def test_rows_that_stand_out_unpoisoned_are_told(net):
    loud = net.losses().detach().argsort(descending=True)[:10]
    found = run_detectors(net, net.weights, loud, ["loss_filter"], unpoisoned=(net, net.weights))["loss_filter"]
    assert found["auroc"] == found["auroc_unpoisoned"] == 1.0
    assert run_detectors(net, net.weights, loud, ["loss_filter"])["loss_filter"]["auroc_unpoisoned"] is None


def test_the_default_share_is_that_of_the_paper_up_to_a_half():
    assert default_share(10, 200) == pytest.approx(0.075)
    assert default_share(90, 100) == 0.5


def test_misuse_is_refused(net):
    with pytest.raises(UsageError, match="PA301 .*spectral_signature"):
        run_detectors(net, net.weights, [0], ["spectral_signatures"])
    with pytest.raises(UsageError, match="PA304"):
        run_detectors(net, net.weights, [0], expected_share=7.5)
    with pytest.raises(UsageError, match="PA363"):
        run_detectors(net, net.weights, [180])
    with pytest.raises(UsageError, match="PA363"):
        run_detectors(net, net.weights, torch.zeros(180).bool())
    with pytest.raises(UsageError, match="PA304"):
        nearest_neighbours(net, net.weights, **OPTIONS, k=180)
    with pytest.raises(UsageError, match="PA301"):
        activation_clustering(net, net.weights, **OPTIONS, analysis="silhouette-scores")
