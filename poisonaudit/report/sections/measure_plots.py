"""A chart and a table per measure, grouped by family, each with what it means and what it does not mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from poisonaudit.report.charts import measure_chart
from poisonaudit.report.comparison import units
from poisonaudit.report.evidence import foresight
from poisonaudit.report.formats import flat, number, state, usable
from poisonaudit.report.layer_chart import layer_chart
from poisonaudit.report.measures_guide import by_family, family_title, guide
from poisonaudit.report.noise_charts import noise_charts
from poisonaudit.report.page import Page
from poisonaudit.report.sections.comparison_table import DIRECTIONS, kinds_of
from poisonaudit.results import Measure

MOST_MODELS = 24
MOST_DETAILS = 24
# Shown elsewhere, or too long to read.
_NOT_HERE = {"fragile", "status", "infinite", "curve"}


def context(page: Page) -> dict[str, Any]:
    """Families of cards; a measure without any number gets a sentence instead of an empty chart."""
    position = {name: i for i, name in enumerate(page.measure_ids)}
    families = {
        family: [card(page, name, position[name]) for name in names]
        for family, names in by_family(page.measure_ids).items()
    }
    return {
        "families": [
            {
                "title": family_title(family),
                "cards": [card for card in cards if card["chart"] is not None],
                "silent": [card for card in cards if card["chart"] is None],
            }
            for family, cards in families.items()
        ],
        "left_out": max(len(page.audits) - MOST_MODELS, 0),
        "most": MOST_MODELS,
    }


def card(page: Page, name: str, position: int) -> dict[str, Any]:
    """One measure."""
    measures = [audit.measures.get(name) for audit in page.audits]
    first = next(measure for measure in measures if measure is not None)
    words = guide(name)
    rows = [row(label, measure) for label, measure in zip(page.labels, measures, strict=True)]
    some = any(measure is not None and state(measure) == "measured" for measure in measures)
    chart = layers = None
    told = units(measures)
    if some and len(told) < 2:
        labels, drawn = page.labels[:MOST_MODELS], measures[:MOST_MODELS]
        chart = measure_chart(labels, drawn, key=f"m{position}", name=words.name)
        parts = [None if measure is None else measure.details.get("by_layer") for measure in drawn]
        layers = layer_chart(labels, parts, key=f"m{position}layers", name=words.name)
    return {
        "id": name,
        "words": words,
        "foresight": foresight(name),
        "unit": first.unit if not told else " or ".join(told),
        "kind": " or ".join(kinds_of(measures)),
        "direction": DIRECTIONS.get(first.direction, first.direction),
        "rows": rows,
        "chart": chart,
        "layers": layers,
        "more": noise_charts(name, page.labels, measures, key=f"m{position}"),
        "why_not": several_units(page.labels, measures) if len(told) > 1 else "" if some else why_not(rows),
    }


def several_units(labels: Sequence[str], measures: Sequence[Measure | None]) -> str:
    """The numbers of a measure that has no common unit, one by one."""
    told = [
        f"{label}: {number(measure.number)} {measure.unit}"
        for label, measure in zip(labels, measures, strict=True)
        if measure is not None and measure.number is not None
    ]
    return f"numbers in different units, which are not ranked together: {'; '.join(told)}."


def why_not(rows: list[dict[str, Any]]) -> str:
    """Why no model has a number, each reason told once."""
    reasons: dict[str, list[str]] = {}
    for line in rows:
        text = line["reason"] if line["state"] in line["reason"] else f"{line['state']}: {line['reason']}"
        reasons.setdefault(text.rstrip(": ."), []).append(line["label"])
    if len(reasons) == 1:
        return f"no number for any model; {next(iter(reasons))}."
    return "no number for any model; " + " ".join(f"{', '.join(labels)}: {text}." for text, labels in reasons.items())


def row(label: str, measure: Measure | None) -> dict[str, Any]:
    """One model's line in the table beside the chart."""
    shown = state(measure)
    return {
        "label": label,
        "state": shown,
        "value": measure.number if measure is not None and shown == "measured" else None,
        "flagged": shown == "measured" and not usable(measure),
        "reason": measure.reason if measure is not None else "",
        "seconds": measure.seconds if measure is not None else None,
        "details": details(measure),
    }


def details(measure: Measure | None) -> list[tuple[str, str]]:
    """What stands behind a number, short enough to read."""
    if measure is None:
        return []
    return flat({key: value for key, value in measure.details.items() if key not in _NOT_HERE})[:MOST_DETAILS]
