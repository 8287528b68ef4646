"""The exact mean tangent sensitivity of every model under its upper bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from poisonaudit.report.bound_charts import bounds_chart
from poisonaudit.report.formats import figure, mapping_of, state
from poisonaudit.report.page import Page
from poisonaudit.results import AuditResult, Measure

# Charts of single models.
MOST_SINGLE = 6
# Measure, key in its details or "" for its own value, name in charts, what it is.
BOUNDS = (
    ("bound_path", "path_active", "path, active", "paths through units active in these rows; bounds their mean"),
    ("bound_path", "absolute", "absolute", "absolute path products, all units active; bounds every input"),
    ("bound_path", "", "path", "all paths, each worth the largest weights; bounds every input"),
    ("bound_theorem32", "", "theorem 3.2", "active units of these rows, corrected; bounds their mean"),
    ("bound_theorem32", "if_normal", "3.2, if normal", "the same, were the number of active units normal"),
    ("bound_theorem31", "", "theorem 3.1", "every layer as wide as the widest; bounds every input"),
)


def context(page: Page) -> dict[str, Any]:
    """A chart and a table for every model that has a bound."""
    found = [model(label, audit) for label, audit in zip(page.labels, page.audits, strict=True)]
    models = [each for each in found if each is not None]
    for position, each in enumerate(models[:MOST_SINGLE]):
        bars = [(row["name"], value_of(row), False) for row in each["rows"] if row["log10"] is not None]
        each["chart"] = bounds_chart(
            bars, each["exact"], key=f"tb{position}", title=f"Bounds of {each['label']}", line="exact mean"
        )
    return {"models": models, "most_single": MOST_SINGLE}


def model(label: str, audit: AuditResult) -> dict[str, Any] | None:
    """One model's exact mean and bounds, None without any."""
    rows, exact = [], None
    for measure, key, name, what in BOUNDS:
        stored = audit.measures.get(f"tangent.{measure}")
        if stored is None or state(stored) != "measured":
            continue
        details = mapping_of(stored.details)
        exact = exact if exact is not None else figure(details, "exact")
        shown = mapping_of(details.get(key)) if key else {**details, "value": stored.value}
        rows.append({"name": name, "what": what, **numbers(shown, stored if not key else None)})
    return {"label": label, "rows": rows, "exact": exact, "chart": None} if rows else None


def numbers(shown: Mapping[str, Any], measure: Measure | None) -> dict[str, float | None]:
    """Value, common logarithm and ratio; the logarithm from the value where none is stored."""
    value = figure(shown, "value")
    log10 = figure(shown, "log10")
    if log10 is None and value is not None and value > 0.0:
        log10 = math.log10(value)
    if value is None and measure is not None and measure.infinite:
        value = math.inf
    return {"value": value, "log10": log10, "ratio": figure(shown, "ratio")}


def value_of(row: Mapping[str, Any]) -> float:
    """The number to draw: infinite where float64 cannot hold it."""
    return row["value"] if row["value"] is not None else math.inf
