"""Spectral projected gradient (Birgin, Martinez and Raydan, 2000) over a convex set of perturbations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.attack.perturbations import PerturbationSet

# Values that a step may still exceed, so that long spectral steps are taken.
_REMEMBERED = 10
_DECREASE = 1e-4
_SHORTEST, _LONGEST = 1e-12, 1e12
_HALVINGS = 40
# It ends where this many steps lowered the best value by less than this share.
_PATIENCE, _PROGRESS = 50, 1e-6


@dataclass(frozen=True, eq=False)
class Minimum:
    """The best point of a run.

    Attributes:
        delta: (k, ...), in the set.
        value: loss there.
        steps: steps made.
        evaluations: losses with gradients computed.
        ended: how it ended, in words.
    """

    delta: Tensor
    value: float
    steps: int
    evaluations: int
    ended: str


def minimise(
    loss: Callable[[Tensor], tuple[Tensor, Tensor]],
    allowed: PerturbationSet,
    start: Tensor,
    steps: int,
    enough: float = 0.0,
    watch: Callable[[int, float], None] | None = None,
) -> Minimum:
    """Minimise a smooth loss: projected steps of Barzilai-Borwein length with a search that need not fall every step.

    Args:
        loss: mu (k, ...) -> (value, gradient).
        allowed: convex.
        start: (k, ...), in the set.
        steps: most steps.
        enough: value at which to stop.
        watch: called with the step and the value.

    Returns:
        The best point met.
    """
    mu, (tensor, gradient) = start, loss(start)
    value, evaluations, ended = float(tensor), 1, "step limit"
    best, best_value, recent, step = mu, value, [value], 0
    trail: list[float] = []
    # The first step reaches across the set; the search shortens it.
    span = float(gradient.abs().max())
    length = 2.0 * allowed.radius / span if span > 0 else 1.0
    for step in range(steps + 1):
        if watch is not None:
            watch(step, best_value)
        if value <= enough:
            ended = "value reached"
            break
        if step == steps:
            break
        trail.append(best_value)
        if len(trail) > _PATIENCE and best_value > (1 - _PROGRESS) * trail.pop(0):
            ended = "no more progress"
            break
        toward = allowed.project(mu - length * gradient) - mu
        slope = float((gradient * toward).sum())
        if slope >= -torch.finfo(mu.dtype).eps * abs(value):
            ended = "no descent left"
            break
        share, found = 1.0, False
        for _ in range(_HALVINGS):
            new = mu + share * toward
            tensor, new_gradient = loss(new)
            new_value, evaluations = float(tensor), evaluations + 1
            found = new_value <= max(recent) + _DECREASE * share * slope
            if found:
                break
            # The lowest point of the parabola through both values and the slope, between a tenth and a half.
            bent = 0.0 if math.isnan(new_value) else -0.5 * share**2 * slope / (new_value - value - share * slope)
            share = min(max(bent, 0.1 * share), 0.5 * share)
        if not found:
            ended = "no shorter step helped"
            break
        change, bend = new - mu, new_gradient - gradient
        curved = float((change * bend).sum())
        # Along a flat or hollow stretch the longest step is taken.
        length = float(change.square().sum()) / curved if curved > 0 else _LONGEST
        length = min(max(length, _SHORTEST), _LONGEST)
        mu, value, gradient = new, new_value, new_gradient
        recent = [*recent[1 - _REMEMBERED :], value]
        if value < best_value:
            best, best_value = mu, value
    return Minimum(best, best_value, step, evaluations, ended)
