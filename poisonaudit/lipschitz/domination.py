"""Matrices that provably dominate: the steps of the ellipsoid recursion with their rounding accounted for.

A step takes a float64 matrix that dominates (in the order of positive semidefinite matrices, for every choice of
slopes) what the exact step would be given, and returns a float64 matrix that dominates its exact result. Nothing about
the factorisations used inside is trusted: a factor may be anything, what it leaves over is measured with matrix
products alone. u = 2^-53, `gamma_m = m u / (1 - m u)`, ' transposes.

Two facts carry everything. (1) A positive semidefinite P has |P_ij| <= p_i p_j with p = sqrt(diag P). (2) A symmetric
E is dominated by diag(e) with `e_i = sum_j |E_ij| t_i / t_j` for any t > 0, since |2 x_i x_j| <= x_i^2 t_i / t_j +
x_j^2 t_j / t_i; in particular |E_ij| <= k t_i t_j is dominated by k n diag(t^2).

**Through a linear map**, M = W P W'. Two matrix products are off by at most gamma_(2 n) |W| |P| |W|' <= gamma_(2 n)
g g' with g = |W| p, entrywise; entries of W that were rounded r times add gamma_(2 r), taking the symmetric part adds
u. So the float64 result plus k n diag(g^2), k = gamma_(2 n + 2 r + 8), dominates M.

**Through slopes**, D = C + rho Z with |Z| <= I. Take any y and z = Z y, so that z_i^2 <= y_i^2, and any diagonal S >=
0. If the block matrix

    [[P' - S - C M C, -C M rho], [-rho M C, S - rho M rho]]

is positive semidefinite, its value at (y, z) says `y' P' y >= y' D M D y + sum_i S_i (y_i^2 - z_i^2) >= y' D M D y`.
(z runs over the neurons of positive radius only; P' here is the result, not a transpose.) Let L and H be any matrices;
think of L L' = S - rho M rho and L H = rho M C. With B = [-H, L'], B' B is positive semidefinite, so it is enough that
the block matrix minus B' B is; its blocks are

    P' - S - C M C - H' H,   -E12' and -E12 with E12 = rho M C - L H,   E22 = S - rho M rho - L L'.

E22 and E12 are computed with matrix products, within 3 gamma_(n + 8) t t' and 2 gamma_(n + 8) t v', where t bounds
sqrt(S), sqrt(diag(rho M rho)) and the row norms of L, and v bounds sqrt(diag(C M C)) and the column norms of H. By (2)
a diagonal epsilon added to S makes up for E22 and for one share of E12, a diagonal delta in P' for its other share:
with k = gamma_(n + 8),

    P' = C M C + H' H + (S + epsilon) + delta + 2 k n diag(v^2),

the last term for the rounding of the first two.

**The largest eigenvalue**: if tau I - M = L L' + E, then tau + max_i sum_j |E_ij| is at least lambda_max(M).

Underflow. Weights have an l_inf norm of at most 1 and P is kept near 1, so what products lose to underflow adds at
most n^3 2^-1022 to an entry, and at most 1e-180 once weighted with t and v, which are kept above 1e-100; 1e-120 is
added to every diagonal. The bounds themselves are sums of non-negative numbers, raised by 1e-6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poisonaudit.lipschitz.unit import UNIT, gamma

_RAISE = 1.0 + 1e-6
# A few additions of numbers that carry their own room already.
_RAISE_SUM = 1.0 + 1e-14
TINY = 1e-120
_LEAST = 1e-100


def raised(values: Tensor, count: int = 4) -> Tensor:
    """At least the exact result of `count` roundings of non-negative numbers that gave `values`."""
    return values * (1.0 + 2.0 * gamma(count))


def through_weight(gram: Tensor, weight: Tensor, roundings: int) -> Tensor:
    """Dominates `weight P weight^T` for every P that `gram` dominates.

    Args:
        gram: (b, n, n) symmetric positive semidefinite.
        weight: (m, n) float64; its exact entries are within `roundings` roundings.
        roundings: how many.

    Returns:
        (b, m, m), symmetric.
    """
    reach = gram.diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt() @ weight.abs().T
    return _with_error(weight @ gram @ weight.T, reach, 2 * weight.shape[1] + 2 * roundings + 8)


def first_gram(weight: Tensor, inverse: Tensor, roundings: int) -> Tensor:
    """Dominates `weight diag(1 / d) weight^T`, with `inverse` (b, n) at least 1 / d."""
    rows = weight * inverse[:, None, :]
    reach = (rows * weight).sum(2).sqrt()
    return _with_error(rows @ weight.T, reach, weight.shape[1] + 2 * roundings + 8)


def _with_error(gram: Tensor, reach: Tensor, count: int) -> Tensor:
    """The symmetric part, plus a diagonal that dominates errors of gamma_count reach reach^T."""
    error = gamma(count) * gram.shape[1] * reach.square() * _RAISE + TINY
    return _plus_diagonal(0.5 * (gram + gram.mT), error)


def _plus_diagonal(matrix: Tensor, amount: Tensor) -> Tensor:
    """At least `matrix + diag(amount)` on the diagonal, exactly `matrix` beside it; the sums are not negative."""
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    return matrix - torch.diag_embed(diagonal) + torch.diag_embed(raised(diagonal + amount))


def through_slopes(
    gram: Tensor, spread: Tensor, factor: Tensor, half: Tensor, centre: Tensor, radius: Tensor
) -> Tensor:
    """P' of the module docstring for M = `gram`.

    Args:
        gram: (b, n, n), M.
        spread: (b, n), S; zero where `radius` is.
        factor: (b, n, n), L.
        half: (b, n, n), H.
        centre: (n,), C.
        radius: (n,), rho.

    Returns:
        (b, n, n), symmetric; infinite or NaN where an input is.
    """
    size = gram.shape[1]
    moving = (radius > 0.0).to(gram.dtype)
    factor, half = factor * moving[:, None] * moving, half * moving[:, None]
    peaks = gram.diagonal(dim1=1, dim2=2).clamp_min(0.0)
    by_radius = radius[:, None] * gram
    # t and v
    left = (
        torch.stack([spread, radius.square() * peaks, factor.square().sum(2)]).amax(0).sqrt().clamp_min(_LEAST) * _RAISE
    )
    right = torch.stack([centre.square() * peaks, half.square().sum(1), left.square()]).amax(0).sqrt() * _RAISE
    rest = (torch.diag_embed(spread) - by_radius * radius - factor @ factor.mT).abs()
    cross = (by_radius * centre - factor @ half).abs()
    share = gamma(size + 8) * size
    epsilon = (
        left * (rest @ left.reciprocal()[..., None] + cross @ right.reciprocal()[..., None])[..., 0]
        + 5.0 * share * left.square()
    )
    delta = right * (cross.mT @ left.reciprocal()[..., None])[..., 0] + 4.0 * share * right.square()
    epsilon = (epsilon * _RAISE + TINY) * moving
    result = centre[:, None] * gram * centre + half.mT @ half
    added = (raised(spread * moving) + epsilon + delta * _RAISE + TINY) * _RAISE_SUM
    return _plus_diagonal(0.5 * (result + result.mT), added)


def largest_eigenvalue_above(gram: Tensor) -> float:
    """A number at least lambda_max of a symmetric positive semidefinite (n, n) matrix, infinite where none is found."""
    if not bool(torch.isfinite(gram).all()):
        return math.inf
    size = gram.shape[0]
    try:
        guess = float(torch.linalg.eigvalsh(gram)[-1])
    except RuntimeError:  # torch.linalg.LinAlgError is one
        return math.inf
    top = max(guess, TINY) * (1.0 + 1e-9)
    shifted = top * torch.eye(size, dtype=gram.dtype) - gram
    factor, info = torch.linalg.cholesky_ex(shifted)
    if int(info) != 0:
        return math.inf
    # Every entry of top I - M and of L L^T is at most about top: within 3 gamma_(n + 8) top of the exact difference.
    left = float(torch.maximum(factor.square().sum(1).max(), gram.diagonal().abs().max()))
    rest = (shifted - factor @ factor.T).abs().sum(1).max()
    error = float(rest) + 3.0 * gamma(size + 8) * size * max(top, left) * _RAISE
    return (top + error * _RAISE + TINY) * (1.0 + 4.0 * UNIT)


def spectral_norm_above(matrix: Tensor, roundings: int = 0) -> float:
    """A number at least the spectral norm, for a matrix rounded that often; infinite where none is found."""
    peak = float(matrix.abs().max())
    if peak == 0.0:
        return 0.0
    if not math.isfinite(peak):
        return math.inf
    power = math.frexp(peak)[1]
    near_one = matrix * math.ldexp(1.0, -(power // 2)) * math.ldexp(1.0, power // 2 - power)
    if near_one.shape[0] > near_one.shape[1]:
        near_one = near_one.T
    gram = first_gram(near_one, torch.ones(1, near_one.shape[1], dtype=matrix.dtype), roundings)[0]
    root = math.sqrt(largest_eigenvalue_above(gram)) * (1.0 + 4.0 * UNIT)
    return math.ldexp(root, power) if root < 1e290 else math.inf
