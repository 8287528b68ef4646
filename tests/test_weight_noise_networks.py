"""First-order numbers of any network: exact against dense Jacobians, unrolled convolutions and random directions."""

from __future__ import annotations

import copy
import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from noise_networks import Residual, Tied, convolutional, dense_jacobian, drawn, mlp, rows, zoo
from torch import Tensor, nn
from torch.func import functional_call

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.models import build_model
from poisonaudit.weight_noise import weight_conditions, weight_noise, weight_noise_curve
from poisonaudit.weight_noise.intervals import root_of_mean
from poisonaudit.weight_noise.jacobians import grams, pull_back, top_directions
from poisonaudit.weight_noise.network import read_network
from poisonaudit.weight_noise.noise import gaussian, isotropic_factor
from poisonaudit.weight_noise.probes import push, spectral_norms, squared_norms

NETS = zoo()
jacobians = importlib.import_module("poisonaudit.weight_noise.jacobians")


@pytest.mark.parametrize("name", NETS)
def test_conditions_and_formula_equal_dense_jacobians(name: str) -> None:
    model, x = NETS[name]
    found = weight_conditions(model, x)
    values = {name: value.detach() for name, value in model.named_parameters()}
    outputs = model(x.clone()).detach()
    assert found.method == "exact" and found.zero_outputs == 0
    assert set(found.names) == {n for n, v in values.items() if v.dim() > 1}
    for index, parameter in enumerate(found.names):
        size, count = float(values[parameter].norm()), values[parameter].numel()
        for row in range(len(x)):
            jacobian = dense_jacobian(model, parameter, x[row : row + 1])
            two, total = float(torch.linalg.matrix_norm(jacobian, 2)), float(jacobian.norm())
            assert float(found.absolute[index, row]) == pytest.approx(two, rel=1e-10)
            relative = two * size / float(outputs[row].norm())
            assert float(found.relative[index, row]) == pytest.approx(relative, rel=1e-10)
            assert float(found.spread[index, row]) == pytest.approx(total * size / count**0.5, rel=1e-10)


def test_a_chain_equals_the_closed_form() -> None:
    """`|J_i| = |B_i| |z_(i-1)|` in either norm, with B_i the product of the later weights and slopes."""
    model, x = mlp([6, 7, 5, 4], nn.Tanh()), rows(5, 6)
    found = weight_conditions(model, x)
    weights = [model[layer].weight.detach() for layer in (0, 2, 4)]
    for row in range(5):
        entering, slopes, z = [], [], x[row]
        for layer in (0, 2, 4):
            entering.append(z)
            h = model[layer](z).detach()
            slopes.append(1 - torch.tanh(h).square() if layer < 4 else torch.ones_like(h))
            z = torch.tanh(h) if layer < 4 else h
        product = torch.eye(4, dtype=torch.float64)
        for index in (2, 1, 0):
            product = product * slopes[index]
            size, count = float(weights[index].norm()), weights[index].numel()
            two = float(torch.linalg.matrix_norm(product, 2) * entering[index].norm())
            assert float(found.absolute[index, row]) == pytest.approx(two, rel=1e-10)
            spread = float(product.norm() * entering[index].norm()) * size / count**0.5
            assert float(found.spread[index, row]) == pytest.approx(spread, rel=1e-10)
            product = product @ weights[index]


def unrolled(layer: nn.Conv2d, height: int, width: int) -> Tensor:
    """The convolution as a dense matrix, entry by entry from its definition: (outputs, inputs), no bias."""
    (k, _), (s, _), (p, _), (d, _) = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    tall, wide = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n in (height, width))
    matrix = torch.zeros(layer.out_channels, tall, wide, layer.in_channels, height, width, dtype=torch.float64)
    share = layer.in_channels // layer.groups
    for out in range(layer.out_channels):
        group = out * layer.groups // layer.out_channels
        for channel in range(share):
            for i in range(k):
                for j in range(k):
                    for top in range(tall):
                        for left in range(wide):
                            y, z = top * s - p + i * d, left * s - p + j * d
                            if 0 <= y < height and 0 <= z < width:
                                matrix[out, top, left, group * share + channel, y, z] = float(
                                    layer.weight[out, channel, i, j].detach()
                                )
    return matrix.reshape(layer.out_channels * tall * wide, -1)


def test_a_convolution_equals_its_dense_unrolled_jacobian() -> None:
    """dv/dK of a convolution that a dense layer follows: the chain rule through the unrolled matrix."""
    layer = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
    model = drawn(nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)), 3)
    x = rows(2, 2, 4, 4)
    found = weight_conditions(model, x)
    h = unrolled(layer, 4, 4) @ x.flatten(1).T + layer.bias.detach().repeat_interleave(4).unsqueeze(1)
    torch.testing.assert_close(h.T, layer(x).flatten(1).detach(), rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        for row in range(2):
            outgoing = model[3].weight * (1 - torch.tanh(h[:, row]).square())
            columns = []
            for position in range(layer.weight.numel()):
                unit = copy.deepcopy(layer)
                unit.weight.zero_()
                unit.weight.view(-1)[position] = 1.0
                columns.append(outgoing @ (unrolled(unit, 4, 4) @ x[row].flatten()))
            jacobian = torch.stack(columns, dim=1)
            size = float(layer.weight.norm()) / layer.weight.numel() ** 0.5
            assert float(found.absolute[0, row]) == pytest.approx(
                float(torch.linalg.matrix_norm(jacobian, 2)), rel=1e-10
            )
            assert float(found.spread[0, row]) == pytest.approx(float(jacobian.norm()) * size, rel=1e-10)


@pytest.mark.parametrize("name", ["residual", "attention", "tied", "conv"])
def test_all_parameters_and_named_ones(name: str) -> None:
    model, x = NETS[name]
    values = dict(model.named_parameters())
    every = weight_conditions(model, x, parameters="all")
    assert every.names == tuple(values)
    for index, parameter in enumerate(every.names):
        jacobian = dense_jacobian(model, parameter, x[:1])
        assert float(every.absolute[index, 0]) == pytest.approx(
            float(torch.linalg.matrix_norm(jacobian, 2)), rel=1e-9, abs=1e-14
        )
    chosen = [n for n, v in values.items() if v.dim() == 1][:1]
    one = weight_conditions(model, x, parameters=chosen)
    assert one.names == tuple(chosen)
    torch.testing.assert_close(one.spread[0], every.spread[every.names.index(chosen[0])], rtol=1e-12, atol=0)
    frame = weight_noise(model, x, draws=4)
    left = {n for n, v in values.items() if v.dim() == 1}
    assert set(frame.attrs["unperturbed"]) == left and not left & set(frame["layer"])


def test_norm_parameters_are_no_matrices_even_with_two_dimensions() -> None:
    model = drawn(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm([2, 4]), nn.Flatten(), nn.Linear(8, 2)))
    frame = weight_noise(model, rows(2, 2, 4), draws=3)
    assert list(frame["layer"]) == ["0.weight", "3.weight"]
    assert "1.weight" in frame.attrs["unperturbed"]


@pytest.mark.parametrize("name", ["conv", "attention"])
def test_probes_are_unbiased_and_their_error_is_right(name: str) -> None:
    model, x = NETS[name]
    network = read_network(model, x)
    exact = torch.cat([part.values for part in grams(network)], 1).diagonal(dim1=2, dim2=3).sum(2)
    squares = squared_norms(network, 150, seed=4)
    error = squares.std(1) / 150**0.5
    assert bool(((squares.mean(1) - exact).abs() <= 4 * error).all())
    probed = weight_conditions(model, x, probes=60, seed=2)
    plain = weight_conditions(model, x)
    assert probed.method == "probes" and bool((probed.spread_error > 0).all()) and float(plain.spread_error.sum()) == 0
    assert bool(((probed.spread.mean(1) - plain.spread.mean(1)).abs() < 4 * probed.spread_error).all())
    torch.testing.assert_close(probed.absolute, plain.absolute, rtol=1e-7, atol=1e-12)


def test_standard_error_of_probes_covers() -> None:
    """95 % intervals of the squared norm of a residual net over 400 repeats."""
    model, x = NETS["residual"]
    jacobian = dense_jacobian(model, "inner.weight", x[:1])
    network = read_network(model, x[:1], ["inner.weight"])
    directions = torch.stack([gaussian((81,), 1, "coverage", probe) for probe in range(400 * 50)])
    squares = (directions @ jacobian.T).square().sum(1).view(400, 50)
    direction = {"inner.weight": directions[0].view(3, 3, 3, 3)}
    assert float(push(network, direction, x[:1]).square().sum()) == pytest.approx(float(squares[0, 0]), rel=1e-10)
    found = [root_of_mean(each) for each in squares]
    share = sum(each.low <= float(jacobian.norm()) <= each.high for each in found) / 400
    assert 0.92 <= share <= 0.98


def test_products_are_those_of_the_dense_jacobian() -> None:
    for name in ("residual", "attention", "tied"):
        model, x = NETS[name]
        network = read_network(model, x)
        parameter = network.names[0]
        direction = rows(1, *network.values[parameter].shape, seed=3)[0]
        weights = rows(len(x), network.outputs.shape[1], seed=4)
        pushed, pulled = push(network, {parameter: direction}, x), pull_back(network, weights, [parameter])[parameter]
        for row in range(len(x)):
            jacobian = dense_jacobian(model, parameter, x[row : row + 1])
            torch.testing.assert_close(pushed[row], jacobian @ direction.flatten(), rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(pulled[row].flatten(), jacobian.T @ weights[row], rtol=1e-10, atol=1e-12)


def test_forward_mode_has_a_substitute(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = NETS["residual tanh"]
    network = read_network(model, x)
    direction = {network.names[1]: rows(1, *network.values[network.names[1]].shape, seed=3)[0]}
    expected = push(network, direction, x)

    def missing(*given: object) -> None:
        raise NotImplementedError("no forward mode")

    monkeypatch.setattr(importlib.import_module("poisonaudit.weight_noise.probes"), "jvp", missing)
    torch.testing.assert_close(push(network, direction, x), expected, rtol=1e-10, atol=1e-13)


def test_two_outputs_and_zero_slopes_by_lanczos() -> None:
    model, x = NETS["steep"]
    network = read_network(model, x)
    exact = weight_conditions(model, x).absolute
    torch.testing.assert_close(spectral_norms(network), exact, rtol=1e-8, atol=0)
    dead = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 4)).double().eval()
    with torch.no_grad():
        dead[0].bias.fill_(-100.0)
    assert spectral_norms(read_network(dead, rows(1, 3)))[0, 0] == 0


def test_layers_are_compared_with_plain_backpropagation() -> None:
    """A function that uses a layer's weight again, and a subclass that computes something else, are found out."""

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(2.0 * input)

    for model in (Tied(), nn.Sequential(Doubled(4, 4), nn.Tanh(), nn.Linear(4, 2))):
        model = drawn(model, 2)
        found = weight_conditions(model, rows(2, 4))
        for index, parameter in enumerate(found.names):
            jacobian = dense_jacobian(model, parameter, rows(2, 4)[:1])
            exact = float(torch.linalg.matrix_norm(jacobian, 2))
            assert float(found.absolute[index, 0]) == pytest.approx(exact, rel=1e-10)


def test_blocks_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("conv", "attention", "mlp"):
        model, x = NETS[name]
        whole = weight_conditions(model, x)
        with monkeypatch.context() as patch:
            patch.setattr(jacobians, "_ENTRIES", 10)
            patch.setattr(importlib.import_module("poisonaudit.weight_noise.network"), "_ENTRIES", 10)
            parts = weight_conditions(model, x)
        for key in ("absolute", "relative", "spread", "worst"):
            torch.testing.assert_close(getattr(parts, key), getattr(whole, key), rtol=1e-11, atol=1e-13, equal_nan=True)


def test_top_directions_are_the_steepest() -> None:
    for name in ("conv", "attention"):
        model, x = NETS[name]
        network = read_network(model, x)
        slopes, directions, _ = top_directions(network)
        for index, parameter in enumerate(network.names):
            for row in range(len(x)):
                jacobian = dense_jacobian(model, parameter, x[row : row + 1])
                moved = jacobian @ directions[parameter][row].flatten()
                assert float(moved.norm()) == pytest.approx(float(slopes[index, row]), rel=1e-9)


def test_spectral_norm_scales_the_noise_and_the_formula() -> None:
    model, x = NETS["conv"]
    plain, other = weight_conditions(model, x), weight_conditions(model, x, norm="spectral")
    values = dict(model.named_parameters())
    for index, parameter in enumerate(plain.names):
        matrix = values[parameter].detach().flatten(1)
        two = float(torch.linalg.matrix_norm(matrix, 2))
        torch.testing.assert_close(
            other.relative[index], plain.relative[index] * two / float(matrix.norm()), rtol=1e-12, atol=0
        )
        assert bool((other.worst[index] < plain.worst[index]).all())
    frame = weight_noise(model, x, rho=1e-4, draws=600, norm="spectral")
    error = (frame["rms_sampled"] - frame["rms_formula"]).abs()
    assert (error < 3.5 * frame["standard_error"] + 0.02 * frame["rms_formula"]).all()
    assert frame.attrs["norm"] == "spectral"


def test_isotropic_factor_is_the_root_mean_square_of_an_entry() -> None:
    """Noise of spectral norm 1: its covariance is a multiple of the identity with this factor."""
    shape = (3, 4)
    generator = torch.Generator().manual_seed(0)
    drawn_noise = torch.randn(20000, *shape, generator=generator, dtype=torch.float64)
    drawn_noise /= torch.linalg.matrix_norm(drawn_noise, 2).view(-1, 1, 1)
    flat = drawn_noise.flatten(1)
    covariance = flat.T @ flat / 20000
    factor = isotropic_factor(torch.ones(shape), "spectral")
    torch.testing.assert_close(covariance, torch.eye(12, dtype=torch.float64) * factor**2, rtol=0, atol=0.006)
    assert isotropic_factor(torch.ones(shape), "frobenius") == pytest.approx(12**-0.5)
    assert isotropic_factor(torch.ones(5), "spectral") == pytest.approx(5**-0.5)


def test_models_of_the_package_in_single_precision() -> None:
    for spec, shape in (("lenet", (1, 8, 8)), ("resnet20", (1, 8, 8)), ("mlp:64-8-3?activation=silu", (64,))):
        model = build_model(spec, input_shape=shape, outputs=3, dtype=torch.float32)
        x = rows(2, *shape).float()
        found, double = weight_conditions(model, x), weight_conditions(copy.deepcopy(model).double(), x.double())
        assert found.absolute.dtype == torch.float32 and found.reasons == {}
        torch.testing.assert_close(found.absolute.double(), double.absolute, rtol=2e-3, atol=1e-6)
        torch.testing.assert_close(found.spread.double(), double.spread, rtol=2e-3, atol=1e-6)


def test_tokens_and_single_outputs_and_maps() -> None:
    words = drawn(nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2)))
    x = torch.tensor([[1, 2], [3, 3]])
    frame = weight_noise(words, x, draws=20)
    assert list(frame["layer"]) == ["0.weight", "2.weight"] and (frame["rms_sampled"] > 0).all()
    jacobian = dense_jacobian(words, "0.weight", x[1:])
    assert float(weight_conditions(words, x).absolute[0, 1]) == pytest.approx(
        float(torch.linalg.matrix_norm(jacobian, 2)), rel=1e-10
    )
    maps = drawn(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1)))
    assert math.isnan(weight_noise(maps, rows(2, 1, 4, 4), draws=3)["flip_rate"][0])
    single = drawn(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)))
    assert weight_conditions(single, rows(4, 3)).outputs.shape == (4, 1)


def test_the_model_is_untouched() -> None:
    for model, x in NETS.values():
        state, inputs = {name: value.clone() for name, value in model.state_dict().items()}, x.clone()
        hooks = [len(module._forward_hooks) for module in model.modules()]
        weight_noise(model, x, draws=2, extended=True)
        weight_noise_curve(model, x, [0.1, 1.0], draws=2)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert torch.equal(x, inputs) and all(value.grad is None for value in model.parameters())
        assert hooks == [len(module._forward_hooks) for module in model.modules()]


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


class Random(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + torch.randn(len(input), 2, dtype=input.dtype)


def test_refusals() -> None:
    x = rows(3, 3)
    bad = nn.Linear(3, 2).double()
    with torch.no_grad():
        bad.weight[0, 0] = math.nan
    cases = [
        (Mixing().double().eval(), x, "PA129"),
        (Random(3, 2).double().eval(), x, "PA129"),
        (bad, x, "PA210"),
        (nn.Sequential(nn.ReLU()), x, "PA152"),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double(), x, "PA120"),
        (nn.Linear(3, 2).double(), x.tolist(), "PA127"),
        (nn.Linear(3, 2).double(), x[:0], "PA211"),
        (nn.Linear(4, 2).double(), x, "PA211"),
        (nn.LSTM(3, 2).double(), x, "PA211"),
    ]
    for model, given, code in cases:
        with pytest.raises(InputRefused) as caught:
            weight_noise(model, given)
        assert caught.value.code == code, code
    with pytest.raises(UsageError, match="PA301.*'0.wieght'.*0.weight"):
        weight_noise(mlp([3, 2]), x, parameters=["0.wieght"])
    for settings, code in (
        ({"parameters": "biases"}, "PA301"),
        ({"norm": "nuclear"}, "PA301"),
        ({"seed": -1}, "PA321"),
        ({"probes": 1}, "PA321"),
    ):
        with pytest.raises(UsageError, match=code):
            weight_noise(mlp([3, 2]), x, **settings)


def test_residual_net_formula_against_sampling() -> None:
    model, x = drawn(Residual(nn.Tanh()), 5), rows(6, 2, 4, 4)
    frame = weight_noise(model, x, rho=1e-4, draws=600, seed=2)
    assert ((frame["rms_sampled"] - frame["rms_formula"]).abs() < 3.5 * frame["standard_error"]).all()
    # Exact at any size in the last layer: outputs are linear in it.
    large = weight_noise(model, x, rho=2.0, draws=1000, seed=3).iloc[-1]
    entering = {}
    with torch.no_grad():
        handle = model.head.register_forward_pre_hook(lambda module, given: entering.update(z=given[0]))
        functional_call(model, {}, (x,))
        handle.remove()
        weight = model.head.weight
        exact = 2.0 * float((entering["z"].norm(dim=1) * weight.norm() / weight.shape[1] ** 0.5).mean())
    assert large["layer"] == "head.weight" and large["rms_formula"] == pytest.approx(exact, rel=1e-10)
    assert abs(large["rms_sampled"] - exact) < 3.5 * large["standard_error"]
    assert convolutional() is not None


class Tokens(nn.Module):
    """Takes the tokens of all rows as one larger batch, or puts them in front of the rows."""

    def __init__(self, in_front: bool) -> None:
        super().__init__()
        self.first, self.second, self.in_front = nn.Linear(3, 4), nn.Linear(4, 2), in_front

    def forward(self, x: Tensor) -> Tensor:
        if self.in_front:
            return self.second(self.first(x.transpose(0, 1)).relu()).mean(0)
        return self.second(self.first(x.reshape(-1, 3)).relu()).reshape(len(x), -1, 2).mean(1)


@pytest.mark.parametrize("in_front", [False, True])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_tokens_in_place_of_rows_are_differentiated_row_by_row(in_front: bool, count: int) -> None:
    model, x = drawn(Tokens(in_front), 2), rows(count, 5, 3)
    found = weight_conditions(model, x)
    assert found.absolute.shape == (2, count) and found.method == "exact"
    for index, parameter in enumerate(found.names):
        wanted = [float(torch.linalg.matrix_norm(dense_jacobian(model, parameter, row[None]), 2)) for row in x]
        assert found.absolute[index].tolist() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("factor", [1e-55, 1e51])
def test_outputs_whose_squares_leave_float64_are_refused(factor: float) -> None:
    model = mlp([4, 4, 4, 4], nn.ReLU(), bias=False)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(factor)
    with pytest.raises(InputRefused, match=r"PA210 the model's largest output is .* leaves the range"):
        weight_noise(model, rows(5, 4))


def test_medians_lie_between_the_middle_rows() -> None:
    model, x = mlp([4, 5, 3]), rows(2, 4)
    frame = weight_noise(model, x, draws=3, extended=True)
    relative = weight_conditions(model, x).relative
    assert frame["condition_median"].tolist() == pytest.approx(relative.mean(1).tolist(), rel=1e-12)


def test_numbers_of_numpy_are_numbers() -> None:
    model, x = mlp([4, 5, 3]), rows(2, 4)
    plain = weight_noise(model, x, rho=0.5, draws=4, seed=3)
    assert weight_noise(model, x, rho=np.float32(0.5), draws=np.int64(4), seed=np.int8(3)).equals(plain)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rho": "a"}, "PA321 rho is 'a'"),
        ({"rho": True}, "PA321 rho is True"),
        ({"draws": 2.5}, "PA321 draws is 2.5"),
        ({"probes": 2.5}, "PA321 probes is 2.5"),
        ({"seed": "a"}, "PA321 seed is 'a'"),
        ({"parameters": None}, "PA314 .* for parameters"),
    ],
)
def test_arguments_of_other_types_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        weight_noise(mlp([4, 5, 3]), rows(2, 4), **given)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_empty_and_sparse_inputs_are_refused() -> None:
    with pytest.raises(InputRefused, match="PA152 0.weight has shape"):
        weight_noise(nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2)).double().eval(), rows(2, 3))
    with pytest.raises(InputRefused, match="PA211"):
        weight_noise(mlp([4, 3]), torch.zeros(2, 0, dtype=torch.float64))
    with pytest.raises(InputRefused, match="PA127 x is sparse"):
        weight_noise(mlp([4, 3]), rows(2, 4).to_sparse())
    with pytest.raises(UsageError, match="PA321 rhos is 0.1"):
        weight_noise_curve(mlp([4, 3]), rows(2, 4), rhos=0.1)  # type: ignore[arg-type]
