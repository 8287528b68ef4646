"""Linear maps between the tensors of a network, applied to stacks of columns; no matrix is formed.

Each map knows its transpose, its entrywise absolute value, how many roundings meet in one entry of a product, and how
far along each axis of a picture an entry can reach, so that columns which never meet may share one pass.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

Shape = tuple[int, ...]
# First and last position along one axis that each start position reaches; empty where first > last.
Reach = tuple[Tensor, Tensor]


class LinearMap(ABC):
    """A linear map of rows, (n, *shape_in) -> (n, *shape_out), in float64.

    Attributes:
        shape_in: of one row.
        shape_out: of one image.
        roundings: most roundings that meet in one entry of an image, the number of its terms included.
        roundings_adjoint: the same of the transposed map.
        work: multiplications of one application to one row.
    """

    shape_in: Shape
    shape_out: Shape
    roundings: int
    roundings_adjoint: int
    work: float

    @abstractmethod
    def apply(self, rows: Tensor) -> Tensor:
        """Images (n, *shape_out) of rows (n, *shape_in)."""

    @abstractmethod
    def adjoint(self, rows: Tensor) -> Tensor:
        """The transposed map, (n, *shape_out) -> (n, *shape_in)."""

    @abstractmethod
    def absolute(self) -> LinearMap:
        """A map that bounds |this map| entry by entry: exactly it, but for compositions."""

    def reach(self, axis: int, reach: Reach) -> Reach | None:
        """Positions along a picture's axis (0 rows, 1 columns) after the map; None where positions are mixed."""
        return None

    def reach_back(self, axis: int, reach: Reach) -> Reach | None:
        """The same of the transposed map."""
        return None

    def matrix(self) -> Tensor:
        """The matrix, (entries out, entries in)."""
        size = math.prod(self.shape_in)
        unit = torch.eye(size, dtype=torch.float64).reshape(size, *self.shape_in)
        return self.apply(unit).reshape(size, -1).T


class Identity(LinearMap):
    """Rows as they are."""

    def __init__(self, shape: Shape) -> None:
        self.shape_in = self.shape_out = shape
        self.roundings = self.roundings_adjoint = 0
        self.work = 0.0

    def apply(self, rows: Tensor) -> Tensor:
        """The rows."""
        return rows

    def adjoint(self, rows: Tensor) -> Tensor:
        """The rows."""
        return rows

    def absolute(self) -> LinearMap:
        """Itself."""
        return self

    def reach(self, axis: int, reach: Reach) -> Reach | None:
        """Unchanged."""
        return reach

    def reach_back(self, axis: int, reach: Reach) -> Reach | None:
        """Unchanged."""
        return reach


class Matrix(LinearMap):
    """A Linear layer on the last axis.

    Args:
        weight: (out, in).
        leading: axes of a row before the last.
    """

    def __init__(self, weight: Tensor, leading: Shape = ()) -> None:
        self.weight = weight
        out, width = weight.shape
        self.shape_in, self.shape_out = (*leading, width), (*leading, out)
        self.roundings, self.roundings_adjoint = width, out
        self.work = float(weight.numel() * math.prod(leading))

    def apply(self, rows: Tensor) -> Tensor:
        """`rows W^T`."""
        return rows @ self.weight.T

    def adjoint(self, rows: Tensor) -> Tensor:
        """`rows W`."""
        return rows @ self.weight

    def absolute(self) -> LinearMap:
        """|W|."""
        return Matrix(self.weight.abs(), self.shape_in[:-1])


class Scale(LinearMap):
    """Entries times numbers of their own.

    Args:
        factors: broadcast to `shape`.
        shape: of a row.
        roundings: that made the factors.
    """

    def __init__(self, factors: Tensor, shape: Shape, roundings: int = 0) -> None:
        self.factors = factors
        self.shape_in = self.shape_out = shape
        self.roundings = self.roundings_adjoint = roundings + 1
        self.work = 0.0

    def apply(self, rows: Tensor) -> Tensor:
        """`factors * rows`."""
        return rows * self.factors

    def adjoint(self, rows: Tensor) -> Tensor:
        """`factors * rows`."""
        return rows * self.factors

    def absolute(self) -> LinearMap:
        """|factors|."""
        return Scale(self.factors.abs(), self.shape_in, self.roundings - 1)

    def reach(self, axis: int, reach: Reach) -> Reach | None:
        """Unchanged."""
        return reach

    def reach_back(self, axis: int, reach: Reach) -> Reach | None:
        """Unchanged."""
        return reach


class Composition(LinearMap):
    """One map after another."""

    def __init__(self, first: LinearMap, second: LinearMap) -> None:
        self.first, self.second = first, second
        self.shape_in, self.shape_out = first.shape_in, second.shape_out
        self.roundings = first.roundings + second.roundings
        self.roundings_adjoint = first.roundings_adjoint + second.roundings_adjoint
        self.work = first.work + second.work

    def apply(self, rows: Tensor) -> Tensor:
        """Both."""
        return self.second.apply(self.first.apply(rows))

    def adjoint(self, rows: Tensor) -> Tensor:
        """Both transposed, in the other order."""
        return self.first.adjoint(self.second.adjoint(rows))

    def absolute(self) -> LinearMap:
        """Product of the absolute values: at least the absolute value of the product."""
        return Composition(self.first.absolute(), self.second.absolute())

    def reach(self, axis: int, reach: Reach) -> Reach | None:
        """Of one after the other."""
        between = self.first.reach(axis, reach)
        return None if between is None else self.second.reach(axis, between)

    def reach_back(self, axis: int, reach: Reach) -> Reach | None:
        """Of one after the other, backwards."""
        between = self.second.reach_back(axis, reach)
        return None if between is None else self.first.reach_back(axis, between)


class Transposed(LinearMap):
    """A map the other way round."""

    def __init__(self, original: LinearMap) -> None:
        self.original = original
        self.shape_in, self.shape_out = original.shape_out, original.shape_in
        self.roundings, self.roundings_adjoint = original.roundings_adjoint, original.roundings
        self.work = original.work

    def apply(self, rows: Tensor) -> Tensor:
        """The original's adjoint."""
        return self.original.adjoint(rows)

    def adjoint(self, rows: Tensor) -> Tensor:
        """The original."""
        return self.original.apply(rows)

    def absolute(self) -> LinearMap:
        """Transposed absolute value."""
        return Transposed(self.original.absolute())

    def reach(self, axis: int, reach: Reach) -> Reach | None:
        """Of the original, backwards."""
        return self.original.reach_back(axis, reach)

    def reach_back(self, axis: int, reach: Reach) -> Reach | None:
        """Of the original."""
        return self.original.reach(axis, reach)


def composed(first: LinearMap, second: LinearMap) -> LinearMap:
    """`second` after `first`, without identities."""
    if isinstance(first, Identity):
        return second
    return first if isinstance(second, Identity) else Composition(first, second)


def transposed(original: LinearMap) -> LinearMap:
    """The map the other way round."""
    return original.original if isinstance(original, Transposed) else Transposed(original)


def steps_of(step: LinearMap) -> list[LinearMap]:
    """What a composition does one after another; any other map on its own."""
    if isinstance(step, Composition):
        return [*steps_of(step.first), *steps_of(step.second)]
    if isinstance(step, Transposed):
        return [transposed(part) for part in reversed(steps_of(step.original))]
    return [step]
