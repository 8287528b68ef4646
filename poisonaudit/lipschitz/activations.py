"""Elementwise activations as the bounds see them: the true derivative, where it jumps, and where slopes can lie.

A slope here is a derivative, or between two points the quotient of differences; by the mean value theorem both lie in
the range of derivatives (one-sided ones at a kink included).
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from poisonaudit.layers import SLOPES, SOFTPLUS_THRESHOLD
from poisonaudit.lipschitz.unit import TINY, UNIT

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
# Interior extremes of the derivative: GELU'' = phi(z) (2 - z^2); those of the others were found by bisection.
_BENDS: dict[type[nn.Module], Callable[[Any], tuple[float, ...]]] = {
    nn.Tanh: lambda layer: (0.0,),
    nn.Sigmoid: lambda layer: (0.0,),
    nn.Softsign: lambda layer: (0.0,),
    nn.Tanhshrink: lambda layer: (0.0,),
    nn.GELU: lambda layer: (
        (-1.4185040087908285, 1.4185040087908285) if layer.approximate == "tanh" else (-math.sqrt(2.0), math.sqrt(2.0))
    ),
    nn.SiLU: lambda layer: (-2.399357280515468, 2.399357280515468),
    nn.Mish: lambda layer: (-2.256376396360793, 1.4905711794854284),
}
# Of a library's tanh, exp or erf in relative terms, with room.
_LIBRARY_ERROR = 64 * UNIT
# Of smooth values and slopes: at most three such functions meet in one (Mish), or a square of one, and a few roundings.
_SMOOTH_ERROR = 4 * _LIBRARY_ERROR
_PLAIN_ERROR = 4 * UNIT
# `z / 2 (1 + erf)` and `z - tanh z` cancel: what erf or tanh, at most 1 (and |z|) in size, may be off by stays, times
# |z| / 2 or as it is, and so do the roundings of its argument (7 u |z|). Measured: 2 u |z|.
_CANCELLING = (nn.GELU, nn.Tanhshrink)
# Where the slope of one of these is zero, it is constant nearby.
_PIECEWISE_LINEAR = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Softshrink)


def _gelu_slope(layer: Any, z: Tensor) -> Tensor:
    z = z.clamp(-100.0, 100.0)  # constant beyond, to 2^-1022
    if layer.approximate == "tanh":
        inner = math.sqrt(2.0 / math.pi) * z * (1.0 + 0.044715 * z.square())
        steep = math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * 0.044715 * z.square())
        return torch.sigmoid(2.0 * inner) + 0.5 * z * steep / torch.cosh(inner).square()
    return 0.5 * (1.0 + torch.erf(z * math.sqrt(0.5))) + z * torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)


def _silu_slope(layer: Any, z: Tensor) -> Tensor:
    return torch.sigmoid(z) * (1.0 + z * torch.sigmoid(-z))


def _mish_slope(layer: Any, z: Tensor) -> Tensor:
    soft = torch.logaddexp(z, torch.zeros_like(z))
    return torch.tanh(soft) + z * torch.sigmoid(z) / torch.cosh(soft).square()


# Automatic differentiation gives 1 - tanh^2 and s (1 - s), which cancel where the function saturates, and for
# Hardsigmoid 1/6, for CELU 1/alpha rounded to float32 (torch 2.15).
_OWN_SLOPES: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.ReLU: lambda layer, z: (z > 0.0).to(z.dtype),
    nn.CELU: lambda layer, z: torch.exp((z / layer.alpha).clamp_max(0.0)),
    nn.Tanh: lambda layer, z: torch.cosh(z).square().reciprocal(),
    nn.Sigmoid: lambda layer, z: torch.sigmoid(z) * torch.sigmoid(-z),
    nn.GELU: _gelu_slope,
    nn.SiLU: _silu_slope,
    nn.Mish: _mish_slope,
    nn.LogSigmoid: lambda layer, z: torch.sigmoid(-z),
    nn.Softsign: lambda layer, z: (1.0 + z.abs()).square().reciprocal(),
    nn.Tanhshrink: lambda layer, z: torch.tanh(z).square(),
    nn.Hardsigmoid: lambda layer, z: (z.abs() < 3.0).to(z.dtype) / 6.0,
    nn.Identity: lambda layer, z: torch.ones_like(z),
}


@dataclass(frozen=True)
class Activation:
    """One layer of elementwise functions.

    Attributes:
        module: elementwise, of (batch, ...); float64, on the CPU, never in place.
        kind: the key of SLOPES.
        kinks: pre-activations at which the derivative jumps.
        bends: where it has an interior extreme; it is monotone between kinks and bends.
    """

    module: nn.Module
    kind: type[nn.Module]
    kinks: tuple[float, ...]
    bends: tuple[float, ...]

    @property
    def changes_nothing(self) -> bool:
        """Whether it is the identity."""
        return self.kind in {nn.Identity, nn.Dropout}

    @property
    def name(self) -> str:
        """Of the layer."""
        return self.kind.__name__

    @property
    def piecewise_linear(self) -> bool:
        """Whether the derivative is constant between kinks."""
        return issubclass(self.kind, _PIECEWISE_LINEAR)

    def ends(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Least and largest slope of every neuron of a row of this shape, float64."""
        lower, upper = (
            torch.as_tensor(end, dtype=torch.float64).expand(*shape) for end in SLOPES[self.kind](self.module)
        )
        return lower, upper

    def along(self, shape: Sequence[int]) -> Activation:
        """The same for rows of this shape flattened; only slopes are right then."""
        if self.kind is not nn.PReLU:
            return self
        module = nn.PReLU()
        weight = torch.as_tensor(self.module.weight, dtype=torch.float64)
        # One slope a channel, or one for all.
        module.weight = nn.Parameter(weight.expand(*shape).reshape(-1).clone(), requires_grad=False)
        return activation_of(module, nn.PReLU)

    def slopes(self, z: Tensor) -> Tensor:
        """The derivative at pre-activations `z`; meaningless at a kink."""
        if self.kind in _OWN_SLOPES:
            return _OWN_SLOPES[self.kind](self.module, z.detach())
        point = z.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.module(point).sum(), point)
        return slope

    def smoothed(self, z: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Values at `z`, and slopes that autograd can follow across kinks.

        Every jump of the derivative becomes a sigmoid.

        Args:
            z: pre-activations (batch, ...), part of a graph.
            spread: (batch, 1, ...) width of the sigmoids, in units of z.

        Returns:
            Like `z` each.
        """
        if self.changes_nothing:
            return z, torch.ones_like(z)
        values = self.module(z)
        if self.piecewise_linear:  # the same numbers without a second graph
            slopes = self.slopes(z)
        else:
            (slopes,) = torch.autograd.grad(values.sum(), z, create_graph=True)
        for kink in self.kinks:
            room = 1e-6 * max(1.0, abs(kink))
            sides = torch.stack([torch.full(z.shape[1:], at, dtype=z.dtype) for at in (kink - room, kink + room)])
            before, after = self.slopes(sides)
            slopes = slopes + (after - before) * (torch.sigmoid((z - kink) / spread) - (z > kink).to(z.dtype))
        return values, slopes

    def constant(self, slopes: Tensor) -> Tensor:
        """Where a neuron with these slopes, off its kinks, does not depend on its input nearby."""
        if self.piecewise_linear:
            return slopes == 0.0
        return torch.zeros_like(slopes, dtype=torch.bool)

    def slope_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest derivative over [low, high], entry by entry; rounded outwards.

        The derivative is monotone between kinks and bends, so its extremes are at the ends, at bends inside, and on
        either side of kinks inside.

        Args:
            low: left ends.
            high: right ends, like them.

        Returns:
            Two tensors like the ends.
        """
        lower, upper = self.ends(low.shape)
        least, most = self.slopes(low), self.slopes(high)
        least, most = torch.minimum(least, most), torch.maximum(least, most)
        for bend in self.bends:
            inside = (low <= bend) & (bend <= high)
            value = self.slopes(torch.full_like(low, bend))
            least = torch.where(inside, torch.minimum(least, value), least)
            most = torch.where(inside, torch.maximum(most, value), most)
        for kink in self.kinks:
            inside = (low <= kink) & (kink <= high)
            at = torch.full_like(low, kink)
            for side in (torch.nextafter(at, torch.full_like(at, -math.inf)), torch.nextafter(at, at + 1.0)):
                value = self.slopes(side)
                least = torch.where(inside, torch.minimum(least, value), least)
                most = torch.where(inside, torch.maximum(most, value), most)
        if not self.piecewise_linear:
            room = _SMOOTH_ERROR * torch.maximum(upper.abs(), lower.abs())
            least, most = least - room, most + room
        elif self.kind is nn.Hardsigmoid:  # 1/6 is rounded; 0 is not
            least, most = least * (1.0 - _PLAIN_ERROR), most * (1.0 + _PLAIN_ERROR)
        return torch.maximum(least, lower), torch.minimum(most, upper)

    def chord_range(self, centre: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest `(f(z) - f(centre)) / (z - centre)` over z in [low, high], which holds the centre.

        For a convex or concave piecewise linear function with its one kink at 0 the quotient is monotone in z, and the
        ends are exact; elsewhere the range of derivatives stands in for it.

        Args:
            centre: inside.
            low: left ends.
            high: right ends.

        Returns:
            Two tensors like the ends.
        """
        least, most = self.slope_range(low, high)
        if not (self.piecewise_linear and self.kinks == (0.0,)):
            return least, most
        first, last = self._chord(centre, low), self._chord(centre, high)
        room = _PLAIN_ERROR * (first.abs() + last.abs()) + sys.float_info.min
        ends = torch.minimum(first, last) - room, torch.maximum(first, last) + room
        # Next to the centre the quotient is all rounding: there the derivatives are as good.
        usable = torch.isfinite(first) & torch.isfinite(last)
        return (
            torch.where(usable, torch.maximum(ends[0], least), least),
            torch.where(usable, torch.minimum(ends[1], most), most),
        )

    def _chord(self, centre: Tensor, z: Tensor) -> Tensor:
        """Quotient of differences, written so that nothing cancels: values on either side of the kink at 0."""
        tiny = torch.full_like(z, 2.0**-500)
        below, above = self.slopes(-tiny), self.slopes(tiny)
        crosses = (centre < 0) != (z < 0)
        own = torch.where(z < 0, below, above)
        # f(z) - f(c) = s(z) z - s(c) c with opposite signs of z and c where the kink lies between.
        slope_z, slope_c = own, torch.where(centre < 0, below, above)
        weight = z.abs() / (z.abs() + centre.abs())
        return torch.where(crosses, weight * slope_z + (1.0 - weight) * slope_c, own)

    def jump(self, low: Tensor, high: Tensor) -> Tensor:
        """By how much the function may leave, within [low, high], a continuous one with the slopes known.

        PyTorch's Softplus drops where it turns linear; the Lipschitz constant does not count that, ranges do.

        Args:
            low: left ends.
            high: right ends, like them.

        Returns:
            Like them, >= 0.
        """
        if self.kind is not nn.Softplus:
            return torch.zeros_like(low)
        layer: Any = self.module
        size = math.log1p(math.exp(-layer.threshold)) / abs(layer.beta) * (1.0 + _LIBRARY_ERROR)
        # x beta > threshold is decided in rounded arithmetic.
        place = layer.threshold / layer.beta
        room = _PLAIN_ERROR * abs(place)
        return torch.where((low <= place + room) & (high >= place - room), size, torch.zeros_like(low))

    def image(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Range of the function over [low, high], rounded outwards."""
        first, last = self.module(low), self.module(high)
        room = torch.maximum(self.error(low, first), self.error(high, last)) + self.jump(low, high)
        if bool((self.ends(low.shape)[0] >= 0).all()):
            lower, upper = first, last
        else:
            # |f(z) - f(low)| is at most the steepest slope times the width.
            least, most = self.slope_range(low, high)
            width = high - low
            lower = first + torch.minimum(least, torch.zeros_like(least)) * width
            upper = first + torch.maximum(most, torch.zeros_like(most)) * width
            room = room + 2 * _PLAIN_ERROR * torch.maximum(lower.abs(), upper.abs())
        return lower - room, upper + room

    def error(self, z: Tensor, values: Tensor) -> Tensor:
        """How far the library's values may be from the exact ones.

        Args:
            z: pre-activations.
            values: `module(z)`.

        Returns:
            Like them, > 0.
        """
        layer: Any = self.module
        room = (_PLAIN_ERROR if self.piecewise_linear else _SMOOTH_ERROR) * values.abs()
        tiny = TINY
        if self.kind in _CANCELLING:
            room = room + _LIBRARY_ERROR * z.abs()
        elif self.kind is nn.Softplus:
            # exp magnifies the rounding of its argument by the argument; below -1100 it is 0.
            room = room + 2 * UNIT * (layer.beta * z).clamp(-1100.0, 0.0).abs() * values.abs()
            tiny = max(tiny, 4 * sys.float_info.min / abs(layer.beta))
        elif self.kind is nn.CELU:  # z / alpha may underflow
            tiny = max(tiny, 4 * sys.float_info.min * layer.alpha)
        return room + tiny


def unfit(layer: Any, kind: type[nn.Module]) -> str | None:
    """Why no bound is proved for a layer with these settings.

    Args:
        layer: a layer.
        kind: the key of SLOPES it is.

    Returns:
        A phrase that goes on after its name; None where there is no objection.
    """
    numbers = [torch.as_tensor(value) for value in vars(layer).values() if isinstance(value, float | Tensor)]
    if any(bool(torch.isnan(value).any()) for value in numbers):
        return "has a constant that is NaN"
    if kind is not nn.Softplus:
        return None
    if not (math.isfinite(layer.beta) and layer.beta != 0):
        return f"has beta {layer.beta:g}; a finite one other than 0 is known"
    if layer.threshold < SOFTPLUS_THRESHOLD:
        return f"has a threshold of {layer.threshold:g}, where it jumps; at least {SOFTPLUS_THRESHOLD:g} is known"
    return None


def identity() -> Activation:
    """The activation that changes nothing."""
    return activation_of(nn.Identity(), nn.Identity)


def activation_of(module: nn.Module, kind: type[nn.Module]) -> Activation:
    """A copy of `module`, which computes what `kind`, a key of SLOPES, computes."""
    own = copy.deepcopy(module).to("cpu", torch.float64).eval().requires_grad_(False)
    if getattr(own, "inplace", False):
        own.__dict__["inplace"] = False
    kinks, bends = (table[kind](own) if kind in table else () for table in (_KINKS, _BENDS))
    return Activation(own, kind, kinks, bends)
