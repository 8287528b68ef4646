"""One table of quantities: how attacks of every kind are judged, confirmed, counted and read off old results."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from test_report_attacks import OUTCOMES, outcome, page_of, plain_attack, retrained
from test_report_samples import HOSTILE

from poisonaudit.attack import objectives
from poisonaudit.gates import attack_measures
from poisonaudit.quantities import PAIRED, QUANTITIES, quantity_of
from poisonaudit.report.findings import Finding, finding
from poisonaudit.verify import Control, Retrained, Retraining


def test_the_table_covers_every_objective_and_its_numbers_exist() -> None:
    assert set(objectives.OBJECTIVES) | {"membership"} <= set(QUANTITIES) == set(OUTCOMES)
    for kind, quantity in QUANTITIES.items():
        assert quantity.key in OUTCOMES[kind](0.5) and quantity.paired in OUTCOMES[kind](0.5)
        assert quantity.paired in PAIRED and quantity.kind == kind
        nothing, much = OUTCOMES[kind](0.0)[quantity.key], OUTCOMES[kind](1.0)[quantity.key]
        assert quantity.effect(much) > quantity.effect(nothing)
        if quantity.confirmed_by == "size":
            assert nothing == quantity.no_effect


@pytest.mark.parametrize("kind", OUTCOMES)
def test_a_retraining_like_the_prediction_confirms_and_another_does_not(kind: str) -> None:
    agrees = finding(plain_attack(kind))
    assert agrees.standing == "confirmed" and agrees.quantity is QUANTITIES[kind]
    assert QUANTITIES[kind].word in agrees.sentence
    assert all(trial.ratio == pytest.approx(1.0) for trial in agrees.trials)
    misses = finding(plain_attack(kind, reached=0.1))
    assert misses.standing == "not confirmed"
    assert finding(dataclasses.replace(plain_attack(kind), predicted={})).standing == "not predicted"


@pytest.mark.parametrize(
    ("kind", "effect", "standing"),
    [
        ("target_region", 0.61, "confirmed"),  # the effect 1 - ratio is within 25 % of 0.8, the ratio itself is not
        ("target_region", 0.59, "not confirmed"),
        ("match_predictions", 0.99, "confirmed"),
        ("validation_loss", 1.01, "not confirmed"),
        ("flip", 0.51, "confirmed"),  # the same side is enough
        ("flips", 0.6, "not confirmed"),  # two of four rows, three are wanted
    ],
)
def test_sizes_are_judged_by_their_effect_and_flips_by_their_side(kind: str, effect: float, standing: str) -> None:
    assert finding(plain_attack(kind, reached=effect)).standing == standing


def test_no_effect_predicted_and_none_found_agree() -> None:
    for kind in ("target_region", "match_predictions", "group_accuracy", "validation_loss"):
        assert finding(plain_attack(kind, predicted=0.0, reached=0.0)).standing == "confirmed"


def test_goals_where_none_is_stored() -> None:
    reached = {kind: finding(plain_attack(kind)).trials[0].reached for kind in ("match_predictions", "membership")}
    assert reached == {"match_predictions": True, "membership": True}  # half of the way
    loss = finding(plain_attack("validation_loss"))
    assert loss.trials[0].reached is None and loss.judged == [] and loss.standing == "confirmed"


def test_controls_count_only_where_they_can_reach_the_goal_by_themselves() -> None:
    def with_control(kind: str, effect: float) -> Finding:
        return finding(dataclasses.replace(plain_attack(kind), control=retrained(kind, effect, [effect, effect])))

    assert "3 of 3 control trainings" in with_control("flips", 1.0).caution
    assert with_control("flips", 1.0).standing == "not judged"
    assert with_control("target_region", 1.0).caution and not with_control("target_region", 0.9).caution
    for kind in ("target_weights", "membership", "group_accuracy", "validation_loss", "match_predictions"):
        assert with_control(kind, 1.0).caution == ""


def test_kinds_are_read_off_the_numbers_of_old_results() -> None:
    for kind in ("target_weights", "target_region", "match_predictions", "flip", "flips", "group_accuracy"):
        assert quantity_of({}, outcome(kind, 0.5)).kind == kind
        assert quantity_of({"objective": None}, None, {"warm": {"outcome": outcome(kind, 0.5)}}).kind == kind
    assert quantity_of({"objective": "flip"}).kind == "flip"
    assert quantity_of(None).kind == "target_weights"
    assert quantity_of({}, {"success": True}).kind == "flip"


def test_a_kind_of_a_third_party_is_judged_by_its_own_success() -> None:
    own = {"objective": {"kind": f"drift {HOSTILE}"}}
    numbers = {"drift": 1.0, "success": True}
    result = dataclasses.replace(
        plain_attack("flip"), recipe=own, predicted={**numbers, "valid": True},
        retrained={"warm": numbers, "fresh": [{**numbers, "seed": 1, "success": False}]}, control={},
    )  # fmt: skip
    assert finding(result).standing == "partly confirmed" and attack_measures(result) == []
    _, shown, parsed = page_of(result)
    assert HOSTILE in shown and "script" not in {tag for tag, _ in parsed.tags}
    assert finding(dataclasses.replace(plain_attack("target_weights"), recipe=own)).standing == "confirmed"


def test_one_page_holds_every_kind_with_its_words_and_its_chart() -> None:
    _, shown, parsed = page_of(*(plain_attack(kind) for kind in OUTCOMES))
    for quantity in QUANTITIES.values():
        assert quantity.meaning in shown and quantity.goal.capitalize() in shown
    titles = [a for tag, a in parsed.tags if tag == "svg" and a.get("class") == "chart"]
    assert len(titles) == len({quantity.key for quantity in QUANTITIES.values()})
    for words in ("Residual left", "Lowest curvature at the target", "Classes agreeing", "Rows flipped"):
        assert words in shown
    assert "no attack of the kind" not in shown


def test_summaries_leave_out_ratios_that_are_not_defined() -> None:
    def run(seed: int | None, ratio: float | None) -> Retraining:
        outcome = {"region_distance_ratio": ratio, "test_accuracy": None, "success": False}
        return Retraining(torch.zeros(1), seed, True, 0.0, 0.0, outcome)

    controls = Control(run(None, 1.0), tuple(run(seed, 1.0) for seed in (1, 2, 3)))
    runs = (run(1, 0.5), run(2, None), run(3, math.nan))
    judged = Retrained(run(None, 0.6), runs, controls, {"region_distance_ratio": 0.55})
    paired = judged.summary()["paired"]
    assert set(paired) == {"region_distance_ratio"}
    assert paired["region_distance_ratio"]["mean"] == 0.5 and paired["region_distance_ratio"]["predicted"] == 0.55
    ratios = [record["ratio"] for record in judged.records()]
    # Effects are counted from 1, where nothing moved.
    assert ratios[1] == pytest.approx(0.5 / 0.45) and ratios[2] is None


def test_ratios_are_of_effects_not_of_levels() -> None:
    flip, region = QUANTITIES["flip"], QUANTITIES["target_region"]
    ratio = flip.effect_ratio({"margin": 0.5, "margin_change": 3.0}, {"margin": -0.5, "margin_change": 2.0})
    assert ratio == pytest.approx(1.5)
    # A margin alone is no effect: an unmoved model has one too.
    assert flip.effect_ratio({"margin": 0.5}, {"margin": -0.5}) is None
    assert region.effect_ratio({"region_distance_ratio": 0.9}, {"region_distance_ratio": 0.8}) == pytest.approx(0.5)
    assert region.effect_ratio({"region_distance_ratio": 0.9}, {"region_distance_ratio": 1.0}) is None
    assert flip.effect_ratio({}, {}) is None and region.effect_ratio({"region_distance_ratio": None}, {}) is None
