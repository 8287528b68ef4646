"""How long bounds of a network take, estimated from multiplications before any is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from poisonaudit.errors import InputRefused
from poisonaudit.lipschitz.dense_graph import network_of
from poisonaudit.lipschitz.graph import Graph
from poisonaudit.lipschitz.lower import FEWEST_ASCENTS, FEWEST_STEPS
from poisonaudit.lipschitz.network import read_network
from poisonaudit.lipschitz.reading import read_graph
from poisonaudit.lipschitz.stages import staged

# Multiplications a second of one core, measured with 3 x 3 convolutions in float64.
SPEED = 2e9
# Of Jacobians, whose passes are larger.
_JACOBIAN_SPEED = 8e9
# Seconds of a proof in a small net: forty calls of torch.
_LEAST_PROOF = 0.004
# Share of the neurons that are unstable in a ball of the size of a certified radius.
_UNSTABLE = 0.25
# Balls tried for one radius.
_TRIES = 10


@dataclass(frozen=True)
class Costs:
    """Estimates for one network, in seconds of one core.

    Attributes:
        upper: of the upper bounds in one norm.
        jacobian: of one input's Jacobian.
        search: of the shortest search for a lower bound.
    """

    upper: float
    jacobian: float
    search: float


def bound_costs(model: nn.Module, shape: Sequence[int], norm: str, work_limit: float) -> Costs:
    """Estimate what bounds of a network take.

    Args:
        model: that `lipschitz_bounds` reads, in eval mode.
        shape: of one input row.
        norm: "linf" or "l1".
        work_limit: multiplications, as in `lipschitz_bounds`.

    Returns:
        The estimates.

    Raises:
        InputRefused: PA130, a part of the network no bound is proved for.
    """
    with torch.no_grad():
        graph = read_graph(model, tuple(shape))
        # What is written out as matrices has limits of its own, of seconds. Else K_5 and K_1 take the same passes, and
        # K_4 at most as many again.
        passes = 0.0 if _written_out(model, graph) else 3.0 * staged(graph, norm, work_limit).work
    jacobian = 2.0 * graph.nodes[-1].size * sum(edge.map.work for edge in graph.edges) / _JACOBIAN_SPEED
    return Costs(
        upper=passes / SPEED,
        jacobian=jacobian,
        search=8.0 * FEWEST_ASCENTS * FEWEST_STEPS * jacobian,
    )


def radius_seconds(model: nn.Module, shape: Sequence[int]) -> float:
    """Estimate what one certified radius takes, in seconds of one core.

    Args:
        model: that `lipschitz_bounds` reads, in eval mode.
        shape: of one input row.

    Returns:
        The estimate.

    Raises:
        InputRefused: PA130, a part of the network no bound is proved for.
    """
    with torch.no_grad():
        graph = read_graph(model, tuple(shape))
    work = sum(edge.map.work for edge in graph.edges)
    neurons = sum(graph.nodes[place].size for place in graph.activations())
    # Two forms, each through the maps and their absolute values.
    columns = 4.0 * (graph.nodes[0].size + _UNSTABLE * neurons)
    return _TRIES * (_LEAST_PROOF + columns * work / (2.0 * SPEED))


def _written_out(model: nn.Module, graph: Graph) -> bool:
    try:
        read_network(model)
    except InputRefused:
        return network_of(graph) is not None
    return True
