"""Pictures of the daroczy-* reproductions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poisonaudit.report.svg import ACCENT, CONTROL, INK, MUTED, PAPER, SECOND, WARN, draw
from poisonaudit.reproduce.result import Picture

_COLOURS = (ACCENT, SECOND, CONTROL, WARN)
# Estimate -> colour, dashes, name in the legend.
_STYLES: Mapping[str, tuple[str, Any, str]] = {
    "measured": (INK, "-", "measured on test rows"),
    "test_equals_train": (MUTED, "--", "test = train"),
    "eq5_log": (CONTROL, "-.", "eq. 5, logarithm"),
    "eq6": (SECOND, ":", "eq. 6"),
    "eq7": (ACCENT, (0, (4, 1, 1, 1)), "eq. 7"),
}


@dataclass(frozen=True)
class Curve:
    """A bound by depth in two forms.

    Attributes:
        label: the value that is varied.
        depths: horizontal.
        printed: common logarithms.
        corrected: common logarithms.
    """

    label: str
    depths: Sequence[int]
    printed: Sequence[float]
    corrected: Sequence[float]


def histograms(totals: Mapping[tuple[str, str], Tensor]) -> Picture:
    """Histograms of the total number of active units: before and after training, training rows beside test rows.

    Args:
        totals: (when, part) -> (n,) counts.

    Returns:
        The picture.
    """
    title = "Active units per row"
    told = "; ".join(
        f"{when} training, {part} rows: {float(counts.double().mean()):.1f} +- {float(counts.double().std()):.1f}"
        for (when, part), counts in totals.items()
    )
    panels = list(dict.fromkeys(when for when, _ in totals))

    def paint(figure: Any) -> None:
        for place, when in enumerate(panels):
            axes = figure.add_axes((0.09 + 0.47 * place, 0.16, 0.42, 0.72))
            _bars(axes, {part: counts for (each, part), counts in totals.items() if each == when}, 24)
            axes.set_title(f"{when} training", fontsize=9)
            axes.set_xlabel("active units")
            if place == 0:
                axes.set_ylabel("share of rows")
                _legend(axes)

    svg = draw(paint, width=7.0, height=3.0, key="totals", title=title, text=f"{told}.")
    return Picture("totals", title, f"{told}.", str(svg))


def histograms_by_layer(active: Mapping[tuple[str, str], Tensor], units: int) -> Picture:
    """The same for every layer, a row of panels before and one after training.

    Args:
        active: (when, part) -> (n, layers) counts.
        units: of the widest layer.

    Returns:
        The picture.
    """
    title = "Active units per row, by layer"
    panels = list(dict.fromkeys(when for when, _ in active))
    layers = next(iter(active.values())).shape[1]
    told = "; ".join(
        f"{when} training, {part} rows: {', '.join(f'{mean:.1f}' for mean in counts.double().mean(0).tolist())}"
        for (when, part), counts in active.items()
    )
    text = f"Means from the first hidden layer to the last. {told}."

    def paint(figure: Any) -> None:
        width, height = 0.9 / layers, 0.86 / len(panels)
        for down, when in enumerate(panels):
            for layer in range(layers):
                bottom = 0.11 + (len(panels) - 1 - down) * height
                axes = figure.add_axes((0.08 + layer * width, bottom, width - 0.035, height - 0.13))
                parts = {part: counts[:, layer] for (each, part), counts in active.items() if each == when}
                _bars(axes, parts, 34, (0, units))
                axes.set_title(f"layer {layer + 1}, {when}", fontsize=8)
                axes.tick_params(labelsize=7)
                if down == len(panels) - 1:
                    axes.set_xlabel("active units", fontsize=8)

    svg = draw(paint, width=7.0, height=4.2, key="layers", title=title, text=text)
    return Picture("layers", title, text, str(svg))


def bound_by_depth(name: str, panels: Mapping[str, Sequence[Curve]]) -> Picture:
    """Theorem 3.2 by depth, a panel for each factor, a colour for each of its values.

    Args:
        name: "fixed" or "growing": what happens to the number of active units.
        panels: the factor that is varied -> its curves.

    Returns:
        The picture.
    """
    held = "a fixed number of active units" if name == "fixed" else "a fixed share of active units"
    title = f"Theorem 3.2 by depth, {held}"
    told = "; ".join(
        f"{factor} {curve.label}: from {curve.corrected[0]:.1f} to {curve.corrected[-1]:.1f}"
        for factor, curves in panels.items()
        for curve in curves
    )
    text = f"log10 of the bound; solid corrected, dashed as printed. Corrected, first to last depth: {told}."

    def paint(figure: Any) -> None:
        for place, (factor, curves) in enumerate(panels.items()):
            axes = figure.add_axes((0.09 + 0.49 * (place % 2), 0.57 - 0.48 * (place // 2), 0.4, 0.36))
            for colour, curve in zip(_COLOURS, curves, strict=False):
                axes.plot(curve.depths, curve.corrected, color=colour, linewidth=1.3, label=curve.label)
                axes.plot(curve.depths, curve.printed, "--", color=colour, linewidth=1.0)
            axes.set_title(factor, fontsize=9)
            axes.set_xlabel("k")
            axes.grid(visible=True, axis="y")
            if place % 2 == 0:
                axes.set_ylabel("log10 of the bound")
            _legend(axes)

    svg = draw(paint, width=7.0, height=5.4, key=name, title=title, text=text)
    return Picture(name, title, text, str(svg))


def along_training(key: str, title: str, epochs: Tensor, curves: Mapping[str, Tensor]) -> Picture:
    """Measured and estimated numbers by epoch.

    Args:
        key: of the picture.
        title: its title; also the vertical axis.
        epochs: (t,).
        curves: "measured" or an estimate -> (t,), NaN where there is none.

    Returns:
        The picture.
    """
    last = ", ".join(f"{_STYLES[name][2]} {float(values[-1]):.4g}" for name, values in curves.items())
    text = f"After {int(epochs[-1])} epochs: {last}."

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0.1, 0.14, 0.86, 0.8))
        for name, values in curves.items():
            colour, dashes, label = _STYLES[name]
            kept = torch.isfinite(values)
            axes.plot(epochs[kept].tolist(), values[kept].tolist(), linestyle=dashes, color=colour,
                      linewidth=2.0 if name == "measured" else 1.2, label=label)  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_ylabel(title.lower())
        axes.grid(visible=True, axis="y")
        _legend(axes)

    return Picture(key, title, text, str(draw(paint, width=6.6, height=3.4, key=key, title=title, text=text)))


DRAWN = tuple(name for name in _STYLES if name != "measured")


def _bars(axes: Any, parts: Mapping[str, Tensor], bins: int, reach: tuple[int, int] | None = None) -> None:
    """Shares of rows by count, at most so many bins: bars for training rows, a line of steps for test rows."""
    low, high = reach or (
        min(int(counts.min()) for counts in parts.values()),
        max(int(counts.max()) for counts in parts.values()),
    )
    # Whole numbers: bins that hold the same number of them each, or the histogram is a comb.
    step = -(-(high - low + 1) // bins)
    edges = torch.arange(low, high + step + 1, step, dtype=torch.float64) - 0.5
    for part, counts in parts.items():
        shares = torch.histogram(counts.double().cpu(), bins=edges)[0] / len(counts)
        if part == "training":
            axes.bar(edges[:-1].tolist(), shares.tolist(), width=step, align="edge", color=ACCENT, alpha=0.45,
                     label=f"{part} rows")  # fmt: skip
        else:
            axes.stairs(shares.tolist(), edges.tolist(), color=SECOND, linewidth=1.3, label=f"{part} rows")
    axes.set_xlim(float(edges[0]) - 1.0, float(edges[-1]) + 1.0)
    axes.set_yticks([])


def _legend(axes: Any) -> None:
    legend = axes.legend(fontsize=7, frameon=True, facecolor=PAPER)
    legend.get_frame().set_edgecolor(MUTED)
    legend.get_frame().set_linewidth(0.5)


def gains(quantity: str, panels: Mapping[str, Mapping[str, Tensor]]) -> Picture:
    """Difference in mean absolute error to "test = train", a mark for each run and a bar of one standard error.

    Args:
        quantity: what is estimated.
        panels: optimiser -> estimate -> (r,) differences.

    Returns:
        The picture.
    """
    key = f"gains-{quantity.replace(' ', '-')}"
    title = f"Error of the estimated test {quantity} minus that of test = train"
    told = "; ".join(
        f"{optimiser}, {name} {float(values.mean()):+.3g}"
        for optimiser, estimates in panels.items()
        for name, values in estimates.items()
        if bool((values != 0).any())
    )
    text = f"Right of 0 is worse than test = train. Dots are runs, bars one standard error of their mean. {told}."

    def paint(figure: Any) -> None:
        width = 0.78 / len(panels)
        for place, (optimiser, estimates) in enumerate(panels.items()):
            axes = figure.add_axes((0.21 + place * width, 0.13, width - 0.03, 0.77))
            for row, values in enumerate(estimates.values()):
                mean = float(values.mean())
                spread = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
                axes.plot([mean - spread, mean + spread], [row, row], color=ACCENT, linewidth=3.0)
                axes.plot(values.tolist(), [row] * len(values), "o", color=SECOND, markersize=3)
            axes.axvline(0.0, color=INK, linewidth=0.8)
            axes.set_xscale("symlog", linthresh=0.02)
            axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
            axes.set_ylim(len(estimates) - 0.5, -0.5)
            names = list(estimates) if place == 0 else [""] * len(estimates)
            axes.set_yticks(range(len(estimates)), names)
            axes.set_title(optimiser, fontsize=9)
            axes.tick_params(labelsize=7)
            axes.grid(visible=True, axis="x")

    return Picture(key, title, text, str(draw(paint, width=7.0, height=3.2, key=key, title=title, text=text)))
