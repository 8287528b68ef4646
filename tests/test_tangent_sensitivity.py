"""Tangent sensitivity against second derivatives taken one by one with plain autograd, and golden numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.tangent import (
    tangent_sensitivity,
    tangent_sensitivity_by_layer,
    tangent_sensitivity_normalised,
)
from poisonaudit.tangent.chain import dense_chain
from poisonaudit.tangent.dense import dense_form


def mlp(widths: list[int], seed: int = 0, activation: Any = nn.ReLU, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after, bias=bias, dtype=torch.float64), activation()]
    net = nn.Sequential(*layers[:-1]).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64) / value.shape[-1] ** 0.5)
    return net


def rows(count: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_derivatives(model: nn.Module, x: Tensor, outputs: str) -> tuple[Tensor, Tensor]:
    """Per row: |d2f/dtheta dx|^2 summed over outputs and parameters, and the same weighted by theta^2."""
    plain, weighted = [], []
    for row in x:
        point = row[None].clone().requires_grad_(True)
        values = model(point).reshape(-1)
        values = values.sum()[None] if outputs == "sum" else values
        total = torch.zeros(2, dtype=x.dtype)
        for value in values:
            (first,) = torch.autograd.grad(value, point, create_graph=True)
            if not first.requires_grad:
                continue
            for entry in first.reshape(-1):
                grads = torch.autograd.grad(entry, list(model.parameters()), retain_graph=True, allow_unused=True)
                for parameter, grad in zip(model.parameters(), grads, strict=True):
                    if grad is not None:
                        total[0] += grad.square().sum()
                        total[1] += (grad * parameter.detach()).square().sum()
        plain.append(total[0])
        weighted.append(total[1])
    return torch.stack(plain), torch.stack(weighted)


@pytest.mark.parametrize("outputs", ["jacobian", "sum"])
@pytest.mark.parametrize(
    "widths",
    [[3, 4, 2], [7, 3, 4, 3], [2, 6, 5, 4, 1], [5, 2], [9, 4, 8, 2], [4, 4, 1]],
    ids=lambda w: "-".join(map(str, w)),
)
def test_closed_form_equals_second_derivatives(widths: list[int], outputs: str) -> None:
    for seed in range(3):
        model, x = mlp(widths, seed), rows(4, widths[0], seed=seed + 10)
        plain, weighted = second_derivatives(model, x, outputs)
        torch.testing.assert_close(tangent_sensitivity(model, x, outputs), plain, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(tangent_sensitivity_normalised(model, x, outputs), weighted, rtol=1e-10, atol=1e-12)


def test_dead_units_and_a_dead_layer() -> None:
    model, x = mlp([6, 4, 3, 2]), rows(5, 6)
    with torch.no_grad():
        model[0].bias[:2] = -100.0
    assert dense_chain(model, x) is not None
    plain, _ = second_derivatives(model, x, "jacobian")
    torch.testing.assert_close(tangent_sensitivity(model, x), plain, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        model[2].bias[:] = -1e6
    assert torch.equal(tangent_sensitivity(model, x), torch.zeros(5, dtype=torch.float64))


def test_identity_flatten_two_linears_in_a_row_and_a_final_relu() -> None:
    a, b, c = mlp([6, 5, 4]), mlp([4, 3, 3], seed=2), mlp([3, 2], seed=3)
    model = nn.Sequential(nn.Flatten(), a, nn.Identity(), b, nn.ReLU(), c, nn.Dropout(0.5), nn.ReLU()).eval()
    x = rows(4, 2, 3)
    assert dense_chain(model, x) is not None
    plain, _ = second_derivatives(model, x, "jacobian")
    torch.testing.assert_close(tangent_sensitivity(model, x), plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("outputs", ["jacobian", "sum"])
@pytest.mark.parametrize(
    "activation",
    [nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, lambda: nn.ELU(1.5), lambda: nn.LeakyReLU(0.2)],
    ids=["tanh", "gelu", "silu", "sigmoid", "softplus", "elu", "leaky"],
)
def test_smooth_closed_form_equals_second_derivatives(activation: Any, outputs: str) -> None:
    for widths in ([4, 3, 2], [3, 5, 4, 3], [5, 2, 3, 1]):
        model, x = mlp(widths, 3, activation), rows(3, widths[0])
        plain, _ = second_derivatives(model, x, outputs)
        torch.testing.assert_close(tangent_sensitivity(model, x, outputs), plain, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(dense_form(model, x, summed=outputs == "sum"), plain, rtol=1e-10, atol=1e-12)
        by_layer = tangent_sensitivity_by_layer(model, x, outputs)
        assert by_layer.shape == (3, len(widths) - 1)
        torch.testing.assert_close(by_layer.sum(1), plain, rtol=1e-10, atol=1e-12)


def test_smooth_closed_form_with_mixed_activations_no_biases_and_a_final_one(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = mlp([6, 4], bias=False), mlp([4, 3, 3], seed=2)
    tanh = nn.Tanh()
    model = nn.Sequential(nn.Flatten(), a, nn.LeakyReLU(0.1, inplace=True), tanh, b, nn.Sigmoid(), tanh).eval()
    x = rows(5, 2, 3)
    plain, _ = second_derivatives(model, x, "jacobian")
    monkeypatch.setattr("poisonaudit.tangent.smooth_form._ENTRIES", 150)
    torch.testing.assert_close(tangent_sensitivity(model, x), plain, rtol=1e-10, atol=1e-12)
    monkeypatch.setattr("poisonaudit.tangent.sensitivity.SMOOTH_LIMIT", 1)
    torch.testing.assert_close(tangent_sensitivity(model, x), plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("outputs", ["jacobian", "sum"])
def test_dense_form_on_other_nets(outputs: str) -> None:
    tied = nn.Linear(3, 3, dtype=torch.float64)
    convolution = nn.Conv2d(1, 2, 2, dtype=torch.float64)
    cases = [
        (nn.Sequential(nn.Tanh(), mlp([4, 5, 3], activation=nn.Tanh)).eval(), rows(3, 4)),
        (nn.Sequential(mlp([4, 3, 3, 2], activation=nn.GELU), nn.Softmax(1)).eval(), rows(3, 4)),
        (nn.Sequential(tied, nn.ReLU(), tied).eval(), rows(3, 3)),
        (nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), mlp([8, 2])).eval(), rows(2, 1, 3, 3)),
        (nn.Sequential(nn.BatchNorm1d(4, dtype=torch.float64), mlp([4, 3, 2])).eval(), rows(2, 4)),
    ]
    for model, x in cases:
        assert dense_chain(model, x) is None
        plain, _ = second_derivatives(model, x, outputs)
        torch.testing.assert_close(tangent_sensitivity(model, x, outputs), plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("widths", "outputs", "value", "layers"),
    [
        ([2, 2, 1], "jacobian", 8.0, None),
        ([2, 2, 2, 1], "jacobian", 40.0, [16.0, 8.0, 16.0]),
        ([3, 2, 2, 2], "jacobian", 120.0, None),
        ([3, 2, 2, 2], "sum", 192.0, None),
        ([2, 5, 5, 5, 1], "jacobian", 15000.0, None),
    ],
)
def test_golden_values_of_all_ones_nets(
    widths: list[int], outputs: str, value: float, layers: list[float] | None
) -> None:
    model = mlp(widths, bias=False)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1.0)
    x = torch.ones(2, widths[0], dtype=torch.float64)
    assert tangent_sensitivity(model, x, outputs).tolist() == [value, value]
    if layers is not None:
        assert tangent_sensitivity_by_layer(model, x, outputs).tolist() == [layers, layers]


@pytest.mark.parametrize("widths", [[4, 6, 5, 3], [9, 4, 3, 2]])
def test_normalised_form_is_invariant_under_rescaling_neurons(widths: list[int]) -> None:
    model, x = mlp(widths, seed=4), rows(5, widths[0])
    before, plain, values = tangent_sensitivity_normalised(model, x), tangent_sensitivity(model, x), model(x)
    with torch.no_grad():
        for layer, width in ((0, widths[1]), (2, widths[2])):
            scale = 10 ** torch.linspace(-2, 2, width, dtype=torch.float64)
            model[layer].weight.mul_(scale[:, None])
            model[layer].bias.mul_(scale)
            model[layer + 2].weight.div_(scale)
    torch.testing.assert_close(model(x), values, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(tangent_sensitivity_normalised(model, x), before, rtol=1e-10, atol=1e-12)
    assert float(tangent_sensitivity(model, x).sum()) > 10 * float(plain.sum())


def test_chunks_dtype_gradients_and_model_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp([6, 4, 3]), rows(7, 6)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    whole = tangent_sensitivity(model, x)
    monkeypatch.setattr("poisonaudit.tangent.piecewise_linear_form._ENTRIES", 40)
    torch.testing.assert_close(tangent_sensitivity(model, x), whole, rtol=1e-14, atol=0)
    assert whole.dtype == torch.float64 and not whole.requires_grad and whole.shape == (7,)
    single = tangent_sensitivity(mlp([6, 4, 3]).float(), x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), whole, rtol=1e-4, atol=1e-6)
    smooth = mlp([4, 3, 2], activation=nn.Tanh)
    dense = tangent_sensitivity(smooth, rows(2, 4))
    assert dense.dtype == torch.float64 and not dense.requires_grad
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())


def test_refusals() -> None:
    model, x = mlp([4, 3, 2]), rows(2, 4)
    with pytest.raises(UsageError, match="PA301.*Did you mean 'jacobian'"):
        tangent_sensitivity(model, x, "jacobean")
    for bad, code in (
        ((model, x.float()), "PA121"),
        ((model, rows(2, 5)), "PA211"),
        ((model, rows(0, 4)), "PA211"),
        ((model, x / 0), "PA210"),
        ((nn.ReLU(), x), "PA122"),
        ((nn.Sequential(model, nn.Dropout(0.5)).train(), x), "PA120"),
        ((mlp([4, 3, 2], activation=nn.Tanh), rows(2, 5)), "PA211"),
        ((nn.Sequential(mlp([200, 200, 200, 10], activation=nn.Tanh), nn.Softmax(1)).eval(), rows(1, 200)), "PA151"),
    ):
        with pytest.raises(InputRefused) as caught:
            tangent_sensitivity(*bad)
        assert caught.value.code == code and "\n" not in str(caught.value)
    with pytest.raises(InputRefused, match="PA150.*Softmax"):
        tangent_sensitivity_by_layer(nn.Sequential(model, nn.Softmax(1)), x)
