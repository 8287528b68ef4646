"""Read a net of Linear layers and elementwise activations as a chain, or say which layer does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused
from poisonaudit.layers import SLOPES, Leaf, dense_layers, steepest

# Bound on the |slope| of each activation.
_STEEPEST: dict[type[nn.Module], Callable[[nn.Module], float]] = dict.fromkeys(SLOPES, steepest)


@dataclass(frozen=True)
class Step:
    """One Linear layer and the activations after it.

    Attributes:
        name: of the weight in named_parameters().
        weight: (n_i, n_(i-1)).
        bias: (n_i,) or None.
        activations: elementwise modules applied to the result, in order.
        steepest: bound on |slope| of their composition.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    activations: tuple[nn.Module, ...]
    steepest: float

    def activate(self, values: Tensor) -> Tensor:
        """The activations applied to pre-activations."""
        for activation in self.activations:
            values = activation(values)
        return values

    def slopes(self, values: Tensor) -> Tensor:
        """Derivative of the activations at pre-activations, entrywise."""
        if not self.activations:
            return torch.ones_like(values)
        point = values.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.activate(point).sum(), point)
        return slope


def read_chain(model: nn.Module, x: Tensor) -> tuple[tuple[Step, ...], Tensor]:
    """The net as Linear layers with activations, and the inputs as (batch, n_0) rows.

    Args:
        model: Sequential (also nested) of Linear, elementwise activations, Flatten, Identity, Dropout (eval).
        x: inputs (batch, ...), of the model's dtype and device.

    Returns:
        `(steps, rows)`.

    Raises:
        InputRefused: PA120 train-mode Dropout, PA152 a layer that does not fit, PA210 NaN or infinite inputs,
            PA211 no rows; PA121 mixed dtypes or devices and PA211 widths that do not fit come from inside.
    """
    if x.dim() < 2 or x.shape[0] == 0:
        raise InputRefused("PA211", f"inputs have shape {tuple(x.shape)}. Pass at least one row, (batch, ...).")
    if not bool(torch.isfinite(x).all()):
        raise InputRefused("PA210", "inputs hold NaN or infinite entries. Remove or impute those rows.")
    layers, unfit = dense_layers(model, flat=x.dim() == 2)
    if unfit is not None:
        if isinstance(unfit.module, nn.Dropout) and unfit.module.training:
            raise InputRefused("PA120", f"layer {unfit.name} is in train mode. Call model.eval() first.")
        raise InputRefused(
            "PA152",
            f"layer {unfit.name or 'at the top'} ({type(unfit.module).__name__}) is not a Linear layer or an "
            "elementwise activation. Pass a Sequential of those, with Flatten first for images.",
        )
    for leaf, activations in layers:
        if any(value.numel() > 1 for activation in activations for value in activation.parameters()):
            raise InputRefused(
                "PA152",
                f"the PReLU after layer {leaf.name} has several slopes. Draws of noise are stacked in front of the "
                "neurons, where it would look for its channels. Give it one slope.",
            )
    steps = tuple(_step(leaf, activations) for leaf, activations in layers)
    _refuse_unfit(steps, x)
    return steps, x.reshape(x.shape[0], -1)


def forward(steps: tuple[Step, ...], rows: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Inputs `z_(i-1)` and pre-activations `h_i` of every layer, and the outputs v."""
    entering, before = [], []
    values = rows
    for step in steps:
        entering.append(values)
        before.append(nn.functional.linear(values, step.weight, step.bias))
        values = step.activate(before[-1])
    return entering, before, values


def _step(leaf: Leaf, activations: tuple[nn.Module, ...]) -> Step:
    name = f"{leaf.name}.weight" if leaf.name else "weight"
    bias = None if leaf.module.bias is None else leaf.module.bias.detach()
    slope = math.prod((_STEEPEST[type(layer)](layer) for layer in activations), start=1.0)
    return Step(name, leaf.module.weight.detach(), bias, activations, slope)


def _refuse_unfit(steps: tuple[Step, ...], x: Tensor) -> None:
    if not steps:
        raise InputRefused("PA152", "the model has no Linear layer, so no weight matrix to perturb. Pass an MLP.")
    if len({step.weight.data_ptr() for step in steps}) < len(steps):
        raise InputRefused("PA152", "two layers share one weight matrix. Pass a net whose layers have their own.")
    width = math.prod(x.shape[1:])
    for step in steps:
        if step.weight.dtype != x.dtype or step.weight.device != x.device:
            raise InputRefused(
                "PA121",
                f"{step.name} is {step.weight.dtype} on {step.weight.device}, inputs {x.dtype} on {x.device}. "
                "Convert both to one dtype and device, float64 for audits.",
            )
        if step.weight.shape[1] != width:
            raise InputRefused(
                "PA211",
                f"{step.name} takes {step.weight.shape[1]} entries and gets {width}. Pass rows that fit.",
            )
        width = step.weight.shape[0]
