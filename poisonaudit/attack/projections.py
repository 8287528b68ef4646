"""Nearest points and best corners of one norm ball cut by a box, row by row and exact to rounding.

Every row is a line of a matrix (k, d); `limit` (k, d) is how far each entry may go in the direction it is drawn to, so
that both problems have solutions of the form `sign * size` with `0 <= size <= limit`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BISECTIONS = 120


def clipped_ray(direction: Tensor, limit: Tensor, radius: float) -> Tensor:
    """Sizes on the path `s -> min(s direction, limit)` where its Euclidean norm is `radius`.

    The nearest point of ball and box and the best corner for a linear function both lie on such a path (optimality
    conditions, with s = 1 / (1 + multiplier) and s = 1 / multiplier). Its squared norm is piecewise quadratic in s and
    grows, with a break where an entry meets its limit: sorting the breaks gives the crossing exactly.

    Args:
        direction: (k, d), >= 0, a positive entry in every row.
        limit: (k, d), >= 0, infinity allowed.
        radius: of the ball; the path has to reach it.

    Returns:
        Sizes (k, d).
    """
    flat = direction / direction.amax(1, keepdim=True)
    breaks = torch.where(flat == 0, torch.full_like(flat, math.inf), limit / flat)
    breaks, order = breaks.sort(dim=1)
    free = flat.square().gather(1, order)
    fixed = limit.square().gather(1, order)
    fixed = torch.where(torch.isinf(breaks), torch.zeros_like(fixed), fixed)
    # In front of break j entries 0..j-1 sit at their limits and j.. are still s times the direction.
    resting = torch.cat([torch.zeros_like(fixed[:, :1]), fixed.cumsum(1)[:, :-1]], dim=1)
    moving = free.flip(1).cumsum(1).flip(1)
    before = resting + breaks.square() * moving
    crossing = ((before >= radius**2) | torch.isinf(breaks)).to(torch.uint8).argmax(1, keepdim=True)
    left = (radius**2 - resting.gather(1, crossing)).clamp(min=0.0)
    point = torch.minimum((left / moving.gather(1, crossing)).sqrt() * flat, limit)
    # Rounding may leave the norm a few last places too large; shrinking keeps a point of the box in the box.
    return point * (radius / point.norm(dim=1, keepdim=True)).clamp(max=1.0)


def onto_ellipsoid(wanted: Tensor, limit: Tensor, scale: Tensor, radius: float) -> Tensor:
    """Nearest sizes with `|size / scale|_2 <= radius`, for rows that start outside.

    `size = min(wanted / (1 + m / scale^2), limit)` for a multiplier m >= 0, found by bisection.

    Args:
        wanted: (k, d), >= 0.
        limit: (k, d), >= 0.
        scale: (d,), > 0.
        radius: of the ball.

    Returns:
        Sizes (k, d).
    """

    def sizes(multiplier: Tensor) -> Tensor:
        return torch.minimum(wanted / (1.0 + multiplier[:, None] / scale.square()), limit)

    def length(multiplier: Tensor) -> Tensor:
        return (sizes(multiplier) / scale).norm(dim=1)

    low = torch.zeros(len(wanted), dtype=wanted.dtype, device=wanted.device)
    # At this multiplier every entry is below scale^2 wanted / m, so that the norm is at most the radius.
    high = (scale * wanted).norm(dim=1) / radius
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        above = length(middle) > radius
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    point = sizes(high)
    return point * (radius / (point / scale).norm(dim=1, keepdim=True)).clamp(max=1.0)


def onto_l1(wanted: Tensor, limit: Tensor, scale: Tensor, radius: float) -> Tensor:
    """Nearest sizes with `|size / scale|_1 <= radius`, for rows that start outside.

    `size = clip(wanted - m / scale, 0, limit)`; the weighted sum falls piecewise linearly in m, with breaks where an
    entry leaves its limit and where it reaches 0.

    Args:
        wanted: (k, d), >= 0.
        limit: (k, d), >= 0.
        scale: (d,), > 0.
        radius: of the ball.

    Returns:
        Sizes (k, d).
    """
    capped = torch.minimum(wanted, limit)
    steep = scale.square().reciprocal().expand_as(wanted)
    breaks = torch.cat([scale * (wanted - capped), scale * wanted], dim=1)
    slopes = torch.cat([-steep, steep], dim=1)
    breaks, order = breaks.sort(dim=1)
    slopes = slopes.gather(1, order).cumsum(1)
    falls = (slopes[:, :-1] * breaks.diff(dim=1)).cumsum(1)
    start = (capped / scale).sum(1, keepdim=True)
    heights = torch.cat([start, start + falls], dim=1)
    # The last height is 0 up to rounding, so there is a crossing; the interval in front of it holds the multiplier.
    crossing = (heights <= radius).to(torch.uint8)
    crossing[:, -1] = 1
    after = crossing.argmax(1, keepdim=True).clamp(min=1)
    top, slope = heights.gather(1, after - 1), slopes.gather(1, after - 1)
    multiplier = breaks.gather(1, after - 1) + (top - radius) / (-slope).clamp(min=1e-300)
    point = torch.minimum((wanted - multiplier / scale).clamp(min=0.0), limit)
    return point * (radius / (point / scale).sum(1, keepdim=True).clamp(min=1e-300)).clamp(max=1.0)


def best_l1(value: Tensor, limit: Tensor, scale: Tensor, radius: float) -> Tensor:
    """Sizes of largest `<value, size>` with `|size / scale|_1 <= radius`: the entries that pay most first.

    Args:
        value: (k, d), >= 0.
        limit: (k, d), >= 0, infinity allowed.
        scale: (d,), > 0.
        radius: of the ball.

    Returns:
        Sizes (k, d).
    """
    order = (value * scale).sort(dim=1, descending=True, stable=True).indices
    cost = (limit / scale).clamp(max=radius).gather(1, order)
    left = (radius - (cost.cumsum(1) - cost)).clamp(min=0.0)
    spent = torch.minimum(cost, left)
    return torch.zeros_like(value).scatter(1, order, spent) * scale


def keep_largest(point: Tensor, worth: Tensor, count: int) -> Tensor:
    """`point` (k, d) with all but the `count` entries of largest worth in each row set to 0; ties go to the first."""
    if count >= point.shape[1]:
        return point
    kept = worth.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(point).scatter(1, kept, point.gather(1, kept))
