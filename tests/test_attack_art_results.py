"""The attack for ART: equality with the native API, what it honours of a classifier, ART's detectors and retraining."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from art.defences.detector.poison import ActivationDefence, SpectralSignatureDefense
from test_attack_art import (
    CLASSES,
    DECAY,
    QUICK,
    Frozen,
    classifier,
    classifier_of,
    digits,
    sure,
    target,
    trained,
    y_of,
)
from torch import nn

from poisonaudit import Problem, craft, fit, retrain
from poisonaudit.attack import Budget, FlipPrediction, FlipPredictions, TargetWeights
from poisonaudit.attack.art import SolutionSetPoisoningAttack
from poisonaudit.attack.art_problem import problem_from_classifier

# The shared fixtures, which tests name as arguments.
__all__ = ["classifier", "digits", "sure", "target", "trained"]


def native_problem(model: nn.Module, digits) -> Problem:
    """Written down by hand, not by the adapter."""
    model = copy.deepcopy(model).double().eval()
    return fit(Problem(model, "cross_entropy", torch.tensor(digits[0]).double(), y_of(digits), DECAY), 1e-8).problem


# The same as the native API, bit for bit.


def objectives(digits, target):
    weights = np.sin(np.arange(195.0))
    rows, classes = digits[2][:3], [1, 2, 0]
    row = torch.tensor(target[0]).double()
    return {
        "flip": ({"x_target": target[0], "y_target": target[1]}, FlipPrediction(row, target[1])),
        "flips": ({"x_target": rows, "y_target": classes}, FlipPredictions(torch.tensor(rows).double(), classes)),
        "weights": ({"target_weights": weights}, TargetWeights(torch.tensor(weights))),
    }


@pytest.mark.parametrize(
    ("kind", "norm", "choice"), [("flip", np.inf, "adjoint"), ("flips", 2, "random"), ("weights", np.inf, "adjoint")]
)
def test_equals_the_native_attack_bit_for_bit(classifier, trained, digits, target, kind, norm, choice):
    given, objective = objectives(digits, target)[kind]
    options = {**QUICK, "steps": 2, "norm": norm, "eps": 0.2, "row_choice": choice, "seed": 5}
    attack = SolutionSetPoisoningAttack(classifier, **given, **options)
    x = digits[0].astype(np.float64)
    x_poison, _ = attack.poison(x, digits[1], test=digits[2:])
    problem = native_problem(trained, digits)
    budget = Budget(radius=0.2, share=0.05, norm="linf" if norm == np.inf else "l2", box=(0.0, 1.0), choice=choice)
    test = torch.tensor(digits[2]).double(), torch.tensor(digits[3])
    native = craft(problem, objective, budget, seed=5, steps=2, test=test)
    assert torch.equal(attack.problem_.weights, problem.weights)
    assert np.array_equal(attack.poison_indices_, native.rows.numpy())
    assert np.array_equal(attack.delta_, native.delta.numpy()) and attack.delta_.any()
    assert torch.equal(attack.poison_.weights, native.weights)
    assert attack.predicted_ == native.predicted and attack.predicted_["test_accuracy"] is not None
    assert np.array_equal(x_poison, native.poisoned(problem).x.numpy())
    for ours, theirs in zip(attack.history_, native.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_positions_and_single_precision(classifier, digits, target):
    attack = SolutionSetPoisoningAttack(classifier, *target, row_choice=np.array([9, 4]), dtype="float32", **QUICK)
    x_poison, _ = attack.poison(*digits[:2])
    assert attack.poison_indices_.tolist() == [4, 9] and attack.problem_.dtype == torch.float32
    assert set(np.flatnonzero((x_poison != digits[0]).any(1))) == {4, 9} and attack.delta_.dtype == np.float32
    with pytest.raises(ValueError, match="PA363"):
        SolutionSetPoisoningAttack(classifier, *target, row_choice=[80], **QUICK).poison(*digits[:2])


# Standardisation, boxes, layouts.


class ChannelsLast(nn.Module):
    """Takes (n, height, width, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(4 * 4 * 3, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(x.permute(0, 3, 1, 2).flatten(1))


FLAT = (12,)
PICTURE = (3, 4, 4)
LAST = (4, 4, 3)


@pytest.mark.parametrize(
    ("shape", "mean", "deviation"),
    [
        (FLAT, 0.3, 0.5),
        (FLAT, np.linspace(0.1, 0.9, 12), np.linspace(0.5, 2, 12)),
        (PICTURE, 0.3, 0.5),
        (PICTURE, np.array([0.1, 0.5, 0.9]), np.array([0.5, 1.0, 2.0])),
        (PICTURE, np.random.default_rng(0).random(PICTURE), np.full(PICTURE, 0.7)),
        (PICTURE, np.linspace(0.1, 0.9, 4), np.linspace(0.5, 2, 4)),
        (LAST, np.array([0.1, 0.5, 0.9]), np.array([0.5, 1.0, 2.0])),
    ],
)
def test_the_standardisation_goes_inside_the_model(shape, mean, deviation):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, *shape, generator=generator).numpy()
    y = torch.randint(0, CLASSES, (40,), generator=generator).numpy()
    torch.manual_seed(0)
    convolutional = nn.Sequential(nn.Conv2d(3, CLASSES, 4), nn.Flatten())
    model = {FLAT: nn.Linear(12, CLASSES), PICTURE: convolutional, LAST: ChannelsLast()}[shape]
    classifier = classifier_of(
        model, shape, channels_first=shape != LAST, preprocessing=(mean, deviation), clip_values=None
    )
    # The problem's function of the raw rows is the classifier's, and so is its gradient in them.
    at = problem_from_classifier(classifier, x, y, decay=0.1)
    np.testing.assert_allclose(at.outputs().numpy(), classifier.predict(x), atol=2e-5)
    point = at.x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(at.losses(x=point).mean(), point)
    theirs = classifier.loss_gradient(x, np.eye(CLASSES, dtype=np.float32)[y])
    np.testing.assert_allclose(gradient.numpy(), theirs, atol=1e-6)
    flat = torch.cat([value.detach().flatten() for value in model.parameters()])
    assert at.dtype == torch.float64 and torch.equal(at.weights.float(), flat)
    options = {"eps": 0.05, "decay": 0.1, "steps": 1, "verbose": False}
    last = int(fit(at).problem.outputs()[0].argmin())
    attack = SolutionSetPoisoningAttack(classifier, x[0], last, **options)
    x_poison, _ = attack.poison(x, y)
    assert 0 < np.abs(x_poison - x).max() <= 0.05 and attack.predicted_["valid"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_works_on_the_classifiers_device(trained, digits, target):
    classifier = classifier_of(copy.deepcopy(trained), device_type="gpu", clip_values=(np.zeros(64), np.ones(64)))
    assert next(classifier.model.parameters()).is_cuda
    before = Frozen(classifier)
    attack = SolutionSetPoisoningAttack(classifier, *target, **QUICK)
    x_poison, _ = attack.poison(*digits[:2], test=digits[2:])
    before.assert_same()
    assert attack.problem_.device.type == "cuda" and attack.predicted_["margin_change"] > 0
    here, _ = SolutionSetPoisoningAttack(classifier_of(copy.deepcopy(trained)), *target, **QUICK).poison(*digits[:2])
    np.testing.assert_allclose(x_poison, here, atol=1e-6)


def test_clip_values_are_the_box_entry_by_entry(trained, digits, target):
    lower, upper = np.zeros(64, dtype=np.float32), np.full(64, 0.6, dtype=np.float32)
    upper[:32] = 1.0
    classifier = classifier_of(copy.deepcopy(trained), clip_values=(lower, upper))
    x = digits[0].clip(lower, upper)
    attack = SolutionSetPoisoningAttack(classifier, *target, eps=0.5, **QUICK)
    x_poison, _ = attack.poison(x, digits[1])
    moved = x_poison[attack.poison_indices_]
    assert (x_poison >= lower).all() and (x_poison <= upper).all()
    assert (moved[:, 32:] == np.float32(0.6)).any() and moved[:, :32].max() > 0.6
    free = classifier_of(copy.deepcopy(trained), clip_values=None)
    beyond, _ = SolutionSetPoisoningAttack(free, *target, eps=0.5, **QUICK).poison(x, digits[1])
    assert beyond.min() < 0.0


# What the result says about itself, and whether it is so.


def test_weights_that_are_no_minimum_are_flagged_or_fitted_first(digits, target, caplog):
    torch.manual_seed(1)
    classifier = classifier_of(nn.Linear(64, CLASSES))
    before = Frozen(classifier)
    attack = SolutionSetPoisoningAttack(classifier, *target, fit_first=False, **QUICK)
    with caplog.at_level(logging.WARNING, logger="poisonaudit.attack.art"):
        attack.poison(*digits[:2])
    assert not attack.predicted_["valid"] and "not stationary" in attack.predicted_["reasons"][0]
    assert "not stationary" in caplog.text and attack.fit_ is None
    attack.set_params(fit_first=True)
    caplog.clear()
    attack.poison(*digits[:2])
    assert attack.predicted_["valid"] and attack.fit_.converged and attack.fit_.relative_gradient <= 1e-8
    assert not caplog.text
    before.assert_same()


def test_another_weight_decay_in_the_optimiser_is_said(trained, digits, target, caplog):
    model = copy.deepcopy(trained)
    for used, said in [(DECAY, False), (0.0, True)]:
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=used)
        attack = SolutionSetPoisoningAttack(classifier_of(model, optimizer=optimiser), *target, **QUICK)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="poisonaudit.attack.art"):
            attack.poison(*digits[:2])
        assert ("weight_decay 0, the poison is made for training with decay 0.01" in caplog.text) == said


@pytest.mark.parametrize("decoupled", [True, False])
def test_a_decoupled_decay_is_another_objective(trained, decoupled):
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    model = copy.deepcopy(trained)
    classifier = classifier_of(model, optimizer=kind(model.parameters(), lr=0.1, weight_decay=DECAY))
    attack = SolutionSetPoisoningAttack(classifier, np.zeros(64), 1, **QUICK)
    assert attack._decoupled(classifier.optimizer.param_groups) == decoupled


def test_adamw_is_said_to_decay_otherwise(trained, digits, target, caplog):
    model = copy.deepcopy(trained)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=DECAY)
    attack = SolutionSetPoisoningAttack(classifier_of(model, optimizer=optimiser), *target, **QUICK)
    with caplog.at_level(logging.WARNING, logger="poisonaudit.attack.art"):
        attack.poison(*digits[:2])
    assert "AdamW, takes its weight_decay off the weights apart from the gradient" in caplog.text


def test_art_and_native_retraining_reach_what_was_predicted(trained, digits, target):
    """One minimum: the clone that ART fits from fresh weights in float32 must show the predicted margin."""
    torch.manual_seed(0)
    model = copy.deepcopy(trained)
    settings = {"lr": 0.2, "momentum": 0.9, "weight_decay": DECAY}
    classifier = classifier_of(model, optimizer=torch.optim.SGD(model.parameters(), **settings))
    attack = SolutionSetPoisoningAttack(classifier, *target, eps=0.3, percent_poison=0.2, **{**QUICK, "steps": 3})
    x_poison, y_poison = attack.poison(*digits[:2])

    def margin(x: np.ndarray, y: np.ndarray) -> float:
        clone = classifier.clone_for_refitting()
        clone.fit(x, y, batch_size=len(x), nb_epochs=800)
        scores = clone.predict(target[0][None])[0]
        return float(scores[target[1]] - np.delete(scores, target[1]).max())

    clean, poisoned = margin(*digits[:2]), margin(x_poison, y_poison)
    assert clean < 0 < poisoned
    assert attack.predicted_["success"] and attack.predicted_["valid"]
    assert poisoned == pytest.approx(attack.predicted_["margin"], abs=2e-3)
    assert poisoned - clean == pytest.approx(attack.predicted_["margin_change"], rel=1e-2)
    judged = retrain(attack.problem_, attack.poison_, fresh=1)
    assert judged.fresh[0].outcome["margin"] == pytest.approx(attack.predicted_["margin"], rel=1e-4)


def test_detectors_of_art_take_the_result_and_their_hooks_do_no_harm(digits, sure):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    classifier = classifier_of(model, optimizer=torch.optim.Adam(model.parameters(), lr=0.02))
    classifier.fit(*digits[:2], nb_epochs=10)
    plain = SolutionSetPoisoningAttack(classifier, *sure, eps=0.3, percent_poison=0.2, **QUICK)
    x_poison, y_poison = plain.poison(*digits[:2])
    # `get_activations` leaves a hook on the model with every call.
    watched = classifier_of(copy.deepcopy(model))
    one_hot = np.eye(CLASSES)[y_poison]
    state = np.random.get_state()
    try:
        np.random.seed(0)
        report, is_clean = ActivationDefence(watched, x_poison, one_hot).detect_poison(nb_clusters=2, nb_dims=4)
        assert len(is_clean) == len(x_poison) and set(is_clean) <= {0, 1} and report["cluster_analysis"] == "smaller"
        spectral = SpectralSignatureDefense(watched, x_poison, one_hot, expected_pp_poison=0.2)
        report, is_clean = spectral.detect_poison()
        assert len(is_clean) == len(x_poison) and set(report) == {
            row for row, clean in enumerate(is_clean) if not clean
        }
        assert 0 < len(report) < len(x_poison)
    finally:
        np.random.set_state(state)
    # A classifier that still carries those hooks is attacked all the same, and they see nothing of it.
    before, seen = Frozen(watched), dict(watched._features)
    assert sum(before.hooks) > 0
    again = SolutionSetPoisoningAttack(watched, *sure, eps=0.3, percent_poison=0.2, **QUICK)
    assert np.array_equal(again.poison(*digits[:2])[0], x_poison)
    before.assert_same()
    assert all(watched._features[name] is value for name, value in seen.items())
