"""Linear maps over windows: convolutions and averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from poisonaudit.lipschitz.linear_maps import LinearMap, Reach, Shape


class Convolution(LinearMap):
    """A convolution of one or two spatial axes with zero padding.

    Args:
        weight: (out, in / groups, *kernel).
        shape: (in, *sizes) of a row.
        stride: per axis.
        padding: per axis.
        dilation: per axis.
        groups: of channels.
    """

    def __init__(
        self, weight: Tensor, shape: Shape, stride: Shape, padding: Shape, dilation: Shape, groups: int
    ) -> None:
        self.weight, self.shape_in = weight, shape
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        kernel = tuple(weight.shape[2:])
        self.kernel = kernel
        sizes = [
            (size + 2 * pad - step * (length - 1) - 1) // hop + 1
            for size, pad, step, length, hop in zip(shape[1:], padding, dilation, kernel, stride, strict=True)
        ]
        self.shape_out = (weight.shape[0], *sizes)
        self.left_over = tuple(
            size - ((out - 1) * hop - 2 * pad + step * (length - 1) + 1)
            for size, out, hop, pad, step, length in zip(
                shape[1:], sizes, stride, padding, dilation, kernel, strict=True
            )
        )
        area = math.prod(kernel)
        self.roundings = weight.shape[1] * area
        self.roundings_adjoint = weight.shape[0] // groups * area
        self.work = float(weight.shape[1] * area * math.prod(self.shape_out))

    def apply(self, rows: Tensor) -> Tensor:
        """Forward, as a plain sum: float64 on the CPU uses neither Winograd's nor Fourier's way."""
        forward = functional.conv1d if len(self.kernel) == 1 else functional.conv2d
        return forward(
            rows,
            self.weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def adjoint(self, rows: Tensor) -> Tensor:
        """Transposed."""
        back = functional.conv_transpose1d if len(self.kernel) == 1 else functional.conv_transpose2d
        return back(
            rows,
            self.weight,
            None,
            self.stride,
            self.padding,
            self.left_over,
            self.groups,
            self.dilation,
        )

    def absolute(self) -> LinearMap:
        """With |weight|."""
        return Convolution(self.weight.abs(), self.shape_in, self.stride, self.padding, self.dilation, self.groups)

    def reach(self, axis: int, reach: Reach) -> Reach | None:
        """Outputs whose windows meet the inputs reached."""
        if axis >= len(self.kernel):
            return None
        span = self.dilation[axis] * (self.kernel[axis] - 1)
        return windows_met(reach, self.stride[axis], self.padding[axis], span, self.shape_out[axis + 1])

    def reach_back(self, axis: int, reach: Reach) -> Reach | None:
        """Inputs in the windows of the outputs reached."""
        if axis >= len(self.kernel):
            return None
        span = self.dilation[axis] * (self.kernel[axis] - 1)
        return window_entries(reach, self.stride[axis], self.padding[axis], span, self.shape_in[axis + 1])


class Average(LinearMap):
    """Averages over windows, or any other map whose entries are not negative.

    Args:
        function: (n, *shape) -> (n, *out), linear.
        shape: of a row.
        terms: most entries in one output.
        terms_adjoint: most outputs that one entry is part of.
        windows: per spatial axis (stride, padding, span), where it is a plain window.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        shape: Shape,
        terms: int,
        terms_adjoint: int,
        windows: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        self.function, self.shape_in, self.windows = function, shape, windows
        self.shape_out = tuple(function(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
        # The division, or its reciprocal and a product, comes on top of the sum.
        self.roundings, self.roundings_adjoint = terms + 2, terms_adjoint + 2
        self.work = float(terms * math.prod(self.shape_out))

    def apply(self, rows: Tensor) -> Tensor:
        """Forward."""
        return self.function(rows)

    def adjoint(self, rows: Tensor) -> Tensor:
        """By autograd: the map is linear."""
        leaf = torch.zeros(len(rows), *self.shape_in, dtype=rows.dtype, requires_grad=True)
        with torch.enable_grad():
            image = self.function(leaf)
            (found,) = torch.autograd.grad(image, leaf, rows, create_graph=rows.requires_grad)
        return found

    def absolute(self) -> LinearMap:
        """Itself."""
        return self

    def reach(self, axis: int, reach: Reach) -> Reach | None:
        """Outputs whose windows meet the inputs reached."""
        if axis >= len(self.windows):
            return None
        return windows_met(reach, *self.windows[axis], self.shape_out[axis + 1])

    def reach_back(self, axis: int, reach: Reach) -> Reach | None:
        """Inputs in the windows of the outputs reached."""
        if axis >= len(self.windows):
            return None
        return window_entries(reach, *self.windows[axis], self.shape_in[axis + 1])


def windows_met(reach: Reach, stride: int, padding: int, span: int, outputs: int) -> Reach:
    """Outputs o whose window `[o stride - padding, o stride - padding + span]` meets the entries reached."""
    low, high = reach
    first = -((span - low - padding) // stride)  # ceil((low + padding - span) / stride)
    last = torch.div(high + padding, stride, rounding_mode="floor")
    return _where_not_empty(reach, first.clamp_min(0), last.clamp_max(outputs - 1))


def window_entries(reach: Reach, stride: int, padding: int, span: int, entries: int) -> Reach:
    """Entries in the windows of the outputs reached."""
    low, high = reach
    first, last = low * stride - padding, high * stride - padding + span
    return _where_not_empty(reach, first.clamp_min(0), last.clamp_max(entries - 1))


def _where_not_empty(reach: Reach, first: Tensor, last: Tensor) -> Reach:
    empty = reach[0] > reach[1]
    return torch.where(empty, 1, first), torch.where(empty, 0, last)
