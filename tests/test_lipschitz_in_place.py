"""Operations that overwrite a tensor: read as they run, or refused; and networks that are not what they trace to."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.lipschitz import lipschitz_bounds
from poisonaudit.lipschitz.local import LARGEST_RADIUS, certified_radii, local_lipschitz


class Own(nn.Module):
    """One Linear, one ReLU in place, one parameter; `body` is the forward."""

    def __init__(self, body):
        super().__init__()
        torch.manual_seed(0)
        self.line, self.relu, self.drop = nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Dropout()
        self.scale, self.body, self.calls = nn.Parameter(torch.ones(3)), body, 0

    def forward(self, x):
        return self.body(self, x)


def result_unused(net, x):
    h = net.line(x)
    h.mul_(3.0)
    return h


def input_read_after_relu(net, x):
    h = net.line(x)
    return net.relu(h) + h


def another_name(net, x):
    a = net.line(x)
    b = a
    b *= 3.0
    return a


def through_a_view(net, x):
    a = net.line(x)
    c = a.view(-1, 3)
    a += 1.0
    return c


def by_position(net, x):
    a = net.line(x)
    return F.leaky_relu(a, 0.5, True) + a


def by_keyword(net, x):
    a = net.line(x)
    return F.relu(a, inplace=True) + a


def into_a_given_tensor(net, x):
    a = net.line(x)
    torch.add(a, 1.0, out=a)
    return a


def through_dropout(net, x):
    a = net.line(x)
    net.drop(a).mul_(2.0)
    return a


def one_column(net, x):
    a = net.line(x)
    a[:, 0] = 1.0
    return a


def own_parameter(net, x):
    net.scale.detach().mul_(2.0)
    return net.line(x) * net.scale


@pytest.mark.parametrize(
    "body",
    [
        result_unused, input_read_after_relu, another_name, through_a_view, by_position, by_keyword,
        into_a_given_tensor, through_dropout, one_column, own_parameter,
    ],
)  # fmt: skip
def test_what_is_overwritten_and_read_again_is_refused(body):
    net = Own(body).eval()
    for ask in (lipschitz_bounds, lambda each: certified_radii(each, torch.zeros(1, 3), torch.tensor([0]))):
        with pytest.raises(InputRefused, match="PA130") as refusal:
            ask(net, **({"input_shape": (3,)} if ask is lipschitz_bounds else {}))
        assert "in place" in str(refusal.value) or "belongs to the network" in str(refusal.value)


def returned(net, x):
    return net.line(x).mul_(3.0)


def residual(net, x):
    h = net.relu(net.line(x))
    out = net.line(h)
    out += h
    return net.relu(out)


def read_before(net, x):
    h = net.line(x)
    k = 2.0 * h
    h.relu_()
    return k


def with_sizes(net, x):
    h = net.line(x)
    rows = h.shape[0]
    return net.relu(h).view(rows, -1)


@pytest.mark.parametrize("body", [returned, residual, read_before, with_sizes])
def test_what_is_overwritten_and_not_read_again_is_read_as_it_runs(body):
    net = Own(body).eval()
    bounds = lipschitz_bounds(net, input_shape=(3,))
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(1)) * 4 - 2
    steepest = max(
        float(torch.autograd.functional.jacobian(net, point[None])[0, :, 0].abs().sum(1).max()) for point in points
    )
    assert steepest <= bounds.certified * (1 + 1e-5)
    assert bounds.certified <= 1.5 * steepest


def counting(net, x):
    net.calls += 1
    return net.line(x) * float(net.calls)


def test_a_forward_with_a_state_is_refused():
    with pytest.raises(InputRefused, match="something else than its operations"):
        lipschitz_bounds(Own(counting).eval(), input_shape=(3,))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.line = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.Linear(16, 3)

    def forward(self, x):
        h = F.conv2d(x, self.conv.weight, self.conv.bias, 2, padding=1, groups=2)
        return F.linear(torch.relu(h).flatten(1), self.line.weight, bias=self.line.bias)


def test_functions_with_weights_count_like_layers():
    torch.manual_seed(0)
    net = Functional().eval()
    layers = nn.Sequential(net.conv, nn.ReLU(), nn.Flatten(), net.line)
    for norm in ("linf", "l1"):
        one, other = (lipschitz_bounds(each, norm, input_shape=(2, 4, 4)) for each in (net, layers))
        assert (one.k5, one.certified) == (other.k5, other.certified)


def test_networks_without_activations_have_lower_bounds():
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3)).eval()
    x = torch.rand(2, 1, 8, 8)
    assert 0 < lipschitz_bounds(pooled, x=x).lower <= lipschitz_bounds(pooled, x=x).certified
    found = local_lipschitz(pooled, x[:1], 0.1)[0]
    assert 0 < found.lower <= found.upper
    assert lipschitz_bounds(nn.Sequential(nn.MaxPool2d(2)), x=x).lower == 1.0


def test_radii_labels_boxes_and_matrices():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.rand(2, 3)
    for radius in (float("inf"), 1e300, -1.0, float("nan")):
        with pytest.raises(UsageError, match="PA304"):
            local_lipschitz(net, x, radius)
    far = local_lipschitz(net, x[:1], LARGEST_RADIUS, search_work=0)[0]
    assert far.upper >= lipschitz_bounds(net).lower
    with pytest.raises(UsageError, match="PA304.*empty"):
        local_lipschitz(net, x, 0.1, box=(1.0, 0.0))
    with pytest.raises(InputRefused, match="from 0 to 5, the network has 2 outputs"):
        certified_radii(net, x, torch.tensor([0, 5]))
    with pytest.raises(InputRefused, match="PA230.*one output"):
        certified_radii(nn.Sequential(nn.Linear(3, 1)), x, torch.tensor([0, 0]))
    matrices = [layer.weight.detach() for layer in (net[0], net[2])]
    found = certified_radii(matrices, x, torch.zeros(2, dtype=torch.long))
    assert found.radii.shape == (2,)
    with pytest.raises(InputRefused, match="PA230"):
        local_lipschitz(matrices, torch.rand(2, 5), 0.1)
