"""Lipschitz bounds from both sides, which bound gave what, and how far predictions are certified."""

from __future__ import annotations

from typing import Any

from poisonaudit.report.bound_charts import bounds_chart, bracket_chart, curve_chart
from poisonaudit.report.formats import figure, items_of, mapping_of, state, usable
from poisonaudit.report.page import Page
from poisonaudit.results import AuditResult, Measure

MOST_MODELS = 24
# Charts of single models, and curves in one chart.
MOST_SINGLE, MOST_CURVES = 6, 5
NORMS = (("linf", "maximum norm (l_inf)"), ("l1", "sum norm (l_1)"))
RADIUS = "lipschitz.certified_radius_median"
# Stored name, name in charts, what it is.
BOUNDS = (
    ("k_star", "K*", "product of the layers' norms"),
    ("k1", "K₁", "Combettes and Pesquet"),
    ("k2", "K₂", "Virmaux and Scaman"),
    ("k3", "K₃", "norm of the product of absolute weights"),
    ("k4", "K₄", "Després and Pintore"),
    ("k5", "K₅", "norm of the sum instead of the sum of norms"),
    ("k6", "K₆", "K₅ with coupled signs"),
    ("ellipsoid", "ellipsoid", "by way of the Euclidean norm"),
    ("ellipsoid_tuned", "tuned ellipsoid", "the same with multipliers tuned by descent"),
    ("exact", "K exact", "largest norm over all activation patterns"),
    ("certified", "certified", "smallest with all rounding accounted for"),
)
AT = (0.0, 0.25, 0.5, 0.75, 1.0)


def context(page: Page) -> dict[str, Any]:
    """Brackets of all models, bounds of single ones, and curves."""
    return {
        "brackets": [found for norm, words in NORMS if (found := brackets(page, norm, words)) is not None],
        "models": [found for i in range(len(page.audits)) if (found := model(page, i))["norms"]],
        "curves": curves(page),
        "most_single": MOST_SINGLE,
        "most_curves": MOST_CURVES,
    }


def brackets(page: Page, norm: str, words: str) -> dict[str, Any] | None:
    """Lower and upper bound of every model in one norm, None where no model has one."""
    rows: list[dict[str, Any]] = []
    for label, audit in zip(page.labels, page.audits, strict=True):
        upper, lower = (audit.measures.get(f"lipschitz.{side}.{norm}") for side in ("upper", "lower"))
        above, below = value_of(upper), value_of(lower)
        name = mapping_of(upper.details).get("certified_winner") if upper is not None else None
        rows.append(
            {
                "label": label,
                "lower": below,
                "upper": above,
                "ratio": above / below if above is not None and below else None,
                "winner": short_name(name),
                "state": state(upper if upper is not None else lower),
            }
        )
    pairs = [(row["lower"], row["upper"]) for row in rows[:MOST_MODELS]]
    chart = bracket_chart([row["label"] for row in rows[:MOST_MODELS]], pairs, key=f"lb-{norm}", name=words)
    return None if chart is None else {"words": words, "rows": rows, "chart": chart}


def model(page: Page, position: int) -> dict[str, Any]:
    """All bounds of one model."""
    label, audit = page.labels[position], page.audits[position]
    found = [each for norm, words in NORMS if (each := bounds_of(audit, norm, words)) is not None]
    for each in found if position < MOST_SINGLE else ():
        title = f"Upper bounds of {label}, {each['words']}"
        bars = [
            (row["name"], row["value"], row["id"] == "certified") for row in each["rows"] if row["value"] is not None
        ]
        each["chart"] = bounds_chart(bars, each["lower"], key=f"lm{position}-{each['norm']}", title=title)
    return {"label": label, "norms": found}


def bounds_of(audit: AuditResult, norm: str, words: str) -> dict[str, Any] | None:
    """The stored bounds in one norm, None where there are none."""
    upper = audit.measures.get(f"lipschitz.upper.{norm}")
    if upper is None or state(upper) != "measured":
        return None
    details = mapping_of(upper.details)
    rows = [{"id": key, "name": name, "what": what, "value": figure(details, key)} for key, name, what in BOUNDS]
    if rows[-1]["value"] is None:
        rows[-1]["value"] = upper.number
    lower = value_of(audit.measures.get(f"lipschitz.lower.{norm}"))
    restarts = len(items_of(details.get("restarts")))
    return {"norm": norm, "words": words, "rows": rows, "lower": lower, "restarts": restarts, "chart": None}


def curves(page: Page) -> dict[str, Any] | None:
    """Certified accuracy of every model that has it."""
    rows, drawn = [], []
    for label, audit in zip(page.labels, page.audits, strict=True):
        measure = audit.measures.get(RADIUS)
        curve = mapping_of(mapping_of(measure.details).get("curve")) if measure is not None else {}
        radii, shares = numbers(curve.get("radius")), numbers(curve.get("certified_accuracy"))
        if measure is None or not usable(measure) or len(radii) != len(shares) or len(radii) < 2:
            continue
        drawn.append((label, radii, shares))
        picked = [round(share * (len(radii) - 1)) for share in AT]
        details = mapping_of(measure.details)
        rows.append(
            {
                "label": label,
                "rows": str(details.get("rows", "")),
                "within": str(details.get("within", "")),
                "median": measure.number,
                "points": [(radii[i], shares[i]) for i in picked],
            }
        )
    if not drawn:
        return None
    title = "Certified accuracy by radius"
    return {
        "chart": curve_chart(drawn[:MOST_CURVES], key="lc", title=title),
        "rows": rows,
        "more": len(rows) > MOST_CURVES,
    }


def numbers(stored: Any) -> list[float]:
    """A stored list of numbers, empty if it is anything else."""
    found = [figure({"value": value}, "value") for value in items_of(stored)]
    return [value for value in found if value is not None] if None not in found else []


def short_name(stored: Any) -> str:
    """A bound's name in charts."""
    return next((name for key, name, _ in BOUNDS if key == stored), str(stored) if stored else "")


def value_of(measure: Measure | None) -> float | None:
    """The number of a measure, None where there is none."""
    return measure.number if measure is not None and state(measure) == "measured" else None
