"""The attack for ART keeps to what ART asks of its attacks."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
from art.attacks.attack import PoisoningAttackWhiteBox
from art.estimators.classification import PyTorchClassifier, SklearnClassifier
from art.estimators.classification.classifier import ClassifierMixin
from art.estimators.estimator import BaseEstimator, NeuralNetworkMixin
from art.exceptions import EstimatorError
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from poisonaudit import Problem, fit
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


@pytest.fixture(scope="module")
def sure(digits, trained) -> tuple[np.ndarray, int]:
    """The test row of largest margin, which any model gets right, and the class that comes last on it."""
    with torch.no_grad():
        logits = trained(torch.tensor(digits[2]))
    top = logits.topk(2, 1).values
    row = int((top[:, 0] - top[:, 1]).argmax())
    return digits[2][row], int(logits[row].argmin())


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
        ({"eps": "0.1"}, "PA349"),
        ({"percent_poison": 0.0}, "PA361"),
        ({"percent_poison": 5}, "PA361"),
        ({"decay": -1e-3}, "PA123"),
        ({"decay": np.nan}, "PA123"),
        ({"steps": 0}, "PA367"),
        ({"steps": 2.5}, "PA349"),
        ({"tolerance": 0.0}, "PA349"),
        ({"norm": 3}, "PA301"),
        ({"norm": "l2"}, "PA301"),
        ({"norm": True}, "PA301"),
        ({"dtype": "float16"}, "PA301"),
        ({"row_choice": "adjiont"}, "PA301"),
        ({"row_choice": [1, 1]}, "PA363"),
        ({"row_choice": None}, "PA363"),
        ({"row_choice": [0.5]}, "PA363"),
        ({"row_choice": []}, "PA363"),
        ({"seed": None}, "PA349"),
        ({"seed": -1}, "PA349"),
        ({"fit_first": 1}, "PA349"),
        ({"verbose": "yes"}, "PA349"),
        ({"x_target": None}, "PA349"),
        ({"y_target": None}, "PA349"),
        ({"x_target": None, "y_target": None}, "PA349"),
        ({"target_weights": np.zeros(195)}, "PA349"),
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


@pytest.mark.parametrize("fit_first", [True, False])
def test_a_row_that_is_predicted_as_wanted_already_is_refused(classifier, digits, target, fit_first):
    rows = digits[2][:4]
    predicted = classifier.predict(rows).argmax(1)
    several = (predicted + 1) % CLASSES
    several[2] = predicted[2]
    for x, y, said in ((rows[1], predicted[1], "row 0"), (rows, several, f"class {predicted[2]} for row 2")):
        attack = SolutionSetPoisoningAttack(classifier, x, y, fit_first=fit_first, **QUICK)
        with pytest.raises(ValueError, match=f"^PA354 the clean model already predicts .*{said}"):
            attack.poison(digits[0], digits[1])
    SolutionSetPoisoningAttack(classifier, *target, fit_first=fit_first, **QUICK).poison(digits[0], digits[1])


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
    with pytest.raises(ValueError, match=f"PA344 .*{says}"):
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
def test_inputs_and_classifier_stay_as_they_are(digits, sure, training):
    torch.manual_seed(3)
    layers = [nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, CLASSES)]
    optimiser_decay = {"lr": 0.05, "weight_decay": DECAY}
    model = nn.Sequential(*layers)
    classifier = classifier_of(model, optimizer=torch.optim.Adam(model.parameters(), **optimiser_decay))
    classifier.fit(digits[0], digits[1], nb_epochs=3)
    model.train(training)
    model[1].eval()
    x, y, row = digits[0].copy(), digits[1].copy(), sure[0].copy()
    before = Frozen(classifier)
    assert before.grads[0] is not None
    attack = SolutionSetPoisoningAttack(classifier, row, sure[1], decay=DECAY, steps=1, verbose=False)
    x_poison, y_poison = attack.poison(x, y)
    before.assert_same()
    assert np.array_equal(x, digits[0]) and np.array_equal(y, digits[1]) and np.array_equal(row, sure[0])
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
    for wrong, code in [(None, "PA349"), (soft, "PA211"), (y + 1, "PA212"), (y[:-1], "PA211"), (y - 0.5, "PA211")]:
        with pytest.raises(ValueError, match=code):
            attack.poison(x, wrong)
    with pytest.raises(ValueError, match="PA211 x is uint8; a perturbation of it would be rounded away"):
        attack.poison((x * 255).astype(np.uint8), y)
    with pytest.raises(ValueError, match="PA349 poison got broadcast"):
        attack.poison(x, y, broadcast=True)


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
