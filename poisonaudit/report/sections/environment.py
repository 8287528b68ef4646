"""Versions, threads and device: what must agree for the numbers to agree bit for bit."""

from __future__ import annotations

from typing import Any

from poisonaudit.report.formats import flat
from poisonaudit.report.page import Page

# What is stored under a name that says less than it should.
_NAMES = {"deterministic": "torch.use_deterministic_algorithms"}
_NOTE = (
    "torch.use_deterministic_algorithms is a switch of torch that forbids operations without a repeatable form. It is "
    "not what makes the numbers repeat: every draw has its seed, and on the CPU the operations used here repeat bit "
    "for bit for the same number of threads."
)


def context(page: Page) -> dict[str, Any]:
    """Columns: the comparing process, then every distinct environment of a result."""
    columns: list[tuple[str, dict[str, str]]] = []
    if page.comparison.environment:
        columns.append(("this report", dict(flat(page.comparison.environment))))
    named = [(label, audit.environment) for label, audit in zip(page.labels, page.audits, strict=True)]
    named += [(found.label, found.attack.environment) for found in page.findings]
    for label, environment in named:
        entries = dict(flat(environment))
        same = next((i for i, (_, known) in enumerate(columns) if known == entries), None)
        if entries and same is None:
            columns.append((label, entries))
        elif entries and same is not None:
            columns[same] = (f"{columns[same][0]}, {label}", columns[same][1])
    names = list(dict.fromkeys(name for _, entries in columns for name in entries))
    rows = [(_NAMES.get(name, name), [entries.get(name, "not stated") for _, entries in columns]) for name in names]
    return {"columns": [label for label, _ in columns], "rows": rows, "note": _NOTE if "deterministic" in names else ""}
