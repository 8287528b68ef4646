"""Worst cases: bounds that nothing exceeds, searched directions that come close, operator norms of layers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from noise_networks import drawn, mlp, rows, zoo
from test_weight_noise_networks import unrolled
from torch import Tensor, nn
from torch.func import functional_call

from poisonaudit.errors import UsageError
from poisonaudit.models import build_model
from poisonaudit.weight_noise import weight_conditions, weight_noise, worst_case_search
from poisonaudit.weight_noise.bounds import read_bounds, together
from poisonaudit.weight_noise.gains import (
    average_gain,
    batch_norm_gain,
    convolution_gain,
    maximum_gain,
    overlap,
    patch_norms,
)
from poisonaudit.weight_noise.jacobians import top_directions
from poisonaudit.weight_noise.network import read_network
from poisonaudit.weight_noise.noise import as_matrix, noise_source
from poisonaudit.weight_noise.search import joint_direction, search

NETS = zoo()
BOUNDED = [name for name in NETS if name not in ("tied", "attention")]


@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
@pytest.mark.parametrize("name", BOUNDED)
def test_search_never_exceeds_the_bound(name: str, norm: str) -> None:
    model, x = NETS[name]
    for rho in (0.1, 1.5):
        frame = worst_case_search(model, x[:2], rho, starts=3, steps=8, draws=8, norm=norm)
        assert (frame["found"] <= frame["bound"] * (1 + 1e-10)).all(), frame
        assert (frame["found"] >= frame["rms_sampled"]).all()
        assert (frame["found_over_bound"] <= 1 + 1e-10).all() and (frame["found"] > 0).all()
    # The last layer is linear: the first-order direction is the worst, and the bound is attained.
    last = frame.iloc[-2]
    if name != "conv 1d" and norm == "frobenius":
        assert last["found"] == pytest.approx(last["first_order"], rel=1e-9)
        assert last["found"] == pytest.approx(last["bound"], rel=1e-9)


@pytest.mark.soak
@pytest.mark.parametrize("name", BOUNDED)
def test_search_never_exceeds_the_bound_in_full(name: str) -> None:
    model, x = NETS[name]
    for norm in ("frobenius", "spectral"):
        for rho in (0.001, 0.1, 0.5, 2.0):
            frame = worst_case_search(model, x, rho, starts=10, steps=150, draws=8, norm=norm)
            assert (frame["found"] <= frame["bound"] * (1 + 1e-10)).all(), frame


def test_search_reaches_the_first_order_value_of_small_noise_and_beats_random_noise() -> None:
    for name in ("mlp", "conv", "residual tanh"):
        model, x = NETS[name]
        frame = worst_case_search(model, x, 1e-5, starts=2, steps=6, draws=20)
        assert (frame["found"] >= frame["first_order"] * (1 - 1e-3)).all()
        single = frame.iloc[:-1]
        assert (single["found"] <= single["first_order"] * (1 + 1e-3)).all()
        assert (frame["found_over_rms"] > 1.2).all()


@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
def test_found_noise_has_the_stated_norm_and_does_what_is_said(norm: str) -> None:
    model, x = NETS["residual"]
    network = read_network(model, x)
    source = noise_source(network.values, network.names, norm, 0)
    radii = {name: 0.5 * size for name, size in source.sizes.items()}
    _, _, every = top_directions(network)
    aimed, _ = joint_direction(network, every, radii)
    found = search(network, radii, aimed, norm, 0, 3, 15)
    values = dict(model.named_parameters())
    for row in range(len(x)):
        moved = {name: values[name].detach() + noise[row] for name, noise in found.noise.items()}
        dv = functional_call(model, moved, (x[row : row + 1],)) - model(x[row : row + 1])
        assert float(dv.detach().norm()) == pytest.approx(float(found.values[row]), rel=1e-9)
        for name, noise in found.noise.items():
            matrix = as_matrix(noise[row])
            size = float(matrix.norm() if norm == "frobenius" else torch.linalg.matrix_norm(matrix, 2))
            assert size == pytest.approx(radii[name], rel=1e-9)


def test_joint_bound_of_a_chain_is_the_recursion_and_below_the_product_form() -> None:
    """`sum_i prod_(j>i) s_j (|W_j| + r_j) s_i r_i |z_(i-1)|`, at most `(prod (|W_j| + r_j) - prod |W_j|) |x|`."""
    model, x = mlp([5, 6, 4, 3], nn.ReLU(), bias=False), rows(4, 5)
    network = read_network(model, x)
    sizes = {name: float(network.values[name].norm()) for name in network.names}
    norms = [float(torch.linalg.matrix_norm(network.values[name], 2)) for name in network.names]
    for rho in (0.1, 2.0):
        bound, reason = together(read_bounds(network), sizes, rho, 4)
        assert reason == ""
        radii = [rho * sizes[name] for name in network.names]
        z, entering = x, []
        for layer in (0, 2, 4):
            entering.append(z.norm(dim=1))
            z = model[layer](z).detach()
            z = torch.relu(z) if layer < 4 else z
        expected = torch.zeros(4, dtype=torch.float64)
        for i in range(3):
            tail = math.prod(norms[j] + radii[j] for j in range(i + 1, 3))
            expected += tail * radii[i] * entering[i]
        torch.testing.assert_close(bound, expected, rtol=1e-12, atol=0)
        product = math.prod(n + r for n, r in zip(norms, radii, strict=True)) - math.prod(norms)
        assert bool((bound <= product * x.norm(dim=1) * (1 + 1e-12)).all())


def test_activations_after_a_bias_enter_with_their_clean_values() -> None:
    """Biases make clean activations larger than `prod |W_j| |x|`: the bound has to see them."""
    model, x = mlp([3, 4, 2], nn.ReLU()), rows(3, 3)
    with torch.no_grad():
        model[0].bias.fill_(50.0)
    frame = worst_case_search(model, x, 0.3, draws=8)
    assert (frame["found"] <= frame["bound"] * (1 + 1e-10)).all()
    assert frame["found_over_bound"].iloc[-1] > 0.3


def test_shared_matrices_and_attention_say_why_there_is_no_bound() -> None:
    tied, x = NETS["tied"]
    frame = weight_noise(tied, x, draws=3)
    assert frame["worst_case"].isna().tolist() == [True, False]
    assert "linear" in frame.attrs["no_bound"]["shared.weight"]
    attention, x = NETS["attention"]
    frame = weight_noise(attention, x, draws=3)
    assert "LayerNorm" in frame.attrs["no_bound"]["inner.in_proj_weight"] or "Multihead" in str(frame.attrs["no_bound"])
    assert "head.weight" not in frame.attrs["no_bound"] and "wide.weight" not in frame.attrs["no_bound"]
    found = worst_case_search(attention, x, draws=3, steps=3)
    assert math.isnan(found["bound"].iloc[-1]) and found["found"].iloc[-1] > 0


def test_a_module_applied_twice_has_a_bound_that_is_not_proportional_to_rho() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.tanh(self.inner(torch.tanh(self.inner(x))))
            return self.head(z + z)

    model, x = drawn(Twice(), 2), rows(2, 4)
    conditions = weight_conditions(model, x)
    assert bool(conditions.worst[0].isnan().all()) and "not proportional" in conditions.reasons["inner.weight"]
    frame = worst_case_search(model, x, 0.7, draws=4)
    assert (frame["found"] <= frame["bound"] * (1 + 1e-10)).all() and frame["bound"].notna().all()
    gain = float(torch.linalg.matrix_norm(model.head.weight.detach(), 2))
    z = torch.tanh(model.inner(torch.tanh(model.inner(x)))).detach()
    assert float(weight_noise(model, x, rho=0.1, draws=3)["worst_case"].iloc[-1]) == pytest.approx(
        0.1 * float(model.head.weight.detach().norm() * (2 * z).norm(dim=1).mean()), rel=1e-10
    )
    assert gain > 0


def test_biases_have_a_bound_and_norms_have_none() -> None:
    model, x = NETS["conv"]
    frame = weight_noise(model, x, rho=0.5, draws=200, parameters="all").set_index("layer")
    assert "BatchNorm2d" in frame.attrs["no_bound"]["2.weight"]
    for name in ("0.bias", "7.bias"):
        assert frame.loc[name, "rms_sampled"] <= frame.loc[name, "worst_case"]
    assert frame.loc["7.bias", "worst_case"] == pytest.approx(0.5 * float(model[7].bias.detach().norm()), rel=1e-12)


LAYERS = [
    nn.Conv2d(2, 3, 3, padding=1),
    nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
    nn.Conv2d(3, 2, 2, dilation=2),
    nn.Conv2d(1, 5, 5, stride=3, padding=4),
    nn.Conv2d(4, 4, 1),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_convolution_bounds_hold_and_are_close(layer: nn.Conv2d) -> None:
    layer = drawn(copy.deepcopy(layer), 3)
    exact = float(torch.linalg.matrix_norm(unrolled(layer, 8, 7).detach(), 2))
    found = convolution_gain(layer, (8, 7))
    assert exact <= found * (1 + 1e-12) and found <= 1.35 * exact
    z, noise = rows(3, layer.in_channels, 8, 7), torch.randn_like(layer.weight)
    patches = nn.functional.unfold(z, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    torch.testing.assert_close(patch_norms(layer, z), patches.flatten(1).norm(dim=1), rtol=1e-12, atol=0)
    assert bool((patch_norms(layer, z) <= overlap(layer) * z.flatten(1).norm(dim=1) * (1 + 1e-12)).all())
    moved = nn.functional.conv2d(z, noise, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    spectral = float(torch.linalg.matrix_norm(noise.flatten(1), 2))
    assert bool((moved.detach().flatten(1).norm(dim=1) <= spectral * patch_norms(layer, z) * (1 + 1e-12)).all())


@pytest.mark.parametrize(
    "layer",
    [nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.AdaptiveAvgPool2d(3),
     nn.AdaptiveAvgPool2d((1, None)), nn.BatchNorm2d(2)],
    ids=str,
)  # fmt: skip
def test_gains_of_linear_layers_are_exact(layer: nn.Module) -> None:
    layer = drawn(copy.deepcopy(layer), 1)
    eye = torch.eye(2 * 6 * 7, dtype=torch.float64).view(-1, 2, 6, 7)
    with torch.no_grad():
        matrix = layer(eye).flatten(1) - layer(torch.zeros_like(eye[:1])).flatten(1)
    exact = float(torch.linalg.matrix_norm(matrix, 2))
    found = batch_norm_gain(layer) if isinstance(layer, nn.BatchNorm2d) else average_gain(layer, (6, 7))
    assert found == pytest.approx(exact, rel=1e-10)


def test_max_pooling_gain_holds() -> None:
    for layer in (nn.MaxPool2d(2), nn.MaxPool2d(3, 1), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 1, dilation=2)):
        a = rows(200, 2, 6, 6)
        b = a + 0.1 * rows(200, 2, 6, 6, seed=2)
        change = (layer(a) - layer(b)).flatten(1).norm(dim=1) / (a - b).flatten(1).norm(dim=1)
        assert float(change.max()) <= maximum_gain(layer, 2)


class Operations(nn.Module):
    """Functions and methods that a bound has rules for."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.shift = nn.Parameter(torch.ones(1, 6))
        self.register_buffer("constant", torch.ones(1, 6))

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        if self.which == "cat":
            z = torch.cat([z[:, :3], torch.relu(z)[:, 3:]], 1)
        elif self.which == "cat twice":
            z = torch.cat([z, z], 1)[:, 2:8]
        elif self.which == "scaled":
            z = (2.0 * z - z / 4 + self.constant).tanh()
        elif self.which == "mean":
            z = z.view(z.size(0), 2, 3).mean(1).unsqueeze(2).expand(-1, 3, 2).reshape(x.size(0), 6)
        elif self.which == "mean and add":
            z = z + z.view(-1, 2, 3).permute(0, 2, 1).flatten(1) + z.mean(1, keepdim=True)
        elif self.which == "shift":
            z = torch.sigmoid(z + self.shift)
        elif self.which == "product":
            z = z * z
        elif self.which == "below":
            z = 2 / (z.sigmoid() + 0.1)
        elif self.which == "jump":
            z = nn.functional.softplus(z, threshold=0.5)
        elif self.which == "rows":
            z = z.transpose(0, 1).contiguous().view(6, -1).transpose(0, 1)
        return self.head(z)


@pytest.mark.parametrize("which", ["cat", "cat twice", "scaled", "mean and add", "shift"])
def test_operations_keep_the_bound(which: str) -> None:
    model, x = drawn(Operations(which), 4), rows(4, 6)
    frame = worst_case_search(model, x, 0.8, draws=4, steps=25, parameters=["inner.weight", "head.weight"])
    assert frame["bound"].notna().all() and (frame["found"] <= frame["bound"] * (1 + 1e-10)).all()
    if which == "shift":
        alone = worst_case_search(model, x, 0.8, draws=4, parameters=["shift"]).iloc[0]
        assert alone["found"] <= alone["bound"] <= 100 * alone["found"]


@pytest.mark.parametrize("which", ["mean", "product", "rows", "below", "jump"])
def test_operations_without_a_rule_are_named(which: str) -> None:
    model, x = drawn(Operations(which), 4), rows(4, 6)
    frame = weight_noise(model, x, draws=3, parameters=["inner.weight", "head.weight"])
    assert list(frame["worst_case"].isna()) == [True, False]
    words = {"mean": "expand", "product": "mul", "rows": "transpose", "below": "truediv", "jump": "softplus"}
    assert words[which] in frame.attrs["no_bound"]["inner.weight"]


@pytest.mark.parametrize(
    ("inputs", "layer"),
    [
        # Without an axis of channels PyTorch pools over the last axes and takes the rows for channels.
        (9, nn.MaxPool1d(5, 1)),
        (9, nn.AvgPool1d(3, 1, 1, count_include_pad=False)),
        (9, nn.Sequential(nn.Unflatten(1, (3, 3)), nn.MaxPool2d(2, 1), nn.Flatten())),
        # Jumps where it turns linear.
        (9, nn.Softplus(threshold=1.0)),
    ],
)
def test_layers_without_a_rule_are_named(inputs: int, layer: nn.Module) -> None:
    x = rows(4, 6)
    model = drawn(nn.Sequential(nn.Linear(6, inputs), layer, nn.Linear(layer(torch.ones(1, inputs)).shape[1], 2)), 4)
    frame = weight_noise(model, x, draws=3)
    assert list(frame["worst_case"].isna()) == [True, False]
    assert "no bound is known for layer 1" in frame.attrs["no_bound"]["0.weight"]


def test_search_where_nothing_moves() -> None:
    model = mlp([3, 4, 2], nn.ReLU())
    with torch.no_grad():
        model[0].bias.fill_(-50.0)
    frame = worst_case_search(model, rows(3, 3), draws=4, steps=3)
    assert (frame[["found", "found_over_bound", "found_over_rms"]] == 0.0).all(axis=None)
    assert list(frame["bound"] > 0) == [True, False, True]  # that of the first layer knows slopes, not signs


def test_hooks_take_the_bound_away() -> None:
    model, x = mlp([4, 3, 2]), rows(2, 4)
    model[0].register_forward_hook(lambda module, given, output: 3.0 * output)
    frame = weight_noise(model, x, rho=0.01, draws=300)
    assert frame["worst_case"].isna().all() and "hooks" in frame.attrs["no_bound"]["0.weight"]
    # What the hook does is part of the function all the same.
    assert ((frame["rms_sampled"] - frame["rms_formula"]).abs() < 5 * frame["standard_error"]).all()


def test_what_is_overwritten_and_read_again_takes_the_bound_away() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = mlp([4, 3])[0]

        def forward(self, x: Tensor) -> Tensor:
            h = self.line(x)
            h.mul_(3.0)
            return h

    frame = weight_noise(Scaled(), rows(2, 4), rho=0.1, draws=50)
    assert frame["worst_case"].isna().all() and "in place" in frame.attrs["no_bound"]["line.weight"]


def test_nets_of_the_package_have_bounds() -> None:
    for spec, shape in (("lenet", (1, 8, 8)), ("resnet20", (1, 8, 8)), ("lenet?normalize=0.5,0.5", (1, 8, 8))):
        model = build_model(spec, input_shape=shape, outputs=3, dtype=torch.float64)
        conditions = weight_conditions(model, rows(2, *shape))
        assert conditions.reasons == {} and bool((conditions.worst > 0).all())


def test_settings_are_checked() -> None:
    model, x = mlp([3, 2]), rows(1, 3)
    for settings in ({"starts": 1}, {"steps": 0}, {"rho": -1.0}, {"steps": 2.5}):
        with pytest.raises(UsageError, match="PA321"):
            worst_case_search(model, x, **settings)
    single = worst_case_search(model.float(), x.float(), draws=4, layers=False)
    assert single.attrs["dtype"] == "float64" and list(single["layer"]) == ["all at once"]
