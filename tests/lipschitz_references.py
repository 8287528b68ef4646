"""Slow and literal counterparts of the Lipschitz bounds, in float64 and in exact rationals."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import torch


def draw(widths, seed=0, sparse=False):
    generator = torch.Generator().manual_seed(seed)
    matrices = [
        torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        for columns, rows in itertools.pairwise(widths)
    ]
    if sparse:
        matrices = [matrix * (torch.rand(matrix.shape, generator=generator) < 0.5) for matrix in matrices]
    return matrices


def norm_of(matrix, norm):
    if norm == "l2":
        return float(torch.linalg.matrix_norm(matrix, 2))
    return float(matrix.abs().sum(1 if norm == "linf" else 0).max())


def enumerate_k(matrices, norm, low=0.0, high=1.0):
    """K: the largest norm over every choice of slopes at the ends of their interval, one interval or one per layer."""
    products = matrices[0][None]
    for layer, weight in enumerate(matrices[1:]):
        ends = zip(*(_layer(end, layer, weight.shape[1]) for end in (low, high)), strict=True)
        gates = torch.tensor(list(itertools.product(*ends)), dtype=torch.float64)
        products = (gates[:, None, :, None] * products[None]).flatten(0, 1)
        products = weight @ products
    if norm == "l2":
        return float(torch.linalg.matrix_norm(products, 2).max())
    return float(products.abs().sum(2 if norm == "linf" else 1).amax())


def _layer(end, layer, width):
    """The slopes of one layer, as a list: `end` is a number, or one per layer, or vectors per layer."""
    end = end[layer] if isinstance(end, (list, tuple)) else end
    return torch.as_tensor(end, dtype=torch.float64).expand(width).tolist()


def literal_subset_sums(matrices, norm):
    """K_1 and K_4 as sums over all subsets of hidden layers, written down from their definitions (slopes 0 and 1)."""
    hidden = len(matrices) - 1
    k1 = k4 = 0.0
    for size in range(hidden + 1):
        for subset in itertools.combinations(range(1, hidden + 1), size):
            cuts = (0, *subset, hidden + 1)
            blocks = [torch.linalg.multi_dot(matrices[a:b][::-1]) if b - a > 1 else matrices[a]
                      for a, b in itertools.pairwise(cuts)]  # fmt: skip
            k1 += math.prod(norm_of(block, norm) for block in blocks) / 2**hidden
            product = blocks[0].abs()
            for block in blocks[1:]:
                product = block.abs() @ product
            k4 += norm_of(product, norm) / 2**hidden
    return k1, k4


def rational(matrix):
    return [[Fraction(float(entry)) for entry in row] for row in matrix]


def times(left, right):
    columns = list(zip(*right, strict=True))
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in left]


def _oriented(matrices, norm):
    weights = [rational(matrix) for matrix in matrices]
    if norm == "l1":
        weights = [[list(column) for column in zip(*weight, strict=True)] for weight in reversed(weights)]
    return weights


def exact_k5(matrices, norm="linf", low=0.0, high=1.0):
    """K_5 in rational numbers, written down from its definition, for one slope interval."""
    weights = _oriented(matrices, norm)
    centre, half = (Fraction(low) + Fraction(high)) / 2, (Fraction(high) - Fraction(low)) / 2
    vectors = [[[Fraction(1)] for _ in weights[0][0]]]
    for end in range(1, len(weights) + 1):
        total = [[Fraction(0)] for _ in weights[end - 1]]
        for start in range(end):
            product = weights[start]
            for weight in weights[start + 1 : end]:
                product = times([[entry * centre for entry in row] for row in weight], product)
            radius = Fraction(1) if start == 0 else half
            term = times([[abs(entry) for entry in row] for row in product], vectors[start])
            total = [[a[0] + radius * b[0]] for a, b in zip(total, term, strict=True)]
        vectors.append(total)
    return max(entry[0] for entry in vectors[-1])


def exact_k3(matrices, norm="linf", low=0.0, high=1.0):
    """K_3 in rational numbers."""
    steepest = max(abs(Fraction(low)), abs(Fraction(high)))
    carried = [[Fraction(1)] for _ in _oriented(matrices, norm)[0][0]]
    for layer, weight in enumerate(_oriented(matrices, norm)):
        factor = steepest if layer else Fraction(1)
        carried = times([[abs(entry) * factor for entry in row] for row in weight], carried)
    return max(entry[0] for entry in carried)


def exact_k(matrices, norm="linf", low=0.0, high=1.0):
    """K in rational numbers, by enumeration (one slope interval)."""
    return max(
        max(sum(abs(entry) for entry in row) for row in product)
        for product in exact_products(_oriented(matrices, norm), Fraction(low), Fraction(high))
    )


def one_product(matrices, norm="linf"):
    """The norm of `W_l ... W_0` (every slope 1) in rational numbers."""
    product, *others = _oriented(matrices, norm)
    for weight in others:
        product = times(weight, product)
    return max(sum(abs(entry) for entry in row) for row in product)


def exact_products(weights, low, high):
    """`W_l D ... D W_0` for all choices of the ends of the interval."""
    products = [weights[0]]
    for weight in weights[1:]:
        products = [
            times(weight, [[gate * entry for entry in row] for gate, row in zip(gates, product, strict=True)])
            for gates in itertools.product((low, high), repeat=len(weight[0]))
            for product in products
        ]
    return products


def is_positive_semidefinite(matrix):
    """Whether a symmetric rational matrix is, by elimination."""
    matrix = [list(row) for row in matrix]
    for step in range(len(matrix)):
        pivot = matrix[step][step]
        if pivot < 0 or (pivot == 0 and any(matrix[step][step + 1 :])):
            return False
        for row in range(step + 1, len(matrix)):
            if pivot:
                factor = matrix[row][step] / pivot
                matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[step], strict=True)]
    return True
