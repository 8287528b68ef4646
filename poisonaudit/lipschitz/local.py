"""Local Lipschitz constants, certified radii and certified accuracy: what holds in an l_inf ball around an input."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused, UsageError, wrong_type
from poisonaudit.lipschitz.arguments import Box, box_of, check_seed, labels_of, number_of, radii_of, rows_of
from poisonaudit.lipschitz.certified import certified_bound
from poisonaudit.lipschitz.dense_graph import graph_of
from poisonaudit.lipschitz.ellipsoid import Ellipsoid, ellipsoid_of
from poisonaudit.lipschitz.graph import Graph
from poisonaudit.lipschitz.graph_rounding import certified_rows
from poisonaudit.lipschitz.linear_maps import Matrix
from poisonaudit.lipschitz.local_rows import jacobian_row_bounds
from poisonaudit.lipschitz.lower import attained_norm
from poisonaudit.lipschitz.network import DenseNetwork, chain_of, read_network
from poisonaudit.lipschitz.ranges import Ranges, activation_ranges
from poisonaudit.lipschitz.reading import read_dense, read_graph
from poisonaudit.lipschitz.sign_coupled import entries_of
from poisonaudit.lipschitz.stages import staged
from poisonaudit.lipschitz.tuning import tuned

# Sums over balls far larger than this overflow.
LARGEST_RADIUS = 1e100
# Halvings of the largest radius; float64 has 52 bits.
MOST_STEPS = 100
# Multiplications of K_5's full form in a ball; beyond, it restarts.
LOCAL_WORK = 2e10


@dataclass(frozen=True)
class LocalBounds:
    """Bounds of a network's Lipschitz constant inside one l_inf ball.

    Attributes:
        upper: sound, rounding included.
        winner: the bound that gave it: "k5", or for nets of Linear layers one of "k3", "k5", "k6",
            "ellipsoid", "ellipsoid_tuned".
        lower: largest norm of the true Jacobian found in the ball; None where it was not searched.
        unstable: neurons whose slope is not fixed in the ball.
        neurons: all.
        norm: of inputs and outputs.
        radius: of the ball.
        seconds: of the upper bound.
    """

    upper: float
    winner: str
    lower: float | None
    unstable: int
    neurons: int
    norm: str
    radius: float
    seconds: float


@dataclass(frozen=True)
class CertifiedRadii:
    """How far every input may move in l_inf without a change of the prediction.

    Attributes:
        radii: (n,) proved; 0 where the prediction is wrong already.
        correct: (n,) whether the prediction is the label.
        largest: radii were searched up to here.
        seconds: in all.
    """

    radii: Tensor
    correct: Tensor
    largest: float
    seconds: float

    def accuracy(self, at: Sequence[float]) -> list[float]:
        """Share of inputs that are certified to stay right up to each radius: the certified accuracy curve.

        Args:
            at: radii.

        Returns:
            A share for each.
        """
        return [float((self.correct & (self.radii >= radius)).double().mean()) for radius in radii_of(at)]

    @property
    def median(self) -> float:
        """Median radius, 0 counted for wrong predictions; of an even number the mean of the middle two."""
        return float(self.radii.quantile(0.5))


def local_lipschitz(
    model: nn.Module | Sequence[Any],
    x: Tensor,
    radius: float,
    norm: str = "linf",
    *,
    box: Box | None = None,
    seed: int = 0,
    search_work: float = 1e9,
    tune: bool = False,
) -> list[LocalBounds]:
    """Bound the Lipschitz constant inside the l_inf ball around each input.

    Args:
        model: any feed-forward network that `lipschitz_bounds` reads, in eval mode, or a list of matrices.
        x: (n, ...) inputs.
        radius: of the balls, in input units.
        norm: "linf" or "l1", of changes of inputs and outputs; the ball is l_inf in any case.
        box: least and largest input there is, for all entries or like a row; the balls are cut there.
        seed: of the search for the lower bound.
        search_work: multiplications that search may take, about; 0 leaves it out.
        tune: also tune the ellipsoid bound, about a second an input.

    Returns:
        One result per input.

    Raises:
        UsageError: PA301, unknown norm; PA303, no seed; PA304, a radius below 0 or above `LARGEST_RADIUS`, no box or an
            empty one; PA314, a radius or an amount of work that is no number.
        InputRefused: PA130, a part of the network no bound is proved for; PA230, inputs that do not fit it or the box.
    """
    if norm not in ("linf", "l1"):
        raise UsageError("PA301", f"unknown norm {norm!r}. Local bounds are in 'linf' or 'l1'. Choose one.")
    check_seed(seed)
    radius, search_work = (
        number_of("local_lipschitz", word, value) for word, value in (("radius", radius), ("search_work", search_work))
    )
    if not 0 <= search_work < math.inf:
        raise UsageError("PA304", f"search_work is {search_work}. It counts multiplications. Pass 0 for no search.")
    if not isinstance(tune, bool):
        raise wrong_type("local_lipschitz", "tune", tune, "Pass True or False.")
    graph, rows = _prepared(model, x, radius)
    limits = box_of(box, rows)
    try:
        dense = read_dense(model, graph.nodes[0].shape)[0] if isinstance(model, nn.Module) else read_network(model)
    except InputRefused:
        # Not one of Linear layers alone: K_5 of the graph has to do.
        dense = None
    found = []
    for number, row in enumerate(rows):
        begun = time.perf_counter()
        with torch.no_grad():
            ranges = activation_ranges(graph, row, radius, limits)
            winner, upper = _upper(graph, dense, norm, ranges, tune)
        seconds = time.perf_counter() - begun
        lower = None
        if search_work > 0:
            lower = attained_norm(graph, norm, None, seed + number, ball=(row, radius), search_work=search_work)
        neurons = sum(graph.nodes[place].size for place in graph.activations())
        found.append(LocalBounds(upper, winner, lower, ranges.unstable, neurons, norm, radius, seconds))
    return found


def certified_radii(
    model: nn.Module | Sequence[Any],
    x: Tensor,
    labels: Tensor,
    *,
    largest: float = 1.0,
    steps: int = 10,
    box: Box | None = None,
) -> CertifiedRadii:
    """The l_inf radius within which each prediction provably stays the label, by doubling and bisection over proofs.

    At each radius tried, activations get the slopes of chords from the input, and the margins of the label's logit over
    the others are bounded as differences of rows, not as differences of bounds. A radius is reported only where its own
    proof succeeded, with all rounding.

    Args:
        model: any feed-forward network that `lipschitz_bounds` reads, in eval mode, or a list of matrices.
        x: (n, ...) inputs.
        labels: (n,) classes.
        largest: radii are searched up to here.
        steps: the answer is within `largest / 2^steps` of what these proofs can give; smaller radii are 0.
        box: least and largest input there is, for all entries or like a row.

    Returns:
        The radii.

    Raises:
        UsageError: PA304, a radius that is not positive or above `LARGEST_RADIUS`, steps that are no whole number from
            1 to `MOST_STEPS`, no box or an empty one; PA314, a radius that is no number.
        InputRefused: PA130, a part of the network no bound is proved for; PA230, inputs or labels that do not fit it
            or the box.
    """
    largest = number_of("certified_radii", "largest", largest)
    if not largest > 0:
        raise UsageError("PA304", f"largest is {largest}. Radii up to it are tried. Pass a number above 0.")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS:
        raise UsageError(
            "PA304", f"steps is {steps!r}. It counts halvings of the largest radius. Pass 1 to {MOST_STEPS}."
        )
    graph, rows = _prepared(model, x, largest)
    outputs = graph.nodes[-1].size
    if outputs < 2:
        raise InputRefused("PA230", "the network has one output. Margins are between two. Pass a classifier.")
    labels = labels_of(labels, len(rows), outputs)
    limits = box_of(box, rows)
    begun = time.perf_counter()
    with torch.no_grad():
        correct = graph.values(rows)[-1].flatten(1).argmax(1) == labels
        radii = [
            _radius(graph, row, int(label), largest, steps, limits) if right else 0.0
            for row, label, right in zip(rows, labels, correct, strict=True)
        ]
    return CertifiedRadii(torch.tensor(radii, dtype=torch.float64), correct, largest, time.perf_counter() - begun)


def _upper(graph: Graph, dense: DenseNetwork | None, norm: str, ranges: Ranges, tune: bool) -> tuple[str, float]:
    """The smallest sound bound with the slopes of a ball."""
    if dense is None:
        stages = staged(graph, norm, LOCAL_WORK, ranges.derivative)
        upper = float(certified_rows(stages)[1].max())
        if norm == "linf" and ranges.windows:
            # A pooling whose winners do not change in the ball is a linear map: no restart there.
            upper = min(upper, float(jacobian_row_bounds(graph, ranges).max()))
        return "k5", upper
    found = iter(graph.activations())
    intervals = [
        activation.ends((weight.shape[0],)) if activation.changes_nothing else ranges.slopes[next(found)]
        for activation, weight in zip(dense.activations, dense.weights, strict=False)
    ]
    chain = chain_of(*_without_dead(dense, norm, intervals))
    entries = entries_of(chain)
    plain = ellipsoid_of(chain, entries.largest)
    ellipsoids: dict[str, Ellipsoid | None] = {"ellipsoid": plain}
    if tune and plain is not None:
        ellipsoids["ellipsoid_tuned"] = tuned(chain, plain)
    return certified_bound(chain, entries, None, ellipsoids)


def _without_dead(
    network: DenseNetwork, norm: str, intervals: list[tuple[Tensor, Tensor]]
) -> tuple[DenseNetwork, str, list[tuple[Tensor, Tensor]]]:
    """The network without neurons whose slope is 0 everywhere."""
    # One of each layer stays, so that no matrix is empty.
    kept = [((lower != 0) | (upper != 0)).index_fill(0, torch.tensor([0]), True) for lower, upper in intervals]
    every_in = torch.ones(network.weights[0].shape[1], dtype=torch.bool)
    every_out = torch.ones(network.weights[-1].shape[0], dtype=torch.bool)
    befores, afters = [every_in, *kept], [*kept, every_out]
    weights = tuple(
        weight[after][:, before] for weight, before, after in zip(network.weights, befores, afters, strict=True)
    )
    biases = tuple(bias[after] for bias, after in zip(network.biases, afters, strict=True))
    return (
        DenseNetwork(weights, biases, network.activations, network.roundings),
        norm,
        [(lower[own], upper[own]) for (lower, upper), own in zip(intervals, kept, strict=True)],
    )


def _radius(
    graph: Graph, row: Tensor, label: int, largest: float, steps: int, box: tuple[Tensor, Tensor] | None
) -> float:
    # From small balls up: a ball in which most neurons are unstable costs many times more columns.
    least = max(math.ldexp(largest, -steps), math.ulp(0.0))  # which may have come to 0
    proved, refuted = 0.0, least
    while _stays(activation_ranges(graph, row, refuted, box), label):
        if refuted >= largest:
            return refuted
        proved, refuted = refuted, min(2.0 * refuted, largest)
    while refuted - proved > least:
        middle = 0.5 * (proved + refuted)
        if not proved < middle < refuted:  # neighbours in float64
            break
        if _stays(activation_ranges(graph, row, middle, box), label):
            proved = middle
        else:
            refuted = middle
    return proved


def _stays(ranges: Ranges, label: int) -> bool:
    """Whether the label's logit provably exceeds every other one in the ball."""
    outputs = ranges.values.centre.numel()
    others = [place for place in range(outputs) if place != label]
    difference = torch.zeros(len(others), outputs, dtype=torch.float64)
    difference[:, label] = 1.0
    difference[torch.arange(len(others)), torch.tensor(others)] = -1.0
    margins = []
    for form in (ranges.deviation, ranges.values):
        compared = form.through(Matrix(difference))
        margins.append(compared.centre - compared.radius())
    return bool((torch.stack(margins).amax(0) > 0).all())


def _prepared(model: nn.Module | Sequence[Any], x: Tensor, radius: float) -> tuple[Graph, Tensor]:
    """The graph and the rows in float64."""
    if not 0 <= radius <= LARGEST_RADIUS:
        raise UsageError(
            "PA304",
            f"a ball of radius {radius} was asked for. Radii are distances, at most {LARGEST_RADIUS:g}. Pass one, or "
            "use lipschitz_bounds, which holds everywhere.",
        )
    rows = rows_of(x)
    if isinstance(model, nn.Module):
        return read_graph(model, tuple(rows.shape[1:])), rows
    graph = graph_of(read_network(model))
    if rows.shape[1:] != graph.nodes[0].shape:
        raise InputRefused(
            "PA230",
            f"x has shape {tuple(rows.shape)}; rows of {tuple(graph.nodes[0].shape)} were expected. Pass those.",
        )
    return graph, rows
