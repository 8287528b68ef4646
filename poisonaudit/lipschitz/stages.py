"""A graph in stages: each starts anew from row bounds, where max pooling or the cost of the full form asks for it.

At a vertex cut, a node that every path passes, all that is kept of the Jacobian so far is a bound of each row. A max
pooling selects: its rows have norm 1, so the row bound behind a window is the largest in it (backwards: each window's
bound goes to all its entries). A restart gives signs away, and with them tightness; it is taken only where one has to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.errors import InputRefused
from poisonaudit.lipschitz.graph import Graph, Slopes, Window, global_slopes
from poisonaudit.lipschitz.linear_maps import Shape
from poisonaudit.lipschitz.pushing import Work, pushing_plan, row_bounds


@dataclass(frozen=True, eq=False)
class Link:
    """What stands between two stages, at a cut.

    Attributes:
        name: of the cut's node.
        shape: of a row before it.
        steepest: largest |slope| of the cut's activation, None without one.
        window: the max pooling there, None without one.
    """

    name: str
    shape: Shape
    steepest: Tensor | None
    window: Window | None

    def forward(self, bounds: Tensor) -> Tensor:
        """Row bounds behind the cut, of row bounds (*shape) before it."""
        if self.steepest is not None:
            bounds = bounds * self.steepest
        return bounds if self.window is None else self.window.largest(bounds[None])[0]

    def backward(self, bounds: Tensor) -> Tensor:
        """The same of the transposed Jacobian."""
        if self.window is not None:
            bounds = self.window.spread(bounds[None], self.shape)[0]
        return bounds if self.steepest is None else bounds * self.steepest

    @property
    def norm_forward(self) -> float:
        """Induced l_inf norm at most."""
        return 1.0 if self.steepest is None else float(self.steepest.max())

    @property
    def norm_backward(self) -> float:
        """Induced l_1 norm at most: windows that overlap count an entry several times."""
        shape = self.shape if self.window is None else self.window.largest(torch.zeros(1, *self.shape)).shape[1:]
        return float(self.backward(torch.ones(shape, dtype=torch.float64)).max())


@dataclass(frozen=True, eq=False)
class Stages:
    """The stages of a network, in the direction its bounds are computed in.

    Attributes:
        graphs: at least one.
        slopes: of each one's activations.
        links: between them, one fewer.
        backward: the stages are reversed graphs, from the output to the input, for l_1.
        work: multiplications that K_5 takes.
    """

    graphs: tuple[Graph, ...]
    slopes: tuple[Slopes, ...]
    links: tuple[Link, ...]
    backward: bool
    work: float

    def pass_link(self, number: int, bounds: Tensor) -> Tensor:
        """Row bounds from the end of a stage to the start of the next one."""
        link = self.links[number]
        return link.backward(bounds) if self.backward else link.forward(bounds)

    def norm_link(self, number: int) -> float:
        """Norm of a link at most."""
        link = self.links[number]
        return link.norm_backward if self.backward else link.norm_forward

    @property
    def restarts(self) -> tuple[str, ...]:
        """Names of the nodes where a restart was made to save work; those at max pooling are part of the method."""
        return tuple(link.name for link in self.links if link.window is None)


def staged(graph: Graph, norm: str, work_limit: float, slopes: Slopes | None = None) -> Stages:
    """Split a graph at its max pooling, and where K_5's full form would exceed a limit.

    Args:
        graph: of the network.
        norm: "linf" or "l1".
        work_limit: multiplications; of the ways within it one with the fewest restarts is taken, and of those the one
            of least work. Where none is within it the cheapest is.
        slopes: of the activations; those of all inputs by default.

    Returns:
        The stages.

    Raises:
        InputRefused: PA130, a max pooling beside another path.
    """
    slopes = global_slopes(graph) if slopes is None else slopes
    allowed = graph.cuts()
    forced = [place for place, node in enumerate(graph.nodes) if node.window is not None]
    for place in forced:
        if place not in allowed:
            raise InputRefused(
                "PA130",
                f"max pooling {graph.nodes[place].name} has a path beside it. As a selection it needs a bound of all "
                "that passes. Ask for the explicit form.",
            )
    chosen, work = _fewest_restarts(graph, norm, work_limit, sorted({*allowed, *forced}), set(forced))
    return split_at(graph, slopes, chosen, norm, work)


def split_at(graph: Graph, slopes: Slopes, cuts: Sequence[int], norm: str, work: float = math.nan) -> Stages:
    """Stages between given cuts."""
    graphs, parts, links, rest, start = [], [], [], graph, 0
    for cut in cuts:
        first, rest = rest.split(cut - start)
        graphs.append(first)
        parts.append(_without(slopes.between(start, cut), {0, cut - start}))
        node = graph.nodes[cut]
        links.append(Link(node.name, node.shape, slopes.steepest(cut), node.window))
        start = cut
    graphs.append(rest)
    parts.append(_without(slopes.between(start, graph.output), {0} if start else set()))
    if norm == "linf":
        return Stages(tuple(graphs), tuple(parts), tuple(links), False, work)
    turned = [(each.reversed(), own.reversed(each)) for each, own in zip(graphs, parts, strict=True)][::-1]
    return Stages(tuple(each for each, _ in turned), tuple(own for _, own in turned), tuple(links[::-1]), True, work)


def summed_bound(stages: Stages, weights: Tensor | None = None) -> Tensor:
    """K_5 of every row, carried through the stages: bounds of `|J| weights`, like the last stage's output.

    Args:
        stages: of the network.
        weights: like an input row of the first stage; ones by default.

    Returns:
        Row bounds; the largest is K_5.
    """
    first = stages.graphs[0].nodes[0].shape
    bounds = torch.ones(first, dtype=torch.float64) if weights is None else weights
    for number, (graph, slopes) in enumerate(zip(stages.graphs, stages.slopes, strict=True)):
        if number:
            bounds = stages.pass_link(number - 1, bounds)
        bounds = row_bounds(graph, slopes, bounds)[graph.output]
    return bounds


def _fewest_restarts(
    graph: Graph, norm: str, limit: float, candidates: list[int], forced: set[int]
) -> tuple[list[int], float]:
    """Cuts by dynamic programming over (cut, number of restarts)."""
    ends = [0, *candidates, graph.output]
    # Least work up to a cut, and the way there, by the number of optional restarts.
    reached: list[dict[int, tuple[float, list[int]]]] = [{} for _ in ends]
    reached[0] = {0: (0.0, [])}
    for first, start in enumerate(ends[:-1]):
        if not reached[first]:
            continue
        for last in range(first + 1, len(ends)):
            end = ends[last]
            work = _stage_work(graph, start, end, norm)
            paid = 0 if end in forced or end == graph.output else 1
            for restarts, (before, way) in reached[first].items():
                total, count = before + work.multiplications, restarts + paid
                if total < reached[last].get(count, (math.inf, []))[0]:
                    reached[last][count] = (total, [*way, end])
            # Longer stages only cost more; the shortest has to be allowed.
            if end in forced or work.multiplications > limit:
                break
    final = reached[-1]
    within = {restarts: way for restarts, way in final.items() if way[0] <= limit}
    if within:
        total, way = within[min(within)]
    else:
        total, way = min(final.values(), key=lambda pair: pair[0])
    return way[:-1], total


def _stage_work(graph: Graph, start: int, end: int, norm: str) -> Work:
    part = graph
    if end < graph.output:
        part, _ = part.split(end)
    if start:
        _, part = part.split(start)
    return pushing_plan(part if norm == "linf" else part.reversed()).work


def _without(slopes: Slopes, places: set[int]) -> Slopes:
    """Slopes without those of cuts, which stand in the links."""
    return Slopes(
        {place: value for place, value in slopes.centre.items() if place not in places},
        {place: value for place, value in slopes.radius.items() if place not in places},
    )
