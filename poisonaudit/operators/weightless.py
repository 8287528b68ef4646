"""Layers without weights as the R-operator sees them; notation as in `operators.pieces`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from poisonaudit.operators.pieces import Dot, Piece, channels_last


class ElementwisePiece(Piece):
    """`y = phi(a)` entry by entry; slopes and their derivatives come from autograd once."""

    fresh = True
    overwrites = True

    def __init__(self, phi: Callable[[Tensor], Tensor], piecewise_linear: bool) -> None:
        self.phi, self.piecewise_linear = phi, piecewise_linear
        self.keeps_input = not piecewise_linear

    def forward(self, a: Tensor) -> Tensor:
        """Primal pass, with slope and second derivative."""
        with torch.enable_grad():
            leaf = a.detach().requires_grad_(True)
            y = self.phi(leaf)
            (slope,) = torch.autograd.grad(y.sum(), leaf, create_graph=not self.piecewise_linear)
            self.second = None
            if not self.piecewise_linear:
                (self.second,) = torch.autograd.grad(slope.sum(), leaf)
            # Autograd may lay them out in another order than the input, which would slow every product down.
            self.slope = torch.empty_like(leaf).copy_(slope).detach()
            if self.second is not None:
                self.second = torch.empty_like(leaf).copy_(self.second).detach()
        return y.detach()

    def backward(self, delta: Tensor) -> Tensor:
        """`phi'(a) delta`."""
        if self.second is not None:
            self.bend = self.second * delta
            self.second = None
        return self.slope * delta

    def tangent(self, dot: Dot, direction: Dot, overwrite: bool = False) -> Dot:
        """`phi'(a) da`."""
        if dot is None:
            return None
        return dot.mul_(self.slope[:, None]) if overwrite else dot * self.slope[:, None]

    def adjoint(
        self, ddelta: Dot, dot: Dot, direction: Dot, gradient: Dot, wanted: bool, overwrite: bool = False
    ) -> Dot:
        """`phi'(a) ddelta + phi''(a) delta da`."""
        if not wanted:
            return None
        slope = self.slope[:, None]
        result = None if ddelta is None else ddelta.mul_(slope) if overwrite else ddelta * slope
        if dot is None or self.piecewise_linear:
            return result
        bend = self.bend[:, None]
        return dot * bend if result is None else result.addcmul_(dot, bend)


class LinearMapPiece(Piece):
    """A linear map without weights that treats rows alike: pooling by averages, slicing, padding, means."""

    def __init__(self, map_rows: Callable[[Tensor], Tensor]) -> None:
        self.map_rows = map_rows

    def forward(self, a: Tensor) -> Tensor:
        """Primal pass."""
        self.shape = a.shape[1:]
        return self.map_rows(a)

    def backward(self, delta: Tensor) -> Tensor:
        """The transposed map."""
        return _laid_out(self._transposed(delta))

    def tangent(self, dot: Dot, direction: Dot) -> Dot:
        """The map itself."""
        if dot is None:
            return None
        return _split(self.map_rows(dot.flatten(0, 1)), dot.shape[0])

    def adjoint(self, ddelta: Dot, dot: Dot, direction: Dot, gradient: Dot, wanted: bool) -> Dot:
        """The transposed map."""
        if ddelta is None or not wanted:
            return None
        return _split(self._transposed(ddelta.flatten(0, 1)), ddelta.shape[0])

    def _transposed(self, delta: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = delta.new_zeros(delta.shape[0], *self.shape).requires_grad_(True)
            return torch.autograd.grad(self.map_rows(leaf), leaf, delta)[0]


class ReshapePiece(LinearMapPiece):
    """Flatten, view and reshape that leave the rows apart."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(lambda a: a.reshape(a.shape[0], *shape))

    def _transposed(self, delta: Tensor) -> Tensor:
        return delta.reshape(delta.shape[0], *self.shape)


class MaxPoolPiece(Piece):
    """Max pooling: the entry that wins in each window, taken as fixed, as for any piecewise linear layer."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def forward(self, a: Tensor) -> Tensor:
        """Primal pass, remembering the winners."""
        self.shape = a.shape[1:]
        y, winners = functional.max_pool2d(a, return_indices=True, **self.settings)
        self.winners, self.pooled = winners.flatten(2), y.shape[2:]
        return y

    def backward(self, delta: Tensor) -> Tensor:
        """Each window's adjoint goes to its winner."""
        return _laid_out(self._scatter(delta[:, None])[:, 0])

    def tangent(self, dot: Dot, direction: Dot) -> Dot:
        """The winners' tangents."""
        if dot is None:
            return None
        picked = dot.flatten(3).gather(3, self.winners[:, None].expand(-1, dot.shape[1], -1, -1))
        return _split(picked.view(-1, picked.shape[2], *self.pooled), dot.shape[0])

    def adjoint(self, ddelta: Dot, dot: Dot, direction: Dot, gradient: Dot, wanted: bool) -> Dot:
        """Each window's adjoint goes to its winner."""
        return None if ddelta is None or not wanted else self._scatter(ddelta)

    def _scatter(self, delta: Tensor) -> Tensor:
        rows, count = delta.shape[:2]
        image = delta.new_zeros(rows, count, self.shape[0], self.shape[1:].numel())
        image.scatter_add_(3, self.winners[:, None].expand(-1, count, -1, -1), delta.flatten(3))
        return _split(image.view(rows * count, *self.shape), rows)


def _laid_out(rows: Tensor) -> Tensor:
    """Pictures channels last, as the convolutions want them; all else as it is."""
    return channels_last(rows) if rows.dim() == 4 else rows


def _split(rows: Tensor, count: int) -> Tensor:
    """(n K, *s) -> (n, K, *s)."""
    return _laid_out(rows).view(count, -1, *rows.shape[1:])
