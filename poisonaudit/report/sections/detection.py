"""What poison detectors find, what is left after dropping what they flag, and which rows to inspect first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from poisonaudit.report.findings import Finding
from poisonaudit.report.formats import figure, flat, mapping_of, number
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
_KNOWN = {key for key, _ in FIGURES} | {"applicable", "reason", "flagged", "filtered"}
MOST_OTHERS = 6


@dataclass(frozen=True)
class Detector:
    """One detector on one poisoned data set.

    Attributes:
        name: of the detector.
        applicable: False where it cannot be run in this setting.
        reason: why not, or a remark.
        figures: one number per entry of `FIGURES`, None where not stored.
        flagged: number of flagged rows, None where not stored.
        filtered: what retraining without the flagged rows gave, None where that was not tried.
        others: further stored entries as (name, text).
    """

    name: str
    applicable: bool
    reason: str
    figures: list[float | None]
    flagged: float | None
    filtered: Tally | None
    others: list[tuple[str, str]]


@dataclass(frozen=True)
class Ranking:
    """One order in which to inspect training rows.

    Attributes:
        name: of the ranking.
        recall: share inspected -> share of the poisoned rows met, as (share, recall).
        precision: average precision, None where not stored.
        by_chance: average precision that a random order is expected to have, None where not stored.
    """

    name: str
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
    left = mapping_of(body.get("filtered"))
    others = flat({key: value for key, value in body.items() if key not in _KNOWN})
    if stored is not None and not isinstance(stored, Mapping):
        others = flat({name: stored})
    return Detector(
        name=name,
        applicable=body.get("applicable") is not False,
        reason=str(body.get("reason") or ""),
        figures=[figure(body, key) for key, _ in FIGURES],
        flagged=float(len(flagged)) if isinstance(flagged, list | tuple) else figure(body, "flagged"),
        filtered=tally(found.quantity, left.get("warm"), left.get("fresh"), left.get("summary")) if left else None,
        others=others[:MOST_OTHERS],
    )


def rankings(found: Finding) -> list[Ranking]:
    """Every stored order of inspection; anything may be missing or null."""
    orders = []
    for name, stored in mapping_of(found.attack.inspection).items():
        recall = mapping_of(mapping_of(stored).get("recall_at"))
        shares = {key: share for key in recall if (share := as_share(key)) is not None}
        orders.append(
            Ranking(
                name=str(name),
                recall={share: figure(recall, key) for key, share in shares.items()},
                precision=figure(stored, "average_precision"),
                by_chance=figure(stored, "expected_average_precision"),
            )
        )
    return orders


def as_share(key: str) -> float | None:
    """A share of the rows from its stored name, None if it is none."""
    try:
        share = float(key)
    except ValueError:
        return None
    return share if 0.0 < share <= 1.0 else None
