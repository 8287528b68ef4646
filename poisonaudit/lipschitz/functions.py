"""Functions of torch as the layers they stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from poisonaudit.tracing import POOLING_FUNCTIONS

# Functions by the layer whose options they share, in the order of their arguments.
_FUNCTIONS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "relu": (nn.ReLU, ("inplace",)),
    "relu6": (nn.ReLU6, ("inplace",)),
    "leaky_relu": (nn.LeakyReLU, ("negative_slope", "inplace")),
    "elu": (nn.ELU, ("alpha", "inplace")),
    "celu": (nn.CELU, ("alpha", "inplace")),
    "selu": (nn.SELU, ("inplace",)),
    "hardtanh": (nn.Hardtanh, ("min_val", "max_val", "inplace")),
    "hardsigmoid": (nn.Hardsigmoid, ("inplace",)),
    "hardswish": (nn.Hardswish, ("inplace",)),
    "tanh": (nn.Tanh, ()),
    "sigmoid": (nn.Sigmoid, ()),
    "gelu": (nn.GELU, ("approximate",)),
    "silu": (nn.SiLU, ("inplace",)),
    "mish": (nn.Mish, ("inplace",)),
    "softplus": (nn.Softplus, ("beta", "threshold")),
    "softsign": (nn.Softsign, ()),
    "logsigmoid": (nn.LogSigmoid, ()),
    "log_sigmoid": (nn.LogSigmoid, ()),  # its name inside torch
    "tanhshrink": (nn.Tanhshrink, ()),
    "softshrink": (nn.Softshrink, ("lambd",)),
    **POOLING_FUNCTIONS,
}
# Functions of a tensor and weights, the layer they are, and its options in their order.
_WEIGHTED: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "linear": (nn.Linear, ()),
    "conv1d": (nn.Conv1d, ("stride", "padding", "dilation", "groups")),
    "conv2d": (nn.Conv2d, ("stride", "padding", "dilation", "groups")),
}
_NORM_OPTIONS = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


class Unknown(Exception):
    """No bound is proved for this; the message says of what."""


def layer_of(name: str, axes: int, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The layer in eval mode that a function of one tensor is.

    Args:
        name: of the function, without underscores around it.
        axes: of a row.
        arguments: after the tensor.
        options: by keyword.

    Returns:
        The layer, None for a function that is none.

    Raises:
        Unknown: its weights depend on the input, or it is in train mode.
    """
    if name in _FUNCTIONS:
        kind, names = _FUNCTIONS[name]
        return kind(**(dict(zip(names, arguments, strict=False)) | options)).eval()
    if name in _WEIGHTED:
        return _weighted(name, arguments, options)
    if name == "prelu":
        weight = _constant((arguments or (options.get("weight"),))[0])
        layer: Any = nn.PReLU(weight.numel(), device="meta")
        layer.weight = nn.Parameter(weight.reshape(-1), requires_grad=False)
        return layer.eval()
    if name == "batch_norm":
        return _normalisation(axes, arguments, options)
    return None


def _weighted(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The layer that a function of a tensor, weights and options is."""
    kind, names = _WEIGHTED[name]
    given = dict(zip(("weight", "bias", *names), arguments, strict=False)) | options
    weight, bias = _constant(given.pop("weight", None)), given.pop("bias", None)
    if weight.dim() != {"linear": 2, "conv1d": 3, "conv2d": 4}[name]:
        raise Unknown(f"has a weight of shape {tuple(weight.shape)}")
    columns = weight.shape[1] * given.get("groups", 1)
    sizes = [tuple(weight.shape[2:])] if names else []
    # Without values: those of its own would be drawn from the user's random generator.
    layer: Any = kind(columns, weight.shape[0], *sizes, bias=False, device="meta", **given)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(_constant(bias), requires_grad=False)
    return layer.eval()


def _normalisation(axes: int, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The batch normalisation of torch.nn.functional; torch.batch_norm takes its arguments in another order."""
    given = dict(zip(_NORM_OPTIONS, arguments, strict=False)) | options
    if len(arguments) > len(_NORM_OPTIONS) or not given.keys() <= set(_NORM_OPTIONS):
        raise Unknown("has other arguments than torch.nn.functional.batch_norm")
    if given.get("training", False):
        raise Unknown("is in train mode; call eval() first")
    mean, variance = _constant(given.get("running_mean")), _constant(given.get("running_var"))
    kind = nn.BatchNorm1d if axes < 3 else nn.BatchNorm2d
    layer: Any = kind(mean.numel(), eps=given.get("eps", 1e-5), device="meta")
    layer.running_mean, layer.running_var = mean, variance
    weight, bias = given.get("weight"), given.get("bias")
    weight = torch.ones_like(mean) if weight is None else _constant(weight)
    bias = torch.zeros_like(mean) if bias is None else _constant(bias)
    layer.weight, layer.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))
    return layer.eval()


def _constant(value: Any) -> Tensor:
    """Weights given to a function."""
    if not isinstance(value, Tensor):
        raise Unknown("has weights that depend on the input")
    if not bool(torch.isfinite(value).all()):
        raise Unknown("has weights that are NaN or infinite")
    return value.detach()
