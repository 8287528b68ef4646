"""Every activation the bounds take: slopes, kinks, folding of batch normalisation, enumeration and true Jacobians."""

from __future__ import annotations

import copy
import decimal
import math
from decimal import Decimal

import pytest
import torch
from lipschitz_references import draw, enumerate_k, norm_of
from torch import nn

from poisonaudit.errors import InputRefused
from poisonaudit.layers import SLOPES
from poisonaudit.lipschitz import UPPER_BOUNDS, lipschitz_bounds, local_lipschitz
from poisonaudit.lipschitz.activations import activation_of
from poisonaudit.lipschitz.dense_graph import graph_of
from poisonaudit.lipschitz.jacobians import smoothed_slopes
from poisonaudit.lipschitz.lower import attained_norms
from poisonaudit.lipschitz.network import read_network

TOLERANCE = 1 + 1e-10
LAYERS = [kind().eval() for kind in SLOPES] + [
    nn.GELU("tanh"),
    nn.LeakyReLU(2.0),
    nn.LeakyReLU(-0.5),
    nn.LeakyReLU(1.0),
    nn.PReLU(5, init=-0.3),
    nn.ELU(1.5),
    nn.ELU(-2.0),
    nn.CELU(0.3),
    nn.Hardtanh(-2.0, 0.5),
    nn.Softplus(3.0),
    nn.Softshrink(0.1),
]


def net(layer, seed=0):
    """5 neurons of `layer`, then 4 tanh neurons."""
    first, second, last = draw((3, 5, 4, 2), seed)
    model = nn.Sequential(nn.Linear(3, 5), layer, nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double().eval()
    generator = torch.Generator().manual_seed(seed + 100)
    for linear, matrix in zip((model[0], model[2], model[4]), (first, second, last), strict=True):
        linear.weight.data.copy_(matrix)
        linear.bias.data.copy_(torch.randn(len(matrix), generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("norm", ("linf", "l1", "l2"))
def test_bounds_hold_for_every_activation(layer, norm):
    model = net(layer)
    matrices = [model[i].weight.detach() for i in (0, 2, 4)]
    lower, upper = (list(ends) for ends in zip(SLOPES[type(layer)](model[1]), (0.0, 1.0), strict=True))
    constant = enumerate_k(matrices, norm, lower, upper)
    bounds = lipschitz_bounds(model, norm)
    assert bounds.exact == pytest.approx(constant, rel=1e-12)
    assert constant <= bounds.certified
    present = [name for name in UPPER_BOUNDS if getattr(bounds, name) is not None]
    assert set(UPPER_BOUNDS) - set(present) == ({"k6"} if norm == "l2" else set())
    assert all(constant <= getattr(bounds, name) * TOLERANCE for name in present)
    assert 0.05 * constant <= bounds.lower <= constant * TOLERANCE
    generator = torch.Generator().manual_seed(5)
    points = 3.0 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    moved = points + 0.1 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    order = {"linf": torch.inf, "l1": 1, "l2": 2}[norm]
    with torch.no_grad():
        change = torch.linalg.vector_norm(model(moved) - model(points), order, dim=1)
    assert bool((change <= bounds.certified * torch.linalg.vector_norm(moved - points, order, dim=1)).all())


class Celu(nn.Module):
    def __init__(self, alpha):
        super().__init__()
        self.alpha = alpha

    def forward(self, z):
        return torch.where(z > 0, z, self.alpha * torch.expm1(z / self.alpha))


def differentiable(model):
    """The same where torch 2.15 differentiates with 1/6 (Hardsigmoid) or 1/alpha (CELU) in float32."""
    twin = copy.deepcopy(model)
    for place, layer in enumerate(twin):
        if isinstance(layer, nn.CELU):
            twin[place] = Celu(layer.alpha)
        elif isinstance(layer, nn.Hardsigmoid):
            twin[place] = nn.Sequential(nn.Linear(5, 5), nn.Hardtanh(0.0, 1.0)).double()
            twin[place][0].weight.data.copy_(torch.eye(5, dtype=torch.float64) / 6.0)
            twin[place][0].bias.data.fill_(0.5)
    return twin


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_scores_are_norms_of_the_true_jacobian_off_the_kinks(layer):
    model = net(layer, seed=2)
    twin = differentiable(model)
    graph = graph_of(read_network(model))
    x = 2.0 * torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for norm in ("linf", "l1", "l2"):
        found = attained_norms(graph, norm, x)
        for point, value in zip(x, found, strict=True):
            jacobian = torch.autograd.functional.jacobian(lambda row: twin(row[None])[0], point)
            assert float(value) == pytest.approx(norm_of(jacobian, norm), rel=1e-12)


def sigmoid(z):
    return 1 / (1 + (-z).exp())


def tanh(z):
    return 2 * sigmoid(2 * z) - 1


def celu(alpha, scale=1):
    return lambda z: scale * z if z > 0 else scale * alpha * ((z / alpha).exp() - 1)


def elu(alpha, scale=1):
    return lambda z: scale * z if z > 0 else scale * alpha * (z.exp() - 1)


def gelu_tanh(z):
    return z * sigmoid(2 * (2 / Decimal(math.pi)).sqrt() * (z + Decimal("0.044715") * z**3))


FUNCTIONS = [
    (nn.Tanh(), tanh),
    (nn.Sigmoid(), sigmoid),
    (nn.GELU("tanh"), gelu_tanh),
    (nn.SiLU(), lambda z: z * sigmoid(z)),
    (nn.Mish(), lambda z: z * tanh((1 + z.exp()).ln())),
    (nn.ELU(0.7), elu(Decimal(0.7))),
    (nn.SELU(), elu(Decimal("1.6732632423543772848170429916717"), Decimal("1.0507009873554804934193349852946"))),
    (nn.CELU(0.7), celu(Decimal(0.7))),
    (nn.CELU(0.1), celu(Decimal(0.1))),
    (nn.CELU(3.3), celu(Decimal(3.3))),
    (nn.Softplus(0.3), lambda z: (1 + (Decimal(0.3) * z).exp()).ln() / Decimal(0.3)),
    (nn.Softsign(), lambda z: z / (1 + abs(z))),
    (nn.LogSigmoid(), lambda z: -(1 + (-z).exp()).ln()),
    (nn.Tanhshrink(), lambda z: z - tanh(z)),
    (nn.Hardswish(), lambda z: z * min(max(z + 3, 0), 6) / 6),
    (nn.Hardsigmoid(), lambda z: Decimal(min(max(z + 3, 0), 6)) / 6),
]


@pytest.mark.parametrize(
    ("layer", "function"),
    FUNCTIONS,
    ids=lambda value: "" if callable(value) and not isinstance(value, nn.Module) else str(value)[:30],
)
def test_derivatives_are_exact_but_for_a_few_roundings(layer, function):
    activation = activation_of(layer, type(layer))
    z = torch.tensor(
        [-36.94, -18.84, -9.3, -7.152, -4.2, -2.3, -1.0, -0.4, -1e-3, -1e-7, -1e-12]
        + [1e-12, 1e-5, 0.3, 0.9, 1.42, 2.6, 5.1, 7.2, 18.84, 36.94],
        dtype=torch.float64,
    )
    slopes = activation.slopes(z)
    least, most = activation.slope_range(z, z)
    lower, upper = activation.ends((1,))
    room = Decimal(6 * 2.0**-53 * max(1.0, float(upper)))
    step = Decimal("1e-30")
    with decimal.localcontext(prec=120):
        for number, place in enumerate(z.tolist()):
            exact = (function(Decimal(place) + step) - function(Decimal(place) - step)) / (2 * step)
            assert abs(Decimal(float(slopes[number])) - exact) <= room, place
            spare = Decimal("1e-50")
            assert Decimal(float(least[number])) - spare <= exact <= Decimal(float(most[number])) + spare, place


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.7, 1.3])
def test_local_constants_of_celu_lie_around_the_true_ones(alpha):
    model = nn.Sequential(nn.Linear(1, 1), nn.CELU(alpha), nn.Linear(1, 1)).double().eval()
    for linear in (model[0], model[2]):
        linear.weight.data.fill_(1.0)
        linear.bias.data.zero_()
    x = torch.tensor([[-1e-3]], dtype=torch.float64)
    (found,) = local_lipschitz(model, x, 1e-3 - 1e-12)
    # The slope at -2e-12, inside the ball.
    assert found.upper >= math.exp(-2e-12 / alpha)
    assert found.lower <= math.exp(-0.9e-12 / alpha)
    assert found.lower <= found.upper <= 1.0 + 1e-12
    bounds = lipschitz_bounds(model, x=-torch.rand(50, 1, generator=torch.Generator().manual_seed(0)) * 1e-6 - 1e-8)
    assert bounds.lower <= bounds.certified


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_derivatives_are_those_of_the_function(layer):
    activation = activation_of(layer, type(layer))
    step, width = 1e-6, 5
    z = torch.linspace(-25.0, 25.0, 5001, dtype=torch.float64)[:, None].expand(-1, width) + 0.00123
    for kink in activation.kinks:
        z = z[(z[:, 0] - kink).abs() > 2 * step]
    differences = (activation.module(z + step) - activation.module(z - step)) / (2 * step)
    slopes = activation.slopes(z)
    torch.testing.assert_close(slopes, differences, rtol=0, atol=3e-6)
    lower, upper = activation.ends((width,))
    assert bool(((lower <= slopes) & (slopes <= upper)).all())
    inner = z[::500].clone().requires_grad_(True)
    values, smoothed = activation.smoothed(inner * 1.0, torch.full((len(inner), 1), 1e-9, dtype=torch.float64))
    torch.testing.assert_close(values, activation.module(inner), rtol=0, atol=0)
    torch.testing.assert_close(smoothed, activation.slopes(inner), rtol=0, atol=1e-12)


KINKED = [layer for layer in LAYERS if activation_of(layer, type(layer)).kinks]


@pytest.mark.parametrize("layer", KINKED, ids=str)
def test_points_on_a_kink_do_not_count(layer):
    layer = nn.PReLU() if isinstance(layer, nn.PReLU) else layer
    model = nn.Sequential(nn.Linear(1, 1), layer).double()
    model[0].weight.data.fill_(1.0)
    model[0].bias.data.zero_()
    graph = graph_of(read_network(model))
    kinks = activation_of(layer, type(layer)).kinks
    beside = torch.tensor([[kink + side] for kink in kinks for side in (-1e-3, 1e-3)], dtype=torch.float64)
    on = torch.tensor([[kink] for kink in kinks], dtype=torch.float64)
    assert bool((attained_norms(graph, "linf", on) == -1.0).all())
    assert bool((attained_norms(graph, "linf", beside) >= 0.0).all())
    # The kinks that are listed are those of the function; the others show no jump.
    activation = activation_of(layer, type(layer))
    grid = torch.linspace(-30.0, 30.0, 60001, dtype=torch.float64)[:, None] + 0.000517
    jumps = (activation.slopes(grid)[1:] - activation.slopes(grid)[:-1]).abs() > 0.0045
    places = 0.5 * (grid[1:] + grid[:-1])[jumps]
    assert all(min(abs(float(place) - kink) for kink in kinks) < 2e-3 for place in places)


def test_a_constant_neuron_on_a_kink_counts():
    first = torch.zeros(2, 1)
    first[0] = 1.0
    for activation in (nn.ReLU(), nn.Hardtanh(0.0, 1.0)):
        model = nn.Sequential(nn.Linear(1, 2, bias=False), activation, nn.Linear(2, 1, bias=False)).double()
        model[0].weight.data.copy_(first)
        assert lipschitz_bounds(model, x=[[0.5]]).lower == pytest.approx(float(model[2].weight[0, 0].detach().abs()))


def test_the_search_follows_gradients_through_kinks():
    for layer in (nn.ReLU(), nn.Softshrink(0.5), nn.SELU(), nn.Hardswish()):
        graph = graph_of(read_network(net(layer)))
        points = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
        slopes, _ = smoothed_slopes(graph, points, width=0.3)
        (gradient,) = torch.autograd.grad(slopes[1].sum(), points)
        assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) > 0.0


def test_slopes_may_differ_between_neurons():
    matrices = draw((3, 4, 4, 2), 6)
    model = nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 2)).double()
    for index, matrix in zip((0, 2, 4), matrices, strict=True):
        model[index].weight.data.copy_(matrix)
    model[1].weight.data.copy_(torch.tensor([0.25, 1.0, -0.5, 3.0]))
    slopes = model[1].weight.detach()
    low, high = [slopes.clamp_max(1.0), 0.25], [slopes.clamp_min(1.0), 1.0]
    for norm in ("linf", "l1", "l2"):
        bounds = lipschitz_bounds(model, norm)
        constant = enumerate_k(matrices, norm, low, high)
        assert bounds.exact == pytest.approx(constant, rel=1e-12)
        assert bounds.certified >= constant
        for name in UPPER_BOUNDS:
            assert (value := getattr(bounds, name)) is None or constant <= value * TOLERANCE
        assert bounds.k5 <= bounds.k4 * TOLERANCE <= bounds.k1 * TOLERANCE**2
        assert bounds.k5 <= bounds.k3 * TOLERANCE <= bounds.k_star * TOLERANCE**2
    # The neuron of slope 1 everywhere is linear: as many choices as without it.
    assert lipschitz_bounds(model).exact < lipschitz_bounds(matrices_with_steeper(model)).exact


def matrices_with_steeper(model):
    model[1].weight.data[1] = 4.0
    return model


@pytest.mark.parametrize("affine", (True, False))
def test_batch_normalisation_is_folded(affine):
    generator = torch.Generator().manual_seed(3)
    norms = [nn.BatchNorm1d(width, affine=affine) for width in (3, 5, 5, 2)]
    for norm in norms:
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.1, 3.0, generator=generator)
        if affine:
            norm.weight.data.normal_(generator=generator)
            norm.bias.data.normal_(generator=generator)
    first, last = nn.Linear(3, 5), nn.Linear(5, 2)
    model = nn.Sequential(norms[0], first, norms[1], nn.Tanh(), norms[2], last, norms[3]).double().eval()
    network = read_network(model)
    assert [tuple(weight.shape) for weight in network.weights] == [(5, 3), (2, 5)]
    assert all(count > 0 for count in network.roundings)
    scales = [norm(torch.ones(1, norm.num_features, dtype=torch.float64)) for norm in norms]
    scales = [(one - norm(torch.zeros_like(one)))[0].detach() for norm, one in zip(norms, scales, strict=True)]
    expected = (
        scales[1][:, None] * first.weight.detach() * scales[0],
        scales[3][:, None] * last.weight.detach() * scales[2],
    )
    for found, wanted in zip(network.weights, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    bounds = lipschitz_bounds(model)
    plain = lipschitz_bounds(list(expected))
    for name in UPPER_BOUNDS:
        assert getattr(bounds, name) == pytest.approx(getattr(plain, name), rel=1e-10)
    x = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    for point, value in zip(x, attained_norms(graph_of(network), "linf", x), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda row: model(row[None])[0], point)
        assert float(value) == pytest.approx(norm_of(jacobian, "linf"), rel=1e-11)


def test_normalisations_without_a_neighbour_stand_alone():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
    network = read_network(model.double().eval())
    assert [tuple(weight.shape) for weight in network.weights] == [(3, 2), (3, 3), (1, 3)]
    assert torch.equal(network.weights[1], torch.diag(network.weights[1].diagonal()))
    # Products near underflow are not folded: the diagonal keeps its digits.
    tiny = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double().eval()
    tiny[0].weight.data.fill_(1e-200)
    tiny[1].weight.data.fill_(1e-150)
    assert len(read_network(tiny).weights) == 2
    assert lipschitz_bounds(tiny).certified > 0.0


def other_statistics():
    norm = nn.BatchNorm1d(2).eval()
    norm.running_var.fill_(-1.0)
    return nn.Sequential(nn.Linear(2, 2), norm)


REFUSED = {
    "(PReLU) has 3 slopes": nn.Sequential(nn.Linear(2, 2), nn.PReLU(3)),
    "slopes without limit": nn.Sequential(nn.Linear(2, 2), nn.CELU(-1.0)),
    "threshold of 5": nn.Sequential(nn.Linear(2, 2), nn.Softplus(3.0, 5.0)),
    "layer 1 (Dropout) is in train mode": nn.Sequential(nn.Linear(2, 2), nn.Dropout()),
    "layer 1 (BatchNorm1d) is in train mode": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
    "statistics of its batch": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval(),
    "takes 3 channels": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(3)).eval(),
    "variance that is not positive": other_statistics(),
    "RReLU": nn.Sequential(nn.Linear(2, 2), nn.RReLU()).eval(),
}


@pytest.mark.parametrize("text", REFUSED)
def test_layers_without_a_proof_are_refused_by_name(text):
    with pytest.raises(InputRefused) as caught:
        lipschitz_bounds(REFUSED[text])
    assert caught.value.code == "PA130"
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_are_left_as_they_are():
    model = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.1, inplace=True), nn.Linear(4, 2), nn.PReLU())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lipschitz_bounds(model)
    assert model[1].inplace and model.training and model[3].weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.float32
