"""Ranges, local constants and certified radii: against sampled and attacked inputs, closed forms and rationals."""

from __future__ import annotations

import decimal
import itertools
import math
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from torch import nn

from poisonaudit.data import load_data
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.lipschitz import certified_radii, local_lipschitz, ranges
from poisonaudit.lipschitz.activations import activation_of
from poisonaudit.lipschitz.ranges import activation_ranges
from poisonaudit.lipschitz.reading import read_graph

ACTIVATIONS = [
    nn.ReLU(), nn.LeakyReLU(0.1), nn.LeakyReLU(2.0), nn.PReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Hardsigmoid(),
    nn.Softshrink(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.ELU(), nn.ELU(2.0),
    nn.SELU(), nn.CELU(0.5), nn.Hardswish(), nn.Softplus(), nn.Softsign(), nn.LogSigmoid(), nn.Tanhshrink(),
]  # fmt: skip


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=str)
def test_slopes_and_values_over_intervals(layer):
    activation = activation_of(layer, type(layer))
    generator = torch.Generator().manual_seed(0)
    ends = 8.0 * torch.rand(400, 2, generator=generator, dtype=torch.float64) - 4.0
    ends[:100] *= 0.1
    ends[100:120] = 0.0
    low, high = ends.amin(1), ends.amax(1)
    low[120:140] = 0.0
    high[120:140] = high[120:140].abs()
    share = torch.linspace(0.0, 1.0, 201, dtype=torch.float64)[:, None]
    z = torch.minimum(torch.maximum(low + share * (high - low), low), high)
    least, most = activation.slope_range(low, high)
    slopes = activation.slopes(z)
    off = torch.ones_like(z, dtype=torch.bool)
    for kink in activation.kinks:
        off &= (z - kink).abs() > 1e-9
    assert bool(((slopes >= least) & (slopes <= most) | ~off).all())
    # Tight: between the sampled slopes and the range little is left, but where the interval is a kink.
    wide = (high - low) > 1e-6
    for kink in activation.kinks:
        wide &= ((low - kink).abs() > 1e-6) & ((high - kink).abs() > 1e-6)
    found = torch.where(off, slopes, math.inf).amin(0), torch.where(off, slopes, -math.inf).amax(0)
    assert float((found[0] - least)[wide].max()) < 0.1 and float((most - found[1])[wide].max()) < 0.1
    bottom, top = activation.image(low, high)
    values = activation.module(z)
    assert bool(((values >= bottom) & (values <= top)).all())
    centre = low + 0.37 * (high - low)
    first, last = activation.chord_range(centre, low, high)
    chords = (values - activation.module(centre)) / (z - centre)
    usable = (z - centre).abs() > 1e-6
    assert bool(((chords >= first - 1e-9) & (chords <= last + 1e-9) | ~usable).all())
    if activation.kinks == (0.0,) and activation.piecewise_linear:
        exact = torch.where(usable, chords, math.inf).amin(0), torch.where(usable, chords, -math.inf).amax(0)
        assert float((exact[0] - first)[wide].max()) < 0.02 and float((last - exact[1])[wide].max()) < 0.02


def exact_gelu_tanh(z):
    inner = Decimal(2 / math.pi).sqrt() * (z + Decimal("0.044715") * z**3)
    return z / (1 + (-2 * inner).exp())


def exact_tanhshrink(z):
    return z - 1 + 2 / (1 + (2 * z).exp())


SMALL, EXTREME = nn.CELU(0.3), nn.CELU(1e300)
EXACT = [
    # math.erfc is off by some 1e-15 of the value; erf alone by all of it.
    (nn.GELU(), lambda z: z / 2 * Decimal(math.erfc(-float(z) / math.sqrt(2))), (-8.4, -8.375, -7.5, -6.0, 1.0)),
    (nn.GELU("tanh"), exact_gelu_tanh, (-9.0, -7.152, -6.9, -6.3, -1.0, 2.0)),
    (nn.Tanhshrink(), exact_tanhshrink, (1e-8, 1e-4, -1e-3, 0.01, -0.5, 30.0)),
    (nn.Softplus(7.3), lambda z: (1 + (Decimal(7.3) * z).exp()).ln() / Decimal(7.3), (-90.0, -73.79, -0.1, 1.0)),
    (nn.Softplus(0.3), lambda z: (1 + (Decimal(0.3) * z).exp()).ln() / Decimal(0.3), (-2000.0, -669.2, -660.1, 5.0)),
    (SMALL, lambda z: Decimal(0.3) * ((z / Decimal(0.3)).exp() - 1) if z < 0 else z, (-3.0, -1e-9, 2.0)),
    (EXTREME, lambda z: z, (-1.7e-10, -3.3e-12)),  # z / alpha is subnormal
    (nn.Softplus(1e-300), lambda z: (Decimal(1e-300) * z).exp() * Decimal(1e300), (-1e303,)),
    (nn.LeakyReLU(1e-200), lambda z: z * Decimal(1e-200), (-1e-200, -3e-120)),
]


@pytest.mark.parametrize(
    ("layer", "function", "places"),
    EXACT,
    ids=lambda value: "" if callable(value) and not isinstance(value, nn.Module) else str(value)[:30],
)
def test_ranges_hold_exact_values_where_the_library_cancels_or_underflows(layer, function, places):
    activation, lost = activation_of(layer, type(layer)), 0
    with decimal.localcontext(prec=500):
        for place in places:
            z = torch.full((1,), place, dtype=torch.float64)
            value = function(Decimal(place))
            low, high = activation.image(z, z)
            assert Decimal(float(low)) <= value <= Decimal(float(high)), (place, value)
            lost += abs(value - Decimal(float(activation.module(z)))) > abs(value) * Decimal(64 * 2.0**-53)
            # No wider than 64 roundings of the pre-activation and 256 of the value, with room.
            room = 1e-13 * (abs(place) + abs(float(value))) + 1e-300
            assert float(high - low) <= room or isinstance(layer, nn.CELU | nn.Softplus)
            if abs(place) > 1e4 or layer == EXTREME:
                continue  # cannot be run in single precision
            graph = read_graph(nn.Sequential(nn.Identity(), layer), (1,))
            found = activation_ranges(graph, z, 1e-300)
            assert Decimal(float(found.low[graph.output])) <= value <= Decimal(float(found.high[graph.output]))
            for form in (found.deviation, found.values):
                assert abs(Decimal(float(form.centre)) - value) <= Decimal(float(form.radius()))
    assert lost or layer == SMALL


@pytest.mark.parametrize(
    ("layer", "place", "threshold"),
    [(nn.GELU(), -8.4, -4e-16), (nn.GELU("tanh"), -6.9, None), (nn.Tanhshrink(), 0.001, None)],
    ids=str,
)
@pytest.mark.parametrize("scale", [1.0, 1e16])
def test_radii_hold_for_torch_where_the_activation_cancels(layer, place, threshold, scale):
    x = torch.tensor([[place]], dtype=torch.float64)
    beside = 1e-16 if isinstance(layer, nn.GELU) else 1e-18
    shifts = (beside, -beside) if threshold is None else (threshold - float(layer(x)),)
    for shift in shifts:
        net = nn.Sequential(nn.Linear(1, 1), layer, nn.Linear(1, 2)).double().eval()
        with torch.no_grad():
            net[0].weight.fill_(1.0)
            net[0].bias.zero_()
            net[2].weight.copy_(torch.tensor([[scale], [0.0]]))
            net[2].bias.copy_(torch.tensor([0.0, scale * (float(layer(x)) + shift)]))
            label = net(x).argmax(1)
            radius = float(certified_radii(net, x, label, largest=0.1, steps=40).radii)
            points = x + radius * torch.linspace(-1.0, 1.0, 20001, dtype=torch.float64)[:, None]
            assert bool((net(points).argmax(1) == label).all()), radius


def test_radii_of_gelu_are_as_large_as_the_margin_allows():
    net = nn.Sequential(nn.Linear(1, 1), nn.GELU(), nn.Linear(1, 2)).double().eval()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[1.0], [0.0]]))
        net[2].bias.copy_(torch.tensor([0.0, -1e-9]))
    x = torch.tensor([[-7.0]], dtype=torch.float64)
    points = torch.linspace(-7.0, -6.0, 100001, dtype=torch.float64)[:, None]
    crossing = float(points[net(points).argmax(1) == 1].min()) + 7.0
    radius = float(certified_radii(net, x, torch.tensor([0]), largest=1.0, steps=20).radii)
    assert 0.7 * crossing < radius <= crossing


class Pooled(nn.Module):
    shape = (1, 6, 6)

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.pool, self.last = nn.MaxPool2d(2, stride=1), nn.Linear(75, 4)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        hidden = torch.relu(hidden + self.second(hidden))
        return self.last(self.pool(hidden).flatten(1))


def dense(activation, seed=0, widths=(5, 8, 7, 3)):
    torch.manual_seed(seed)
    layers = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), activation]
    return nn.Sequential(*layers[:-1]).double().eval()


def corners(centre, radius, count, generator):
    """Random points and corners of a ball."""
    signs = 2.0 * torch.rand(count, *centre.shape, generator=generator, dtype=torch.float64) - 1.0
    return centre + radius * torch.cat([signs, signs.sign()])


@pytest.mark.parametrize("radius", [0.0, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize(
    "layer", [nn.ReLU(), nn.LeakyReLU(0.2), nn.Hardtanh(), nn.Tanh(), nn.GELU(), "pooled"], ids=str
)
def test_ranges_hold_every_value(layer, radius):
    generator = torch.Generator().manual_seed(3)
    if layer == "pooled":
        torch.manual_seed(0)
        model, shape = Pooled().double().eval(), Pooled.shape
    else:
        model, shape = dense(layer), (5,)
    graph = read_graph(model, shape)
    centre = torch.randn(shape, generator=generator, dtype=torch.float64)
    found = activation_ranges(graph, centre, radius)
    points = torch.cat([corners(centre, radius, 300, generator), centre[None]])
    for place, values in enumerate(graph.values(points)):
        if place in found.low:
            assert bool(((values >= found.low[place]) & (values <= found.high[place])).all())
            if radius == 0.0:
                assert float((found.high[place] - found.low[place]).max()) < 1e-12
    # Points outside a box do not count.
    boxed = activation_ranges(graph, centre, radius, (centre - 0.01, centre + 0.02))
    inside = points.clamp(centre - 0.01, centre + 0.02)
    for place, values in enumerate(graph.values(inside)):
        if place in boxed.low:
            assert bool(((values >= boxed.low[place]) & (values <= boxed.high[place])).all())
            assert bool((boxed.high[place] <= found.high[place] + 1e-12).all())


def test_the_three_ways_each_count(monkeypatch):
    """Without columns for the relaxation's errors ranges are wider, and still hold."""
    model, centre = dense(nn.ReLU(), 1, (6, 12, 12, 12, 3)), torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)
    graph = read_graph(model, (6,))
    full = activation_ranges(graph, centre, 0.3)
    monkeypatch.setattr(ranges, "COLUMN_ENTRIES", 6 * 12)
    less = activation_ranges(graph, centre, 0.3)
    points = corners(centre, 0.3, 2000, torch.Generator().manual_seed(0))
    outputs = graph.values(points)[-1]
    assert bool(((outputs >= less.low[graph.output]) & (outputs <= less.high[graph.output])).all())
    width = [float((each.high[graph.output] - each.low[graph.output]).sum()) for each in (full, less)]
    assert width[0] < width[1]


def exact_outputs(model, point):
    """A ReLU net in rational numbers."""
    values = [Fraction(float(number)) for number in point]
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.detach().tolist(), layer.bias.detach().tolist()
            values = [
                sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(b))
                for row, b in zip(weight, bias, strict=True)
            ]
        else:
            values = [max(value, Fraction(0)) for value in values]
    return values


def test_ranges_hold_exact_values_at_tiny_radii():
    """At radius 0 only rounding is left: the rational value lies inside, though float64's own often differs from it."""
    differs = 0
    for seed in range(40):
        model = dense(nn.ReLU(), seed, (4, 6, 6, 6, 2))
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        graph = read_graph(model, (4,))
        centre = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = activation_ranges(graph, centre, 0.0)
        computed = graph.values(centre[None])[-1][0]
        for number, value in enumerate(exact_outputs(model, centre)):
            assert Fraction(float(found.low[graph.output][number])) <= value
            assert value <= Fraction(float(found.high[graph.output][number]))
            differs += value != Fraction(float(computed[number]))
    assert differs > 40


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("kind", ["relu", "gelu", "pooled"])
def test_local_constants_hold_quotients_of_differences(kind, norm):
    generator = torch.Generator().manual_seed(5)
    if kind == "pooled":
        torch.manual_seed(1)
        model, shape = Pooled().double().eval(), Pooled.shape
    else:
        model, shape = dense(nn.ReLU() if kind == "relu" else nn.GELU(), 2), (5,)
    centre = torch.randn(shape, generator=generator, dtype=torch.float64)
    for radius in (0.01, 0.3):
        (found,) = local_lipschitz(model, centre[None], radius, norm, search_work=2e6)
        assert 0 < found.lower <= found.upper * (1 + 1e-9)
        first, second = (corners(centre, radius, 200, generator) for _ in range(2))
        order = math.inf if norm == "linf" else 1
        change = torch.linalg.vector_norm(model(first) - model(second), ord=order, dim=1)
        distance = torch.linalg.vector_norm((first - second).flatten(1), ord=order, dim=1)
        assert bool((change <= found.upper * distance * (1 + 1e-9)).all())
    # At a tiny radius the constant is the Jacobian's norm.
    (tiny,) = local_lipschitz(model, centre[None], 1e-9, norm, search_work=1e5)
    if (kind, norm) == ("pooled", "l1"):
        # Read backwards, pooling starts anew whatever its winners are.
        assert tiny.lower < tiny.upper
    else:
        assert tiny.upper == pytest.approx(tiny.lower, rel=1e-5)


def test_local_constants_grow_with_the_ball_and_stay_below_the_global_one():
    model = dense(nn.ReLU(), 4, (5, 9, 9, 3))
    from poisonaudit import lipschitz_bounds

    centre = torch.zeros(1, 5, dtype=torch.float64)
    found = [local_lipschitz(model, centre, radius, search_work=0)[0].upper for radius in (0.0, 0.05, 0.2, 100.0)]
    assert all(before <= after * (1 + 1e-9) for before, after in itertools.pairwise(found))
    assert found[-1] <= lipschitz_bounds(model, tune=False).certified * (1 + 1e-9)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)).double()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    x, y = digits.x_train.double(), digits.y_train
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


def attacked(model, row, label, radius, generator, steps=60, starts=4):
    """Smallest margin of the label that projected sign steps find in the ball."""
    best = math.inf
    points = corners(row, radius, starts, generator)
    for _ in range(steps):
        points.requires_grad_(True)
        logits = model(points)
        others = logits.index_fill(1, torch.tensor([label]), -math.inf).amax(1)
        margin = logits[:, label] - others
        best = min(best, float(margin.detach().min()))
        (gradient,) = torch.autograd.grad(margin.sum(), points)
        moved = points.detach() - 0.1 * radius * gradient.sign()
        points = torch.minimum(torch.maximum(moved, row - radius), row + radius)
    return best


def test_certified_radii_are_never_contradicted_by_an_attack(trained, digits):
    x, y = digits.x_test[:40].double(), digits.y_test[:40]
    found = certified_radii(trained, x, y, largest=0.5, steps=8)
    generator = torch.Generator().manual_seed(1)
    assert found.correct.sum() >= 34 and float(found.radii[found.correct].min()) > 0.0
    assert bool((found.radii[~found.correct] == 0).all())
    ratios = []
    for row, label, radius, right in zip(x, y.tolist(), found.radii.tolist(), found.correct.tolist(), strict=True):
        if right:
            assert attacked(trained, row, label, 0.999 * radius, generator) > 0.0
            # And they are of use: not far beyond, an attack often succeeds.
            ratios.append(attacked(trained, row, label, 3.0 * radius, generator) < 0.0)
    assert sum(ratios) > 0.6 * len(ratios)
    curve = found.accuracy([0.0, 0.02, 0.05, 0.5])
    assert curve[0] == pytest.approx(float(found.correct.double().mean()))
    assert curve == sorted(curve, reverse=True)
    assert 0 < found.median < 0.5


def test_a_linear_classifier_has_its_margin_as_radius():
    model = nn.Linear(3, 2).double()
    x = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    logits = model(x)[0]
    label = int(logits.argmax())
    difference = model.weight[label] - model.weight[1 - label]
    radius = float(((logits[label] - logits[1 - label]) / difference.abs().sum()).detach())
    found = certified_radii(model, x, torch.tensor([label]), largest=2 * radius, steps=30)
    assert float(found.radii[0]) == pytest.approx(radius, rel=1e-6)
    assert float(found.radii[0]) <= radius
    wrong = certified_radii(model, x, torch.tensor([1 - label]))
    assert wrong.median == 0.0 and not wrong.correct.any()


def test_a_box_makes_radii_larger(trained, digits):
    x, y = digits.x_test[:6].double(), digits.y_test[:6]
    free = certified_radii(trained, x, y, largest=0.3, steps=7)
    boxed = certified_radii(trained, x, y, largest=0.3, steps=7, box=(0.0, 1.0))
    assert bool((boxed.radii >= free.radii).all()) and bool((boxed.radii > free.radii).any())


def test_input_that_does_not_fit_is_refused(trained):
    rows = torch.zeros(2, 64)
    for call, code in (
        (lambda: local_lipschitz(trained, rows, -1.0), "PA304"),
        (lambda: local_lipschitz(trained, rows, 0.1, "l2"), "PA301"),
        (lambda: certified_radii(trained, rows, torch.tensor([0, 1]), largest=0.0), "PA304"),
    ):
        with pytest.raises(UsageError, match=code):
            call()
    for call, code in (
        (lambda: local_lipschitz(trained, rows * math.nan, 0.1), "PA230"),
        (lambda: local_lipschitz(trained, rows[0], 0.1), "PA230"),
        (lambda: certified_radii(trained, rows, torch.tensor([0, 11])), "PA230"),
        (lambda: certified_radii(trained, rows, torch.tensor([0.0, 1.0])), "PA230"),
        (lambda: local_lipschitz(trained, torch.zeros(2, 5), 0.1), "PA130"),
    ):
        with pytest.raises(InputRefused, match=code):
            call()
