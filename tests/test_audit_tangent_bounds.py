"""Bounds of the tangent sensitivity as audit measures, and the report's section about them."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from poisonaudit.audit import audit
from poisonaudit.problem import Problem
from poisonaudit.report import render_html
from poisonaudit.report.page import make_page
from poisonaudit.report.sections import tangent_bounds as section
from poisonaudit.results import AuditResult, Measure
from poisonaudit.tangent import tangent_bounds

IDS = ("tangent.bound_path", "tangent.bound_theorem31", "tangent.bound_theorem32")


def problem(activation: type[nn.Module] = nn.ReLU, depth: int = 3, scale: float = 1.0) -> Problem:
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layer = nn.Linear(6, 6).double()
        with torch.no_grad():
            for value in layer.parameters():
                value.copy_(scale * torch.randn(value.shape, generator=generator, dtype=torch.float64))
        layers += [layer, activation()]
    x = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    return Problem(nn.Sequential(*layers[:-1]), "cross_entropy", x, torch.arange(12) % 6, 1e-2)


@pytest.fixture(scope="module")
def scored() -> AuditResult:
    return audit(problem(), ["tangent"], model="net", data="drawn")


def test_measures_are_the_bounds_beside_the_exact_mean(scored: AuditResult) -> None:
    case = problem()
    found = tangent_bounds(case.module(), case.x)
    for name, bound in zip(IDS, (found.path, found.theorem31, found.theorem32), strict=True):
        measure = scored.measures[name]
        assert measure.value == bound.value and measure.kind == "upper" and measure.valid
        assert measure.details["ratio"] == pytest.approx(bound.value / found.exact)
        assert measure.details["exact"] == pytest.approx(scored.measures["tangent.sensitivity"].value, rel=1e-12)
        assert measure.details["log10"] == pytest.approx(math.log10(bound.value))
        assert measure.value >= measure.details["exact"]
    beside = scored.measures[IDS[0]].details
    assert beside["path_active"]["value"] == found.path_active.value
    assert beside["absolute"]["ratio"] == pytest.approx(found.absolute.value / found.exact)
    assert scored.measures[IDS[2]].details["if_normal"]["value"] == found.theorem32_gaussian.value
    assert scored.measures[IDS[2]].details["holds"] == "the mean over these rows"


def test_a_smooth_net_is_not_applicable_and_says_why() -> None:
    found = audit(problem(nn.Tanh), list(IDS)).measures
    for name in IDS:
        assert found[name].status == "not applicable" and "Tanh" in found[name].reason


def test_a_bound_beyond_float64_is_infinite_with_a_logarithm() -> None:
    case = problem(depth=60, scale=1e3)
    result = audit(case, ["tangent.bound_theorem31"], model="net", data="drawn")
    measure = result.measures["tangent.bound_theorem31"]
    assert measure.infinite and measure.value is None and 308 < measure.details["log10"] < 1000
    assert "Infinity" not in json.dumps(result.to_json(), allow_nan=False)
    (model,) = section.context(make_page(result))["models"]
    assert model["rows"][0]["value"] == math.inf and model["rows"][0]["log10"] == measure.details["log10"]


def described(chart: Any) -> str:
    found = re.search(r"<desc[^>]*>(.*?)</desc>", str(chart), re.S)
    assert found
    return found[1]


def test_the_section_draws_the_exact_mean_under_the_bounds(scored: AuditResult) -> None:
    (model,) = section.context(make_page(scored))["models"]
    names = [row["name"] for row in model["rows"]]
    assert names == ["path, active", "absolute", "path", "theorem 3.2", "3.2, if normal", "theorem 3.1"]
    stored = {row["name"]: row["value"] for row in model["rows"]}
    assert stored["path"] == scored.measures[IDS[0]].value and stored["theorem 3.1"] == scored.measures[IDS[1]].value
    assert model["exact"] == scored.measures["tangent.sensitivity"].value
    text = described(model["chart"])
    assert "Dashed line: exact mean" in text and "certified" not in text
    assert str(model["chart"]).count("fill-paper") >= 6
    html = render_html(scored)
    assert "Tangent sensitivity under its bounds" in html and "<td>closed form, over the rows</td>" in html


def test_without_bounds_the_section_says_so() -> None:
    assert "No bound of the tangent sensitivity was computed." in render_html(AuditResult("m", "d", {}))


@pytest.mark.parametrize(
    "details", [{}, {"exact": "x", "log10": None}, {"path_active": 3, "absolute": {"value": "y"}, "ratio": -1.0}]
)
def test_odd_details_never_crash(details: dict[str, Any]) -> None:
    measures = [
        Measure(IDS[0], 4.0, "", "upper", "lower_is_safer", details=details),
        Measure(IDS[1], None, "", "upper", "lower_is_safer", details={**details, "infinite": True}),
    ]
    html = render_html(AuditResult("m", "d", {measure.id: measure for measure in measures}))
    assert "theorem 3.1" in html
