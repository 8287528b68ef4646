"""Signed Adam over a set of perturbations, as crafting by gradient matching uses it, for every norm of the budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.attack.perturbations import PerturbationSet

Loss = Callable[[Tensor], tuple[Tensor, Tensor]]
_MOMENTUM = 0.9
# Shares of the steps after which the step length falls to a tenth (Geiping et al., 2021, appendix).
_FALLS = (3 / 8, 5 / 8, 7 / 8)


@dataclass(frozen=True, eq=False)
class Descent:
    """The best point of a run.

    Attributes:
        delta: admissible (k, ...).
        value: loss there, a scalar tensor.
        evaluations: losses with gradients computed.
    """

    delta: Tensor
    value: Tensor
    evaluations: int


def descend(
    loss: Loss,
    allowed: PerturbationSet,
    start: Tensor,
    steps: int,
    rate: float = 0.1,
    watch: Callable[[int, Tensor], None] | None = None,
) -> Descent:
    """Minimise a loss by signed steps with momentum.

    Adam on signs of gradients is momentum on signs, since their second moment is 1; the sign is the steepest descent
    direction of the l_inf norm. For the other norms the direction is each row's gradient over its length, with the
    same momentum. For sets that are not convex the iterate moves in the relaxed set, and losses and gradients are
    taken at its nearest admissible point.

    Args:
        loss: mu (k, ...) -> (value, gradient).
        allowed: admissible perturbations.
        start: (k, ...), anywhere.
        steps: how many.
        rate: first step length relative to the radius.
        watch: called with the step and the loss at each point.

    Returns:
        The best admissible point met.
    """
    relaxed = allowed if allowed.convex else allowed.relaxed()
    reach = rate * allowed.radius * (1.0 if allowed.entries is None else math.sqrt(allowed.entries))
    point, running = relaxed.project(start), torch.zeros_like(start)
    best, best_value = torch.zeros_like(start), torch.full((), math.inf, dtype=start.dtype, device=start.device)
    for step in range(steps + 1):
        mu = allowed.project(point)
        value, gradient = loss(mu)
        # No branch on the value, so that nothing waits for the device.
        best, best_value = torch.where(value < best_value, mu, best), torch.minimum(value, best_value)
        if watch is not None:
            watch(step, value)
        if step == steps:
            break
        running = _MOMENTUM * running + (1 - _MOMENTUM) * _direction(gradient, allowed)
        unbiased = running / (1 - _MOMENTUM ** (step + 1))
        length = reach * 0.1 ** sum(step >= share * steps for share in _FALLS)
        point = relaxed.project(point - length * unbiased)
    return Descent(best, best_value, steps + 1)


def _direction(gradient: Tensor, allowed: PerturbationSet) -> Tensor:
    """Steepest descent in units of the scale: signs for l_inf, else rows of length 1."""
    scale = torch.ones_like(gradient[0]) if allowed.scale is None else allowed.scale
    scaled = gradient * scale
    if allowed.norm == "linf":
        return scaled.sign() * scale
    length = scaled.flatten(1).norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
    return scaled / length.view(-1, *[1] * (gradient.dim() - 1)) * scale


def random_start(allowed: PerturbationSet, like: Tensor, generator: torch.Generator) -> Tensor:
    """A point drawn uniformly in `[-radius, radius]` for every entry, moved to the nearest admissible one.

    Args:
        allowed: admissible perturbations.
        like: (k, ...), gives dtype and device.
        generator: on the CPU, so that draws do not depend on the device.

    Returns:
        (k, ...).
    """
    draw = torch.rand(like.shape, generator=generator, dtype=torch.float64).to(like)
    scale = 1.0 if allowed.scale is None else allowed.scale
    relaxed = allowed if allowed.convex else allowed.relaxed()
    return relaxed.project((2 * draw - 1) * allowed.radius * scale)
