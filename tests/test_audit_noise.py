"""Weight noise measures of an audit: convolutional and residual networks, details, samples of rows, costs, zeros."""

from __future__ import annotations

import importlib
import json
import math

import pytest
import torch
from noise_networks import mlp, rows
from torch import nn

from poisonaudit.audit import audit, weight_noise
from poisonaudit.models import build_model
from poisonaudit.problem import Problem
from poisonaudit.results import AuditResult
from poisonaudit.weight_noise import RHOS, joint_weight_noise, weight_conditions
from poisonaudit.weight_noise.costs import noise_costs

COSTS = importlib.import_module("poisonaudit.weight_noise.costs")
JACOBIANS = importlib.import_module("poisonaudit.weight_noise.jacobians")


def problem_of(model: nn.Module, *shape: int, count: int = 8, dtype: torch.dtype = torch.float64) -> Problem:
    x = rows(count, *shape).to(dtype)
    return Problem(model, "cross_entropy", x, torch.arange(count) % 3, decay=1e-3)


def test_every_kind_of_network_is_measured() -> None:
    for spec, shape in (("lenet", (1, 8, 8)), ("resnet20", (1, 8, 8)), ("mlp:4-5-3", (4,))):
        model = build_model(spec, input_shape=shape, outputs=3, dtype=torch.float32)
        problem = problem_of(model, *shape, dtype=torch.float32)
        x = rows(6, *shape, seed=4).float()
        found = audit(problem, "weight_noise", (x, torch.arange(6) % 3), seed=2).measures
        rms, flips, condition = (found[f"weight_noise.{n}"] for n in ("rms", "flip_rate", "condition_relative_max"))
        joint, conditions = joint_weight_noise(model, x, 0.1, 64, 2), weight_conditions(model, x)
        assert rms.value == pytest.approx(joint.rms, rel=1e-6) and flips.value == joint.flip_rate
        assert rms.details["interval"] == pytest.approx(list(joint.interval), rel=1e-6)
        assert rms.details["first_order_formula"] == pytest.approx(joint.rms_formula, rel=1e-5)
        assert rms.details["median_row"] == pytest.approx(joint.median, rel=1e-6)
        medians = conditions.relative.median(dim=1).values
        assert condition.value == pytest.approx(float(medians.max()), rel=1e-5)
        assert list(condition.details["median_by_layer"]) == list(conditions.names)
        alone = rms.details["first_order_by_layer"]
        total = math.sqrt(sum(value**2 for value in alone.values()))
        assert total == pytest.approx(rms.details["first_order_formula"], rel=1e-5)
        for measure, key in ((rms, "rms"), (flips, "flip_rate")):
            curve = measure.details["curve"]
            assert curve["rho"] == list(RHOS) and len(curve[key]) == 9 and curve["rows"] == "6 test rows"
            assert curve[key][4] == pytest.approx(measure.value, rel=0.3, abs=0.1)
        assert flips.details["interval"][0] <= flips.value <= flips.details["interval"][1]


def test_rows_are_sampled_where_all_would_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(mlp([4, 6, 3]), 4, count=40)
    monkeypatch.setattr(weight_noise, "_AT_MOST", 1e-9)
    found = audit(problem, "weight_noise", seed=1).measures
    told = "16 of 40 training rows, drawn with seed 1"
    assert found["weight_noise.condition_relative_max"].details["rows"] == told
    assert found["weight_noise.rms"].details["first_order_rows"] == told
    curve = found["weight_noise.rms"].details["curve"]
    assert curve["rows"] == told and curve["draws"] == 16
    assert found["weight_noise.rms"].details["rows"] == "40 training rows"


def test_dear_measures_are_skipped_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(mlp([4, 6, 3]), 4)
    monkeypatch.setattr(COSTS, "_CALL", 100.0)
    found = audit(problem, "weight_noise").measures
    for name in ("rms", "flip_rate"):
        measure = found[f"weight_noise.{name}"]
        assert measure.status == "skipped" and f"name weight_noise.{name}" in measure.reason
    assert found["weight_noise.condition_relative_max"].status == "measured"
    assert audit(problem, ["weight_noise.rms"]).measures["weight_noise.rms"].status == "measured"
    monkeypatch.undo()
    monkeypatch.setattr(JACOBIANS, "FITS", 1)
    found = audit(problem, "weight_noise").measures
    assert found["weight_noise.condition_relative_max"].status == "skipped"
    assert found["weight_noise.rms"].details["first_order_formula"] is None
    named = audit(problem, ["weight_noise.condition_relative_max"]).measures["weight_noise.condition_relative_max"]
    exact = weight_conditions(problem.module(), problem.x).relative.median(dim=1).values.max()
    assert named.value == pytest.approx(float(exact), rel=1e-6)


def test_costs_are_counted_not_timed() -> None:
    small = build_model("resnet20", input_shape=(1, 16, 16), outputs=10, dtype=torch.float32)
    x = torch.rand(3, 1, 16, 16)
    first, second = noise_costs(small, x), noise_costs(small, x)
    assert first == second and first.jacobian > 10 * first.draw > 0
    larger = noise_costs(small, torch.rand(1, 1, 32, 32))
    assert larger.draw == pytest.approx(4 * first.draw, rel=0.05)
    double = noise_costs(small.double(), x.double())
    assert double.draw == pytest.approx(2 * first.draw)


def test_zero_outputs_are_flagged_and_json_stays_plain() -> None:
    # Multiples of 1/8, whose sums are exact in any order.
    model, x = mlp([3, 3]), (8 * rows(6, 3)).round() / 8
    with torch.no_grad():
        model[0].weight.copy_((8 * model[0].weight).round() / 8)
        model[0].bias.copy_(-model[0].weight @ x[2])
    found = audit(Problem(model, "cross_entropy", x, torch.arange(6) % 3, decay=1e-3), "weight_noise")
    rms = found.measures["weight_noise.rms"]
    assert rms.infinite and rms.value is None and "1 of 6 rows" in rms.reason
    assert rms.details["rows_with_zero_outputs"] == 1 and math.isfinite(rms.details["rms_of_other_rows"])
    again = AuditResult.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again.measures["weight_noise.rms"].number == math.inf
    assert found.measures["weight_noise.condition_relative_max"].value is not None  # a median
