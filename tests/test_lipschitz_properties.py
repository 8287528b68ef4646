"""Random dense nets over many activations: every bound against the enumerated constant, and the order among bounds."""

from __future__ import annotations

import itertools

import pytest
import torch
from lipschitz_references import enumerate_k
from torch import nn

from poisonaudit.layers import SLOPES
from poisonaudit.lipschitz import UPPER_BOUNDS, lipschitz_bounds
from poisonaudit.lipschitz import lower as search
from poisonaudit.lipschitz.network import chain_of, read_network
from poisonaudit.lipschitz.upper import absolute_product_bound, subset_absolute_bound

TOLERANCE = 1 + 1e-10
# With 0 <= centre, radius > 0; the others have other signs, or slopes that differ inside a layer.
UNIFORM = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Hardswish, nn.LeakyReLU, nn.Mish, nn.Softshrink)
CASES = {
    "relu": lambda width, generator: nn.ReLU(),
    "mixed": lambda width, generator: UNIFORM[int(torch.randint(len(UNIFORM), (1,), generator=generator))](),
    "odd": lambda width, generator: nn.LeakyReLU(float(4.0 * torch.rand(1, generator=generator) - 2.0)),
    "channels": lambda width, generator: channels(width, generator),
}


def channels(width, generator):
    layer = nn.PReLU(width)
    layer.weight.data.copy_(2.0 * torch.randn(width, generator=generator))
    return layer


def random_net(seed, case):
    """1 to 3 hidden layers, at most 9 hidden neurons, some with sparse weights, some with batch normalisation."""
    generator = torch.Generator().manual_seed(seed)
    depth = seed % 3 + 1
    widths = torch.randint(1, (9, 5, 4)[depth - 1], (depth + 2,), generator=generator).tolist()
    layers = []
    for columns, rows in itertools.pairwise(widths):
        linear = nn.Linear(columns, rows, dtype=torch.float64)
        for parameter in linear.parameters():
            parameter.data.normal_(generator=generator)
        if seed % 4 == 1:
            linear.weight.data.mul_((torch.rand(linear.weight.shape, generator=generator) < 0.6).double())
        layers += [linear, CASES[case](rows, generator)]
    if seed % 5 == 2:
        norm = nn.BatchNorm1d(widths[1]).double()
        norm.weight.data.normal_(generator=generator)
        norm.running_var.uniform_(0.2, 4.0, generator=generator)
        layers.insert(1, norm)
    return nn.Sequential(*layers[:-1]).double().eval()


def matrices_and_slopes(model):
    """The matrices with the normalisation multiplied in, and the ends of the slope intervals of every layer."""
    matrices, low, high = [], [], []
    for layer in model:
        if isinstance(layer, nn.Linear):
            matrices.append(layer.weight.detach())
        elif isinstance(layer, nn.BatchNorm1d):
            scale = layer.weight.detach() / (layer.running_var + layer.eps).sqrt()
            matrices[-1] = scale[:, None] * matrices[-1]
        else:
            lower, upper = SLOPES[type(layer)](layer)
            low.append(lower)
            high.append(upper)
    return matrices, low, high


def check(seed, case, norm):
    model = random_net(seed, case)
    matrices, low, high = matrices_and_slopes(model)
    k = enumerate_k(matrices, norm, low, high)
    bounds = lipschitz_bounds(model, norm, seed=seed)
    assert bounds.exact == pytest.approx(k, rel=1e-11, abs=1e-300)
    assert bounds.lower <= k * TOLERANCE
    for name in UPPER_BOUNDS:
        assert (value := getattr(bounds, name)) is None or k <= value * TOLERANCE, name
    # The reference multiplies a normalisation in with roundings of its own.
    folded = any(isinstance(layer, nn.BatchNorm1d) for layer in model)
    assert k <= bounds.certified * (1 + (1e-14 if folded else 0.0))
    assert bounds.best <= bounds.certified
    assert bounds.k5 <= min(bounds.k3, bounds.k4) * TOLERANCE
    if norm != "l2":
        assert bounds.k6 <= bounds.k5
        assert bounds.k4 <= bounds.k1 * TOLERANCE
        assert bounds.k3 <= bounds.k_star * TOLERANCE
    if case != "channels":  # the same slopes in a whole layer
        assert bounds.k1 <= bounds.k_star * TOLERANCE
        assert bounds.k4 <= bounds.k3 * TOLERANCE
    return bounds, k


@pytest.fixture
def quick_search(monkeypatch):
    """Fewer ascents: whether the lower bound holds does not depend on how long it looks."""
    monkeypatch.setattr(search, "ASCENTS", 6)
    monkeypatch.setattr(search, "STEPS", 12)
    monkeypatch.setattr(search, "RANDOM_STARTS", 64)


@pytest.mark.parametrize("norm", ("linf", "l1", "l2"))
@pytest.mark.parametrize("case", CASES)
def test_bounds_hold_on_random_nets(case, norm, quick_search):
    found = [check(seed, case, norm) for seed in range(20)]
    tight = [bounds.lower / k for bounds, k in found if k > 0]
    assert sum(tight) / len(tight) > 0.4  # the nets are no trivial ones


@pytest.mark.soak
@pytest.mark.parametrize("norm", ("linf", "l1", "l2"))
@pytest.mark.parametrize("case", CASES)
def test_bounds_hold_on_many_random_nets(case, norm, quick_search):
    for seed in range(20, 220):
        check(seed, case, norm)


def test_an_order_that_is_no_theorem_does_fail():
    """Why K_4 <= K_3 is not asked for where the slopes of a layer differ."""
    chains = [chain_of(read_network(random_net(seed, "channels")), "linf") for seed in range(60)]
    assert any(subset_absolute_bound(chain) > absolute_product_bound(chain) * TOLERANCE for chain in chains)
