"""Every kind of objective and every optional entry of an attack, in every format, with nulls and hostile texts."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from typing import Any

import pytest
from test_report_html import Reader, read
from test_report_samples import HOSTILE, HOSTILE_QUOTE, attack, audit

from poisonaudit.cli.tables import attack_text, comparison_text
from poisonaudit.gates import attack_measures, evaluate, parse_gate
from poisonaudit.quantities import QUANTITIES
from poisonaudit.report import FORMATS, compare, render, render_html
from poisonaudit.report.costs import cost_of
from poisonaudit.report.findings import finding
from poisonaudit.report.rivals import outdone
from poisonaudit.report.sections.detection import detectors
from poisonaudit.report.sections.threat_model import box_text
from poisonaudit.results import AttackResult, Comparison, Measure

# kind -> what an outcome at some effect in 0 ... 1 holds besides the numbers that all kinds share.
OUTCOMES: dict[str, Any] = {
    "target_weights": lambda e: {"movement": e, "cosine": 0.7, "distance_ratio": 1 - e, "success": e >= 0.5},
    "membership": lambda e: {"movement": e, "cosine": 0.7, "distance_ratio": 1 - e, "residual_ratio": 0.3 - 0.2 * e,
                             "lowest_curvature": -0.012, "success": None},
    "target_region": lambda e: {"region_distance": 2.5 * (1 - e), "region_distance_ratio": 1 - e, "success": e == 1},
    "match_predictions": lambda e: {"prediction_distance_ratio": 1 - e, "agreement": 0.4 + 0.6 * e,
                                    "agreement_before": 0.4, "success": None},
    "flip": lambda e: {"margin": 4 * e - 2, "margin_change": 4 * e, "prediction": 3, "success": e > 0.5},
    "flips": lambda e: {"margin": 2 * e - 1, "margin_change": 2 * e, "margins": [e, -e], "predictions": [3, 8],
                        "flipped": round(4 * e), "flipped_share": round(4 * e) / 4, "success": e >= 0.75},
    "validation_loss": lambda e: {"validation_loss": 0.2 + e, "validation_loss_rise": e, "success": None},
    "group_accuracy": lambda e: {"group_accuracy": 0.9 - e, "group_accuracy_drop": e, "success": e >= 0.25},
}  # fmt: skip
EFFECT = 0.8


def outcome(kind: str, effect: float, **more: Any) -> dict[str, Any]:
    sides = {"displacement_norm": 0.6, "test_accuracy": 0.95, "train_loss": 0.1, "relative_gradient": 3e-11}
    return {**OUTCOMES[kind](effect), **sides, "converged": True, **more}


def retrained(kind: str, warm: float, fresh: list[float], **more: Any) -> dict[str, Any]:
    runs = [outcome(kind, effect, seed=seed) for seed, effect in enumerate(fresh, 1)]
    wins = sum(bool(run["success"]) for run in runs)
    rate = {"successes": wins, "trials": len(runs), "rate": wins / len(runs), "lower": 0.1, "upper": 0.9, "level": 0.95}
    judged = all(run["success"] is not None for run in runs)
    summary = {"success": rate if judged else None, "control_success": {**rate, "successes": 0} if judged else None,
               "accuracy_change": {"mean": -0.0125, "standard_error": 0.0042}}  # fmt: skip
    return {"warm": outcome(kind, warm, seed=None), "fresh": runs, "summary": summary, **more}


def plain_attack(kind: str, predicted: float = EFFECT, reached: float = EFFECT, model: str = "m") -> AttackResult:
    return AttackResult(
        name=f"one-{kind}", model=model, data="digits",
        recipe={"objective": {"kind": kind}, "loss": "cross_entropy", "decay": 1e-3},
        budget={"rows": 20, "share": 0.05, "norm": "l2", "radius": 0.5, "unit": "input units"},
        rows=list(range(20)),
        predicted={**outcome(kind, predicted), "valid": True, "reasons": [], "phi": 0.1},
        retrained=retrained(kind, reached, [reached, reached]),
        control=retrained(kind, 0.0, [0.0, 0.0]),
        cost={"crafting_seconds": 3.25, "crafting_gradients": 410, "crafting_products": 120},
    )  # fmt: skip


def loosely(kind: str, effects: list[float], training: str) -> list[dict[str, Any]]:
    runs = [outcome(kind, effect, seed=seed, training=training) for seed, effect in enumerate(effects, 1)]
    return [{**run, "converged": False} for run in runs]


def full_attack(kind: str = "flip", model: str = "m") -> AttackResult:
    """Everything that may be stored beside an attack, with hostile names and null numbers in between."""
    base = plain_attack(kind, model=model)
    nothing = {"warm": None, "fresh": [None, {"seed": 1}], "summary": None}
    rate = {"successes": 1, "trials": 3, "lower": 0.008, "upper": 0.906, "level": 0.95}
    tight, clean = retrained(kind, 0.8, [0.8, 0.9, 0.7]), retrained(kind, 0.0, [0.0, 0.1, 0.0])
    loose = loosely(kind, [0.8, 0.2, 0.3], f"adam, 40 epochs {HOSTILE}")
    own = loosely(kind, [0.9, 0.8, 0.75], "train.py")
    return dataclasses.replace(
        base,
        name=f"full {HOSTILE_QUOTE}",
        retrained={**tight, "loose": loose, "trainer": own, "summary": {
            **tight["summary"], "loose": {"success": rate, "control_success": {"successes": 0, "trials": 3}},
            "trainer": None}},
        control={**clean, "loose": loosely(kind, [0.0, 0.0, 0.0], "adam"), "trainer": None},
        baselines={
            "gradient matching": {"applicable": True, "reason": "", "retrained": retrained(kind, 0.3, [0.4, 0.1]),
                                  "cost": {"seconds": 12.5, "gradients": 5000, "products": None},
                                  "notes": ["8 restarts", None]},
            f"stronger {HOSTILE}": {"retrained": retrained(kind, 0.95, [0.95, 0.9]), "cost": None, "notes": None},
            "svm": {"applicable": False, "reason": f"the model is no support vector machine {HOSTILE}"},
            "nothing stored": None,
            "null retraining": {"applicable": True, "retrained": nothing, "cost": {"seconds": None}},
        },
        detectors={
            "activation clusters": {"applicable": True, "precision": 0.25, "recall": 0.5, "false_positive_rate": 0.07,
                                    "auroc": 0.81, "flagged": [1, 2, 3], "recall_at_poisoned": 0.4,
                                    "filtered": {"warm": outcome(kind, 0.1), "fresh": [outcome(kind, 0.2)]},
                                    "threshold": 0.5},
            "spectral": {"applicable": True, "precision": None, "recall": None, "flagged": 0, "filtered": None},
            f"provenance {HOSTILE}": {"applicable": False, "reason": f"no provenance {HOSTILE_QUOTE}"},
            "null": None,
            "of another form": {"auc": None, "more": [1, 2]},
        },
        inspection={
            "moduli": {"recall_at": {"0.01": 0.1, "0.05": 0.45, "0.1": None}, "average_precision": 0.33,
                       "expected_average_precision": 0.05},
            f"loss {HOSTILE}": {"recall_at": {"0.1": 0.2, "junk": 1}, "average_precision": None},
            "null": None,
        },
        verified_cost={
            "over": "rows", "value": 12, "unit": f"training rows {HOSTILE}", "lower": 8, "upper": 12, "predicted": 9,
            "reason": "", "trials": [{"budget": 8, "succeeded": False, "success": {**rate, "successes": 0}},
                                     {"budget": 12, "succeeded": True, "success": {**rate, "successes": 3}},
                                     {"budget": {"rows": 20, "radius": 0.5}, "succeeded": None}, None]},
    )  # fmt: skip


NULLS: dict[str, Any] = {
    "baselines": None, "inspection": None, "verified_cost": None, "detectors": None, "cost": None, "predicted": None,
    "retrained": None, "control": None, "recipe": None, "budget": None, "rows": None, "pictures": None, "gates": None,
    "history": None, "inputs": None, "environment": None, "hardening": None,
}  # fmt: skip
ODD = {
    "lists": {"baselines": [], "inspection": [1], "verified_cost": [], "detectors": [{}]},
    "texts": {"baselines": "a", "inspection": "b", "verified_cost": "c", "detectors": "d", "hardening": "e"},
    "inner nulls": {
        "baselines": {"a": {"applicable": None, "retrained": None, "cost": None, "notes": None}},
        "inspection": {"a": {"recall_at": None, "average_precision": None}},
        "verified_cost": {"over": None, "value": None, "unit": None, "lower": None, "upper": None, "trials": None},
        "detectors": {"a": {"applicable": None, "filtered": {"warm": None, "fresh": None}}},
        "retrained": {"warm": None, "fresh": None, "loose": [None, {}], "trainer": "x", "summary": {"loose": None}},
    },
}


def page_of(*results: Any) -> tuple[str, str, Reader]:
    html = render_html(compare(results), command="")
    parsed = read(html)
    return html, " ".join("".join(parsed.text).split()), parsed


@pytest.mark.parametrize("kind", OUTCOMES)
def test_full_attacks_are_shown_whole_and_escaped(kind: str) -> None:
    html, shown, parsed = page_of(full_attack(kind), audit("m", "digits", []))
    assert HOSTILE not in html and HOSTILE_QUOTE not in html and HOSTILE in shown and HOSTILE_QUOTE in shown
    assert not {tag for tag, _ in parsed.tags} & {"script", "iframe", "object", "link"}
    for words in (
        "Beside other attacks (same rows, budget, retraining)", "gradient matching", "not applicable: the model is no",
        "not retrained", "this attack", "Trainings side by side", "adam, 40 epochs", "train.py", "activation clusters",
        "not applicable: no provenance", "Which rows to inspect first", "First 5 %", "predicted: 9",
        "retraining showed no success at 8", "Budgets that were tried", "rows 20, radius 0.5", "threshold: 0.5",
    ):  # fmt: skip
        assert words in shown, words


def test_loose_trainings_are_shown_and_do_not_decide() -> None:
    found = finding(full_attack())
    assert [group.training for group in found.groups] == ["tight", "loose", "trainer"]
    assert found.standing == "confirmed" and len(found.trials) == 4
    loose = found.groups[1]
    assert loose.tally.rate == "1 of 3 (95 % interval 0.008 to 0.906)" and loose.control == "0 of 3"
    assert all(trial.confirms is None and trial.control is not None for trial in loose.trials)
    assert found.loosened == (
        "Loosely trained models reach the attacker's goal less often: 1 of 3 fresh seeds against 3 of 3; "
        "the numbers from tight minima overstate what the poison does there."
    )
    _, shown, _ = page_of(full_attack())
    assert f"A1 full {HOSTILE_QUOTE}: Loosely trained models reach" in shown
    movement = finding(full_attack("target_weights"))
    assert "Loosely trained models reach the attacker's goal less often: 1 of 3" in movement.loosened
    loss = finding(full_attack("validation_loss"))
    assert "follow the poison less: mean rise of the loss 0.433 against 0.8" in loss.loosened
    alike = dataclasses.replace(
        full_attack(), retrained={**full_attack().retrained, "loose": full_attack().retrained["fresh"]}
    )
    assert finding(alike).loosened == ""


def test_only_loose_trainings_leave_a_prediction_unproved() -> None:
    result = dataclasses.replace(full_attack(), retrained={"loose": full_attack().retrained["loose"]})
    assert finding(result).standing == "not retrained" and len(finding(result).groups) == 1
    page_of(result)


def test_a_stronger_attack_is_named_and_a_weaker_one_is_not() -> None:
    assert outdone(finding(plain_attack("target_weights"))) == ""
    said = outdone(finding(full_attack("target_weights")))
    assert f"stronger {HOSTILE} has a mean movement of 0.925 against 0.8" in said and "gradient matching" not in said
    tied = outdone(finding(full_attack("flip")))
    assert tied == ""  # both always succeed; a larger margin is no better flip
    weak = dataclasses.replace(full_attack("flip"), retrained=retrained("flip", 0.2, [0.2, 0.8]))
    assert f"stronger {HOSTILE} reached the goal in 2 of 2, this attack in 1 of 2" in outdone(finding(weak))
    assert f"stronger {HOSTILE} reached the goal" in page_of(weak)[1]


def cell_of(result: AttackResult) -> Measure:
    joined = compare([audit("m", "digits", []), result])
    return joined.audits[0].measures["attack.verified_cost"]


def test_verified_cost_is_joined_shown_and_gated() -> None:
    cost = cell_of(full_attack())
    assert (cost.value, cost.direction, cost.kind, cost.valid) == (12.0, "higher_is_safer", "upper", True)
    assert "retraining showed no success at 8" in cost.reason
    (own,) = [measure for measure in attack_measures(full_attack()) if measure.id == "attack.verified_cost"]
    assert own.value == cost.value and own.direction == cost.direction
    gate = parse_gate("attack.verified_cost<15", ["attack.verified_cost"])
    assert evaluate(gate, full_attack()).outcome == "FAIL"
    _, shown, _ = page_of(full_attack(), audit("m", "digits", []), audit("other", "digits", []))
    head = shown[: shown.index("Threat model and budget The attacker")]
    assert "12 training rows" in head and "predicted: 9" in head and "othernot searched" in head
    radius = {"over": "radius", "value": 0.0314, "unit": "input units", "lower": None, "upper": 0.0314}
    over_radius = cell_of(dataclasses.replace(full_attack(), verified_cost=radius))
    assert over_radius.value == 0.0314 and over_radius.unit == "l2 radius in input units"
    assert "with 20 training rows" in over_radius.reason and over_radius.details["beside"] == "20 training rows"


def test_a_search_without_success_is_no_pass_and_its_prediction_does_not_stand_alone() -> None:
    none = {"over": "rows", "value": None, "unit": "training rows", "lower": 40, "upper": None, "predicted": 9,
            "reason": "the largest budget allowed is 40 rows"}  # fmt: skip
    weak = dataclasses.replace(plain_attack("flip", reached=0.1), verified_cost=none)
    cost = cell_of(weak)
    assert cost.value is None and not cost.valid and "no success at 40 training rows" in cost.reason
    gate = parse_gate("attack.verified_cost<15", ["attack.verified_cost"])
    assert evaluate(gate, weak).outcome == "INCONCLUSIVE"
    told, alone = cost_of(none), cost_of({"predicted": 987654})
    assert told is not None and told.amount == "none found"
    assert told.expected == "predicted: 9 training rows, not verified"
    assert alone is not None and alone.expected == ""
    lonely = dataclasses.replace(weak, verified_cost={"predicted": 987654})
    assert "987 654" in page_of(dataclasses.replace(weak, verified_cost={**none, "predicted": 987654}))[1]
    assert "987 654" not in page_of(lonely)[1]


def test_a_cost_that_clean_controls_reach_as_well_is_not_valid() -> None:
    flips = dataclasses.replace(full_attack("flip"), control=retrained("flip", 0.9, [0.9, 0.9, 0.9]))
    cost = cell_of(flips)
    assert cost.value == 12 and not cost.valid and "control trainings" in cost.reason
    assert "not valid: clean controls reach the goal too" in page_of(flips)[1]


def test_the_cheapest_verified_cost_of_a_model_heads_the_report() -> None:
    def costing(value: float | None, name: str) -> AttackResult:
        body = {"over": "rows", "value": value, "unit": "training rows", "lower": 1}
        return dataclasses.replace(plain_attack("flip"), name=name, verified_cost=body)

    _, shown, _ = page_of(costing(30, "dear"), costing(5, "cheap"), costing(None, "none"), audit("m", "digits", []))
    head = shown[shown.index("Smallest budget at which") : shown.index("Every attack, one mark")]
    assert "5 training rows" in head and "30 training rows" not in head and "none found" not in head


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_every_format_takes_full_attacks_and_every_null(form: str) -> None:
    stored = [AttackResult.from_json({**plain_attack("flip").to_json(), **NULLS})]
    stored += [AttackResult.from_json({**full_attack().to_json(), **changes}) for changes in ODD.values()]
    for result in (*stored, *(full_attack(kind) for kind in OUTCOMES)):
        text = render(compare([result, audit("m", "digits", [])]), form)
        assert text == render(compare([result, audit("m", "digits", [])]), form)
        assert form == "json" or HOSTILE not in text or form in ("csv", "sarif")


def test_old_results_read_without_the_new_entries() -> None:
    body = attack("old", "m", "flip", 1.0, 1.0, [1.0], -1.0).to_json()
    for name in ("baselines", "inspection", "verified_cost"):
        del body[name]
    again = AttackResult.from_json(body)
    assert again.baselines == again.inspection == again.verified_cost == {}
    full = json.loads(json.dumps(full_attack().to_json(), allow_nan=False))
    assert AttackResult.from_json(full).to_json() == full
    assert Comparison.from_json(compare([full_attack()]).to_json()).attacks[0].verified_cost["value"] == 12


def test_csv_lists_the_new_numbers_and_what_was_not_applicable() -> None:
    lines = list(csv.DictReader(io.StringIO(render(full_attack(), "csv"))))
    stages = {(line["stage"], line["id"]): line for line in lines}
    assert float(stages["retrained loose", "margin"]["value"]) == pytest.approx(4 * 0.3 - 2)
    assert float(stages["baseline gradient matching cost", "gradients"]["value"]) == 5000
    assert float(stages["detector activation clusters", "auroc"]["value"]) == 0.81
    assert float(stages["inspection moduli", "recall_at.0.05"]["value"]) == 0.45
    assert float(stages["verified cost", "value"]["value"]) == 12 and stages["verified cost", "value"]["kind"] == "rows"
    assert stages["baseline svm", ""]["status"] == "not applicable"
    assert not any(cell.startswith(("=", "+", "@")) for line in lines for cell in line.values())


def test_other_formats_tell_of_costs_and_other_attacks() -> None:
    result = compare([full_attack(), audit("m", "digits", [])])
    text = render(result, "md")
    assert "| m | 12 training rows" in text and "predicted: 9" in text
    assert "## Beside other attacks" in text and "## Poison detectors" in text and "## Which rows to inspect" in text
    assert "not applicable: the model is no support" in text and "<script" not in text
    run = json.loads(render(result, "sarif"))["runs"][0]
    (facts,) = run["properties"]["poisonaudit/attacks"]
    assert "12 training rows" in facts["verified_cost"] and "svm: not applicable" in facts["beside_other_attacks"]
    assert run["results"] == []  # none of it is an outcome of a rule
    assert "12 training rows" in render(result, "junit") and "svm: not applicable" in render(result, "junit")


def test_tables_of_the_command_line_follow_the_kind() -> None:
    for kind, quantity in QUANTITIES.items():
        assert quantity.key in attack_text(plain_attack(kind))
    text = attack_text(full_attack("target_region"))
    for words in ("verified cost: 12 training rows", "no success at 8;", "predicted: 9"):
        assert words in text
    assert "not applicable" in text and "gradient matching" in text and "loose 0/3" in text
    for changes in ODD.values():
        result = AttackResult.from_json({**full_attack().to_json(), **changes})
        assert attack_text(result) and comparison_text(compare([result]))


def test_the_forms_that_retraining_search_and_detection_store_are_read() -> None:
    kind = "flip"
    tight = [{**outcome(kind, effect, seed=seed), "kind": "tight"} for seed, effect in enumerate((0.8, 0.9), 1)]
    own = [{**run, "kind": "trainer", "reason": "train.py:train"} for run in loosely(kind, [0.2, 0.9], "")]
    rate = {"successes": 2, "trials": 2, "lower": 0.158, "upper": 1.0, "level": 0.95}
    lists = {"fresh": own, "tight": tight, "loose": [], "trainer": own}
    clean = {name: [outcome(kind, 0.0, seed=run["seed"]) for run in runs] for name, runs in lists.items()}
    summary = {"success": {**rate, "successes": 1}, "tight": {"success": rate}, "loose": None,
               "trainer": {"success": {**rate, "successes": 1}}, "notes": [f"loose training {HOSTILE}"]}  # fmt: skip
    runs = [outcome(kind, 0.1), outcome(kind, 0.2, seed=1), outcome(kind, 0.9, seed=2)]
    result = dataclasses.replace(
        plain_attack(kind),
        retrained={"warm": outcome(kind, 0.8), **lists, "summary": summary},
        control={"warm": outcome(kind, 0.0), **clean},
        verified_cost={
            "over": "radius", "value": 0.03, "unit": "input units", "lower": 0.0, "upper": 0.03, "predicted": None,
            "monotone": False, "reason": "An upper bound.", "kind": "upper",
            "trials": [{"budget": 0.03, "succeeded": True, **rate, "predicted": True}],
        },
        detectors={
            "spectral": {"applicable": True, "reason": "", "note": "by class", "parameters": {"share": 0.15},
                         "auroc": 0.8, "auroc_unpoisoned": 0.75, "recall_at_poisoned": 0.4, "base_rate": 0.05,
                         "filtered": {"success": {"filtered": {**rate, "successes": 1}},
                                      "arms": {"filtered": {"rows": 340, "runs": runs}}}},
            "loss": {"applicable": False, "reason": "not applicable: no row is poisoned"},
        },
        inspection={
            "loss": {"applicable": True, "recall": {"5%": {"inspected": 20, "recall": 0.35, "random": 0.05},
                                                    "as_many_as_poisoned": {"recall": 0.3}},
                     "average_precision": 0.3, "average_precision_random": 0.06},
            "moduli": {"applicable": False, "reason": "not applicable: too many weights"},
        },
    )  # fmt: skip
    found = finding(result)
    assert [(group.training, len(group.trials)) for group in found.groups] == [("tight", 3), ("trainer", 2)]
    assert found.groups[0].tally.rate.startswith("2 of 2") and found.groups[1].procedures == "train.py:train"
    assert found.standing == "confirmed" and "1 of 2 fresh seeds against 2 of 2" in found.loosened
    # Rules and the joined measure count the owner's own procedure, which aims at no tolerance.
    joined = compare([audit("m", "digits", []), result]).audits[0].measures["attack.flip_success"]
    (own_measure,) = [measure for measure in attack_measures(result) if measure.id == "attack.flip_success"]
    assert joined.value == own_measure.value == 0.5 and joined.valid and own_measure.valid
    html, shown, _ = page_of(result)
    for words in (
        "radius 0.03 input units; no smaller budget was shown to fail", "A larger budget failed where a smaller one",
        "2 of 2 (95 % interval 0.158 to 1)", "0.75 before the poison", "0.05 by chance", "parameters.share: 0.15",
        "not applicable: no row is poisoned", "not applicable: too many weights", "First 5 %", "0.35", "0.06",
        f"Not trained: loose training {HOSTILE}", "by class",
    ):  # fmt: skip
        assert words in shown, words
    assert "not applicable: not applicable" not in shown and HOSTILE not in html
    (spectral, _) = detectors(found)
    assert spectral.filtered is not None and spectral.filtered.rate.startswith("1 of 2")
    assert spectral.filtered.warm == pytest.approx(-1.6)
    lines = list(csv.DictReader(io.StringIO(render(result, "csv"))))
    margins = [(line["stage"], float(line["value"])) for line in lines if line["id"] == "margin"]
    by_stage = {stage: [value for name, value in margins if name == stage] for stage, _ in margins}
    assert by_stage["retrained tight"] == pytest.approx([1.2, 1.6])
    assert by_stage["retrained fresh"] == pytest.approx([-1.2, 1.6]) and "retrained trainer" not in by_stage
    assert by_stage["filtered by spectral warm"] == pytest.approx([-1.6])


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"box": [0.0, 1.0]}, "0, 1"),
        ({"box": [[0.0, -1.5], 2.0]}, "per column: lower −1.5 to 0, upper 2"),
        ({"box": [[[0.0, None], [0.5, 0.5]], [None, None]]}, "per column: lower 0 to 0.5, upper without limit"),
        ({"box": ["1200 entries from -1 to 0.5", 2.0]}, "per column: lower 1200 entries from -1 to 0.5, upper 2"),
        ({"box": "data"}, "data"),
        ({"box": None}, "none"),
        ({}, "not stated"),
    ],
)
def test_the_box_is_told_by_its_numbers(budget: dict[str, Any], words: str) -> None:
    assert box_text(budget) == words
