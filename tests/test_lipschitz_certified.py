"""The certified bound against exact rational arithmetic on the float64 weights."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from lipschitz_references import exact_k, exact_k3, exact_k5, one_product
from torch import nn

from poisonaudit.layers import SLOPES
from poisonaudit.lipschitz import certified_radii, lipschitz_bounds, local_lipschitz
from poisonaudit.lipschitz.all_bounds import graph_bounds
from poisonaudit.lipschitz.dense_graph import graph_of
from poisonaudit.lipschitz.enumeration import enumerated_constant
from poisonaudit.lipschitz.network import chain_of, read_network
from poisonaudit.lipschitz.pushing import pushing_plan
from poisonaudit.lipschitz.reading import read_graph
from poisonaudit.lipschitz.rounding import certified_bounds, operation_count
from poisonaudit.lipschitz.sign_coupled import entries_of
from poisonaudit.lipschitz.upper import norm_of_sum_bound

# Slopes: ReLU; a leaky one whose centre and radius round; those of GELU, as the bounds round them outwards.
INTERVALS = {"relu": (0.0, 1.0), "leaky": (0.3, 1.0), "gelu": SLOPES[nn.GELU](nn.GELU())}
KINDS = {"relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.3), "gelu": nn.GELU}


def _model(matrices, kind):
    layers = []
    for matrix in matrices:
        layers += [nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=torch.float64), KINDS[kind]()]
        layers[-2].weight.data.copy_(matrix)
    return nn.Sequential(*layers[:-1]).eval()


def _small_nets(count, widest=5):
    """1 to 3 hidden layers of 3 to `widest` neurons, N(0, 1) entries."""
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        widths = torch.randint(min(3, widest), widest + 1, (seed % 3 + 3,), generator=generator).tolist()
        yield [
            torch.randn(rows, columns, generator=generator, dtype=torch.float64)
            for columns, rows in zip(widths[:-1], widths[1:], strict=True)
        ]


def _certified(matrices, kind, norm):
    """The certified bounds by name, unscaled, and the plain K_5."""
    chain = chain_of(read_network(_model(matrices, kind)), norm)
    found = certified_bounds(chain, entries_of(chain), enumerated_constant(chain))
    return {name: chain.unscaled_up(value) for name, value in found.items()}, chain.unscaled(norm_of_sum_bound(chain))


def _check_against_rationals(count, kind, norm):
    below = 0
    low, high = INTERVALS[kind]
    for matrices in _small_nets(count):
        exact = exact_k5(matrices, norm, low, high)
        certified, plain = _certified(matrices, kind, norm)
        assert Fraction(certified["k5"]) >= exact
        assert certified["k5"] <= float(exact) * (1 + 1e-12)
        assert plain == pytest.approx(float(exact), rel=1e-13)
        third = exact_k3(matrices, norm, low, high)
        assert third <= Fraction(certified["k3"]) <= third * (1 + Fraction(1, 10**12))
        assert certified["k6"] <= certified["k5"]
        bounds = lipschitz_bounds(_model(matrices, kind), norm)
        assert bounds.certified <= min(certified.values()) * (1 + 1e-14)
        below += Fraction(plain) < exact
    return below


@pytest.mark.parametrize("norm", ("linf", "l1"))
@pytest.mark.parametrize("kind", INTERVALS)
def test_certified_is_never_below_the_exact_value_where_float64_is(kind, norm):
    below = _check_against_rationals(12, kind, norm)
    assert 1 <= below < 12  # plain float64 rounds to either side


@pytest.mark.soak
@pytest.mark.parametrize("norm", ("linf", "l1"))
@pytest.mark.parametrize("kind", INTERVALS)
def test_certified_is_never_below_the_exact_value_on_200_nets(kind, norm):
    below = _check_against_rationals(200, kind, norm)
    assert 25 <= below < 200


def _check_against_rational_enumeration(count, kind, norm):
    """Every certified number is at least K itself; the one from enumeration is K up to its slack."""
    for matrices in _small_nets(count, widest=3):
        exact = exact_k(matrices[-3:], norm, *INTERVALS[kind])
        certified, _ = _certified(matrices[-3:], kind, norm)
        assert all(Fraction(value) >= exact for value in certified.values())
        assert Fraction(certified["exact"]) <= exact * (1 + Fraction(1, 10**12))
        assert Fraction(lipschitz_bounds(_model(matrices[-3:], kind), norm).certified) >= exact


@pytest.mark.parametrize("norm", ("linf", "l1"))
@pytest.mark.parametrize("kind", INTERVALS)
def test_certified_bounds_hold_for_the_rational_constant(kind, norm):
    _check_against_rational_enumeration(6, kind, norm)


@pytest.mark.soak
@pytest.mark.parametrize("norm", ("linf", "l1"))
@pytest.mark.parametrize("kind", INTERVALS)
def test_certified_bounds_hold_for_the_rational_constant_on_200_nets(kind, norm):
    _check_against_rational_enumeration(200, kind, norm)


def test_centres_and_radii_hold_the_interval_exactly():
    layers = [nn.PReLU(4, init=0.1), nn.GELU(), nn.LeakyReLU(0.3), nn.LeakyReLU(-7.1), nn.SiLU(), nn.Sigmoid()]
    layers[0].weight.data.copy_(torch.tensor([0.1, -0.7, 3.3, 1.0]))
    pieces = [piece for layer in layers for piece in (nn.Linear(4, 4), layer)]
    chain = chain_of(read_network(nn.Sequential(*pieces, nn.Linear(4, 1))), "linf")
    rounded = 0
    for lower, upper, centre, radius, steepest in zip(
        chain.lower, chain.upper, chain.centres, chain.radii, chain.steepest, strict=True
    ):
        assert centre.dtype == radius.dtype == torch.float64 and centre.shape == radius.shape == (4,)
        for low, high, middle, half, most in zip(lower, upper, centre, radius, steepest, strict=True):
            low, high, middle, half, most = (Fraction(float(value)) for value in (low, high, middle, half, most))
            assert middle - half <= low <= high <= middle + half
            assert abs(middle) + half <= most <= max(abs(low), abs(high)) * (1 + Fraction(1, 2**51))
            rounded += half != (high - low) / 2
    assert rounded > 0  # some radius needed rounding
    relu = chain_of(read_network(_power(0)), "linf")
    assert all(bool((values == 0.5).all()) for values in (*relu.centres, *relu.radii))
    assert all(bool((values == 1.0).all()) for values in relu.steepest)


def test_certified_for_float32_weights_means_exactly_those_weights():
    generator = torch.Generator().manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    exact = exact_k([model[0].weight.detach(), model[2].weight.detach()])
    bounds = lipschitz_bounds(model)
    assert exact <= Fraction(bounds.certified) <= exact * (1 + Fraction(1, 10**12))
    assert bounds.certified_winner == "exact"


def test_a_folded_normalisation_widens_the_count():
    matrices = _power(0)
    norm = nn.BatchNorm1d(4, dtype=torch.float64).eval()
    plain = _model(matrices, "relu")
    folded = nn.Sequential(plain[0], norm, *plain[1:])
    counts = [operation_count(chain_of(read_network(model), "linf")) for model in (plain, folded)]
    assert counts[1] > counts[0]


def _cancelling():
    """Signed products that cancel down to rounding level."""
    tiny = 2.0**-52
    first = torch.tensor([[1.0, 1.0 + tiny, 0.1], [1.0 / 3.0, 0.7, 0.3]], dtype=torch.float64)
    second = torch.tensor([[1.0, -3.0], [0.1, -0.3], [1.0 + tiny, -3.0]], dtype=torch.float64)
    return [first, second, torch.tensor([[1.0, -1.0, -tiny], [0.1, -1.0, 7.0]], dtype=torch.float64)]


def _power(exponent, sizes=(3, 4, 3, 2), seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 10.0**exponent
        for columns, rows in zip(sizes[:-1], sizes[1:], strict=True)
    ]


def _spread():
    """Entries over 600 orders of magnitude in one matrix: scaling must not lose the small ones silently."""
    first = torch.tensor([[1e300, 0.0], [0.0, 1e-300]], dtype=torch.float64)
    return [first, torch.tensor([[0.0, 1e-10]], dtype=torch.float64)]


@pytest.mark.parametrize("norm", ("linf", "l1"))
@pytest.mark.parametrize(
    "matrices",
    [_cancelling(), _power(-90), _power(-150), _power(100), _spread(), _power(0, sizes=(2,) * 25)],
    ids=["cancelling", "tiny", "underflowing", "huge", "spread", "deep and thin"],
)
def test_certified_holds_in_awkward_cases(matrices, norm):
    exact = exact_k5(matrices, norm)
    certified, _ = _certified(matrices, "relu", norm)
    assert exact > 0
    assert Fraction(certified["k5"]) >= exact
    # With many gates, one choice of them is a lower bound.
    constant = exact_k(matrices, norm) if len(matrices) < 5 else one_product(matrices, norm)
    assert constant > 0
    bounds = lipschitz_bounds(matrices, norm)
    assert all(Fraction(value) >= constant for value in (*certified.values(), bounds.certified))


def test_extreme_scales_neither_overflow_nor_vanish():
    sizes = (3, 4, 3)
    plain = lipschitz_bounds(_power(0, sizes))
    scaled = [_power(0, sizes)[0] * 2.0**1000, _power(0, sizes)[1] * 2.0**-1000]
    bounds = lipschitz_bounds(scaled)
    for name in ("k_star", "k1", "k2", "k3", "k4", "k5", "k6", "exact", "ellipsoid", "certified"):
        assert getattr(bounds, name) == pytest.approx(getattr(plain, name), rel=1e-12), name
    overflowing = lipschitz_bounds([matrix * 1e200 for matrix in _power(0, sizes)])
    assert overflowing.certified == overflowing.best == math.inf


class Tiny(nn.Module):
    """Exactly 1e200 x (for x > 0), while 1e-400 between the factors underflows."""

    def __init__(self, pictures, relu):
        super().__init__()
        self.relu = relu
        self.register_buffer("scale", torch.tensor(1e-200, dtype=torch.float64))
        layers = [nn.Conv1d(1, 1, 1, bias=False) if pictures else nn.Linear(1, 1, bias=False) for _ in range(3)]
        for layer, factor in zip(layers, (1e-200, 1e300, 1e300), strict=True):
            layer.double().weight.data.fill_(factor)
        self.first, self.second, self.third = layers

    def forward(self, x):
        hidden = self.first(x) * self.scale
        return self.third(self.second(torch.relu(hidden) if self.relu else hidden))


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("pictures", [False, True])
def test_products_that_underflow_on_the_way_count(pictures, relu, norm):
    model, shape = Tiny(pictures, relu).eval(), ((1, 5) if pictures else (1,))
    bounds = lipschitz_bounds(model, norm, input_shape=shape)
    assert 1e200 <= bounds.certified <= 1.000001e200 and bounds.lower <= bounds.certified
    assert graph_bounds(read_graph(model, shape), norm, 1e11).certified >= 1e200
    (near,) = local_lipschitz(model, torch.ones(1, *shape), 0.1, norm, search_work=0)
    assert near.upper >= 1e200


def test_rows_that_underflow_on_the_way_back_count():
    # 1e300 1e-200 1e-200 = 1e-100; an output alone is read backwards, and the last two factors are 0.
    shapes = ((16, 16, 1e300), (16, 16, 1e-200), (1, 16, 1e-200))
    matrices = [torch.eye(rows, columns, dtype=torch.float64) * factor for rows, columns, factor in shapes]
    graph = graph_of(read_network(matrices))
    assert pushing_plan(graph).pulled
    assert graph_bounds(graph, "linf", 1e11).certified >= 1e-100


@pytest.mark.parametrize("layers", ["activation", "maps"])
def test_radii_count_what_underflows(layers):
    """Float64 computes 0 for the first logit, exactly it is -1e50 or 1e100."""
    if layers == "activation":
        body = nn.Sequential(nn.Linear(1, 1), nn.LeakyReLU(1e-200), nn.Linear(1, 1), nn.Linear(1, 2))
        factors, other, x = (1e-200, 1e250, [[1e200], [0.0]]), -1.0, -1.0
    else:
        body = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 2))
        factors, other, x = (1e-200, 1e-200, 1e300, [[1e200], [0.0]]), 1.0, 1.0
    linears = [layer for layer in body.double() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for linear, factor in zip(linears, factors, strict=True):
            linear.weight.copy_(torch.tensor(factor, dtype=torch.float64))
            linear.bias.zero_()
        linears[-1].bias[1] = other
    row = torch.full((1, 1), x, dtype=torch.float64)
    label = body(row).argmax(1)
    assert int(label) == (0 if layers == "activation" else 1)  # not what it is exactly
    assert certified_radii(body.eval(), row, label).radii.tolist() == [0.0]
