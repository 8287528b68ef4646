"""Tangent sensitivity of a table of nets against nested jacrev in float64, plain and weighted by the parameters."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from poisonaudit.tangent import (
    tangent_mean,
    tangent_sensitivity,
    tangent_sensitivity_by_layer,
    tangent_sensitivity_normalised,
)
from poisonaudit.tangent.chain import dense_chain


def tied(model: nn.Module) -> bool:
    """Whether a parameter sits in two modules; functional_call leaves its values in a module that is used twice."""
    return len(list(model.named_modules())) == len(list(model.named_modules(remove_duplicate=False)))


class ByHand(nn.Module):
    """Hardsigmoid, which torch differentiates only once."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(x + 3) / 6


def second_derivatives(model: nn.Module, x: Tensor, outputs: str, normalised: bool) -> Tensor:
    model = copy.deepcopy(model)
    for name, layer in model.named_children():
        if isinstance(layer, nn.Hardsigmoid):
            setattr(model, name, ByHand())
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def value(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        out = functional_call(model, weights, (row[None],), tie_weights=tied(model)).reshape(-1)
        return out.sum().reshape(1) if outputs == "sum" else out

    found = []
    for row in x:
        blocks = jacrev(jacrev(value, argnums=1), argnums=0)(parameters, row)
        scales = parameters if normalised else {name: torch.ones(()) for name in parameters}
        found.append(sum(float((block * scales[name]).square().sum()) for name, block in blocks.items()))
    return torch.tensor(found, dtype=x.dtype)


def chain(
    widths: list[int], activation: Callable[[int], nn.Module], *, bias: bool = True, last: bool = False
) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after, bias=bias), activation(after)]
    return nn.Sequential(*(layers if last else layers[:-1]))


def drawn(model: nn.Module, seed: int) -> nn.Module:
    """Parameters and running statistics away from their special initial values."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for value in model.parameters():
            scale = 1.0 if value.dim() < 2 else value[0].numel() ** 0.5
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64) / scale)
        for name, value in model.named_buffers():
            if value.is_floating_point():
                drawn_value = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value.copy_(drawn_value.abs() + 0.5 if name.endswith("var") else drawn_value)
    return model


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.relu(self.norm(self.first(x)))
        return self.last(x + torch.tanh(self.second(x)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4)
        self.outer.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.relu(self.inner(x)))


PIECEWISE = {
    "relu": lambda width: nn.ReLU(),
    "leaky": lambda width: nn.LeakyReLU(0.3),
    "steep leaky": lambda width: nn.LeakyReLU(-1.4),
    "prelu": lambda width: nn.PReLU(),
    "prelu per neuron": nn.PReLU,
    "relu6": lambda width: nn.ReLU6(),
    "hardtanh": lambda width: nn.Hardtanh(-0.4, 0.7),
    "hardsigmoid": lambda width: nn.Hardsigmoid(),
    "softshrink": lambda width: nn.Softshrink(0.2),
    "linear": lambda width: nn.Identity(),
}
SMOOTH = {
    "tanh": lambda width: nn.Tanh(),
    "gelu": lambda width: nn.GELU(),
    "softplus": lambda width: nn.Softplus(),
    "celu": lambda width: nn.CELU(0.7),
    "hardswish": lambda width: nn.Hardswish(),
}
WIDTHS = ([4, 3, 2], [3, 5, 4, 3], [9, 4, 3, 3, 2], [7, 2], [5, 1, 1])


def check(model: nn.Module, x: Tensor) -> None:
    for outputs in ("jacobian", "sum"):
        plain, weighted = (second_derivatives(model, x, outputs, normalised) for normalised in (False, True))
        torch.testing.assert_close(tangent_sensitivity(model, x, outputs), plain, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(tangent_sensitivity_normalised(model, x, outputs), weighted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("activation", [*PIECEWISE, *SMOOTH])
def test_closed_forms_of_every_activation(activation: str, widths: list[int]) -> None:
    kind = {**PIECEWISE, **SMOOTH}[activation]
    for seed, (bias, last) in enumerate([(True, False), (False, False), (True, True)]):
        model = drawn(chain(widths, kind, bias=bias, last=last), seed)
        x = torch.randn(3, widths[0], generator=torch.Generator().manual_seed(seed + 9), dtype=torch.float64)
        read = dense_chain(model, x)
        assert read is not None and read.piecewise_linear == (activation in PIECEWISE or not any(read.activations))
        check(model, x)
        for normalised, whole in ((False, tangent_sensitivity), (True, tangent_sensitivity_normalised)):
            layers = tangent_sensitivity_by_layer(model, x, normalised=normalised)
            assert layers.shape == (3, len(widths) - 1)
            torch.testing.assert_close(layers.sum(1), whole(model, x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
def test_activations_mixed_in_one_net(wide: bool) -> None:
    layers = [nn.Linear(11 if wide else 3, 4), nn.PReLU(4), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.PReLU()]
    model = drawn(nn.Sequential(*layers, nn.Linear(4, 3), nn.LeakyReLU(0.2), nn.Sigmoid()), 3)
    check(model, torch.randn(3, 11 if wide else 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))


def test_dead_units_and_rows_of_zeros() -> None:
    model = drawn(chain([5, 4, 4, 2], lambda width: nn.LeakyReLU(0.1)), 1)
    with torch.no_grad():
        model[2].weight[1] = 0.0
        model[4].weight[:, 2] = 0.0
    check(model, torch.zeros(2, 5, dtype=torch.float64))
    relu = drawn(chain([5, 4, 4, 2], lambda width: nn.ReLU()), 1)
    with torch.no_grad():
        relu[0].bias[:3] = -50.0
    check(relu, torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Residual(), (4,)),
        (Tied(), (4,)),
        (nn.Sequential(nn.Conv2d(2, 3, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), (2, 4, 4)),
        (
            nn.Sequential(
                nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.PReLU(2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)
            ),
            (1, 5, 5),
        ),
        (nn.Sequential(nn.Linear(4, 3), nn.PReLU(), nn.ReLU(), nn.Linear(3, 2)), (4,)),
        (nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.GELU(), nn.Linear(3, 2), nn.Softmax(1)), (4,)),
    ],
    ids=["residual", "tied weights", "convolution", "batch norm and pooling", "two in a row", "layer norm"],
)
def test_nets_without_a_closed_form(model: nn.Module, shape: tuple[int, ...]) -> None:
    model = drawn(model, 5)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert dense_chain(model, x) is None
    check(model, x)


def test_a_shared_prelu_is_left_to_second_derivatives() -> None:
    shared = nn.PReLU()
    model = drawn(nn.Sequential(nn.Linear(4, 3), shared, nn.Linear(3, 3), shared, nn.Linear(3, 2)), 2)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert dense_chain(model, x) is None
    check(model, x)


@pytest.mark.parametrize("activation", ["relu", "leaky", "prelu", "prelu per neuron", "linear"])
def test_the_normalised_form_stays_when_neurons_are_rescaled(activation: str) -> None:
    model = drawn(chain([6, 5, 4, 3], PIECEWISE[activation]), 8)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs = model(x)
    before = {convention: tangent_sensitivity_normalised(model, x, convention) for convention in ("jacobian", "sum")}
    plain = tangent_sensitivity(model, x)
    with torch.no_grad():
        for layer in (0, 2):
            scale = 10 ** torch.linspace(-2, 2, model[layer].weight.shape[0], dtype=torch.float64)
            model[layer].weight.mul_(scale[:, None])
            model[layer].bias.mul_(scale)
            model[layer + 2].weight.div_(scale)
    torch.testing.assert_close(model(x), outputs, rtol=1e-10, atol=1e-12)
    for convention, value in before.items():
        torch.testing.assert_close(tangent_sensitivity_normalised(model, x, convention), value, rtol=1e-9, atol=0)
    assert float((tangent_sensitivity(model, x) / plain).max()) > 5


def test_the_normalised_form_of_a_convolution_stays_when_channels_are_rescaled() -> None:
    layers = [nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), nn.Flatten()]
    model = drawn(nn.Sequential(*layers), 2)
    x = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs, before = model(x), tangent_sensitivity_normalised(model, x)
    scale = torch.tensor([0.1, 3.0, 20.0], dtype=torch.float64)
    with torch.no_grad():
        model[1].weight.mul_(scale)
        model[1].bias.mul_(scale)
        model[4].weight.div_(scale[None, :, None, None])
    torch.testing.assert_close(model(x), outputs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(tangent_sensitivity_normalised(model, x), before, rtol=1e-9, atol=0)


def processor_seconds(function: Callable[[], object], repeats: int) -> float:
    """Least processor time of several runs after a first one."""
    function()
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        function()
        taken.append(time.process_time() - begun)
    return min(taken)


def test_wide_inputs_cost_little_more_than_narrow_ones() -> None:
    seconds = {}
    for inputs in (64, 3072):
        model = drawn(chain([inputs, 100, 100, 100, 100, 10], lambda width: nn.ReLU()), 0)
        x = torch.rand(256, inputs, dtype=torch.float64)
        seconds[inputs] = processor_seconds(lambda model=model, x=x: tangent_sensitivity(model, x), 5)
    # 48 times as many inputs; multiplied out the first layers would cost as many times more.
    assert seconds[3072] < 5 * seconds[64]


@pytest.mark.soak
def test_the_closed_form_is_hundreds_of_times_faster_than_second_derivatives() -> None:
    model = drawn(chain([64, 100, 100, 100, 100, 10], lambda width: nn.ReLU()), 0)
    x = torch.rand(4, 64, dtype=torch.float64)
    exact = second_derivatives(model, x, "jacobian", False)
    torch.testing.assert_close(tangent_sensitivity(model, x), exact, rtol=1e-10, atol=0)
    slow = processor_seconds(lambda: second_derivatives(model, x, "jacobian", False), 1)
    assert slow > 300 * processor_seconds(lambda: tangent_sensitivity(model, x), 5)
    digits = torch.tensor(load_digits().data / 16.0)
    assert processor_seconds(lambda: tangent_mean(model, digits), 1) < 5.0
