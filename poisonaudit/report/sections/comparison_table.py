"""Models as columns, measures as rows; every cell says whether its number may be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from poisonaudit.report.comparison import ORDER_RULE, badness
from poisonaudit.report.formats import figure, number, state, usable
from poisonaudit.report.measures_guide import by_family, family_title, guide
from poisonaudit.report.page import Page
from poisonaudit.results import Measure

KINDS = {
    "exact": "exact",
    "upper": "upper bound",
    "lower": "lower bound",
    "estimate": "estimate",
    "statistic": "statistic",
}
DIRECTIONS = {"lower_is_safer": "lower is safer", "higher_is_safer": "higher is safer", "neutral": "for information"}


def context(page: Page) -> dict[str, Any]:
    """Families of rows, and the numbered remarks that cells refer to."""
    remarks: dict[str, int] = {}
    families = [
        (family_title(family), [table_row(page, name, remarks) for name in names])
        for family, names in by_family(page.measure_ids).items()
    ]
    return {
        "labels": page.labels,
        "data": [audit.data for audit in page.audits],
        "facts": model_facts(page),
        "families": families,
        "remarks": [(number, text) for text, number in remarks.items()],
        "order_rule": ORDER_RULE if len(page.audits) > 1 else "",
        "same_data": len({audit.data for audit in page.audits}) <= 1,
    }


def table_row(page: Page, name: str, remarks: dict[str, int]) -> dict[str, Any]:
    """One measure over the models."""
    measures = [audit.measures.get(name) for audit in page.audits]
    first = next(measure for measure in measures if measure is not None)
    harm = [badness(measure) for measure in measures]
    known = [value for value in harm if value is not None]
    worst = max(known) if len(known) > 1 and max(known) > min(known) else None
    cells = [
        {**cell(measure, value is not None and value == worst, remarks), "beside": beside(name, measure)}
        for measure, value in zip(measures, harm, strict=True)
    ]
    return {
        "id": name,
        "name": guide(name).name,
        "unit": first.unit,
        "kind": KINDS.get(first.kind, first.kind),
        "direction": DIRECTIONS.get(first.direction, first.direction),
        "cells": cells,
        "worst": "worst valid" if any(cell["flagged"] for cell in cells) else "worst",
    }


def cell(measure: Measure | None, worst: bool, remarks: dict[str, int]) -> dict[str, Any]:
    """What one cell shows."""
    shown = state(measure)
    flagged = shown == "measured" and not usable(measure)
    reason = measure.reason if measure is not None else ""
    return {
        "state": shown,
        "value": measure.number if measure is not None and shown == "measured" else None,
        "flagged": flagged,
        "worst": worst,
        "remark": remarks.setdefault(reason, len(remarks) + 1) if reason else None,
        "reason": reason,
    }


def beside(name: str, measure: Measure | None) -> str:
    """What stands behind a verified number of rows in the same cell: the predicted one, which never stands alone."""
    if name != "attack.verified_cost" or measure is None or measure.number is None:
        return ""
    predicted = figure(measure.details, "predicted")
    return "" if predicted is None else f"predicted: {number(predicted)}"


def model_facts(page: Page) -> list[dict[str, Any]]:
    """Loss, decay, accuracies and the like, where the recipes say so: rows of a small table."""
    wanted = {
        "loss": "Loss",
        "decay": "Weight decay",
        "rows": "Training rows",
        "parameters": "Parameters",
        "dtype": "Precision",
        "train_accuracy": "Training accuracy",
        "test_accuracy": "Test accuracy",
        "seed": "Training seed",
    }
    rows = [{"name": text, "values": recipe_values(page, key)} for key, text in wanted.items()]
    return [row for row in rows if any(value is not None for value in row["values"])]


def recipe_values(page: Page, key: str) -> Sequence[Any]:
    """One recipe entry per model, plain values only."""
    values = [audit.recipe.get(key) if isinstance(audit.recipe, Mapping) else None for audit in page.audits]
    return [value if isinstance(value, str | int | float) else None for value in values]
