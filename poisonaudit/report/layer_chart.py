"""Which layers a measure comes from: one bar a model, cut into the shares of its layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from poisonaudit.report.charts import name_rows, place
from poisonaudit.report.formats import figure as number_at
from poisonaudit.report.formats import mapping_of, number
from poisonaudit.report.svg import ACCENT, INK, PAPER, draw, drawable

# Shares narrower than this leave no room for the layer's name.
_ROOM = 0.09


def layer_chart(labels: Sequence[str], parts: Sequence[Any], *, key: str, name: str) -> Markup | None:
    """Bars of 0 to 100 %, cut by layer from the input on the left to the output on the right.

    Args:
        labels: one name per model.
        parts: stored layer name -> value per model; anything else is a model without layers and left out.
        key: unique on the page.
        name: of the measure, for the accessible title.

    Returns:
        An inline SVG, None if no model has two layers with a positive sum.
    """
    shares = {label: found for label, part in zip(labels, parts, strict=True) if len(found := _shares(part)) > 1}
    if not shares:
        return None

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, 100)
        for row, found in enumerate(shares.values()):
            start = 0.0
            for layer, (title, share) in enumerate(found.items()):
                axes.barh(row, 100 * share, left=100 * start, height=0.6, color=ACCENT, edgecolor=PAPER, linewidth=1.2,
                          alpha=0.6 if layer % 2 else 0.3)  # fmt: skip
                if share >= _ROOM:
                    axes.text(100 * (start + share / 2), row, drawable(title), ha="center", va="center", color=INK,
                              fontsize=7.5, clip_on=True)  # fmt: skip
                start += share
        name_rows(axes, [drawable(label) for label in shares])
        axes.grid(False)
        axes.set_xlabel("% of the measure, layer by layer")
        place(figure, axes, False)
        axes.set_xlim(0, 100)

    told = "; ".join(
        f"{label}: " + ", ".join(f"{title} {number(100 * share, 2)} %" for title, share in found.items())
        for label, found in shares.items()
    )
    height = 0.65 + 0.3 * len(shares)
    return draw(paint, width=4.4, height=height, key=key, title=f"{name} by layer", text=told)


def _shares(part: Any) -> dict[str, float]:
    """Layer -> share of the sum; empty if they are not all finite and at least 0 with a positive sum."""
    stored: Mapping[str, Any] = mapping_of(part)
    values = {str(layer): number_at(stored, layer) for layer in stored}
    known = {layer: value for layer, value in values.items() if value is not None and 0 <= value < math.inf}
    total = math.fsum(known.values())
    if len(known) < len(values) or not 0 < total < math.inf:
        return {}
    return {layer: value / total for layer, value in known.items()}
