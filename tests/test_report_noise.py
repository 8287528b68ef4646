"""Charts of weight noise in a report: what is drawn is what is stored, and odd details never crash."""

from __future__ import annotations

import re
from typing import Any

import pytest
from test_report_samples import HOSTILE

from poisonaudit.report import render_html
from poisonaudit.report.measures_guide import guide
from poisonaudit.report.noise_charts import (
    MOST_LAYERS,
    MOST_SINGLE,
    layer_chart,
    noise_charts,
    size_chart,
    stored_curve,
    stored_layers,
)
from poisonaudit.results import AuditResult, Measure

CURVE = {
    "rows": "9 test rows",
    "rho": [0.001, 0.1, 2.0],
    "rms": [0.0004, 0.04, 0.9], "rms_low": [0.0003, 0.03, 0.8], "rms_high": [0.0005, 0.05, 1.0],
    "flip_rate": [0.0, 0.01, 0.5], "flip_low": [0.0, 0.005, 0.4], "flip_high": [0.05, 0.02, 0.6],
}  # fmt: skip


def described(chart: Any) -> str:
    found = re.search(r"<desc[^>]*>(.*?)</desc>", str(chart), re.S)
    assert found
    return found[1]


def measure(name: str, **details: Any) -> Measure:
    return Measure(f"weight_noise.{name}", 0.04, "u", "estimate", "lower_is_safer", details=details)


def test_curves_tell_every_point() -> None:
    measures = [measure("rms", curve=CURVE), None, measure("rms")]
    (chart,) = noise_charts("weight_noise.rms", ["a", "b", "c"], measures, key="m1")
    text = described(chart)
    for words in ("0.0004 (0.0003 to 0.0005) at 0.1 %", "0.04 (0.03 to 0.05) at 10 %", "0.9 (0.8 to 1) at 200 %"):
        assert words in text
    assert "b:" not in text and "c:" not in text
    (flips,) = noise_charts("weight_noise.flip_rate", ["a"], [measure("flip_rate", curve=CURVE)], key="m2")
    assert "0.01 (0.005 to 0.02) at 10 %" in described(flips)
    assert {"fill-accent", "stroke-accent"} <= set(re.findall(r"(?:fill|stroke)-\w+", str(flips)))


def test_bars_are_logarithms_of_the_condition_numbers() -> None:
    chart = layer_chart([("a", 1.0), ("b", 10.0), ("c", 100.0)], key="k", title="t")
    paths = re.findall(r'<path d="M ([\d.]+) [^"]*?L ([\d.]+) [^"]*"[^>]*class="fill-accent', str(chart))
    ends = [max(map(float, path)) for path in paths]
    assert len(ends) == 3 and ends[1] - ends[0] == pytest.approx(ends[2] - ends[1], rel=1e-3)
    assert "a 1; b 10; c 100" in described(chart)


def test_bars_of_many_models_and_layers_are_limited() -> None:
    many = measure("condition_relative_max", median_by_layer={f"layer {i}": float(i) for i in range(60)})
    assert len(stored_layers(many)) == MOST_LAYERS and stored_layers(many)[-1] == ("layer 59", 59.0)
    charts = noise_charts("weight_noise.condition_relative_max", list("abcdef"), [many] * 6, key="m")
    assert len(charts) == MOST_SINGLE
    one = measure("condition_relative_max", median_by_layer={"only": 2.0})
    assert noise_charts("weight_noise.condition_relative_max", ["a"], [one], key="m") == []
    assert noise_charts("lipschitz.upper.l1", ["a"], [measure("rms", curve=CURVE)], key="m") == []


@pytest.mark.parametrize(
    "details",
    [
        {}, {"curve": None}, {"curve": {"rho": [0.1]}}, {"curve": {**CURVE, "rho": ["x", None, 2.0]}},
        {"curve": {**CURVE, "rms": None}}, {"median_by_layer": 3}, {"median_by_layer": {HOSTILE: 1.0, "b": None}},
        {"median_by_layer": {HOSTILE: 1.0, "b": 3.0}}, {"curve": {**CURVE, "flip_rate": [0.0, 0.0, 0.0]}},
    ],
)  # fmt: skip
def test_odd_details_never_crash(details: dict[str, Any]) -> None:
    names = ("rms", "flip_rate", "condition_relative_max")
    html = render_html(AuditResult("m", "d", {f"weight_noise.{name}": measure(name, **details) for name in names}))
    assert HOSTILE not in html and "Noise on the weights" in html


def test_infinite_and_missing_points_are_left_out() -> None:
    broken = {**CURVE, "rms": [0.0004, None, 0.9]}
    assert stored_curve(measure("rms", curve=broken), "rms")[0] == [0.001, 2.0]
    zero = ([0.1, 1.0], [0.0, 0.0], [0.0, 0.0], [0.05, 0.05])
    assert "0 (0 to 0.05) at 10 %" in described(size_chart([("a", zero)], "share", log=True, key="k"))


def test_words_tell_random_from_chosen_noise() -> None:
    assert "chosen noise" in guide("weight_noise.rms").does_not_mean
    assert "up to 6 %" in guide("weight_noise.flip_rate").does_not_mean
