"""Charts of Lipschitz bounds: lower to upper per model, all bounds of one model, certified accuracy by radius."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

from markupsafe import Markup

from poisonaudit.report.charts import label_axis, name_rows, note, place, tick
from poisonaudit.report.formats import number
from poisonaudit.report.svg import ACCENT, CONTROL, INK, MUTED, PAPER, SECOND, WARN, draw, drawable

# Colour and dashes of one model's curve: told apart without colour too.
LINES = ((ACCENT, "-"), (SECOND, "--"), (INK, ":"), (WARN, "-."), (CONTROL, (0, (6, 1, 1, 1, 1, 1))))


def bracket_chart(
    labels: Sequence[str], brackets: Sequence[tuple[float | None, float | None]], *, key: str, name: str
) -> Markup | None:
    """From the lower to the upper bound of every model, on a logarithmic axis.

    Args:
        labels: one name per model.
        brackets: (lower, upper) per model; None where there is none, infinity allowed above.
        key: unique on the page.
        name: of the quantity, for the accessible title.

    Returns:
        An inline SVG, None without a positive number.
    """
    numbers = [value for bracket in brackets for value in bracket if positive(value)]
    if not numbers:
        return None
    low, high = span(numbers)

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        for i, (lower, upper) in enumerate(brackets):
            bracket(axes, i, lower, upper, low, high)
        finish(figure, axes, [drawable(label) for label in labels])

    told = "; ".join(f"{label}: {told_bracket(*pair)}" for label, pair in zip(labels, brackets, strict=True))
    height = 0.5 + 0.3 * len(labels)
    title = f"{name}: lower to upper bound by model"
    return draw(paint, width=4.4, height=height, key=key, title=title, text=f"logarithmic axis. {told}")


def bracket(axes: Any, i: int, lower: float | None, upper: float | None, low: float, high: float) -> None:
    """One model: a bar between the bounds, an open end where one is missing or infinite."""
    if not positive(lower) and not positive(upper):
        words = "infinite" if upper is not None and math.isinf(upper) else "no number"
        axes.annotate(words, (0, i), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                      va="center", color=MUTED, style="italic")  # fmt: skip
        return
    first = lower if positive(lower) else low
    last = upper if positive(upper) else high
    axes.plot([first, last], [i, i], color=ACCENT, linewidth=4 if positive(lower) and positive(upper) else 1.2,
              solid_capstyle="butt", alpha=0.45)  # fmt: skip
    if positive(lower):
        axes.plot([lower], [i], marker=">", color=SECOND, markersize=7)
    if positive(upper):
        axes.plot([upper], [i], marker="<", color=ACCENT, markersize=7)
    note(axes, told_bracket(lower, upper), last, i)


def told_bracket(lower: float | None, upper: float | None) -> str:
    """Both ends in words."""
    words = [str(number(value, 3)) if value is not None else "?" for value in (lower, upper)]
    return " to ".join(words)


def bounds_chart(
    bounds: Sequence[tuple[str, float, bool]],
    lower: float | None,
    *,
    key: str,
    title: str,
    line: str = "lower bound",
) -> Markup | None:
    """All bounds of one model as bars on a logarithmic axis, and what lies below them as a line.

    Args:
        bounds: (name, value, certified with rounding) each; infinity allowed.
        lower: the lower bound, or None.
        key: unique on the page.
        title: accessible name.
        line: what `lower` is.

    Returns:
        An inline SVG, None without a positive number.
    """
    numbers = [value for _, value, _ in bounds if positive(value)]
    if not numbers:
        return None
    low, high = span([*numbers, *([lower] if positive(lower) else [])])

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        for i, (_, value, proved) in enumerate(bounds):
            end = value if positive(value) else (high if math.isinf(value) else low)
            colour = SECOND if proved else ACCENT
            axes.barh(i, end - low, left=low, height=0.6, color=colour if proved else PAPER, edgecolor=colour,
                      linewidth=1.2)  # fmt: skip
            note(axes, str(number(value, 4)), end, i)
        if positive(lower):
            axes.axvline(lower, color=INK, linewidth=1, linestyle="--")
        finish(figure, axes, [drawable(name) for name, _, _ in bounds])

    told = "; ".join(f"{name} {number(value)}{' (certified)' if proved else ''}" for name, value, proved in bounds)
    below = f" Dashed line: {line} {number(lower)}." if positive(lower) else ""
    height = 0.5 + 0.25 * len(bounds)
    return draw(paint, width=4.4, height=height, key=key, title=title, text=f"logarithmic axis. {told}.{below}")


def curve_chart(curves: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, key: str, title: str) -> Markup:
    """Certified accuracy against the radius, a line per model.

    Args:
        curves: (model, radii, shares) each, at least one.
        key: unique on the page.
        title: accessible name.

    Returns:
        An inline SVG.
    """
    reach = max((radius for _, radii, _ in curves for radius in radii), default=0.0) or 1.0
    below = 0.62 + 0.2 * len(curves)
    height = 2.6 + below

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0.13, below / height, 0.83, 0.97 - below / height))
        for i, (model, radii, shares) in enumerate(curves):
            colour, dashes = LINES[i % len(LINES)]
            # Nothing is certified beyond the largest radius found.
            axes.step([*radii, radii[-1]], [*shares, 0.0], where="pre", color=colour, linestyle=dashes, linewidth=1.6,
                      label=drawable(model, 48))  # fmt: skip
        axes.set_xlim(0.0, 1.04 * reach)
        axes.set_ylim(0.0, 1.04)
        axes.set_xlabel("radius (l_inf, input units)")
        axes.set_ylabel("certified accuracy")
        axes.grid()
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(labelsize=8, labelcolor=MUTED)
        label_axis(axes, False)
        figure.legend(*axes.get_legend_handles_labels(), loc="lower left", frameon=False, fontsize=8.5, handlelength=3,
                      labelcolor=INK)  # fmt: skip

    told = "; ".join(f"{model}: {told_curve(radii, shares)}" for model, radii, shares in curves)
    return draw(paint, width=4.7, height=height, key=key, title=title, text=told)


def told_curve(radii: Sequence[float], shares: Sequence[float]) -> str:
    """Accuracy, and the radius at which it is halved."""
    half = max((radius for radius, share in zip(radii, shares, strict=True) if share >= 0.5 * shares[0]), default=0.0)
    return f"accuracy {number(shares[0], 3)}, at least half of it certified up to {number(half, 3)}"


def finish(figure: Any, axes: Any, names: Sequence[str]) -> None:
    """Rows from the top, a plain frame, labels that fit."""
    name_rows(axes, names)
    label_log_axis(axes)
    place(figure, axes, True)
    # Labels beside the bars have stretched the axis.
    label_log_axis(axes)


def span(numbers: Sequence[float]) -> tuple[float, float]:
    """Limits a little beyond positive numbers: a bar that ends where the axis begins could not be seen."""
    low, high = min(numbers), max(numbers)
    room = max((high / low) ** 0.2, 1.4)
    return low / room, max(high, 2.0 * low) * room**0.1


def ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers on a logarithmic axis: powers of ten where it spans several, finer steps elsewhere."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)):
        found = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(found) >= 3:
            break
    return found[:: -(-len(found) // 6)]


def label_log_axis(axes: Any) -> None:
    """Few, plain ticks for the limits as they are."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = axes.get_xlim()
    powers = not (low > 1e-3 and high < 1e5)
    axes.xaxis.set_major_locator(FixedLocator(ticks(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: drawable(tick(value, powers))))


def positive(value: float | None) -> TypeGuard[float]:
    """Whether a number has a place on a logarithmic axis."""
    return value is not None and math.isfinite(value) and value > 0.0
