"""Bounds of the tangent sensitivity against the exact value, golden numbers, a counterexample to each printed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from scipy.integrate import quad
from scipy.special import gamma, hyp1f1
from torch import Tensor, nn

from poisonaudit.errors import InputRefused
from poisonaudit.tangent import TangentBounds, tangent_bounds, tangent_sensitivity
from poisonaudit.tangent.moments import empirical_moment, log_absolute_moment, log_theorem32_if_normal
from poisonaudit.tangent.path_net import path_net

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU,
    lambda: nn.LeakyReLU(0.2),
    lambda: nn.LeakyReLU(3.0),
    lambda: nn.LeakyReLU(-1.5),
    nn.ReLU6,
    lambda: nn.Hardtanh(-0.5, 2.0),
    lambda: nn.Softshrink(0.3),
    nn.Identity,
)
ROOM = 1.0 + 1e-10


def ones(widths: list[int], activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after, bias=False), activation()]
    net = nn.Sequential(*layers[:-1]).double().eval()
    for value in net.parameters():
        nn.init.ones_(value)
    return net


def random_net(seed: int) -> tuple[nn.Sequential, Tensor]:
    """Widths 1 to 8, up to six matrices, biases or none, any activation, layers of very different size, dead layers."""
    draw = torch.Generator().manual_seed(seed)

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    widths = [whole(1, 8) for _ in range(whole(2, 7))]
    bias, one = whole(0, 1) == 1, whole(0, len(ACTIVATIONS) - 1)
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layer = nn.Linear(before, after, bias=bias).double()
        size = 10.0 ** (2.0 * float(torch.rand((), generator=draw)) - 1.0)
        with torch.no_grad():
            for value in layer.parameters():
                value.copy_(size * torch.randn(value.shape, generator=draw, dtype=torch.float64))
            if whole(0, 3) == 0:
                layer.weight.abs_()
            if whole(0, 19) == 0:
                layer.weight.zero_()
        layers += [layer, ACTIVATIONS[one if whole(0, 1) else whole(0, len(ACTIVATIONS) - 1)]()]
    kept = layers if whole(0, 3) == 0 else layers[:-1]
    return nn.Sequential(*kept).eval(), torch.randn(5, widths[0], generator=draw, dtype=torch.float64)


def check_law(seed: int) -> None:
    model, x = random_net(seed)
    found = tangent_bounds(model, x)
    rows = tangent_sensitivity(model, x)
    assert found.exact == pytest.approx(float(rows.mean()), rel=1e-14)
    for bound in (found.path, found.absolute, found.theorem31):
        assert float(rows.max()) <= bound.value * ROOM, (seed, bound)
    for bound in (found.path_active, found.theorem32):
        assert found.exact <= bound.value * ROOM, (seed, bound)
    assert found.absolute.value <= found.path.value * ROOM
    assert found.path.value <= found.theorem31.value * ROOM
    assert found.path_active.value <= min(found.path.value, found.theorem32.value) * ROOM
    # Row by row, the forms with active units bound that row.
    for row, value in zip(x[:2], rows, strict=False):
        alone = tangent_bounds(model, row[None])
        assert float(value) <= min(alone.path_active.value, alone.theorem32.value) * ROOM, seed


@pytest.mark.parametrize("start", range(0, 150, 50))
def test_every_bound_holds_on_random_nets(start: int) -> None:
    for seed in range(start, start + 50):
        check_law(seed)


@pytest.mark.soak
def test_every_bound_holds_on_a_thousand_random_nets() -> None:
    for seed in range(1000, 2000):
        check_law(seed)


@pytest.mark.parametrize(
    ("widths", "value"),
    [([2, 2, 1], 8), ([2, 2, 2, 1], 40), ([3, 2, 2, 2], 120), ([2, 5, 5, 5, 1], 15000), ([3, 2], 6)],
)
def test_equal_weights_and_open_gates_attain_the_path_bounds(widths: list[int], value: int) -> None:
    found = tangent_bounds(ones(widths), torch.ones(3, widths[0]).double())
    assert found.exact == value and found.path.value == value and found.path_active.value == value
    assert found.absolute.value == pytest.approx(value, rel=1e-13)
    assert found.path.ratio == 1.0 and found.path.log10 == pytest.approx(math.log10(value))


def test_the_theorems_are_their_formulas() -> None:
    """3-4-2-5 with known largest weights: N_theta = 12 + 8 + 10 = 30, d_in = 3, k = 3."""
    net = ones([3, 4, 2, 5])
    with torch.no_grad():
        for layer, size in zip((0, 2, 4), (0.5, 2.0, 3.0), strict=True):
            net[layer].weight.fill_(size)
    x = torch.tensor([[1.0, 1, 1], [1, 1, -3], [2, 0, 1]]).double()  # the second row turns everything off
    found = tangent_bounds(net, x)
    path_weight = (2.0 * 3.0) ** 2
    assert found.theorem31.value == pytest.approx(30 * 3 * 5**4 * path_weight, rel=1e-14)
    moments = {1: (6**2 + 0 + 6**2) / 3, 2: (6**4 + 0 + 6**4) / 3}
    assert found.theorem32.value == pytest.approx(
        5 * 30 * 3 * path_weight * min(moments[1], moments[2] / 2**4), rel=1e-14
    )
    assert found.order == 1
    by_layer = [(2 * 3) ** 2 * 4 * 2**2, (0.5 * 3) ** 2 * 4 * 2, (0.5 * 2) ** 2 * 4**2 * 2]
    assert found.path.value == pytest.approx(3 * 5 * sum(by_layer), rel=1e-14)
    assert found.path_active.value == pytest.approx(3 * 5 * sum(by_layer) * 2 / 3, rel=1e-14)
    assert (found.active_mean, found.rows) == (4.0, 3)
    assert list(found.to_frame()["bound"])[:3] == ["path_active", "absolute", "path"]


def test_the_smaller_order_of_theorem_32_is_taken() -> None:
    x = torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]]).double()
    assert tangent_bounds(ones([1, 1, 1]), x).order == 1  # E T^2 = 1/4, E T^0 = 1
    assert tangent_bounds(ones([1, 1, 1]), x[:1]).order == 0


def test_a_bias_adds_nothing_and_a_leak_keeps_every_unit() -> None:
    bare, x = ones([2, 3, 2]), torch.ones(2, 2).double()
    biased = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double().eval()
    with torch.no_grad():
        for value in biased.parameters():
            value.fill_(1.0)
    plain, with_bias = tangent_bounds(bare, x), tangent_bounds(biased, x)
    assert [one.value for one in plain.bounds] == [one.value for one in with_bias.bounds]
    leaky = ones([2, 3, 2], lambda: nn.LeakyReLU(0.1))
    assert path_net(leaky, -x).active(-x).tolist() == [[3], [3]] and path_net(bare, -x).active(-x).tolist() == [
        [0],
        [0],
    ]
    steep = tangent_bounds(ones([2, 3, 2], lambda: nn.LeakyReLU(2.0)), -x)
    assert steep.exact == 4 * plain.exact and steep.path.value == 4 * plain.path.value  # attained again


def test_moments_of_the_normal_distribution() -> None:
    assert math.exp(log_absolute_moment(4, 3.0, 2.0)) == pytest.approx(345.0, rel=1e-13)
    for mean, deviation in ((3.0, 2.0), (0.0, 1.5), (20.0, 0.5), (-4.0, 3.0)):
        for order in (1, 2, 3, 5, 8):

            def density(t: float, m: float = mean, s: float = deviation, v: int = order) -> float:
                return abs(t) ** v * math.exp(-0.5 * ((t - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))

            ends = sorted({mean - 12 * deviation, 0.0, mean + 12 * deviation})
            area = sum(quad(density, a, b, limit=200)[0] for a, b in zip(ends, ends[1:], strict=False))
            assert math.exp(log_absolute_moment(order, mean, deviation)) == pytest.approx(area, rel=1e-8)
    assert log_absolute_moment(0, 5.0, 1.0) == 0.0 and log_absolute_moment(3, 0.0, 0.0) == -math.inf
    assert log_absolute_moment(3, 5.0, 0.0) == pytest.approx(3 * math.log(5.0))
    assert empirical_moment([0, 2, 2], 4) == Fraction(32, 3) and empirical_moment([0, 1], 0) == 1


@pytest.mark.parametrize("order", [40, 200, 400])
def test_moments_where_the_function_itself_overflows(order: int) -> None:
    mean, deviation = 4000, 30
    exact = sum(
        math.comb(order, 2 * j) * mean ** (order - 2 * j) * deviation ** (2 * j) * math.prod(range(1, 2 * j, 2))
        for j in range(order // 2 + 1)
    )
    assert log_absolute_moment(order, mean, deviation) == pytest.approx(math.log(exact), rel=1e-13)
    # Logarithms of moments are convex in the order.
    below, odd, above = (log_absolute_moment(order + step, mean, deviation) for step in (0, 1, 2))
    assert odd <= 0.5 * (below + above) and odd == pytest.approx(0.5 * (below + above), rel=1e-6)


def test_the_normal_form_of_theorem_32_is_scipys() -> None:
    entries, k, m, mu, s = 1000, 4, 0.3, 11.0, 2.5
    found = math.exp(log_theorem32_if_normal(entries, k, math.log(m), mu, s))

    def by_hand(q: int) -> float:
        moment = (2 * s**2) ** q * gamma(q + 0.5) / math.sqrt(math.pi) * hyp1f1(-q, 0.5, -(mu**2) / (2 * s**2))
        return float(entries * m**2 * q ** (-2 * q) * moment)

    assert found == pytest.approx(min(by_hand(2), by_hand(3)), rel=1e-12)


def test_bounds_beyond_float64_are_told_by_their_logarithm() -> None:
    depth, width = 120, 50
    model, x = ones([width] * (depth + 1)), torch.ones(2, width).double()
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(4.0)
    found = tangent_bounds(model, x)
    assert found.theorem31.value == math.inf and found.path.value == math.inf and found.absolute.value == math.inf
    expected = math.log10(depth * width**3) + 2 * (depth - 1) * math.log10(4.0 * width)
    assert found.theorem31.log10 == pytest.approx(expected, rel=1e-12)
    assert found.absolute.log10 == pytest.approx(found.path.log10, rel=1e-12)
    # Small weights: each product underflows, the bound is what is left over.
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1e-5 / 4.0)
    small = tangent_bounds(model, x)
    assert small.path.value > 0.0 or small.path.log10 < -300
    assert small.theorem31.log10 == pytest.approx(expected - 2 * (depth - 1) * math.log10(4e5), rel=1e-12)
    assert small.theorem32.log10 == pytest.approx(small.theorem32_gaussian.log10, rel=1e-9)


def test_zero_weights_and_single_precision() -> None:
    model, x = ones([2, 3, 2]), torch.ones(1, 2).double()
    with torch.no_grad():
        model[0].weight.zero_()
    dead = tangent_bounds(model, x)
    assert dead.exact == 0.0 and dead.path.ratio is None and dead.standard_error is None
    assert dead.theorem32_gaussian.value >= 0.0
    with torch.no_grad():
        model[2].weight.zero_()
    assert tangent_bounds(model, x).theorem31.log10 == -math.inf
    single = tangent_bounds(ones([2, 5, 5, 5, 1]).float(), torch.ones(2, 2))
    assert single.exact == 15000.0 == single.path.value


def printed(found: TangentBounds) -> dict[str, float]:
    assert all(one.holds == "as printed, not a bound" for one in found.as_printed)
    return {one.name.removesuffix("_as_printed"): one.value for one in found.as_printed}


def test_theorem_31_without_the_output_width_is_false() -> None:
    found = tangent_bounds(ones([1, 1, 5]), torch.ones(2, 1).double())
    assert found.exact == 10.0
    assert printed(found)["theorem31"] == 6.0 and printed(found)["theorem31_loose"] == 6.0
    assert found.theorem31.value == 150.0


def test_theorem_32_of_the_text_is_false() -> None:
    """All gates open, T = 2 without spread: N_theta d_in T^2 / k^(2k) = 12 * 4 / 16 = 3, and 8 is true."""
    found = tangent_bounds(ones([2, 2, 1]), torch.ones(4, 2).double())
    assert found.exact == 8.0 and printed(found)["theorem32_text"] == pytest.approx(3.0)


def test_theorem_32_of_the_appendix_is_false() -> None:
    """2-5-5-5-1, T = 15 in three rows of ten and 0 in the others."""
    x = torch.ones(10, 2).double()
    x[3:] *= -1.0
    found = tangent_bounds(ones([2, 5, 5, 5, 1]), x)
    assert found.exact == 4500.0
    assert printed(found)["theorem32_appendix"] < 0.6 * found.exact and printed(found)["theorem32_text"] < found.exact
    # The same with the population's deviation, by the printed formula term by term.
    mu, s, k = 4.5, 15 * math.sqrt(0.21), 4
    psi = float(hyp1f1(-k / 2, 0.5, -(mu**2) / (2 * s**2)))
    term = 65 * 2 * s ** (2 * (k - 1)) * 2 ** (k - 1) / k ** (2 * k) * gamma(k / 2) ** 2 / math.pi * psi**2
    assert float(term) < 0.5 * found.exact
    assert found.theorem32.value >= found.exact


def test_both_forms_of_theorem_32_lack_the_smallest_layer() -> None:
    """Shrinking the last matrix leaves what its own weights see, and takes the printed forms to 0."""
    x = torch.ones(4, 2).double()
    x[2:] *= -1.0
    model = ones([2, 5, 5, 1])
    with torch.no_grad():
        model[4].weight.mul_(1e-4)
    found = tangent_bounds(model, x)
    assert found.exact > 0.5 * 2 * 5 * 5**2  # |A_2|^2 over the active half
    assert max(printed(found)["theorem32_text"], printed(found)["theorem32_appendix"]) < 1e-3 * found.exact
    assert found.theorem32.value >= found.exact


def test_printed_forms_are_scipys() -> None:
    x = torch.tensor([[1.0, 1.0], [1.0, -2.0], [3.0, -1.0]]).double()
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double().eval()
    found = tangent_bounds(model, x)
    k, mu, s = 3, found.active_mean, found.active_deviation
    assert mu > 0 and s > 0  # where as many units are active at every row, both printed forms are 0
    product = math.prod(float(layer.weight.detach().abs().max()) for layer in model if isinstance(layer, nn.Linear))
    weights = 8 + 12 + 6
    for name, order in (("theorem32_text", k - 1), ("theorem32_appendix", k)):
        psi = float(hyp1f1(-order / 2, 0.5, -(mu**2) / (2 * s**2)))
        head = weights * 2 * s ** (2 * (k - 1)) * 2 ** (k - 1) / k ** (2 * k) * float(gamma(k / 2)) ** 2 / math.pi
        assert printed(found)[name] == pytest.approx(head * psi**2 * product**2, rel=1e-10)


def test_refusals_name_the_layer() -> None:
    x = torch.ones(2, 3).double()
    tied = nn.Linear(3, 3)
    tied_net = nn.Sequential(tied, nn.ReLU(), tied)
    for model, code, part in (
        (nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)), "PA150", "Tanh"),
        (nn.Sequential(nn.Linear(3, 2), nn.PReLU(), nn.Linear(2, 2)), "PA150", "PReLU"),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2)), "PA150", "BatchNorm1d"),
        (tied_net, "PA150", "shares weights"),
        (nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)), "PA211", "4"),
    ):
        with pytest.raises(InputRefused, match=f"{code}.*{part}"):
            tangent_bounds(model.double().eval(), x)
    broken = ones([3, 2, 1])
    with torch.no_grad():
        broken[0].weight[0, 0] = math.nan
    with pytest.raises(InputRefused, match="PA124"):
        tangent_bounds(broken, x)
    with pytest.raises(InputRefused, match="PA121"):
        tangent_bounds(ones([3, 2, 1]), x.float())


def test_bounds_of_single_precision_nets_are_attained_not_passed() -> None:
    """With equal weights every path counts as much as the largest: rounding of the mean alone would pass the bound."""
    for seed in range(40):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
        with torch.no_grad():
            for value in model.parameters():
                value.fill_(float(torch.rand(())))
        found = tangent_bounds(model, torch.rand(8, 5))
        assert found.path.value * (1 - 1e-12) <= found.exact <= found.path.value * (1 + 1e-15)
