"""Walk nested Sequentials into their layers, and say of each what it computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

# Interval (lower, upper) of the slopes of each elementwise layer, rounded outwards where it is not exact
# (GELU -0.1289.. to 1.1289.., SiLU -0.0998.. to 1.0998..).
SLOPES: dict[type[nn.Module], Callable[[Any], tuple[float, float]]] = {
    nn.ReLU: lambda layer: (0.0, 1.0),
    nn.LeakyReLU: lambda layer: (min(1.0, float(layer.negative_slope)), max(1.0, float(layer.negative_slope))),
    nn.ELU: lambda layer: (min(0.0, float(layer.alpha)), max(1.0, float(layer.alpha))),
    nn.Tanh: lambda layer: (0.0, 1.0),
    nn.Sigmoid: lambda layer: (0.0, 0.25),
    nn.GELU: lambda layer: (-0.13, 1.13),
    nn.SiLU: lambda layer: (-0.1, 1.1),
    nn.Softplus: lambda layer: (0.0, 1.0),
    nn.Identity: lambda layer: (1.0, 1.0),
    nn.Dropout: lambda layer: (1.0, 1.0),  # in eval mode; `leaves` gives no kind to one in train mode
}
# Layers that compute something else in train mode.
CHANGES_WHEN_TRAINING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.RReLU)
_UNCHANGED = (nn.Identity, nn.Dropout)
_KNOWN: tuple[type[nn.Module], ...] = (nn.Sequential, nn.Linear, nn.Flatten, *SLOPES)


@dataclass(frozen=True)
class Leaf:
    """One layer of a net.

    Attributes:
        name: dotted, as in named_modules(); empty for the model itself.
        module: the nn.Module.
        kind: Linear, Flatten, a key of SLOPES, or Sequential for one with hooks; None for a layer of another class,
            one with a forward of its own and Dropout in train mode.
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
    kind, hooked = _kind(model, subclasses), bool(model._forward_hooks or model._forward_pre_hooks)
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


def steepest(layer: nn.Module) -> float:
    """Bound on the |slope| of a layer of SLOPES."""
    return max(map(abs, SLOPES[type(layer)](layer)))


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
            own_forward = type(module).forward is not kind.forward or "forward" in vars(module)
            return None if own_forward or (kind is nn.Dropout and module.training) else kind
    return None
