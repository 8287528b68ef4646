"""Thresholds: a crossed one fails, a missing or invalid number never passes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from poisonaudit.cli.tables import attack_text, unconverged_line
from poisonaudit.errors import UsageError
from poisonaudit.gates import attack_measures, evaluate, parse_gate
from poisonaudit.results import AttackResult, AuditResult, Measure

IDS = ["solution.modulus", "solution.poison_budget", "attack.movement", "attack.flip_success"]


def measure(value: float | None, **changes: Any) -> Measure:
    fields: dict[str, Any] = {"unit": "", "kind": "exact", "direction": "lower_is_safer", **changes}
    return Measure("solution.modulus", value, **fields)


def audit_of(*measures: Measure) -> AuditResult:
    return AuditResult(model="mlp", data="digits", measures={item.id: item for item in measures})


def attack(retrained: dict[str, Any], predicted: dict[str, Any] | None = None) -> AttackResult:
    return AttackResult("move", "mlp", "digits", {}, {}, [1], predicted or {}, retrained, {})


@pytest.mark.parametrize(
    ("rule", "value", "outcome"),
    [
        ("solution.modulus>1", 2.0, "FAIL"),
        ("solution.modulus>1", 1.0, "PASS"),
        ("solution.modulus>1", 0.5, "PASS"),
        ("solution.modulus<1", 0.5, "FAIL"),
        ("solution.modulus<1", 1.0, "PASS"),
        (" solution.modulus < -1.5e-3 ", -1.0, "FAIL"),
        ("solution.modulus>.5", 0.6, "FAIL"),
        ("solution.modulus>1e300", math.inf, "FAIL"),
        ("solution.modulus<1e300", math.inf, "PASS"),
        ("solution.modulus>1", math.nan, "INCONCLUSIVE"),
        ("solution.modulus>1", None, "INCONCLUSIVE"),
    ],
)
def test_thresholds(rule: str, value: float | None, outcome: str) -> None:
    result = evaluate(parse_gate(rule, IDS), audit_of(measure(value)))
    assert result.outcome == outcome and result.subject == "mlp" and result.rule == rule.strip()


def test_infinite_invalid_missing_skipped_and_stored_results() -> None:
    above, below = parse_gate("solution.modulus>3", IDS), parse_gate("solution.modulus<3", IDS)
    infinite = measure(None, details={"infinite": True})
    assert evaluate(above, audit_of(infinite)).outcome == "FAIL"
    assert "infinite" in evaluate(above, audit_of(infinite)).fact
    assert evaluate(below, audit_of(infinite)).outcome == "PASS"
    assert evaluate(above, AuditResult.from_json(audit_of(measure(math.inf)).to_json())).outcome == "FAIL"
    for bad in (
        measure(9.0, valid=False, reason="not stationary"),
        measure(None, valid=False, details={"status": "skipped"}),
        measure(9.0, details={"status": "failed"}),
        measure(None, details={"infinite": True}, valid=False),
    ):
        assert evaluate(above, audit_of(bad)).outcome == "INCONCLUSIVE"
    assert "not stationary" in evaluate(above, [measure(9.0, valid=False, reason="not stationary")]).fact
    missing = evaluate(above, audit_of(), subject="mine")
    assert (missing.outcome, missing.subject) == ("INCONCLUSIVE", "mine") and "not measured" in missing.fact
    assert evaluate(above, {"solution.modulus": measure(4.0)}).outcome == "FAIL"


@pytest.mark.parametrize(
    "rule", ["", "solution.modulus", "solution.modulus<", "<3", "a<b", "solution.modulus<=3", "a<1<2", "a=3", "a<nan",
             "a<inf", "a<1e999", "a>1,b>2"],
)  # fmt: skip
def test_malformed_rules_say_what_to_write(rule: str) -> None:
    with pytest.raises(UsageError, match=r"PA320.*Write for example 'solution\.poison_budget<0\.5'"):
        parse_gate(rule, [*IDS, "a"])


def test_unknown_ids_name_near_matches() -> None:
    with pytest.raises(UsageError, match="PA301.*Did you mean 'solution.modulus'"):
        parse_gate("solution.modulo>1", IDS)
    gate = parse_gate("solution.poison_budget<0.1")
    assert gate.id == "solution.poison_budget" and parse_gate("attack.movement>0.2").threshold == 0.2
    with pytest.raises(UsageError, match="attack.flip_success"):
        parse_gate("attack.flip_sucess>0")


def test_movement_is_the_mean_of_fresh_retrainings_else_the_warm_one() -> None:
    fresh = [{"seed": 0, "movement": 0.2}, {"seed": 1, "movement": 0.4}]
    (found,) = attack_measures(attack({"warm": {"movement": 0.9}, "fresh": fresh}, {"movement": 1.0}))
    assert found.id == "attack.movement" and found.value == pytest.approx(0.3) and found.valid
    assert found.details["warm"] == 0.9 and found.details["predicted"] == 1.0
    (found,) = attack_measures(attack({"warm": {"outcome": {"movement": 0.9}}, "fresh": []}))
    assert found.value == 0.9 and found.details["source"] == "warm"
    loose = [{"movement": 0.2, "converged": False}, {"movement": None}]
    (found,) = attack_measures(attack({"warm": {"movement": 0.9}, "fresh": loose}))
    assert not found.valid and "did not converge" in found.reason and "gave no number" in found.reason
    assert evaluate(parse_gate("attack.movement>0.1", IDS), attack({"fresh": fresh})).outcome == "FAIL"
    assert evaluate(parse_gate("attack.movement>0.1", IDS), attack({"fresh": loose})).outcome == "INCONCLUSIVE"


def test_flip_success_is_the_share_of_fresh_retrainings() -> None:
    fresh = [{"margin": 1.0, "success": True}, {"margin": -1.0, "success": False}, {"margin": 2.0, "success": True}]
    (found,) = attack_measures(attack({"warm": {"margin": 2.0, "success": True}, "fresh": fresh}))
    assert found.id == "attack.flip_success" and found.value == pytest.approx(2 / 3) and found.valid
    outcome = evaluate(parse_gate("attack.flip_success>0.5", IDS), attack({"fresh": fresh}))
    assert (outcome.outcome, outcome.subject) == ("FAIL", "move")
    (found,) = attack_measures(attack({"warm": {"margin": 2.0, "success": True}, "fresh": []}))
    assert found.value is None and not found.valid
    assert evaluate(parse_gate("attack.movement>0.5", IDS), attack({"fresh": fresh})).outcome == "INCONCLUSIVE"
    assert attack_measures(attack({})) == []


def cost(over: str, value: float, lower: float | None) -> AttackResult:
    found = {"over": over, "value": value, "lower": lower, "unit": "input units" if over == "radius" else ""}
    return AttackResult("move", "mlp", "digits", {}, {"radius": 0.1}, [1], {}, {}, {}, verified_cost=found)


@pytest.mark.parametrize(
    ("over", "value", "lower", "threshold", "outcome"),
    [
        ("radius", 0.4, 0.3, 0.5, "FAIL"),
        ("radius", 0.4, 0.3, 0.3, "PASS"),
        ("radius", 0.4, 0.3, 0.35, "INCONCLUSIVE"),
        # What was never tried was never seen to fail.
        ("radius", 1.9, None, 1.0, "INCONCLUSIVE"),
        ("rows", 10, 9, 10, "PASS"),
        ("rows", 10, 8, 10, "INCONCLUSIVE"),
        ("rows", 10, 8, 9, "PASS"),
    ],
)
def test_a_cost_passes_only_above_budgets_that_were_seen_to_fail(
    over: str, value: float, lower: float | None, threshold: float, outcome: str
) -> None:
    found = evaluate(parse_gate(f"attack.verified_cost<{threshold}"), cost(over, value, lower))
    assert found.outcome == outcome
    if outcome == "INCONCLUSIVE":
        assert "is at most" in found.fact and f"may lie below {threshold:g}" in found.fact
    assert evaluate(parse_gate(f"attack.verified_cost>{value * 2}"), cost(over, value, lower)).outcome == "PASS"


def test_movement_is_no_better_than_the_controls_it_is_counted_from() -> None:
    runs = {"warm": {"movement": 0.9, "converged": True}, "fresh": [{"movement": 0.9, "converged": True}]}
    bad = {"warm": {"converged": True}, "fresh": [{"converged": False}]}
    told = dataclasses.replace(attack(runs), control=bad)
    (found,) = attack_measures(told)
    assert not found.valid and found.reason == "1 control did not converge"
    assert evaluate(parse_gate("attack.movement>0.5"), told).outcome == "INCONCLUSIVE"
    # Movement of the warm retraining alone is counted from the warm control.
    alone = dataclasses.replace(told, retrained={**runs, "fresh": []})
    assert attack_measures(alone)[0].valid
    # The owner's own training aims at no tolerance.
    own = {"fresh": [{"converged": False, "kind": "trainer"}]}
    assert attack_measures(dataclasses.replace(told, control=own))[0].valid


def test_the_console_names_trainings_that_did_not_converge() -> None:
    runs = {"warm": {"movement": 0.9}, "fresh": [{"movement": 0.9, "converged": False}, {"movement": 0.8}]}
    told = dataclasses.replace(attack(runs), control={"warm": {"converged": False}, "fresh": []})
    line = "did not converge, so that no number of theirs is counted: fresh 1 of 2, control warm"
    assert unconverged_line(told) == line and line in attack_text(told)
    assert unconverged_line(attack({"warm": {"movement": 0.9}})) == ""
