"""Push training to chosen weights: `1/2 |w - w_t|^2`, that is `1/2 |v + H^+ B mu|^2` to first order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poisonaudit.attack.arguments import as_tensor
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name


@dataclass(frozen=True, eq=False)
class TargetWeights:
    """Weights that the poisoner wants training to reach.

    Attributes:
        weights: w_t, flat (p,), in the order of `problem.weights`.
        success_at: movement `<w - wbar, v> / |v|^2` (1 = arrived along v = w_t - wbar) from which on the
            attack counts as a success; None leaves success undefined.
        layers: names of the parameters that count, or of modules, all of whose parameters then count; None for all.
            The others may go where they like.
    """

    weights: Tensor
    success_at: float | None = None
    layers: Sequence[str] | None = None

    kind = "target_weights"

    def bind(self, problem: Problem) -> TargetGoal:
        """The objective at a clean trained problem.

        Args:
            problem: clean, at wbar.

        Returns:
            The bound objective.

        Raises:
            InputRefused: PA125, the target's length is not that of the weights; PA124, it is not finite.
            UsageError: PA364, the target is the model itself.
        """
        target = fitting_target(problem, self.weights)
        counts = None if self.layers is None else weights_of_layers(problem, self.layers)
        offset = target - problem.weights
        if counts is not None and not bool((offset * counts).any()):
            raise UsageError("PA364", "the target equals the model's own weights in those layers. Name other layers.")
        return TargetGoal(target, offset if counts is None else offset * counts, self.success_at, counts)

    def describe(self) -> dict[str, Any]:
        """JSON form: kind, size, norm of the target, success_at."""
        return {
            "kind": self.kind,
            "size": as_tensor(self.weights, "target weights").numel(),
            "target_norm": float(as_tensor(self.weights, "target weights").norm()),
            "success_at": self.success_at,
            "layers": None if self.layers is None else list(self.layers),
        }


@dataclass(frozen=True, eq=False)
class TargetGoal:
    """`1/2 |w - w_t|^2` seen from wbar, over the weights that count.

    Attributes:
        target: w_t (p,).
        offset: v = w_t - wbar (p,), 0 where a weight does not count.
        success_at: movement that counts as success, or None.
        counts: 1 where a weight counts and 0 elsewhere (p,); None where all do.
    """

    target: Tensor
    offset: Tensor
    success_at: float | None
    counts: Tensor | None = None
    convex = True
    is_distance = True

    def value(self, weights: Tensor) -> float:
        """`1/2 |w - w_t|^2`."""
        return 0.5 * float(self.gradient(weights).square().sum())

    def gradient(self, weights: Tensor) -> Tensor:
        """`w - w_t`, (p,), 0 where a weight does not count."""
        return self._counted(weights - self.target)

    def movement(self, weights: Tensor, reference: Tensor) -> float:
        """`<w - reference, v> / |v|^2`."""
        return float((weights - reference).dot(self.offset) / self.offset.dot(self.offset))

    def success(self, weights: Tensor) -> bool | None:
        """Movement from wbar at least `success_at`."""
        if self.success_at is None:
            return None
        # Where weights do not count, the offset is 0 and so is their part of the movement.
        return self.movement(weights, self.target - self.offset) >= self.success_at

    def figures(self, weights: Tensor, reference: Tensor) -> dict[str, Any]:
        """Movement and cosine of `w - reference` with v, and `|w - w_t| / |v|`."""
        moved = self._counted(weights - reference)
        length, distance = float(moved.norm()), float(self.offset.norm())
        movement = self.movement(weights, reference)
        return {
            "movement": movement,
            "cosine": movement * distance / length if length > 0 else None,
            "distance_ratio": float(self.gradient(weights).norm()) / distance,
            "success": None if self.success_at is None else movement >= self.success_at,
        }

    def describe(self) -> dict[str, Any]:
        """JSON form: kind, `|v|`, `|w_t|`, success_at."""
        return {
            "kind": TargetWeights.kind,
            "size": self.target.numel(),
            "target_norm": float(self.target.norm()),
            "offset_norm": float(self.offset.norm()),
            "success_at": self.success_at,
            "weights_counted": self.target.numel() if self.counts is None else int(self.counts.sum()),
        }

    def _counted(self, weights: Tensor) -> Tensor:
        return weights if self.counts is None else weights * self.counts


def weights_of_layers(problem: Problem, layers: Sequence[str]) -> Tensor:
    """1 for the weights of named parameters or modules, 0 for the others.

    Args:
        problem: gives the names.
        layers: names of parameters, or of modules.

    Returns:
        (p,) in the problem's type.

    Raises:
        UsageError: PA377, there is no such layer, or none is named.
    """
    if not layers:
        raise UsageError("PA377", "no layer is named. Leave layers out for all weights.")
    for wanted in layers:
        if not any(name == wanted or name.startswith(f"{wanted}.") for name in problem.names):
            raise unknown_name(wanted, problem.names, "layer", code="PA377")
    parts = []
    for name, value in problem.parameters(problem.weights).items():
        chosen = any(name == wanted or name.startswith(f"{wanted}.") for wanted in layers)
        parts.append(torch.full((value.numel(),), float(chosen), dtype=problem.dtype, device=problem.device))
    return torch.cat(parts)


def fitting_target(problem: Problem, weights: Tensor) -> Tensor:
    """Target weights in the problem's type and on its device.

    Args:
        problem: whose weights they are to be.
        weights: (p,).

    Returns:
        (p,).

    Raises:
        InputRefused: PA127, they are no numbers; PA125, the length is not that of the weights; PA124, they are not
            finite.
        UsageError: PA364, they are the model's own.
    """
    target = as_tensor(weights, "target weights").to(problem.weights)
    if target.shape != problem.weights.shape:
        raise InputRefused(
            "PA125",
            f"target weights are {tuple(target.shape)}, this problem has {tuple(problem.weights.shape)}. "
            "Flatten in named_parameters() order.",
        )
    if not bool(torch.isfinite(target).all()):
        raise InputRefused("PA124", "target weights hold NaN or infinite entries. Pass finite weights.")
    if torch.equal(target, problem.weights):
        raise UsageError("PA364", "the target weights are the model's own. Pass weights to be reached.")
    return target
