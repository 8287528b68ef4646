"""A loss landscape as a 3-D surface beside its contours, with solutions marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poisonaudit.report.svg import ACCENT, CONTROL, INK, MUTED, PAPER, SECOND, WARN, draw
from poisonaudit.reproduce.result import Picture

_MARKS = (("original", "o", INK), ("estimated", "o", WARN), ("1/|K|", "s", SECOND), ("retrained", "D", CONTROL))


@dataclass(frozen=True)
class Plane:
    """Objective values over a plane in weight space.

    Attributes:
        key: of the picture.
        name: what the two directions are.
        axis: coordinates, the same along both directions.
        values: objective, rows along the second direction.
        points: name -> coordinates of a solution's projection onto the plane.
    """

    key: str
    name: str
    axis: NDArray[np.float64]
    values: NDArray[np.float64]
    points: Mapping[str, tuple[float, ...]]


def surface_and_contours(plane: Plane) -> Picture:
    """3-D surface (left) and contours (right) of the poisoned objective.

    Args:
        plane: what was computed.

    Returns:
        The picture.
    """
    # Far from a solution the loss grows by orders of magnitude: its logarithm shows the valley.
    least = float(np.nanmin(plane.values))
    logarithmic = float(np.nanmax(plane.values)) > 20 * max(least, 1e-12)
    heights = np.log10(np.maximum(plane.values, 1e-12)) if logarithmic else plane.values
    measure = "log10 J" if logarithmic else "J"
    title = f"Figure 4: poisoned loss landscape over {plane.name}"
    text = f"J is lowest, {least:.4g}, in a valley around the solutions, and {np.nanmax(plane.values):.4g} at most."
    across, along = np.meshgrid(plane.axis, plane.axis)

    def paint(figure: Any) -> None:
        left = figure.add_axes((0.0, 0.02, 0.46, 0.94), projection="3d")
        left.plot_surface(across, along, heights, cmap="viridis", linewidth=0.1, rstride=1, cstride=1, alpha=0.9)
        left.set_zlabel(measure, fontsize=8)
        left.tick_params(labelsize=6, pad=-2)
        right = figure.add_axes((0.56, 0.14, 0.41, 0.81))
        right.contourf(across, along, heights, levels=14, cmap="viridis", alpha=0.55)
        lines = right.contour(across, along, heights, levels=14, colors=[MUTED], linewidths=0.5)
        right.clabel(lines, fmt="%.3g", fontsize=6, colors=[INK])
        for kind, mark, colour in _MARKS:
            places = [place for name, place in plane.points.items() if name.startswith(kind)]
            right.plot(
                [place[0] for place in places],
                [place[1] for place in places],
                mark,
                color=colour,
                markersize=5 if kind != "estimated" else 4,
                label=kind if kind != "estimated" else "estimated (1/n)",
                markeredgecolor=ACCENT if kind == "original" else "none",
            )
        right.set_xlim(plane.axis[0], plane.axis[-1])
        right.set_ylim(plane.axis[0], plane.axis[-1])
        right.set_xlabel("first direction")
        right.set_ylabel("second direction")
        legend = right.legend(fontsize=7, loc="upper right", frameon=True, facecolor=PAPER, edgecolor=MUTED)
        legend.get_frame().set_linewidth(0.5)

    key = f"figure4-{plane.key}"
    return Picture(key, title, text, str(draw(paint, width=8.4, height=3.9, key=key, title=title, text=text)))
