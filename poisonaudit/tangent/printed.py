"""Daroczy's formulas as printed. They are not bounds: the tests hold a counterexample to each.

Kept to compare published numbers, and named "as printed" wherever they appear. T is the number of active units of a
row, taken as normal with mean mu and deviation s; k the number of matrices.
"""

from __future__ import annotations

import math
from fractions import Fraction

from scipy.special import gammaln

from poisonaudit.tangent.moments import log_absolute_moment, log_kummer
from poisonaudit.tangent.path_bounds import common_logarithm
from poisonaudit.tangent.path_net import PathNet


def theorem31_as_printed(net: PathNet) -> Fraction:
    """Eq. 1, first line, with N_max over the hidden layers: `N_theta d_in N_max^(2(k-1)) M^2`; not a bound.

    "N_i as the number of hidden units in the i-th layer" leaves the output layer out. 1-1-5 with all weights 1 has
    sensitivity 10, this gives 6.

    Args:
        net: what `path_net` reads.

    Returns:
        The number.
    """
    widest = max(net.hidden, default=1)
    return net.weights * net.inputs * Fraction(widest) ** (2 * (net.depth - 1)) * net.path_weight**2


def theorem31_loose_as_printed(net: PathNet) -> Fraction:
    """Eq. 1, second line: `N_theta d_in N_max^(2(k-1)) w_max^(2(k-1))`, N_max over the hidden layers; not a bound."""
    power = 2 * (net.depth - 1)
    return net.weights * net.inputs * Fraction(max(net.hidden, default=1)) ** power * max(net.largest) ** power


def theorem32_as_printed(net: PathNet, mean: float, deviation: float, *, appendix: bool = False) -> float:
    """Eq. 2 for a net, as a natural logarithm; not a bound. Arguments as `log_theorem32_as_printed`."""
    product = math.prod(net.largest, start=Fraction(1))
    return log_theorem32_as_printed(
        net.weights * net.inputs,
        net.depth,
        common_logarithm(product) * math.log(10.0),
        mean,
        deviation,
        appendix=appendix,
    )


def log_theorem32_as_printed(
    entries: int, depth: int, log_product: float, mean: float, deviation: float, *, appendix: bool = False
) -> float:
    """Eq. 2 as a natural logarithm; not a bound.

    `N_theta d_in s^(2(k-1)) 2^(k-1) / k^(2k) Gamma(k/2)^2 / pi Psi^2 (prod_i w_max_i)^2`, with
    `Psi = 1F1(-(k-1)/2; 1/2; -mu^2/(2 s^2))` in the text and `1F1(-k/2; ...)` in appendix B.

    Args:
        entries: `N_theta d_in`.
        depth: k.
        log_product: natural logarithm of `prod_i w_max_i`.
        mean: mu.
        deviation: s. With 0 the text's form is its limit, the appendix's infinite.
        appendix: the form of appendix B.

    Returns:
        The logarithm, minus infinity for 0.
    """
    if log_product == -math.inf:
        return -math.inf
    head = math.log(entries) - 2 * depth * math.log(depth) + 2.0 * log_product
    if not appendix:
        # The square of E|T|^(k-1): the text's order of Kummer's function belongs to the other factors.
        return head + 2.0 * log_absolute_moment(depth - 1, mean, deviation)
    if deviation == 0.0:
        return math.inf
    gamma = (depth - 1) * math.log(2.0) + 2.0 * float(gammaln(0.5 * depth)) - math.log(math.pi)
    return head + gamma + 2.0 * (depth - 1) * math.log(deviation) + 2.0 * log_kummer(depth, mean, deviation)


def log_psi_as_printed(depth: int, mean: float, deviation: float) -> float:
    """Natural logarithm of `s^(2(k-1)) 1F1(-(k-1)/2; 1/2; -mu^2/(2 s^2))^2`, psi* of eq. 6 up to a factor of k alone.

    Args:
        depth: k.
        mean: mu.
        deviation: s; 0 gives the limit.

    Returns:
        The logarithm of `(E|T|^(k-1))^2`, which differs from psi* by a factor that cancels in eq. 6.
    """
    return 2.0 * log_absolute_moment(depth - 1, mean, deviation)
