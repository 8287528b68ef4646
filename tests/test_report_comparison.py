"""Joining attacks to models, worst first, judging predictions, and the other formats."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import permutations

import pytest
from test_report_html import MISSING
from test_report_samples import COMMAND, HOSTILE, LINEAR, TANH, WIDE, attack, attacks, audit, audits, gates, sample

import poisonaudit
from poisonaudit.errors import UsageError
from poisonaudit.report import FORMATS, SUFFIXES, compare, render
from poisonaudit.report.findings import finding
from poisonaudit.report.formats import number, significant
from poisonaudit.results import AttackResult, AuditResult, Comparison, Measure


def test_compare_is_the_public_one() -> None:
    assert poisonaudit.compare is compare


def scored(model: str, **values: float | None) -> AuditResult:
    safer = {"solution_poison_budget": "higher_is_safer"}
    found = [
        Measure(key.replace("_", ".", 1), value, "", "exact", safer.get(key, "lower_is_safer"))  # type: ignore[arg-type]
        for key, value in values.items()
    ]
    return audit(model, "digits", found)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_worst_model_is_first_whatever_the_order_of_input(order: tuple[int, ...]) -> None:
    models = [
        scored("a", solution_modulus=1.0, solution_poison_budget=9.0, tangent_sensitivity=100.0),
        scored("b", solution_modulus=math.inf, solution_poison_budget=3.0, tangent_sensitivity=1.0),
        scored("c", solution_modulus=2.0, solution_poison_budget=5.0, tangent_sensitivity=2.0),
    ]
    assert [item.model for item in compare([models[i] for i in order]).audits] == ["b", "c", "a"]


def test_failed_rule_outranks_numbers_and_invalid_numbers_do_not_count() -> None:
    wide, linear = scored("a", solution_modulus=50.0), scored("b", solution_modulus=1.0)
    failed = dataclasses.replace(gates()[0], subject="b")
    assert [item.model for item in compare([wide, linear], gates=[failed]).audits] == ["b", "a"]
    flagged = dataclasses.replace(wide.measures["solution.modulus"], valid=False)
    invalid = dataclasses.replace(wide, measures={"solution.modulus": flagged})
    third = scored("c", solution_modulus=0.5)
    assert [item.model for item in compare([third, invalid, linear]).audits] == ["b", "a", "c"]


def test_attack_measures_are_joined_by_hand_computed_values() -> None:
    by_model = {item.model: item.measures for item in sample().audits}
    linear, tanh, wide = by_model[LINEAR], by_model[TANH], by_model[WIDE]
    assert linear["attack.movement"].value == pytest.approx((0.91 + 0.55) / 2)  # the worse of .256 and .73
    assert tanh["attack.flip_success"].value == pytest.approx(2 / 3) and not tanh["attack.flip_success"].valid
    assert tanh["attack.flip_success"].reason == "1 retraining did not converge"
    assert tanh["attack.movement"].value == pytest.approx(0.04)
    assert linear["attack.flip_success"].value == 0 and linear["attack.verified_cost"].value == 20
    assert not wide["attack.flip_success"].valid  # its controls flip without poison
    assert wide["attack.movement"].status == wide["attack.verified_cost"].status == "not applicable"
    assert wide["attack.movement"].value is None


def test_joined_numbers_agree_with_those_that_rules_are_applied_to_for_a_single_attack() -> None:
    from poisonaudit.gates import attack_measures

    for result in attacks():
        audited = audit(result.model, result.data, [])
        joined = compare([audited, result]).audits[0].measures
        for measure in attack_measures(result):
            assert joined[measure.id].value == measure.value
            # A control that reaches the goal as well is a further reason against the joined number.
            assert measure.valid or not joined[measure.id].valid


def test_attacks_follow_their_models_and_strangers_come_last() -> None:
    stranger = attack("alone", "lenet", "flip", 1.0, 1.0, [1.0], -1.0)
    result = compare([stranger, *attacks(), *audits()])
    order = [item.model for item in result.audits]
    assert [item.model for item in result.attacks][-1] == "lenet"
    ranks = [order.index(item.model) for item in result.attacks[:-1]]
    assert ranks == sorted(ranks)


def test_attack_joins_only_the_model_trained_alike() -> None:
    strong, weak = audit("m", "digits", [], decay=1e-1), audit("m", "digits", [], seed=1, decay=1e-3)
    poison = attack("p", "m", "flip", 1.0, 1.0, [1.0], -1.0)  # its recipe states decay 1e-3
    joined = {item.recipe["decay"]: set(item.measures) for item in compare([strong, weak, poison]).audits}
    assert joined[1e-1] == set() and "attack.flip_success" in joined[1e-3]


def test_attack_is_credited_to_nobody_where_two_trainings_match() -> None:
    first, second = audit("m", "digits", [], seed=1), audit("m", "digits", [], seed=2)
    poison = attack("p", "m", "flip", 1.0, 1.0, [1.0], -1.0)
    assert not any(item.measures for item in compare([first, second, poison]).audits)
    named = dataclasses.replace(poison, inputs={"weights": second.inputs["weights"]})
    assert sum(bool(item.measures) for item in compare([first, second, named]).audits) == 1


def test_compare_accepts_comparisons_and_repeats_itself() -> None:
    once = sample()
    assert compare([once], environment=once.environment).to_json() == once.to_json()
    assert compare([]) == Comparison((), ())


def test_compare_refuses_other_things() -> None:
    with pytest.raises(UsageError, match="PA340 compare got a str"):
        compare(["run"])  # type: ignore[list-item]


PUSH = ("p", "m", "target_weights")
FLIP = ("p", "m", "flip")
STANDINGS = [
    (attack(*PUSH, 0.4, 0.42, [0.38, 0.49], 0.0), "confirmed"),
    (attack(*PUSH, 0.4, 0.42, [0.1], 0.0), "partly confirmed"),
    (attack(*PUSH, 0.4, 0.29, [0.51], 0.0), "not confirmed"),
    (attack(*PUSH, 0.4, 0.4, [0.4], 0.0, valid=False, phi=0.7), "not predicted"),
    (attack(*PUSH, None, 0.4, [0.4], 0.0), "not predicted"),
    (attack(*PUSH, 0.4, None, [], 0.0), "not retrained"),
    (attack(*FLIP, 0.4, 9.0, [0.1], -1.0), "confirmed"),
    (attack(*FLIP, -0.4, -9.0, [-0.1], -1.0), "confirmed"),
    (attack(*FLIP, 0.4, -0.1, [-0.1], -1.0), "not confirmed"),
    (attack(*FLIP, 0.4, 0.3, [-0.1], -1.0, stuck=(0,)), "confirmed"),
    (attack(*FLIP, 0.4, 0.3, [0.3], 1.0), "not judged"),
]


@pytest.mark.parametrize(("result", "standing"), STANDINGS)
def test_standing(result: AttackResult, standing: str) -> None:
    found = finding(result)
    assert found.standing == standing
    assert found.sentence.startswith(standing.capitalize())


def test_ratio_and_control_are_matched_by_seed() -> None:
    found = finding(attack(*PUSH, 0.4, 0.2, [0.3, 0.5], 0.0))
    assert [trial.ratio for trial in found.trials] == pytest.approx([0.5, 0.75, 1.25])
    assert [trial.control for trial in found.trials] == [0.0, 0.0, 0.02]


NUMBERS = [
    (0.0, "0"), (1.0, "1"), (0.1, "0.1"), (0.123456, "0.1235"), (12.345678, "12.35"), (1234.5678, "1235"),
    (123456.7, "123\u202f457"), (1234567.0, "1.23×10⁶"), (-0.00012345, "−0.0001234"), (3.2e-11, "3.20×10⁻¹¹"),
    (-2e-9, "−2.00×10⁻⁹"), (99999.6, "100\u202f000"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), NUMBERS)
def test_numbers_have_four_digits_and_their_full_value(value: float, text: str) -> None:
    assert significant(value) == text and number(value).full == repr(value)


def test_numbers_that_are_none() -> None:
    assert [number(v).text for v in (None, math.nan, math.inf, -math.inf, True, 650)] == [
        "–",
        "–",
        "∞",
        "−∞",
        "yes",
        "650",
    ]


def test_json_is_the_result_itself() -> None:
    assert json.loads(render(sample(), "json")) == sample().to_json()


def test_csv_has_every_number_in_full_and_no_formula() -> None:
    evil = dataclasses.replace(audits()[0], model="=cmd|calc")
    lines = list(csv.DictReader(io.StringIO(render(compare([*audits(), evil, *attacks()], gates=gates()), "csv"))))
    modulus = [line for line in lines if line["id"] == "solution.modulus" and line["model"] == TANH]
    assert [float(line["value"]) for line in modulus] == [41.73]
    infinite = [line for line in lines if line["value"] == "inf"]
    assert len(infinite) == 1 and infinite[0]["valid"] == "false"
    assert {line["status"] for line in lines} >= {"measured", "not applicable", "skipped: cost", "failed", "PASS"}
    assert not any(cell.startswith(("=", "+", "@")) for line in lines for cell in line.values())
    retrained = [line for line in lines if line["stage"] == "retrained fresh" and line["id"] == "movement"]
    assert sorted(float(line["value"]) for line in retrained) == [0.03, 0.05, 0.25, 0.262, 0.55, 0.91]


def test_markdown_has_no_live_markup() -> None:
    text = render(sample(), "md", command=COMMAND)
    assert not re.search(r"<[a-zA-Z/]", text) and HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in text
    section = text[text.index("## Comparison") : text.index("## Predicted")]
    assert {line.count(" | ") for line in section.splitlines() if line.startswith("|")} == {4}
    assert "**FAIL.** 3 rules applied" in text and "## What was not tested" in text


def test_sarif_tells_pass_fail_and_open_apart() -> None:
    log = json.loads(render(sample(), "sarif", command=COMMAND))
    run = log["runs"][0]
    assert log["version"] == "2.1.0" and run["tool"]["driver"]["name"] == "poisonaudit"
    assert sorted((item["kind"], item["level"]) for item in run["results"]) == [
        ("fail", "error"), ("open", "none"), ("pass", "none"),
    ]  # fmt: skip
    rules = run["tool"]["driver"]["rules"]
    assert all(rules[item["ruleIndex"]]["id"] == item["ruleId"] for item in run["results"])


def test_junit_counts_inconclusive_as_an_error() -> None:
    root = ElementTree.fromstring(render(sample(), "junit", command=COMMAND).encode())
    assert {name: root.get(name) for name in ("tests", "failures", "errors")} == {
        "tests": "3", "failures": "1", "errors": "1",
    }  # fmt: skip
    assert len(root.findall(".//failure")) == len(root.findall(".//error")) == 1


@pytest.mark.parametrize("form", sorted(set(FORMATS) - {"html"}))
@pytest.mark.parametrize("name", MISSING)
def test_every_format_survives_missing_pieces(form: str, name: str) -> None:
    text = render(MISSING[name], form)
    assert text.endswith("\n") and text == render(MISSING[name], form)


def test_formats_are_known_by_name_with_near_matches() -> None:
    assert set(FORMATS) == set(SUFFIXES) == {"html", "json", "csv", "md", "sarif", "junit"}
    with pytest.raises(UsageError, match="Did you mean 'html'"):
        render(sample(), "htm")
