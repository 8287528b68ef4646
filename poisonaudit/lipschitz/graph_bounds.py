"""K_*, K_1, K_3, K_4 and K_5 of a network in stages, in l_inf of the direction it is read in, by passes alone.

Over the stages the source's bounds multiply; K_5 carries its row bounds from one to the next. Orders hold stage by
stage: `K_5 <= K_4 <= min(K_1, K_3) <= K_*` where paths do not meet and slopes of a layer are equal.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from poisonaudit.lipschitz.graph import Graph, Slopes
from poisonaudit.lipschitz.linear_maps import steps_of
from poisonaudit.lipschitz.pushing import CHUNK_ENTRIES, Pusher, centre_images
from poisonaudit.lipschitz.stages import Stages

K4_ACTIVATIONS = 12
# Multiplications beyond which K_4 is left out: its columns share no passes.
K4_WORK = 2e11


def product_of_norms(stages: Stages) -> float:
    """K_*: the product of the norms of layers and slopes; where paths meet, the sum of theirs."""
    value = _links(stages)
    for graph, slopes in zip(stages.graphs, stages.slopes, strict=True):
        norms = [1.0] + [0.0] * graph.output
        for place in range(1, len(graph.nodes)):
            for edge in graph.into(place):
                ones = torch.ones(1, *edge.map.shape_in, dtype=torch.float64)
                norms[place] += float(edge.map.absolute().apply(ones).max()) * norms[edge.source]
            steepest = slopes.steepest(place)
            if steepest is not None:
                norms[place] *= float(steepest.max())
        value *= norms[-1]
    return value


def absolute_rows(graph: Graph, slopes: Slopes, weights: Tensor, *, everywhere: bool = False) -> Tensor:
    """`abs(W_l) ... abs(W_0) weights` with the steepest slopes: row bounds of K_3.

    Args:
        graph: L nodes.
        slopes: of its activations.
        weights: like an input row, >= 0.
        everywhere: add 1 to every entry of every node, and between the maps on its way there, for the gain of errors
            made on the way.

    Returns:
        Like an output row.
    """
    return absolute_passes(graph, slopes, weights, 1.0 if everywhere else 0.0)[0]


def absolute_passes(graph: Graph, slopes: Slopes, weights: Tensor, added: float = 0.0) -> tuple[Tensor, float]:
    """`absolute_rows`, and the sum of the rows at all nodes and between the maps on the way there.

    Args:
        graph: L nodes.
        slopes: of its activations.
        weights: like an input row, >= 0.
        added: to every entry of every row.

    Returns:
        Like an output row, and the sum.
    """
    values: list[Tensor] = [weights.expand(graph.nodes[0].shape) + added]
    met = float(values[0].sum())
    for place in range(1, len(graph.nodes)):
        total = torch.zeros(graph.nodes[place].shape, dtype=torch.float64)
        for edge in graph.into(place):
            image = values[edge.source][None]
            for step in steps_of(edge.map):
                image = step.absolute().apply(image) + added
                met += float(image.sum())
            total = total + image[0]
        steepest = slopes.steepest(place)
        values.append((total if steepest is None else total * steepest) + added)
        met += float(total.sum()) + float(values[-1].sum())
    return values[-1], met


def absolute_bound(stages: Stages) -> float:
    """K_3: the norm of the product of absolute values."""
    value = _links(stages)
    for graph, slopes in zip(stages.graphs, stages.slopes, strict=True):
        value *= float(absolute_rows(graph, slopes, torch.ones(graph.nodes[0].shape, dtype=torch.float64)).max())
    return value


def subset_norms(stages: Stages) -> float:
    """K_1: its sum over subsets of activations is a sum over paths of blocks, each with its norm."""
    value = _links(stages)
    for graph, slopes in zip(stages.graphs, stages.slopes, strict=True):
        pusher = Pusher(graph, slopes)
        totals = {0: 1.0}
        for source in [0, *graph.activations()]:
            radius = 1.0 if source == 0 else float(slopes.radius[source].max())
            for place, sums in pusher.sums(source, torch.ones(graph.nodes[source].shape, dtype=torch.float64)).items():
                totals[place] = totals.get(place, 0.0) + radius * float(sums.max()) * totals.get(source, 0.0)
        value *= totals.get(graph.output, 0.0)
    return value


def subset_columns(stages: Stages, work_limit: float = K4_WORK) -> float | None:
    """K_4: the sum over subsets of activations of the norms of products of absolute blocks.

    Args:
        stages: of the network.
        work_limit: multiplications, over all stages; above 2e11 it means 2e11.

    Returns:
        The bound; None where a stage has more than 12 activations or the work is too much.
    """
    if any(len(graph.activations()) > K4_ACTIVATIONS for graph in stages.graphs):
        return None
    if sum(map(_unshared_work, stages.graphs)) > min(K4_WORK, work_limit):
        return None
    value = _links(stages)
    for graph, slopes in zip(stages.graphs, stages.slopes, strict=True):
        value *= _stage_columns(graph, slopes)
    return value


def _stage_columns(graph: Graph, slopes: Slopes) -> float:
    """K_4 of one stage: every subset is a column, that ends at its last activation."""
    places = [*graph.activations(), graph.output]
    columns: dict[int, list[Tensor]] = {place: [] for place in places}
    for source in [0, *graph.activations()]:
        size = graph.nodes[source].size
        if source == 0:
            own = torch.ones(size, 1, dtype=torch.float64)
        elif columns[source]:
            radius = slopes.radius[source].expand(graph.nodes[source].shape).reshape(-1, 1)
            own = radius * torch.cat(columns[source], 1)
        else:
            continue
        sums = {place: torch.zeros(0) for place in places}
        widest = max(node.size for node in graph.nodes)
        for part in torch.arange(size).split(max(1, CHUNK_ENTRIES // (4 * widest))):
            unit = torch.zeros(len(part), size, dtype=torch.float64)
            unit[torch.arange(len(part)), part] = 1.0
            shaped = unit.reshape(len(part), *graph.nodes[source].shape)
            for place, images in centre_images(graph, slopes, source, shaped):
                added = images.abs().flatten(1).T @ own[part]
                sums[place] = added if not sums[place].numel() else sums[place] + added
        for place, found in sums.items():
            if found.numel():
                columns[place].append(found)
    final = columns[graph.output]
    return float(torch.cat(final, 1).amax(0).sum()) if final else 0.0


def _unshared_work(graph: Graph) -> float:
    """Multiplications of pushing every column on its own."""
    after = [0.0] * (len(graph.nodes) + 1)
    for edge in graph.edges:
        after[edge.target] += edge.map.work
    behind = [math.fsum(after[place + 1 :]) for place in range(len(graph.nodes))]
    return sum(graph.nodes[source].size * behind[source] for source in [0, *graph.activations()])


def _links(stages: Stages) -> float:
    """Product of the links' norms."""
    return math.prod(stages.norm_link(number) for number in range(len(stages.links)))


def longest_path(graph: Graph) -> int:
    """Most roundings that meet along one path of signed products: terms of maps, sums where paths meet, slopes."""
    counts = [0] * len(graph.nodes)
    for place in range(1, len(graph.nodes)):
        into = graph.into(place)
        counts[place] = max(counts[edge.source] + edge.map.roundings + edge.map.roundings_adjoint for edge in into)
        counts[place] += len(into) + 2
    return counts[-1]


def columns_met(graph: Graph) -> int:
    """Sum over targets of the columns that are added up there."""
    sizes = [graph.nodes[place].size for place in [0, *graph.activations()]]
    return sum(itertools.accumulate(sizes)) + 4 * len(sizes) ** 2
