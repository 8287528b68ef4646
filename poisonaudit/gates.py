"""`--fail-on ID<VALUE`: thresholds that decide PASS, FAIL or INCONCLUSIVE over stored results."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from poisonaudit.errors import UsageError, counted
from poisonaudit.quantities import (
    ROWS_UNIT,
    flat_outcome,
    quantity_of,
    unconverged,
    unconverged_controls,
    verified_budget,
)
from poisonaudit.registry import unknown_name
from poisonaudit.results import AttackResult, AuditResult, Direction, GateOutcome, Measure

ATTACK_MEASURES: dict[str, str] = {
    "attack.movement": "share of the way to the target weights",
    "attack.flip_success": "share of fresh retrainings that give the wanted prediction",
    # A single attack has it where its smallest budget was searched, in the unit of what was searched; `compare` takes
    # the cheapest of several in one unit.
    "attack.verified_cost": "training rows, or the radius of each row",
}
_RULE = re.compile(r"\s*([A-Za-z][A-Za-z0-9_.-]*)\s*([<>])\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Gate:
    """One rule; crossing the threshold in the direction of `operator` fails.

    Attributes:
        id: of the gated measure.
        operator: "<" or ">".
        threshold: finite number.
        rule: as the user wrote it.
    """

    id: str
    operator: Literal["<", ">"]
    threshold: float
    rule: str

    def crossed(self, number: float) -> bool:
        """Whether a number (infinity allowed) crosses the threshold."""
        return number < self.threshold if self.operator == "<" else number > self.threshold


def parse_gate(text: str, known: Iterable[str] | None = None) -> Gate:
    """Read `ID<VALUE` or `ID>VALUE`.

    Args:
        text: the rule.
        known: ids that exist; None for all measures of this installation and the attack measures.

    Returns:
        The gate.

    Raises:
        UsageError: PA320, the rule is malformed; PA301, no measure has that id.
    """
    match = _RULE.fullmatch(text)
    if match is None or not math.isfinite(float(match[3])):
        raise UsageError(
            "PA320",
            f"--fail-on {text!r} is not a rule. A rule is one id, < or >, and one finite number. "
            "Write for example 'solution.poison_budget<0.5' or 'attack.movement>0.3'.",
        )
    ids = list(_all_ids() if known is None else known)
    if match[1] not in ids:
        raise unknown_name(match[1], ids, "measure in --fail-on:")
    return Gate(match[1], "<" if match[2] == "<" else ">", float(match[3]), text.strip())


def evaluate(
    gate: Gate,
    result: AuditResult | AttackResult | Mapping[str, Measure] | Iterable[Measure],
    subject: str | None = None,
) -> GateOutcome:
    """Apply a rule.

    Args:
        gate: the rule.
        result: an audit, an attack, or measures joined from several of them.
        subject: what the outcome is about; the result's own name by default.

    Returns:
        FAIL where the number crosses the threshold (infinity compares as infinity), PASS where it does not,
        INCONCLUSIVE where there is no valid number.
    """
    name = _name(result) if subject is None else subject
    measure = _measures(result).get(gate.id)
    if measure is None:
        return GateOutcome(gate.rule, "INCONCLUSIVE", f"{gate.id} was not measured", name)
    number = measure.number
    if measure.status != "measured":
        fact = f"{gate.id} has no number ({measure.status}): {measure.reason or 'no reason given'}"
        return GateOutcome(gate.rule, "INCONCLUSIVE", fact, name)
    if not measure.valid or number is None or math.isnan(number):
        fact = f"{gate.id} is not valid: {measure.reason or 'it has no value'}"
        return GateOutcome(gate.rule, "INCONCLUSIVE", fact, name)
    said = "infinite" if math.isinf(number) else f"{number:.6g}"
    if measure.id == "attack.verified_cost":
        # A number of rows and a radius are gated by the same rule: the unit decides what the rule meant.
        said += f" ({measure.unit}{_with(measure.details.get('beside'))})"
    if gate.crossed(number):
        way = "below" if gate.operator == "<" else "above"
        return GateOutcome(gate.rule, "FAIL", f"{gate.id} is {said}, {way} {gate.threshold:g}", name)
    untried = _untried(gate, measure)
    if untried:
        return GateOutcome(gate.rule, "INCONCLUSIVE", f"{gate.id} is at most {said}, and {untried}", name)
    way = "not below" if gate.operator == "<" else "not above"
    return GateOutcome(gate.rule, "PASS", f"{gate.id} is {said}, {way} {gate.threshold:g}", name)


def _untried(gate: Gate, measure: Measure) -> str:
    """Why a verified cost does not pass although it is not below the threshold; "" where it does.

    What an attack needs is at most the budget that was confirmed, and more than the largest that was seen to fail.

    Args:
        gate: the rule.
        measure: what it is applied to.

    Returns:
        The end of a sentence.
    """
    if measure.id != "attack.verified_cost" or gate.operator != "<":
        return ""
    lower = _number(measure.details, "lower")
    if lower is None:
        return f"no smaller budget was shown to fail, so that the cost may lie below {gate.threshold:g}"
    # Rows are whole numbers: where 9 fail, 10 is the least that can succeed.
    least = lower + 1 if measure.unit == ROWS_UNIT else lower
    if least >= gate.threshold:
        return ""
    return f"{lower:.6g} is the largest that was shown to fail, so that the cost may lie below {gate.threshold:g}"


def attack_measures(result: AttackResult) -> list[Measure]:
    """What an attack run adds to the comparison of models, from its retrainings.

    `attack.movement` (attacks toward target weights): mean over fresh retrainings, the warm one where there are none.
    `attack.flip_success` (attacks on predictions): share of fresh retrainings with success; without fresh ones it
    has no valid value. Retrainings that did not converge count, and make the measure invalid.
    `attack.verified_cost` (where the smallest budget was searched): the rows, or the radius, at which success was
    confirmed; its unit says which, and `details.beside` the rest of the budget.

    Args:
        result: of one attack.

    Returns:
        The measures that this kind of attack has, possibly none.
    """
    quantity = quantity_of(result.recipe, result.predicted, result.retrained)
    warm = flat_outcome(result.retrained.get("warm"))
    fresh = [flat_outcome(entry) for entry in result.retrained.get("fresh") or ()]
    loose = unconverged(fresh or [warm])
    found = []
    moved = any(_number(entry, "movement") is not None for entry in [warm, *fresh])
    if quantity.measure == "attack.movement" and moved:
        found.append(_movement(result, warm, fresh, loose, unconverged_controls(result.control, of_fresh=bool(fresh))))
    judged = any(entry.get("success") is not None for entry in [warm, *fresh])
    if quantity.measure == "attack.flip_success" and judged:
        found.append(_flip_success(result, warm, fresh, loose))
    if result.verified_cost:
        found.append(_verified_cost(result))
    return found


def _movement(
    result: AttackResult,
    warm: Mapping[str, Any],
    fresh: Sequence[Mapping[str, Any]],
    loose: int,
    controls: int,
) -> Measure:
    of_fresh = [value for entry in fresh if (value := _number(entry, "movement")) is not None]
    values = of_fresh or [value for value in [_number(warm, "movement")] if value is not None]
    details = {
        "source": "fresh" if of_fresh else "warm",
        "fresh": of_fresh,
        "warm": _number(warm, "movement"),
        "predicted": _number(flat_outcome(result.predicted), "movement"),
    }
    lost = len(fresh) - len(of_fresh)
    return _attack_measure("attack.movement", statistics.fmean(values), _doubts(loose, lost, controls), details)


def _flip_success(
    result: AttackResult, warm: Mapping[str, Any], fresh: Sequence[Mapping[str, Any]], loose: int
) -> Measure:
    wins = [bool(entry["success"]) for entry in fresh if entry.get("success") is not None]
    details = {
        "fresh": wins,
        "warm": warm.get("success"),
        "predicted": flat_outcome(result.predicted).get("success"),
    }
    if not wins:
        return _attack_measure("attack.flip_success", None, "no fresh retraining was made", details)
    return _attack_measure(
        "attack.flip_success", statistics.fmean(wins), _doubts(loose, len(fresh) - len(wins)), details
    )


def _verified_cost(result: AttackResult) -> Measure:
    cost, found = result.verified_cost, verified_budget(result.verified_cost, result.budget, result.rows)
    details = {key: cost.get(key) for key in ("over", "value", "unit", "lower", "upper", "predicted")}
    none = str(cost.get("reason") or "retraining confirmed success at no budget tried")
    return Measure(
        "attack.verified_cost",
        found.value,
        found.unit,
        "upper",
        "higher_is_safer",
        found.value is not None,
        "" if found.value is not None else none,
        {"status": "measured", **details, "beside": found.beside},
    )


def _with(beside: Any) -> str:
    return f"; with {beside}" if beside else ""


def _attack_measure(name: str, value: float | None, doubts: str, details: Mapping[str, Any]) -> Measure:
    direction: Direction = "lower_is_safer"
    behind = {"status": "measured", **details}
    return Measure(name, value, ATTACK_MEASURES[name], "statistic", direction, not doubts, doubts, behind)


def _doubts(loose: int, lost: int, controls: int = 0) -> str:
    parts = []
    if loose:
        parts.append(f"{counted(loose, 'retraining')} did not converge")
    if controls:
        parts.append(f"{counted(controls, 'control')} did not converge")
    if lost:
        parts.append(f"{counted(lost, 'retraining')} gave no number")
    return "; ".join(parts)


def _number(entry: Mapping[str, Any], key: str) -> float | None:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _measures(result: AuditResult | AttackResult | Mapping[str, Measure] | Iterable[Measure]) -> dict[str, Measure]:
    if isinstance(result, AuditResult):
        return dict(result.measures)
    if isinstance(result, AttackResult):
        return {measure.id: measure for measure in attack_measures(result)}
    if isinstance(result, Mapping):
        return dict(result)
    return {measure.id: measure for measure in result}


def _name(result: object) -> str:
    if isinstance(result, AuditResult):
        return result.model
    return result.name if isinstance(result, AttackResult) else ""


def _all_ids() -> list[str]:
    # Only when a rule is read: the measures bring torch with them.
    from poisonaudit.audit import known_measures

    return [*known_measures(), *ATTACK_MEASURES]
