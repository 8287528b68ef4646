"""K itself by enumeration: the largest norm of `W_l D_l ... D_1 W_0` over all slopes.

The norm is convex in each D_r while the others stand still, so the maximum lies where every neuron has its least or
its largest slope: 2^n products for n neurons whose slopes vary.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from poisonaudit.lipschitz.network import Chain
from poisonaudit.lipschitz.upper import norm_in

NEURONS = 16
LARGEST_WORK = 4e9
_BLOCK_ENTRIES = 2**22
# A symmetric eigenvalue problem of size n, in multiplications per n^3.
_EIGENVALUE_WORK = 30.0


def enumerated_constant(chain: Chain) -> float | None:
    """K of the chain, scaled like it, in plain float64.

    Args:
        chain: the network.

    Returns:
        The constant; None beyond 16 neurons of varying slope or some seconds of work.
    """
    if chain.hidden == 0:
        return norm_in(chain, chain.weights[0])
    varying = sum(int((lower < upper).sum()) for lower, upper in zip(chain.lower, chain.upper, strict=True))
    outputs, inputs = chain.weights[-1].shape[0], chain.weights[0].shape[1]
    work = outputs * inputs if chain.norm == "linf" else outputs * inputs * min(outputs, inputs)
    if chain.norm == "l2":
        work += int(_EIGENVALUE_WORK * min(outputs, inputs) ** 3)
    if varying > NEURONS or 2**varying * max(work, max(weight.numel() for weight in chain.weights)) > LARGEST_WORK:
        return None
    if chain.norm == "l2":
        return _largest(chain, chain.weights[-1])
    # Output rows are independent: as many at once as fit.
    widest = max(weight.shape[1] for weight in chain.weights)
    rows = max(1, _BLOCK_ENTRIES // (2**varying * widest))
    return max(_largest(chain, block) for block in chain.weights[-1].split(rows))


def _largest(chain: Chain, last: Tensor) -> float:
    """The largest norm over all slopes with `last`, some rows of W_l, in its place."""
    left = last[None]  # (choices so far, rows, n_r)
    for position in range(chain.hidden - 1, 0, -1):
        ends = _ends(chain.lower[position], chain.upper[position])
        left = (ends[:, None, None, :] * left[None]).flatten(0, 1) @ chain.weights[position]
    first, lower, upper = chain.weights[0], chain.lower[0], chain.upper[0]
    if chain.norm == "l2":
        return largest_spectral(left, first, lower, upper)
    return largest_linf(left.flatten(0, 1), first, lower, upper)


def largest_linf(right: Tensor, left: Tensor, lower: Tensor, upper: Tensor) -> float:
    """`max N(right D left)` over all diagonal D between `lower` and `upper`, in l_inf.

    Args:
        right: (m, n) matrix on D's left-hand side in the product.
        left: (n, k) matrix on the other side; n up to about 20.
        lower: (n,).
        upper: (n,).

    Returns:
        The largest absolute row sum.
    """
    if right.numel() == 0 or left.numel() == 0:
        return 0.0
    half = left.shape[0] // 2
    first, second = _ends(lower[:half], upper[:half]), _ends(lower[half:], upper[half:])
    block = max(1, _BLOCK_ENTRIES // max(len(first) * len(second), (len(first) + len(second)) * left.shape[1]))
    best = 0.0
    for rows in right.split(block):
        # Row sums of the two halves of the choices, combined: |a + b|_1 is the l_1 distance between a and -b.
        one = first @ (rows[:, :half, None] * left[None, :half, :])
        other = second @ (rows[:, half:, None] * left[None, half:, :])
        best = max(best, float(torch.cdist(one, -other, p=1.0).max()))
    return best


def largest_spectral(rights: Tensor, left: Tensor, lower: Tensor, upper: Tensor) -> float:
    """`max |right D left|_2` over a stack of matrices `right` and all diagonal D between `lower` and `upper`.

    Args:
        rights: (b, m, n).
        left: (n, k).
        lower: (n,).
        upper: (n,).

    Returns:
        The largest spectral norm.
    """
    if rights.numel() == 0 or left.numel() == 0:
        return 0.0
    block = max(1, _BLOCK_ENTRIES // max(left.numel(), rights[0].numel(), rights.shape[1] * left.shape[1]))
    best = 0.0
    for ends in _ends(lower, upper).split(block):
        for part in rights.split(max(1, block // len(ends))):
            products = (ends[:, None, None, :] * part[None]).flatten(0, 1) @ left
            wide = products.shape[1] <= products.shape[2]
            gram = products @ products.mT if wide else products.mT @ products
            best = max(best, float(torch.linalg.eigvalsh(gram)[:, -1].max()))
    return math.sqrt(max(0.0, best))


def _ends(lower: Tensor, upper: Tensor) -> Tensor:
    """All choices of the ends of the intervals, (2^varying, n); (1, 0) for no neurons."""
    options = [(low, high) if low < high else (low,) for low, high in zip(lower.tolist(), upper.tolist(), strict=True)]
    rows = list(itertools.product(*options))
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(options))
