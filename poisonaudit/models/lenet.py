"""A small convolutional network after LeNet-5 that takes pictures of any size from 4 x 4."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.models.mlp import ACTIVATIONS
from poisonaudit.registry import lookup
from poisonaudit.spec import Spec

SMALLEST = 4
CLASSICAL = 28


def lenet(spec: Spec, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """`lenet`: two convolutions with average pooling, then linear layers. ?activation=tanh|relu|gelu|silu.

    From 28 x 28 on it is LeNet-5 (6 and 16 maps of 5 x 5, then 120 and 84 units; 28 x 28 is padded to 32 x
    32, larger pictures are pooled to 5 x 5 maps). Below, 4 and 8 maps of 3 x 3 and 16 hidden units: 1,034
    weights on 1 x 8 x 8 and ten classes. Average pooling and tanh keep the loss twice differentiable.

    Args:
        spec: no argument.
        input_shape: `(channels, height, width)`.
        outputs: number of classes or target columns of the data.

    Returns:
        An `nn.Sequential` with layers conv1, conv2, fc1, ...

    Raises:
        UsageError: PA325, an argument was given.
        InputRefused: PA132, the rows are not pictures, or smaller than 4 x 4.
    """
    spec.allow("activation")
    if spec.argument:
        raise UsageError("PA325", f"{spec.text}: lenet takes its sizes from the data. Pass --model lenet.")
    if len(input_shape) != 3:
        raise InputRefused(
            "PA132",
            f"lenet takes pictures (channels, height, width), the rows have shape {tuple(input_shape)}. "
            f"Pass --model mlp:... or linear, or load the data with images=True.",
        )
    channels, height, width = input_shape
    if min(height, width) < SMALLEST:
        raise InputRefused(
            "PA132",
            f"lenet takes pictures from {SMALLEST}x{SMALLEST}, these are {height}x{width}. Pass linear or mlp.",
        )
    activation = lookup(ACTIVATIONS, spec.option("activation", "tanh"), "activation")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if min(height, width) < CLASSICAL:
        layers["conv1"] = nn.Conv2d(channels, 4, 3, padding=1)
        layers["activation1"] = activation()
        layers["pool1"] = nn.AvgPool2d(2)
        layers["conv2"] = nn.Conv2d(4, 8, 3, padding=1)
        layers["activation2"] = activation()
        layers["pool2"] = nn.AdaptiveAvgPool2d(2)
        widths = [32, 16, outputs]
    else:
        layers["conv1"] = nn.Conv2d(channels, 6, 5, padding=2 if min(height, width) < 32 else 0)
        layers["activation1"] = activation()
        layers["pool1"] = nn.AvgPool2d(2)
        layers["conv2"] = nn.Conv2d(6, 16, 5)
        layers["activation2"] = activation()
        layers["pool2"] = nn.AdaptiveAvgPool2d(5)
        widths = [400, 120, 84, outputs]
    layers["flatten"] = nn.Flatten()
    for depth, (before, after) in enumerate(zip(widths, widths[1:], strict=False), start=1):
        if depth > 1:
            layers[f"activation{depth + 1}"] = activation()
        layers[f"fc{depth}"] = nn.Linear(before, after)
    return nn.Sequential(layers)
