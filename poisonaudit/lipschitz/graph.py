"""A feed-forward network as a graph: tensors joined by linear maps, slopes at the activations.

Node values are `pre_t = sum over edges of map(post_s) + bias`, `post = activation(pre)`; nodes without an activation
pass their value on. The Jacobian at any input is a product of the same maps with slopes in known intervals, so that
reading the edges backwards gives its transpose: bounds in l_1 are bounds in l_inf of the reversed graph.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from poisonaudit.lipschitz.activations import Activation
from poisonaudit.lipschitz.linear_maps import LinearMap, Shape, transposed
from poisonaudit.lipschitz.window_maps import window_entries


@dataclass(frozen=True, eq=False)
class Window:
    """A max pooling over windows of one or two spatial axes.

    Attributes:
        kernel: per axis.
        stride: per axis.
        padding: per axis.
        dilation: per axis.
        ceil: whether a window may hang over the far end.
    """

    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    ceil: bool

    def largest(self, rows: Tensor) -> Tensor:
        """Pooled rows."""
        pool = functional.max_pool1d if len(self.kernel) == 1 else functional.max_pool2d
        return pool(rows, self.kernel, self.stride, self.padding, self.dilation, self.ceil)

    def chosen(self, rows: Tensor) -> Tensor:
        """Flat position within each channel that each window takes, (n, c, *out)."""
        pool = functional.max_pool1d if len(self.kernel) == 1 else functional.max_pool2d
        _, places = pool(rows, self.kernel, self.stride, self.padding, self.dilation, self.ceil, return_indices=True)
        return places

    def patches(self, rows: Tensor, fill: float) -> Tensor:
        """The entries of every window, (n, c, entries, *out); padding holds `fill`."""
        sizes = self.largest(rows[:1].abs()).shape[2:]
        spans = [step * (length - 1) for step, length in zip(self.dilation, self.kernel, strict=True)]
        ends = [(out - 1) * hop + span + 1 for out, hop, span in zip(sizes, self.stride, spans, strict=True)]
        padding: list[int] = []
        for size, pad, end in zip(rows.shape[2:], self.padding, ends, strict=True):
            padding = [pad, max(0, end - size - pad), *padding]
        padded = functional.pad(rows, padding, value=fill)
        found = []
        for offsets in itertools.product(*map(range, self.kernel)):
            places = [
                slice(offset * step, offset * step + (out - 1) * hop + 1, hop)
                for offset, step, out, hop in zip(offsets, self.dilation, sizes, self.stride, strict=True)
            ]
            found.append(padded[(slice(None), slice(None), *places)])
        return torch.stack(found, 2)

    def spread(self, rows: Tensor, shape: Shape) -> Tensor:
        """Each window's number added to every entry of the window: (n, c, *out) -> (n, *shape)."""
        found = rows
        for axis in range(len(self.kernel)):
            size, out = shape[axis + 1], rows.shape[axis + 2]
            every = torch.arange(out)
            span = self.dilation[axis] * (self.kernel[axis] - 1)
            low, high = window_entries((every, every), self.stride[axis], self.padding[axis], span, size)
            places = torch.arange(size)
            inside = (low[:, None] <= places) & (places <= high[:, None])
            offset = places[None, :] - (every[:, None] * self.stride[axis] - self.padding[axis])
            met = inside & (offset % self.dilation[axis] == 0)
            found = torch.movedim(torch.movedim(found, axis + 2, -1) @ met.to(rows.dtype), -1, axis + 2)
        return found


@dataclass(frozen=True, eq=False)
class Node:
    """One tensor of the network.

    Attributes:
        name: of the layer that makes it.
        shape: of one row, before the activation.
        activation: or None.
        bias: what is added to the linear part, like a row.
        bias_terms: sum of the absolute values of what the bias was computed from.
        bias_error: by how much rounding may have moved the bias.
        window: a max pooling comes after the node instead of an activation.
    """

    name: str
    shape: Shape
    activation: Activation | None
    bias: Tensor
    bias_terms: Tensor
    bias_error: Tensor
    window: Window | None = None

    @property
    def size(self) -> int:
        """Entries of a row."""
        return math.prod(self.shape)

    @property
    def shape_after(self) -> Shape:
        """Of one row after the activation or the pooling."""
        if self.window is None:
            return self.shape
        return tuple(self.window.largest(torch.zeros(1, *self.shape, dtype=torch.float64)).shape[1:])

    def value(self, pre: Tensor) -> Tensor:
        """What later nodes see of rows (n, *shape)."""
        if self.window is not None:
            return self.window.largest(pre)
        return pre if self.activation is None else self.activation.module(pre)


@dataclass(frozen=True, eq=False)
class Edge:
    """A linear map between two nodes, by their positions."""

    source: int
    target: int
    map: LinearMap


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order in which edges only lead forward; the first is the input, the last the output.

    Every node lies on a path between them.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        into: list[list[Edge]] = [[] for _ in self.nodes]
        for edge in self.edges:
            into[edge.target].append(edge)
        object.__setattr__(self, "_into", into)

    def into(self, position: int) -> Sequence[Edge]:
        """Edges that end at a node."""
        found: list[list[Edge]] = self._into  # type: ignore[attr-defined]
        return found[position]

    @property
    def output(self) -> int:
        """Position of the last node."""
        return len(self.nodes) - 1

    def activations(self) -> list[int]:
        """Positions of nodes with an activation."""
        return [position for position, node in enumerate(self.nodes) if node.activation is not None]

    def cuts(self) -> list[int]:
        """Inner nodes that every path from the input to the output passes."""
        furthest, found = 0, []
        reached = [0] * len(self.nodes)
        for edge in self.edges:
            reached[edge.source] = max(reached[edge.source], edge.target)
        for position in range(len(self.nodes) - 1):
            # No edge that starts earlier may jump over the node.
            if position and furthest <= position:
                found.append(position)
            furthest = max(furthest, reached[position])
        return found

    def split(self, position: int) -> tuple[Graph, Graph]:
        """The graph up to a cut, and the one behind it, whose input is the cut's value."""
        cut = self.nodes[position]
        before = (*self.nodes[:position], replace(cut, activation=None, window=None))
        shape = cut.shape_after
        nothing = torch.zeros(shape, dtype=torch.float64)
        after = (Node(cut.name, shape, None, nothing, nothing, nothing), *self.nodes[position + 1 :])
        first = tuple(edge for edge in self.edges if edge.target <= position)
        second = tuple(
            Edge(edge.source - position, edge.target - position, edge.map)
            for edge in self.edges
            if edge.source >= position
        )
        return Graph(before, first), Graph(after, second)

    def reversed(self) -> Graph:
        """The graph with edges transposed, so that its Jacobian is the transposed one; biases mean nothing there.

        An activation's slope stands between what comes in and what goes out of its node in either direction.

        Returns:
            The reversed graph.
        """
        last = self.output
        edges = tuple(Edge(last - edge.target, last - edge.source, transposed(edge.map)) for edge in self.edges)
        return Graph(self.nodes[::-1], edges)

    def absolute(self) -> Graph:
        """The graph with every map replaced by its absolute value."""
        return Graph(self.nodes, tuple(Edge(edge.source, edge.target, edge.map.absolute()) for edge in self.edges))

    def values(self, rows: Tensor) -> list[Tensor]:
        """What each node receives of true inputs, before its activation: a list of (n, *shape)."""
        pre: list[Tensor] = [rows]
        post = [self.nodes[0].value(rows)]
        for position in range(1, len(self.nodes)):
            total: Tensor | None = None
            for edge in self.into(position):
                image = edge.map.apply(post[edge.source])
                total = image if total is None else total + image
            assert total is not None
            pre.append(total + self.nodes[position].bias)
            post.append(self.nodes[position].value(pre[-1]))
        return pre


@dataclass(frozen=True, eq=False)
class Slopes:
    """Intervals of the slopes at the activations, as centres and radii.

    Attributes:
        centre: position of a node -> like its row, or broadcasting to it.
        radius: likewise, >= 0.
    """

    centre: Mapping[int, Tensor]
    radius: Mapping[int, Tensor]

    def steepest(self, position: int) -> Tensor | None:
        """Largest |slope|, rounded up; None at nodes without activation."""
        if position not in self.centre:
            return None
        return _up(self.centre[position].abs() + self.radius[position])

    def reversed(self, graph: Graph) -> Slopes:
        """The same at the positions of the reversed graph."""
        last = graph.output
        return Slopes(
            {last - position: value for position, value in self.centre.items()},
            {last - position: value for position, value in self.radius.items()},
        )

    def between(self, first: int, last: int) -> Slopes:
        """Of the nodes from the first to the last position, counted from the first."""
        return Slopes(
            {place - first: value for place, value in self.centre.items() if first <= place <= last},
            {place - first: value for place, value in self.radius.items() if first <= place <= last},
        )


def interval_slopes(ranges: Mapping[int, tuple[Tensor, Tensor]]) -> Slopes:
    """Centres and radii whose intervals hold `[lower, upper]` also in exact arithmetic."""
    centre, radius = {}, {}
    for position, (lower, upper) in ranges.items():
        middle = 0.5 * (lower + upper)
        half = torch.maximum(upper - middle, middle - lower)
        exact = (middle - half == lower) & (middle + half == upper) & (upper - middle == middle - lower)
        # Only where the three numbers fit exactly (0, 1/2, 1) is nothing lost to rounding.
        centre[position], radius[position] = middle, torch.where(exact & _short(lower, upper), half, _up(half))
    return Slopes(centre, radius)


def global_slopes(graph: Graph) -> Slopes:
    """Of all inputs."""
    return interval_slopes(
        {
            position: activation.ends(node.shape)
            for position, node in enumerate(graph.nodes)
            if (activation := node.activation) is not None
        }
    )


def _short(lower: Tensor, upper: Tensor) -> Tensor:
    """Numbers with few bits, of which sums and halves are exact."""
    grid = 2.0**20
    few = [(value * grid == (value * grid).round()) & (value.abs() < 2.0**20) for value in (lower, upper)]
    return few[0] & few[1]


def _up(values: Tensor) -> Tensor:
    return torch.nextafter(values, torch.full_like(values, math.inf))
