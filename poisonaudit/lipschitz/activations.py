"""Elementwise activations as the bounds see them: where their slopes lie, over all inputs and over an interval.

A slope here is a derivative, or between two points the quotient of differences; by the mean value theorem both lie in
the range of derivatives (one-sided ones at a kink included).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Of a library's tanh, exp or erf, in units in the last place, with room: what smooth ranges are widened by.
_LIBRARY_ERROR = 64 * 2.0**-53
_PLAIN_ERROR = 4 * 2.0**-53


@dataclass(frozen=True, eq=False)
class Activation:
    """One elementwise function.

    Attributes:
        name: of the layer or function.
        function: elementwise, differentiable by autograd.
        slopes: (lower, upper) ends of the range of its derivative, tensors that broadcast to one row.
        kinks: where the derivative jumps, in order.
        bends: where the derivative has an interior extreme.
        piecewise_linear: constant derivative between kinks.
        monotone: never falls.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    slopes: tuple[Tensor, Tensor]
    kinks: tuple[float, ...] = ()
    bends: tuple[float, ...] = ()
    piecewise_linear: bool = False
    monotone: bool = True

    def derivative(self, z: Tensor) -> Tensor:
        """Of each entry; at a kink whatever autograd says."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            (found,) = torch.autograd.grad(self.function(leaf).sum(), leaf)
        return found

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
        lower, upper = (end.expand_as(low) for end in self.slopes)
        least, most = self.derivative(low), self.derivative(high)
        least, most = torch.minimum(least, most), torch.maximum(least, most)
        for bend in self.bends:
            inside = (low <= bend) & (bend <= high)
            value = self.derivative(torch.full_like(low, bend))
            least = torch.where(inside, torch.minimum(least, value), least)
            most = torch.where(inside, torch.maximum(most, value), most)
        for kink in self.kinks:
            inside = (low <= kink) & (kink <= high)
            at = torch.full_like(low, kink)
            for side in (torch.nextafter(at, torch.full_like(at, -math.inf)), torch.nextafter(at, at + 1.0)):
                value = self.derivative(side)
                least = torch.where(inside, torch.minimum(least, value), least)
                most = torch.where(inside, torch.maximum(most, value), most)
        if not self.piecewise_linear:
            room = _LIBRARY_ERROR * torch.maximum(upper.abs(), lower.abs())
            least, most = least - room, most + room
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
        room = _PLAIN_ERROR * (first.abs() + last.abs())
        ends = torch.minimum(first, last) - room, torch.maximum(first, last) + room
        # Next to the centre the quotient is all rounding: there the derivatives are as good.
        usable = torch.isfinite(first) & torch.isfinite(last)
        return (
            torch.where(usable, torch.maximum(ends[0], least), least),
            torch.where(usable, torch.minimum(ends[1], most), most),
        )

    def _chord(self, centre: Tensor, z: Tensor) -> Tensor:
        """Quotient of differences, written so that nothing cancels: values on either side of the kink at 0."""
        below, above = self.slopes_beside_zero()
        crosses = (centre < 0) != (z < 0)
        own = torch.where(z < 0, below, above)
        # f(z) - f(c) = s(z) z - s(c) c with opposite signs of z and c where the kink lies between.
        slope_z, slope_c = own, torch.where(centre < 0, below, above)
        weight = z.abs() / (z.abs() + centre.abs())
        return torch.where(crosses, weight * slope_z + (1.0 - weight) * slope_c, own)

    def slopes_beside_zero(self) -> tuple[Tensor, Tensor]:
        """Derivatives just below and just above 0."""
        tiny = torch.full_like(self.slopes[0], 2.0**-500)
        return self.derivative(-tiny), self.derivative(tiny)

    def image(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Range of the function over [low, high], rounded outwards."""
        first, last = self.function(low), self.function(high)
        if self.monotone:
            lower, upper = first, last
        else:
            # |f(z) - f(low)| is at most the steepest slope times the width.
            least, most = self.slope_range(low, high)
            width = high - low
            lower = first + torch.minimum(least, torch.zeros_like(least)) * width
            upper = first + torch.maximum(most, torch.zeros_like(most)) * width
        error = _PLAIN_ERROR if self.piecewise_linear else _LIBRARY_ERROR
        room = error * torch.maximum(lower.abs(), upper.abs())
        return lower - room, upper + room


@dataclass(frozen=True)
class _Facts:
    """What an activation's formula says about its derivative."""

    kinks: Callable[[Any], tuple[float, ...]] = field(default=lambda layer: ())
    bends: Callable[[Any], tuple[float, ...]] = field(default=lambda layer: ())
    piecewise_linear: bool = False


_ZERO = _Facts(lambda layer: (0.0,), piecewise_linear=True)
# Zeros of second derivatives: GELU'' = phi(z) (2 - z^2); the others by bisection.
_GELU_BEND = math.sqrt(2.0)
_GELU_TANH_BEND = 1.4185040087908283
_SILU_BEND = 2.399357280515468
_MISH_BENDS = (-2.256376396360793, 1.4905711794854284)


def _gelu_bends(layer: Any) -> tuple[float, ...]:
    bend = _GELU_TANH_BEND if layer.approximate == "tanh" else _GELU_BEND
    return (-bend, bend)


FACTS: dict[type[nn.Module], _Facts] = {
    nn.ReLU: _ZERO,
    nn.LeakyReLU: _ZERO,
    nn.PReLU: _ZERO,
    nn.ReLU6: _Facts(lambda layer: (0.0, 6.0), piecewise_linear=True),
    nn.Hardtanh: _Facts(lambda layer: (float(layer.min_val), float(layer.max_val)), piecewise_linear=True),
    nn.Hardsigmoid: _Facts(lambda layer: (-3.0, 3.0), piecewise_linear=True),
    nn.Softshrink: _Facts(lambda layer: (-float(layer.lambd), float(layer.lambd)), piecewise_linear=True),
    nn.ELU: _Facts(lambda layer: (0.0,)),
    nn.CELU: _Facts(lambda layer: (0.0,)),
    nn.SELU: _Facts(lambda layer: (0.0,)),
    nn.Hardswish: _Facts(lambda layer: (-3.0, 3.0)),
    nn.Tanh: _Facts(bends=lambda layer: (0.0,)),
    nn.Sigmoid: _Facts(bends=lambda layer: (0.0,)),
    nn.Softsign: _Facts(bends=lambda layer: (0.0,)),
    nn.Tanhshrink: _Facts(bends=lambda layer: (0.0,)),
    nn.Softplus: _Facts(),
    nn.LogSigmoid: _Facts(),
    nn.GELU: _Facts(bends=_gelu_bends),
    nn.SiLU: _Facts(bends=lambda layer: (-_SILU_BEND, _SILU_BEND)),
    nn.Mish: _Facts(bends=lambda layer: _MISH_BENDS),
}
