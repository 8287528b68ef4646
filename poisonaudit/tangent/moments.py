"""Moments of the number of active units, and Daroczy's theorem 3.2 as corrected."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from scipy.special import gammaln, hyp1f1

from poisonaudit.tangent.path_net import PathNet


def orders(depth: int) -> tuple[int, ...]:
    """The q for which theorem 3.2 holds with `T^(2q)`: k - 2 and k - 1; 0 alone for one matrix."""
    return (0,) if depth == 1 else (depth - 2, depth - 1)


def theorem32_factor(net: PathNet, order: int) -> Fraction:
    """What multiplies `E T^(2q)`: `d_out N_theta d_in M^2 q^(-2q)`, with `0^0 = 1`.

    Args:
        net: what `path_net` reads.
        order: q, one of `orders`.

    Returns:
        The factor, exactly; N_theta counts weights, for biases contribute 0.
    """
    share = Fraction(1, order ** (2 * order)) if order else Fraction(1)
    return net.outputs * net.weights * net.inputs * net.path_weight**2 * share


def theorem32(net: PathNet, moment: Callable[[int], Fraction]) -> tuple[Fraction, int]:
    """Corrected theorem 3.2: the smaller of its two bounds `d_out N_theta d_in M^2 q^(-2q) E T^(2q)`.

    A weight, an input and an output share at most `prod_j n_j(x)` paths over k - 2 or, since every active layer has a
    unit, over all k - 1 hidden layers, which is at most `(T(x) / q)^q` by the arithmetic and geometric means.

    Args:
        net: what `path_net` reads.
        moment: `E T^(2q)` by 2q.

    Returns:
        The bound and its q. With empirical moments it bounds the mean over the same rows.
    """
    found = {order: theorem32_factor(net, order) * moment(2 * order) for order in orders(net.depth)}
    best = min(found, key=lambda order: (found[order], order))
    return found[best], best


def log_theorem32_if_normal(entries: int, depth: int, log_path_weight: float, mean: float, deviation: float) -> float:
    """Corrected theorem 3.2 for a normal number of active units, as a natural logarithm.

    Args:
        entries: `d_out N_theta d_in`.
        depth: k.
        log_path_weight: natural logarithm of M.
        mean: mu.
        deviation: s.

    Returns:
        The logarithm of the smaller bound; minus infinity for 0.
    """
    head = math.log(entries) + 2.0 * log_path_weight
    return head + min(
        log_absolute_moment(2 * order, mean, deviation) - (2 * order * math.log(order) if order else 0.0)
        for order in orders(depth)
    )


def empirical_moment(totals: list[int], order: int) -> Fraction:
    """Mean of `T^order` over rows, exactly; `0^0 = 1`.

    Args:
        totals: active units of every row.
        order: of the moment.

    Returns:
        The mean.
    """
    counts: dict[int, int] = {}
    for total in totals:
        counts[total] = counts.get(total, 0) + 1
    return Fraction(sum(count * total**order for total, count in counts.items()), len(totals))


def log_absolute_moment(order: float, mean: float, deviation: float) -> float:
    """Natural logarithm of `E |T|^order` for T normal.

    `E |T|^v = (2 s^2)^(v/2) Gamma((v+1)/2) / sqrt(pi) 1F1(-v/2; 1/2; -mu^2 / (2 s^2))` (Winkelbauer, 2012). For mu 3
    and s 2, `E T^4` is 345.

    Args:
        order: v, at least 0.
        mean: mu.
        deviation: s, at least 0; 0 gives `|mu|^v`.

    Returns:
        The logarithm, minus infinity for a moment of 0.
    """
    if order == 0:
        return 0.0
    if deviation == 0.0:
        return order * math.log(abs(mean)) if mean else -math.inf
    head = order * math.log(deviation) + log_gamma_part(order)
    return head + log_kummer(order, mean, deviation)


def log_gamma_part(order: float) -> float:
    """Natural logarithm of `2^(v/2) Gamma((v+1)/2) / sqrt(pi)`, the moment of a standard normal variable."""
    return 0.5 * order * math.log(2.0) + float(gammaln(0.5 * (order + 1.0))) - 0.5 * math.log(math.pi)


def log_kummer(order: float, mean: float, deviation: float) -> float:
    """Natural logarithm of `1F1(-v/2; 1/2; -mu^2 / (2 s^2))`.

    Args:
        order: v.
        mean: mu.
        deviation: s, above 0.

    Returns:
        The logarithm; where the function itself overflows, from its expansion for large arguments, whose terms
        `E (mu + s Z)^v = sum_j C(v, 2j) mu^(v-2j) s^(2j) (2j-1)!!` are exact for even v.
    """
    argument = 0.5 * (mean / deviation) ** 2
    value = float(hyp1f1(-0.5 * order, 0.5, -argument))
    if 0.0 < value < math.inf:
        return math.log(value)
    terms, term = [0.0], 0.0
    for step in range(int(order // 2)):
        left = order - 2 * step
        if left * (left - 1.0) <= 0.0:
            break
        term += math.log(left * (left - 1.0) / (4.0 * argument * (step + 1)))
        terms.append(term)
    top = max(terms)
    total = top + math.log(math.fsum(math.exp(each - top) for each in terms))
    return order * math.log(abs(mean) / deviation) + total - log_gamma_part(order)
