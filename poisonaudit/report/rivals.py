"""An attack beside others on the same rows, with the same budget and the same retraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poisonaudit.report.findings import Finding
from poisonaudit.report.formats import figure, items_of, mapping_of, number
from poisonaudit.report.tally import Tally, tally

OURS = "this attack"


@dataclass(frozen=True)
class Rival:
    """One line of the comparison with other attacks.

    Attributes:
        name: of the attack.
        ours: True for the attack of this result.
        applicable: False where it cannot be made in this setting.
        reason: why not, or a remark.
        tally: what retraining gave.
        gradients: crafting cost in gradients of the training loss, None where not stored.
        products: crafting cost in products with derivatives, None where not stored.
        seconds: wall time of crafting, None where not stored.
        notes: remarks.
    """

    name: str
    ours: bool
    applicable: bool
    reason: str
    tally: Tally
    gradients: float | None
    products: float | None
    seconds: float | None
    notes: Sequence[str]


def rivals(found: Finding) -> list[Rival]:
    """The attack of this result and then every stored baseline; empty without baselines."""
    baselines = mapping_of(found.attack.baselines)
    if not baselines:
        return []
    own = found.attack.cost
    lines = [_line(found, OURS, {"retrained": found.attack.retrained}, own, prefix="crafting_")]
    for name, stored in baselines.items():
        body = mapping_of(stored)
        lines.append(_line(found, str(name), body, body.get("cost")))
    return lines


def outdone(found: Finding) -> str:
    """A sentence where another attack did better over fresh seeds, else empty."""
    lines = rivals(found)
    ours = lines[0].tally if lines else None
    if ours is None:
        return ""
    told = [text for line in lines[1:] if (text := _ahead(found, line, ours))]
    return f"Another attack did better over fresh seeds with the same budget: {'; '.join(told)}." if told else ""


def _ahead(found: Finding, line: Rival, ours: Tally) -> str:
    theirs = line.tally
    if not line.applicable:
        return ""
    if theirs.share is not None and ours.share is not None and theirs.share != ours.share:
        told = (
            f"{line.name} reached the goal in {theirs.wins} of {theirs.judged}, {OURS} in {ours.wins} of {ours.judged}"
        )
        return told if theirs.share > ours.share else ""
    more, less = found.quantity.effect(theirs.mean), found.quantity.effect(ours.mean)
    if found.quantity.confirmed_by == "side" or more is None or less is None or more <= less:
        return ""
    means = f"{number(theirs.mean, 3)} against {number(ours.mean, 3)}"
    return f"{line.name} has a mean {found.quantity.word} of {means}"


def _line(found: Finding, name: str, body: Mapping[str, Any], cost: Any, prefix: str = "") -> Rival:
    retrained = mapping_of(body.get("retrained"))
    return Rival(
        name=name,
        ours=bool(prefix),
        applicable=body.get("applicable") is not False,
        reason=str(body.get("reason") or ""),
        tally=tally(found.quantity, retrained.get("warm"), retrained.get("fresh"), retrained.get("summary")),
        gradients=figure(cost, f"{prefix}gradients"),
        products=figure(cost, f"{prefix}products"),
        seconds=figure(cost, f"{prefix}seconds"),
        notes=[str(note) for note in items_of(body.get("notes")) if note is not None],
    )
