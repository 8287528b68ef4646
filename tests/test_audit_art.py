"""The toolbox's metrics against closed forms for linear models; its side effects are contained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from poisonaudit.audit import art_metrics, audit
from poisonaudit.problem import Problem

BOX = (torch.full((3,), -2.0, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64))


@pytest.fixture
def linear() -> tuple[Problem, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2, dtype=torch.float64)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0, -1.0], [-1.0, 0.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([0.1, -0.1]))
    x = torch.randn(24, 3, generator=generator, dtype=torch.float64).clamp(-1, 1)
    y = model(x).argmax(1)
    return Problem(model, "cross_entropy", x, y, decay=1e-2), x, y


def test_loss_sensitivity_equals_autograd(linear: tuple[Problem, Tensor, Tensor]) -> None:
    problem, x, y = linear
    point = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(problem.losses(x=point, y=y).sum(), point)
    found = audit(problem, ["art.loss_sensitivity"], (x, y)).measures["art.loss_sensitivity"]
    assert found.value == pytest.approx(float(gradient.norm(dim=1).mean()), rel=1e-5)
    assert found.direction == "lower_is_safer" and "test rows" in found.details["rows"]


def test_empirical_robustness_is_the_distance_of_a_linear_boundary(linear: tuple[Problem, Tensor, Tensor]) -> None:
    """The least l_inf step of a linear pair is |margin| / |w_0 - w_1|_1; FGSM finds it up to one step of its grid."""
    problem, x, _ = linear
    found = audit(problem, ["art.empirical_robustness"], (x, problem.y), box=BOX).measures["art.empirical_robustness"]
    with torch.no_grad():
        margin = (problem.outputs()[:, 0] - problem.outputs()[:, 1]).abs()
    step = 4.0 / 50
    exact = margin / 6.0
    size = x.abs().amax(1)
    assert found.details["fooled"] > 0.9
    assert float((exact / size).mean()) - 0.05 <= found.value <= float(((exact + step) / size).mean()) + 1e-3
    assert found.direction == "higher_is_safer"


def test_a_model_that_fgsm_cannot_fool_is_not_reported_as_zero(linear: tuple[Problem, Tensor, Tensor]) -> None:
    problem, x, _ = linear
    weights = problem.weights.clone()
    weights[-2:] = torch.tensor([50.0, -50.0])
    found = audit(problem.at(weights), ["art.empirical_robustness"], (x, problem.y), box=BOX)
    measure = found.measures["art.empirical_robustness"]
    assert measure.value is None and measure.status == "not applicable" and "no row" in measure.reason


def test_rows_of_zeros_have_no_relative_size(linear: tuple[Problem, Tensor, Tensor]) -> None:
    problem, x, y = linear
    name = "art.empirical_robustness"
    alone = audit(problem, [name], (x, y), box=BOX).measures[name]
    beside = audit(problem, [name], (torch.cat([x, 0 * x[:2]]), torch.cat([y, y[:2]])), box=BOX).measures[name]
    assert beside.value == alone.value and beside.details["zero_rows_left_out"] == 2 and not beside.infinite
    nothing = audit(problem, [name], (0 * x, y), box=BOX).measures[name]
    assert nothing.status == "not applicable" and "zero" in nothing.reason


def test_loss_sensitivity_does_not_depend_on_how_many_rows_there_are(linear: tuple[Problem, Tensor, Tensor]) -> None:
    """A loss that is a mean would shrink every row's gradient by their number."""
    problem, x, y = linear
    name = "art.loss_sensitivity"
    few, many = (audit(problem, [name], (x.repeat(k, 1), y.repeat(k))).measures[name].value for k in (1, 8))
    assert many == pytest.approx(few, rel=1e-5)


def test_clever_is_skipped_by_default_and_right_when_named(
    linear: tuple[Problem, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a linear pair the score is the l_2 distance of the boundary, margin / |w_0 - w_1|_2."""
    problem, x, y = linear
    skipped = audit(problem, ["art"], (x, y)).measures["art.clever"]
    assert skipped.status == "skipped" and "name art.clever" in skipped.reason
    monkeypatch.setattr(
        art_metrics,
        "_CLEVER",
        {"rows": 3, "batches": 4, "batch_size": 5, "radius": 5.0, "norm": 2},
    )
    named = audit(problem, ["art.clever"], (x, y), seed=1).measures["art.clever"]
    assert named.status == "measured", named.reason
    with torch.no_grad():
        margin = (problem.outputs(x=x[:3])[:, 0] - problem.outputs(x=x[:3])[:, 1]).abs()
    assert named.value == pytest.approx(float((margin / 12**0.5).median()), rel=0.02)
    assert named.details["first_order_median"] == pytest.approx(float((margin / 12**0.5).median()), rel=1e-9)
    assert named.valid and named.details["fits_that_failed"] == 0
    assert audit(problem, ["art.clever"], (x, y), seed=1).measures["art.clever"].value == named.value


def test_clever_on_a_network_is_below_the_first_order_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its largest slope is met in a ball, so that it is at least that at the row but for the fit and single samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(30, 3, dtype=torch.float64)
    problem = Problem(model, "cross_entropy", x, torch.arange(30) % 3, decay=1e-2)
    small = {"rows": 4, "batches": 6, "batch_size": 20, "radius": 5.0, "norm": 2}
    monkeypatch.setattr(art_metrics, "_CLEVER", small)
    found = audit(problem, ["art.clever"], (x, problem.y)).measures["art.clever"]
    assert found.value <= found.details["first_order_median"] * 1.01
    for row, score in zip(x[:4], found.details["scores"], strict=True):
        slope = torch.autograd.functional.jacobian(lambda each: problem.outputs(x=each[None])[0], row)
        logits = problem.outputs(x=row[None])[0]
        top = int(logits.argmax())
        others = [other for other in range(3) if other != top]
        near = min(float((logits[top] - logits[j]) / (slope[top] - slope[j]).norm()) for j in others)
        assert score <= near * 1.01


def test_clever_scores_without_meaning_are_flagged(
    linear: tuple[Problem, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, x, y = linear
    scores = iter([0.3, 1e-9, 1e-9, 0.0, 0.2, 0.3, 1e-9, 0.4])
    monkeypatch.setattr("art.metrics.clever_u", lambda *_, **__: next(scores))
    for rows, valid in ((4, False), (4, True)):
        monkeypatch.setattr(art_metrics, "_CLEVER", {**art_metrics._CLEVER, "rows": rows})
        found = audit(problem, ["art.clever"], (x, y)).measures["art.clever"]
        assert found.valid == valid and found.details["fits_that_failed"] == (1 if valid else 3)
        assert "without meaning" in found.reason


def test_side_effects_are_contained(linear: tuple[Problem, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    problem, x, y = linear
    weights, state = problem.weights.clone(), np.random.get_state()[1].copy()
    audit(problem, ["art"], (x, y))
    assert np.array_equal(np.random.get_state()[1], state) and torch.equal(problem.weights, weights)
    assert problem.weights.dtype == torch.float64

    def broken(*_: object, **__: object) -> None:
        raise ValueError("ART does not like this model")

    monkeypatch.setattr("art.estimators.classification.PyTorchClassifier", broken)
    found = audit(problem, ["art", "stationarity"], (x, y)).measures
    for name in ("art.empirical_robustness", "art.loss_sensitivity", "art.shapr"):
        assert found[name].value is None and "ValueError: ART does not like" in found[name].reason
        assert found[name].status == "not applicable" and "does not like this model" in found[name].reason
    assert found["stationarity.relative_gradient"].status == "measured"
