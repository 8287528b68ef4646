"""Pictures of weight noise: by layer and depth, by width, and by the size of the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from poisonaudit.report.svg import ACCENT, CONTROL, INK, MUTED, PAPER, SECOND, WARN, draw
from poisonaudit.reproduce.axes import logarithmic
from poisonaudit.reproduce.result import Picture

# Keys: formula, sampled, error, flips, found, bound, rms_bound.
Point = Mapping[str, float | None]
_STYLES = ((ACCENT, "o"), (SECOND, "s"), (WARN, "^"), (CONTROL, "D"), (INK, "v"))


@dataclass(frozen=True)
class Sweep:
    """Relative movement and flips against the size of the noise.

    Attributes:
        kind: of network.
        layer: what is perturbed.
        rhos: noise norm per weight norm.
        relative_rms: root mean square of |dv| / |v|.
        relative_low: lower end of its 95 % interval.
        relative_high: upper end.
        flip_rate: share of predictions that change.
    """

    kind: str
    layer: str
    rhos: Sequence[float]
    relative_rms: Sequence[float]
    relative_low: Sequence[float]
    relative_high: Sequence[float]
    flip_rate: Sequence[float]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {key: list(value) for key, value in asdict(self).items() if not isinstance(value, str)}


def by_layer(panels: Mapping[str, Mapping[str, Sequence[Point]]], rho: float) -> Picture:
    """Relative movement by layer: formula as lines, samples as marks with their error; a panel per kind of network.

    Args:
        panels: kind -> shape -> layers in order, then all at once.
        rho: size of the noise.

    Returns:
        The picture.
    """
    title = f"Movement of the outputs by layer, {100 * rho:g} % noise in one matrix"
    told = [
        f"{kind}, {shape}: " + ", ".join(f"{_of(point, 'sampled'):.3f}" for point in points[:-1])
        for kind, shapes in panels.items()
        for shape, points in shapes.items()
    ]
    text = f"Lines: first-order formula; marks: sampled, with two standard errors. {'; '.join(told)}."

    def paint(figure: Any) -> None:
        for axes, (kind, shapes) in zip(_panels(figure, len(panels)), panels.items(), strict=True):
            for (shape, points), (colour, mark) in zip(shapes.items(), _STYLES, strict=False):
                places = list(range(1, len(points)))
                axes.plot(places, [_of(point, "formula") for point in points[:-1]], color=colour, linewidth=1.1)
                axes.errorbar(places, [_of(point, "sampled") for point in points[:-1]], label=shape, color=colour,
                              yerr=[2.0 * _of(point, "error") for point in points[:-1]], marker=mark, markersize=3.5,
                              linestyle="none", linewidth=1.0)  # fmt: skip
            axes.axhline(rho, color=MUTED, linestyle=":", linewidth=1.0)
            axes.set_ylim(0.0, 1.15 * max(_of(p, "sampled") for found in panels.values() for s in found.values()
                                          for p in s[:-1]))  # fmt: skip
            axes.set_title(kind, fontsize=9)
            axes.set_xticks(range(1, max(len(points) for points in shapes.values())))
            _finish(axes, "matrix i", "|dv| / |v|, root mean square")

    return Picture("layers", title, text, str(draw(paint, width=7.4, height=3.6, key="layers", title=title, text=text)))


def by_width(panels: Mapping[str, Sequence[tuple[int, Point]]], rho: float) -> Picture:
    """Random noise, the worst that was found and the proved bound against the width; a panel per kind of network.

    Args:
        panels: kind -> (width, the middle matrix).
        rho: size of the noise.

    Returns:
        The picture.
    """
    title = f"Random and chosen noise of {100 * rho:g} % in the middle matrix, by width"
    told = [
        f"{kind}, m = {width}: found {_of(point, 'found'):.3g}, bound {_of(point, 'bound'):.3g}"
        for kind, points in panels.items()
        for width, point in points
    ]
    text = f"In units of the random movement, which is 1; the vertical axis is logarithmic. {'; '.join(told)}."

    def paint(figure: Any) -> None:
        for axes, (kind, points) in zip(_panels(figure, len(panels)), panels.items(), strict=True):
            logarithmic(axes.set_xscale, axes.xaxis)
            logarithmic(axes.set_yscale, axes.yaxis)
            widths = [width for width, _ in points]
            axes.axhline(1.0, color=MUTED, linestyle=":", linewidth=1.2, label="random, sampled")
            axes.plot(widths, [width**0.5 for width in widths], color=MUTED, linestyle="--", linewidth=1.0,
                      label="root of the width")  # fmt: skip
            series = (("rms_bound", CONTROL, "v", "bound of the random"), ("found", ACCENT, "o", "worst, found"),
                      ("bound", WARN, "s", "worst, bound"))  # fmt: skip
            for key, colour, mark, label in series:
                axes.plot(widths, [_of(point, key) for _, point in points], color=colour, marker=mark, markersize=4,
                          linewidth=1.2, label=label)  # fmt: skip
            axes.set_title(kind, fontsize=9)
            axes.minorticks_off()
            axes.set_xticks(widths, [f"{width}" for width in widths])
            _finish(axes, "width m", "movement over random movement")

    return Picture("widths", title, text, str(draw(paint, width=7.4, height=3.6, key="widths", title=title, text=text)))


def by_size(sweeps: Sequence[Sweep], shape: str) -> Picture:
    """Relative movement and flips from 0.1 % to 200 %.

    Args:
        sweeps: curves.
        shape: of the networks, in words.

    Returns:
        The picture.
    """
    title = f"Movement and flips by the size of the noise, {shape}"
    told = [
        f"{sweep.kind}, {sweep.layer}: "
        + ", ".join(
            f"{value:.2g} and {flips:.1%} at {100 * rho:g} %"
            for rho, value, flips in zip(sweep.rhos, sweep.relative_rms, sweep.flip_rate, strict=True)
            if rho in (0.01, 0.1, 1.0, 2.0)
        )
        for sweep in sweeps
    ]
    text = f"Bands: 95 % intervals over the draws; dotted: proportional to the noise. {'; '.join(told)}."

    def paint(figure: Any) -> None:
        left, right = _panels(figure, 2)
        logarithmic(left.set_yscale, left.yaxis)
        for axes in (left, right):
            axes.set_xscale("log")
        for sweep, (colour, mark) in zip(sweeps, _STYLES, strict=False):
            label = f"{sweep.kind}, {sweep.layer}"
            left.fill_between(sweep.rhos, sweep.relative_low, sweep.relative_high, color=colour, alpha=0.2, linewidth=0)
            left.plot(sweep.rhos, sweep.relative_rms, color=colour, marker=mark, markersize=3.5, linewidth=1.2,
                      label=label)  # fmt: skip
            left.plot(sweep.rhos, [sweep.relative_rms[0] * rho / sweep.rhos[0] for rho in sweep.rhos], ":",
                      color=colour, linewidth=0.9)  # fmt: skip
            right.plot(sweep.rhos, sweep.flip_rate, color=colour, marker=mark, markersize=3.5, linewidth=1.2,
                       label=label)  # fmt: skip
        right.set_ylim(-0.02, 1.0)
        for axes, words in ((left, "|dv| / |v|, root mean square"), (right, "share of predictions flipped")):
            axes.set_xticks((0.001, 0.01, 0.1, 1.0), ("0.1 %", "1 %", "10 %", "100 %"))
            axes.minorticks_off()
            _finish(axes, "noise norm per weight norm", words)

    return Picture("sizes", title, text, str(draw(paint, width=7.4, height=3.8, key="sizes", title=title, text=text)))


def _of(point: Point, key: str) -> float:
    value = point[key]
    return float("nan") if value is None else value


def _panels(figure: Any, count: int) -> list[Any]:
    width = 0.9 / count
    return [figure.add_axes((0.105 + place * width, 0.14, width - 0.11, 0.76)) for place in range(count)]


def _finish(axes: Any, horizontal: str, vertical: str) -> None:
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
    legend = axes.legend(fontsize=7, frameon=True, facecolor=PAPER)
    legend.get_frame().set_edgecolor(MUTED)
    legend.get_frame().set_linewidth(0.5)
