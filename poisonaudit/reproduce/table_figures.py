"""Pictures beside the tables: the loss along the estimated step, and the losses as the move grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from poisonaudit.report.svg import ACCENT, CONTROL, INK, MUTED, PAPER, SECOND, WARN, draw
from poisonaudit.reproduce.axes import logarithmic
from poisonaudit.reproduce.result import Picture, Row


def along_the_step(told: str, shares: Sequence[float], line: Sequence[float], factor: float, true: float) -> Picture:
    """Loss of the moved rows at `w + t v0`, with t = 1 (1/n), t = n/|K| (the paper) and the retrained loss.

    Args:
        told: how many rows.
        shares: values of t.
        line: losses there.
        factor: n/|K|.
        true: loss at the retrained solution.

    Returns:
        The picture.
    """
    key = "along-" + "".join(letter for letter in told if letter.isalnum())
    title = f"Loss on the moved rows along the estimated step, {told}"
    text = (
        f"The loss at t = 1, the derivative with 1/n, against {true:.3g} at the retrained solution; "
        f"the paper's 1/|K| goes on to t = {factor:g}."
    )

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0.16, 0.15, 0.8, 0.8))
        axes.plot(shares, line, color=MUTED, linewidth=1)
        axes.axhline(true, color=CONTROL, linewidth=1, linestyle="--", label="retrained")
        axes.plot(0.0, line[0], "o", color=INK, markersize=5, label="original (t = 0)")
        for place, colour, name in ((1.0, ACCENT, "1/n (t = 1)"), (factor, SECOND, f"1/|K| (t = {factor:g})")):
            axes.plot(place, _between(shares, line, place), "D", color=colour, markersize=5, label=name)
        _finish(axes, "t in w + t v0", "loss on the moved rows")

    return Picture(key, title, text, str(draw(paint, width=4.8, height=3.4, key=key, title=title, text=text)))


def losses_by_stepsize(
    rows: Sequence[Row], sizes: Sequence[float], printed: Mapping[float, tuple[float, float]]
) -> Picture:
    """Table 3 as a chart: loss against the size of the move, ours and printed.

    Args:
        rows: three per size, as the table has them.
        sizes: of the moves.
        printed: size -> losses at the original and at the estimated solution.

    Returns:
        The picture.
    """
    title = "Loss on the moved rows as the move grows"
    text = "Losses at the original, the two estimated and the retrained solutions, and the paper's two, both axes log."
    percent = [100 * size for size in sizes]
    before = [row.ours_mean for row in rows[0::3]]
    after = rows[1::3]
    lines = (
        ("ours: original", before, INK, "-"),
        ("ours: 1/n", [row.ours_mean for row in after], ACCENT, "-"),
        ("ours: 1/|K|", [row.ours_paper for row in after], SECOND, "-"),
        ("ours: retrained", [row.retrained for row in after], CONTROL, "--"),
        ("printed: original", [printed[size][0] for size in sizes], MUTED, ":"),
        ("printed: estimated", [printed[size][1] for size in sizes], WARN, ":"),
    )

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0.14, 0.15, 0.82, 0.8))
        axes.set_xscale("log")
        logarithmic(axes.set_yscale, axes.yaxis)
        for name, values, colour, style in lines:
            axes.plot(percent, values, style, color=colour, marker="o", markersize=3, linewidth=1.2, label=name)
        axes.set_xticks(percent, [f"{value:g}" for value in percent])
        axes.minorticks_off()
        _finish(axes, "move, % of a row's norm", "mean loss on the moved rows")

    svg = draw(paint, width=5.4, height=3.8, key="stepsizes", title=title, text=text)
    return Picture("stepsizes", title, text, str(svg))


def _between(shares: Sequence[float], line: Sequence[float], place: float) -> float:
    """The curve's value between two of its points."""
    import numpy as np

    return float(np.interp(place, shares, line))


def _finish(axes: Any, first: str, second: str) -> None:
    axes.set_xlabel(first)
    axes.set_ylabel(second)
    axes.yaxis.label.set_size(8)
    legend = axes.legend(fontsize=7, frameon=True, facecolor=PAPER, edgecolor=MUTED)
    legend.get_frame().set_linewidth(0.5)
