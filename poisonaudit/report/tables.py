"""The same results as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from poisonaudit.quantities import flat_outcome
from poisonaudit.report.costs import cost_of
from poisonaudit.report.findings import Finding
from poisonaudit.report.formats import items_of, mapping_of, state
from poisonaudit.report.page import Page, Result, make_page
from poisonaudit.report.sections.detection import FIGURES, detectors, filtered_runs, rankings
from poisonaudit.report.trials import TRAININGS

CSV_COLUMNS = (
    "record", "model", "data", "attack", "stage", "seed", "id", "value", "unit", "kind", "direction", "status", "valid",
    "reason", "seconds",
)  # fmt: skip
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def render_json(result: Result, *, command: str = "", title: str | None = None) -> str:
    """The stored form of the result itself; `command` and `title` are accepted and not part of it."""
    return json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n"


def render_csv(result: Result, *, command: str = "", title: str | None = None) -> str:
    """One line per number, in full precision: `measure` lines of audits, `outcome` lines of attacks, `gate` lines.

    Infinite values read `inf`, missing ones are empty and have a status. Text that a spreadsheet would take for a
    formula gets a leading apostrophe.

    Args:
        result: what to list.
        command: accepted for the common signature; not part of the table.
        title: likewise.

    Returns:
        CSV with a header line; lines end with a line feed.
    """
    page = make_page(result, command, title)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for line in csv_lines(page):
        writer.writerow({key: cell(value) for key, value in line.items()})
    return buffer.getvalue()


def csv_lines(page: Page) -> Iterator[dict[str, Any]]:
    """Lines of the CSV table as dictionaries."""
    for audit in page.audits:
        for measure in audit.measures.values():
            yield {
                "record": "measure", "model": audit.model, "data": audit.data, "seed": audit.seed, "id": measure.id,
                "value": measure.number, "unit": measure.unit, "kind": measure.kind, "direction": measure.direction,
                "status": state(measure), "valid": measure.valid, "reason": measure.reason, "seconds": measure.seconds,
            }  # fmt: skip
    for found in page.findings:
        yield from outcome_lines(found)
    for gate in page.gates:
        yield {"record": "gate", "model": gate.subject, "id": gate.rule, "status": gate.outcome, "reason": gate.fact}


def outcome_lines(found: Finding) -> Iterator[dict[str, Any]]:
    """Every number of one attack: predicted, retrained, control, other attacks, detectors, inspection, cost."""
    attack = found.attack
    common = {"record": "outcome", "model": attack.model, "data": attack.data, "attack": attack.name}
    stages: list[tuple[str, Any]] = [("predicted", attack.predicted)]
    stages += trainings("retrained", attack.retrained) + trainings("control", attack.control)
    for name, stored in mapping_of(attack.baselines).items():
        body = mapping_of(stored)
        stages += [*trainings(f"baseline {name}", body.get("retrained")), (f"baseline {name} cost", body.get("cost"))]
    for name, stored in mapping_of(attack.detectors).items():
        body = mapping_of(stored)
        stages += [(f"detector {name}", {key: body.get(key) for key, _ in FIGURES} | {"flagged": body.get("flagged")})]
        warm, fresh = filtered_runs(body.get("filtered"))
        stages += trainings(f"filtered by {name}", {"warm": warm, "fresh": fresh})
    for order in rankings(found):
        recall = {f"recall_at.{share:g}": value for share, value in order.recall.items()}
        means = {"average_precision": order.precision, "expected_average_precision": order.by_chance}
        stages.append((f"inspection {order.name}", recall | means))
    for stage, stored in stages:
        outcome = flat_outcome(stored)
        for key, value in outcome.items():
            if key != "seed" and isinstance(value, int | float):
                line = {**common, "stage": stage, "seed": outcome.get("seed", ""), "id": key, "value": value}
                yield {**line, "status": "measured", "valid": found.valid if stage == "predicted" else ""}
    yield from remark_lines(found, common)
    yield {**common, "id": "standing", "status": found.standing, "reason": found.sentence}


def trainings(name: str, source: Any) -> list[tuple[str, Any]]:
    """(stage, outcome) of every stored training; a list that `fresh` repeats is told once."""
    stored = mapping_of(source)
    kinds = ["fresh", *(kind for kind in TRAININGS if stored.get(kind) != stored.get("fresh"))]
    runs = [(f"{name} {kind}", item) for kind in kinds for item in items_of(stored.get(kind))]
    return [(f"{name} warm", stored.get("warm")), *runs]


def remark_lines(found: Finding, common: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The verified cost, and what could not be run, with the reason; none of these is a pass."""
    cost = cost_of(found.attack.verified_cost)
    if cost is not None:
        known = {"value": cost.value, "lower": cost.lower, "predicted": cost.predicted}
        for key, value in known.items():
            line = {**common, "stage": "verified cost", "id": key, "value": value, "unit": cost.unit}
            status = "measured" if value is not None else "no value"
            yield {**line, "kind": cost.over, "status": status, "reason": cost.reason}
    for name, stored in mapping_of(found.attack.baselines).items():
        if mapping_of(stored).get("applicable") is False:
            why = str(mapping_of(stored).get("reason") or "")
            yield {**common, "stage": f"baseline {name}", "status": "not applicable", "reason": why}
    for detector in detectors(found):
        if not detector.applicable:
            stage = f"detector {detector.name}"
            yield {**common, "stage": stage, "status": "not applicable", "reason": detector.reason}


def cell(value: Any) -> Any:
    """A CSV cell: numbers in full, texts made harmless for spreadsheets."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        text = " ".join(value.splitlines())
        return "'" + text if text.startswith(_FORMULA_STARTS) else text
    return value
