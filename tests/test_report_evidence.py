"""What the report says a measure foresaw is what the study found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from poisonaudit.report.evidence import HELD, MODELS, SCORED, STUDY, foresight

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{STUDY}.json").read_text())["summary"]
    return found


def test_the_numbers_are_those_of_the_result_file(summary: dict[str, Any]) -> None:
    held: dict[str, dict[str, tuple[float, float, float]]] = {}
    scored: dict[str, int] = {}
    for each in summary["correlations"]:
        name, found = each["score"], each["within"]
        if name.startswith("baseline."):
            continue
        scored[name] = found["models"]
        if found["p_holm"] < 0.05:
            rounded = round(found["value"], 2), round(found["low"], 2), round(found["high"], 2)
            held.setdefault(name, {})[each["damage"]] = rounded
    assert scored == dict(SCORED)
    assert held == {name: dict(found) for name, found in HELD.items()}
    assert summary["models"] == MODELS


def test_no_measure_beat_the_input_jacobian_and_none_foresaw_flips(summary: dict[str, Any]) -> None:
    # The two general claims of the sentences.
    assert not [each for each in summary["comparisons"] if each["low"] > 0]
    kept = {damage: each["score"] for damage, each in summary["best_baseline"].items()}
    assert {kept[damage] for found in HELD.values() for damage in found} == {"baseline.input_jacobian"}
    assert not any({"flips_fresh", "accuracy_fresh"} & set(found) for found in HELD.values())


def test_each_verdict_has_its_words() -> None:
    good, none, against = foresight("tangent.sensitivity"), foresight("solution.modulus"), foresight("art.shapr")
    assert good.startswith("In part.") and "0.69, 0.48 to 0.84" in good and "input Jacobian" in good
    assert none.startswith("Not shown.") and "28 small networks on which it was valid" in none
    assert against.startswith("Against its promise.") and "-0.48" in against
    assert foresight("art.pdtp") == "" and foresight("someone.elses") == ""
