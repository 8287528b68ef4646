"""Upper bounds of the tangent sensitivity that count paths: Daroczy's theorem 3.1, and sharper ones.

All hold for `|S(x)|_F^2` in the jacobian convention, for nets with or without biases. A weight (a, b) of matrix i, an
input l and an output c share `prod_j n_j` paths, j over the hidden layers other than i - 1 and i, each worth at most
the product of the largest weights of the other matrices.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy
from torch import Tensor

from poisonaudit.tangent.path_net import PathNet


def path_bound(net: PathNet, active: Tensor | None = None) -> Fraction:
    """Sharp path bound, exact: equal weights and open gates attain it.

    `sum_i (prod_(j != i) w_max_j)^2 d_in d_out n_(i-1) n_i prod_(j not in {i-1, i}) n_j^2`, j over hidden layers, the
    factors n_0 and n_k left out.

    Args:
        net: what `path_net` reads.
        active: (batch, k - 1) active units to count in the place of the widths; the mean over rows is returned.

    Returns:
        A bound for every input, or with `active` one of the mean over its rows.
    """
    rows = [list(net.hidden)] if active is None else active.tolist()
    # Whole numbers of any size: widths to the power of twice the depth leave int64 and float64 soon.
    counts = numpy.array(rows, dtype=object).reshape(len(rows), len(net.hidden))
    total = Fraction(0)
    for layer in range(net.depth):
        pairs = numpy.ones(len(rows), dtype=object)
        for hidden in range(len(net.hidden)):
            beside = hidden in (layer - 1, layer)
            pairs = pairs * (counts[:, hidden] if beside else counts[:, hidden] ** 2)
        total += net.without(layer) ** 2 * int(pairs.sum())
    return total * net.inputs * net.outputs / len(rows)


def theorem31(net: PathNet) -> Fraction:
    """Theorem 3.1 with the output layer counted in N_max: `N_theta d_in N_max^(2(k-1)) M^2`.

    `M = prod_i w_max_i / min_i w_max_i`, and N_theta counts weights, for biases contribute 0. The printed form leaves
    open whether the maximum of the widths takes in the output layer; without it the bound is false.

    Args:
        net: what `path_net` reads.

    Returns:
        A bound for every input. It holds in the "sum" convention too.
    """
    widest = max([*net.hidden, net.outputs])
    return net.weights * net.inputs * Fraction(widest) ** (2 * (net.depth - 1)) * net.path_weight**2


def absolute_bound(net: PathNet) -> float:
    """Natural logarithm of the bound that adds up absolute path products: all gates open, weights by their size.

    `sum_i |A_(i-1)|_F^2 |B_i|_F^2` of the net with weights `|W_i|`, every slope at its steepest. Never above
    `path_bound`, which puts the largest weight of its matrix in the place of each.

    Args:
        net: what `path_net` reads.

    Returns:
        The logarithm, minus infinity for 0. Plain floating point.
    """
    sizes = [weight.abs().double() for weight in net.chain.weights]
    slope = math.log(net.steepest) if net.steepest > 0 else -math.inf
    incoming = _squares(sizes[:-1], net.inputs)
    outgoing = _squares([size.T for size in reversed(sizes[1:])], net.outputs)
    terms = [before + after for before, after in zip(incoming, reversed(outgoing), strict=True)]
    top = max(terms)
    if top == -math.inf:
        return top
    return 2.0 * slope + top + math.log(math.fsum(math.exp(term - top) for term in terms))


def common_logarithm(bound: Fraction) -> float:
    """`log10` of a ratio of whole numbers of any size, minus infinity for 0."""
    return math.log10(bound.numerator) - math.log10(bound.denominator) if bound > 0 else -math.inf


def rounded_up(bound: Fraction) -> float:
    """The smallest float64 that is not below; infinity above all of them."""
    try:
        value = float(bound)
    except OverflowError:
        return math.inf
    return value if value >= bound else math.nextafter(value, math.inf)


def from_logarithm(logarithm: float) -> float:
    """`exp` that ends in infinity instead of an error."""
    try:
        return math.exp(logarithm)
    except OverflowError:
        return math.inf


def _squares(factors: list[Tensor], width: int) -> list[float]:
    """Natural logarithms of `|I|^2`, `|F_1|^2`, `|F_2 F_1|^2`, ..., scaled: none overflows. I is width x width."""
    found, scale = [math.log(width)], 0.0
    product: Tensor | None = None
    for factor in factors:
        product = factor if product is None else factor @ product
        size = float(product.abs().max())
        if size == 0.0:
            return found + [-math.inf] * (len(factors) + 1 - len(found))
        product, scale = product / size, scale + math.log(size)
        found.append(2.0 * scale + math.log(float(product.square().sum())))
    return found
