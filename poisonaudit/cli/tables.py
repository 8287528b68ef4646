"""Results as plain text tables for stdout; only stored results go in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from poisonaudit.cli.console import number, table
from poisonaudit.cli.failures import one_line
from poisonaudit.quantities import flat_outcome, quantity_of, unconverged
from poisonaudit.report.comparison import units
from poisonaudit.report.costs import cost_of
from poisonaudit.report.findings import finding
from poisonaudit.report.rivals import rivals
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
    lines += [told] if (told := origin_line([result])) else []
    lines += [told] if (told := unconverged_line(result)) else []
    if not result.predicted.get("valid"):
        why = "; ".join(str(reason) for reason in result.predicted.get("reasons") or ["no prediction is stored"])
        lines.append(f"* not predicted: {why}")
    lines += [one_line(f"poison: {note}") for note in result.notes]
    lines += [f"prediction: {note}" for note in result.predicted.get("notes") or ()]
    if cost_line(result):
        lines.append(cost_line(result))
    if result.hardening:
        lines += ["", hardening_table(result)]
    if rivals(finding(result)):
        lines += ["", baselines_table(result)]
    return "\n".join([*lines, *gate_lines(result.gates)])


def hardening_table(result: AttackResult) -> str:
    """The verified cost for variants of the victim."""
    keys = ("label", "rows", "kappa", "test_accuracy", "predicted", "value")
    cost = cost_of(result.verified_cost)
    over = "cost" if cost is None else cost.over
    headers = ["variant", "rows", "kappa", "test accuracy", f"predicted {over}", "verified"]
    stored = [entry for entry in result.hardening if isinstance(entry, Mapping)]
    return table(headers, [[entry.get(key) for key in keys] for entry in stored])


def comparison_text(comparison: Comparison) -> str:
    """Measures by model, worst model first; below it the attacks."""
    lines: list[str] = []
    if comparison.audits:
        names = list(dict.fromkeys(key for audit in comparison.audits for key in audit.measures))
        rows = [_line(name, [audit.measures.get(name) for audit in comparison.audits]) for name in names]
        lines.append(table(["measure (worst model first)", "kind", *comparison.labels()], rows, left=2))
        lines += [told for name in names if (told := _units(name, comparison))]
        if any(not m.valid and m.number is not None for audit in comparison.audits for m in audit.measures.values()):
            lines.append("* not valid; the report says why")
    named = zip(comparison.attack_labels(), comparison.attacks, strict=True)
    searched = [f"{attack.name} on {model}: {told}" for model, attack in named if (told := cost_line(attack))]
    if searched:
        lines += ["", *searched]
    if comparison.attacks:
        lines += ["", attacks_table(comparison.attacks, comparison.attack_labels())]
        lines += [told] if (told := origin_line(comparison.attacks)) else []
        pairs = zip(comparison.attack_labels(), comparison.attacks, strict=True)
        lines += [f"{attack.name} on {model}: {told}" for model, attack in pairs if (told := unconverged_line(attack))]
        if not all(attack.predicted.get("valid") for attack in comparison.attacks):
            lines.append("* not predicted: the estimate is not valid; the report says why")
    return "\n".join([*lines, *gate_lines(comparison.gates)])


def _line(name: str, measures: Sequence[Measure | None]) -> list[str]:
    """One measure over the models; where the kinds of its numbers differ, each number has its own behind it."""
    kinds = list(dict.fromkeys(m.kind for m in measures if m is not None and m.number is not None))
    first = next(m.kind for m in measures if m is not None)
    shown = [
        f"{cell(m)} ({m.kind})" if len(kinds) > 1 and m is not None and m.number is not None else cell(m)
        for m in measures
    ]
    return [name, " or ".join(kinds) or first, *shown]


def _units(name: str, comparison: Comparison) -> str:
    """A line where the numbers of a measure are in different units."""
    measures = [audit.measures.get(name) for audit in comparison.audits]
    if len(units(measures)) < 2:
        return ""
    named = zip(comparison.labels(), measures, strict=True)
    told = [f"{label} in {m.unit}" for label, m in named if m is not None and m.number is not None]
    return one_line(f"{name} is in different units and is not ranked together: {'; '.join(told)}")


def origin_line(attacks: Sequence[AttackResult]) -> str:
    """Where the figures of fresh seeds and of controls are counted from, where that is not the same; "" elsewhere."""
    found = [quantity_of(attack.recipe, attack.predicted, attack.retrained) for attack in attacks]
    counted = dict.fromkeys(each.key for each in found if each.key == each.paired)
    if not counted:
        return ""
    return (
        f"{', '.join(counted)}: each fresh seed is counted from the control of the same seed; the control itself from "
        "the clean weights, so it shows how far another seed alone leads"
    )


def unconverged_line(attack: AttackResult) -> str:
    """Which tight trainings, poisoned and control, missed their tolerance; "" where none did."""
    parts = []
    for side, stored in (("", attack.retrained), ("control ", attack.control)):
        for name, entries in (("warm", [stored.get("warm")]), ("fresh", stored.get("fresh") or [])):
            missed = unconverged(flat_outcome(entry) for entry in entries)
            count = "" if name == "warm" else f" {missed} of {len(entries)}"
            parts += [f"{side}{name}{count}"] * bool(missed)
    return f"did not converge, so that no number of theirs is counted: {', '.join(parts)}" if parts else ""


def attacks_table(attacks: Sequence[AttackResult], models: Sequence[str]) -> str:
    """One line per attack: its primary number as predicted, after warm and fresh retraining, and without poison."""
    rows = []
    for attack, model in zip(attacks, models, strict=True):
        key = quantity_of(attack.recipe, attack.predicted, attack.retrained).key
        fresh = _values(attack.retrained.get("fresh"), key)
        control = _values(attack.control.get("fresh"), key)
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
                _reached(attack.retrained),
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


def baselines_table(result: AttackResult) -> str:
    """The attack beside others on the same rows, budget and retraining."""
    found = finding(result)
    rows = []
    for line in rivals(found):
        seen = [line.tally.warm, line.tally.mean, line.tally.rate or "-"]
        if not line.applicable:
            seen = [None, None, "not applicable"]
        rows.append([line.name, *seen, line.gradients, line.seconds])
    headers = ["beside other attacks", f"warm {found.quantity.key}", "mean over fresh seeds", "reached", "gradients"]
    return table([*headers, "seconds"], rows)


def cost_line(result: AttackResult) -> str:
    """The smallest budget that retraining confirmed, a predicted one behind it; "" where none was searched."""
    cost = cost_of(result.verified_cost)
    if cost is None:
        return ""
    parts = [cost.amount, cost.bracket, cost.expected, cost.reason]
    return one_line(f"verified cost: {'; '.join(text for text in parts if text)}")


def _values(items: Any, key: str) -> list[float]:
    found = [item.get(key) for item in items or () if isinstance(item, Mapping)]
    return [float(value) for value in found if value is not None]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    return number(low) if low == high else f"{number(low)} .. {number(high)}"


def _reached(retrained: Mapping[str, Any]) -> str:
    warm = (retrained.get("warm") or {}).get("success")
    parts = [] if warm is None else [f"warm {number(bool(warm))}"]
    for name in ("fresh", "loose", "trainer"):
        found = [item.get("success") for item in retrained.get(name) or () if isinstance(item, Mapping)]
        known = [bool(success) for success in found if success is not None]
        if known:
            parts.append(f"{name} {sum(known)}/{len(known)}")
    return ", ".join(parts) or "-"
