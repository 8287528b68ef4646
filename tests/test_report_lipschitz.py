"""Charts and tables of Lipschitz bounds: what is drawn is what is stored, and missing pieces are told."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
from test_report_samples import HOSTILE, audits

from poisonaudit.report import compare, render_html
from poisonaudit.report.bound_charts import bounds_chart, bracket_chart, curve_chart, span, ticks
from poisonaudit.report.page import make_page
from poisonaudit.report.sections import SECTIONS
from poisonaudit.report.sections.lipschitz_bounds import context
from poisonaudit.results import AuditResult, Measure


def described(chart: Any) -> str:
    found = re.search(r"<desc[^>]*>(.*?)</desc>", str(chart), re.S)
    assert found
    return found[1]


def bars(chart: Any) -> list[float]:
    """Where filled or framed rectangles end, in points of the chart."""
    paths = re.findall(r'<path d="M ([\d.]+) [^"]*?L ([\d.]+) [^"]*"[^>]*class="fill-(?:paper|second)', str(chart))
    return [max(map(float, path)) for path in paths]


def test_brackets_tell_both_ends_and_what_is_missing() -> None:
    labels = ["a", f"b {HOSTILE}", "c", "d", "e"]
    pairs = [(1.5, 30.0), (None, 250.0), (2.0, math.inf), (None, None), (0.0, 40.0)]
    chart = bracket_chart(labels, pairs, key="k", name="sum norm")
    text = described(chart)
    for words in ("a: 1.5 to 30", "? to 250", "c: 2 to ∞", "d: ? to ?", "e: 0 to 40"):
        assert words in text
    assert HOSTILE not in str(chart)
    assert bracket_chart(["a"], [(None, math.inf)], key="k", name="n") is None


def test_bars_are_as_long_as_logarithms() -> None:
    bounds = [("K*", 1000.0, False), ("K₁", 100.0, False), ("K₅", 10.0, False), ("certified", 10.0, True)]
    chart = bounds_chart(bounds, 5.0, key="k", title="t")
    ends = bars(chart)
    assert len(ends) == 4 and ends[2] == pytest.approx(ends[3], abs=0.01)
    assert ends[0] - ends[1] == pytest.approx(ends[1] - ends[2], rel=1e-3)
    assert "certified 10 (certified)" in described(chart) and "lower bound 5" in described(chart)
    assert str(chart).count("fill-second") == 1  # the certified one alone is filled
    assert bounds_chart([("K*", math.inf, False)], None, key="k", title="t") is None


@pytest.mark.parametrize("numbers", [[29.87], [1e-9, 1e12], [3.0, 3.1], [60.0, 160.0], [0.2, 9.0], [1e300]])
def test_every_axis_has_ticks_and_room(numbers: list[float]) -> None:
    low, high = span(numbers)
    assert low < min(numbers) <= max(numbers) < high
    assert 2 <= len(ticks(low, high)) <= 6 and all(low <= tick <= high for tick in ticks(low, high))


def test_curves_are_told_and_end_at_zero() -> None:
    chart = curve_chart([("a", [0.0, 0.1, 0.2], [0.9, 0.5, 0.3]), ("b", [0.0, 0.05], [0.8, 0.1])], key="k", title="t")
    text = described(chart)
    assert "a: accuracy 0.9, at least half of it certified up to 0.1" in text
    assert "b: accuracy 0.8, at least half of it certified up to 0" in text
    assert {"stroke-accent", "stroke-second"} <= set(re.findall(r"stroke-\w+", str(chart)))


def test_the_section_shows_stored_numbers() -> None:
    found = context(make_page(compare(audits())))
    (bracket,) = found["brackets"]  # only one norm is stored
    row = next(row for row in bracket["rows"] if row["label"].startswith("mlp:64"))
    assert (row["lower"], row["upper"], row["winner"]) == (98.7, 211.9, "ellipsoid")
    assert row["ratio"] == pytest.approx(211.9 / 98.7)
    (norm,) = next(model for model in found["models"] if model["label"].startswith("mlp:64"))["norms"]
    values = {row["id"]: row["value"] for row in norm["rows"]}
    assert values["k5"] == 688.3 and values["certified"] == 211.9 and values["k2"] is None and values["exact"] is None
    assert "K₂" not in described(norm["chart"]) and "K₅ 688.3" in described(norm["chart"])
    curve = next(row for row in found["curves"]["rows"] if row["label"].startswith("mlp:64"))
    assert curve["points"][0] == (0.0, 0.95) and curve["points"][-1] == (0.02, 0.0) and curve["median"] == 0.0104


@pytest.mark.parametrize(
    "details",
    [{}, {"k1": "x", "curve": 3}, {"curve": {"radius": [0.0], "certified_accuracy": None}}, {"restarts": ["a", "b"]}],
)
def test_odd_details_never_crash(details: dict[str, Any]) -> None:
    measures = [
        Measure("lipschitz.upper.l1", 4.0, "", "upper", "lower_is_safer", details=details),
        Measure("lipschitz.upper.linf", None, "", "upper", "lower_is_safer", details={**details, "infinite": True}),
        Measure("lipschitz.certified_radius_median", 0.1, "", "lower", "higher_is_safer", details=details),
    ]
    html = render_html(AuditResult("m", "d", {measure.id: measure for measure in measures}))
    assert "Which bound gave what" in html and ("restarted at 2 nodes" in html) == ("restarts" in details)


def test_without_bounds_the_section_says_so() -> None:
    bare = dataclasses.replace(audits()[0], measures={})
    assert "No Lipschitz bound was computed." in render_html(bare)
    assert "lipschitz-bounds" in SECTIONS
