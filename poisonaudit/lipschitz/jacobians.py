"""True Jacobians of a graph at given inputs, and whether the network certainly is differentiable there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.lipschitz.activations import Activation
from poisonaudit.lipschitz.graph import Graph, Node

# Rounding moves a pre-activation by about 1e-16 of its terms; the rest is room for growth in deep nets.
KINK = 1e-9


@dataclass(frozen=True, eq=False)
class Local:
    """What is needed of a network around some inputs.

    Attributes:
        slopes: position of an activation -> derivatives (n, *shape).
        chosen: position of a max pooling -> flat position within its channel that each window takes.
        smooth: (n,) whether the point certainly lies off every kink.
    """

    slopes: dict[int, Tensor]
    chosen: dict[int, Tensor]
    smooth: Tensor


def local_slopes(graph: Graph, rows: Tensor) -> Local:
    """Derivatives of the activations at inputs (n, *shape), and whether they certainly exist."""
    absolute = graph.absolute()
    smooth = torch.ones(len(rows), dtype=torch.bool)
    post, moving = [rows], [torch.ones_like(rows)]
    slopes, chosen = {}, {}
    for place in range(1, len(graph.nodes)):
        node = graph.nodes[place]
        pre, terms, moves = node.bias, node.bias_terms, torch.zeros(1, dtype=torch.float64)
        for edge, plain in zip(graph.into(place), absolute.into(place), strict=True):
            pre = pre + edge.map.apply(post[edge.source])
            terms = terms + plain.map.apply(post[edge.source].abs())
            moves = moves + plain.map.apply(moving[edge.source])
        moves = (moves > 0).to(torch.float64)
        smooth &= torch.isfinite(pre).flatten(1).all(1)
        if node.activation is not None:
            slopes[place] = node.activation.slopes(pre)
            smooth &= _off_kinks(node.activation, pre, terms, moves)
            moves = moves * (~node.activation.constant(slopes[place]))
        if node.window is not None:
            chosen[place] = node.window.chosen(pre)
            certain, moves = _one_largest(node, pre, terms, moves)
            smooth &= certain
        post.append(node.value(pre))
        moving.append(moves)
    return Local(slopes, chosen, smooth)


def jacobian_rows(graph: Graph, slopes: dict[int, Tensor], chosen: dict[int, Tensor], count: int) -> Tensor:
    """Jacobians from slopes at each of `count` points, (count, outputs, *input shape), read backwards."""
    last = graph.output
    outputs = graph.nodes[last].size
    unit = torch.eye(outputs, dtype=torch.float64).reshape(outputs, *graph.nodes[last].shape)
    came: dict[int, Tensor] = {last: unit.repeat(count, *[1] * len(graph.nodes[last].shape))}
    for place in range(last, 0, -1):
        if place not in came:
            continue
        back = came.pop(place)
        if place in slopes:
            back = back * slopes[place].repeat_interleave(outputs, 0)
        if place in chosen:
            flat = back.new_zeros(*back.shape[:2], math.prod(graph.nodes[place].shape[1:]))
            where = chosen[place].repeat_interleave(outputs, 0).flatten(2)
            back = flat.scatter_add(2, where, back.flatten(2)).reshape(len(back), *graph.nodes[place].shape)
        for edge in graph.into(place):
            image = edge.map.adjoint(back)
            came[edge.source] = came[edge.source] + image if edge.source in came else image
    return came[0].reshape(count, outputs, *graph.nodes[0].shape)


def induced_norms(jacobians: Tensor, norm: str) -> Tensor:
    """Per point: largest absolute row sum (linf), column sum (l1), or singular value (l2)."""
    flat = jacobians.flatten(2)
    if norm == "l2":
        found: Tensor = torch.linalg.matrix_norm(flat, ord=2)
        return found
    return flat.abs().sum(2 if norm == "linf" else 1).amax(1)


def smoothed_slopes(graph: Graph, rows: Tensor, width: float) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Stand-ins for the slopes that depend on the inputs without jumps.

    Args:
        graph: L nodes.
        rows: (n, *shape), may require gradients.
        width: a jump is spread over this many times the layer's mean |z|.

    Returns:
        Slopes as in `Local`, and the chosen entries of max pooling as they are.
    """
    post = [rows]
    slopes, chosen = {}, {}
    for place in range(1, len(graph.nodes)):
        node = graph.nodes[place]
        pre = node.bias + sum(edge.map.apply(post[edge.source]) for edge in graph.into(place))
        if node.activation is not None:
            spread = width * pre.detach().abs().flatten(1).mean(1).clamp_min(1e-300)
            values, slopes[place] = node.activation.smoothed(pre, spread.reshape(-1, *[1] * len(node.shape)))
            post.append(values)
            continue
        if node.window is not None:
            chosen[place] = node.window.chosen(pre.detach())
        post.append(node.value(pre))
    return slopes, chosen


def _off_kinks(activation: Activation, pre: Tensor, terms: Tensor, moves: Tensor) -> Tensor:
    """Whether every entry is certainly not at a kink, or constant near the point."""
    certain = torch.ones(len(pre), dtype=torch.bool)
    for kink in activation.kinks:
        away = (pre - kink).abs() > KINK * (terms + abs(kink))
        certain &= (away | (moves == 0)).flatten(1).all(1)
    return certain


def _one_largest(node: Node, pre: Tensor, terms: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each window has one largest entry, or is constant nearby; and which windows may move."""
    assert node.window is not None
    window = node.window
    values = window.patches(pre, -math.inf)
    room = KINK * window.patches(terms.expand_as(pre), 0.0).amax(2, keepdim=True)
    near = values >= values.amax(2, keepdim=True) - room
    moving = (window.patches(moves.expand_as(pre), 0.0) > 0) & near
    certain = (near.sum(2) == 1) | ~moving.any(2)
    return certain.flatten(1).all(1), moving.any(2).to(torch.float64)
