"""Linear maps that move entries, or mix them along one axis only."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from poisonaudit.lipschitz.linear_maps import LinearMap, Reach, Shape


class Rearrangement(LinearMap):
    """Entries in other places: some left out, some used several times, some places filled with zeros.

    Args:
        function: (n, *shape) -> (n, *out).
        shape: of a row.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], shape: Shape) -> None:
        self.shape_in = shape
        size = math.prod(shape)
        # Entry numbers, counted from 1, go through the function; 0 marks what it filled in.
        numbers = torch.arange(1, size + 1, dtype=torch.float64).reshape(1, *shape)
        image = function(numbers)
        self.shape_out = tuple(image.shape[1:])
        self.places = image.reshape(-1).long() - 1
        uses = torch.bincount(self.places[self.places >= 0], minlength=1)
        self.roundings, self.roundings_adjoint = 0, max(0, int(uses.max()) - 1)
        self.work = 0.0

    def apply(self, rows: Tensor) -> Tensor:
        """Forward."""
        flat = rows.reshape(len(rows), -1)
        used = self.places >= 0
        picked = flat[:, self.places.clamp_min(0)]
        return torch.where(used, picked, torch.zeros_like(picked)).reshape(len(rows), *self.shape_out)

    def adjoint(self, rows: Tensor) -> Tensor:
        """Every entry back to its place, added up there."""
        flat = rows.reshape(len(rows), -1)
        used = self.places >= 0
        found = flat.new_zeros(len(rows), math.prod(self.shape_in))
        found = found.index_add(1, self.places[used], flat[:, used])
        return found.reshape(len(rows), *self.shape_in)

    def absolute(self) -> LinearMap:
        """Itself."""
        return self

    def reach(self, axis: int, reach: Reach) -> Reach | None:
        """Where the positions go, where pictures stay pictures."""
        pairs = self._positions(axis)
        return None if pairs is None else _through(reach, pairs[0], pairs[1])

    def reach_back(self, axis: int, reach: Reach) -> Reach | None:
        """Where the positions come from."""
        pairs = self._positions(axis)
        return None if pairs is None else _through(reach, pairs[1], pairs[0])

    def _positions(self, axis: int) -> tuple[Tensor, Tensor] | None:
        """Position along the axis before and after, of every entry that is kept."""
        if len(self.shape_in) != len(self.shape_out) or axis + 1 >= len(self.shape_in):
            return None
        kept = self.places >= 0
        after = torch.nonzero(kept.reshape(self.shape_out))[:, axis + 1]
        before = self.places[kept] // math.prod(self.shape_in[axis + 2 :]) % self.shape_in[axis + 1]
        return before, after


class AxisMatrix(LinearMap):
    """A matrix along the second axis of each row, the same for every entry of the others.

    Args:
        weight: (out, in).
        shape: (c, in, ...) of a row.
    """

    def __init__(self, weight: Tensor, shape: Shape) -> None:
        self.weight, self.shape_in = weight, shape
        self.shape_out = (shape[0], weight.shape[0], *shape[2:])
        self.roundings, self.roundings_adjoint = weight.shape[1], weight.shape[0]
        self.work = float(weight.numel() * math.prod(shape) // shape[1])

    def apply(self, rows: Tensor) -> Tensor:
        """Forward."""
        return torch.einsum("ok,nck...->nco...", self.weight, rows)

    def adjoint(self, rows: Tensor) -> Tensor:
        """Transposed."""
        return torch.einsum("ok,nco...->nck...", self.weight, rows)

    def absolute(self) -> LinearMap:
        """With |weight|."""
        return AxisMatrix(self.weight.abs(), self.shape_in)


def _through(reach: Reach, before: Tensor, after: Tensor) -> Reach:
    """First and last position `after` of the pairs whose `before` is reached."""
    low, high = reach
    met = (low[:, None] <= before[None, :]) & (before[None, :] <= high[:, None])
    first = torch.where(met, after[None, :], torch.iinfo(torch.int64).max).amin(1)
    last = torch.where(met, after[None, :], -1).amax(1)
    return torch.where(last < 0, 1, first), torch.where(last < 0, 0, last)
