"""Variants of an attacked model side by side: what other decays and fewer rows do to the verified cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poisonaudit.report.charts import measure_chart
from poisonaudit.report.costs import Cost, cost_of
from poisonaudit.report.findings import Finding
from poisonaudit.report.formats import figure, items_of, mapping_of, number
from poisonaudit.report.page import Page
from poisonaudit.report.sections.convergence import VALID_BELOW
from poisonaudit.results import Measure

MOST_DRAWN = 24


@dataclass(frozen=True)
class Variant:
    """One variant; what is not stored is None.

    Attributes:
        label: its name.
        decay: it was trained with.
        rows: it was trained on.
        kappa: Lipschitz modulus of its solution map, infinite where the map jumps.
        kappa_valid: False where kappa must not be used.
        kappa_reason: why not, or why it is infinite; "" for a sound finite one.
        gradient: relative gradient of its training.
        sound: the gradient is small enough for numbers about the solution map.
        train_accuracy: on its clean training rows.
        test_accuracy: on the test rows.
        cost: what attacking it costs; None where no search is stored.
    """

    label: str
    decay: float | None
    rows: float | None
    kappa: float | None
    kappa_valid: bool
    kappa_reason: str
    gradient: float | None
    sound: bool | None
    train_accuracy: float | None
    test_accuracy: float | None
    cost: Cost | None

    @property
    def value(self) -> float | None:
        """The verified cost."""
        return None if self.cost is None else self.cost.value

    @property
    def lower(self) -> float:
        """Largest budget that retraining showed not to succeed, 0 where there is none."""
        return 0.0 if self.cost is None or self.cost.lower is None else self.cost.lower


def context(page: Page) -> dict[str, Any]:
    """One block per attack whose cost was searched for variants of the model."""
    compared = [(found, variants(found)) for found in page.findings]
    return {"blocks": [block(i, found, each) for i, (found, each) in enumerate(compared) if each]}


def variants(found: Finding) -> list[Variant]:
    """The stored variants in their order, the model as attacked first; anything in them may be missing or null."""
    stored = [item for item in items_of(found.attack.hardening) if isinstance(item, Mapping)]
    return [variant(item, i) for i, item in enumerate(stored, 1)]


def variant(stored: Mapping[str, Any], position: int) -> Variant:
    """One variant."""
    kappa = math.inf if stored.get("kappa_infinite") is True else figure(stored, "kappa")
    valid, gradient = stored.get("kappa_valid") is not False, figure(stored, "relative_gradient")
    doubtful = kappa is not None and (not valid or math.isinf(kappa))
    return Variant(
        label=str(stored.get("label") or f"variant {position}"),
        decay=figure(stored, "decay"),
        rows=figure(stored, "rows"),
        kappa=kappa,
        kappa_valid=valid,
        kappa_reason=str(stored.get("kappa_reason") or "").strip("; ") if doubtful else "",
        gradient=gradient,
        sound=None if gradient is None else gradient < VALID_BELOW,
        train_accuracy=figure(stored, "train_accuracy"),
        test_accuracy=figure(stored, "test_accuracy"),
        # The whole search where it is stored, else its result in the flat row.
        cost=cost_of(mapping_of(stored.get("cost")) or {key: stored.get(key) for key in ("over", "unit", "value")}),
    )


def block(position: int, found: Finding, compared: Sequence[Variant]) -> dict[str, Any]:
    """One attack's table and charts."""
    first = compared[0]
    searched = next((each.cost for each in compared if each.cost is not None), None)
    over = "cost" if searched is None else searched.over
    return {
        "found": found,
        "over": over,
        "unit": "" if searched is None else searched.unit,
        "lines": [{"variant": each, **beside(each, first)} for each in compared],
        "sentence": sentence(compared, over),
        "remarks": remarks(compared),
        "charts": charts(position, compared, over),
    }


def beside(each: Variant, first: Variant) -> dict[str, str]:
    """Cost and test accuracy of a variant, counted from those of the model as attacked; "" where there is nothing."""
    told = {"times": "", "accuracy": ""}
    if each is first:
        return told
    if each.value is not None and first.value:
        told["times"] = f"{number(each.value / first.value, 3)} times"
    if each.test_accuracy is not None and first.test_accuracy is not None:
        change = each.test_accuracy - first.test_accuracy
        told["accuracy"] = f"{'+' if change > 0 else ''}{number(round(change, 4))}"
    return told


def sentence(compared: Sequence[Variant], over: str) -> str:
    """What the dearest variant costs against the model as attacked, and whether the brackets tell them apart."""
    first, verified = compared[0], [each for each in compared[1:] if each.value is not None]
    if first.value is None or not verified:
        return ""
    best = max(verified, key=lambda each: each.value or 0.0)
    assert best.value is not None
    told = f"The verified {over} is {number(first.value)} ({first.label}) and {number(best.value)} ({best.label})"
    if best.value <= first.value:
        return f"{told}: no variant costs more."
    if best.lower < first.value:
        failed = f"only up to {number(best.lower)}" if best.lower else "nowhere"
        return f"{told}, but attacks on the latter were shown to fail {failed}: the two are not told apart."
    accuracy = beside(best, first)["accuracy"]
    at = f"; test accuracy changes by {accuracy}" if accuracy else ""
    return f"{told}, {number(best.value / first.value, 3)} times as much{at}."


def remarks(compared: Sequence[Variant]) -> list[tuple[str, str]]:
    """What there is to know of costs and moduli, each remark once with the variants that it is about."""
    found: dict[str, list[str]] = {}
    for each in compared:
        texts = ["" if each.cost is None else each.cost.reason, each.kappa_reason and f"kappa: {each.kappa_reason}"]
        for text in texts:
            if text:
                found.setdefault(text, []).append(each.label)
    return [(", ".join(labels), text) for text, labels in found.items()]


def charts(position: int, compared: Sequence[Variant], over: str) -> list[dict[str, Any]]:
    """The verified cost and kappa of every variant, where at least one has a number."""
    labels = [each.label for each in compared[:MOST_DRAWN]]
    drawn: list[dict[str, Any]] = []
    costs, moduli = [cost_measure(each) for each in compared], [kappa_measure(each) for each in compared]
    for name, words, measures in (
        (f"verified {over}", "more is safer; an upper bound of the true cost", costs),
        ("modulus kappa", "less is safer; first order, before any attack", moduli),
    ):
        if any(measure is not None and measure.number is not None for measure in measures):
            key = f"hardening-{position}-{len(drawn)}"
            chart = measure_chart(labels, measures[:MOST_DRAWN], key=key, name=name)
            drawn.append({"words": f"{name[:1].upper()}{name[1:]}: {words}.", "chart": chart})
    return drawn


def cost_measure(each: Variant) -> Measure | None:
    """The verified cost as a chart takes it."""
    if each.cost is None:
        return None
    details = {"status": "measured" if each.value is not None else "none found"}
    return Measure("attack.verified_cost", each.value, each.cost.unit, "upper", "higher_is_safer", details=details)


def kappa_measure(each: Variant) -> Measure | None:
    """The modulus as a chart takes it."""
    if each.kappa is None:
        return None
    infinite = math.isinf(each.kappa)
    return Measure(
        "solution.modulus",
        None if infinite else each.kappa,
        "weight norm per input norm",
        "estimate",
        "lower_is_safer",
        valid=each.kappa_valid,
        reason=each.kappa_reason,
        details={"infinite": infinite},
    )
