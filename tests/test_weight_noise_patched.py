"""Forwards that are patched, and pooling as functions."""

import types

import pytest
import torch
from torch import nn
from torch.nn import functional

from poisonaudit import weight_noise
from poisonaudit.errors import InputRefused
from poisonaudit.weight_noise import joint_weight_noise, weight_conditions, worst_case_search

X = torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()


def at_the_root() -> nn.Module:
    net = small()
    net.forward = lambda z: 7 * nn.Sequential.forward(net, z)  # type: ignore[method-assign, assignment]
    return net


def inside() -> nn.Module:
    net = small()
    inner = nn.Sequential(net[0], net[1])
    inner.forward = lambda z: 7 * nn.Sequential.forward(inner, z)  # type: ignore[method-assign, assignment]
    return nn.Sequential(inner, net[2]).eval()


def by_weights() -> nn.Module:
    net = small()
    net[0].forward = lambda z: functional.linear(z, net[0].weight.t().t())  # type: ignore[method-assign, assignment]
    return net


@pytest.mark.parametrize("made", [at_the_root, inside, by_weights])
def test_a_copy_that_uses_the_weights_of_the_original_is_refused(made: object) -> None:
    net = made()  # type: ignore[operator]
    for ask in (
        lambda: weight_noise(net, X, rho=0.1, draws=4),
        lambda: joint_weight_noise(net, X, rho=0.1, draws=4),
        lambda: weight_conditions(net, X),
        lambda: worst_case_search(net, X[:1], rho=0.1),
    ):
        with pytest.raises(InputRefused, match="PA152.*copy"):
            ask()


def test_a_bound_method_is_copied_with_its_model() -> None:
    net = small()
    net.forward = types.MethodType(  # type: ignore[method-assign]
        lambda self, z: 7 * nn.Sequential.forward(self, z), net
    )
    assert bool((weight_noise(net, X, rho=0.1, draws=4)["rms_sampled"] > 0).all())


class Pooled(nn.Module):
    def __init__(self, pool: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool = nn.Conv2d(1, 3, 3), pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(torch.relu(self.conv(x))).flatten(1)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("function", "layer"),
    [
        (lambda h: functional.avg_pool2d(h, 3), nn.AvgPool2d(3)),
        (lambda h: functional.avg_pool2d(h, kernel_size=3, stride=2), nn.AvgPool2d(3, 2)),
        (lambda h: functional.adaptive_avg_pool2d(h, 1), nn.AdaptiveAvgPool2d(1)),
        (lambda h: functional.adaptive_avg_pool2d(input=h, output_size=(2, 3)), nn.AdaptiveAvgPool2d((2, 3))),
        (lambda h: functional.max_pool2d(h, 2, 1), nn.MaxPool2d(2, 1)),
        (lambda h: functional.max_pool2d(h, 5, padding=1), nn.MaxPool2d(5, padding=1)),
    ],
)
def test_pooling_functions_have_the_bound_of_the_layer(function: object, layer: nn.Module) -> None:
    x = torch.rand(2, 1, 7, 7, dtype=torch.float64)
    one, other = (weight_noise(Pooled(pool).double().eval(), x, rho=0.1, draws=4) for pool in (function, layer))
    assert float(one["worst_case"].iloc[0]) > 0
    assert float(one["worst_case"].iloc[0]) == float(other["worst_case"].iloc[0])
