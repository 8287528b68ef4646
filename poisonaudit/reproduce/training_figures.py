"""Pictures of training with the bound: certified accuracy against the radius, and the bound against accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from poisonaudit.report.svg import ACCENT, CONTROL, INK, MUTED, PAPER, SECOND, draw
from poisonaudit.reproduce.axes import logarithmic
from poisonaudit.reproduce.result import Picture

Curve = tuple[str, str, Tensor, bool]
_STYLES = {
    "none": (INK, ":", "D"),
    "decay": (SECOND, "--", "s"),
    "k5": (ACCENT, "-", "o"),
    "margins": (CONTROL, "-.", "^"),
}
_NAMES = {"none": "no penalty", "decay": "decay", "k5": "K_5", "margins": "K_5 of margins"}
_RADIUS = 0.25


def certified_accuracy(panels: Mapping[str, Sequence[Curve]], rows: int) -> Picture:
    """Share of rows certified at least to a radius, against the radius, one panel per network.

    Args:
        panels: name of the network -> method, name, radii (n,) with -1 for wrong rows, and whether to draw it thick.
        rows: n.

    Returns:
        The picture.
    """
    title = "Certified accuracy against the l_inf radius"
    told = [
        f"{panel}: at 0.1 " + ", ".join(f"{name} {_share(radii, 0.1):.0%}" for _, name, radii, best in curves if best)
        for panel, curves in panels.items()
    ]
    text = (
        f"{'; '.join(told)}. {rows} test rows. Thick: the smallest bound of each method at most a point of test "
        "accuracy below training without penalty; thin: its other strengths."
    )

    def paint(figure: Any) -> None:
        for axes, (panel, curves) in zip(_axes(figure, len(panels)), panels.items(), strict=True):
            for method, _, radii, best in curves:
                colour, style, _ = _STYLES[method]
                grid = [0.005 * step for step in range(int(_RADIUS / 0.005) + 1)]
                shares = [_share(radii, radius) for radius in grid]
                width, alpha = (1.6, 1.0) if best else (0.7, 0.55)
                label = _NAMES[method] if best else None
                axes.plot(grid, shares, style, color=colour, linewidth=width, alpha=alpha, label=label)
            axes.set_title(panel, fontsize=9)
            axes.set_xlim(0, _RADIUS)
            axes.set_ylim(0, 1)
            _finish(axes, "radius", "certified accuracy")

    return Picture("radii", title, text, str(draw(paint, width=7.0, height=3.4, key="radii", title=title, text=text)))


def bound_against_accuracy(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Picture:
    """Certified bound against test accuracy, strengths joined by lines, one panel per network.

    Args:
        panels: name of the network -> method -> (test accuracy, bound) by ascending strength.

    Returns:
        The picture.
    """
    title = "Certified bound against test accuracy"
    told = [
        f"{panel}: " + ", ".join(f"{_NAMES[method]} from {found[0][1]:.3g} to {found[-1][1]:.3g}" for method, found in
                                  methods.items() if method != "none")
        for panel, methods in panels.items()
    ]  # fmt: skip
    text = f"Bounds from the weakest to the strongest penalty. {'; '.join(told)}. Right and low is good."

    def paint(figure: Any) -> None:
        for axes, (panel, methods) in zip(_axes(figure, len(panels)), panels.items(), strict=True):
            logarithmic(axes.set_yscale, axes.yaxis)
            best = max(accuracy for found in methods.values() for accuracy, _ in found)
            for method, found in methods.items():
                colour, style, mark = _STYLES[method]
                # A network that the penalty has shrunk to nothing would flatten all others.
                kept = [(accuracy, bound) for accuracy, bound in found if accuracy > best - 0.15 and bound > 0]
                pair = [accuracy for accuracy, _ in kept], [bound for _, bound in kept]
                axes.plot(*pair, style, color=colour, marker=mark, markersize=4, linewidth=1.1, label=_NAMES[method])
            axes.set_title(panel, fontsize=9)
            axes.minorticks_off()
            _finish(axes, "test accuracy", "certified bound")

    svg = draw(paint, width=7.0, height=3.4, key="frontier", title=title, text=text)
    return Picture("frontier", title, text, str(svg))


def _share(radii: Tensor, radius: float) -> float:
    """Share of all rows with at least this radius."""
    return float((radii >= radius).double().mean())


def _axes(figure: Any, count: int) -> list[Any]:
    width = 0.88 / count
    return [figure.add_axes((0.1 + place * width, 0.15, width - 0.09, 0.73)) for place in range(count)]


def _finish(axes: Any, horizontal: str, vertical: str) -> None:
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.grid(visible=True, axis="y")
    legend = axes.legend(fontsize=7, frameon=True, facecolor=PAPER)
    legend.get_frame().set_edgecolor(MUTED)
    legend.get_frame().set_linewidth(0.5)
