"""Push columns through the centre network, every activation replaced by its centre slope, and bound row by row.

The bound is `v_0 = w`, `v_t = |C_(t,0)| w + sum over activations s before t of |C_(t,s)| (rho_s v_s)`, C_(t,s) the
signed map from the value of s to node t through centre slopes: `|J| w <= v_output` entry by entry for every choice
of slopes (K_5 where w = 1, math in docs/lipschitz.md). Each source's columns are pushed in turn, in chunks, by ordinary
forward calls. Columns that never meet on a picture share a pass; nodes with few entries are read backwards instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.lipschitz.graph import Graph, Slopes
from poisonaudit.lipschitz.linear_maps import Reach, Shape

# Numbers alive at once in a chunk of columns, over all nodes of a pass.
CHUNK_ENTRIES = 2**24
# Numbers in the rows that are kept of nodes read backwards.
ROWS_ENTRIES = 2**26


@dataclass(frozen=True)
class Work:
    """What a bound cost.

    Attributes:
        columns: pushed forwards, after sharing.
        rows: pulled backwards.
        multiplications: of all passes.
    """

    columns: int = 0
    rows: int = 0
    multiplications: float = 0.0


class Pusher:
    """Sums `|C_(t,s)| scale` over the columns of a source, at every later activation and at the output.

    Args:
        graph: L nodes.
        slopes: whose centres are used.
    """

    def __init__(self, graph: Graph, slopes: Slopes) -> None:
        self.graph, self.slopes = graph, slopes
        self.plan = pushing_plan(graph)
        self.pulled = {place: _rows(graph, slopes, place) for place in self.plan.pulled}

    def sums(self, source: int, scale: Tensor) -> dict[int, Tensor]:
        """Of one source.

        Args:
            source: 0 or an activation's position.
            scale: of its columns, like its row, >= 0.

        Returns:
            Position -> `|C_(t,s)| scale`, like the node's row; nodes that nothing reaches are left out.
        """
        found: dict[int, Tensor] = {}
        if not bool((scale != 0).any()):
            return found
        for place, rows in self.pulled.items():
            if place > source and source in rows:
                found[place] = (rows[source] @ scale.reshape(-1)).reshape(self.graph.nodes[place].shape)
        for columns in _columns(self.graph, self.plan, source, scale):
            for place, images in centre_images(self.graph, self.slopes, source, columns, self.plan.last_pushed):
                if place not in self.pulled:
                    total = images.abs().sum(0)
                    found[place] = found[place] + total if place in found else total
        return found


def row_bounds(graph: Graph, slopes: Slopes, weights: Tensor) -> dict[int, Tensor]:
    """Bounds of `|J_t| weights` at every activation and at the output.

    Args:
        graph: L nodes.
        slopes: of its activations.
        weights: like an input row, >= 0.

    Returns:
        Position -> bound like the node's row, before the activation.
    """
    pusher = Pusher(graph, slopes)
    totals = {place: torch.zeros(graph.nodes[place].shape, dtype=torch.float64) for place in _targets(graph)}
    for source in [0, *graph.activations()]:
        scale = weights if source == 0 else slopes.radius[source] * totals[source]
        for place, sums in pusher.sums(source, scale.expand(graph.nodes[source].shape)).items():
            totals[place] += sums
    return totals


def centre_images(
    graph: Graph, slopes: Slopes, source: int, columns: Tensor, last: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Images of columns at the activations behind a node and at the output, through centre slopes.

    Args:
        graph: L nodes.
        slopes: whose centres are used.
        source: position where the columns stand, behind its activation.
        columns: (m, *shape).
        last: furthest position that is asked for.

    Yields:
        Position and images (m, *shape), before the activation.
    """
    last = graph.output if last is None else last
    needed = _last_uses(graph, last)
    alive: dict[int, Tensor] = {source: columns}
    for place in range(source + 1, last + 1):
        total: Tensor | None = None
        for edge in graph.into(place):
            if edge.source in alive:
                image = edge.map.apply(alive[edge.source])
                total = image if total is None else total + image
        for gone in needed.get(place, ()):
            alive.pop(gone, None)
        if total is None:
            continue
        if place in slopes.centre or place == graph.output:
            yield place, total
        alive[place] = total * slopes.centre[place] if place in slopes.centre else total


@dataclass(frozen=True)
class Plan:
    """How a graph is worked through.

    Attributes:
        pulled: positions of nodes that are read backwards.
        last_pushed: last position that columns are pushed to.
        spacing: position of a source -> along each axis, how far apart columns have to be to share a pass; empty
            where none may.
        work: of all passes.
    """

    pulled: tuple[int, ...]
    last_pushed: int
    spacing: Mapping[int, tuple[int, ...]]
    work: Work


def pushing_plan(graph: Graph) -> Plan:
    """The cheapest place to end pushing columns and to read the rest backwards.

    Nodes of a network narrow towards its end, where few rows replace many columns; all nodes from some position on
    are pulled, and that position is the one of least multiplications.

    Args:
        graph: L nodes.

    Returns:
        The plan.
    """
    targets = _targets(graph)
    sources = [0, *graph.activations()]
    spacings = {source: _spacings(graph, source, targets) for source in sources}
    below = [0.0] * (len(graph.nodes) + 1)
    for edge in graph.edges:
        below[edge.target] += edge.map.work
    reach = [sum(below[: place + 1]) for place in range(len(graph.nodes))]
    best: Plan | None = None
    for count in range(len(targets) + 1):
        pushed, pulled = targets[: len(targets) - count], targets[len(targets) - count :]
        kept = sum(
            graph.nodes[place].size * graph.nodes[source].size
            for place in pulled
            for source in sources
            if source < place
        )
        if kept > ROWS_ENTRIES and best is not None:
            break
        last = pushed[-1] if pushed else 0
        spacing = {source: spacings[source][last] for source in sources if source < last}
        columns = {source: _passes(graph.nodes[source].shape, spacing[source]) for source in spacing}
        work = Work(
            sum(columns.values()),
            sum(graph.nodes[place].size for place in pulled),
            sum(many * (reach[last] - reach[source]) for source, many in columns.items())
            + sum(graph.nodes[place].size * reach[place] for place in pulled),
        )
        if best is None or work.multiplications < best.work.multiplications:
            best = Plan(tuple(pulled), last, spacing, work)
    assert best is not None
    return best


def _spacings(graph: Graph, source: int, targets: list[int]) -> dict[int, tuple[int, ...]]:
    """How far apart along each axis columns of a source must be, never to meet at any target up to each.

    Returns:
        Target -> one distance per spatial axis; empty where sharing gains nothing or positions are mixed on the way.
    """
    shape = graph.nodes[source].shape
    axes = range(len(shape) - 1)
    start = [(torch.arange(size), torch.arange(size)) for size in shape[1:]]
    alive: dict[int, list[Reach] | None] = {source: start if start else None}
    distance: list[int] | None = [1 for _ in axes] if start else None
    found: dict[int, tuple[int, ...]] = {}
    for place in range(source + 1, len(graph.nodes)):
        for edge in graph.into(place):
            if edge.source not in alive:
                continue
            before = alive[edge.source]
            after = None
            if before is not None and len(edge.map.shape_out) == len(shape):
                reached = [edge.map.reach(axis, before[axis]) for axis in axes]
                after = None if any(each is None for each in reached) else [each for each in reached if each]
            present = alive.get(place, after)
            if place in alive and after is not None and present is not None:
                after = [_union(*pair) for pair in zip(present, after, strict=True)]
            alive[place] = after if present is not None else None
        if place in targets:
            if place in alive:
                reach = alive[place]
                if reach is None or distance is None:
                    distance = None
                else:
                    distance = [
                        max(far, _distance(each, size))
                        for far, each, size in zip(distance, reach, shape[1:], strict=True)
                    ]
            gain = distance is not None and _passes(shape, tuple(distance)) < math.prod(shape)
            found[place] = tuple(distance) if gain and distance is not None else ()
    return found


def _union(first: Reach, second: Reach) -> Reach:
    """The least interval that holds both."""
    none = first[0] > first[1], second[0] > second[1]
    low = torch.where(none[0], second[0], torch.where(none[1], first[0], torch.minimum(first[0], second[0])))
    high = torch.where(none[0], second[1], torch.where(none[1], first[1], torch.maximum(first[1], second[1])))
    return low, high


def _distance(reach: Reach, size: int) -> int:
    """Least d such that positions p and q with q - p >= d reach nothing in common."""
    low, high = reach
    filled = torch.nonzero(low <= high)[:, 0]
    distance = 1
    for place in filled.tolist():
        meets = filled[(filled > place) & (low[filled] <= high[place]) & (high[filled] >= low[place])]
        if len(meets):
            distance = max(distance, int(meets[-1]) - place + 1)
    return min(distance, size)


def _columns(graph: Graph, plan: Plan, source: int, scale: Tensor) -> Iterator[Tensor]:
    """Chunks of scaled columns (m, *shape) that together make up every unit column times its scale."""
    if source >= plan.last_pushed:
        return
    shape = graph.nodes[source].shape
    widest = max(graph.nodes[place].size for place in range(source, plan.last_pushed + 1))
    chunk = max(1, CHUNK_ENTRIES // (4 * widest))
    spacing = plan.spacing.get(source, ())
    if not spacing:
        used = torch.nonzero(scale.reshape(-1))[:, 0]
        for part in used.split(chunk):
            columns = torch.zeros(len(part), scale.numel(), dtype=torch.float64)
            columns[torch.arange(len(part)), part] = scale.reshape(-1)[part]
            yield columns.reshape(len(part), *shape)
        return
    masks = _colours(shape, spacing)
    made: list[Tensor] = []
    for channel in range(shape[0]):
        for mask in masks:
            column = torch.zeros(shape, dtype=torch.float64)
            column[channel] = torch.where(mask, scale[channel], 0.0)
            if bool((column != 0).any()):
                made.append(column)
            if len(made) == chunk:
                yield torch.stack(made)
                made = []
    if made:
        yield torch.stack(made)


def _colours(shape: Shape, spacing: tuple[int, ...]) -> list[Tensor]:
    """Masks over the spatial axes: positions of one colour are `spacing` apart."""
    residues = [torch.arange(size) % step for size, step in zip(shape[1:], spacing, strict=True)]
    grids = torch.meshgrid(*residues, indexing="ij")
    masks = []
    for offsets in torch.cartesian_prod(*[torch.arange(step) for step in spacing]).reshape(-1, len(spacing)):
        met = torch.ones(shape[1:], dtype=torch.bool)
        for grid, offset in zip(grids, offsets, strict=True):
            met &= grid == offset
        masks.append(met)
    return masks


def _passes(shape: Shape, spacing: tuple[int, ...]) -> int:
    return shape[0] * math.prod(spacing) if spacing else math.prod(shape)


def _rows(graph: Graph, slopes: Slopes, place: int) -> dict[int, Tensor]:
    """`|C_(place, source)|` as (entries of the node, entries of the source) for every source before a node."""
    last = graph.output
    # Read backwards from the node: the graph reversed, from its position on.
    back, turned = graph.reversed(), slopes.reversed(graph)
    size = graph.nodes[place].size
    sources = {0, *graph.activations()}
    kept: dict[int, list[Tensor]] = {}
    widest = max(node.size for node in graph.nodes[: place + 1])
    for part in torch.arange(size).split(max(1, CHUNK_ENTRIES // (4 * widest))):
        unit = torch.zeros(len(part), size, dtype=torch.float64)
        unit[torch.arange(len(part)), part] = 1.0
        unit = unit.reshape(len(part), *graph.nodes[place].shape)
        # In the reversed graph a node's value before its slope is what came back to behind the activation.
        for found, images in centre_images(back, turned, last - place, unit):
            if last - found in sources:
                kept.setdefault(last - found, []).append(images.abs().flatten(1))
    return {source: torch.cat(rows) for source, rows in kept.items()}


def _targets(graph: Graph) -> list[int]:
    return [*graph.activations(), graph.output]


def _last_uses(graph: Graph, last: int) -> dict[int, list[int]]:
    """Position -> nodes whose values are not needed beyond it."""
    final: dict[int, int] = {}
    for edge in graph.edges:
        if edge.target <= last:
            final[edge.source] = max(final.get(edge.source, 0), edge.target)
    found: dict[int, list[int]] = {}
    for source, place in final.items():
        found.setdefault(place, []).append(source)
    return found
