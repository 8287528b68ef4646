"""K itself, by enumeration: the largest norm of `W_l D_l W_(l-1) ... D_1 W_0` over all diagonal D_r.

The product is linear in each D_r and a norm is convex, so the maximum lies where every slope is at an end of its
interval. In l_inf the norm of a row J is the largest `J s` over signs s, which makes the input one more layer of
gates, with ends -1 and 1. For a fixed choice in all layers but one, say m, the value is `sum_j d_j a_j b_j` with a row
`a` from the outputs down to layer m and a column `b` from the input up to it; its largest value over d_j in
[low, high] is `sum_j high (a_j b_j)^+ - low (a_j b_j)^-`, and because `(a b)^+ = a^+ b^+ + a^- b^-` and
`(a b)^- = a^+ b^- + a^- b^+`, all rows against all columns are one matrix product. Only the other layers are
enumerated: 2^16 gate patterns of an 8-10-6-3 network (and its 2^8 signs) cost one product of 192 by 256 entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poisonaudit.errors import UsageError
from poisonaudit.lipschitz.network import read_network
from poisonaudit.registry import unknown_name

NORMS = ("linf", "l1")
# Multiplications; some ten seconds on one core.
LARGEST_WORK = 2.0**36
_BLOCK_ENTRIES = 2**18
# What it takes to write and read an entry of an enumerated vector, in multiplications.
_HANDLING = 16


@dataclass(frozen=True)
class _Side:
    """Vectors on one side of the layer that is maximised in closed form.

    Attributes:
        starts: (m, n) vectors at the first layer of gates, or, without any, at the closed layer itself.
        steps: (low, high, matrix) per enumerated layer, in the order met: scale by the gates, multiply.
    """

    starts: Tensor
    steps: tuple[tuple[float, float, Tensor], ...]

    @property
    def count(self) -> float:
        """How many vectors arrive at the closed layer."""
        free = sum(matrix.shape[1] for low, high, matrix in self.steps if low < high)
        return len(self.starts) * 2.0**free if free < 1000 else math.inf


def exact_constant(matrices: Sequence[Any], norm: str = "linf", slopes: tuple[float, float] = (0.0, 1.0)) -> float:
    """`K = max_D N(W_l D_l W_(l-1) ... D_1 W_0)`, D_r diagonal with entries in `slopes`: exact up to rounding.

    K is the best that can be said from the matrices alone: an upper bound of the Lipschitz constant of every network
    with these matrices, whatever its biases, and a lower bound of K_1 to K_5.

    Args:
        matrices: `[W_0, ..., W_l]`, applied in that order, (n_(r+1), n_r).
        norm: "linf" or "l1", the induced norm.
        slopes: smallest and largest slope of the activation; (0, 1) for ReLU.

    Returns:
        K in float64, with the rounding of a sum of products and no other error.

    Raises:
        UsageError: PA301, unknown norm; PA304, slopes that are no interval; PA395, too many patterns
            (`exact_work` above 2^36).
        InputRefused: PA130, the matrices are no network.
    """
    left, right, gates = _cheapest(matrices, norm, slopes)
    work = _work(left, right, _width(left))
    if work > LARGEST_WORK:
        raise UsageError(
            "PA395",
            f"K by enumeration takes about 2^{math.log2(work):.0f} multiplications here, and at most "
            f"2^{math.log2(LARGEST_WORK):.0f} are done. Use lipschitz_bounds: its numbers bound K at any size."
            if math.isfinite(work)
            else "K by enumeration takes over 2^1000 multiplications here. Use lipschitz_bounds.",
        )
    low, high = gates
    few, many = sorted((left, right), key=lambda side: side.count)
    widest = max(matrix.shape[1] for _, _, matrix in (*few.steps, *many.steps, (0.0, 0.0, few.starts)))
    fixed = torch.cat(list(_vectors(few, max(1, _BLOCK_ENTRIES // widest))))
    up, down = fixed.clamp(min=0.0), (-fixed).clamp(min=0.0)
    fixed = torch.cat([high * up - low * down, high * down - low * up], 1).T.contiguous()
    best = -math.inf
    for part in _vectors(many, max(1, _BLOCK_ENTRIES // max(widest, fixed.shape[1]))):
        best = max(best, float((torch.cat([part.clamp(min=0.0), (-part).clamp(min=0.0)], 1) @ fixed).max()))
    return max(best, 0.0)


def exact_work(matrices: Sequence[Any], norm: str = "linf", slopes: tuple[float, float] = (0.0, 1.0)) -> float:
    """Multiplications that `exact_constant` would take, roughly; infinite beyond 2^1000.

    Args:
        matrices: `[W_0, ..., W_l]`.
        norm: "linf" or "l1".
        slopes: of the activation.

    Returns:
        The count; 2^33 is about a second on one core.

    Raises:
        UsageError: PA301, unknown norm; PA304, slopes that are no interval.
        InputRefused: PA130, the matrices are no network.
    """
    left, right, _ = _cheapest(matrices, norm, slopes)
    return _work(left, right, _width(left))


def _cheapest(
    matrices: Sequence[Any], norm: str, slopes: tuple[float, float]
) -> tuple[_Side, _Side, tuple[float, float]]:
    """Both sides of the layer whose closed form saves most, and the ends of that layer's gates."""
    if norm not in NORMS:
        raise UsageError("PA301", unknown_name(str(norm), NORMS, "norm").message)
    try:
        low, high = (float(end) for end in slopes)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError("PA304", f"slopes are {slopes}. Give the smallest and the largest slope, such as (0, 1).")
    weights = list(read_network(matrices).weights)
    if norm == "l1":
        weights = [weight.T.contiguous() for weight in reversed(weights)]
    ends = [(-1.0, 1.0)] + [(float(low), float(high))] * (len(weights) - 1)
    found: tuple[float, int] | None = None
    for layer in range(len(weights)):
        work = _work(*_sides(weights, ends, layer), weights[layer].shape[1])
        if found is None or work < found[0]:
            found = (work, layer)
    layer = 0 if found is None else found[1]
    return (*_sides(weights, ends, layer), ends[layer])


def _sides(weights: Sequence[Tensor], ends: Sequence[tuple[float, float]], layer: int) -> tuple[_Side, _Side]:
    """Rows from the outputs down to the gates of `layer`, columns from the input up to them."""
    below = tuple((*ends[position], weights[position]) for position in range(layer))
    above = tuple((*ends[position], weights[position - 1].T) for position in range(len(weights) - 1, layer, -1))
    return _Side(weights[-1], above), _Side(torch.ones(1, weights[0].shape[1], dtype=torch.float64), below)


def _width(side: _Side) -> int:
    """Neurons of the closed layer."""
    return side.steps[-1][2].shape[0] if side.steps else side.starts.shape[1]


def _work(left: _Side, right: _Side, width: int) -> float:
    """Multiplications of the final product and of bringing every vector there."""
    total = 2.0 * width * left.count * right.count
    for side in (left, right):
        last = side.steps[-1][2].shape[1] if side.steps else 0
        total += side.count * width * (last + _HANDLING)
    return total


def _vectors(side: _Side, rows: int) -> Iterator[Tensor]:
    """All vectors of a side, at most `rows` at a time."""
    for starts in side.starts.split(rows):
        yield from _expanded(starts, side.steps, rows)


def _expanded(vectors: Tensor, steps: tuple[tuple[float, float, Tensor], ...], rows: int) -> Iterator[Tensor]:
    """Every choice of the remaining gates, depth first, so that memory does not grow with their number."""
    if not steps:
        yield vectors
        return
    low, high, matrix = steps[0]
    width = matrix.shape[1]
    total = 2**width if low < high else 1
    block = max(1, rows // len(vectors))
    places = torch.arange(width)
    for first in range(0, total, block):
        chosen = (torch.arange(first, min(first + block, total))[:, None] >> places) & 1
        gates = low + (high - low) * chosen.to(torch.float64)
        moved = (vectors[:, None, :] * gates).reshape(-1, width) @ matrix.T
        yield from _expanded(moved, steps[1:], rows)
