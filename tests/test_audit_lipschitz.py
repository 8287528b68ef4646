"""Lipschitz measures of an audit: certified radii against closed forms and attacks, limits, details."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from test_audit_measures import data, net
from torch import Tensor, nn

from poisonaudit.audit import audit
from poisonaudit.audit import certified_radius as radius_family
from poisonaudit.audit import lipschitz as lipschitz_family
from poisonaudit.errors import InputRefused
from poisonaudit.lipschitz import costs, lipschitz_bounds
from poisonaudit.lipschitz.local import certified_radii
from poisonaudit.problem import Problem
from poisonaudit.results import Measure

RADIUS = "lipschitz.certified_radius_median"


def pictures(count: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (count,), generator=generator)


def convolutional() -> nn.Module:
    torch.manual_seed(2)
    layers = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(5, 3)).double().eval()


def measured(problem: Problem, name: str, **options: Any) -> Measure:
    return audit(problem, [name.rsplit(".", 1)[0]], **options).measures[name]


def margins(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        values = model(x)
    own = values.gather(1, y[:, None])[:, 0]
    return own - values.scatter(1, y[:, None], -torch.inf).amax(1)


def linear_radii(layer: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    """Least over the other classes of margin over l_1 norm of the difference of rows; 0 where it is negative."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    values = x @ weight.T + bias
    found = []
    for row, label in zip(values, y.tolist(), strict=True):
        others = [c for c in range(len(bias)) if c != label]
        found.append(min(float((row[label] - row[c]) / (weight[label] - weight[c]).abs().sum()) for c in others))
    return torch.tensor(found).clamp_min(0.0)


def test_the_radius_of_a_linear_model_is_its_closed_form() -> None:
    x, y = data(41)
    problem = Problem(net(4, 3), "cross_entropy", x, y)
    found = audit(problem, [RADIUS], seed=1).measures[RADIUS]
    exact = linear_radii(problem.module()[0], x, y)
    step = found.details["resolution"]
    assert found.kind == "lower" and found.direction == "higher_is_safer" and found.valid
    assert found.details["rows"] == "41 training rows" and found.details["within"] == "all inputs"
    # Random labels: the middle row may be a wrong one, so the mean and the accuracy are looked at too.
    assert 0.0 <= float(exact.median()) - found.value <= step * 1.01
    assert 0.0 <= float(exact.mean()) - found.details["mean"] <= step * 1.01
    assert found.details["accuracy"] == pytest.approx(float((exact > 0).double().mean()))
    curve = found.details["curve"]
    for radius, share in zip(curve["radius"], curve["certified_accuracy"], strict=True):
        assert float((exact >= radius + step).double().mean()) <= share <= float((exact >= radius).double().mean())
    assert curve["certified_accuracy"][0] == found.details["accuracy"] and curve["radius"][0] == 0.0
    json.dumps(found.to_json() if hasattr(found, "to_json") else dict(found.details), allow_nan=False)


def test_no_attack_succeeds_within_a_certified_radius() -> None:
    x, _ = pictures(12)
    model = convolutional()
    y = model(x).argmax(1)
    found = certified_radii(model, x, y, steps=9)
    assert bool(found.correct.all()) and float(found.radii.min()) > 0.0
    generator = torch.Generator().manual_seed(0)
    reach = found.radii[:, None, None, None]
    for scale in (1.0, 6.0):
        moved = x + scale * reach * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1)
        for _ in range(40):
            moved.requires_grad_(True)
            values = model(moved)
            own = values.gather(1, y[:, None])[:, 0]
            (gradient,) = torch.autograd.grad((own - values.scatter(1, y[:, None], -1e9).amax(1)).sum(), moved)
            moved = (moved - 0.2 * scale * reach * gradient.sign()).detach()
            moved = torch.minimum(torch.maximum(moved, x - scale * reach), x + scale * reach)
        smallest = margins(model, moved, y)
        # Six times farther the same attack does find other classes: it is no weak one.
        assert bool((smallest > 0).all()) if scale == 1.0 else bool((smallest < 0).any())


def test_smaller_steps_only_refine_and_wrong_rows_count_as_zero() -> None:
    x, y = pictures(6)
    model = convolutional()
    coarse, fine = (certified_radii(model, x, y, steps=steps) for steps in (4, 9))
    wrong = model(x).argmax(1) != y
    assert bool(wrong.any()) and bool((fine.radii[wrong] == 0.0).all())
    assert bool((coarse.radii <= fine.radii + 2**-9).all()) and bool((fine.radii - coarse.radii <= 2**-4).all())
    always = nn.Sequential(nn.Linear(2, 2, dtype=torch.float64)).eval()
    with torch.no_grad():
        always[0].weight.zero_()
        always[0].bias.copy_(torch.tensor([1.0, 0.0]))
    # Nothing can change this prediction: the search ends at its own limit, exactly.
    assert certified_radii(always, torch.zeros(1, 2), torch.tensor([0]), largest=0.3).radii.tolist() == [0.3]


def test_a_box_enlarges_radii_and_has_to_hold_the_inputs() -> None:
    x, _ = pictures(5)
    model = convolutional()
    y = model(x).argmax(1)
    free, boxed = certified_radii(model, x, y), certified_radii(model, x, y, box=(0.0, 1.0))
    like_a_row = certified_radii(model, x, y, box=(torch.zeros(1, 6, 6), torch.ones(1, 6, 6)))
    assert bool((boxed.radii >= free.radii).all()) and boxed.radii.tolist() == like_a_row.radii.tolist()
    with pytest.raises(InputRefused, match="PA230 some inputs lie outside the box"):
        certified_radii(model, x + 0.5, y, box=(0.0, 1.0))


def test_pictures_are_certified_within_their_range_and_rows_are_drawn_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radius_family, "_ROWS", 8)
    x, y = pictures(30)
    problem = Problem(convolutional(), "cross_entropy", x, y)
    box = (torch.zeros(1, 6, 6, dtype=torch.float64), torch.ones(1, 6, 6, dtype=torch.float64))
    told: list[str] = []
    options: dict[str, Any] = {"box": box, "image_shape": (1, 6, 6), "progress": lambda text, _: told.append(text)}
    found = [audit(problem, [RADIUS], seed=seed, **options).measures[RADIUS] for seed in (0, 0, 1)]
    assert found[0].details == found[1].details != found[2].details
    assert found[0].details["rows"] == "8 of 30 training rows, drawn with seed 0"
    assert found[0].details["within"] == "the range of the pictures" and found[0].details["largest_searched"] == 1.0
    assert f"audit: {RADIUS}, row 8 of 8" in told


def test_radii_are_not_applicable_or_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data(20)
    regression = Problem(net(4, 1), "half_squared", x, torch.rand(20, 1, dtype=torch.float64))
    found = audit(regression, ["lipschitz"], classification=False).measures
    assert found[RADIUS].status == "not applicable" and "no classes" in found[RADIUS].reason
    assert found["lipschitz.upper.l1"].status == "measured"
    unknown = Problem(nn.Sequential(net(4, 3), nn.Softmax(1)).eval(), "half_squared", x, y)
    found = audit(unknown, ["lipschitz"]).measures
    assert {measure.status for measure in found.values()} == {"not applicable"}
    assert found[RADIUS].details["code"] == "PA130" and "Softmax" in found[RADIUS].reason
    monkeypatch.setattr(costs, "_LEAST_PROOF", 10.0)
    problem = Problem(net(4, 3), "cross_entropy", x, y)
    skipped = audit(problem, ["lipschitz"]).measures[RADIUS]
    assert skipped.status == "skipped" and f"skipped: cost, about 33 minutes; name {RADIUS}" in skipped.reason
    monkeypatch.setattr(radius_family, "_FEWEST_ROWS", 4)
    named = audit(problem, [RADIUS]).measures[RADIUS]
    assert named.status == "measured" and named.details["rows"] == "4 of 20 training rows, drawn with seed 0"


def test_details_hold_every_bound() -> None:
    x, y = data(20)
    problem = Problem(net(4, 6, 3, activation=nn.ReLU), "cross_entropy", x, y)
    found = audit(problem, ["lipschitz.upper", "lipschitz.lower"], data(9, seed=4)).measures
    for norm in ("linf", "l1"):
        upper, lower = (found[f"lipschitz.{side}.{norm}"] for side in ("upper", "lower"))
        bounds = lipschitz_bounds(problem.module(), norm=norm, x=data(9, seed=4)[0], seed=0)
        details = upper.details
        for name in ("k_star", "k1", "k2", "k3", "k4", "k5", "k6", "ellipsoid", "exact", "best", "winner"):
            assert details[name] == getattr(bounds, name)
        assert details["certified"] == upper.value == bounds.certified and lower.value == bounds.lower
        assert details["certified_winner"] == bounds.certified_winner and details["restarts"] == []
        assert details["ratio"] == pytest.approx(upper.value / lower.value) and details["ratio"] >= 1.0
        assert details["lower_searched_on"] == "9 test rows" and lower.details == details


def test_convolutional_nets_restart_within_the_limit_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pictures(40)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
    )
    problem = Problem(
        nn.Sequential(*model, nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).double().eval(),
        "cross_entropy", x, y,
    )  # fmt: skip
    name = "lipschitz.upper.linf"
    monkeypatch.setattr(lipschitz_family, "AUDIT_WORK", 1e5)
    monkeypatch.setattr(lipschitz_family, "_LOOKING", 1e-9)
    quick = measured(problem, name)
    assert quick.status == "measured" and quick.details["restarts"] and f"name {name}" in quick.reason
    assert quick.details["lower_searched_on"] == "16 of 40 training rows, drawn with seed 0"
    assert quick.details["k2"] is quick.details["k6"] is quick.details["k4"] is None
    named = audit(problem, [name]).measures[name]
    assert named.details["restarts"] == [] and named.reason == "" and named.value < quick.value
    monkeypatch.setattr(costs, "SPEED", 1.0)
    assert measured(problem, name).reason.startswith("skipped: cost, about")
