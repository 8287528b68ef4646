"""The ellipsoid with its rounding accounted for: domination in exact rationals, and how little it costs."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from lipschitz_references import draw, enumerate_k, exact_products, is_positive_semidefinite, rational, times
from torch import nn

from poisonaudit.lipschitz import domination, lipschitz_bounds
from poisonaudit.lipschitz.ellipsoid import (
    _dominating,
    _largest_eigenvalue,
    _recursions,
    _row_sums,
    ellipsoid_of,
    proved_bound,
)
from poisonaudit.lipschitz.network import chain_of, read_network
from poisonaudit.lipschitz.sign_coupled import entries_of

SLOPES = {"relu": (0.0, 1.0), "leaky": (0.3, 1.0)}


def chain_for(matrices, kind, norm="linf"):
    layers = []
    for matrix in matrices:
        layers += [nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=torch.float64)]
        layers[-1].weight.data.copy_(matrix)
        layers.append(nn.ReLU() if kind == "relu" else nn.LeakyReLU(SLOPES[kind][0]))
    return chain_of(read_network(nn.Sequential(*layers[:-1])), norm)


def minus(left, right):
    return [[a - b for a, b in zip(row, other, strict=True)] for row, other in zip(left, right, strict=True)]


def _check_domination(kind, seed):
    """P >= A diag(1/d) A^T in exact arithmetic for every choice of slopes, where plain float64 may fall short."""
    chain = chain_for(draw((3, 3, 3, 2), seed), kind)
    weights = entries_of(chain).largest[:1].clamp_min(1e-3)
    inputs = [1 / Fraction(float(entry)) for entry in weights[0]]
    low, high = (Fraction(end) for end in SLOPES[kind])
    hidden = [rational(weight) for weight in chain.weights[:-1]]
    identity = [[Fraction(int(i == j)) for j in range(3)] for i in range(3)]
    partials = exact_products([*hidden, identity], low, high)
    for plain in _recursions(chain, weights):
        found = _dominating(chain, weights, plain)
        factor = Fraction(4) ** int(found.power[0])
        top = [[entry * factor for entry in row] for row in rational(found.gram[0])]
        assert top == [list(column) for column in zip(*top, strict=True)]
        for partial in partials:
            scaled = [[entry * d for entry, d in zip(row, inputs, strict=True)] for row in partial]
            outer = times(scaled, [list(column) for column in zip(*partial, strict=True)])
            assert is_positive_semidefinite(minus(top, outer))


@pytest.mark.parametrize("kind", SLOPES)
def test_the_recursion_dominates_in_exact_arithmetic(kind):
    for seed in range(2):
        _check_domination(kind, seed)


@pytest.mark.soak
@pytest.mark.parametrize("kind", SLOPES)
def test_the_recursion_dominates_in_exact_arithmetic_on_many_nets(kind):
    for seed in range(2, 60):
        _check_domination(kind, seed)


def _random_gram(seed, size=3):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    gram = root @ root.T
    return 0.5 * (gram + gram.T) + 1e-9 * torch.eye(size, dtype=torch.float64), generator


def test_a_map_is_dominated_where_float64_falls_short():
    short = 0
    for seed in range(20):
        gram, generator = _random_gram(seed)
        weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)  # rank 3 of 4: no room for error
        found = domination.through_weight(gram[None], weight, 0)[0]
        exact = times(times(rational(weight), rational(gram)), rational(weight.T))
        assert is_positive_semidefinite(minus(rational(found), exact))
        assert float((found - weight @ gram @ weight.T).abs().max()) < 1e-12
        plain = weight @ gram @ weight.T
        short += not is_positive_semidefinite(minus(rational(0.5 * (plain + plain.T)), exact))
    assert short > 10


def block_form(found, gram, spread, centre, radius):
    """The block matrix of the S-procedure, in rationals, for some S' >= S; returns the best that P' allows."""
    size = len(gram)
    top = minus(rational(found), [[spread[i] * (i == j) + centre[i] * gram[i][j] * centre[j] for j in range(size)]
                                  for i in range(size)])  # fmt: skip
    cross = [[centre[i] * gram[i][j] * radius[j] for j in range(size)] for i in range(size)]
    bottom = [[spread[i] * (i == j) - radius[i] * gram[i][j] * radius[j] for j in range(size)] for i in range(size)]
    return [a + [-c for c in b] for a, b in zip(top, cross, strict=True)] + [
        [-c for c in a] + b for a, b in zip(zip(*cross, strict=True), bottom, strict=True)
    ]


@pytest.mark.parametrize("garbled", (False, True), ids=("computed factors", "factors from nowhere"))
def test_nothing_about_the_factors_is_trusted(garbled):
    """For every Z at the ends of [-1, 1], P' >= (C + rho Z) M (C + rho Z), whatever L and H are."""
    for seed in range(12):
        gram, generator = _random_gram(seed)
        centre = torch.rand(3, generator=generator, dtype=torch.float64)
        radius = torch.rand(3, generator=generator, dtype=torch.float64)
        radius[seed % 3] = 0.0 if seed < 6 else radius[seed % 3]
        k = (radius[:, None] * gram * radius)[None]
        spread = (_largest_eigenvalue if seed % 2 else _row_sums)(k, radius > 0.0)
        filled = torch.where(spread > 0.0, spread, torch.ones_like(spread))
        factor = torch.linalg.cholesky(torch.diag_embed(filled) - k)
        half = torch.linalg.solve_triangular(factor, (radius[:, None] * gram * centre)[None], upper=False)
        if garbled:
            factor = factor + 0.1 * torch.randn(factor.shape, generator=generator, dtype=torch.float64)
            half = half + 0.1 * torch.randn(half.shape, generator=generator, dtype=torch.float64)
        found = domination.through_slopes(gram[None], spread, factor, half, centre, radius)[0]
        exact = rational(gram)
        for signs in range(8):
            z = [Fraction(1 if signs >> bit & 1 else -1) for bit in range(3)]
            slopes = [
                Fraction(float(c)) + Fraction(float(r)) * sign for c, r, sign in zip(centre, radius, z, strict=True)
            ]
            reached = [[slopes[i] * exact[i][j] * slopes[j] for j in range(3)] for i in range(3)]
            assert is_positive_semidefinite(minus(rational(found), reached))
        if not garbled:
            plain = centre[:, None] * gram * centre + half[0].T @ half[0] + torch.diag(spread[0])
            assert float((found - plain).abs().max()) <= 1e-11 * float(plain.diagonal().max())


def test_the_largest_eigenvalue_is_bounded_from_above():
    for seed in range(20):
        gram, _ = _random_gram(seed, size=4)
        found = domination.largest_eigenvalue_above(gram)
        exact = [[Fraction(found) * (i == j) - entry for j, entry in enumerate(row)] for i, row in
                 enumerate(rational(gram))]  # fmt: skip
        assert is_positive_semidefinite(exact)
        assert found <= float(torch.linalg.eigvalsh(gram)[-1]) * (1 + 2e-9)
    assert domination.largest_eigenvalue_above(torch.full((2, 2), math.nan, dtype=torch.float64)) == math.inf
    assert domination.spectral_norm_above(torch.zeros(2, 3, dtype=torch.float64)) == 0.0
    for scale in (1e-200, 1.0, 1e200):
        matrix = scale * torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        exact = float(torch.linalg.matrix_norm(matrix, 2))
        assert exact < domination.spectral_norm_above(matrix) <= exact * (1 + 1e-8)


@pytest.mark.parametrize("norm", ("linf", "l1", "l2"))
@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 4, 4, 2), (6, 3, 3, 3, 3)], ids=str)
def test_the_certified_ellipsoid_is_close_to_the_plain_one(shape, norm):
    for seed in range(3):
        matrices = draw(shape, seed, sparse=seed == 2)
        chain = chain_of(read_network(matrices), norm)
        found = ellipsoid_of(chain, entries_of(chain).largest)
        plain, proved = found.value, proved_bound(chain, found)
        assert plain * (1 - 1e-13) <= proved <= plain * (1 + 1e-8)
        assert chain.unscaled(proved) >= enumerate_k(matrices, norm)


def test_deep_and_wide_nets_lose_little():
    for widths, room in (((12,) * 42, 1e-9), ((20, 64, 64, 5), 1e-9)):
        matrices = [matrix / matrix.shape[1] ** 0.5 for matrix in draw(widths)]
        bounds = lipschitz_bounds(matrices, tune=False)
        assert bounds.winner == bounds.certified_winner == "ellipsoid"
        assert bounds.ellipsoid <= bounds.certified <= bounds.ellipsoid * (1 + room)


def test_dead_and_awkward_neurons_stay_sound():
    matrices = draw((3, 4, 4, 2), 3)
    matrices[0][1] = 0.0
    matrices[1][:, 2] = 0.0
    matrices[0][3] *= 1e-200
    matrices[1][2] *= 1e-160
    for norm in ("linf", "l2"):
        chain = chain_of(read_network(matrices), norm)
        found = ellipsoid_of(chain, entries_of(chain).largest)
        plain, proved = found.value, proved_bound(chain, found)
        assert enumerate_k(matrices, norm) <= chain.unscaled(proved)
        assert proved <= plain * (1 + 1e-6)


def test_a_failed_factorisation_is_no_bound(monkeypatch):
    matrices = draw((12,) * 8)
    honest = lipschitz_bounds(matrices)
    assert honest.certified_winner == "ellipsoid_tuned"

    def failing(matrix):
        return torch.zeros_like(matrix), torch.ones(matrix.shape[:-2], dtype=torch.int32)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", failing)
    bounds = lipschitz_bounds(matrices)
    assert bounds.ellipsoid == math.inf
    assert bounds.certified_winner in {"k5", "k6"} and bounds.certified > honest.certified
