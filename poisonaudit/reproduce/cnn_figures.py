"""Pictures of `despres-cnn`: the bounds of every network, with max pooling explicit and implicit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poisonaudit.report.svg import ACCENT, CONTROL, INK, MUTED, PAPER, SECOND, WARN, draw
from poisonaudit.reproduce.axes import logarithmic
from poisonaudit.reproduce.cnn_printed import COLUMNS, NORMS, PRINTED, PRINTED_KEYS, Case
from poisonaudit.reproduce.result import Line, Picture

# In the order drawn side by side.
_MARKS = {
    "k_star": (WARN, "v"),
    "k1": (SECOND, "s"),
    "k3": (MUTED, "^"),
    "k4": (CONTROL, "o"),
    "k5": (ACCENT, "X"),
    "lower": (INK, "D"),
}


def bounds_by_network(norm: str, ours: Mapping[Case, Line]) -> Picture:
    """Bounds of one norm, a group of marks for each network and form of pooling, on a logarithmic axis.

    Args:
        norm: "l1" or "linf".
        ours: case -> its line.

    Returns:
        The picture, named after the norm.
    """
    cases = [case for case in ours if case[2] == norm]
    title = f"Bounds of the convolutional networks in {NORMS[norm]}"
    fourth = ", ".join(f"{case[0]} {case[1]} {_short(ours[case].values['k4'])}" for case in cases)
    text = f"K_4: {fourth}. Hollow marks are the source's, of other networks. The vertical axis is logarithmic."
    key = f"bounds-{norm}"

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0.12, 0.14, 0.7, 0.82))
        logarithmic(axes.set_yscale, axes.yaxis)
        for place, (name, (colour, mark)) in enumerate(_MARKS.items()):
            aside = 0.1 * (place - (len(_MARKS) - 1) / 2)
            shown = [(spot + aside, ours[case].values[name]) for spot, case in enumerate(cases)]
            kept = [(spot, value) for spot, value in shown if value is not None and value > 0.0]
            points = [spot for spot, _ in kept], [value for _, value in kept]
            axes.plot(*points, linestyle="none", marker=mark, color=colour, markersize=5, label=COLUMNS[name])
            if name in PRINTED_KEYS:
                values = [PRINTED[case][PRINTED_KEYS.index(name)] for case in cases]
                spots = [spot + aside for spot in range(len(cases))]
                axes.plot(spots, values, linestyle="none", marker=mark, color=colour, markersize=5, fillstyle="none")
        for spot in range(1, len(cases)):
            axes.axvline(spot - 0.5, color=MUTED, linewidth=0.4)
        axes.set_xticks(range(len(cases)), [f"{name}\n{pooling}" for name, pooling, _ in cases])
        axes.set_xlim(-0.5, len(cases) - 0.5)
        axes.set_ylabel("bound")
        axes.grid(visible=True, axis="y")
        axes.minorticks_off()
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, frameon=True, facecolor=PAPER)
        legend.get_frame().set_edgecolor(MUTED)
        legend.get_frame().set_linewidth(0.5)

    return Picture(key, title, text, str(draw(paint, width=6.6, height=4.0, key=key, title=title, text=text)))


def _short(value: float | None) -> str:
    return "left out" if value is None else f"{value:.3g}"
