"""The ellipsoid route: an l_2 recursion in closed form, turned into an l_inf bound row by row.

For any weights d > 0 on the inputs, Cauchy-Schwarz gives `|J_k|_1 <= sqrt(sum d) |J_k diag(d)^(-1/2)|_2` for
row k of the Jacobian; in l_2 there are no weights. The l_2 norm is bounded by carrying a matrix P with `A A^T
<= P` for the partial Jacobian A at every choice of slopes. Through a linear map `M = W P W^T`; through slopes
D = C + rho Z, |Z| <= 1, the S-procedure with any diagonal `T^-1 > K = rho M rho` gives

    P' = C [M + M rho (T^-1 - K)^-1 rho M] C + T^-1.

Neurons of radius zero take no part in T. Two choices of `T^-1` are carried, and a third that takes the better
trace at every layer: `2 lambda_max(K) I`, and twice the absolute row sums of K weighted with q = sqrt(diag K)
(it dominates K by Gershgorin). Each is an upper bound of its own; a row takes the smallest. That is plain
float64. Any T^-1 will do for a proof: every row runs the recursion once more with those that won, every step
replaced by one that dominates it (domination.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.lipschitz import domination
from poisonaudit.lipschitz.network import Chain
from poisonaudit.lipschitz.unit import gamma
from poisonaudit.lipschitz.upper import norm_l2

# Multiplications, about 1e9 a second on one core. Input weights of their own for every output row cost one
# recursion per row; beyond the first number all rows share one, beyond the second the bound is not computed.
ROWWISE_WORK = 5e9
LARGEST_WORK = 1e11
_BLOCK_ENTRIES = 2**24
_FLOOR = 1e-12
# Keeps T^-1 positive where K all but vanishes; far below every other entry.
_LEAST_SPREAD = 1e-110

Multiplier = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Recursion:
    """One way through the hidden layers.

    Attributes:
        gram: (b, n_l, n_l), P before the last weight is this times 4^power.
        power: (b,), whole numbers.
        spreads: per hidden layer (b, n), the diagonal of T^-1 divided by 4^power of that layer.
        powers: per hidden layer (b,).
    """

    gram: Tensor
    power: Tensor
    spreads: tuple[Tensor, ...]
    powers: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """Output rows that are bounded together.

    Attributes:
        weights: (b, n_0), d of every row, or (1, n_0) for all of them.
        last: (rows, n_l) of the last weight.
        recursions: one per choice of T.
        bounds: (choices, b), what each gave.
    """

    weights: Tensor
    last: Tensor
    recursions: tuple[Recursion, ...]
    bounds: Tensor


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """The bound, and what a proof of it starts from.

    Attributes:
        value: in plain float64, scaled like the chain; infinite if a factorisation failed.
        blocks: of output rows; none where there is no hidden layer.
    """

    value: float
    blocks: tuple[Block, ...]


def ellipsoid_of(chain: Chain, entrywise: Tensor) -> Ellipsoid | None:
    """The ellipsoid bound in plain float64.

    Args:
        chain: the network.
        entrywise: (n_(l+1), n_0) bound of every entry of the Jacobian; in l_inf its rows are the weights d.

    Returns:
        The bound; None if it would take minutes.
    """
    work = recursion_work(chain)
    if work > LARGEST_WORK:
        return None
    last = chain.weights[-1]
    if chain.hidden == 0:
        # K_5 is the constant itself here.
        return Ellipsoid(norm_l2(last) if chain.norm == "l2" else float(entrywise.sum(1).max()), ())
    sums = entrywise.sum(1)
    if chain.norm == "l2":
        blocks = [_block(chain, torch.ones(1, chain.weights[0].shape[1], dtype=torch.float64), last)]
    elif len(last) * work > ROWWISE_WORK:
        blocks = [_block(chain, _floored(entrywise.mean(0, keepdim=True)), last)]
    else:
        size = max(1, int(_BLOCK_ENTRIES / max(weight.shape[0] ** 2 for weight in chain.weights)))
        parts = torch.tensor_split(torch.arange(len(last)), math.ceil(len(last) / size))
        blocks = [_block(chain, _floored(entrywise[rows]), last[rows]) for rows in parts]
    values = torch.cat([block.bounds.amin(0) for block in blocks])
    # An output that nothing reaches. A proof does not rely on it: zero may be an underflow.
    zero = sums == 0.0 if len(values) == len(sums) else (sums == 0.0).all()
    return Ellipsoid(float(torch.where(zero, 0.0, values).max()), tuple(blocks))


def proved_bound(chain: Chain, found: Ellipsoid) -> float:
    """The same bound with all rounding accounted for, scaled like the chain.

    Args:
        chain: the network.
        found: its `ellipsoid_of`.

    Returns:
        The bound; infinite if a factorisation failed.
    """
    if chain.hidden == 0:
        return domination.spectral_norm_above(chain.weights[0], chain.roundings[0]) if chain.norm == "l2" else math.inf
    return max(_proved(chain, block) for block in found.blocks)


def recursion_work(chain: Chain) -> float:
    """Multiplications of one way through the hidden layers for one output row, about."""
    return sum(3.0 * weight.shape[0] ** 3 for weight in chain.weights[:-1])


def _floored(weights: Tensor) -> Tensor:
    """Input weights d near 1 with zero entries raised, so that dividing by them is safe; any d > 0 is allowed."""
    peak = weights.amax(1, keepdim=True)
    peak = torch.where(peak > 0.0, peak, torch.ones_like(peak))
    return torch.maximum(weights / peak, torch.full_like(weights, _FLOOR))


def _block(chain: Chain, weights: Tensor, last: Tensor) -> Block:
    recursions = _recursions(chain, weights)
    bounds = torch.stack([_bounds(chain, weights, last, each, sound=False) for each in recursions])
    return Block(weights, last, tuple(recursions), bounds)


def _proved(chain: Chain, block: Block) -> float:
    """Largest proved bound of a block: every row runs with the T that won it, with the next where that fails."""
    order = block.bounds.argsort(dim=0, stable=True)
    best = torch.full_like(block.bounds[0], math.inf)
    for rank in order:
        recursion = _dominating(chain, block.weights, chosen(block.recursions, rank))
        best = torch.minimum(best, _bounds(chain, block.weights, block.last, recursion, sound=True))
        if bool(torch.isfinite(best).all()):
            break
    return float(best.max())


def chosen(recursions: tuple[Recursion, ...], rank: Tensor) -> Recursion:
    """Of every row of a block the recursion named by `rank` (b,)."""
    rows = torch.arange(len(rank))
    layers = range(len(recursions[0].spreads))
    return Recursion(
        torch.stack([each.gram for each in recursions])[rank, rows],
        torch.stack([each.power for each in recursions])[rank, rows],
        tuple(torch.stack([each.spreads[layer] for each in recursions])[rank, rows] for layer in layers),
        tuple(torch.stack([each.powers[layer] for each in recursions])[rank, rows] for layer in layers),
    )


def _bounds(chain: Chain, weights: Tensor, last: Tensor, found: Recursion, sound: bool) -> Tensor:
    """Bounds from P, (b,): of every row, of the worst row where all share their weights, in l_2 of the norm."""
    gram = found.gram
    if chain.norm == "l2":
        if sound:
            outer = domination.through_weight(gram, last, chain.roundings[-1])[0]
            square = domination.largest_eigenvalue_above(outer)
        else:
            outer = (last @ gram @ last.T)[0]
            square = norm_l2(0.5 * (outer + outer.T))
        squares, scale = torch.tensor([square], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    else:
        scale = weights.sum(1)
        squares = torch.einsum("bi,bij,bj->b", last, gram.expand(len(last), -1, -1), last)
        if sound:
            scale = domination.raised(scale, weights.shape[1])
            reach = (gram.diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt() * last.abs()).sum(1)
            count = 2 * last.shape[1] + 2 * chain.roundings[-1] + 8
            squares = squares + 2.0 * gamma(count) * reach.square() + domination.TINY
        if len(weights) < len(squares):
            # A NaN stays one.
            squares = squares.amax(0, keepdim=True)
    bounds = _root(scale * squares, sound) * _powers_of_two(found.power)
    return bounds.nan_to_num(nan=math.inf, posinf=math.inf)


def _root(square: Tensor, sound: bool) -> Tensor:
    root = square.clamp_min(0.0).sqrt()
    return domination.raised(root) if sound else root


def _recursions(chain: Chain, weights: Tensor) -> list[Recursion]:
    """One per choice of T, in plain float64."""
    first = chain.weights[0]
    start, power = _normalised(
        (first * weights.reciprocal()[:, None, :]) @ first.T, torch.zeros(len(weights), dtype=torch.float64)
    )
    both: tuple[Multiplier, ...] = (_largest_eigenvalue, _row_sums)
    # The first layer is the same for all.
    options = [through_slopes(start, chain.centres[0], chain.radii[0], (one,)) for one in both]
    found = []
    for number in range(3):
        multipliers = both if number == 2 else both[number : number + 1]
        gram, spread = _smaller(options) if number == 2 else options[number]
        spreads, powers = [spread], [power]
        gram, reached = _normalised(gram, power)
        for layer in range(1, chain.hidden):
            gram = chain.weights[layer] @ gram @ chain.weights[layer].T
            gram, spread = through_slopes(gram, chain.centres[layer], chain.radii[layer], multipliers)
            spreads.append(spread)
            powers.append(reached)
            gram, reached = _normalised(gram, reached)
        found.append(Recursion(gram, reached, tuple(spreads), tuple(powers)))
    return found


def _dominating(chain: Chain, weights: Tensor, plain: Recursion) -> Recursion:
    """A recursion with the same T whose P dominates the exact one."""
    inverse = domination.raised(weights.reciprocal())
    gram = domination.first_gram(chain.weights[0], inverse, chain.roundings[0])
    gram, power = _normalised(gram, torch.zeros(len(gram), dtype=torch.float64))
    spreads, powers = [], []
    for layer in range(chain.hidden):
        if layer:
            gram = domination.through_weight(gram, chain.weights[layer], chain.roundings[layer])
        centre, radius = chain.centres[layer], chain.radii[layer]
        shift = _powers_of_two(2.0 * (plain.powers[layer] - power))
        spread = (plain.spreads[layer] * shift[:, None]).clamp_min(_LEAST_SPREAD) * (radius > 0.0)
        factor, half, failed = _factors(gram, spread, centre, radius)
        result = domination.through_slopes(gram, spread, factor, half, centre, radius)
        spreads.append(spread)
        powers.append(power)
        gram, power = _normalised(torch.where(failed, torch.full_like(result, math.inf), result), power)
    return Recursion(gram, power, tuple(spreads), tuple(powers))


def _normalised(gram: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each matrix by a power of four, kept in `power` as a power of two, against underflow in deep nets."""
    peak = gram.diagonal(dim1=1, dim2=2).amax(1)
    usable = torch.isfinite(peak) & (peak > 0.0)
    shift = torch.where(usable, (0.5 * torch.log2(torch.where(usable, peak, torch.ones_like(peak)))).floor(), 0.0)
    return gram * _powers_of_two(-2.0 * shift)[:, None, None], power + shift


def _powers_of_two(power: Tensor) -> Tensor:
    """2^power, exactly, for whole numbers; at least 2^-1000 (torch.exp2 may be off by a rounding)."""
    return torch.tensor([math.ldexp(1.0, max(-1000, min(1023, int(p)))) for p in power.tolist()], dtype=torch.float64)


def through_slopes(
    gram: Tensor, centre: Tensor, radius: Tensor, multipliers: tuple[Multiplier, ...]
) -> tuple[Tensor, Tensor]:
    """P' of the module docstring for M = `gram` (b, n, n), and the T^-1 used; the smaller trace wins."""
    gram = 0.5 * (gram + gram.mT)
    moving = radius > 0.0
    still = centre[:, None] * gram * centre
    if not bool(moving.any()):
        return still, torch.zeros(gram.shape[:2], dtype=gram.dtype)
    k = radius[:, None] * gram * radius
    options = []
    for multiplier in multipliers:
        spread = multiplier(k, moving)
        _, half, failed = _factors(gram, spread, centre, radius)
        result = still + half.mT @ half
        result.diagonal(dim1=1, dim2=2).add_(spread)
        options.append((torch.where(failed, torch.full_like(result, math.inf), result), spread))
    return _smaller(options)


def _factors(gram: Tensor, spread: Tensor, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L and H with `L L^T = T^-1 - K` and `L H = rho M C`, and where there is no L, (b, 1, 1)."""
    by_radius = radius[:, None] * gram
    # A dead neuron has a zero row in K and needs no multiplier; any number keeps the factor defined.
    filled = torch.where(spread > 0.0, spread, torch.ones_like(spread))
    shifted = -(by_radius * radius)
    shifted.diagonal(dim1=1, dim2=2).add_(filled)
    factor, info = torch.linalg.cholesky_ex(shifted)
    half = torch.linalg.solve_triangular(factor, by_radius * centre, upper=False)
    return factor, half, (info != 0)[:, None, None]


def _smaller(options: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Of one or two pairs (P', T^-1) the one with the smaller trace, row by row."""
    if len(options) == 1:
        return options[0]
    traces: Tensor = torch.stack([gram.diagonal(dim1=1, dim2=2).sum(1) for gram, _ in options])
    first = traces.argmin(0) == 0
    (gram, spread), (other_gram, other_spread) = options
    return torch.where(first[:, None, None], gram, other_gram), torch.where(first[:, None], spread, other_spread)


def _largest_eigenvalue(k: Tensor, moving: Tensor) -> Tensor:
    """2 lambda_max(K) on every neuron of positive radius."""
    if not bool(torch.isfinite(k).all()):
        return torch.full(k.shape[:2], math.inf, dtype=k.dtype)
    largest: Tensor = torch.linalg.eigvalsh(k)[:, -1:].clamp_min(0.0)
    return 2.0 * largest * moving


def _row_sums(k: Tensor, moving: Tensor) -> Tensor:
    """2 (|K| q)_i / q_i with q = sqrt(diag K), floored so that dead neurons divide safely."""
    q = k.diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt()
    q = torch.maximum(q, _FLOOR * q.amax(1, keepdim=True)).clamp_min(torch.finfo(q.dtype).tiny)
    return 2.0 * (k.abs() @ q[..., None])[..., 0] / q * moving
