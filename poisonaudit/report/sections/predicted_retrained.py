"""Predicted against retrained: a scatter with the diagonal, every number, and a sentence per attack."""

from __future__ import annotations

from typing import Any

from poisonaudit.quantities import TOLERANCE, Quantity
from poisonaudit.report.charts import scatter_chart
from poisonaudit.report.costs import cost_of
from poisonaudit.report.findings import GOAL_RULE, RULE, Finding
from poisonaudit.report.formats import figure, mapping_of
from poisonaudit.report.page import Page
from poisonaudit.report.trials import Group, Trial

# Stored key, column heading. A kind's own primary number has a column of its own.
SIDE_NUMBERS = (
    ("margin", "mean margin"),
    ("margin_change", "margin change"),
    ("flipped", "rows flipped"),
    ("region_distance", "distance to the region"),
    ("agreement", "classes agreeing"),
    ("validation_loss", "loss on the rows"),
    ("group_accuracy", "accuracy of the group"),
    ("residual_ratio", "residual left"),
    ("lowest_curvature", "lowest curvature at the target"),
    ("displacement_norm", "weight change"),
    ("cosine", "cosine"),
    ("distance_ratio", "distance left"),
    ("test_accuracy", "test accuracy"),
    ("train_loss", "training loss"),
    ("relative_gradient", "relative gradient"),
)


def context(page: Page) -> dict[str, Any]:
    """A chart per quantity and a block per attack."""
    groups: dict[str, list[Finding]] = {}
    for found in page.findings:
        groups.setdefault(found.quantity.key, []).append(found)
    return {
        "charts": [chart_block(key, group) for key, group in groups.items()],
        "attacks": [attack_block(found) for found in page.findings],
        "rule": RULE,
        "goal_rule": GOAL_RULE,
    }


def chart_block(key: str, group: list[Finding]) -> dict[str, Any]:
    """Attacks measured alike in one chart, with what the number means and how it is confirmed."""
    quantity = group[0].quantity
    return {
        "quantity": quantity.word,
        "words": f"{quantity.meaning} {confirmation(quantity)}",
        "chart": scatter_chart(group, key=f"scatter-{key}", quantity=quantity),
    }


def confirmation(quantity: Quantity) -> str:
    """How a retraining confirms a predicted number of this kind."""
    if quantity.confirmed_by == "side":
        return "Confirmed if both reach the goal or both miss it."
    return f"Confirmed within {100 * TOLERANCE:.0f} % of the predicted effect."


def attack_block(found: Finding) -> dict[str, Any]:
    """One attack's cost, sentences and table, the prediction on the first line."""
    trials = [trial for group in found.groups for trial in group.trials]
    columns = [
        (key, name)
        for key, name in SIDE_NUMBERS
        if key != found.quantity.key and any(figure(trial.outcome, key) is not None for trial in trials)
    ]
    return {
        "found": found,
        "cost": cost_of(found.attack.verified_cost),
        "columns": [name for _, name in columns],
        "predicted_sides": [figure(found.attack.predicted, key) for key, _ in columns],
        "phi": figure(found.attack.predicted, "phi"),
        "method": str(mapping_of(found.attack.predicted).get("method") or ""),
        "groups": [group_block(group, [key for key, _ in columns]) for group in found.groups],
        "side_by_side": len(found.groups) > 1,
        "rates": rates(found),
    }


def group_block(group: Group, keys: list[str]) -> dict[str, Any]:
    """The lines of one kind of training."""
    return {"group": group, "lines": [line(trial, keys) for trial in group.trials]}


def line(trial: Trial, keys: list[str]) -> dict[str, Any]:
    """One retraining with its further numbers."""
    return {"trial": trial, "sides": [figure(trial.outcome, key) for key in keys]}


def rates(found: Finding) -> str:
    """Success rate of tight retrainings over fresh seeds with its interval, the clean control alongside, or ""."""
    tight = next((group for group in found.groups if group.training == "tight"), None)
    if tight is None or not tight.tally.rate:
        return ""
    # A control's movement is only the distance between seeds, which is no success of anybody.
    control = f"; clean control {tight.control}" if tight.control else ""
    return f"Success over fresh seeds: with the poison {tight.tally.rate}{control}."
