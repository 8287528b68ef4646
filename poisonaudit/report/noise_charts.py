"""Charts of weight noise: what it does by its size, and how delicate each weight matrix is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from poisonaudit.report.bound_charts import LINES, finish, positive, span
from poisonaudit.report.charts import note
from poisonaudit.report.formats import figure, items_of, mapping_of, number, state
from poisonaudit.report.svg import ACCENT, INK, MUTED, draw, drawable
from poisonaudit.results import Measure

# Curves in one chart, models with bars of their own, and bars of one of them.
MOST_CURVES, MOST_SINGLE, MOST_LAYERS = 5, 3, 32
# Measure -> key of its curve, what the axis says.
_CURVES = {
    "weight_noise.rms": ("rms", "|dv| / |v|, root mean square"),
    "weight_noise.flip_rate": ("flip_rate", "share of predictions flipped"),
}
_CONDITIONS = "weight_noise.condition_relative_max"
# Sizes marked on the axis.
_TICKS = (0.001, 0.01, 0.1, 1.0)


def noise_charts(name: str, labels: Sequence[str], measures: Sequence[Measure | None], *, key: str) -> list[Markup]:
    """Further charts of a weight noise measure; none for other measures.

    Args:
        name: id of the measure.
        labels: one name per model.
        measures: one measure, or None, per model.
        key: unique on the page.

    Returns:
        Inline SVGs.
    """
    measured = [
        (label, m) for label, m in zip(labels, measures, strict=True) if m is not None and state(m) == "measured"
    ]
    if name in _CURVES:
        which, axis = _CURVES[name]
        curves = [(label, found) for label, m in measured if len((found := stored_curve(m, which))[0]) > 1]
        return [size_chart(curves[:MOST_CURVES], axis, log=which == "rms", key=f"{key}-curve")] if curves else []
    if name == _CONDITIONS:
        bars = [(label, stored_layers(m)) for label, m in measured]
        return [
            layer_chart(layers, key=f"{key}-layers-{i}", title=f"Relative condition numbers of {label}")
            for i, (label, layers) in enumerate(bars[:MOST_SINGLE])
            if len(layers) > 1
        ]
    return []


Curve = tuple[list[float], list[float], list[float], list[float]]


def stored_curve(measure: Measure, which: str) -> Curve:
    """Sizes, values and ends of the intervals, where all of them are numbers."""
    curve = mapping_of(mapping_of(measure.details).get("curve"))
    prefix = {"rms": "rms", "flip_rate": "flip"}[which]
    columns = [items_of(curve.get(key)) for key in ("rho", which, f"{prefix}_low", f"{prefix}_high")]
    if len({len(column) for column in columns}) != 1:
        return [], [], [], []
    points = [tuple(figure({"at": value}, "at") for value in point) for point in zip(*columns, strict=True)]
    kept = [point for point in points if None not in point and positive(point[0])]
    found = [[float(point[i] or 0.0) for point in kept] for i in range(4)]
    return found[0], found[1], found[2], found[3]


def stored_layers(measure: Measure) -> list[tuple[str, float]]:
    """Matrices with their median condition number, in the network's order; the largest ones where there are many."""
    stored = mapping_of(mapping_of(measure.details).get("median_by_layer"))
    found = [(str(name), value) for name in stored if positive(value := figure(stored, name))]
    if len(found) > MOST_LAYERS:
        least = sorted((value for _, value in found), reverse=True)[MOST_LAYERS - 1]
        found = [(name, value) for name, value in found if value >= least][:MOST_LAYERS]
    return found


def size_chart(curves: Sequence[tuple[str, Curve]], axis: str, *, log: bool, key: str) -> Markup:
    """A quantity against the size of the noise, a line with its interval per model.

    Args:
        curves: (model, (sizes, values, lower ends, upper ends)) each, at least one.
        axis: what the values are.
        log: whether the values are on a logarithmic axis as well.
        key: unique on the page.

    Returns:
        An inline SVG.
    """
    below = 0.62 + 0.2 * len(curves)
    height = 2.5 + below

    def paint(canvas: Any) -> None:
        axes = canvas.add_axes((0.15, below / height, 0.81, 0.97 - below / height))
        axes.set_xscale("log")
        if log and any(positive(value) for _, (_, values, _, _) in curves for value in values):
            axes.set_yscale("log", nonpositive="clip")
            axes.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
        else:
            axes.set_ylim(-0.02, 1.02)
        for i, (model, (sizes, values, lows, highs)) in enumerate(curves):
            colour, dashes = LINES[i % len(LINES)]
            axes.fill_between(sizes, lows, highs, color=colour, alpha=0.2, linewidth=0)
            axes.plot(sizes, values, color=colour, linestyle=dashes, linewidth=1.6, marker="o", markersize=3,
                      label=drawable(model, 48))  # fmt: skip
        axes.axvline(0.1, color=MUTED, linewidth=0.8, linestyle=":")
        axes.set_xticks(_TICKS, [f"{100 * tick:g} %" for tick in _TICKS])
        axes.minorticks_off()
        axes.set_xlabel("noise norm per weight norm")
        axes.set_ylabel(axis)
        axes.grid()
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(labelsize=8, labelcolor=MUTED)
        canvas.legend(*axes.get_legend_handles_labels(), loc="lower left", frameon=False, fontsize=8.5, handlelength=3,
                      labelcolor=INK)  # fmt: skip

    told = "; ".join(f"{model}: {told_curve(*curve)}" for model, curve in curves)
    title = f"{axis[0].upper()}{axis[1:]} by size of the noise"
    text = f"Bands: 95 % intervals over the draws; dotted line: 10 %. {told}"
    return draw(paint, width=4.7, height=height, key=key, title=title, text=text)


def told_curve(sizes: Sequence[float], values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> str:
    """Each point in words."""
    return ", ".join(
        f"{number(value, 3)} ({number(low, 3)} to {number(high, 3)}) at {100 * size:g} %"
        for size, value, low, high in zip(sizes, values, lows, highs, strict=True)
    )


def layer_chart(layers: Sequence[tuple[str, float]], *, key: str, title: str) -> Markup:
    """The condition number of every weight matrix as bars on a logarithmic axis.

    Args:
        layers: (name, median condition number) each, at least one.
        key: unique on the page.
        title: accessible name.

    Returns:
        An inline SVG.
    """
    low, high = span([value for _, value in layers])

    def paint(canvas: Any) -> None:
        axes = canvas.add_axes((0, 0, 1, 1))
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        for i, (_, value) in enumerate(layers):
            axes.barh(i, value - low, left=low, height=0.6, color=ACCENT, edgecolor=ACCENT, linewidth=1)
            note(axes, str(number(value, 3)), value, i)
        finish(canvas, axes, [drawable(name) for name, _ in layers])

    told = "; ".join(f"{name} {number(value, 3)}" for name, value in layers)
    height = 0.5 + 0.22 * len(layers)
    return draw(paint, width=4.4, height=height, key=key, title=title, text=f"logarithmic axis. {told}.")
