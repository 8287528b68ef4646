"""Fully connected networks: `mlp:64-32-10?activation=tanh` and `linear`."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping

from torch import nn

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.registry import lookup
from poisonaudit.spec import Spec

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
MAX_PARAMETERS = 500_000_000


def mlp(spec: Spec, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """`mlp:64-32-10`: linear layers, activations between them. ?activation=relu|tanh|gelu|silu, ?bias=true|false.

    Args:
        spec: argument `WIDTH-WIDTH-...`, the first the number of inputs, the last the number of outputs.
        input_shape: of one row.
        outputs: number of classes or target columns of the data.

    Returns:
        An `nn.Sequential` whose linear layers are named 0, 2, 4, ... as in a plain one.

    Raises:
        InputRefused: PA132, the first or last width does not fit the data.
    """
    spec.allow("activation", "bias")
    widths = _widths(spec)
    inputs = math.prod(input_shape)
    fitting = [inputs, *widths[1:-1], outputs]
    if widths != fitting:
        raise InputRefused(
            "PA132",
            f"{spec.text} takes {widths[0]} inputs and gives {widths[-1]} outputs, the data has {inputs} and "
            f"{outputs}. Pass --model {respelled(spec.options, fitting)}.",
        )
    activation = lookup(ACTIVATIONS, spec.option("activation", "relu"), "activation")
    return _stack(widths, activation, len(input_shape) > 1, spec.boolean("bias", True))


def linear(spec: Spec, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """`linear`: one linear layer from all inputs to all outputs. ?bias=true|false."""
    spec.allow("bias")
    if spec.argument:
        raise UsageError("PA325", f"{spec.text}: linear takes its widths from the data. Pass --model linear.")
    return _stack([math.prod(input_shape), outputs], nn.Identity, len(input_shape) > 1, spec.boolean("bias", True))


def respelled(options: Mapping[str, str], widths: list[int]) -> str:
    """The mlp of these options and widths, as the user would write it."""
    query = "&".join(f"{key}={value}" for key, value in options.items())
    return f"mlp:{'-'.join(map(str, widths))}" + (f"?{query}" if query else "")


def _widths(spec: Spec) -> list[int]:
    parts = spec.argument.split("-")
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() and 0 < len(part) <= 7 for part in parts):
        raise UsageError(
            "PA325",
            f"{spec.text}: widths are whole numbers joined by '-'. Write mlp:INPUTS-HIDDEN-...-OUTPUTS.",
        )
    widths = [int(part) for part in parts]
    if min(widths) < 1:
        raise UsageError(
            "PA325", f"{spec.text} has a layer of width 0, through which nothing passes. Give widths from 1."
        )
    size = sum((before + 1) * after for before, after in zip(widths, widths[1:], strict=False))
    if size > MAX_PARAMETERS:
        raise UsageError(
            "PA325", f"{spec.text} has {size} weights; at most {MAX_PARAMETERS} are accepted. Lower the widths."
        )
    return widths


def _stack(widths: list[int], activation: Callable[[], nn.Module], flatten: bool, bias: bool) -> nn.Sequential:
    # The flattening layer has a name of its own, so that weights fit with and without it.
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if flatten:
        layers["flatten"] = nn.Flatten()
    for depth, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        if depth:
            layers[str(2 * depth - 1)] = activation()
        layers[str(2 * depth)] = nn.Linear(inputs, outputs, bias=bias)
    return nn.Sequential(layers)
