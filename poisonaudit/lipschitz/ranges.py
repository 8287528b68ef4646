"""Ranges of every activation's input over an l_inf ball, three ways at once and intersected.

*Interval*: centres and radii through the maps and their absolute values. *Cone*: the deviation from the value at the
centre, `z(x) - z(x0) = sum of columns times numbers in [-1, 1]`; between two inputs an activation multiplies deviations
by a chord's slope c +- rho, so every unstable neuron adds a column rho |deviation| (the K_5 recursion from x0).
*Zonotope*: the values themselves as centre plus columns, each unstable neuron relaxed by a line and a fresh column
(Singh et al., 2018). Whichever is narrowest at a neuron serves all three from there on.

Rounding is carried along as one more radius per entry (`slack`), propagated through absolute values: what an operation
may have lost, at most gamma_k times the sum of its absolute terms and a little for underflow, is added where that
happens. Therefore the ranges hold for the exact network with the float64 weights, up to the accuracy of the library's
tanh, exp and erf for smooth activations (see `activations`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.lipschitz.activations import Activation
from poisonaudit.lipschitz.graph import Graph, Node, Slopes, interval_slopes
from poisonaudit.lipschitz.linear_maps import LinearMap, steps_of
from poisonaudit.lipschitz.unit import TINY, UNIT, gamma

# Numbers in the columns of one form: 512 MiB.
COLUMN_ENTRIES = 2**26


@dataclass(frozen=True, eq=False)
class AffineForm:
    """Numbers `centre + sum_i e_i columns_i +- slack`, every e_i in [-1, 1].

    Attributes:
        centre: like a row.
        columns: (m, *shape); a shorter stack than another's lacks columns at its end.
        slack: like a row, >= 0.
    """

    centre: Tensor
    columns: Tensor
    slack: Tensor

    def radius(self) -> Tensor:
        """Largest distance from the centre, rounded up."""
        return (self.columns.abs().sum(0) + self.slack) * (1.0 + gamma(len(self.columns) + 4))

    def through(self, step: LinearMap) -> AffineForm:
        """Image under a linear map."""
        form = self
        for part in steps_of(step):  # what underflows on the way may be magnified behind it
            form = form._through(part)
        return form

    def _through(self, step: LinearMap) -> AffineForm:
        absolute = step.absolute()
        sizes = self.centre.abs() + self.columns.abs().sum(0)
        lost = gamma(step.roundings + 4) * absolute.apply(sizes[None])[0]
        spread = absolute.apply(self.slack[None])[0]
        stacked = step.apply(torch.cat([self.centre[None], self.columns]))
        return AffineForm(stacked[0], stacked[1:], (spread + lost) * _more(step.roundings) + TINY)

    def plus(self, other: AffineForm) -> AffineForm:
        """Sum, columns of the same number being the same."""
        first, second = sorted((self.columns, other.columns), key=len, reverse=True)
        columns = first.clone()
        columns[: len(second)] += second
        centre = self.centre + other.centre
        lost = 4 * UNIT * (centre.abs() + columns.abs().sum(0))
        return AffineForm(centre, columns, (self.slack + other.slack + lost) * _more(4))

    def picked(self, chosen: Tensor) -> AffineForm:
        """The chosen entry of every window."""
        centre, slack = picked(self.centre[None], chosen)[0], picked(self.slack[None], chosen)[0]
        return AffineForm(centre, picked(self.columns, chosen), slack)

    def shifted(self, bias: Tensor, error: Tensor) -> AffineForm:
        """Plus a constant that itself may be off by an error."""
        centre = self.centre + bias
        return AffineForm(centre, self.columns, (self.slack + 4 * UNIT * centre.abs() + error) * _more(4))

    def scaled(self, slopes: Tensor, offset: Tensor, fresh: Tensor, before: int) -> AffineForm:
        """`slopes * form + offset`, and a fresh column of size `fresh` for every entry where it is not 0.

        What these and their last few operations lost to underflow is counted here.

        Args:
            slopes: like a row.
            offset: like a row.
            fresh: like a row, >= 0.
            before: columns that exist anywhere already; the fresh ones come behind them.

        Returns:
            The form.
        """
        shape = self.centre.shape
        places = torch.nonzero(fresh.reshape(-1))[:, 0]
        room = max(0, COLUMN_ENTRIES // fresh.numel() - before)
        spread = torch.zeros_like(fresh)
        if len(places) > room:
            # No memory for more columns: the smaller errors are added up without their signs.
            order = fresh.reshape(-1)[places].argsort(descending=True, stable=True)
            kept = places[order[:room]].sort().values
            spread = fresh.reshape(-1).index_fill(0, kept, 0.0).reshape(shape)
            places = kept
        columns = torch.zeros(before + len(places), fresh.numel(), dtype=torch.float64)
        columns[: len(self.columns)] = (slopes * self.columns).flatten(1)
        columns[before + torch.arange(len(places)), places] = fresh.reshape(-1)[places]
        columns = columns.reshape(len(columns), *shape)
        centre = slopes * self.centre + offset
        lost = 4 * UNIT * (centre.abs() + offset.abs() + (slopes * self.columns).abs().sum(0))
        return AffineForm(centre, columns, (slopes.abs() * self.slack + spread + lost) * _more(4) + TINY)


@dataclass(frozen=True, eq=False)
class Ranges:
    """Of one ball.

    Attributes:
        low: position of an activation or max pooling, and of the output -> least value before it.
        high: likewise.
        slopes: position of an activation -> least and largest derivative anywhere in the ball.
        derivative: the same as centres and radii.
        windows: position of a max pooling -> the entry each window takes, and whether it does so all over the ball.
        deviation: of the output from its value at the centre.
        values: of the output.
        unstable: neurons whose slope is not fixed.
    """

    low: dict[int, Tensor]
    high: dict[int, Tensor]
    slopes: dict[int, tuple[Tensor, Tensor]]
    derivative: Slopes
    windows: dict[int, tuple[Tensor, Tensor]]
    deviation: AffineForm
    values: AffineForm
    unstable: int


def activation_ranges(graph: Graph, centre: Tensor, radius: float, box: tuple[Tensor, Tensor] | None = None) -> Ranges:
    """Ranges over the l_inf ball around an input, within a box if one is given.

    Args:
        graph: of the network.
        centre: (*shape), float64; inside the box.
        radius: >= 0.
        box: least and largest input.

    Returns:
        The ranges.
    """
    low, high = centre - radius, centre + radius
    # The ends of the ball are rounded outwards.
    low, high = torch.nextafter(low, low - 1.0), torch.nextafter(high, high + 1.0)
    if box is not None:
        low, high = torch.maximum(low, box[0]), torch.minimum(high, box[1])
    spread = torch.maximum(high - centre, centre - low) * (1.0 + 4 * UNIT)
    middle = 0.5 * (low + high)
    half = torch.maximum(high - middle, middle - low) * (1.0 + 4 * UNIT)
    walk = _Walk(graph)
    walk.start(centre, spread, middle, half)
    for place in range(1, len(graph.nodes)):
        walk.step(place)
    return walk.result()


class _Walk:
    """Goes through the nodes with the three forms of each value."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.boxes: list[AffineForm] = []
        self.cones: list[AffineForm] = []
        self.zonotopes: list[AffineForm] = []
        self.low: dict[int, Tensor] = {}
        self.high: dict[int, Tensor] = {}
        self.ranges: dict[int, tuple[Tensor, Tensor]] = {}
        self.windows: dict[int, tuple[Tensor, Tensor]] = {}
        self.cone_columns = self.zonotope_columns = 0

    def start(self, centre: Tensor, spread: Tensor, middle: Tensor, half: Tensor) -> None:
        """Set the input."""
        nothing, none = torch.zeros_like(centre), torch.zeros(0, *centre.shape, dtype=torch.float64)
        # An interval is a form without columns; a cone's centre is the network's value at the ball's centre.
        self.boxes.append(AffineForm(middle, none, half))
        self.cones.append(AffineForm(centre, none, nothing).scaled(torch.ones_like(centre), nothing, spread, 0))
        self.zonotopes.append(AffineForm(middle, none, nothing).scaled(torch.ones_like(centre), nothing, half, 0))
        self.cone_columns, self.zonotope_columns = len(self.cones[0].columns), len(self.zonotopes[0].columns)

    def step(self, place: int) -> None:
        """One node."""
        node = self.graph.nodes[place]
        forms = [self._sum(place, found) for found in (self.boxes, self.cones, self.zonotopes)]
        box, cone, zonotope = forms
        ends = [(form.centre - form.radius(), form.centre + form.radius()) for form in forms]
        low = torch.stack([each[0] for each in ends]).amax(0)
        high = torch.stack([each[1] for each in ends]).amin(0)
        low, high = torch.nextafter(low, low - 1.0), torch.nextafter(high, high + 1.0)
        self.low[place], self.high[place] = low, high
        if node.activation is not None:
            box, cone, zonotope = self._activated(place, node.activation, low, high, cone, zonotope)
        elif node.window is not None:
            box, cone, zonotope = self._pooled(place, node, low, high, cone, zonotope)
        else:
            box = _interval(low, high)
        self.boxes.append(box)
        self.cones.append(cone)
        self.zonotopes.append(zonotope)

    def result(self) -> Ranges:
        """After the last node."""
        slopes = interval_slopes(self.ranges)
        unstable = sum(int((radius > 0).sum()) for radius in slopes.radius.values())
        return Ranges(
            self.low, self.high, self.ranges, slopes, self.windows, self.cones[-1], self.zonotopes[-1], unstable
        )

    def _sum(self, place: int, found: list[AffineForm]) -> AffineForm:
        node = self.graph.nodes[place]
        total: AffineForm | None = None
        for edge in self.graph.into(place):
            image = found[edge.source].through(edge.map)
            total = image if total is None else total.plus(image)
        assert total is not None
        return total.shifted(node.bias, node.bias_error)

    def _activated(
        self, place: int, activation: Activation, low: Tensor, high: Tensor, cone: AffineForm, zonotope: AffineForm
    ) -> tuple[AffineForm, AffineForm, AffineForm]:
        """All three forms behind an activation."""
        self.ranges[place] = activation.slope_range(low, high)
        box = _interval(*activation.image(low, high))
        # The value at the centre, which is known up to its slack only.
        own = cone.centre
        ends = [
            activation.chord_range(torch.minimum(torch.maximum(value, low), high), low, high)
            for value in (own - cone.slack, own + cone.slack)
        ]
        least, most = torch.minimum(ends[0][0], ends[1][0]), torch.maximum(ends[0][1], ends[1][1])
        chord = interval_slopes({place: (least, most)})
        middle, radius = chord.centre[place], chord.radius[place]
        deviation = AffineForm(torch.zeros_like(own), cone.columns, torch.zeros_like(own))
        reach = torch.minimum(deviation.radius(), high - low)
        turned = deviation.scaled(middle, torch.zeros_like(own), radius * reach * (1 + 4 * UNIT), self.cone_columns)
        value = activation.module(own)
        steepest = torch.maximum(least.abs(), most.abs())
        lost = steepest * cone.slack * (1 + 4 * UNIT) + activation.error(own, value)
        lost = lost + activation.jump(torch.minimum(low, own - cone.slack), torch.maximum(high, own + cone.slack))
        cone = AffineForm(value, turned.columns, turned.slack + lost)
        self.cone_columns = max(self.cone_columns, len(cone.columns))
        zonotope = self._relaxed(activation, low, high, zonotope, self.ranges[place])
        return box, cone, zonotope

    def _relaxed(
        self, activation: Activation, low: Tensor, high: Tensor, form: AffineForm, slopes: tuple[Tensor, Tensor]
    ) -> AffineForm:
        """`f(z) = slope z + offset +- fresh` on [low, high], applied to a form."""
        if activation.piecewise_linear:
            slope, bottom, top = _secant(activation, low, high)
        else:
            slope = 0.5 * (slopes[0] + slopes[1])
            middle = 0.5 * (low + high)
            reach = torch.maximum(high - middle, middle - low)
            steep = torch.maximum((slopes[1] - slope).abs(), (slopes[0] - slope).abs()) * reach * (1 + 8 * UNIT)
            value = activation.module(middle)
            at = value - slope * middle
            room = 16 * UNIT * ((slope * middle).abs() + value.abs()) + activation.error(middle, value)
            steep = steep + activation.jump(low, high)
            bottom, top = at - steep - room, at + steep + room
        offset = 0.5 * (bottom + top)
        fresh = torch.maximum(top - offset, offset - bottom) * (1 + 4 * UNIT)
        # Where nothing is left to relax no column is spent.
        found = form.scaled(slope, offset, torch.where(low < high, fresh, 0.0), self.zonotope_columns)
        self.zonotope_columns = max(self.zonotope_columns, len(found.columns))
        return found

    def _pooled(
        self, place: int, node: Node, low: Tensor, high: Tensor, cone: AffineForm, zonotope: AffineForm
    ) -> tuple[AffineForm, AffineForm, AffineForm]:
        """Behind a max pooling: the entry that wins everywhere in the ball, or the interval of the window."""
        window = node.window
        assert window is not None
        lower, upper = window.largest(low[None])[0], window.largest(high[None])[0]
        chosen = window.chosen(low[None])
        # The entry with the largest lower end wins if no other's upper end comes above it.
        rivals = window.patches(high[None], -math.inf)[0].sort(1, descending=True).values
        second = rivals[:, 1] if rivals.shape[1] > 1 else torch.full_like(lower, -math.inf)
        own_high = picked(high[None], chosen)[0]
        settled = (own_high == upper) & (lower >= second)
        self.windows[place] = (chosen, settled)
        box = _interval(lower, upper)
        kept = settled.to(torch.float64)
        forms = []
        for form, before in ((cone, self.cone_columns), (zonotope, self.zonotope_columns)):
            winner = form.picked(chosen)
            middle = window.largest(form.centre[None])[0] if form is cone else 0.5 * (lower + upper)
            reach = torch.maximum(upper - middle, middle - lower).clamp_min(0.0) * (1 + 4 * UNIT)
            offset = torch.where(settled, torch.zeros_like(middle), middle)
            forms.append(winner.scaled(kept, offset, torch.where(settled, 0.0, reach), before))
        self.cone_columns = max(self.cone_columns, len(forms[0].columns))
        self.zonotope_columns = max(self.zonotope_columns, len(forms[1].columns))
        return box, forms[0], forms[1]


def _more(roundings: int) -> float:
    return 1.0 + gamma(2 * roundings + 8)


def _interval(low: Tensor, high: Tensor) -> AffineForm:
    middle = 0.5 * (low + high)
    half = torch.maximum(high - middle, middle - low) * (1 + 4 * UNIT)
    return AffineForm(middle, torch.zeros(0, *low.shape, dtype=torch.float64), half)


def _secant(activation: Activation, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slope of the secant, and the range of `f(z) - slope z`, whose extremes are at the ends and at kinks."""
    first, last = activation.module(low), activation.module(high)
    width = high - low
    lower, upper = activation.slope_range(low, high)
    slope = torch.where(width > 0, (last - first) / width, upper).nan_to_num(0.0)
    slope = torch.minimum(torch.maximum(slope, lower), upper)
    values = [first - slope * low, last - slope * high]
    room = 4 * UNIT * (first.abs() + last.abs() + (slope * low).abs() + (slope * high).abs())
    for kink in activation.kinks:
        at = torch.minimum(torch.maximum(torch.full_like(low, kink), low), high)
        values.append(activation.module(at) - slope * at)
    stacked = torch.stack(values)
    # An exact line (a stable neuron) needs no room.
    exact = (lower == upper) & ((slope == 0) | (slope == 1)) & (first == slope * low) & (last == slope * high)
    room = torch.where(exact, torch.zeros_like(room), room)
    return slope, stacked.amin(0) - room, stacked.amax(0) + room


def picked(rows: Tensor, chosen: Tensor) -> Tensor:
    """The chosen entry of every window, (n, c, *out)."""
    flat = rows.flatten(2)
    where = chosen.flatten(2).expand(len(rows), -1, -1)
    return flat.gather(2, where).reshape(len(rows), *chosen.shape[1:])
