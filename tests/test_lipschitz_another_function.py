"""Networks that do not compute what their operations say are refused, whatever makes them differ."""

import types

import pytest
import torch
from torch import nn
from torch.nn import functional

from poisonaudit import lipschitz_bounds
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.lipschitz import lipschitz_penalty
from poisonaudit.lipschitz.local import certified_radii, local_lipschitz
from poisonaudit.weight_noise import weight_noise


class Own(nn.Module):
    """In single precision, with a tensor that is neither parameter nor buffer: no copy in float64 runs."""

    def __init__(self, body):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
        self.fixed, self.calls, self.body = torch.randn(6, 6), 0, body

    def forward(self, x):
        return self.body(self, torch.relu(self.first(x)), x)


def drawn(net, h, x):
    return net.last(functional.linear(h, torch.randn(6, 6)))


def counting(net, h, x):
    net.calls += 1
    return net.last(functional.linear(h, net.fixed)) / max(0.001, 1 - 0.0001 * net.calls)


def rolled(net, h, x):
    return net.last(functional.linear(h - torch.roll(h, 1, 0), net.fixed))


def flipped(net, h, x):
    return net.last(functional.linear(h - h.flip(0), net.fixed))


def multiplied(net, h, x):
    return net.last(functional.linear(h, net.fixed)) * x.shape[0]


def failing(net, h, x):
    return net.last(functional.linear(h, net.fixed[:, :5]))


@pytest.mark.parametrize("body", [drawn, counting, rolled, flipped, multiplied])
def test_what_no_copy_shows_is_seen_on_the_network_itself(body):
    with pytest.raises(InputRefused, match="PA130.*(something else|from call to call)"):
        lipschitz_bounds(Own(body).eval(), input_shape=(6,))


def test_a_network_that_cannot_be_run_is_refused():
    with pytest.raises(InputRefused, match=r"PA130.*(cannot be run|cannot be applied|takes 5)"):
        lipschitz_bounds(Own(failing).eval(), input_shape=(6,))


def test_a_plain_tensor_in_single_precision_is_fine():
    net = Own(lambda net, h, x: net.last(functional.linear(h, net.fixed))).eval()
    state = torch.random.get_rng_state()
    bounds = lipschitz_bounds(net, input_shape=(6,))
    assert torch.equal(state, torch.random.get_rng_state())
    same = nn.Sequential(net.first, nn.ReLU(), nn.Linear(6, 6, bias=False), net.last)
    same[2].weight.data = net.fixed
    assert bounds.certified == lipschitz_bounds(same).certified


def small(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval().to(dtype)


def by_lambda(net):
    net.forward = lambda z: 7 * nn.Sequential.forward(net, z)
    return net


def by_method(net):
    net.forward = types.MethodType(lambda self, z: 7 * nn.Sequential.forward(self, z), net)
    return net


class Called(nn.Sequential):
    def __call__(self, x):
        return 7 * super().__call__(x)


class Cut(nn.Sequential):
    def __call__(self, x):
        return super().__call__(x.clamp(0.0, 1.0))


PATCHES = {
    "lambda": by_lambda,
    "method": by_method,
    "call": lambda net: Called(*net).eval(),
    "cut": lambda net: Cut(*net).eval(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("patch", PATCHES)
def test_a_root_that_is_patched_is_refused(patch, dtype):
    net, x = PATCHES[patch](small(dtype)), torch.rand(2, 4, dtype=dtype)
    for ask in (
        lambda: lipschitz_bounds(net),
        lambda: local_lipschitz(net, x, 0.1),
        lambda: certified_radii(net, x, torch.tensor([0, 1])),
        lambda: lipschitz_penalty(net),
    ):
        with pytest.raises(InputRefused, match="PA130"):
            ask()


def test_a_part_that_is_patched_is_read_as_it_runs():
    plain = small(torch.float64)
    inner = Called(plain[0], plain[1])
    net = nn.Sequential(inner, plain[2]).eval()
    x = torch.rand(1, 4, dtype=torch.float64)
    assert lipschitz_bounds(net, x=x).certified == pytest.approx(7 * lipschitz_bounds(plain).certified, rel=1e-9)
    steepest = torch.autograd.functional.jacobian(net, x)[0, :, 0].abs().sum(1).max()
    assert local_lipschitz(net, x, 1e-3)[0].upper >= float(steepest)
    with pytest.raises(InputRefused, match="PA130"):
        lipschitz_penalty(net)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_accepted(dtype):
    assert lipschitz_bounds(small(dtype)).certified > 0


def test_hooks_are_to_be_removed():
    net = nn.Sequential(nn.Conv2d(1, 1, 2), nn.Flatten()).eval()
    net[0].register_forward_hook(lambda module, given, found: 3 * found)
    with pytest.raises(InputRefused, match="PA130.*Remove the hooks"):
        lipschitz_bounds(net, input_shape=(1, 2, 2))


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_for_all_modules_are_to_be_removed(kind):
    net, x = small(torch.float64), torch.rand(2, 4, dtype=torch.float64)
    # It fires in whatever copies are compared with the network, so that no comparison can notice it.
    change = {
        "forward_hook": lambda module, given, found: 3 * found,
        "forward_pre_hook": lambda module, given: 3 * given[0],
    }
    handle = getattr(nn.modules.module, f"register_module_{kind}")(change[kind])
    try:
        for function in (lipschitz_bounds, lambda own: local_lipschitz(own, x, 0.1), lipschitz_penalty):
            with pytest.raises(InputRefused, match="PA130.*hooks"):
                function(net)
        assert weight_noise(net, x, draws=2).attrs["no_bound"]
    finally:
        handle.remove()
    assert lipschitz_bounds(net).certified > 0


def sized(net, h, x):
    return net.last(h * x.shape[0])


@pytest.mark.parametrize("body", [lambda net, h, x: net.last(h - torch.roll(h, 1, 0)), sized])
@pytest.mark.parametrize("bias", [1.0, 1e4, 1e6])
def test_large_biases_hide_nothing(body, bias):
    net = Own(body).eval()
    with torch.no_grad():
        net.last.bias.fill_(bias)
    with pytest.raises(InputRefused, match="PA130"):
        lipschitz_bounds(net, input_shape=(6,))
    plain = Own(lambda net, h, x: net.last(h)).eval()
    with torch.no_grad():
        plain.last.bias.fill_(bias)
    assert lipschitz_bounds(plain, input_shape=(6,)).certified > 0


@pytest.mark.parametrize("layer", [nn.PReLU(4), nn.BatchNorm1d(4)])
def test_rows_of_channels_are_no_vectors(layer):
    """On (channels, length) a layer of one number per channel does not act as it does on vectors."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), layer, nn.Linear(4, 4, bias=False)).double().eval()
    with torch.no_grad():
        for line in (net[0], net[2]):
            line.weight.zero_()[2, 2] = 1.0
        net[1].weight.copy_(torch.tensor([100.0, 1.0, 1.0, 1.0]))
    x = -torch.rand(2, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda row: net(row[None])[0].flatten(), x[0]).reshape(16, 16)
    steepest = float(jacobian.abs().sum(1).max())
    assert steepest > 99
    for found in (lipschitz_bounds(net, input_shape=(4, 4)), lipschitz_bounds(net, x=x)):
        assert steepest * (1 - 1e-12) <= found.certified <= 1.01 * steepest and found.lower <= found.certified
    (ball, _) = local_lipschitz(net, x, 0.1)
    assert steepest * (1 - 1e-12) <= ball.upper and ball.lower <= ball.upper
    # As vectors the third channel alone passes.
    assert lipschitz_bounds(net).certified == lipschitz_bounds(net, input_shape=(4,)).certified < 1.1
    with pytest.raises(InputRefused, match="PA130"):
        lipschitz_bounds(net, input_shape=(7,))


def test_local_bounds_take_rows_of_more_axes():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double().eval()
    x = torch.rand(2, 3, 4, dtype=torch.float64)
    together, alone = local_lipschitz(net, x, 0.05), local_lipschitz(net, x.reshape(6, 4), 0.05)
    for place, found in enumerate(together):
        # Its three vectors do not act on each other.
        assert found.upper == pytest.approx(max(each.upper for each in alone[3 * place : 3 * place + 3]), rel=0.5)
        assert found.lower <= found.upper


@pytest.mark.parametrize(
    "body",
    [
        lambda net, h, x: net.last(h)[:, 4:],
        lambda net, h, x: net.last(h).mean(5),
        lambda net, h, x: net.last(h * torch.ones(4)),
        lambda net, h, x: net.last(h + torch.ones(4)),
        lambda net, h, x: functional.linear(h, torch.ones(6)),
        lambda net, h, x: torch.cat([h, h], 9),
        lambda net, h, x: functional.hardtanh(h, 1.0, -1.0),
        lambda net, h, x: functional.gelu(h, approximate="x"),
        lambda net, h, x: functional.pad(h, (-3, -3)),
        lambda net, h, x: functional.adaptive_avg_pool1d(h.unsqueeze(1), 0),
        lambda net, h, x: functional.max_pool1d(h.unsqueeze(1), 9),
    ],
)
def test_forwards_that_fail_or_leave_nothing_are_one_line(body):
    with pytest.raises(InputRefused, match="PA130 .*"):
        lipschitz_bounds(Own(body).eval(), input_shape=(6,))


@pytest.mark.parametrize(
    ("body", "steepest"),
    [
        (lambda h: h * 0.7, 0.7),
        (lambda h: 1.1 * h, 1.1),
        (lambda h: h.mul(1e-200), 1e-200),
        (lambda h: h / 0.3, 1 / 0.3),
    ],
)
def test_numbers_in_forward_keep_all_their_digits(body, steepest):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Conv1d(1, 1, 1, bias=False, dtype=torch.float64)

        def forward(self, x):
            return body(self.line(x))

    net = Scaled().eval()
    with torch.no_grad():
        net.line.weight.fill_(1.0)
    found = lipschitz_bounds(net, input_shape=(1, 1))
    assert steepest <= found.certified <= steepest * (1 + 1e-13)


@pytest.mark.parametrize(("given", "told"), [({"tune": "no"}, "PA314"), ({"search_work": -1.0}, "PA304")])
def test_arguments_of_local_bounds(given, told):
    with pytest.raises(UsageError, match=told):
        local_lipschitz(small(torch.float64), torch.rand(2, 4, dtype=torch.float64), 0.1, **given)


def test_sparse_weights_are_refused():
    net = nn.Sequential(nn.Linear(4, 3)).double()
    net[0].weight = nn.Parameter(net[0].weight.detach().to_sparse(), requires_grad=False)
    with pytest.raises(InputRefused, match=r"PA130 0\.weight is a sparse"):
        lipschitz_bounds(net.eval())
