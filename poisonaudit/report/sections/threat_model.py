"""Who the attacker is, what they may change and by how much, with the ids of public frameworks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from poisonaudit.report.findings import Finding
from poisonaudit.report.formats import figure, flat, items_of, mapping_of, number
from poisonaudit.report.page import Page

# Checked against the frameworks' own texts; the version is part of the id.
FRAMEWORKS = (
    ("MITRE ATLAS", "data release 5.6.0", "AML.T0020", "Poison Training Data"),
    ("OWASP Machine Learning Security Top Ten", "2023 edition, draft 0.3", "ML02:2023", "Data Poisoning Attack"),
    ("OWASP Machine Learning Security Top Ten", "2023 edition, draft 0.3", "ML10:2023", "Model Poisoning"),
    ("NIST AI Risk Management Framework", "1.0 (NIST AI 100-1)", "MEASURE 2.7",
     "AI system security and resilience are evaluated and documented"),
)  # fmt: skip
NORMS = {
    "linf": "largest change of any single feature",
    "l2": "Euclidean norm of a row's change",
    "l1": "sum of the changes of a row's features",
    "l0": "largest change of any single feature, of few features",
}


def context(page: Page) -> dict[str, Any]:
    """Frameworks and one budget row per attack."""
    budgets = [budget_row(found) for found in page.findings]
    norms = [(norm, words) for norm, words in NORMS.items() if any(row["norm"] == norm for row in budgets)]
    return {"frameworks": FRAMEWORKS, "budgets": budgets, "norms": norms}


def box_text(budget: Mapping[str, Any]) -> str:
    """The box in words; where it differs from column to column, by the range of each of its ends."""
    box = budget.get("box")
    if box is None:
        return "none" if "box" in budget else "not stated"
    ends = items_of(box)
    if len(ends) == 2 and any(items_of(end) or isinstance(end, str) for end in ends):
        told = ", ".join(f"{name} {end_text(end)}" for name, end in zip(("lower", "upper"), ends, strict=True))
        return f"per column: {told}"
    return ", ".join(text for _, text in flat(box)) or "not stated"


def end_text(end: Any) -> str:
    """One end of a box: a number, or the range of its numbers."""
    if isinstance(end, str):
        return end
    values = [value for value in nested(end) if isinstance(value, int | float)]
    if not values:
        return "without limit"
    low, high = min(values), max(values)
    return str(number(low)) if low == high else f"{number(low)} to {number(high)}"


def nested(value: Any) -> Iterator[Any]:
    """The leaves of nested lists."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from nested(item)
    else:
        yield value


def budget_row(found: Finding) -> dict[str, Any]:
    """One attack's goal and budget; what is not stored is shown as not stated."""
    attack = found.attack
    budget = mapping_of(attack.budget)
    objective = mapping_of(mapping_of(attack.recipe).get("objective"))
    norm = str(budget.get("norm") or "not stated")
    share = figure(budget, "share")
    known = {"rows", "share", "norm", "radius", "unit", "box", "choice"}
    return {
        "label": found.label,
        "model": found.model,
        "data": attack.data,
        "goal": found.quantity.goal,
        "details": [(k, v) for k, v in flat(objective) if k != "kind" and v != "not stated"][:6],
        "rows": len(attack.rows) or figure(budget, "rows"),
        "share": None if share is None else f"{number(100 * share, 3)} %",
        "norm": norm,
        "radius": figure(budget, "radius"),
        "unit": str(budget.get("unit") or ""),
        "box": box_text(budget),
        "choice": ", ".join(text for _, text in flat(budget.get("choice"))) or "not stated",
        # What a budget does not restrict is left out, or it would crowd out what it does.
        "others": flat({k: v for k, v in budget.items() if k not in known and v not in (None, [], {})})[:6],
    }
