"""How the poison does by each way of training, as a plain text table; only stored results go in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poisonaudit.cli.console import number, table
from poisonaudit.report.tally import unrounded
from poisonaudit.results import AttackResult

_NAMES = {"tight": "tight", "loose": "loose", "trainer": "own"}


def trainings_text(result: AttackResult) -> str:
    """One line per way of training from fresh seeds: the paired change, its test, successes, accuracy.

    Args:
        result: of one attack.

    Returns:
        The table, what was left out and what else there is to know; empty where nothing was trained from fresh seeds.
    """
    summary = _mapping(result.retrained.get("summary"))
    groups = {name: _mapping(summary.get(kind)) for kind, name in _NAMES.items()}
    valid = summary.get("not_predicted") is None
    rows = [[name, *_cells(group, valid)] for name, group in groups.items() if group]
    notes = [f"not trained: {note}" for note in summary.get("notes") or ()]
    notes += [str(remark) for remark in summary.get("remarks") or ()]
    if not rows:
        return "\n".join(notes)
    headers = [
        "training",
        "change from control",
        "mean",
        "st. error",
        "p",
        "/ predicted",
        "reached",
        "control",
        "accuracy",
    ]
    return "\n".join([table(headers, rows, left=2), *notes])


def _cells(group: Mapping[str, Any], valid: bool) -> list[Any]:
    paired = _mapping(group.get("paired"))
    key = next(iter(paired), "-")
    change = _mapping(paired.get(key))
    ratio = _mapping(change.get("ratio")).get("median")
    return [
        key,
        change.get("mean"),
        change.get("standard_error"),
        _mapping(change.get("test")).get("p_value"),
        ratio if valid or ratio is None else f"{number(ratio)} *",
        _rate(group.get("success")),
        _rate(group.get("control_success")),
        _signed(_mapping(group.get("accuracy_change")).get("mean")),
    ]


def _rate(stored: Any) -> str:
    rate = _mapping(stored)
    return f"{rate['successes']}/{rate['trials']}" if rate else "-"


def _signed(value: float | None) -> str:
    if value is None:
        return "-"
    value = unrounded(float(value))
    return f"{value:+.3f}" if value else number(0.0)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
