"""Residual networks of CIFAR form, networks of other libraries, and normalisation inside the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from poisonaudit.cli.main import cli
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.models import build_model, load_weights, save_weights, wants_images
from poisonaudit.operators import Linearisation
from poisonaudit.problem import Problem


def counted(depth: int, channels: int, outputs: int) -> int:
    """Weights by the paper's table: 3 x 3 kernels without bias, two numbers a channel of batch norm, a linear head."""
    blocks, widths = (depth - 2) // 6, (16, 32, 64)
    total, before = 9 * channels * 16 + 2 * 16, 16
    for width in widths:
        for _ in range(blocks):
            total += 9 * before * width + 9 * width * width + 4 * width
            before = width
    return total + 64 * outputs + outputs


@pytest.mark.parametrize(("depth", "printed"), [(20, 0.27e6), (32, 0.46e6), (56, 0.85e6)])
def test_residual_networks(depth: int, printed: float) -> None:
    net = build_model(f"resnet{depth}", input_shape=(3, 32, 32), outputs=10, dtype=torch.float32)
    size = sum(value.numel() for value in net.parameters())
    assert size == counted(depth, 3, 10) and size == pytest.approx(printed, rel=0.02)
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in net.modules()) == depth
    assert not net.training and net(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert wants_images(f"resnet{depth}")


def test_the_shortcut_takes_every_second_pixel_and_pads_channels() -> None:
    net = build_model("resnet20?activation=tanh", input_shape=(1, 9, 9), outputs=3)
    shortcut = net.get_submodule("layer2.0.shortcut")
    x = torch.rand(2, 16, 9, 9, dtype=torch.float64)
    y = shortcut(x)
    assert y.shape == (2, 32, 5, 5) and torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()
    assert isinstance(net.get_submodule("layer1.0.activation1"), nn.Tanh)


def test_residual_networks_take_the_fast_path() -> None:
    net = build_model("resnet20?normalize=0.5,0.25", input_shape=(1, 8, 8), outputs=4)
    problem = Problem(net, "cross_entropy", torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.arange(4), 1e-3)
    kept = Linearisation(problem)
    assert kept.path == "r_operator", kept.note


@pytest.mark.parametrize("spec", ["resnet20:3", "resnet20?depth=3"])
def test_options_that_residual_networks_do_not_have(spec: str) -> None:
    with pytest.raises(UsageError):
        build_model(spec, input_shape=(3, 32, 32), outputs=10)


@pytest.mark.parametrize("shape", [(64,), (1, 4, 4)])
def test_rows_that_residual_networks_do_not_take(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputRefused, match="PA132"):
        build_model("resnet20", input_shape=shape, outputs=10)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [("torchvision:resnet18", (3, 32, 32)), ("torchvision:vit_b_32", (3, 32, 32)), ("timm:resnet10t", (1, 32, 32))],
)
def test_networks_of_other_libraries(spec: str, shape: tuple[int, ...]) -> None:
    if spec.startswith("timm"):
        pytest.importorskip("timm")
    net = build_model(spec, input_shape=shape, outputs=7, dtype=torch.float32, seed=3)
    again = build_model(spec, input_shape=shape, outputs=7, dtype=torch.float32, seed=3)
    x = torch.rand(2, *shape)
    assert net(x).shape == (2, 7) and torch.equal(net(x), again(x)) and wants_images(spec)


def test_unknown_networks_and_missing_names() -> None:
    with pytest.raises(UsageError, match=r"PA301 unknown torchvision model 'resnet19'. Did you mean .*resnet18"):
        build_model("torchvision:resnet19", input_shape=(3, 32, 32), outputs=10)
    with pytest.raises(UsageError, match="PA325"):
        build_model("torchvision", input_shape=(3, 32, 32), outputs=10)
    with pytest.raises(InputRefused, match="PA132"):
        build_model("torchvision:resnet18", input_shape=(64,), outputs=10)
    with pytest.raises(InputRefused, match="PA132"):  # five classes asked for, the data has ten
        build_model("torchvision:resnet18?num_classes=5", input_shape=(3, 32, 32), outputs=10)


def test_timm_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UsageError, match=r"PA326 .*pip install 'poisonaudit\[timm\]'"):
        build_model("timm:resnet10t", input_shape=(3, 32, 32), outputs=10)


MEAN, DEVIATION = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.mark.parametrize("spec", ["resnet20", "torchvision:mobilenet_v2"])
def test_normalisation_inside_the_model(spec: str, tmp_path: Path) -> None:
    given = "normalize=0.4:0.5:0.6,0.2:0.25:0.3"
    plain = build_model(spec, input_shape=(3, 32, 32), outputs=10, seed=1)
    inside = build_model(f"{spec}?{given}", input_shape=(3, 32, 32), outputs=10, seed=1)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    mean, deviation = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, DEVIATION))
    assert torch.allclose(inside(x), plain((x - mean) / deviation), rtol=1e-9, atol=0)
    # Names are those of the plain network, so that a published checkpoint fits.
    assert list(inside.state_dict()) == list(plain.state_dict())
    other = build_model(spec, input_shape=(3, 32, 32), outputs=10, seed=2)
    save_weights(tmp_path / "w.safetensors", dict(other.state_dict()), {})
    load_weights(inside, tmp_path / "w.safetensors")
    assert torch.allclose(inside(x), other((x - mean) / deviation), rtol=1e-9, atol=0)
    assert not torch.allclose(inside(x), plain((x - mean) / deviation), rtol=1e-2, atol=0)


def test_normalisation_of_flat_rows_and_presets() -> None:
    net = build_model("mlp:4-3-2?normalize=0.5,0.1", input_shape=(4,), outputs=2)
    plain = build_model("mlp:4-3-2", input_shape=(4,), outputs=2)
    x = torch.rand(3, 4, dtype=torch.float64)
    assert torch.allclose(net(x), plain((x - 0.5) / 0.1)) and list(net.state_dict()) == list(plain.state_dict())
    build_model("resnet20?normalize=imagenet", input_shape=(3, 32, 32), outputs=2)
    with pytest.raises(InputRefused, match="PA132 .*3 channels"):
        build_model("resnet20?normalize=imagenet", input_shape=(1, 32, 32), outputs=2)


def test_normalisation_of_flattened_pictures_by_channel() -> None:
    given, shape = "0.4:0.5:0.6,0.2:0.25:0.3", (3, 2, 2)
    flat = build_model(f"linear?normalize={given}", input_shape=(12,), outputs=2, image_shape=shape)
    pictures = build_model(f"linear?normalize={given}", input_shape=shape, outputs=2)
    flat.load_state_dict(pictures.state_dict())
    x = torch.rand(5, *shape, dtype=torch.float64)
    torch.testing.assert_close(flat(x.flatten(1)), pictures(x), rtol=1e-12, atol=1e-12)
    mean, deviation = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, DEVIATION))
    plain = build_model("linear", input_shape=shape, outputs=2)
    plain.load_state_dict(pictures.state_dict())
    torch.testing.assert_close(flat(x.flatten(1)), plain((x - mean) / deviation), rtol=1e-9, atol=1e-12)
    # The operators know the layer in this form too.
    problem = Problem(flat, "cross_entropy", x.flatten(1), torch.arange(5) % 2, 1e-2)
    kept = Linearisation(problem)
    assert kept.path == "r_operator", kept.note
    v = torch.randn(problem.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = torch.autograd.functional.hessian(problem.objective, problem.weights)
    torch.testing.assert_close(kept.hessian(v), exact @ v, rtol=1e-8, atol=1e-10)


def test_normalisation_of_columns_one_by_one_and_what_is_refused() -> None:
    net = build_model("linear?normalize=0:1:2,1:2:4", input_shape=(3,), outputs=2)
    plain = build_model("linear", input_shape=(3,), outputs=2)
    x = torch.rand(4, 3, dtype=torch.float64)
    scaled = (x - torch.tensor([0.0, 1.0, 2.0])) / torch.tensor([1.0, 2.0, 4.0])
    assert torch.allclose(net(x), plain(scaled), rtol=1e-12)
    with pytest.raises(InputRefused, match="PA132 .*has 3 channels, the rows are 30 columns that are not known to be"):
        build_model("linear?normalize=cifar10", input_shape=(30,), outputs=2)
    with pytest.raises(InputRefused, match="PA132 .*has 3 channels, the flattened pictures 1"):
        build_model("linear?normalize=cifar10", input_shape=(64,), outputs=2, image_shape=(1, 8, 8))


def test_a_linear_victim_with_normalised_channels_is_trained_and_attacked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = rng.integers(0, 200, (60, 3, 5, 5)) + 50 * y[:, None, None, None]
    np.savez(tmp_path / "colour.npz", x=x.astype(np.uint8), y=y)
    words = ["--model", "linear?normalize=cifar10", "--data", f"npz:{tmp_path / 'colour.npz'}", "--decay", "0.01"]
    runs = tmp_path / "train"
    trained = CliRunner().invoke(cli, ["train", *words, "--out", str(runs)])
    assert trained.exit_code == 0, trained.stderr
    changes = [f"victim={runs}", "budget.share=0.1", "craft.steps=1", "retrain.fresh=0", "baselines=[]"]
    changes += ["detectors=false", "inspection=false"]
    words = ["attack", "flip-one-digit", *(word for change in changes for word in ("--set", change))]
    attacked = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "run")])
    assert attacked.exit_code == 0, attacked.stderr


@pytest.mark.parametrize("text", ["", "1", "1,0", "1,-2", "a,b", "1:2,3", "nan,1", "1,2,3"])
def test_malformed_normalisation(text: str) -> None:
    with pytest.raises(UsageError, match="PA327"):
        build_model(f"linear?normalize={text}", input_shape=(4,), outputs=2)
