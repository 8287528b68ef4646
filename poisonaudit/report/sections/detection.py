"""What poison detectors find, what is left after dropping what they flag, and which rows to inspect first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from poisonaudit.report.findings import Finding
from poisonaudit.report.formats import figure, flat, items_of, mapping_of, number
from poisonaudit.report.page import Page
from poisonaudit.report.tally import Tally, tally

# Stored key, column heading.
FIGURES = (
    ("precision", "precision"),
    ("recall", "recall"),
    ("false_positive_rate", "false positive rate"),
    ("auroc", "area under the curve"),
    ("recall_at_poisoned", "recall at the number poisoned"),
)
# Shown elsewhere or of no use to a reader.
_KNOWN = {key for key, _ in FIGURES} | {
    "applicable", "reason", "note", "flagged", "filtered", "rows", "poisoned", "base_rate", "true_positives",
    "auroc_p_value", "auroc_unpoisoned", "seconds",
}  # fmt: skip
MOST_OTHERS = 6
NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Detector:
    """One detector on one poisoned data set.

    Attributes:
        name: of the detector.
        applicable: False where it cannot be run in this setting.
        reason: why not, or a remark.
        figures: one number per entry of `FIGURES`, None where not stored.
        beside: per entry of `FIGURES` what it is to be compared with, in words, "" where nothing is stored.
        flagged: number of flagged rows, None where not stored.
        filtered: what retraining without the flagged rows gave, None where that was not tried.
        others: further stored entries as (name, text).
    """

    name: str
    applicable: bool
    reason: str
    figures: list[float | None]
    beside: list[str]
    flagged: float | None
    filtered: Tally | None
    others: list[tuple[str, str]]


@dataclass(frozen=True)
class Ranking:
    """One order in which to inspect training rows.

    Attributes:
        name: of the ranking.
        applicable: False where there is no such order in this setting.
        reason: why not, or a remark.
        recall: share inspected -> share of the poisoned rows met.
        precision: average precision, None where not stored.
        by_chance: average precision that a random order is expected to have, None where not stored.
    """

    name: str
    applicable: bool
    reason: str
    recall: dict[float, float | None]
    precision: float | None
    by_chance: float | None


def context(page: Page) -> dict[str, Any]:
    """One block per attack that was looked for."""
    blocks = [block(found) for found in page.findings if found.attack.detectors or found.attack.inspection]
    return {"blocks": blocks, "columns": [name for _, name in FIGURES]}


def block(found: Finding) -> dict[str, Any]:
    """One attack's detectors and rankings."""
    lines, orders = detectors(found), rankings(found)
    shares = sorted({share for order in orders for share in order.recall})
    return {
        "found": found,
        "detectors": lines,
        "filtered": any(line.filtered is not None for line in lines),
        "rankings": orders,
        "shares": [(share, f"{number(100 * share, 3)} %") for share in shares],
    }


def detectors(found: Finding) -> list[Detector]:
    """What every stored detector said; anything may be missing or null."""
    return [detector(found, str(name), stored) for name, stored in mapping_of(found.attack.detectors).items()]


def detector(found: Finding, name: str, stored: Any) -> Detector:
    """One detector; what is stored under other names than those known here is kept as text."""
    body = mapping_of(stored)
    flagged = body.get("flagged")
    others = flat({key: value for key, value in body.items() if key not in _KNOWN and value not in (None, {}, [])})
    if stored is not None and not isinstance(stored, Mapping):
        others = flat({name: stored})
    return Detector(
        name=name,
        applicable=body.get("applicable") is not False,
        reason=remark(body),
        figures=[figure(body, key) for key, _ in FIGURES],
        beside=[compared_with(body, key) for key, _ in FIGURES],
        flagged=float(len(flagged)) if isinstance(flagged, list | tuple) else figure(body, "flagged"),
        filtered=what_is_left(found, body.get("filtered")),
        others=others[:MOST_OTHERS],
    )


def remark(body: Mapping[str, Any]) -> str:
    """Why something is not applicable, or a remark, without saying twice that it is not applicable."""
    text = str(body.get("reason") or body.get("note") or "")
    return text.removeprefix(f"{NOT_APPLICABLE}:").strip() if body.get("applicable") is False else text


def compared_with(body: Mapping[str, Any], key: str) -> str:
    """What a figure of a detector is to be compared with, "" where nothing is stored."""
    known = {"auroc": ("auroc_unpoisoned", "{} before the poison"), "recall_at_poisoned": ("base_rate", "{} by chance")}
    if key not in known or figure(body, known[key][0]) is None:
        return ""
    return known[key][1].format(number(figure(body, known[key][0]), 3))


def what_is_left(found: Finding, stored: Any) -> Tally | None:
    """What retraining without the flagged rows gave, None where that was not tried."""
    left = mapping_of(stored)
    if not left:
        return None
    warm, fresh = filtered_runs(left)
    rate = mapping_of(mapping_of(left.get("success")).get("filtered"))
    counts = tally(found.quantity, warm, fresh, {"success": rate} if rate else left.get("summary"))
    return None if counts.empty else counts


def filtered_runs(stored: Any) -> tuple[Any, list[Any]]:
    """The warm and the fresh retrainings without the flagged rows."""
    left = mapping_of(stored)
    # A full comparison of filtered, random and clean arms is stored as lists of runs, the warm one first.
    runs = items_of(mapping_of(mapping_of(left.get("arms")).get("filtered")).get("runs"))
    return (runs[0], runs[1:]) if runs else (left.get("warm"), items_of(left.get("fresh")))


def rankings(found: Finding) -> list[Ranking]:
    """Every stored order of inspection; anything may be missing or null."""
    return [ranking(str(name), mapping_of(body)) for name, body in mapping_of(found.attack.inspection).items()]


def ranking(name: str, body: Mapping[str, Any]) -> Ranking:
    """One order; a depth holds the recall itself or, among other numbers, under `recall`."""
    depths = mapping_of(body.get("recall_at")) or mapping_of(body.get("recall"))
    recall = {}
    for key, depth in depths.items():
        share = as_share(str(key))
        if share is not None:
            recall[share] = figure(depth, "recall") if isinstance(depth, Mapping) else figure(depths, key)
    chance = [figure(body, key) for key in ("expected_average_precision", "average_precision_random")]
    return Ranking(
        name=name,
        applicable=body.get("applicable") is not False,
        reason=remark(body),
        recall=recall,
        precision=figure(body, "average_precision"),
        by_chance=next((value for value in chance if value is not None), None),
    )


def as_share(key: str) -> float | None:
    """A share of the rows from its stored name, "0.05" or "5%", None if it is none."""
    try:
        share = float(key.removesuffix("%")) / (100 if key.endswith("%") else 1)
    except ValueError:
        return None
    return share if 0.0 < share <= 1.0 else None
