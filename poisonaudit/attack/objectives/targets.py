"""Where target weights come from: flipped labels, training on other rows, a direction in weight space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from poisonaudit.errors import InputRefused, NumericalFailure, UsageError
from poisonaudit.operators import linearise
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name
from poisonaudit.sensitivity import solver_for
from poisonaudit.training import Fit, Progress, fit

Flips = Mapping[int, int] | tuple[Sequence[int] | Tensor, int]
Direction = Literal["random", "flattest", "steepest"]
DIRECTIONS = ("random", "flattest", "steepest")
_POWER_STEPS = 30
# Of a unit vector: a kernel part below this is what rounding leaves.
_IN_KERNEL = 1e-6


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
    return _accepted(reached, accepted, f"training with {len(changes)} flipped labels", "Flip fewer labels")


def weights_from_fine_tuning(
    problem: Problem,
    x: Tensor,
    y: Tensor,
    seed: int = 0,
    *,
    tolerance: float = 1e-8,
    accepted: float = 1e-3,
    progress: Progress | None = None,
) -> Tensor:
    """Weights that training reaches, from the present ones, on other rows: the model that the poisoner would like.

    Args:
        problem: clean, at its trained weights; gives model, loss and decay.
        x: rows (m, ...).
        y: their labels or targets.
        seed: of the fit.
        tolerance: relative gradient that the fit aims at.
        accepted: relative gradient up to which its weights serve as a target.
        progress: called with a message and a fraction.

    Returns:
        Flat weights (p,).

    Raises:
        NumericalFailure: PA430, the fit did not come down to `accepted`.
    """
    labels = y.to(problem.y) if y.is_floating_point() else y.to(problem.device)
    other = Problem(problem.module(), problem.loss, x.to(problem.x), labels, problem.decay)
    reached = fit(other.at(problem.weights), tolerance, seed, progress=progress)
    return _accepted(reached, accepted, f"training on {len(x)} other rows", "Use more rows")


def weights_along(problem: Problem, direction: Direction, length: float, seed: int = 0) -> Tensor:
    """Weights at a distance from the trained ones, along a chosen direction of weight space.

    "random" is isotropic. "flattest" and "steepest" are eigenvectors of H: of the eigenvalue that is smallest and
    largest in size; the flattest is where training data move the weights most.

    Args:
        problem: clean, at its trained weights.
        direction: which.
        length: distance, relative to the norm of the weights, > 0.
        seed: of the draw, and of the start of the iteration.

    Returns:
        Flat weights (p,).

    Raises:
        UsageError: PA301, no direction has that name; PA343, the length is not a positive number.
    """
    if direction not in DIRECTIONS:
        raise unknown_name(str(direction), DIRECTIONS, "direction")
    if not 0.0 < length < float("inf"):
        raise UsageError("PA343", f"the length of the direction is {length}. Pass a share of |w| > 0, e.g. 0.1.")
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(problem.size, generator=generator, dtype=problem.dtype).to(problem.device)
    if direction != "random":
        curvature = solver_for(problem)
        for _ in range(_POWER_STEPS):
            vector = vector / vector.norm()
            if direction == "steepest":
                vector = linearise(problem).hessian(vector)
            else:
                # Directions that H does not see are the flattest of all.
                kernel = curvature.project_kernel(vector)
                vector = kernel if float(kernel.norm()) > _IN_KERNEL else curvature.inverse(vector)
    return problem.weights + length * float(problem.weights.norm()) * vector / vector.norm()


def _accepted(reached: Fit, accepted: float, what: str, advice: str) -> Tensor:
    if not (reached.converged or reached.relative_gradient <= accepted):
        raise NumericalFailure(
            "PA430",
            f"{what} stopped at relative gradient {reached.relative_gradient:.1e}: {reached.reason}. {advice}, add "
            "decay, or raise tolerance.",
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
