"""Phi against retraining on attack steps; the full count is the soak test."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.attack_flag import CASES, KINDS, PIECES, RADII, VICTIMS, by_phi, cases, data, piece, scores, trained
from poisonaudit.validity import PHI_LIMIT


def given(phi: float, error: float, retrained: bool = True) -> dict[str, Any]:
    return {"phi": phi, "error": error, "error_over_step": 2 * error, "retrained": retrained}


def test_scores_by_hand() -> None:
    found = [given(0.1, 0.1), given(0.3, 0.2), given(0.2, 0.4), given(0.5, 0.1), given(2.0, 0.9), given(1.0, 0.5)]
    result = scores([*found, given(0.1, 9.0, retrained=False)])
    assert result["cases"] == 6 and result["without_a_retrained_minimum"] == 1
    assert result["share_vouched"] == result["share_good"] == 0.5
    assert result["precision"] == result["recall"] == pytest.approx(2 / 3)
    assert result["alarm_precision"] == result["alarm_recall"] == pytest.approx(2 / 3)
    # 0.2 becomes 0.4 over the other denominator
    assert scores(found, "error_over_step")["precision"] == pytest.approx(1 / 3)
    nothing = scores([])
    assert nothing["cases"] == 0 and nothing["precision"] is None
    table = by_phi(found)
    assert [row["cases"] for row in table] == [0, 1, 2, 2, 1] and table[-1]["to"] is None
    assert table[1]["error"] == 0.1 and table[2]["error"] == pytest.approx(0.3)


def test_on_a_convex_victim_phi_is_close_to_the_error() -> None:
    problem, held_out = trained("breast_cancer", "linear", 1e-2), data("breast_cancer", held_out=True)[0]
    found = list(cases(problem, held_out, (0.02, 2.0), 12, seed=5))
    assert {case["kind"] for case in found} == set(KINDS) and any(case["second_step"] for case in found)
    assert all(case["retrained"] for case in found)
    for case in found:
        if case["phi"] <= PHI_LIMIT:
            assert case["error"] < 0.3 and case["error"] == pytest.approx(case["phi"], rel=0.3)
        assert (case["error"] > 0.1) == (case["phi"] > 0.1)
    assert min(case["phi"] for case in found) < PHI_LIMIT < max(case["phi"] for case in found)
    again = list(cases(problem, held_out, (0.02, 2.0), 2, seed=5))
    assert again == found[:2]


@pytest.mark.soak
def test_phi_on_more_than_500_attack_steps() -> None:
    found = [
        case for index in range(len(VICTIMS)) for number in range(PIECES) for case in piece(index, number)["cases"]
    ]
    assert len(VICTIMS) * PIECES * CASES >= 500 and set(RADII) == {name for name, _, _ in VICTIMS}
    result = scores(found)
    assert result["cases"] >= 500 and result["precision"] >= 0.9 and result["recall"] >= 0.8
    # Without the random ones there are more folds to fall over (measured: 0.90 of 99).
    crafted = scores(case for case in found if not case["kind"].startswith("random"))
    assert crafted["precision"] >= 0.85
    for kind in KINDS:
        share = scores(case for case in found if case["kind"] == kind)["share_good"]
        assert 0.1 < share < 0.9
