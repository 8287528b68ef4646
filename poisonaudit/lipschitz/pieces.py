"""One layer at a time: the affine map or the activation it stands for, or a refusal that names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused
from poisonaudit.layers import SLOPES, Leaf
from poisonaudit.lipschitz.activations import Activation, activation_of, unfit

ACCEPTED = (
    "nn.Sequential of Linear, Flatten(1), BatchNorm1d and Dropout in eval mode, and elementwise activations "
    f"({', '.join(kind.__name__ for kind in SLOPES if kind is not nn.Dropout)})"
)
# Relative roundings in weight / sqrt(variance + eps): 3, and room.
SCALE_ROUNDINGS = 5


@dataclass(frozen=True)
class Linear:
    """`weight x + bias`, with the name it has in the model."""

    name: str
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Scale:
    """`scale * x + shift`, entry by entry; `scale` is within SCALE_ROUNDINGS roundings of the exact one."""

    name: str
    scale: Tensor
    shift: Tensor


Piece = Linear | Scale | Activation


def piece_of(leaf: Leaf) -> Piece | None:
    """What a layer computes.

    Args:
        leaf: the layer.

    Returns:
        Its affine map, its scaling, or its activation; None for one that changes nothing.

    Raises:
        InputRefused: PA130, the bounds are not proved for it.
    """
    module, kind, name = leaf.module, *known(leaf)
    if kind is nn.Linear:
        weight = matrix_of(module.weight, f"{name} weight")
        zero = torch.zeros(weight.shape[0], dtype=torch.float64)
        shift = module.bias
        return Linear(name, weight, zero if shift is None else matrix_of(shift[:, None], f"{name} bias")[:, 0])
    if kind is nn.Flatten:
        return None
    if kind is nn.BatchNorm1d:
        return _normalisation(module, name)
    if kind is nn.PReLU:
        matrix_of(module.weight[:, None], f"{name} weight")
    activation = activation_of(module, kind)
    if not all(bool(torch.isfinite(torch.as_tensor(end)).all()) for end in SLOPES[kind](activation.module)):
        raise InputRefused("PA130", f"{name} has slopes without limit. No Lipschitz constant is finite. Replace it.")
    return activation


def known(leaf: Leaf) -> tuple[type[nn.Module], str]:
    """Refuse a layer that the bounds are not proved for, by its kind and settings alone; values are not looked at.

    Args:
        leaf: the layer.

    Returns:
        Its kind, and its name for messages.

    Raises:
        InputRefused: PA130, the bounds are not proved for it.
    """
    module, kind, what = leaf.module, leaf.kind, type(leaf.module).__name__
    name = f"layer {leaf.name} ({what})" if leaf.name else what
    if kind is None and isinstance(module, (nn.BatchNorm1d, nn.Dropout)) and module.training:
        raise InputRefused("PA130", f"{name} is in train mode. It computes something else then. Call model.eval().")
    # A subclass with its own forward, or a hook, computes something we cannot see.
    if kind is None:
        raise InputRefused("PA130", f"{name} is not supported. The bounds are proved for {ACCEPTED}. Pass such a net.")
    if leaf.hooked:
        raise InputRefused("PA130", f"{name} has forward hooks. They can change what it computes. Remove them first.")
    if kind is nn.Flatten and not leaf.flattens:
        raise InputRefused("PA130", f"{name} joins other dimensions than 1 to -1. Use Flatten(1).")
    if kind is nn.BatchNorm1d and (module.running_mean is None or module.running_var is None):
        raise InputRefused(
            "PA130", f"{name} uses the statistics of its batch. It is no function of one row. Keep running statistics."
        )
    if kind in SLOPES and (fact := unfit(module, kind)) is not None:
        raise InputRefused("PA130", f"{name} {fact}. No Lipschitz constant is known then. Use other settings.")
    return kind, name


def _normalisation(module: Any, name: str) -> Scale:
    mean, variance = (
        matrix_of(values[:, None], f"{name} {what}")[:, 0]
        for values, what in ((module.running_mean, "running_mean"), (module.running_var, "running_var"))
    )
    scale = (variance + module.eps).sqrt().reciprocal()
    if module.weight is not None:
        scale = matrix_of(module.weight[:, None], f"{name} weight")[:, 0] / (variance + module.eps).sqrt()
    shift = -mean * scale
    if module.bias is not None:
        shift = shift + matrix_of(module.bias[:, None], f"{name} bias")[:, 0]
    if not bool(torch.isfinite(scale).all() and torch.isfinite(shift).all()):
        raise InputRefused("PA130", f"{name} divides by the root of a variance that is not positive. Check its state.")
    return Scale(name, scale, shift)


def as_tensor(values: Any) -> Tensor:
    """A detached CPU tensor; plain Python numbers are read in float64, not in torch's rounding default."""
    given = isinstance(values, (Tensor, np.ndarray))
    return torch.as_tensor(values, dtype=None if given else torch.float64).detach().cpu()


def layout_of(values: Any) -> str | None:
    """The layout of a sparse tensor, for a refusal; None of anything else."""
    if isinstance(values, Tensor) and values.layout != torch.strided:
        return str(values.layout).removeprefix("torch.")
    return None


def matrix_of(values: Any, name: str) -> Tensor:
    """A finite, non-empty 2-D float64 copy on the CPU, converted exactly.

    Args:
        values: tensor, array or nested lists.
        name: for the refusal.

    Returns:
        The matrix.

    Raises:
        InputRefused: PA130, it is no such matrix.
    """
    lazy = isinstance(values, Tensor) and (torch.nn.parameter.is_lazy(values) or values.is_meta)
    if lazy:
        raise InputRefused("PA130", f"{name} has no values yet. Load or initialise the weights first.")
    if (layout := layout_of(values)) is not None:
        raise InputRefused("PA130", f"{name} is a {layout} tensor. Matrices are read in full. Pass its to_dense().")
    try:
        given = as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputRefused("PA130", f"{name} is not a matrix of numbers ({error}). Pass 2-D arrays.") from error
    if given.ndim != 2 or given.numel() == 0:
        raise InputRefused("PA130", f"{name} has shape {tuple(given.shape)}. A non-empty matrix was expected.")
    if given.is_complex() or given.dtype == torch.bool:
        raise InputRefused("PA130", f"{name} is {given.dtype}. Real numbers were expected. Convert it to float64.")
    matrix = given.to(torch.float64).clone()
    if not bool(torch.isfinite(matrix).all()):
        raise InputRefused("PA130", f"{name} holds NaN or infinity. A bound would mean nothing. Check the weights.")
    if not given.is_floating_point() and not torch.equal(matrix.to(given.dtype), given):
        raise InputRefused("PA130", f"{name} holds integers that float64 cannot hold. Convert it to float64.")
    return matrix
