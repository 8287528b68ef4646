"""The published tables of Després and Pintore: the x^2 network and the random matrices."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch

from poisonaudit.errors import UsageError
from poisonaudit.lipschitz import lipschitz_bounds, square_model, square_network
from poisonaudit.lipschitz.network import chain_of, read_network
from poisonaudit.lipschitz.upper import (
    absolute_product_bound,
    norm_of_sum_bound,
    product_bound,
    subset_absolute_bound,
    subset_norm_bound,
)
from poisonaudit.lipschitz.virmaux import singular_split_bound

K1 = (2.0, 3.53125, 6.921875, 14.428772, 30.7563705, 66.0022725)
K2 = (1.5, 3.64531576, 6.4592517, 12.4588255, 24.6818391, 49.2450105)
# Printed in the source; its K_4 at depth 4 reads 1.93875, a misprint of 1.9375 = 2 - 2^-4.
PRINTED = {
    1: (3.0, 2.0, 1.5, 2.0, 1.5),
    2: (9.0, 3.53125, 3.64531, 3.0, 1.75),
    3: (33.0, 6.92187, 6.45925, 4.0, 1.875),
    4: (129.0, 14.42877, 12.45882, 5.0, 1.93875),
    5: (513.0, 30.75637, 24.68184, 6.0, 1.96875),
    6: (2049.0, 66.00227, 49.24501, 7.0, 1.984375),
}


@pytest.mark.parametrize("depth", range(1, 7))
def test_square_network_has_the_golden_bounds(depth):
    bounds = lipschitz_bounds(square_network(depth))
    assert bounds.k_star == pytest.approx(1 + 2 * 4 ** (depth - 1), rel=1e-14)
    assert bounds.k3 == pytest.approx(depth + 1, rel=1e-14)
    assert bounds.k4 == pytest.approx(2 - 2.0**-depth, rel=1e-14)
    assert bounds.k5 == pytest.approx(2 - 2.0**-depth, rel=1e-14)
    assert bounds.k6 == pytest.approx(2 - 2.0**-depth, rel=1e-14)
    assert bounds.exact is None if depth > 5 else bounds.exact == pytest.approx(2 - 2.0**-depth, rel=1e-14)
    assert bounds.lower == pytest.approx(2 - 2.0**-depth, rel=1e-14)  # the true constant, attained
    assert bounds.k1 == pytest.approx(K1[depth - 1], rel=1e-7)
    assert bounds.k2 == pytest.approx(K2[depth - 1], rel=1e-7)
    assert bounds.ellipsoid >= bounds.lower
    assert bounds.hidden_layers == depth


@pytest.mark.parametrize("depth", range(1, 7))
def test_square_network_has_the_printed_bounds(depth):
    bounds = lipschitz_bounds(square_network(depth))
    printed = list(PRINTED[depth])
    if depth == 4:
        printed[-1] = 1.9375  # see PRINTED
    for value, expected in zip((bounds.k_star, bounds.k1, bounds.k2, bounds.k3, bounds.k4), printed, strict=True):
        assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("depth", (1, 3, 6))
def test_square_model_approximates_the_square_and_attains_its_bound(depth):
    model = square_model(depth)
    x = torch.linspace(0, 1, 500, dtype=torch.float64)[:, None]
    error = (model(x) - x.square()).abs().max()
    assert 0.5 * 4.0**-depth / 3 < error <= 4.0**-depth / 3 + 1e-15
    bounds = lipschitz_bounds(model, x=x)
    assert bounds.lower == pytest.approx(2 - 2.0**-depth, rel=1e-14)
    assert bounds.k5 == pytest.approx(bounds.lower, rel=1e-14)
    assert bounds.certified >= bounds.lower


@pytest.mark.parametrize("depth", (0, -1, 2.0, True, "3"))
def test_square_network_refuses_a_bad_depth(depth):
    with pytest.raises(UsageError, match="PA303"):
        square_network(depth)


def _largest_product(matrices):
    """K of a net with two hidden layers, by enumerating every gate."""
    first, second = (
        torch.tensor(list(itertools.product([0.0, 1.0], repeat=len(matrix))), dtype=torch.float64)
        for matrix in matrices[:2]
    )
    left = matrices[2] * second[:, None, :]  # (patterns, out, n_2)
    inner = matrices[1] @ (first[:, :, None] * matrices[0])  # (patterns, n_2, in)
    best = 0.0
    for part in inner.split(128):
        products = left.reshape(-1, left.shape[2]) @ part.transpose(0, 1).reshape(left.shape[2], -1)
        sums = products.reshape(len(left) * left.shape[1], len(part), -1).abs().sum(2)
        best = max(best, float(sums.max()))
    return best


def _ratios(draws, first_seed):
    """Means of the bounds over K_* on 8-10-6-3 nets with N(0, 1) entries, in l_inf."""
    bounds = {
        "k1": subset_norm_bound,
        "k2": singular_split_bound,
        "k3": absolute_product_bound,
        "k4": subset_absolute_bound,
        "k5": norm_of_sum_bound,
    }
    ratios = {name: [] for name in ("k", *bounds)}
    for seed in range(first_seed, first_seed + draws):
        generator = torch.Generator().manual_seed(seed)
        shapes = ((10, 8), (6, 10), (3, 6))
        matrices = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
        chain = chain_of(read_network(matrices), "linf")
        largest = product_bound(chain)
        for name, bound in bounds.items():
            ratios[name].append(bound(chain) / largest)
        ratios["k"].append(_largest_product(matrices) / chain.unscaled(largest))
        assert ratios["k"][-1] <= min(ratios[name][-1] for name in bounds) * (1 + 1e-10)
    return {name: statistics.fmean(values) for name, values in ratios.items()}


MEANS = {"k": 0.142, "k1": 0.453, "k2": 0.326, "k3": 0.542, "k4": 0.286, "k5": 0.281}


def test_random_table_on_a_few_draws():
    for name, mean in _ratios(60, first_seed=0).items():
        assert mean == pytest.approx(MEANS[name], abs=0.03), name


@pytest.mark.soak
def test_random_table_in_full():
    for name, mean in _ratios(1000, first_seed=0).items():
        assert mean == pytest.approx(MEANS[name], abs=0.01), name
