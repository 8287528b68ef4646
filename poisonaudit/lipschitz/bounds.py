"""`lipschitz_bounds`: every bound of one network, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.lipschitz.all_bounds import dense_bounds, graph_bounds
from poisonaudit.lipschitz.arguments import check_seed, number_of, row_shape, rows_of, shape_of
from poisonaudit.lipschitz.dense_graph import graph_of, network_of
from poisonaudit.lipschitz.graph import Graph
from poisonaudit.lipschitz.lower import attained_norm
from poisonaudit.lipschitz.network import DenseNetwork, read_network
from poisonaudit.lipschitz.points import points_of
from poisonaudit.lipschitz.reading import read_dense, read_graph
from poisonaudit.registry import unknown_name

NORMS = ("linf", "l1", "l2")
MAX_POOL = ("implicit", "explicit")
# Multiplications of K_5, a minute or two on two cores; K_1 takes as many again.
WORK_LIMIT = 3e11
# In this order ties go to the earlier name.
UPPER_BOUNDS = ("k5", "k6", "k4", "k3", "k1", "k_star", "k2", "ellipsoid", "ellipsoid_tuned", "exact")


@dataclass(frozen=True)
class LipschitzBounds:
    """Bounds of the Lipschitz constant of a network, inputs and outputs both measured in `norm`.

    In l_inf and l_1, lower <= exact <= k6 <= k5 <= min(k3, k4), k4 <= k1 and k3 <= k_star; and if all neurons of a
    layer have the same slopes, k4 <= k3 and k1 <= k_star. In l_2 the bounds k3, k4 and k5 are spectral norms of
    entrywise bounds: the order with k1 and k_star is lost. Orders hold up to rounding, 1e-10 relative.

    Attributes:
        k_star: product of the layers' norms (K_*).
        k1: Combettes and Pesquet (K_1).
        k2: Virmaux and Scaman (K_2); None if a hidden layer is wider than 16 (in l_2: 12).
        k3: norm of the product of absolute matrices (K_3).
        k4: Després and Pintore (K_4); None beyond 12 hidden layers, where it would take more than `work_limit`, and
            in l_2 where it would fill the memory.
        k5: norm of the sum (K_5), never above K_4.
        k6: K_5 with the signs of every output row coupled (K_6), never above K_5; None in l_2.
        ellipsoid: the l_2 route in closed form; None where its matrices are too large (a few thousand neurons a layer).
        ellipsoid_tuned: the same with its multipliers and weights tuned by descent; the closed form itself where
            `exact` is known, where that takes more than about 2e10 multiplications (some 300 neurons a layer), and with
            `tune=False`.
        exact: K itself, the largest norm over all choices of slopes, which all bounds above bound; None beyond 16
            neurons. The network may not reach it: its neurons choose their slopes together.
        lower: largest norm of the true Jacobian found at an input.
        best: the smallest of the upper bounds above, in plain float64 ("numerical").
        winner: the name of the bound that gave `best`.
        certified: a bound that holds with all float64 rounding accounted for: the smallest of those of K_3, K_5, K_6,
            the ellipsoids and, in l_inf and l_1, K, in l_2 K_*.
        certified_winner: the name of the bound that gave `certified`.
        norm: "linf", "l1" or "l2".
        hidden_layers: number of layers of activations.
        restarts: nodes where K_5 started anew to save work; those at max pooling belong to its implicit form.
        seconds: wall time per bound.
    """

    k_star: float
    k1: float
    k2: float | None
    k3: float
    k4: float | None
    k5: float
    k6: float | None
    ellipsoid: float | None
    ellipsoid_tuned: float | None
    exact: float | None
    lower: float
    best: float
    winner: str
    certified: float
    certified_winner: str
    norm: str
    hidden_layers: int
    restarts: tuple[str, ...]
    seconds: Mapping[str, float]


def lipschitz_bounds(
    model_or_matrices: nn.Module | Sequence[Any],
    norm: str = "linf",
    x: Any = None,
    seed: int = 0,
    *,
    input_shape: Sequence[int] | None = None,
    max_pool: str = "implicit",
    work_limit: float = WORK_LIMIT,
    tune: bool = True,
) -> LipschitzBounds:
    """Bound how strongly a network can amplify a change of its input, over all inputs.

    Nets of Linear layers, and chains of other layers small enough to be written out as matrices, get every bound. Other
    feed-forward graphs (convolutions, skips, pooling; docs/lipschitz.md lists the layers) get K_*, K_1, K_3, K_4 and
    K_5 from passes through the network; where K_5's full form would take more than `work_limit` multiplications it
    restarts at nodes that every path passes, as few as possible.

    Args:
        model_or_matrices: a module in eval mode whose forward torch.fx can trace; or the matrices `[W_0, ..., W_l]`
            applied in that order, ReLU between them, zero biases.
        norm: "linf" or "l1", for nets that are written out as matrices also "l2": the norm of inputs and outputs.
        x: (n, ...) points where the lower bound looks first, in input units; None: random N(0, I) points.
        seed: of the search for the lower bound.
        input_shape: of one row, where neither `x` nor a first Linear layer tells it.
        max_pool: "implicit" (a selection of norm 1) or "explicit" (a cascade of ReLU layers).
        work_limit: multiplications, about 4e9 a second on two cores.
        tune: also tune the ellipsoid bound, which takes up to a few seconds.

    Returns:
        All bounds. Upper bounds depend on the weights only; they bound `|f(a) - f(b)| / |a - b|` everywhere.
        A network they are not proved for is refused (InputRefused PA130), and so is an `x` that does not fit
        it (InputRefused PA230).

    Raises:
        InputRefused: PA130, the network is not one the bounds are proved for; PA230, `x` does not fit it.
        UsageError: PA301, unknown norm or form of max pooling; PA303, the seed is not an integer; PA304, no input
            shape, or a limit that is not positive; PA314, a limit that is no number.
    """
    if norm not in NORMS:
        raise UsageError("PA301", unknown_name(str(norm), NORMS, "norm").message)
    if max_pool not in MAX_POOL:
        raise UsageError("PA301", unknown_name(str(max_pool), MAX_POOL, "form of max pooling").message)
    check_seed(seed)
    work_limit = number_of("lipschitz_bounds", "work_limit", work_limit)
    input_shape = None if input_shape is None else shape_of(input_shape)
    if not work_limit > 0:
        raise UsageError("PA304", f"work_limit is {work_limit}. It counts multiplications. Pass a positive number.")
    with torch.no_grad():
        network, graph = _read(model_or_matrices, x, input_shape, max_pool == "explicit")
    points = None if x is None else points_of(x, graph.nodes[0].size).reshape(-1, *graph.nodes[0].shape)
    with torch.no_grad():
        if network is not None:
            found = dense_bounds(network, norm, tune)
        else:
            found = graph_bounds(graph, norm, work_limit)
    begun = time.perf_counter()
    lower = attained_norm(graph, norm, points, seed)
    found.seconds["lower"] = time.perf_counter() - begun
    present = {name: value for name in UPPER_BOUNDS if (value := found.upper.get(name)) is not None}
    winner = min(present, key=lambda name: present[name])
    return LipschitzBounds(
        k_star=present["k_star"],
        k1=present["k1"],
        k2=present.get("k2"),
        k3=present["k3"],
        k4=present.get("k4"),
        k5=present["k5"],
        k6=present.get("k6"),
        ellipsoid=present.get("ellipsoid"),
        ellipsoid_tuned=present.get("ellipsoid_tuned"),
        exact=present.get("exact"),
        lower=lower,
        best=present[winner],
        winner=winner,
        certified=found.certified,
        certified_winner=found.certified_winner,
        norm=norm,
        hidden_layers=found.hidden,
        restarts=found.restarts,
        seconds=found.seconds,
    )


def _read(
    model_or_matrices: nn.Module | Sequence[Any], x: Any, input_shape: Sequence[int] | None, explicit: bool
) -> tuple[DenseNetwork | None, Graph]:
    """The network as matrices where that is possible, and as a graph."""
    if not isinstance(model_or_matrices, nn.Module):
        network = read_network(model_or_matrices)
        return network, graph_of(network)
    shape = None if input_shape is None else tuple(input_shape)
    if shape is None:
        shape = tuple(rows_of(x).shape[1:]) if x is not None else row_shape(model_or_matrices)
    try:
        return read_dense(model_or_matrices, shape)
    except InputRefused:
        if shape is None:
            raise UsageError(
                "PA304",
                "the shape of an input is not known: the first layer takes any size. Pass x, or "
                "input_shape=(1, 28, 28).",
            ) from None
        graph = read_graph(model_or_matrices, shape, explicit_pooling=explicit)
        return network_of(graph), graph
