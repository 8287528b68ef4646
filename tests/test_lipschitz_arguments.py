"""Wrong arguments of the bounds, each refused in one line."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from poisonaudit import lipschitz_bounds
from poisonaudit.errors import InputRefused, PoisonAuditError
from poisonaudit.lipschitz import exact_constant, lipschitz_penalty
from poisonaudit.lipschitz.local import CertifiedRadii, certified_radii, local_lipschitz
from poisonaudit.lipschitz.network import read_network


def sparse_net():
    net = small()
    net[0].weight = nn.Parameter(net[0].weight.detach().to_sparse())
    return net


def complex_net():
    net = small()
    net[0].weight = nn.Parameter(net[0].weight.detach() + 1j)
    return net


def small(activation=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), activation or nn.ReLU(), nn.Linear(8, 3)).eval()


def pictures():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()


def empty():
    net = nn.Linear(4, 1)
    net.weight = nn.Parameter(torch.zeros(0, 4))
    return net


X, Y = torch.rand(3, 4), torch.tensor([0, 1, 2])
FOUND = CertifiedRadii(torch.tensor([0.1, 0.2, 0.4, 0.5]), torch.ones(4, dtype=torch.bool), 1.0, 0.0)
REFUSED = {
    "seed": (lambda: lipschitz_bounds(small(), seed=2**70), "PA303.*62 bits"),
    "seed of a ball": (lambda: local_lipschitz(small(), X, 0.1, seed=2**70), "PA303.*62 bits"),
    "work limit": (lambda: lipschitz_bounds(small(), work_limit="x"), "PA314.*work_limit"),
    "shape of one number": (lambda: lipschitz_bounds(pictures(), input_shape=16), "PA304.*input_shape is 16"),
    "negative shape": (lambda: lipschitz_bounds(pictures(), input_shape=(1, -4, 4)), "PA304.*input_shape"),
    "broken shape": (lambda: lipschitz_bounds(pictures(), input_shape=(1, 4.5, 4)), "PA304.*input_shape"),
    "no outputs": (lambda: lipschitz_bounds(empty()), "PA130.*without any number"),
    "text for points": (lambda: lipschitz_bounds(pictures(), x="hello"), "PA230.*str"),
    "radius of text": (lambda: local_lipschitz(small(), X, "a"), "PA314.*radius"),
    "several radii": (lambda: local_lipschitz(small(), X, torch.rand(4)), "PA314.*radius"),
    "half a box": (lambda: local_lipschitz(small(), X, 0.1, box=(0.0,)), "PA304.*box is no pair"),
    "box of another shape": (
        lambda: local_lipschitz(small(), X, 0.1, box=(torch.zeros(3), torch.ones(3))),
        r"PA304.*box.*\(4,\)",
    ),
    "box without an end": (lambda: local_lipschitz(small(), X, 0.1, box=(None, 1.0)), "PA304.*box is no pair"),
    "box of NaN": (lambda: local_lipschitz(small(), X, 0.1, box=(math.nan, 1.0)), "PA304.*NaN"),
    "text in a ball": (lambda: local_lipschitz(small(), "abc", 0.1), "PA230.*str"),
    "nothing in a ball": (lambda: local_lipschitz(small(), None, 0.1), "PA230.*NoneType"),
    "no rows in a ball": (lambda: local_lipschitz(small(), X[:0], 0.1), r"PA230.*\(0, 4\)"),
    "complex rows": (lambda: local_lipschitz(small(), X + 1j, 0.1), "PA230.*complex"),
    "text to certify": (lambda: certified_radii(small(), "abc", Y), "PA230.*str"),
    "no rows to certify": (lambda: certified_radii(small(), X[:0], Y[:0]), r"PA230.*\(0, 4\)"),
    "text for labels": (lambda: certified_radii(small(), X, "abc"), "PA230.*labels"),
    "half a step": (lambda: certified_radii(small(), X, Y, steps=1.5), "PA304.*steps is 1.5"),
    "no step": (lambda: certified_radii(small(), X, Y, steps=0), "PA304.*steps is 0"),
    "too many steps": (lambda: certified_radii(small(), X, Y, steps=10**9), "PA304.*steps"),
    "largest of text": (lambda: certified_radii(small(), X, Y, largest="a"), "PA314.*largest"),
    "one radius of a curve": (lambda: FOUND.accuracy(0.1), "PA314.*list of radii"),
    "slopes in a list": (lambda: exact_constant([[[1.0]]], slopes=[(0, 1)]), "PA304.*slopes"),
    "largest without end": (lambda: certified_radii(small(), X, Y, largest=math.inf), "PA304 a ball of radius inf"),
    "boolean labels": (lambda: certified_radii(small(), X, Y > 0), "PA230.*labels are torch.bool"),
    "radii of a curve in text": (lambda: FOUND.accuracy("12"), "PA314.*list of radii"),
    "sparse points": (lambda: lipschitz_bounds(small(), x=X.to_sparse()), "PA230.*sparse_coo.*to_dense"),
    "sparse rows": (lambda: local_lipschitz(small(), X.to_sparse(), 0.1), "PA230.*sparse_coo.*to_dense"),
    "sparse labels": (lambda: certified_radii(small(), X, Y.to_sparse()), "PA230.*labels.*sparse_coo"),
    "sparse matrices": (lambda: lipschitz_bounds([X.to_sparse()]), "PA130 W_0 is a sparse_coo tensor"),
    "sparse layer": (lambda: read_network(sparse_net()), "PA130.*weight is a sparse_coo tensor"),
    "sparse weights to train": (lambda: lipschitz_penalty(sparse_net()), "PA130 0.weight is a sparse_coo tensor"),
    "complex points": (lambda: lipschitz_bounds(small(), x=X + 1j), "PA230 x is torch.complex64"),
    "margins in text": (lambda: lipschitz_penalty(small(), margins="a"), "PA314.*margins.*True or False"),
    "no values to train": (lambda: lipschitz_penalty(small().to("meta")), "PA130 0.weight has no values"),
    "complex weights to train": (
        lambda: lipschitz_penalty(complex_net()),
        "PA130 0.weight is torch.complex64",
    ),
    "no network to train": (lambda: lipschitz_penalty(None), "PA314.*model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_refused_in_one_line(name):
    call, text = REFUSED[name]
    with pytest.raises(PoisonAuditError) as caught:
        call()
    assert re.search(text, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_arrays_lists_and_numbers_in_tensors_are_taken():
    wanted = local_lipschitz(small(), X.double(), 0.1)[0].upper
    for x, radius in ((X.numpy(), np.float64(0.1)), (X.tolist(), 0.1), (X, torch.tensor(0.1, dtype=torch.float64))):
        assert local_lipschitz(small(), x, radius)[0].upper == wanted
    assert FOUND.accuracy(torch.tensor([0.15])) == [0.75]


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two():
    assert FOUND.median == pytest.approx(0.3)


@pytest.mark.parametrize("steps", [60, 100])
def test_many_steps_come_to_an_end(steps):
    net, x = small(), X[:1]
    label = net(x).argmax(1)
    coarse = certified_radii(net, x, label, steps=20).radii
    fine = certified_radii(net, x, label, steps=steps).radii
    assert 0 <= float(fine - coarse) <= 2.0**-20


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("largest", "steps"), [(1e-300, 100), (5e-324, 1), (5e-324, 100), (3e-323, 2), (3.5e-323, 10), (1e-310, 40)]
)
def test_radii_whose_least_step_underflows_come_to_an_end(largest, steps):
    net, x = small(), X[:1]
    found = certified_radii(net, x, net(x).argmax(1), largest=largest, steps=steps)
    assert found.radii.tolist() == [largest]


@pytest.mark.timeout(60)
def test_the_smallest_radii_are_bisected():
    # The label stays up to 1.2e-320, 2429 times the smallest number; the slack for underflow alone is more than that.
    net = nn.Sequential(nn.Linear(1, 2, bias=False)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    found = certified_radii(
        net, torch.full((1, 1), 1.2e-320, dtype=torch.float64), torch.tensor([0]), largest=1e-318, steps=100
    )
    assert 0.0 <= float(found.radii) <= 1.2e-320


class Own(nn.Module):
    def __init__(self, body):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.first, self.last = body, nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.body(torch.relu(self.first(x))))


@pytest.mark.parametrize(
    "body",
    [
        lambda h: h * math.inf,
        lambda h: h * math.nan,
        lambda h: h + math.inf,
        lambda h: h + torch.full((4,), math.nan),
        lambda h: functional.linear(h, torch.full((4, 4), math.nan)),
        lambda h: functional.leaky_relu(h, math.nan),
    ],
)
def test_constants_that_are_no_numbers_are_refused(body):
    with pytest.raises(InputRefused, match="PA130.*(NaN|infinit)"):
        lipschitz_bounds(Own(body).eval(), input_shape=(4,))


@pytest.mark.parametrize(
    "layer", [nn.LeakyReLU(math.nan), nn.ELU(math.nan), nn.Softplus(math.nan), nn.Softplus(0.0), nn.Softplus(math.inf)]
)
def test_settings_that_are_no_numbers_are_refused(layer):
    for ask in (lambda: lipschitz_bounds(small(layer)), lambda: lipschitz_penalty(small(layer))):
        with pytest.raises(InputRefused, match="PA130.*(NaN|beta)"):
            ask()


def test_a_penalty_of_weights_without_values_is_refused():
    net = small()
    nn.init.constant_(net[0].weight, math.nan)
    with pytest.raises(InputRefused, match="PA124"):
        lipschitz_penalty(net)


@pytest.mark.parametrize("beta", [1e-9, 1.0, -1.0])
def test_radii_count_the_jump_of_softplus(beta):
    jump, place = 2e-9 / abs(beta), 20.0 / beta
    x = torch.tensor([[place - math.copysign(0.01 * jump, beta)]], dtype=torch.float64)
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Softplus(beta, 20.0), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
        net[2].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]) * math.copysign(1.0, beta))
        net[2].bias.zero_()
        net[2].bias[0] = 0.4 * jump - float(net(x)[0, 0])
        beyond = x + math.copysign(0.02 * jump, beta)
        assert (int(net(x).argmax()), int(net(beyond).argmax())) == (0, 1)
    radius = float(certified_radii(net, x, torch.tensor([0]), largest=jump, steps=10).radii)
    assert radius <= 0.02 * jump


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(8, 2)

    def forward(self, x):
        h = functional.relu(input=functional.linear(input=x, weight=self.a.weight, bias=self.a.bias))
        k = torch.add(input=h, other=torch.mul(input=h, other=2.0))
        return self.b(torch.cat(tensors=[h, torch.flatten(input=k, start_dim=1)], dim=1))


class Functions(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.slope, self.conv = nn.BatchNorm2d(2), nn.PReLU(2), nn.Conv2d(1, 2, 3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def layers(self):
        return nn.Sequential(self.conv, self.norm, self.slope, nn.LogSigmoid(), nn.Flatten()).eval()

    def forward(self, x):
        n = self.norm
        h = functional.batch_norm(self.conv(x), n.running_mean, n.running_var, n.weight, bias=n.bias, eps=n.eps)
        return functional.logsigmoid(functional.prelu(h, self.slope.weight)).flatten(1)


def test_functions_with_keywords_alone_are_read():
    net = Keywords().eval()
    bounds = lipschitz_bounds(net, input_shape=(4,))
    assert bounds.lower <= bounds.certified < math.inf


def test_normalisation_slopes_and_logsigmoid_count_as_functions_too():
    net, x = Functions().eval(), torch.rand(2, 1, 5, 5)
    assert lipschitz_bounds(net, x=x).certified == lipschitz_bounds(net.layers(), x=x).certified
