"""The ellipsoid route: an l_2 recursion in closed form, turned into an l_inf bound row by row.

For any weights d > 0 on the inputs, Cauchy-Schwarz gives `|J_k|_1 <= sqrt(sum d) |J_k diag(d)^(-1/2)|_2` for
row k of the Jacobian; in l_2 there are no weights. The l_2 norm is bounded by carrying a matrix P with `A A^T
<= P` for the partial Jacobian A at every choice of slopes. Through a linear map `M = W P W^T`; through slopes
D = C + rho Z, |Z| <= 1, the S-procedure with any diagonal `T^-1 > K = rho M rho` gives

    P' = C [M + M rho (T^-1 - K)^-1 rho M] C + T^-1.

Neurons of radius zero take no part in T. Two choices of `T^-1` are carried, and a third that takes the better
trace at every layer: `2 lambda_max(K) I`, and twice the absolute row sums of K weighted with q = sqrt(diag K)
(it dominates K by Gershgorin). Each is an upper bound of its own; a row takes the smallest. Plain float64,
or with `sound=True` the same recursion with every step replaced by one that dominates it (domination.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from poisonaudit.lipschitz import domination
from poisonaudit.lipschitz.network import Chain
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


def ellipsoid_bound(chain: Chain, entrywise: Tensor, *, sound: bool = False) -> float | None:
    """The ellipsoid bound, scaled like the chain.

    Args:
        chain: the network.
        entrywise: (n_(l+1), n_0) bound of every entry of the Jacobian; in l_inf its rows are the weights d.
        sound: account for all rounding.

    Returns:
        The bound; infinite if a factorisation failed, None if it would take minutes.
    """
    sums = entrywise.sum(1)
    if float(sums.max()) == 0.0 and not sound:
        return 0.0
    work = sum(3.0 * weight.shape[0] ** 3 for weight in chain.weights[:-1])
    if work > LARGEST_WORK:
        return None
    if chain.norm == "l2":
        if chain.hidden == 0:
            weight = chain.weights[0]
            return domination.spectral_norm_above(weight, chain.roundings[0]) if sound else norm_l2(weight)
        ones = torch.ones(1, chain.weights[0].shape[1], dtype=torch.float64)
        return _spectral_bound(chain, ones, sound)
    # A row that computes to zero may have underflowed: sound bounds leave none out.
    alive = torch.arange(len(sums)) if sound else torch.nonzero(sums > 0.0)[:, 0]
    if len(alive) * work > ROWWISE_WORK:
        weights = entrywise[alive].mean(0, keepdim=True)
        return _rows_bound(chain, _floored(weights), chain.weights[-1][alive], sound)
    block = max(1, int(_BLOCK_ENTRIES / max(weight.shape[0] ** 2 for weight in chain.weights)))
    best = 0.0
    for rows in torch.tensor_split(alive, math.ceil(len(alive) / block)):
        best = max(best, _rows_bound(chain, _floored(entrywise[rows]), chain.weights[-1][rows], sound))
    return best


def _floored(weights: Tensor) -> Tensor:
    """Input weights d near 1 with zero entries raised, so that dividing by them is safe; any d > 0 is allowed."""
    peak = weights.amax(1, keepdim=True)
    peak = torch.where(peak > 0.0, peak, torch.ones_like(peak))
    return torch.maximum(weights / peak, torch.full_like(weights, _FLOOR))


def _rows_bound(chain: Chain, weights: Tensor, last: Tensor, sound: bool) -> float:
    """Largest bound over the rows of `last` (b, n_l); `weights` is (b, n_0), or (1, n_0) for all rows."""
    scale = weights.sum(1)
    if sound:
        scale = domination.raised(scale, weights.shape[1])
    if chain.hidden == 0:  # K_5 is the constant itself here
        return math.inf if sound else float((scale * (last.square() / weights).sum(1)).sqrt().max())
    candidates = []
    for gram, power in _recursions(chain, weights, sound):
        squares = torch.einsum("bi,bij,bj->b", last, gram.expand(len(last), -1, -1), last)
        if sound:
            reach = (gram.diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt() * last.abs()).sum(1)
            count = 2 * last.shape[1] + 2 * chain.roundings[-1] + 8
            squares = squares + 2.0 * domination.gamma(count) * reach.square() + domination.TINY
        candidates.append(_root(scale * squares, sound) * _powers_of_two(power))
    bounds = torch.stack(candidates).nan_to_num(nan=math.inf, posinf=math.inf)
    return float(bounds.amin(0).max())


def _spectral_bound(chain: Chain, ones: Tensor, sound: bool) -> float:
    """The bound in l_2: sqrt(lambda_max(W_l P W_l^T))."""
    best = math.inf
    for gram, power in _recursions(chain, ones, sound):
        if sound:
            outer = domination.through_weight(gram, chain.weights[-1], chain.roundings[-1])[0]
            square = domination.largest_eigenvalue_above(outer)
        else:
            outer = (chain.weights[-1] @ gram @ chain.weights[-1].T)[0]
            square = norm_l2(0.5 * (outer + outer.T))
        root = _root(torch.tensor(square, dtype=torch.float64), sound)
        value = float(root * _powers_of_two(power)[0])
        best = min(best, math.inf if math.isnan(value) else value)
    return best


def _root(square: Tensor, sound: bool) -> Tensor:
    root = square.clamp_min(0.0).sqrt()
    return domination.raised(root) if sound else root


def _inverse(weights: Tensor, sound: bool) -> Tensor:
    inverse = weights.reciprocal()
    return domination.raised(inverse) if sound else inverse


def _recursions(chain: Chain, weights: Tensor, sound: bool) -> list[tuple[Tensor, Tensor]]:
    """P before the last weight, for every choice of T, as `(P, power)`: (b, n_l, n_l) times 4^power (b,)."""
    first, inverse = chain.weights[0], _inverse(weights, sound)
    if sound:
        start = domination.first_gram(first, inverse, chain.roundings[0])
    else:
        start = (first * inverse[:, None, :]) @ first.T
    found = []
    for multipliers in ((_largest_eigenvalue,), (_row_sums,), (_largest_eigenvalue, _row_sums)):
        gram, power = _normalised(start, torch.zeros(len(start), dtype=torch.float64))
        for layer in range(chain.hidden):
            if layer:
                weight = chain.weights[layer]
                if sound:
                    gram = domination.through_weight(gram, weight, chain.roundings[layer])
                else:
                    gram = weight @ gram @ weight.T
            gram = _through_slopes(gram, chain.centres[layer], chain.radii[layer], multipliers, sound)
            gram, power = _normalised(gram, power)
        found.append((gram, power))
    return found


def _normalised(gram: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each matrix by a power of four, kept in `power` as a power of two, against underflow in deep nets."""
    peak = gram.diagonal(dim1=1, dim2=2).amax(1)
    usable = torch.isfinite(peak) & (peak > 0.0)
    shift = torch.where(usable, (0.5 * torch.log2(torch.where(usable, peak, torch.ones_like(peak)))).floor(), 0.0)
    return gram * _powers_of_two(-2.0 * shift)[:, None, None], power + shift


def _powers_of_two(power: Tensor) -> Tensor:
    """2^power, exactly, for whole numbers; at least 2^-1000 (torch.exp2 may be off by a rounding)."""
    return torch.tensor([math.ldexp(1.0, max(-1000, min(1023, int(p)))) for p in power.tolist()], dtype=torch.float64)


def _through_slopes(
    gram: Tensor, centre: Tensor, radius: Tensor, multipliers: tuple[Multiplier, ...], sound: bool
) -> Tensor:
    """P' of the module docstring for M = `gram` (b, n, n); of several multipliers the smaller trace wins."""
    gram = 0.5 * (gram + gram.mT)
    moving = radius > 0.0
    if not bool(moving.any()) and not sound:
        return centre[:, None] * gram * centre
    spread_out = radius[:, None] * gram
    k = spread_out * radius
    options = []
    for multiplier in multipliers:
        spread = multiplier(k, moving)  # diagonal of T^-1, (b, n)
        if sound:
            spread = spread.clamp_min(_LEAST_SPREAD) * moving
        # A dead neuron has a zero row in K and needs no multiplier; any number keeps the factor defined.
        filled = torch.where(spread > 0.0, spread, torch.ones_like(spread))
        factor, info = torch.linalg.cholesky_ex(torch.diag_embed(filled) - k)
        half = torch.linalg.solve_triangular(factor, spread_out * centre, upper=False)
        if sound:
            result = domination.through_slopes(gram, spread, factor, half, centre, radius)
        else:
            result = centre[:, None] * gram * centre + half.mT @ half + torch.diag_embed(spread)
        options.append(torch.where((info == 0)[:, None, None], result, torch.full_like(result, math.inf)))
    if len(options) == 1:
        return options[0]
    traces: Tensor = torch.stack([option.diagonal(dim1=1, dim2=2).sum(1) for option in options])
    first_is_best = (traces.argmin(0) == 0)[:, None, None]
    return torch.where(first_is_best, options[0], options[1])


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
