"""The set of admissible perturbations of some rows, with exact projections and linear maximisers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poisonaudit.attack.projections import best_l1, clipped_ray, keep_largest, onto_ellipsoid, onto_l1

NormName = Literal["linf", "l2", "l1", "l0"]
# Entries of a grid may sit this share of a step beside it: what rounding does to the data themselves.
_BESIDE = 1e-6


@dataclass(frozen=True, eq=False)
class PerturbationSet:
    """`{ mu : |mu_i / scale| <= radius, lower <= mu <= upper }` for every row i: each set contains 0.

    The norm "l0" bounds the number of entries that move, `entries` a row, each by at most `radius * scale`. With
    `spacing`, entries move in whole steps. Without either the sets are convex.

    Attributes:
        lower: least admissible entries, <= 0, shape (k, ...).
        upper: largest admissible entries, >= 0, shape (k, ...).
        radius: of the norm ball of each row.
        norm: "linf", "l2", "l1" or "l0".
        outside: number of clean rows that lie outside the box themselves.
        scale: unit of the norm for every entry, shaped like one row, > 0; None for 1.
        entries: with "l0", how many entries of a row may move.
        spacing: step of every entry, shaped like one row, 0 for free entries; None where all are free. Only with
            "linf" and "l0".
    """

    lower: Tensor
    upper: Tensor
    radius: float
    norm: NormName
    outside: int = 0
    scale: Tensor | None = None
    entries: int | None = None
    spacing: Tensor | None = None

    @property
    def convex(self) -> bool:
        """Neither whole steps nor a number of entries."""
        return self.norm != "l0" and self.spacing is None

    def relaxed(self) -> PerturbationSet:
        """The smallest set of this family that is convex and holds this one: no steps, and for "l0" an l1 ball."""
        if self.norm != "l0":
            return dataclasses.replace(self, spacing=None)
        assert self.entries is not None
        low, high = self.limits()
        total = self.radius * self.entries
        return dataclasses.replace(self, lower=low, upper=high, norm="l1", radius=total, entries=None, spacing=None)

    def project(self, mu: Tensor) -> Tensor:
        """Nearest point of the set in the Euclidean norm, exactly (rows independently), shape (k, ...)."""
        low, high = self.limits()
        nearest = self._on_grid(mu.clamp(low, high))
        if self.norm == "linf":
            return nearest
        if self.norm == "l0":
            assert self.entries is not None
            worth = (mu.square() - (mu - nearest).square()).flatten(1)
            return keep_largest(nearest.flatten(1), worth, self.entries).view_as(mu)
        far = self._lengths(nearest) > self.radius
        if bool(far.any()):
            wanted, limit = mu[far].flatten(1), self._reach(mu)[far]
            scale = self._scale()
            if self.norm == "l1":
                sizes = onto_l1(wanted.abs(), limit, scale, self.radius)
            elif bool((scale == scale[0]).all()):
                sizes = clipped_ray(wanted.abs(), limit, self.radius * float(scale[0]))
            else:
                sizes = onto_ellipsoid(wanted.abs(), limit, scale, self.radius)
            nearest[far] = (sizes * wanted.sign()).view_as(mu[far])
        return nearest

    def best_linear(self, direction: Tensor) -> Tensor:
        """`argmax <direction, mu>` over the set, exactly, (k, ...); entries with zero direction stay 0."""
        limit, sign = self._reach(direction), direction.flatten(1).sign()
        value = direction.flatten(1).abs()
        limit = torch.where(value == 0, torch.zeros_like(limit), limit)
        if self.norm == "l1":
            sizes = best_l1(value, limit, self._scale(), self.radius)
        elif self.norm == "l0":
            assert self.entries is not None
            sizes = keep_largest(limit, value * limit, self.entries)
        else:
            sizes = limit
            if self.norm == "l2":
                scale = self._scale()
                far = (limit / scale).norm(dim=1) > self.radius
                if bool(far.any()):
                    sizes = sizes.clone()
                    sizes[far] = clipped_ray(value[far] * scale, limit[far] / scale, self.radius) * scale
        return (sizes * sign).view_as(direction)

    def step_along(self, direction: Tensor, share: float) -> Tensor:
        """Steepest move of `share` of the radius in the set's own norm, whatever the limits of entries.

        Args:
            direction: to follow (k, ...).
            share: of the radius.

        Returns:
            A move (k, ...); entries that may not move at all stay.
        """
        free = (self.upper > self.lower).to(direction)
        far = torch.full_like(self.upper, torch.inf)
        ball = dataclasses.replace(self, lower=-far, upper=far, spacing=None, radius=share * self.radius)
        return ball.best_linear(direction * free) * free

    def stuck(self) -> Tensor:
        """Entries whose whole step is longer than the norm lets a single entry go, shaped like one row."""
        if self.spacing is None:
            return torch.zeros_like(self.lower[0], dtype=torch.bool)
        reach = self.radius * self._scale().view_as(self.spacing)
        return (self.spacing > 0) & ((reach / self.spacing.clamp(min=1e-300) + _BESIDE).floor() == 0)

    def gain(self, direction: Tensor) -> Tensor:
        """`max <direction_i, mu_i>` of each row, shape (k,)."""
        return (direction * self.best_linear(direction)).flatten(1).sum(1)

    def scaled(self, share: float) -> PerturbationSet:
        """The same set shrunk towards 0 by a factor in (0, 1]; steps and the number of entries stay."""
        return dataclasses.replace(self, lower=self.lower * share, upper=self.upper * share, radius=self.radius * share)

    def used(self, mu: Tensor) -> float:
        """Largest row norm of `mu` relative to the radius, or entries to their number, in [0, 1] for admissible mu."""
        share = float(self._lengths(mu).max()) / self.radius
        if self.entries is None:
            return share
        return max(share, float((mu.flatten(1) != 0).sum(1).max()) / self.entries)

    def violation(self, mu: Tensor) -> float:
        """By how much `mu` leaves the set, in input units (in entries for their number); 0 for admissible mu."""
        beyond = float(torch.maximum(self.lower - mu, mu - self.upper).max().clamp(min=0.0))
        beyond = max(beyond, (float(self._lengths(mu).max()) - self.radius) * float(self._scale().max()))
        if self.entries is not None:
            beyond = max(beyond, float((mu.flatten(1) != 0).sum(1).max()) - self.entries)
        if self.spacing is not None:
            beside = (mu - self._on_grid(mu)).abs()
            slack = _BESIDE * self.spacing
            beyond = max(beyond, float((beside - slack).max()))
        return max(beyond, 0.0)

    def limits(self) -> tuple[Tensor, Tensor]:
        """Least and largest value of every entry, the norm's own bound on a single entry included, on the grid."""
        low, high = self.lower, self.upper
        if self.norm in ("linf", "l0"):
            bound = self.radius if self.scale is None else self.radius * self.scale
            low, high = torch.maximum(low, -_like(bound, low)), torch.minimum(high, _like(bound, high))
        if self.spacing is not None:
            step = self.spacing.clamp(min=1e-300)
            free = self.spacing == 0
            low = torch.where(free, low, (low / step - _BESIDE).ceil() * step)
            high = torch.where(free, high, (high / step + _BESIDE).floor() * step)
        return low, high

    def _reach(self, direction: Tensor) -> Tensor:
        """How far each entry may go where `direction` draws it, (k, d)."""
        low, high = self.limits()
        return torch.where(direction > 0, high, -low).flatten(1)

    def _on_grid(self, mu: Tensor) -> Tensor:
        if self.spacing is None:
            return mu
        step = self.spacing.clamp(min=1e-300)
        return torch.where(self.spacing == 0, mu, (mu / step).round() * step)

    def _lengths(self, mu: Tensor) -> Tensor:
        """Norm of each row in units of the scale, (k,); for "l0" that of its largest entry."""
        flat = mu.flatten(1) / self._scale()
        if self.norm in ("linf", "l0"):
            return flat.abs().amax(1)
        return flat.norm(dim=1) if self.norm == "l2" else flat.abs().sum(1)

    def _scale(self) -> Tensor:
        """Unit of every entry, (d,)."""
        if self.scale is None:
            return torch.ones_like(self.lower[0]).flatten()
        return self.scale.flatten()


def _like(bound: Tensor | float, one: Tensor) -> Tensor:
    return torch.as_tensor(bound, dtype=one.dtype, device=one.device).expand_as(one)
