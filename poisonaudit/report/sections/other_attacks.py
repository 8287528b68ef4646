"""Every attack beside others on the same rows, with the same budget and the same retraining."""

from __future__ import annotations

from typing import Any

from poisonaudit.report.findings import Finding
from poisonaudit.report.page import Page
from poisonaudit.report.rivals import outdone, rivals


def context(page: Page) -> dict[str, Any]:
    """One block per attack that was run beside others."""
    blocks = [block(found) for found in page.findings if found.attack.baselines]
    return {"blocks": blocks, "without": [found.label for found in page.findings if not found.attack.baselines]}


def block(found: Finding) -> dict[str, Any]:
    """One attack's table, its own line first."""
    lines = rivals(found)
    return {
        "found": found,
        "lines": lines,
        "products": any(line.products is not None for line in lines),
        "accuracy": any(line.tally.accuracy for line in lines),
        "outdone": outdone(found),
    }
