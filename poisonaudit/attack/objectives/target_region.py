"""Push training into a set of weights: a half-space, a ball or a box."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from poisonaudit.arguments import finite_number
from poisonaudit.attack.arguments import as_tensor
from poisonaudit.errors import InputRefused, UsageError, wrong_type
from poisonaudit.problem import Problem


class Region(Protocol):
    """A closed convex set of flat weights (p,)."""

    def nearest(self, weights: Tensor) -> Tensor:
        """Its point nearest to the weights, (p,)."""
        ...

    def tensors(self) -> list[Tensor]:
        """The tensors it is made of, each (p,)."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON form."""
        ...


@dataclass(frozen=True, eq=False)
class HalfSpace:
    """`{ w : <normal, w> >= offset }`.

    Attributes:
        normal: (p,), not zero.
        offset: number.

    Raises:
        UsageError: PA376, the offset is no finite number.
        InputRefused: PA127, the normal holds no numbers.
    """

    normal: Tensor
    offset: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "normal", as_tensor(self.normal, "the normal"))
        object.__setattr__(self, "offset", _number(self.offset, "offset"))

    def nearest(self, weights: Tensor) -> Tensor:
        """Along the normal, as far as is missing."""
        normal = self.normal.to(weights)
        missing = max(0.0, self.offset - float(normal.dot(weights)))
        return weights + missing / float(normal.dot(normal)) * normal

    def tensors(self) -> list[Tensor]:
        """The normal."""
        return [self.normal]

    def describe(self) -> dict[str, Any]:
        """JSON form: shape, length of the normal, offset."""
        return {"shape": "half_space", "normal_norm": float(self.normal.norm()), "offset": float(self.offset)}


@dataclass(frozen=True, eq=False)
class Ball:
    """`{ w : |w - centre| <= radius }`.

    Attributes:
        centre: (p,).
        radius: >= 0.

    Raises:
        UsageError: PA376, the radius is no finite number.
        InputRefused: PA127, the centre holds no numbers.
    """

    centre: Tensor
    radius: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "centre", as_tensor(self.centre, "the centre"))
        object.__setattr__(self, "radius", _number(self.radius, "radius"))

    def nearest(self, weights: Tensor) -> Tensor:
        """On the line to the centre."""
        centre = self.centre.to(weights)
        away = weights - centre
        length = float(away.norm())
        return weights if length <= self.radius else centre + self.radius / length * away

    def tensors(self) -> list[Tensor]:
        """The centre."""
        return [self.centre]

    def describe(self) -> dict[str, Any]:
        """JSON form: shape, radius."""
        return {"shape": "ball", "radius": float(self.radius)}


@dataclass(frozen=True, eq=False)
class Box:
    """`{ w : lower <= w <= upper }`; infinite limits leave a weight free.

    Attributes:
        lower: (p,).
        upper: (p,).

    Raises:
        InputRefused: PA127, a limit holds no numbers.
    """

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "lower", as_tensor(self.lower, "the lower limit"))
        object.__setattr__(self, "upper", as_tensor(self.upper, "the upper limit"))

    def nearest(self, weights: Tensor) -> Tensor:
        """Weight by weight."""
        return torch.minimum(torch.maximum(weights, self.lower.to(weights)), self.upper.to(weights))

    def tensors(self) -> list[Tensor]:
        """Both limits."""
        return [self.lower, self.upper]

    def describe(self) -> dict[str, Any]:
        """JSON form: shape, how many weights are bound."""
        bound = int((self.lower.isfinite() | self.upper.isfinite()).sum())
        return {"shape": "box", "weights_bound": bound}


@dataclass(frozen=True, eq=False)
class TargetRegion:
    """A region that the poisoner wants training to end in; crafting makes the squared distance to it small.

    Attributes:
        region: HalfSpace, Ball or Box.

    Raises:
        UsageError: PA314, the region is something else.
    """

    region: HalfSpace | Ball | Box

    kind = "target_region"

    def __post_init__(self) -> None:
        if not isinstance(self.region, HalfSpace | Ball | Box):
            raise wrong_type("TargetRegion", "region", self.region, "Pass a HalfSpace, a Ball or a Box of weights.")

    def bind(self, problem: Problem) -> RegionGoal:
        """The objective at a clean trained problem.

        Args:
            problem: clean, at wbar.

        Returns:
            The bound objective.

        Raises:
            InputRefused: PA125, a tensor's length is not that of the weights; PA124, it holds NaN.
            UsageError: PA376, the region is empty or holds the clean weights already.
        """
        for one in self.region.tensors():
            if one.shape != problem.weights.shape:
                raise InputRefused(
                    "PA125",
                    f"the region's tensors are {tuple(one.shape)}, this problem has {tuple(problem.weights.shape)}. "
                    "Flatten in named_parameters() order.",
                )
            if bool(one.isnan().any()):
                raise InputRefused("PA124", "the region holds NaN. Pass numbers.")
        _refuse_empty(self.region)
        goal = RegionGoal(problem, self.region)
        if goal.distance(problem.weights) == 0.0:
            raise UsageError("PA376", "the clean weights lie in the region already. Name a region to be reached.")
        return goal

    def describe(self) -> dict[str, Any]:
        """JSON form: kind and region."""
        return {"kind": self.kind, **self.region.describe()}


@dataclass(frozen=True, eq=False)
class RegionGoal:
    """Half the squared distance to the region.

    Attributes:
        problem: clean.
        region: see `TargetRegion`.
    """

    problem: Problem
    region: Region
    convex = True
    is_distance = True

    def distance(self, weights: Tensor) -> float:
        """`|w - nearest(w)|`, 0 inside up to rounding."""
        length = float((weights - self.region.nearest(weights)).norm())
        return 0.0 if length <= 8 * torch.finfo(weights.dtype).eps * float(weights.norm()) else length

    def value(self, weights: Tensor) -> float:
        """Half the squared distance."""
        return 0.5 * float((weights - self.region.nearest(weights)).square().sum())

    def gradient(self, weights: Tensor) -> Tensor:
        """`w - nearest(w)`, (p,): the squared distance to a convex set is differentiable."""
        return weights - self.region.nearest(weights)

    def success(self, weights: Tensor) -> bool | None:
        """The weights lie in the region."""
        return self.distance(weights) == 0.0

    def figures(self, weights: Tensor, reference: Tensor) -> dict[str, Any]:
        """Distance to the region, relative to that of `reference`, success."""
        before, after = self.distance(reference), self.distance(weights)
        return {
            "region_distance": after,
            "region_distance_ratio": after / before if before > 0 else math.nan if after > 0 else 0.0,
            "success": after == 0.0,
        }

    def describe(self) -> dict[str, Any]:
        """JSON form: kind, region, the clean weights' distance."""
        body = {"kind": TargetRegion.kind, **self.region.describe()}
        return body | {"clean_distance": self.distance(self.problem.weights)}


def _number(value: object, what: str) -> float:
    found = finite_number(value)
    if found is None:
        raise UsageError("PA376", f"the region's {what} is {value!r}; a finite number is needed. Pass {what}=1.0, say.")
    return found


def _refuse_empty(region: HalfSpace | Ball | Box) -> None:
    if isinstance(region, HalfSpace):
        empty = not bool(region.normal.any())
    elif isinstance(region, Ball):
        empty = region.radius < 0.0
    else:
        empty = bool((region.lower > region.upper).any())
    if empty:
        raise UsageError("PA376", f"the region {region.describe()} is empty or undefined. Correct its numbers.")
