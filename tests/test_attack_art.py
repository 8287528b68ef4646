"""The drop-in for ART: its contract for attacks, equality with the native API, its detectors, its own retraining."""

from __future__ import annotations

import copy
import inspect
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from art.attacks.attack import PoisoningAttackWhiteBox
from art.defences.detector.poison import ActivationDefence, SpectralSignatureDefense
from art.estimators.classification import PyTorchClassifier, SklearnClassifier
from art.estimators.classification.classifier import ClassifierMixin
from art.estimators.estimator import BaseEstimator, NeuralNetworkMixin
from art.exceptions import EstimatorError
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from poisonaudit import Problem, craft, fit, retrain
from poisonaudit.attack import Budget, FlipPrediction, FlipPredictions, TargetWeights
from poisonaudit.attack.art import SolutionSetPoisoningAttack
from poisonaudit.attack.art_problem import problem_from_classifier
from poisonaudit.errors import PoisonAuditError

CLASSES = 3
DECAY = 1e-2
QUICK = {"decay": DECAY, "steps": 1, "verbose": False}


def classifier_of(model: nn.Module, shape: tuple[int, ...] = (64,), **options) -> PyTorchClassifier:
    given = {"loss": nn.CrossEntropyLoss(), "clip_values": (0.0, 1.0), "device_type": "cpu", **options}
    return PyTorchClassifier(model=model, input_shape=shape, nb_classes=CLASSES, **given)


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(n_class=CLASSES, return_X_y=True)
    x = (x / 16).astype(np.float32)
    return x[:80], y[:80], x[80:200], y[80:200]


@pytest.fixture(scope="module")
def trained(digits) -> nn.Module:
    """A linear float32 model near the minimum of the decayed objective, as a user would bring it."""
    torch.manual_seed(0)
    problem = Problem(
        nn.Linear(64, CLASSES).double(), "cross_entropy", torch.tensor(digits[0]).double(), y_of(digits), DECAY
    )
    return fit(problem).problem.module().float().requires_grad_(True)


def y_of(digits) -> torch.Tensor:
    return torch.tensor(digits[1]).long()


@pytest.fixture
def classifier(trained) -> PyTorchClassifier:
    return classifier_of(copy.deepcopy(trained))


@pytest.fixture(scope="module")
def target(digits, trained) -> tuple[np.ndarray, int]:
    """The test row of least margin, and the class that comes second on it."""
    with torch.no_grad():
        top = trained(torch.tensor(digits[2])).topk(2, 1)
    row = int((top.values[:, 0] - top.values[:, 1]).argmin())
    return digits[2][row], int(top.indices[row, 1])


def native_problem(model: nn.Module, digits) -> Problem:
    """Written down by hand, not by the adapter."""
    model = copy.deepcopy(model).double().eval()
    return fit(Problem(model, "cross_entropy", torch.tensor(digits[0]).double(), y_of(digits), DECAY), 1e-8).problem


# What ART's own tests ask of an attack.


def test_it_is_an_attack_of_art_with_every_parameter_listed(classifier, target):
    attack = SolutionSetPoisoningAttack(classifier, *target, **QUICK)
    assert isinstance(attack, PoisoningAttackWhiteBox) and attack.estimator is classifier
    parameters = list(inspect.signature(SolutionSetPoisoningAttack.__init__).parameters)
    assert parameters[1] == "classifier" and attack.attack_params == parameters[2:]
    assert all(hasattr(attack, name) for name in attack.attack_params)
    assert "eps=" in repr(attack) and "SolutionSetPoisoningAttack(" in repr(attack)
    attack.set_params(eps=0.2, steps=3)
    assert (attack.eps, attack.steps) == (0.2, 3)
    with pytest.raises(ValueError, match="cannot be set"):
        attack.set_params(epsilon=0.1)


def test_other_estimators_are_refused_by_type():
    class Nothing:
        pass

    for estimator in (Nothing, SklearnClassifier(model=DecisionTreeClassifier())):
        with pytest.raises(EstimatorError) as caught:
            SolutionSetPoisoningAttack(classifier=estimator)
        for wanted in (BaseEstimator, NeuralNetworkMixin, ClassifierMixin, PyTorchClassifier):
            assert wanted in caught.value.class_expected_list


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"eps": 0.0}, "PA360"),
        ({"eps": -1}, "PA360"),
        ({"eps": np.inf}, "PA360"),
        ({"eps": "0.1"}, "PA346"),
        ({"percent_poison": 0.0}, "PA361"),
        ({"percent_poison": 5}, "PA361"),
        ({"decay": -1e-3}, "PA123"),
        ({"decay": np.nan}, "PA123"),
        ({"steps": 0}, "PA367"),
        ({"steps": 2.5}, "PA346"),
        ({"tolerance": 0.0}, "PA346"),
        ({"norm": 3}, "PA301"),
        ({"norm": "l2"}, "PA301"),
        ({"norm": True}, "PA301"),
        ({"dtype": "float16"}, "PA301"),
        ({"row_choice": "adjiont"}, "PA301"),
        ({"row_choice": [1, 1]}, "PA363"),
        ({"row_choice": None}, "PA363"),
        ({"row_choice": [0.5]}, "PA363"),
        ({"row_choice": []}, "PA363"),
        ({"seed": None}, "PA346"),
        ({"fit_first": 1}, "PA346"),
        ({"verbose": "yes"}, "PA346"),
        ({"x_target": None}, "PA346"),
        ({"y_target": None}, "PA346"),
        ({"x_target": None, "y_target": None}, "PA346"),
        ({"target_weights": np.zeros(195)}, "PA346"),
        ({"x_target": np.zeros(63)}, "PA211"),
        ({"x_target": np.full(64, np.nan)}, "PA210"),
        ({"y_target": CLASSES}, "PA212"),
        ({"y_target": [1, 2]}, "PA211"),
        ({"y_target": 0.5}, "PA211"),
        ({"x_target": None, "y_target": None, "target_weights": np.zeros(194)}, "PA125"),
        ({"x_target": None, "y_target": None, "target_weights": np.full(195, np.inf)}, "PA124"),
    ],
)
def test_parameters_that_make_no_sense_are_value_errors_on_one_line(classifier, target, changes, code):
    good = {"x_target": target[0], "y_target": target[1], "verbose": False}
    with pytest.raises(ValueError, match=rf"^{code} ") as caught:
        SolutionSetPoisoningAttack(classifier, **{**good, **changes})
    assert isinstance(caught.value, PoisonAuditError) and "\n" not in str(caught.value)
    attack = SolutionSetPoisoningAttack(classifier, **good)
    with pytest.raises(ValueError, match=rf"^{code} "):
        attack.set_params(**changes)


def defended():
    from art.defences.preprocessor import FeatureSqueezing

    return FeatureSqueezing(clip_values=(0.0, 1.0), bit_depth=4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (lambda: {"loss": nn.NLLLoss()}, "NLLLoss; the solution map"),
        (lambda: {"loss": nn.CrossEntropyLoss(reduction="sum")}, "reduction='sum'"),
        (lambda: {"loss": nn.CrossEntropyLoss(weight=torch.ones(CLASSES))}, "weight=given"),
        (lambda: {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}, "label_smoothing=0.1"),
        (lambda: {"loss": nn.CrossEntropyLoss(ignore_index=0)}, "ignore_index=0"),
        (lambda: {"preprocessing_defences": defended()}, "FeatureSqueezing.*without a derivative"),
        (lambda: {"preprocessing": defended()}, "preprocessing is FeatureSqueezing"),
    ],
)
def test_classifiers_trained_on_another_objective_are_refused_with_the_reason(trained, target, options, says):
    with pytest.raises(ValueError, match=f"PA345 .*{says}"):
        SolutionSetPoisoningAttack(classifier_of(copy.deepcopy(trained), **options()), *target)


class Frozen:
    """Everything of a classifier's model that an attack could leave changed."""

    def __init__(self, classifier: PyTorchClassifier) -> None:
        self.model = classifier.model
        self.state = copy.deepcopy(self.model.state_dict())
        self.modes = [module.training for module in self.model.modules()]
        self.needs = [value.requires_grad for value in self.model.parameters()]
        self.grads = [None if value.grad is None else value.grad.clone() for value in self.model.parameters()]
        self.hooks = [len(module._forward_hooks) for module in self.model.modules()]
        self.generators = torch.get_rng_state(), np.random.get_state()[1].copy()

    def assert_same(self) -> None:
        now = self.model.state_dict()
        assert now.keys() == self.state.keys()
        for name, value in self.state.items():
            assert torch.equal(now[name], value) and now[name].dtype == value.dtype and now[name].device == value.device
        assert [module.training for module in self.model.modules()] == self.modes
        assert [value.requires_grad for value in self.model.parameters()] == self.needs
        for value, grad in zip(self.model.parameters(), self.grads, strict=True):
            assert (value.grad is None) == (grad is None) and (grad is None or torch.equal(value.grad, grad))
        assert [len(module._forward_hooks) for module in self.model.modules()] == self.hooks
        assert torch.equal(torch.get_rng_state(), self.generators[0])
        assert np.array_equal(np.random.get_state()[1], self.generators[1])


@pytest.mark.parametrize("training", [True, False])
def test_inputs_and_classifier_stay_as_they_are(digits, target, training):
    torch.manual_seed(3)
    layers = [nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, CLASSES)]
    optimiser_decay = {"lr": 0.05, "weight_decay": DECAY}
    model = nn.Sequential(*layers)
    classifier = classifier_of(model, optimizer=torch.optim.Adam(model.parameters(), **optimiser_decay))
    classifier.fit(digits[0], digits[1], nb_epochs=3)
    model.train(training)
    model[1].eval()
    x, y, row = digits[0].copy(), digits[1].copy(), target[0].copy()
    before = Frozen(classifier)
    assert before.grads[0] is not None
    attack = SolutionSetPoisoningAttack(classifier, row, target[1], decay=DECAY, steps=1, verbose=False)
    x_poison, y_poison = attack.poison(x, y)
    before.assert_same()
    assert np.array_equal(x, digits[0]) and np.array_equal(y, digits[1]) and np.array_equal(row, target[0])
    assert x_poison is not x and y_poison is not y and not np.shares_memory(y_poison, y)


def test_frozen_models_are_attacked_and_stay_frozen(classifier, digits, target):
    classifier.model.requires_grad_(False)
    before = Frozen(classifier)
    attack = SolutionSetPoisoningAttack(classifier, *target, **QUICK)
    attack.poison(*digits[:2])
    before.assert_same()
    assert attack.predicted_["valid"] and attack.predicted_["margin_change"] > 0


@pytest.mark.parametrize(
    ("norm", "dtype"),
    [(np.inf, np.float32), ("inf", np.float64), (1, np.float32), (2, np.float32), (np.inf, np.float16)],
)
def test_poison_has_the_type_and_shape_given_and_lies_in_budget_and_box(classifier, digits, target, norm, dtype):
    eps = 0.1 if norm in (np.inf, "inf") else 0.5
    x, y = digits[0].astype(dtype), np.eye(CLASSES, dtype=np.float32)[digits[1]]
    attack = SolutionSetPoisoningAttack(classifier, *target, norm=norm, eps=eps, percent_poison=0.1, **QUICK)
    x_poison, y_poison = attack.poison(x, y)
    assert x_poison.dtype == dtype and x_poison.shape == x.shape
    assert y_poison.dtype == y.dtype and np.array_equal(y_poison, y)
    moved = x_poison.astype(np.float64) - x
    changed = np.flatnonzero((moved != 0).any(1))
    assert attack.poison_indices_.dtype == np.int64 and len(attack.poison_indices_) == 8
    assert set(changed) <= set(attack.poison_indices_) and len(changed)
    size = np.linalg.norm(moved.reshape(len(x), -1), ord=float(norm), axis=1)
    # float32 is rounded towards the clean rows; in float64 a sum may end one rounding beyond.
    slack = 1e-12 if dtype == np.float64 else 0.0
    assert 0.9 * eps < size.max() <= eps * (1 + 1e-12) + slack
    assert x_poison.min() >= 0.0 - slack and x_poison.max() <= 1.0 + slack
    assert attack.delta_.shape == (8, 64)
    np.testing.assert_allclose(moved[attack.poison_indices_], attack.delta_, atol=np.finfo(dtype).eps)
    assert [entry["step"] for entry in attack.history_][0] == 0 and len(attack.history_) > 1


def test_label_forms_agree_and_others_are_refused(classifier, digits, target):
    x, y = digits[:2]
    attack = SolutionSetPoisoningAttack(classifier, *target, **QUICK)
    first, _ = attack.poison(x, y)
    for form in (y[:, None], np.eye(CLASSES)[y], y.astype(np.float32), y.astype(np.uint8)):
        assert torch.equal(problem_from_classifier(classifier, x, form).y, attack.problem_.y)
    column = y[:, None].astype(np.int32)
    one_hot = SolutionSetPoisoningAttack(classifier, target[0][None], np.eye(CLASSES)[target[1]], **QUICK)
    again, labels = one_hot.poison(x, column)
    assert np.array_equal(again, first) and np.array_equal(labels, column) and labels.dtype == column.dtype
    soft = np.full((len(y), CLASSES), 1 / CLASSES)
    for wrong, code in [(None, "PA346"), (soft, "PA211"), (y + 1, "PA212"), (y[:-1], "PA211"), (y - 0.5, "PA211")]:
        with pytest.raises(ValueError, match=code):
            attack.poison(x, wrong)
    with pytest.raises(ValueError, match="PA211 x is uint8; a perturbation of it would be rounded away"):
        attack.poison((x * 255).astype(np.uint8), y)
    with pytest.raises(ValueError, match="PA346 poison got broadcast"):
        attack.poison(x, y, broadcast=True)


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
    attack = SolutionSetPoisoningAttack(classifier, x[0], (int(y[0]) + 1) % CLASSES, **options)
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


def test_detectors_of_art_take_the_result_and_their_hooks_do_no_harm(digits, target):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    classifier = classifier_of(model, optimizer=torch.optim.Adam(model.parameters(), lr=0.02))
    classifier.fit(*digits[:2], nb_epochs=10)
    plain = SolutionSetPoisoningAttack(classifier, *target, eps=0.3, percent_poison=0.2, **QUICK)
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
    again = SolutionSetPoisoningAttack(watched, *target, eps=0.3, percent_poison=0.2, **QUICK)
    assert np.array_equal(again.poison(*digits[:2])[0], x_poison)
    before.assert_same()
    assert all(watched._features[name] is value for name, value in seen.items())


def test_progress_goes_to_stderr_where_it_can_be_seen(classifier, digits, target, capfd, monkeypatch):
    for terminal, verbose in [(False, True), (True, True), (True, False)]:
        monkeypatch.setenv("TERM", "xterm")
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
            monkeypatch.setenv(name, "1") if terminal else monkeypatch.delenv(name, raising=False)
        SolutionSetPoisoningAttack(classifier, *target, **{**QUICK, "verbose": verbose}).poison(*digits[:2])
        out, err = capfd.readouterr()
        assert out == "" and ("step 1 of 1" in err or "solution-set poisoning" in err) == (terminal and verbose)


def test_the_package_does_not_import_art():
    code = "import sys, poisonaudit.attack, poisonaudit.cli.main; assert 'art' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
