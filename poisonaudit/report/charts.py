"""The two kinds of chart in a report: one measure over the models, and predicted against retrained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from markupsafe import Markup

from poisonaudit.quantities import TOLERANCE, Quantity
from poisonaudit.report.findings import Finding
from poisonaudit.report.formats import number, power_of_ten, state, usable
from poisonaudit.report.svg import ACCENT, CONTROL, INK, MUTED, PAPER, SECOND, WARN, draw, drawable
from poisonaudit.report.trials import Trial
from poisonaudit.results import Measure

WIDE_RANGE = 30.0
# Marker, colour, words, and which retrainings they stand for.
KINDS_OF_TRIAL: tuple[tuple[str, str, str, Callable[[Trial], bool]], ...] = (
    ("v", WARN, "retrained loosely", lambda trial: trial.training == "loose"),
    ("s", INK, "owner's procedure", lambda trial: trial.training == "trainer"),
    ("^", SECOND, "retrained, fresh seed", lambda trial: trial.training == "tight" and trial.fresh),
    ("o", ACCENT, "retrained, warm start", lambda trial: trial.training == "tight" and not trial.fresh),
)


def measure_chart(labels: Sequence[str], measures: Sequence[Measure | None], *, key: str, name: str) -> Markup:
    """One measure over the models: bars from zero, or points on a logarithmic axis where the range is wide.

    Args:
        labels: one name per model.
        measures: one measure, or None, per model.
        key: unique on the page.
        name: of the measure, for the accessible title.

    Returns:
        An inline SVG.
    """
    values = [None if m is None or state(m) != "measured" else m.number for m in measures]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    logarithmic = bool(finite) and min(finite) > 0 and max(finite) / min(finite) > WIDE_RANGE
    names = [drawable(label) for label in labels]

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        low, high = limits(finite, logarithmic)
        if logarithmic:
            axes.set_xscale("log")
        axes.set_xlim(low, high)
        for i, (value, measure) in enumerate(zip(values, measures, strict=True)):
            bar(axes, i, value, measure, low, high, logarithmic)
        name_rows(axes, names)
        label_axis(axes, logarithmic)
        place(figure, axes, logarithmic)

    scale = "logarithmic axis" if logarithmic else "axis from zero"
    told = "; ".join(f"{label}: {told_value(m)}" for label, m in zip(labels, measures, strict=True))
    height = 0.5 + 0.27 * max(len(labels), 1)
    return draw(paint, width=4.4, height=height, key=key, title=f"{name} by model", text=f"{scale}. {told}")


def name_rows(axes: Any, names: Sequence[str]) -> None:
    """Named rows from the top down, in a plain frame."""
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8, length=3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def told_value(measure: Measure | None) -> str:
    """A value in words for the accessible description."""
    if measure is None or state(measure) != "measured":
        return state(measure)
    shown = "infinite" if measure.infinite else str(number(measure.number))
    return shown if usable(measure) else f"{shown} (flagged)"


def limits(finite: Sequence[float], logarithmic: bool) -> tuple[float, float]:
    """Axis limits that leave room for the value written beside the longest bar."""
    if not finite:
        return 0.0, 1.0
    if logarithmic:
        decades = math.log10(max(finite) / min(finite))
        return min(finite) / 10 ** (0.08 * decades), max(finite) * 10 ** (0.08 * decades)
    low, high = min(0.0, min(finite)), max(0.0, max(finite))
    if low == high:
        return 0.0, 1.0
    room = 0.1 * (high - low)
    return (low - room if low < 0 else 0.0), high + room


def bar(axes: Any, i: int, value: float | None, measure: Measure | None, low: float, high: float, log: bool) -> None:
    """One model's bar or point with its value; flagged values are hollow, missing ones are words."""
    if value is None:
        axes.annotate(state(measure), (0, i), xycoords=("axes fraction", "data"), xytext=(4, 0),
                      textcoords="offset points", va="center", color=MUTED, style="italic")  # fmt: skip
        return
    sound = usable(measure)
    colour, fill = (ACCENT, ACCENT) if sound else (WARN, PAPER)
    dashes = "-" if sound else "--"
    if math.isinf(value):
        # Beyond every finite bar, up to the edge that the axis had before room was made for the values.
        width = 1.2 if log else 5
        axes.plot([low, high], [i, i], color=colour, linewidth=width, linestyle=dashes, solid_capstyle="butt")
        axes.plot([high], [i], marker=">", color=colour, markersize=8)
        note(axes, str(number(value)) + ("" if sound else " flagged"), high, i)
        return
    if log:
        axes.plot([low, value], [i, i], color=colour, linewidth=1.2, linestyle=dashes)
        axes.plot([value], [i], marker="o", color=colour, markerfacecolor=fill, markersize=7)
    else:
        axes.barh(i, value, height=0.55, color=fill, edgecolor=colour, linewidth=1, linestyle=dashes)
    note(axes, str(number(value, 3)) + ("" if sound else " flagged"), value if log else max(value, 0.0), i)


def note(axes: Any, text: str, x: float, y: float) -> None:
    """A value written to the right of its bar, where it cannot run into the model names."""
    axes.annotate(drawable(text), (x, y), xytext=(7, 0), textcoords="offset points", va="center", color=INK,
                  fontsize=8.5)  # fmt: skip


def label_axis(axes: Any, logarithmic: bool) -> None:
    """Few, plain tick labels in the same notation as the tables."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axes.get_xlim()
    powers = logarithmic and not (low > 1e-3 and high < 1e5)
    axes.xaxis.set_major_locator(LogLocator(numticks=5) if logarithmic else MaxNLocator(4))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: drawable(tick(value, powers))))


def tick(value: float, powers: bool) -> str:
    """Tick text: powers of ten where the axis spans far, short numbers elsewhere."""
    if powers:
        return power_of_ten(round(math.log10(value)))
    return str(number(float(f"{value:.6g}"), 3))


def place(figure: Any, axes: Any, logarithmic: bool) -> None:
    """Put the axes and set their range so that every label fits: measured, not guessed."""
    renderer = figure.canvas.get_renderer()
    axes.set_position((0.2, 0.3, 0.75, 0.65))
    for _ in range(3):
        box = axes.bbox
        beyond = max((text.get_window_extent(renderer).x1 for text in axes.texts), default=0.0) - box.x1
        low, high = axes.get_xlim()
        stretch = 1 + max(beyond + 2, 0) / box.width * 1.3
        axes.set_xlim(low, low * (high / low) ** stretch if logarithmic else low + (high - low) * stretch)
        taken = axes.yaxis.get_tightbbox(renderer).transformed(figure.transFigure.inverted())
        below = axes.xaxis.get_tightbbox(renderer).transformed(figure.transFigure.inverted())
        now = axes.get_position()
        left, bottom = now.x0 - taken.x0 + 0.005, now.y0 - below.y0 + 0.01
        axes.set_position((left, bottom, max(0.955 - left, 0.2), max(0.98 - bottom, 0.2)))


def scatter_chart(findings: Sequence[Finding], *, key: str, quantity: Quantity) -> Markup | None:
    """Predicted against retrained with the diagonal; trainings and controls told apart by shape and by colour.

    Args:
        findings: attacks of one quantity.
        key: unique on the page.
        quantity: what they are measured by.

    Returns:
        An inline SVG, None if no attack has both numbers.
    """
    pairs = [
        (found, trial)
        for found in findings
        for group in found.groups
        for trial in group.trials
        if finite(found.predicted) and finite(trial.value)
    ]
    if not pairs:
        return None
    shown = [found for found in findings if any(found is other for other, _ in pairs)]

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        numbers = [n for f, t in pairs for n in (f.predicted, t.value, t.control) if finite(n)]
        low, high = min([*numbers, quantity.no_effect]), max([*numbers, quantity.no_effect])
        room = 0.09 * (high - low or 1.0)
        low, high = low - room, high + room
        axes.plot([low, high], [low, high], color=MUTED, linewidth=0.9, label="exact prediction")
        if quantity.confirmed_by == "size":
            confirmed_band(axes, quantity.no_effect, low, high)
        elif quantity.key == "margin":
            axes.axhline(0, color=MUTED, linewidth=0.8, linestyle=":", label="decision boundary")
        series(
            axes, [(f.predicted, t.control) for f, t in pairs if t.control is not None], "x", CONTROL, "clean control"
        )
        for marker, colour, label, chosen in KINDS_OF_TRIAL:
            series(axes, [(f.predicted, t.value) for f, t in pairs if chosen(t)], marker, colour, label)
        name_attacks(axes, shown, pairs, high)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_xlabel(f"predicted {quantity.word}")
        axes.set_ylabel(f"retrained {quantity.word}")
        axes.grid()
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(labelsize=8, labelcolor=MUTED)
        label_axis(axes, False)
        axes.yaxis.set_major_locator(axes.xaxis.get_major_locator().__class__(4))
        axes.yaxis.set_major_formatter(axes.xaxis.get_major_formatter())
        axes.set_position((0.13, 0.25, 0.83, 0.69))
        figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False, fontsize=8.5,
                      labelcolor=INK)  # fmt: skip

    told = "; ".join(
        f"{f.label}: predicted {number(f.predicted)}, {t.name}{'' if t.training == 'tight' else f' ({t.training})'} "
        f"{number(t.value)}"
        for f, t in pairs
    )
    title = f"Predicted against retrained: {quantity.word}"
    return draw(paint, width=4.7, height=5.1, key=key, title=title, text=told)


def confirmed_band(axes: Any, start: float, low: float, high: float) -> None:
    """The values that confirm a prediction: within the tolerance of its effect, which is counted from `start`."""
    predicted = [low, start, high]
    below, above = ([start + (x - start) * (1 + side * TOLERANCE) for x in predicted] for side in (-1, 1))
    axes.fill_between(predicted, below, above, color=MUTED, alpha=0.1, linewidth=0,
                      label=f"confirmed (within {100 * TOLERANCE:.0f} %)")  # fmt: skip


def series(axes: Any, points: Sequence[tuple[Any, Any]], marker: str, colour: str, label: str) -> None:
    """One kind of retraining."""
    points = [(x, y) for x, y in points if finite(y)]
    if points:
        face = PAPER if marker in "^vs" else colour
        axes.plot(*zip(*points, strict=True), linestyle="none", marker=marker, markersize=6.5, color=colour,
                  markerfacecolor=face, markeredgewidth=1.3, label=label, clip_on=False)  # fmt: skip


def name_attacks(axes: Any, shown: Sequence[Finding], pairs: Sequence[tuple[Finding, Any]], top: float) -> None:
    """The number of each attack above its highest point."""
    for found in shown:
        peak = max(t.value for f, t in pairs if f is found)
        name = found.label.split(" ")[0] + ("" if found.valid else " (not valid)")
        axes.annotate(name, (found.predicted, peak), xytext=(0, 8), textcoords="offset points",
                      ha="center", fontsize=8.5, color=INK)  # fmt: skip


def finite(value: float | None) -> TypeGuard[float]:
    """True for a number that has a place on an axis."""
    return value is not None and math.isfinite(value)
