"""Pictures for Després and Pintore: bounds and errors by depth, and how the bounds of random networks spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from poisonaudit.report.svg import ACCENT, CONTROL, GRID, INK, MUTED, PAPER, SECOND, WARN, draw
from poisonaudit.reproduce.axes import logarithmic
from poisonaudit.reproduce.result import Picture

Values = Sequence[float | None]
_STYLES = (
    (WARN, "-", "v"),
    (SECOND, "--", "s"),
    (MUTED, "-.", "^"),
    (CONTROL, "-", "."),
    (ACCENT, "-", "x"),
    (INK, ":", "."),
)


def lines_by_depth(
    key: str,
    title: str,
    bounds: Mapping[str, Values],
    truth: tuple[str, Values],
    printed: Mapping[str, Values] | None = None,
) -> Picture:
    """Bounds against depth, logarithmic.

    Args:
        key: of the picture.
        title: short.
        bounds: name -> value per depth, from depth 1 on.
        truth: name and value per depth of what the bounds are to reach.
        printed: name -> printed values, drawn as circles without a line.

    Returns:
        The picture.
    """
    named, exact = truth
    at_last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in bounds.items() if values[-1] is not None)
    text = f"At depth {len(exact)}: {at_last}; {named} {_last(exact)}. The vertical axis is logarithmic."
    if printed:
        text += " Circles are printed values."

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0.15, 0.13, 0.63, 0.83))
        logarithmic(axes.set_yscale, axes.yaxis)
        for values in (printed or {}).values():
            axes.plot(*_points(values), "o", color=MUTED, markersize=6, markerfacecolor="none", markeredgewidth=0.8)
        for (name, values), (colour, style, mark) in zip(bounds.items(), _STYLES, strict=False):
            axes.plot(*_points(values), style, color=colour, marker=mark, markersize=4, linewidth=1.2, label=name)
        axes.plot(*_points(exact), "D", color=INK, markersize=3.5, label=named)
        _finish(axes, len(exact), "bound")

    return Picture(key, title, text, str(draw(paint, width=6.0, height=4.0, key=key, title=title, text=text)))


def errors_by_depth(
    key: str, title: str, measured: Mapping[str, Values], bound: tuple[str, Values] | None = None
) -> Picture:
    """Largest errors against depth, logarithmic.

    Args:
        key: of the picture.
        title: short.
        measured: name -> error per depth.
        bound: name and value per depth of an upper bound of it.

    Returns:
        The picture.
    """
    depths = max(len(values) for values in measured.values())
    text = "; ".join(
        f"{name}: {values[0]:.3g} at depth 1, {_last(values)} at depth {depths}" for name, values in measured.items()
    )
    text += ". The vertical axis is logarithmic."

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0.14, 0.15, 0.64, 0.8))
        logarithmic(axes.set_yscale, axes.yaxis)
        for (name, values), colour in zip(measured.items(), (ACCENT, SECOND), strict=False):
            axes.plot(*_points(values), color=colour, marker="o", markersize=4, linewidth=1.2, label=name)
        if bound is not None:
            axes.plot(*_points(bound[1]), "--", color=MUTED, linewidth=1.2, label=bound[0])
        _finish(axes, depths, "largest error")

    return Picture(key, title, text, str(draw(paint, width=6.0, height=3.2, key=key, title=title, text=text)))


def ratio_histograms(ratios: Mapping[str, Tensor], printed: Mapping[str, tuple[float, ...]]) -> Picture:
    """One histogram per bound over a common axis, with our average and the printed average, least and largest value.

    Args:
        ratios: name -> its ratio to K_* for every draw.
        printed: name -> printed maximum, average, minimum, standard deviation.

    Returns:
        The picture.
    """
    title = "Ratios of K and its bounds to K_* over random networks"
    means = ", ".join(f"{name} {float(values.mean()):.3f}" for name, values in ratios.items())
    text = (
        f"Histograms over {len(next(iter(ratios.values())))} draws; averages: {means}. The bar under a histogram spans "
        "the printed minimum to maximum, its mark is the printed average, the dashed line ours."
    )
    right = 1.05 * max(max(float(values.max()), *printed.get(name, (0.0,))) for name, values in ratios.items())
    width = right / 80

    def paint(figure: Any) -> None:
        share = 0.84 / len(ratios)
        for place, (name, values) in enumerate(ratios.items()):
            axes = figure.add_axes((0.12, 0.12 + share * (len(ratios) - 1 - place), 0.85, 0.9 * share))
            edges = [width * step for step in range(81)]
            axes.hist(values.numpy(), bins=edges, color=ACCENT, alpha=0.45, linewidth=0)
            top = axes.get_ylim()[1]
            axes.plot([float(values.mean())] * 2, [0, top], "--", color=ACCENT, linewidth=1.0)
            if name in printed:
                most, mean, least, _ = printed[name]
                axes.plot([least, most], [-0.08 * top] * 2, color=SECOND, linewidth=2.0)
                axes.plot(mean, -0.08 * top, "|", color=SECOND, markersize=9)
            axes.axhline(0, color=GRID, linewidth=0.6)
            axes.set_ylim(-0.2 * top, top)
            axes.set_xlim(0, right)
            axes.set_yticks([])
            axes.set_ylabel(name, rotation=0, ha="right", va="center")
            for side in ("top", "left", "right"):
                axes.spines[side].set_visible(False)
            if place < len(ratios) - 1:
                axes.set_xticks([])
                axes.spines["bottom"].set_visible(False)
        axes.set_xlabel("ratio to K_*")

    svg = draw(paint, width=6.4, height=5.2, key="ratios", title=title, text=text)
    return Picture("ratios", title, text, str(svg))


def _points(values: Values) -> tuple[list[int], list[float]]:
    """Depths, from 1, and values where there are any."""
    kept = [(depth, value) for depth, value in enumerate(values, 1) if value is not None and math.isfinite(value)]
    return [depth for depth, _ in kept], [value for _, value in kept]


def _last(values: Values) -> str:
    return "unknown" if values[-1] is None else f"{values[-1]:.4g}"


def _finish(axes: Any, depths: int, measure: str) -> None:
    axes.set_xlabel("depth l")
    axes.set_ylabel(measure)
    axes.set_xticks(range(1, depths + 1))
    axes.grid(visible=True, axis="y")
    axes.minorticks_off()
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, frameon=True, facecolor=PAPER)
    legend.get_frame().set_edgecolor(MUTED)
    legend.get_frame().set_linewidth(0.5)
