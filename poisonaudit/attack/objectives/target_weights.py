"""Push training to chosen weights: `1/2 |w - w_t|^2`, that is `1/2 |v + H^+ B mu|^2` to first order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poisonaudit.errors import InputRefused, NumericalFailure, UsageError
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name
from poisonaudit.training import Progress, fit

Flips = Mapping[int, int] | tuple[Sequence[int] | Tensor, int]


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
            "size": self.weights.numel(),
            "target_norm": float(self.weights.norm()),
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
        InputRefused: PA125, the length is not that of the weights; PA124, they are not finite.
        UsageError: PA364, they are the model's own.
    """
    target = weights.detach().to(problem.weights)
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


def weights_from_label_flips(
    problem: Problem,
    flips: Flips,
    seed: int = 0,
    *,
    tolerance: float = 1e-8,
    accepted: float = 1e-3,
    progress: Progress | None = None,
) -> Tensor:
    """Weights that training reaches, from the present ones, when some labels are flipped.

    Args:
        problem: clean, at its trained weights.
        flips: position -> new label, or (positions, one new label for all).
        seed: of the fit (it matters only for methods that draw batches).
        tolerance: relative gradient that the fit aims at.
        accepted: relative gradient up to which its weights serve as a target. A target need not be a tight
            minimum, and on a ReLU network the fit may end on a kink, where the gradient does not vanish.
        progress: called with a message and a fraction.

    Returns:
        Flat weights (p,).

    Raises:
        NumericalFailure: PA430, the fit with flipped labels did not come down to `accepted`.
    """
    changes = _as_mapping(flips)
    y = flipped_labels(problem, changes)
    reached = fit(
        Problem(problem.module(), problem.loss, problem.x, y, problem.decay),
        tolerance,
        seed,
        progress=progress,
    )
    if not (reached.converged or reached.relative_gradient <= accepted):
        raise NumericalFailure(
            "PA430",
            f"training with {len(changes)} flipped labels stopped at relative gradient "
            f"{reached.relative_gradient:.1e}: {reached.reason}. Flip fewer labels, add decay, or raise "
            "tolerance.",
        )
    return reached.problem.weights


def flipped_labels(problem: Problem, flips: Mapping[int, int]) -> Tensor:
    """The problem's labels with some replaced, in the form the problem holds them (integers or one-hot rows).

    Args:
        problem: whose labels to change.
        flips: position -> new label.

    Returns:
        A new tensor like `problem.y`.

    Raises:
        UsageError: PA365, no flips, positions outside the rows or labels outside the classes.
        InputRefused: PA280, the targets are not class labels.
    """
    y = problem.y.clone()
    one_hot = y.is_floating_point()
    if one_hot and not (y.dim() == 2 and bool(((y == 0) | (y == 1)).all()) and bool((y.sum(1) == 1).all())):
        raise InputRefused("PA280", "targets are real numbers, which have no label to flip. Pass target weights.")
    with torch.no_grad():
        classes = problem.outputs(x=problem.x[:1]).shape[1]
    if not flips:
        raise UsageError("PA365", "no label is flipped. Give at least one position and its new label.")
    for position, label in flips.items():
        if not 0 <= position < problem.rows or not 0 <= label < classes:
            raise UsageError(
                "PA365",
                f"flip {position} -> {label} does not fit: rows 0..{problem.rows - 1}, "
                f"classes 0..{classes - 1}. Give positions of training rows and labels of the model.",
            )
        if one_hot:
            y[position] = 0.0
            y[position, label] = 1.0
        else:
            y[position] = label
    return y


def _as_mapping(flips: Flips) -> dict[int, int]:
    if isinstance(flips, Mapping):
        return {int(position): int(label) for position, label in flips.items()}
    positions, label = flips
    return {int(position): int(label) for position in torch.as_tensor(positions).flatten().tolist()}
