"""The section on hardened variants: what it says of verified costs, what it must not say, and odd stored entries."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from test_report_attacks import page_of, plain_attack
from test_report_html import read
from test_report_samples import HOSTILE

from poisonaudit.report import render_html
from poisonaudit.report.findings import finding
from poisonaudit.report.sections.hardening import sentence, variants
from poisonaudit.results import AttackResult


def entry(label: str, value: float | None, lower: float, **more: Any) -> dict[str, Any]:
    """What `verify.Hardened.to_json` stores."""
    trials = [{"budget": amount, "succeeded": value is not None and amount >= value, "successes": 2, "trials": 3}
              for amount in (lower, value or 1.0)]  # fmt: skip
    cost = {"over": "radius", "value": value, "unit": "pixels", "lower": lower, "upper": value, "trials": trials,
            "monotone": True, "predicted": 0.07, "reason": "an upper bound" if value else "none"}  # fmt: skip
    flat = {"label": label, "decay": 0.01, "rows": 60, "kappa": 2.5, "kappa_valid": True, "kappa_infinite": False,
            "kappa_reason": "; finite where the rank is constant", "relative_gradient": 1e-12, "train_accuracy": 0.99,
            "test_accuracy": 0.95}  # fmt: skip
    copied = {key: cost[key] for key in ("over", "value", "lower", "upper", "unit")}
    return {**flat, **copied, "cost": cost, **more}


def hardened(*entries: Any) -> AttackResult:
    return dataclasses.replace(plain_attack("flip"), hardening=list(entries))


def section(result: AttackResult) -> str:
    _, shown, _ = page_of(result)
    return shown[shown.rindex("Hardened variants") : shown.rindex("Beside other attacks")]


def test_costs_stand_side_by_side_with_kappa_and_accuracy() -> None:
    shown = section(
        hardened(
            entry("as attacked", 0.1, 0.08),
            entry("decay 0.1", 0.25, 0.2, decay=0.1, kappa=0.5, test_accuracy=0.938),
            entry("42 rows", 0.05, 0.04, rows=42),
        )
    )
    for words in (
        "The verified radius is 0.1 (as attacked) and 0.25 (decay 0.1), 2.5 times as much; test accuracy changes by "
        "−0.012.",
        "Verified radius by variant, in pixels", "no success at 0.2", "predicted: 0.07", "0.5 times", "0.938",
        "as attacked, decay 0.1, 42 rows: an upper bound", "Budgets that were tried: 42 rows", "2 of 3",
    ):  # fmt: skip
        assert words in shown, words
    # The condition on which a sound kappa is finite is no remark.
    assert "rank is constant" not in shown and "not valid" not in shown


def test_the_section_has_two_charts_with_their_numbers() -> None:
    html = render_html(hardened(entry("as attacked", 0.1, 0.08), entry("decay 0.1", None, 0.8)))
    part = html[html.index('<section id="hardening"') : html.index('<section id="other-attacks"')]
    charts = [a for tag, a in read(part).tags if tag == "svg" and a.get("class") == "chart"]
    assert len(charts) == 2
    assert "as attacked: 0.1; decay 0.1: none found" in part and "as attacked: 2.5; decay 0.1: 2.5" in part


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (entry("b", 0.25, 0.09), "only up to 0.09: the two are not told apart"),
        (entry("b", 0.25, 0.0), "shown to fail nowhere: the two are not told apart"),
        (entry("b", 0.1, 0.05), "no variant costs more"),
        (entry("b", None, 0.8), ""),
    ],
)
def test_brackets_that_overlap_prove_no_order(second: dict[str, Any], words: str) -> None:
    compared = variants(finding(hardened(entry("a", 0.1, 0.08), second)))
    told = sentence(compared, "radius")
    assert words in told and bool(words) == bool(told)


def test_a_kappa_that_is_infinite_or_not_valid_says_why() -> None:
    shown = section(
        hardened(
            entry("as attacked", 0.1, 0.08, kappa=None, kappa_infinite=True, kappa_reason="the rank jumps"),
            entry("b", 0.2, 0.1, kappa_valid=False, kappa_reason="not stationary", relative_gradient=1e-3),
        )
    )
    for words in (
        "∞",
        "as attacked: kappa: the rank jumps",
        "b: kappa: not stationary",
        "not valid",
        "no tight minimum",
    ):
        assert words in shown, words


@pytest.mark.parametrize(
    "stored",
    [
        [None, 3, "text"],
        [{}],
        [{"label": None, "cost": None, "kappa": "much", "value": None, "rows": []}],
        [{"label": HOSTILE, "value": 0.3, "over": "rows", "cost": {"trials": [None, {}], "reason": HOSTILE}}],
        [entry(HOSTILE, 0.1, 0.05), {"label": "flat", "value": 4, "over": "rows"}],
    ],
)
def test_odd_entries_never_crash_and_stay_text(stored: list[Any]) -> None:
    html, shown, parsed = page_of(hardened(*stored))
    assert HOSTILE not in html and "script" not in {tag for tag, _ in parsed.tags}
    assert "Hardened variants" in shown


def test_without_a_search_that_is_said_and_listed_as_not_tested() -> None:
    _, shown, _ = page_of(plain_attack("flip"))
    assert "No variant of an attacked model was searched for its cost." in shown
    assert "No variant of an attacked model (other decay, fewer rows) was searched for its cost." in shown
