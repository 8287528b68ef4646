"""Results as plain text tables for stdout; only stored results go in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from poisonaudit.cli.console import number, table
from poisonaudit.results import AttackResult, AuditResult, Comparison, GateOutcome, Measure


def audit_text(result: AuditResult) -> str:
    """One line per measure, then the gates."""
    rows = [(m.id, cell(m), m.kind, _remark(m) or m.unit) for m in result.measures.values()]
    lines = [f"{result.model} on {result.data}", ""]
    lines.append(table(["measure", "value", "kind", "unit, or why there is no valid number"], rows, left=4))
    if any(not m.valid and m.number is not None for m in result.measures.values()):
        lines.append("* not valid; the report says why in full")
    return "\n".join([*lines, *gate_lines(result.gates)])


def attack_text(result: AttackResult) -> str:
    """Predicted, warm, fresh and control side by side."""
    budget = result.budget
    amount = f"{len(result.rows)} rows, {budget.get('norm')} radius {number(budget.get('radius'))}"
    lines = [f"{result.name}: {result.model} on {result.data}, {amount}", "", attacks_table([result], [result.model])]
    if not result.predicted.get("valid"):
        why = "; ".join(str(reason) for reason in result.predicted.get("reasons") or ["no prediction is stored"])
        lines.append(f"* not predicted: {why}")
    return "\n".join([*lines, *cost_lines(result), *gate_lines(result.gates)])


def cost_lines(result: AttackResult) -> list[str]:
    """The verified cost in one line, and a table of the victim's variants."""
    cost = result.verified_cost
    if not cost:
        return []
    if cost.get("value") is None:
        lines = ["", f"verified cost: none; {cost.get('reason')}"]
    else:
        said = f"{cost.get('over')} {number(cost['value'])}"
        bracket = f"largest failure below it {number(cost.get('lower'))}, predicted {number(cost.get('predicted'))}"
        lines = ["", f"verified cost: {said}; {bracket}; unit: {cost.get('unit')}", str(cost.get("reason"))]
    if result.hardening:
        keys = ("label", "rows", "kappa", "test_accuracy", "predicted", "value")
        headers = ["variant", "rows", "kappa", "test accuracy", f"predicted {cost.get('over')}", "verified"]
        lines += ["", table(headers, [[entry.get(key) for key in keys] for entry in result.hardening])]
    return lines


def comparison_text(comparison: Comparison) -> str:
    """Measures by model, worst model first; below it the attacks."""
    lines: list[str] = []
    if comparison.audits:
        names = list(dict.fromkeys(key for audit in comparison.audits for key in audit.measures))
        rows = [[name, *(cell(audit.measures.get(name)) for audit in comparison.audits)] for name in names]
        lines.append(table(["measure (worst model first)", *comparison.labels()], rows))
        if any(not m.valid and m.number is not None for audit in comparison.audits for m in audit.measures.values()):
            lines.append("* not valid; the report says why")
    if comparison.attacks:
        lines += ["", attacks_table(comparison.attacks, comparison.attack_labels())]
        if not all(attack.predicted.get("valid") for attack in comparison.attacks):
            lines.append("* not predicted: the estimate is not valid; the report says why")
    return "\n".join([*lines, *gate_lines(comparison.gates)])


def attacks_table(attacks: Sequence[AttackResult], models: Sequence[str]) -> str:
    """One line per attack: movement or margin as predicted, after warm and fresh retraining, and without poison."""
    rows = []
    for attack, model in zip(attacks, models, strict=True):
        key = "movement" if "movement" in attack.predicted else "margin"
        fresh = _values(attack.retrained.get("fresh", ()), key)
        control = _values(attack.control.get("fresh", ()), key)
        warm = (attack.retrained.get("warm") or {}).get(key)
        rows.append(
            [
                attack.name,
                model,
                key,
                _predicted(attack, key),
                warm,
                _spread(fresh),
                fmean(control) if control else (attack.control.get("warm") or {}).get(key),
                _successes(attack),
            ]
        )
    headers = ["attack", "model", "figure", "predicted", "warm", "fresh seeds", "control", "reached"]
    return table(headers, rows, left=3)


def _predicted(attack: AttackResult, key: str) -> str:
    """The predicted figure; an asterisk where the prediction is not valid."""
    value = attack.predicted.get(key)
    if value is None:
        return "-"
    return number(float(value)) if attack.predicted.get("valid") else f"{number(float(value))} *"


def gate_lines(gates: Sequence[GateOutcome]) -> list[str]:
    """The outcome of every `--fail-on` rule."""
    if not gates:
        return []
    return ["", *(f"{gate.outcome}  {gate.rule}  {gate.subject}  {gate.fact}".replace("    ", "  ") for gate in gates)]


def cell(measure: Measure | None) -> str:
    """A measure's value, or in a word why there is none; an asterisk marks values that are not valid."""
    if measure is None:
        return "-"
    value = measure.number
    if value is None:
        return measure.status if measure.status != "measured" else "-"
    text = "infinite" if math.isinf(value) else number(float(value))
    return text if measure.valid else f"{text} *"


def _remark(measure: Measure) -> str:
    text = measure.reason if not measure.valid or measure.number is None else ""
    return text if len(text) <= 140 else text[:139] + "…"


def _values(items: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float(item[key]) for item in items if item.get(key) is not None]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    return number(low) if low == high else f"{number(low)} .. {number(high)}"


def _successes(attack: AttackResult) -> str:
    found = [item.get("success") for item in attack.retrained.get("fresh", ()) if item.get("success") is not None]
    warm = (attack.retrained.get("warm") or {}).get("success")
    parts = [] if warm is None else [f"warm {number(bool(warm))}"]
    if found:
        parts.append(f"fresh {sum(map(bool, found))}/{len(found)}")
    return ", ".join(parts) or "-"
