"""Elementwise activations as the bounds see them: a slope interval, the true derivative, and where it jumps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from poisonaudit.layers import SLOPES

# Where the derivative jumps, for the layers of SLOPES that have such places.
_KINKS: dict[type[nn.Module], Callable[[Any], tuple[float, ...]]] = {
    nn.ReLU: lambda layer: (0.0,),
    nn.LeakyReLU: lambda layer: (0.0,),
    nn.PReLU: lambda layer: (0.0,),
    nn.ELU: lambda layer: () if layer.alpha == 1.0 else (0.0,),
    nn.SELU: lambda layer: (0.0,),
    nn.ReLU6: lambda layer: (0.0, 6.0),
    nn.Hardtanh: lambda layer: (float(layer.min_val), float(layer.max_val)),
    nn.Hardsigmoid: lambda layer: (-3.0, 3.0),
    nn.Hardswish: lambda layer: (-3.0, 3.0),
    nn.Softplus: lambda layer: (layer.threshold / layer.beta,),  # linear from there on
    nn.Softshrink: lambda layer: (-float(layer.lambd), float(layer.lambd)),
}
# Where the slope of one of these is zero, it is constant nearby.
_PIECEWISE_LINEAR = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Softshrink)
# Automatic differentiation gives 1 - tanh^2 and s (1 - s), which cancel where the function saturates, and 1/6 rounded
# to float32 for Hardsigmoid (torch 2.15).
_OWN_SLOPES: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: lambda z: (z > 0.0).to(z.dtype),
    nn.Tanh: lambda z: torch.cosh(z).square().reciprocal(),
    nn.Sigmoid: lambda z: torch.sigmoid(z) * torch.sigmoid(-z),
    nn.LogSigmoid: lambda z: torch.sigmoid(-z),
    nn.Softsign: lambda z: (1.0 + z.abs()).square().reciprocal(),
    nn.Tanhshrink: lambda z: torch.tanh(z).square(),
    nn.Hardsigmoid: lambda z: (z.abs() < 3.0).to(z.dtype) / 6.0,
    nn.Identity: torch.ones_like,
}


@dataclass(frozen=True)
class Activation:
    """One layer of elementwise functions.

    Attributes:
        module: maps (batch, n) to (batch, n); float64, on the CPU, never in place.
        kind: the key of SLOPES.
        kinks: pre-activations at which the derivative jumps.
    """

    module: nn.Module
    kind: type[nn.Module]
    kinks: tuple[float, ...]

    @property
    def changes_nothing(self) -> bool:
        """Whether it is the identity."""
        return self.kind in {nn.Identity, nn.Dropout}

    def interval(self, width: int) -> tuple[Tensor, Tensor]:
        """Least and largest slope of each of `width` neurons, (width,) float64 each."""
        lower, upper = (
            torch.as_tensor(end, dtype=torch.float64).expand(width) for end in SLOPES[self.kind](self.module)
        )
        return lower, upper

    def slopes(self, z: Tensor) -> Tensor:
        """The derivative at pre-activations `z` (batch, n); meaningless at a kink."""
        if self.kind in _OWN_SLOPES:
            return _OWN_SLOPES[self.kind](z.detach())
        point = z.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.module(point).sum(), point)
        return slope

    def smoothed(self, z: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Values at `z`, and slopes that autograd can follow across kinks.

        Every jump of the derivative becomes a sigmoid.

        Args:
            z: pre-activations (batch, n), part of a graph.
            spread: (batch, 1) width of the sigmoids, in units of z.

        Returns:
            (batch, n) each.
        """
        if self.changes_nothing:
            return z, torch.ones_like(z)
        values = self.module(z)
        if issubclass(self.kind, _PIECEWISE_LINEAR):  # the same numbers without a second graph
            slopes = self.slopes(z)
        else:
            (slopes,) = torch.autograd.grad(values.sum(), z, create_graph=True)
        for kink in self.kinks:
            room = 1e-6 * max(1.0, abs(kink))
            sides = torch.tensor([[kink - room], [kink + room]], dtype=z.dtype).expand(2, z.shape[1])
            before, after = self.slopes(sides)
            slopes = slopes + (after - before) * (torch.sigmoid((z - kink) / spread) - (z > kink).to(z.dtype))
        return values, slopes

    def constant(self, slopes: Tensor) -> Tensor:
        """Where a neuron with these slopes, off its kinks, does not depend on its input nearby."""
        if issubclass(self.kind, _PIECEWISE_LINEAR):
            return slopes == 0.0
        return torch.zeros_like(slopes, dtype=torch.bool)


def activation_of(module: nn.Module, kind: type[nn.Module]) -> Activation:
    """A copy of `module`, which computes what `kind`, a key of SLOPES, computes."""
    own = copy.deepcopy(module).to("cpu", torch.float64).eval().requires_grad_(False)
    if getattr(own, "inplace", False):
        own.__dict__["inplace"] = False
    return Activation(own, kind, _KINKS[kind](own) if kind in _KINKS else ())
