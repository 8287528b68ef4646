"""Layers as the R-operator sees them: primal pass, tangent pass, and the tangent of the backward pass.

Notation: a layer maps its input a (n, *s) to an output, `delta` is the adjoint of that output (the derivative of the
objective in it). Dotted quantities are derivatives along a direction in weights and inputs, K directions at once, with
the K behind the rows: (n, K, *s). None stands for zero. Every formula is the derivative of the layer's own forward and
backward formula (Pearlmutter, 1994).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Dot = Tensor | None


@dataclass(frozen=True)
class Parameter:
    """Where a weight tensor lies in the flat vector, and its value there."""

    begin: int
    end: int
    value: Tensor

    def part(self, direction: Tensor) -> Tensor:
        """Its share of directions (K, p): (K, *shape)."""
        return direction[:, self.begin : self.end].reshape(-1, *self.value.shape)


class Piece:
    """One node of the network; the default is a layer without weights."""

    # Whether `adjoint` needs the tangent of the input, so that it must be kept.
    keeps_input = False
    # Whether what `tangent` and `adjoint` return is new memory, free to be overwritten by the next step.
    fresh = False
    # Whether `adjoint` takes `overwrite`: the adjoint's memory may be used for the result.
    overwrites = False

    def forward(self, a: Tensor) -> Tensor:
        """Primal pass, caching what the other passes need."""
        raise NotImplementedError

    def backward(self, delta: Tensor) -> Tensor:
        """Primal backward pass: adjoint of the input, caching what the tangent of this pass needs."""
        raise NotImplementedError

    def tangent(self, dot: Dot, direction: Dot) -> Dot:
        """Tangent of `forward`."""
        raise NotImplementedError

    def adjoint(self, ddelta: Dot, dot: Dot, direction: Dot, gradient: Dot, wanted: bool) -> Dot:
        """Tangent of `backward`: adds to `gradient` (K, p), returns that of the input's adjoint if `wanted`.

        With `dot` and `direction` None it is the backward pass itself, applied to `ddelta`.
        """
        raise NotImplementedError


class LinearPiece(Piece):
    """`y = a W^T + b` on rows (n, in)."""

    keeps_input = True
    fresh = True

    def __init__(self, weight: Parameter, bias: Parameter | None) -> None:
        self.weight, self.bias = weight, bias

    def forward(self, a: Tensor) -> Tensor:
        """Primal pass."""
        self.a = a
        return functional.linear(a, self.weight.value, None if self.bias is None else self.bias.value)

    def backward(self, delta: Tensor) -> Tensor:
        """`delta W`."""
        self.delta = delta
        return delta @ self.weight.value

    def tangent(self, dot: Dot, direction: Dot) -> Dot:
        """`da W^T + a dW^T + db`."""
        rows, (outputs, inputs) = self.a.shape[0], self.weight.value.shape
        moved = None
        if direction is not None:
            weight = self.weight.part(direction).reshape(-1, inputs)
            if self.bias is None:
                moved = self.a @ weight.T
            else:
                moved = torch.addmm(self.bias.part(direction).reshape(1, -1), self.a, weight.T)
            moved = moved.view(-1, outputs)
        if dot is not None:
            flat = dot.reshape(-1, inputs)
            moved = flat @ self.weight.value.T if moved is None else moved.addmm_(flat, self.weight.value.T)
        return None if moved is None else moved.view(rows, -1, outputs)

    def adjoint(self, ddelta: Dot, dot: Dot, direction: Dot, gradient: Dot, wanted: bool) -> Dot:
        """`ddelta W + delta dW`; weights `ddelta^T a + delta^T da`."""
        rows, (outputs, inputs) = self.a.shape[0], self.weight.value.shape
        if gradient is not None:
            if ddelta is not None:
                found = (ddelta.reshape(rows, -1).T @ self.a).view(-1, outputs * inputs)
                gradient[:, self.weight.begin : self.weight.end] += found
                if self.bias is not None:
                    gradient[:, self.bias.begin : self.bias.end] += ddelta.sum(0)
            if dot is not None:
                found = (self.delta.T @ dot.reshape(rows, -1)).view(outputs, -1, inputs)
                gradient[:, self.weight.begin : self.weight.end].view(-1, outputs, inputs).add_(found.transpose(0, 1))
        if not wanted:
            return None
        result = None
        if direction is not None:
            columns = self.weight.part(direction).transpose(0, 1).reshape(outputs, -1)
            result = (self.delta @ columns).view(-1, inputs)
        if ddelta is not None:
            flat = ddelta.reshape(-1, outputs)
            result = flat @ self.weight.value if result is None else result.addmm_(flat, self.weight.value)
        return None if result is None else result.view(rows, -1, inputs)


def channels_last(images: Tensor) -> Tensor:
    """The same pictures with the channels side by side in memory: convolutions on CPUs take two thirds of the time."""
    return images.contiguous(memory_format=torch.channels_last)


class ConvPiece(Piece):
    """Convolution over pictures (n, C, H, W), any stride, zero padding, dilation and groups.

    Everything is held channels last. One column at a time is fastest: blocks would have to be laid out anew.
    """

    keeps_input = True
    fresh = True

    def __init__(self, layer: nn.Conv2d, weight: Parameter, bias: Parameter | None) -> None:
        self.weight, self.bias, self.groups = weight, bias, layer.groups
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation

    def forward(self, a: Tensor) -> Tensor:
        """Primal pass."""
        self.a = channels_last(a)
        return self._conv(self.a, self.weight.value, None if self.bias is None else self.bias.value)

    def backward(self, delta: Tensor) -> Tensor:
        """Transposed convolution of delta."""
        self.delta = channels_last(delta)
        return self._to_input(delta, self.a.shape, self.weight.value)

    def tangent(self, dot: Dot, direction: Dot) -> Dot:
        """`conv(da, W) + conv(a, dW) + db`."""
        rows = self.a.shape[0]
        moved = None
        if direction is not None:
            weight = self.weight.part(direction)
            count = weight.shape[0]
            bias = None if self.bias is None else self.bias.part(direction).reshape(-1)
            if self.groups == 1:
                moved = self._conv(self.a, channels_last(weight.flatten(0, 1)), bias)
                moved = moved.reshape(rows * count, -1, *moved.shape[2:])
            else:
                biases = [None] * count if bias is None else bias.view(count, -1)
                parts = [self._conv(self.a, one, shift) for one, shift in zip(weight, biases, strict=True)]
                moved = torch.stack(parts, dim=1).flatten(0, 1)
        if dot is not None:
            carried = self._conv(channels_last(dot.flatten(0, 1)), self.weight.value, None)
            moved = carried if moved is None else moved.add_(carried)
        return None if moved is None else moved.view(rows, -1, *moved.shape[1:])

    def adjoint(self, ddelta: Dot, dot: Dot, direction: Dot, gradient: Dot, wanted: bool) -> Dot:
        """The two products of `ddelta` with the layer, and of delta with the moved layer."""
        count = next((len(one) for one in (gradient, direction) if one is not None), 0)
        count = count or next((one.shape[1] for one in (ddelta, dot) if one is not None), 1)
        if gradient is not None and ddelta is not None and self.bias is not None:
            gradient[:, self.bias.begin : self.bias.end] += ddelta.sum((0, 3, 4))
        span = None if gradient is None else gradient[:, self.weight.begin : self.weight.end]
        moved = None if direction is None else self.weight.part(direction)
        if count > 1 and self.groups == 1:
            return self._adjoint_of_block(ddelta, dot, moved, span, wanted)
        found = []
        for column in range(count):
            one_ddelta, one_dot = (None if one is None else channels_last(one[:, column]) for one in (ddelta, dot))
            one_moved, one_span = (None if one is None else one[column] for one in (moved, span))
            found.append(self._adjoint_of_one(one_ddelta, one_dot, one_moved, one_span, wanted))
        if found[0] is None:
            return None
        return found[0][:, None] if count == 1 else torch.stack([one for one in found if one is not None], dim=1)

    def _adjoint_of_one(self, ddelta: Dot, dot: Dot, moved: Dot, span: Dot, wanted: bool) -> Dot:
        """One column: both results of one `ddelta` or delta come from one call, which lays it out once."""
        result = None
        for delta, a, weight, to_input in (
            (self.delta, dot, moved, wanted and moved is not None),
            (ddelta, self.a, self.weight.value, wanted),
        ):
            to_weight = span is not None and a is not None
            if delta is None or not (to_input or to_weight):
                continue
            a = _shaped(delta, self.a.shape) if a is None else a
            weight = self.weight.value if weight is None else weight
            carried, found, _ = self._pull(delta, a, weight, [to_input, to_weight, False])
            if span is not None and to_weight:
                span += found.reshape(-1)
            if to_input:
                result = carried if result is None else result.add_(carried)
        return result

    def _adjoint_of_block(self, ddelta: Dot, dot: Dot, moved: Dot, span: Dot, wanted: bool) -> Dot:
        """Many columns, laid beside each other as channels or rows."""
        rows, shape = self.a.shape[0], self.weight.value.shape
        if span is not None:
            if ddelta is not None:
                found = self._to_weight(self.a, channels_last(ddelta.flatten(1, 2)), (-1, *shape[1:]))
                span += found.reshape(-1, shape.numel())
            if dot is not None:
                found = self._to_weight(channels_last(dot.flatten(1, 2)), self.delta, (shape[0], -1, *shape[2:]))
                span.view(-1, *shape).add_(found.reshape(shape[0], -1, *shape[1:]).transpose(0, 1))
        if not wanted:
            return None
        result = None
        if moved is not None:
            count, inputs = moved.shape[0], self.a.shape[1:]
            columns = channels_last(moved.transpose(0, 1).flatten(1, 2))
            wide = torch.Size((rows, count * inputs[0], *inputs[1:]))
            result = self._to_input(self.delta, wide, columns).reshape(rows * count, *inputs)
        if ddelta is not None:
            flat = channels_last(ddelta.flatten(0, 1))
            carried = self._to_input(flat, torch.Size((flat.shape[0], *self.a.shape[1:])), self.weight.value)
            result = carried if result is None else result.add_(carried)
        return None if result is None else result.view(rows, -1, *self.a.shape[1:])

    def _conv(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(a, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _to_input(self, delta: Tensor, shape: torch.Size, weight: Tensor) -> Tensor:
        return self._pull(delta, _shaped(delta, shape), weight, [True, False, False])[0]

    def _to_weight(self, a: Tensor, delta: Tensor, shape: tuple[int, ...]) -> Tensor:
        outputs = delta.shape[1] if shape[0] == -1 else shape[0]
        inputs = a.shape[1] // self.groups if shape[1] == -1 else shape[1]
        like = _shaped(delta, (outputs, inputs, *shape[2:]))
        return self._pull(delta, a, like, [False, True, False])[1]

    def _pull(self, delta: Tensor, a: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.aten.convolution_backward(
            delta, a, weight, None, self.stride, self.padding, self.dilation, False, [0, 0], self.groups, mask
        )


def _shaped(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory that is never touched: an operand of which only the shape matters."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


class ScalePiece(Piece):
    """Batch norm in eval mode: `y = (a - mean) / deviation * gain + shift` per channel."""

    keeps_input = True
    fresh = True
    overwrites = True

    def __init__(self, mean: Tensor, deviation: Tensor, gain: Parameter | None, shift: Parameter | None) -> None:
        self.mean, self.deviation, self.gain, self.shift = mean, deviation, gain, shift

    def forward(self, a: Tensor) -> Tensor:
        """Primal pass."""
        self.view = (-1, *[1] * (a.dim() - 2))
        self.normal = (a - self.mean.view(self.view)) / self.deviation.view(self.view)
        slope = 1.0 / self.deviation if self.gain is None else self.gain.value / self.deviation
        self.slope = slope.view(self.view)
        y = self.normal if self.gain is None else self.normal * self.gain.value.view(self.view)
        return y if self.shift is None else y + self.shift.value.view(self.view)

    def backward(self, delta: Tensor) -> Tensor:
        """`slope delta`."""
        # What a change of the gain does to the input's adjoint.
        self.delta = delta / self.deviation.view(self.view)
        return delta * self.slope

    def tangent(self, dot: Dot, direction: Dot) -> Dot:
        """`slope da + dgain normal + dshift`."""
        moved = None if dot is None else dot * self.slope
        if direction is None:
            return moved
        if self.gain is not None:
            gain = self.gain.part(direction).view(-1, *self.slope.shape)
            normal = self.normal[:, None]
            moved = normal * gain if moved is None else moved.addcmul_(normal, gain)
        if self.shift is not None:
            shift = self.shift.part(direction).view(-1, *self.slope.shape)
            if moved is None:
                return shift.expand(self.normal.shape[0], -1, *self.normal.shape[1:]).contiguous()
            moved.add_(shift)
        return moved

    def adjoint(
        self, ddelta: Dot, dot: Dot, direction: Dot, gradient: Dot, wanted: bool, overwrite: bool = False
    ) -> Dot:
        """`slope ddelta + dgain / deviation delta`."""
        if gradient is not None:
            self._add_gradient(ddelta, dot, gradient)
        if not wanted:
            return None
        result = None if ddelta is None else ddelta.mul_(self.slope) if overwrite else ddelta * self.slope
        if direction is not None and self.gain is not None:
            gain = self.gain.part(direction).view(-1, *self.slope.shape)
            delta = self.delta[:, None]
            result = delta * gain if result is None else result.addcmul_(delta, gain)
        return result

    def _add_gradient(self, ddelta: Dot, dot: Dot, gradient: Tensor) -> None:
        axes = (0, *range(3, self.normal.dim() + 1))
        if self.gain is not None:
            part = None if ddelta is None else ddelta * self.normal[:, None]
            if dot is not None:
                delta = self.delta[:, None]
                part = dot * delta if part is None else part.addcmul_(dot, delta)
            if part is not None:
                gradient[:, self.gain.begin : self.gain.end] += part.sum(axes)
        if self.shift is not None and ddelta is not None:
            gradient[:, self.shift.begin : self.shift.end] += ddelta.sum(axes)
