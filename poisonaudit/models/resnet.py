"""Residual networks in the form that He et al. (2016) used on CIFAR-10: resnet20, resnet32, resnet56."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.models.mlp import ACTIVATIONS
from poisonaudit.registry import lookup
from poisonaudit.spec import Spec

SMALLEST = 8
_WIDTHS = (16, 32, 64)


class Shortcut(nn.Module):
    """Option A of the paper: every second pixel, and zero channels on both sides; linear and without weights."""

    # Read by the R-operator: the layer is a linear map of each row.
    linear_map: ClassVar[bool] = True
    # Read by weight noise: its Euclidean norm is at most this.
    linear_norm: ClassVar[float] = 1.0

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, c + 2 extra, ceil(h / 2), ceil(w / 2))."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and the sum with the block's input."""

    def __init__(self, before: int, after: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.activation1 = activation()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity() if stride == 1 else Shortcut((after - before) // 2)
        self.activation2 = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        inner = self.bn2(self.conv2(self.activation1(self.bn1(self.conv1(x)))))
        return self.activation2(inner + self.shortcut(x))


def resnet(depth: int, spec: Spec, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build a residual network with 6 n + 2 weight layers.

    Args:
        depth: 20, 32 or 56: n = 3, 5, 9 blocks in each of three stages of 16, 32 and 64 maps.
        spec: no argument. ?activation=relu|tanh|gelu|silu.
        input_shape: `(channels, height, width)`, from 8 x 8.
        outputs: number of classes or target columns of the data.

    Returns:
        An `nn.Sequential` with layers conv1, bn1, layer1, layer2, layer3, fc; 269,722, 464,154 and 853,018 weights on
        3 channels and ten classes.

    Raises:
        UsageError: PA325, an argument was given.
        InputRefused: PA132, the rows are not pictures, or smaller than 8 x 8.
    """
    spec.allow("activation")
    if spec.argument:
        raise UsageError("PA325", f"{spec.text}: {spec.name} takes its sizes from the data. Pass --model {spec.name}.")
    if len(input_shape) != 3 or min(input_shape[1:]) < SMALLEST:
        raise InputRefused(
            "PA132",
            f"{spec.name} takes pictures (channels, height, width) from {SMALLEST}x{SMALLEST}, the rows have shape "
            f"{tuple(input_shape)}. Pass picture data, e.g. digits?size=32.",
        )
    activation = lookup(ACTIVATIONS, spec.option("activation", "relu"), "activation")
    blocks = (depth - 2) // 6
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(input_shape[0], _WIDTHS[0], 3, padding=1, bias=False))
    net.add_module("bn1", nn.BatchNorm2d(_WIDTHS[0]))
    net.add_module("activation1", activation())
    before = _WIDTHS[0]
    for stage, width in enumerate(_WIDTHS, start=1):
        layer = nn.Sequential()
        for index in range(blocks):
            layer.append(Block(before, width, 2 if stage > 1 and index == 0 else 1, activation))
            before = width
        net.add_module(f"layer{stage}", layer)
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(before, outputs))
    return net


def _of_depth(depth: int, size: str) -> Callable[[Spec, tuple[int, ...], int], nn.Module]:
    builder = partial(resnet, depth)
    builder.__doc__ = f"`resnet{depth}`: the CIFAR form, {size} million weights. ?activation=relu|tanh|gelu|silu."
    return builder


RESNETS = {f"resnet{depth}": _of_depth(depth, size) for depth, size in ((20, "0.27"), (32, "0.46"), (56, "0.85"))}
