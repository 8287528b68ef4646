"""A block of the dense Hessian in closed form: the weights of the model's largest Linear layer.

A layer's own weights W (and bias) enter the loss of row n only through `z_n = W a_n + b`, where its input a_n does not
depend on them, so their block of H is `sum_n S_n (x) (a_n, 1)(a_n, 1)^T` with the small Hessians
`S_n = d^2 loss_n / d z_n^2 / rows`: twice as many passes as the layer has outputs, and matrix products, instead of one
Hessian product a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from poisonaudit.operators.precision import full_precision
from poisonaudit.problem import Problem

# Entries of the largest temporary; 2e7 float64 entries are 160 MB.
_ENTRIES = 20_000_000
# Narrower layers leave little to save.
_LEAST_INPUTS = 4


@dataclass(frozen=True)
class LinearLayer:
    """A Linear layer that is called once.

    Attributes:
        name: of the module.
        places: position in the flat weights of every entry of (W, b), (outputs, inputs + 1) or (outputs, inputs).
    """

    name: str
    places: Tensor


def find_largest_linear(problem: Problem) -> LinearLayer | None:
    """The Linear layer with most weights; None where there is none worth the trouble.

    Args:
        problem: gives the model.

    Returns:
        The layer.
    """
    module = problem.module()
    # With two rows a layer that sees several lines a row (tokens, patches) shows itself.
    probe = problem.x[:2]
    seen: dict[str, int] = {}
    hooks = []
    for name, layer in module.named_modules():
        # A subclass may compute something else from the same weights.
        if type(layer) is nn.Linear:
            hooks.append(layer.register_forward_hook(_watch(name, len(probe), seen)))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(probe)
    for hook in hooks:
        hook.remove()
    found = [name for name, inputs in seen.items() if inputs >= _LEAST_INPUTS]
    offsets, position = {}, 0
    for name, shape in zip(problem.names, problem.shapes, strict=True):
        offsets[name] = position
        position += shape.numel()
    places = [_places(name, module.get_submodule(name), offsets) for name in found]
    known = [LinearLayer(name, place) for name, place in zip(found, places, strict=True) if place is not None]
    return max(known, key=lambda layer: layer.places.numel(), default=None)


def linear_block(problem: Problem, layer: LinearLayer) -> Tensor:
    """The layer's block of H, decay included.

    Args:
        problem: the point.
        layer: of its model.

    Returns:
        (m, m) for the m entries of `layer.places`, in their order.
    """
    outputs, inputs = layer.places.shape
    size = outputs * inputs
    block = torch.zeros(outputs, inputs, outputs, inputs, dtype=problem.dtype, device=problem.device)
    rows = max(1, _ENTRIES // (outputs * max(outputs, inputs)))
    with full_precision(problem.dtype):
        for start in range(0, problem.rows, rows):
            span = slice(start, start + rows)
            small, seen = _small_hessians(problem, layer, problem.x[span], problem.y[span])
            if seen.shape[1] < inputs:
                seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
            for unit in range(outputs):
                weighted = small[:, unit, unit:, None] * seen[:, None, :]
                found = seen.T @ weighted.reshape(len(seen), -1)
                block[unit, :, unit:] += found.view(inputs, outputs - unit, inputs)
    for unit in range(1, outputs):
        block[unit, :, :unit] = block[:unit, :, unit].permute(2, 0, 1)
    flat = block.view(size, size)
    flat.diagonal().add_(problem.decay)
    return flat


def _watch(name: str, rows: int, seen: dict[str, int]) -> Any:
    """A hook that notes layers whose input is a matrix, one line a row."""

    def note(_layer: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        data = inputs[0] if inputs else None
        if isinstance(data, Tensor) and data.dim() == 2 and len(data) == rows:
            seen[name] = data.shape[1]

    return note


def _places(name: str, layer: nn.Module, offsets: dict[str, int]) -> Tensor | None:
    """Flat positions of weight and bias, None where they are not the problem's own."""
    prefix = f"{name}." if name else ""
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if not isinstance(weight, Tensor) or f"{prefix}weight" not in offsets:
        return None
    places = offsets[f"{prefix}weight"] + torch.arange(weight.numel()).view(weight.shape)
    if bias is None:
        return places
    if f"{prefix}bias" not in offsets:
        return None
    return torch.cat([places, (offsets[f"{prefix}bias"] + torch.arange(bias.numel()))[:, None]], dim=1)


def _small_hessians(problem: Problem, layer: LinearLayer, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`d^2 loss_n / d z_n^2 / rows` (k, outputs, outputs), and the layer's inputs (k, inputs)."""
    module = problem.module().requires_grad_(False)
    outputs = layer.places.shape[0]
    shift = torch.zeros(len(x), outputs, dtype=problem.dtype, device=problem.device, requires_grad=True)
    seen: list[Tensor] = []

    def shifted(_layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        seen.append(inputs[0].detach())
        return output + shift

    module.get_submodule(layer.name).register_forward_hook(shifted)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        loss = problem.loss_per_row(module(x), y).sum() / problem.rows
        (slope,) = torch.autograd.grad(loss, shift, create_graph=True, materialize_grads=True)
        columns = []
        for unit in range(outputs):
            if not slope.requires_grad:
                columns.append(torch.zeros_like(slope))
                continue
            (column,) = torch.autograd.grad(slope[:, unit].sum(), shift, retain_graph=True, materialize_grads=True)
            columns.append(column.detach())
    return torch.stack(columns, dim=2), seen[0]
