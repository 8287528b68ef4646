"""Row bounds of the Jacobian inside a ball, max pooling included where its winners are known.

The K_5 recursion with all columns carried at once: `|J_t| 1 <= sum of |columns| + slack`. An unsettled window passes no
column on and gets a fresh one as large as the largest row bound among its entries: whichever entry it takes, its row is
one of theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from poisonaudit.lipschitz.graph import Graph
from poisonaudit.lipschitz.ranges import AffineForm, Ranges
from poisonaudit.lipschitz.unit import UNIT


def jacobian_row_bounds(graph: Graph, ranges: Ranges) -> Tensor:
    """Bounds of the l_1 norm of every row of the Jacobian anywhere in the ball, rounding included.

    Args:
        graph: of the network.
        ranges: of the ball.

    Returns:
        Like an output row.
    """
    shape = graph.nodes[0].shape
    nothing = torch.zeros(shape, dtype=torch.float64)
    start = AffineForm(nothing, torch.zeros(0, *shape, dtype=torch.float64), nothing)
    forms = [start.scaled(nothing, nothing, torch.ones(shape, dtype=torch.float64), 0)]
    count = len(forms[0].columns)
    for place in range(1, len(graph.nodes)):
        total: AffineForm | None = None
        for edge in graph.into(place):
            image = forms[edge.source].through(edge.map)
            total = image if total is None else total.plus(image)
        assert total is not None
        window = graph.nodes[place].window
        if place in ranges.derivative.centre:
            centre, radius = ranges.derivative.centre[place], ranges.derivative.radius[place]
            fresh = radius * total.radius() * (1.0 + 4 * UNIT)
            total = total.scaled(centre, torch.zeros_like(total.centre), fresh, count)
        elif window is not None:
            chosen, settled = ranges.windows[place]
            largest = window.largest(total.radius()[None])[0]
            fresh = torch.where(settled, 0.0, largest)
            total = total.picked(chosen).scaled(settled.double(), torch.zeros_like(fresh), fresh, count)
        count = max(count, len(total.columns))
        forms.append(total)
    return forms[-1].radius()
