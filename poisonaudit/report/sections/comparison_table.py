"""Models as columns, measures as rows; every cell says whether its number may be used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from poisonaudit.report.comparison import ORDER_RULE, badness, units
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
    told = units(measures)
    # Numbers in different units have no worst one.
    harm = [badness(measure) if len(told) == 1 else None for measure in measures]
    known = [value for value in harm if value is not None]
    worst = max(known) if len(known) > 1 and max(known) > min(known) else None
    kinds = kinds_of(measures)
    cells = [
        {
            **cell(measure, value is not None and value == worst, remarks),
            "beside": beside(name, measure, by_unit=len(told) > 1, by_kind=len(kinds) > 1),
        }
        for measure, value in zip(measures, harm, strict=True)
    ]
    return {
        "id": name,
        "name": guide(name).name,
        "unit": first.unit if not told else told[0] if len(told) == 1 else "different units, not ranked together",
        "kind": " or ".join(kinds),
        "direction": DIRECTIONS.get(first.direction, first.direction),
        "cells": cells,
        "worst": "worst valid" if any(cell["flagged"] for cell in cells) else "worst",
    }


def kinds_of(measures: Iterable[Measure | None]) -> list[str]:
    """What kinds the numbers of one measure are, each once; where no model has a number, what it would be."""
    known = [measure for measure in measures if measure is not None]
    shown = [measure for measure in known if measure.number is not None] or known[:1]
    return list(dict.fromkeys(KINDS.get(measure.kind, measure.kind) for measure in shown))


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


def beside(name: str, measure: Measure | None, *, by_unit: bool = False, by_kind: bool = False) -> str:
    """What stands behind a number in the same cell.

    Args:
        name: of the measure.
        measure: of one model.
        by_unit: whether the models' units differ.
        by_kind: whether the models' kinds differ.

    Returns:
        Its own unit or kind where they differ, and the predicted cost, which never stands without the verified one.
    """
    if measure is None or measure.number is None:
        return ""
    parts = [KINDS.get(measure.kind, measure.kind)] if by_kind else []
    parts += [measure.unit] if by_unit else []
    predicted = figure(measure.details, "predicted") if name == "attack.verified_cost" else None
    return "; ".join([*parts, *([] if predicted is None else [f"predicted: {number(predicted)}"])])


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
