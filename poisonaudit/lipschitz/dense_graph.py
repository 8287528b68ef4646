"""Between the two forms of a network: matrices in a row, and a graph of maps."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from poisonaudit.lipschitz.activations import Activation, identity
from poisonaudit.lipschitz.graph import Edge, Graph, Node
from poisonaudit.lipschitz.linear_maps import Composition, Identity, LinearMap, Matrix, Scale, steps_of
from poisonaudit.lipschitz.network import SAFE_PRODUCT, DenseNetwork
from poisonaudit.lipschitz.rearrangement import Rearrangement
from poisonaudit.lipschitz.window_maps import Average, Convolution

# Numbers in the matrices of a network that is written out; beyond, passes through the network cost less.
MATRIX_ENTRIES = 2**21


def graph_of(network: DenseNetwork) -> Graph:
    """A dense network as a graph."""
    width = network.weights[0].shape[1]
    nothing = torch.zeros(width, dtype=torch.float64)
    nodes, edges = [Node("input", (width,), None, nothing, nothing, nothing)], []
    for number, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        last = number == len(network.weights) - 1
        activation = None if last or network.activations[number].changes_nothing else network.activations[number]
        name = "output" if last else f"layer {number + 1}"
        nodes.append(Node(name, (weight.shape[0],), activation, bias, bias.abs(), torch.zeros_like(bias)))
        edges.append(Edge(number, number + 1, Matrix(weight)))
    return Graph(tuple(nodes), tuple(edges))


def network_of(graph: Graph) -> DenseNetwork | None:
    """A chain of layers written out as matrices, one for each map that mixes entries.

    Args:
        graph: any.

    Returns:
        The network; None where paths meet, where there is max pooling, and where the matrices would be too large. The
        slopes of its activations may differ along a row. Its biases are not kept: they are 0.
    """
    if any(len(graph.into(place)) != 1 for place in range(1, len(graph.nodes))):
        return None
    if any(edge.source + 1 != edge.target for edge in graph.edges) or any(node.window for node in graph.nodes):
        return None
    maps = [list(_mixing(graph.into(place)[0].map)) for place in range(1, len(graph.nodes))]
    sizes = [math.prod(each.shape_in) * math.prod(each.shape_out) for part in maps for each in part]
    if sum(sizes) > MATRIX_ENTRIES:
        return None
    weights: list[Tensor] = []
    roundings: list[int] = []
    activations: list[Activation] = []
    for place, part in enumerate(maps, 1):
        for number, each in enumerate(part):
            if weights and number:
                activations.append(identity())
            weights.append(each.matrix().contiguous())
            roundings.append(_entry_roundings(each))
        activation = graph.nodes[place].activation
        if activation is not None:
            activations.append(activation.along(graph.nodes[place].shape))
        elif place < len(maps):
            activations.append(identity())
    biases = tuple(torch.zeros(weight.shape[0], dtype=torch.float64) for weight in weights)
    return DenseNetwork(tuple(weights), biases, tuple(activations), tuple(roundings))


def _mixing(step: LinearMap) -> Iterator[LinearMap]:
    """A composition in parts, each with at most one map that adds entries up; no product in one leaves float64."""
    group: LinearMap | None = None
    mixed, least, most = False, 1.0, 1.0
    for part in steps_of(step):
        mixes, (small, large) = _mixes(part), _entries(part)
        if group is not None and ((mixes and mixed) or least * small < SAFE_PRODUCT or most * large > 1 / SAFE_PRODUCT):
            yield group
            group, mixed, least, most = None, False, 1.0, 1.0
        group = part if group is None else Composition(group, part)
        mixed, least, most = mixed or mixes, least * small, most * large
    assert group is not None
    yield group


def _entries(part: LinearMap) -> tuple[float, float]:
    """Bounds of the least and the largest |entry| of its matrix that are not 0."""
    if isinstance(part, Scale):
        values = part.factors
    elif isinstance(part, Matrix | Convolution):
        values = part.weight
    elif isinstance(part, Average):
        # Those of a row are equal, and there are fewer than `roundings`.
        sums = part.apply(torch.ones(1, *part.shape_in, dtype=torch.float64))
        values = torch.cat([sums, sums / part.roundings])
    else:
        return 1.0, 1.0  # moves entries, or adds and subtracts them
    values = values.abs()[values != 0]
    return (float(values.min()), float(values.max())) if values.numel() else (1.0, 1.0)


def _mixes(part: LinearMap) -> bool:
    """Whether several entries can meet in one."""
    if isinstance(part, Rearrangement):
        return part.roundings_adjoint > 0
    return not isinstance(part, Identity | Scale)


def _entry_roundings(step: LinearMap) -> int:
    """Roundings in an entry of the matrix: none in a weight on its own."""
    parts = [part for part in steps_of(step) if not isinstance(part, Identity | Rearrangement)]
    inexact = [part.roundings for part in parts if isinstance(part, Scale | Average)]
    return sum(inexact) + len(parts) - 1 if parts else 0
