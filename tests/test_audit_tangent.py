"""Tangent sensitivity in the audit: exact or estimated, what it tells, and the chart of its layers."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from test_report_samples import HOSTILE, audits
from torch import nn

from poisonaudit.audit import audit
from poisonaudit.audit import tangent as family
from poisonaudit.problem import Problem
from poisonaudit.report import compare, render_html
from poisonaudit.report.layer_chart import layer_chart
from poisonaudit.results import Measure
from poisonaudit.tangent import (
    activation_patterns,
    tangent_sensitivity,
    tangent_sensitivity_by_layer,
    tangent_sensitivity_normalised,
    tangent_sensitivity_probes,
)
from poisonaudit.tangent import probes as probing

IDS = ("tangent.sensitivity", "tangent.sensitivity_normalised")


def problem_of(
    model: nn.Module, *shape: int, rows: int = 40, seed: int = 0
) -> tuple[Problem, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) / max(1, value[0].numel()) ** 0.5)
    x = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 2, (rows,), generator=generator)
    return Problem(model.double().eval(), "cross_entropy", x[:6], y[:6]), x, y


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))


def test_a_closed_form_is_exact_and_told_layer_by_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.1), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    problem, x, y = problem_of(model, 4)
    found = audit(problem, ["tangent"], (x, y)).measures
    for name, function in zip(IDS, (tangent_sensitivity, tangent_sensitivity_normalised), strict=True):
        measure, values = found[name], function(model, x)
        assert measure.kind == "exact" and measure.valid and measure.details["method"] == "closed form"
        assert measure.value == pytest.approx(float(values.mean()), rel=1e-12)
        assert measure.details["standard_error"] == pytest.approx(float(values.std()) / 40**0.5, rel=1e-9)
        layers = tangent_sensitivity_by_layer(model, x, normalised=name == IDS[1]).mean(0)
        assert list(measure.details["by_layer"]) == ["0", "2", "4"]
        assert list(measure.details["by_layer"].values()) == pytest.approx(layers.tolist(), rel=1e-12)
        # Rows of one region have one value, up to rounding.
        assert values[measure.details["largest_rows"]].tolist() == pytest.approx(values.topk(10).values.tolist())
        patterns = activation_patterns(model, x)
        assert measure.details["distinct_regions"] == patterns.distinct
        assert measure.details["mean_active_share"] == pytest.approx(patterns.share)
        assert measure.details["active_units_normal_p"] == patterns.normality.p_value
        assert measure.details["convention"] == "jacobian" and "40 test rows" in measure.details["rows"]
    assert found[IDS[1]].details["kept_by_rescaling"] is True and "kept_by_rescaling" not in found[IDS[0]].details


def test_a_large_net_gets_an_estimate_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, x, y = problem_of(convolution(), 1, 3, 3)
    exact = audit(problem, ["tangent"], (x, y)).measures
    assert exact[IDS[0]].details["method"] == "second derivatives" and "by_layer" not in exact[IDS[0]].details
    monkeypatch.setattr("poisonaudit.tangent.dense.DENSE_LIMIT", 5)
    found = audit(problem, ["tangent"], (x, y), seed=3).measures
    for name in IDS:
        measure, details = found[name], found[name].details
        assert measure.kind == "estimate" and measure.valid and details["method"] == "probes"
        error = details["standard_error_of_probes"]
        assert 0 < error < 0.15 * measure.value and abs(measure.value - exact[name].value) < 4 * error
        assert details["interval"][0] < measure.value < details["interval"][1] and details["probes"] >= 2
        assert details["standard_error"] > error and len(details["largest_rows"]) == 10
        assert details["distinct_regions"] == exact[name].details["distinct_regions"]
    assert found[IDS[0]].value == audit(problem, [IDS[0]], (x, y), seed=3).measures[IDS[0]].value


def test_rows_are_drawn_where_all_of_them_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, x, y = problem_of(convolution(), 1, 3, 3, rows=500)
    monkeypatch.setattr("poisonaudit.tangent.dense.DENSE_LIMIT", 5)
    # Time for two probes of the first 400 rows, and one pass more.
    passes = probing.PILOT + 2 * 25 + 1
    monkeypatch.setattr(family, "pass_seconds", lambda *args, **options: 300.0 / passes)
    measure = audit(problem, "tangent", (x, y)).measures[IDS[0]]
    assert measure.details["rows"] == "400 of 500 test rows, drawn with seed 0" and measure.details["probes"] == 2
    assert len(set(measure.details["largest_rows"])) == 10 and max(measure.details["largest_rows"]) >= 400
    everything = tangent_sensitivity_probes(problem.module(), x, probes=2)
    assert abs(measure.value - everything.mean) < 4 * (measure.details["standard_error"] + everything.standard_error)
    monkeypatch.setattr(family, "pass_seconds", lambda *args, **options: 100.0)
    measures = audit(problem, f"tangent,{IDS[0]}", (x, y)).measures
    assert measures[IDS[1]].status == "skipped" and measures[IDS[1]].reason.startswith("skipped: cost, about")
    # Named in full: all rows, whatever it costs.
    assert measures[IDS[0]].status == "measured" and measures[IDS[0]].details["rows"] == "500 test rows"


def test_smooth_nets_have_no_regions_and_no_rescaling() -> None:
    problem, x, y = problem_of(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), 4)
    found = audit(problem, ["tangent"], (x, y)).measures
    assert "distinct_regions" not in found[IDS[0]].details and found[IDS[1]].details["kept_by_rescaling"] is False
    mixed = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    problem, x, y = problem_of(mixed, 4)
    assert audit(problem, IDS[0], (x, y)).measures[IDS[0]].details["regions_leave_out"] == ["tanh"]


def test_layers_that_torch_differentiates_only_once_are_not_applicable() -> None:
    problem, x, y = problem_of(nn.Sequential(nn.Conv2d(1, 2, 2), nn.Hardsigmoid(), nn.Flatten()), 1, 2, 2)
    measure = audit(problem, IDS[0], (x, y)).measures[IDS[0]]
    assert measure.status == "not applicable" and measure.details["code"] == "PA156"


def test_the_chart_of_layers_tells_shares() -> None:
    parts: list[Any] = [
        {"0": 8.0, "2": 1.0, f"4{HOSTILE}": 1.0},
        None,
        {"0": 1.0, "2": None},
        {"0": 0.0, "2": 0.0},
        "x",
    ]
    chart = layer_chart(["a", "b", "c", "d", "e"], parts, key="k", name="Tangent")
    text = re.search(r"<desc[^>]*>(.*?)</desc>", str(chart), re.S)
    assert text and "a: 0 80 %, 2 10 %" in text[1] and "b:" not in text[1] and "d:" not in text[1]
    assert HOSTILE not in str(chart)
    # The bars end where the shares add up: widths 80, 10 and 10 of 100.
    paths = re.findall(r'<path d="M ([\d.]+) [^"]*?L ([\d.]+) [^"]*"[^>]*class="fill-accent', str(chart))
    widths = [abs(float(right) - float(left)) for left, right in paths]
    assert len(widths) == 3 and widths[0] == pytest.approx(8 * widths[1], rel=1e-2) == pytest.approx(
        8 * widths[2], rel=1e-2
    )
    assert layer_chart(["a"], [{"0": 1.0}], key="k", name="n") is None


def test_the_report_draws_it_where_a_measure_has_layers() -> None:
    result = next(audit for audit in audits() if audit.measures[IDS[0]].status == "measured")
    stored = result.measures[IDS[0]]
    plain = render_html(compare([result]))
    with_layers: Measure = dataclasses.replace(stored, details={**stored.details, "by_layer": {"fc1": 3.0, "fc2": 1.0}})
    shown = render_html(compare([dataclasses.replace(result, measures={**result.measures, IDS[0]: with_layers})]))
    assert "over test rows by layer" not in plain and "fc1 75 %, fc2 25 %" in shown
