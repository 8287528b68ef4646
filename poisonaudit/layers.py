"""Walk nested Sequentials into their layers, and say of each what it computes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# A bound of a slope: one number for all neurons, or one per channel.
Slope = float | Tensor

_UNIT = (0.0, 1.0)


def _leaky(slope: float) -> tuple[float, float]:
    return min(1.0, slope), max(1.0, slope)


def _prelu(layer: Any) -> tuple[Slope, Slope]:
    slope = layer.weight.detach().to("cpu", torch.float64)
    if slope.numel() == 1:
        return _leaky(float(slope))
    return slope.clamp_max(1.0), slope.clamp_min(1.0)


# Interval (lower, upper) that holds the derivative of each elementwise layer everywhere, kinks apart, and that no
# smaller one does; rounded outwards to seven digits where an end is no float64. GELU: 1/2 -+ (erf(1)/2 + exp(-1) /
# sqrt(pi)), at -+ sqrt 2. Its tanh form, SiLU and Mish turn where their second derivative vanishes: at -+ 1.4185041,
# at -+ 2.3993573, at -2.2563764 and 1.4905712.
SLOPES: dict[type[nn.Module], Callable[[Any], tuple[Slope, Slope]]] = {
    nn.ReLU: lambda layer: _UNIT,
    nn.LeakyReLU: lambda layer: _leaky(float(layer.negative_slope)),
    nn.PReLU: _prelu,
    nn.ELU: lambda layer: (min(0.0, float(layer.alpha)), max(1.0, float(layer.alpha))),
    # exp(x / alpha) below zero: with a negative alpha it grows without limit.
    nn.CELU: lambda layer: (0.0, 1.0 if layer.alpha > 0 else math.inf),
    nn.SELU: lambda layer: (0.0, 1.7580994),  # scale * alpha = 1.75809934..
    nn.ReLU6: lambda layer: _UNIT,  # in front of Hardtanh, its parent
    nn.Hardtanh: lambda layer: _UNIT,
    nn.Hardsigmoid: lambda layer: (0.0, math.nextafter(1.0 / 6.0, 1.0)),
    nn.Hardswish: lambda layer: (-0.5, 1.5),
    nn.Tanh: lambda layer: _UNIT,
    nn.Sigmoid: lambda layer: (0.0, 0.25),
    nn.GELU: lambda layer: (-0.1289931, 1.1289931) if layer.approximate == "tanh" else (-0.1289042, 1.1289042),
    nn.SiLU: lambda layer: (-0.0998394, 1.0998394),
    nn.Mish: lambda layer: (-0.1125262, 1.0884982),
    nn.Softplus: lambda layer: _UNIT,
    nn.Softsign: lambda layer: _UNIT,
    nn.LogSigmoid: lambda layer: _UNIT,
    nn.Tanhshrink: lambda layer: _UNIT,
    nn.Softshrink: lambda layer: _UNIT,
    nn.Identity: lambda layer: (1.0, 1.0),
    nn.Dropout: lambda layer: (1.0, 1.0),  # in eval mode; `leaves` gives no kind to one in train mode
}
# Softplus is linear beyond its threshold, and jumps by log(1 + exp(-threshold)) / beta there: 2e-9 / beta at 20.
SOFTPLUS_THRESHOLD = 20.0
_UNCHANGED = (nn.Identity, nn.Dropout)
_KNOWN: tuple[type[nn.Module], ...] = (nn.Sequential, nn.Linear, nn.Flatten, nn.BatchNorm1d, *SLOPES)


@dataclass(frozen=True)
class Leaf:
    """One layer of a net.

    Attributes:
        name: dotted, as in named_modules(); empty for the model itself.
        module: the nn.Module.
        kind: Linear, Flatten, BatchNorm1d, a key of SLOPES, or Sequential for one with hooks; None for a layer of
            another class, one with a forward of its own, and BatchNorm1d and Dropout in train mode.
        hooked: whether forward hooks may change what it computes.
    """

    name: str
    module: Any
    kind: type[nn.Module] | None
    hooked: bool

    @property
    def flattens(self) -> bool:
        """Whether it makes one row of each input: Flatten(1, -1) without hooks."""
        joins_all = self.kind is nn.Flatten and (self.module.start_dim, self.module.end_dim) == (1, -1)
        return joins_all and not self.hooked


def leaves(model: nn.Module, *, subclasses: bool = False, name: str = "") -> Iterator[Leaf]:
    """The layers of nested Sequentials in the order they apply; a module used twice comes twice.

    Args:
        model: any module. What is not a Sequential, or is one with hooks or a forward of its own, is one leaf.
        subclasses: let a class that inherits its forward, as parametrised layers do, count as its parent.
        name: of the model itself, in front of the names inside.

    Yields:
        One leaf at a time.
    """
    kind, hooked = _kind(model, subclasses), has_forward_hooks(model)
    if kind is not nn.Sequential or hooked:
        yield Leaf(name, model, kind, hooked)
        return
    for child_name, child in model._modules.items():  # named_children() drops repeats
        if child is not None:
            yield from leaves(child, subclasses=subclasses, name=f"{name}.{child_name}" if name else child_name)


def dense_layers(model: nn.Module, flat: bool) -> tuple[list[tuple[Leaf, tuple[nn.Module, ...]]], Leaf | None]:
    """Read a net of Linear layers with elementwise activations after them, passing over layers that change nothing.

    Args:
        model: any module.
        flat: whether inputs are (batch, d) already; otherwise a Flatten has to come first.

    Returns:
        Each Linear with the activations after it, none of them in place; and the first leaf that does not fit.
    """
    found: list[tuple[Leaf, tuple[nn.Module, ...]]] = []
    for leaf in leaves(model):
        kind = None if leaf.hooked else leaf.kind
        if kind in _UNCHANGED:
            continue
        if kind is nn.Linear and flat:
            found.append((leaf, ()))
        elif kind in SLOPES and found:
            found[-1] = (found[-1][0], (*found[-1][1], _out_of_place(leaf.module)))
        elif leaf.flattens:
            flat = True
        else:
            return found, leaf
    return found, None


def has_forward_hooks(layer: nn.Module) -> bool:
    """Whether hooks, its own or those for all modules, may change what it computes."""
    everywhere = nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
    return bool(everywhere or layer._forward_hooks or layer._forward_pre_hooks)


def changes_when_training(layer: nn.Module) -> bool:
    """Whether it computes something else in train mode, or draws at random there."""
    if isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
        return layer.dropout > 0
    return isinstance(layer, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd | nn.RReLU)


def steepest(layer: nn.Module) -> float:
    """Bound on the |slope| of a layer of SLOPES."""
    return max(float(torch.as_tensor(slope, dtype=torch.float64).abs().max()) for slope in SLOPES[type(layer)](layer))


def _out_of_place(layer: nn.Module) -> nn.Module:
    """The same layer leaving its input alone: slopes are taken there."""
    if not getattr(layer, "inplace", False):
        return layer
    other = copy.copy(layer)
    other.__dict__["inplace"] = False
    return other


def _kind(module: nn.Module, subclasses: bool) -> type[nn.Module] | None:
    """The known class whose forward this module runs."""
    for kind in _KNOWN:
        if type(module) is kind or (subclasses and isinstance(module, kind)):
            own, forward, call = type(module), kind.forward, kind.__call__
            own_forward = own.forward is not forward or own.__call__ is not call or "forward" in vars(module)
            random = kind in {nn.BatchNorm1d, nn.Dropout} and module.training
            return None if own_forward or random else kind
    return None
