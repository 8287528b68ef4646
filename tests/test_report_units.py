"""Units and kinds of numbers: what may be ranked together, and what each number in a table is."""

from __future__ import annotations

import dataclasses
from typing import Any

from test_report_attacks import full_attack, plain_attack
from test_report_samples import audit

from poisonaudit.cli.tables import attack_text, comparison_text
from poisonaudit.gates import attack_measures, evaluate, parse_gate
from poisonaudit.report import compare, render
from poisonaudit.report.comparison import mean_ranks
from poisonaudit.report.tally import told_change
from poisonaudit.results import AuditResult, Measure


def test_a_cost_is_gated_in_the_unit_of_what_was_searched() -> None:
    radius = {"over": "radius", "value": 1.532, "unit": "standard deviations", "lower": 1.2, "upper": 1.532}
    searched = dataclasses.replace(full_attack(), verified_cost=radius)
    (own,) = [measure for measure in attack_measures(searched) if measure.id == "attack.verified_cost"]
    assert own.value == 1.532 and own.unit == "l2 radius in standard deviations"
    gate = parse_gate("attack.verified_cost<5", ["attack.verified_cost"])
    said = evaluate(gate, searched)
    assert said.outcome == "FAIL"
    assert said.fact == (
        "attack.verified_cost is 1.532 (l2 radius in standard deviations; with 20 training rows), below 5"
    )
    by_rows = evaluate(gate, full_attack())
    assert by_rows.outcome == "PASS"
    assert "is 12 (training rows; with l2 radius 0.5 input units), not below 5" in by_rows.fact


def test_costs_in_different_units_are_not_ranked_together() -> None:
    radius = {"over": "radius", "value": 0.5, "unit": "input units", "lower": None, "upper": 0.5}
    by_radius = dataclasses.replace(full_attack(), verified_cost=radius)
    # Of one model: no number that a rule could mistake.
    (one,) = compare([audit("m", "digits", []), full_attack(), by_radius]).audits
    cost = one.measures["attack.verified_cost"]
    assert cost.value is None and not cost.valid and "cannot be ranked together" in cost.reason
    assert evaluate(parse_gate("attack.verified_cost<5", [cost.id]), one).outcome == "INCONCLUSIVE"
    # Of two models: both numbers stand, neither is the worst, and the order ignores them.
    both = compare([
        audit("m", "digits", []), full_attack(),
        audit("other", "digits", []), dataclasses.replace(by_radius, model="other"),
    ])  # fmt: skip
    assert [mean_ranks(both.audits, position)["attack"] for position in (0, 1)] == [0.5, 0.5]
    assert "attack.verified_cost is in different units and is not ranked together" in comparison_text(both)
    markdown = render(both, "md")
    assert "different units, not ranked together" in markdown and "0.5 (l2 radius in input units" in markdown
    shown = render(both, "html")
    assert "numbers in different units, which are not ranked together" in shown


def test_tables_say_what_kind_each_number_is() -> None:
    def with_modulus(model: str, kind: Any) -> AuditResult:
        return audit(model, "digits", [Measure("solution.modulus", 2.0, "norm", kind, "lower_is_safer")])

    same = compare([with_modulus("a", "exact"), with_modulus("b", "exact")])
    (line,) = [line for line in comparison_text(same).splitlines() if line.startswith("solution.modulus")]
    assert line.split() == ["solution.modulus", "exact", "2", "2"]
    assert "| exact | 2 | 2 |" in render(same, "md")
    mixed = compare([with_modulus("a", "exact"), with_modulus("b", "lower")])
    assert "exact or lower  2 (exact)  2 (lower)" in comparison_text(mixed)
    assert "| exact or lower bound | 2 (exact) | 2 (lower bound) |" in render(mixed, "md")
    assert "exact or lower bound" in render(mixed, "html")


def test_markdown_has_what_a_detector_found_before_the_poison() -> None:
    found = {"spectral": {"applicable": True, "auroc": 0.81, "auroc_unpoisoned": 0.44, "flagged": 3}}
    text = render(dataclasses.replace(full_attack(), detectors=found), "md")
    assert "| 0.81 (0.44 before the poison) |" in text


def test_rounding_is_no_change_of_accuracy() -> None:
    assert told_change({"mean": 5.55e-17, "standard_error": 1.1e-16}) == "0 ± 0"
    assert told_change({"mean": -0.0125, "standard_error": 0.002}) == "−0.0125 ± 0.002"
    assert told_change({"mean": -5.55e-17, "standard_error": None}) == "0"


def test_tables_say_where_fresh_seeds_and_controls_are_counted_from() -> None:
    told = "each fresh seed is counted from the control of the same seed"
    assert f"movement: {told}" in attack_text(plain_attack("target_weights"))
    assert told not in attack_text(plain_attack("flip"))  # a margin is counted from nothing
    assert told in comparison_text(compare([plain_attack("validation_loss")]))
