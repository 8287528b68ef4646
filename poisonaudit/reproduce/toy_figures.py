"""Figures 2 and 3 of the toy network: solution sets as curves, and the poisoned loss landscape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from poisonaudit.report.svg import ACCENT, CONTROL, INK, MUTED, PAPER, SECOND, WARN, draw
from poisonaudit.reproduce.result import Picture

Grid = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
CLEAN_PRODUCT = 2.0
_LEVELS = (0.01, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


def figure_2(origin: Tensor, product: float, radius: float, nearest: Tensor) -> Picture:
    """S(x), S(x^p) and the expanded area S(x) + radius B.

    Args:
        origin: the original solution (2,).
        product: w1 w2 on S(x^p).
        radius: kappa |x - x^p|.
        nearest: the solution in S(x^p) nearest to the origin.

    Returns:
        The picture.
    """
    title = "Figure 2: how far S(x) must be expanded to reach S(x^p)"
    text = (
        f"The curve w1 w2 = 2 with a band of width {radius:.4f} on either side, the curve w1 w2 = {product:g} just "
        "outside the band near w = (1, 2), and the original and the nearest new solution."
    )

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0.11, 0.13, 0.86, 0.83))
        upper, lower = _offset(radius), _offset(-radius)
        band = np.concatenate([upper, lower[::-1]])
        axes.fill(band[:, 0], band[:, 1], color=WARN, alpha=0.25, linewidth=0, label=f"S(x) + {radius:.3f} B")
        first = np.linspace(0.4, 3.2, 400)
        axes.plot(first, CLEAN_PRODUCT / first, color=ACCENT, label="S(x): w1 w2 = 2")
        axes.plot(first, product / first, color=SECOND, label=f"S(x^p): w1 w2 = {product:g}")
        axes.plot([float(origin[0]), float(nearest[0])], [float(origin[1]), float(nearest[1])], color=INK, linewidth=1)
        axes.plot(float(origin[0]), float(origin[1]), "o", color=INK, markersize=5, label="original w = (1, 2)")
        axes.plot(float(nearest[0]), float(nearest[1]), "D", color=CONTROL, markersize=5, label="nearest in S(x^p)")
        _finish(axes, (0.5, 2.6), (0.5, 3.2))

    return Picture("figure2", title, text, str(draw(paint, width=4.8, height=4.2, key="fig2", title=title, text=text)))


def figure_3(
    origin: Tensor, product: float, members: Tensor, grid: Grid, before: float, losses: Sequence[float]
) -> Picture:
    """Left: the solution sets and five estimated solutions; right: the same points on the poisoned landscape.

    Args:
        origin: the original solution (2,).
        product: w1 w2 on S(x^p).
        members: estimated solutions (m, 2).
        grid: first weights, second weights, sum of losses (rows: second weight).
        before: sum of losses at the origin.
        losses: the members' sums of losses.

    Returns:
        The picture.
    """
    title = "Figure 3: five estimated solutions beside the true sets and on the poisoned loss"
    text = (
        f"Five points on a straight line close to the curve w1 w2 = {product:g}. The sum of losses falls from "
        f"{before:g} at the original solution to between {min(losses):.4f} and {max(losses):.4f} at them."
    )

    def paint(figure: Any) -> None:
        left = figure.add_axes((0.07, 0.14, 0.41, 0.82))
        right = figure.add_axes((0.56, 0.14, 0.41, 0.82))
        first = np.linspace(0.6, 1.7, 300)
        left.plot(first, CLEAN_PRODUCT / first, color=ACCENT, label="S(x)")
        left.plot(first, product / first, color=SECOND, label="S(x^p)")
        lines = right.contour(*grid, levels=_LEVELS, colors=[MUTED], linewidths=0.7)
        right.clabel(lines, fmt="%g", fontsize=7, colors=[MUTED])
        for axes in (left, right):
            axes.plot(float(origin[0]), float(origin[1]), "o", color=INK, markersize=5, label="original w")
            points = members.numpy()
            axes.plot(points[:, 0], points[:, 1], "o", color=WARN, markersize=4, label="estimated")
            _finish(axes, (0.7, 1.6), (1.6, 2.5))

    svg = draw(paint, width=8.2, height=3.9, key="fig3", title=title, text=text)
    return Picture("figure3", title, text, str(svg))


def _offset(distance: float) -> NDArray[np.float64]:
    """The curve w1 w2 = 2 moved along its normal, kept where it does not fold over."""
    first = np.linspace(0.3, 4.0, 600)
    second = CLEAN_PRODUCT / first
    length = np.hypot(second, first)
    return np.column_stack([first + distance * second / length, second + distance * first / length])


def _finish(axes: Any, first: tuple[float, float], second: tuple[float, float]) -> None:
    axes.set_xlim(*first)
    axes.set_ylim(*second)
    axes.set_xlabel("w1")
    axes.set_ylabel("w2")
    legend = axes.legend(loc="upper right", fontsize=8, frameon=True, facecolor=PAPER, edgecolor=MUTED)
    legend.get_frame().set_linewidth(0.5)
