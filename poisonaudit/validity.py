"""May a solution-map number be trusted here, and if not, why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from poisonaudit.problem import Problem
from poisonaudit.results import Validity

STATIONARITY_LIMIT = 1e-6
# By dtype: what a solve at that precision leaves.
RESIDUAL_LIMIT = {torch.float64: 1e-6, torch.float32: 1e-4}
PHI_LIMIT = 0.3
_NEGATIVE_CURVATURE = 1e-6
_VANISHED = 1e-8


class _Signs(NamedTuple):
    """Where the inputs of one call of an activation module are positive."""

    name: str
    layer: nn.Module
    positive: Tensor


_KINKED = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.PReLU)


def assess(
    problem: Problem,
    *,
    relative_gradient: float,
    smallest: float,
    largest: float,
    kernel_dimension: int | None,
    tolerance: float,
    relative_residual: float | None = None,
    solver_converged: bool = True,
    solver_ended: str = "",
    phi: float | None = None,
    kinks: float | None = None,
    rank_jump: str = "",
    approximate: str = "",
) -> Validity:
    """Collect every reason not to trust a number of the solution map.

    Args:
        problem: the point.
        relative_gradient: `|R| / (lambda_max |w|)`.
        smallest: smallest curvature.
        largest: largest curvature.
        kernel_dimension: eigenvalues taken as zero, None if unknown.
        tolerance: rank tolerance.
        relative_residual: of the graphical derivative's equation.
        solver_converged: whether the solve reached its accuracy.
        solver_ended: how it ended.
        phi: Newton estimate of one step's relative error.
        kinks: share of activations that change their linear piece within the step.
        rank_jump: why the rank of H is held to change nearby; empty where it is not.
        approximate: why the number is another one than the derivative; empty where it is not.

    Returns:
        Validity with its figures.
    """
    reasons: list[str] = []
    if not relative_gradient < STATIONARITY_LIMIT:
        reasons.append(
            f"not stationary: relative gradient {relative_gradient:.1e}, needed below {STATIONARITY_LIMIT:.0e} "
            "(fit on, or audit with --polish)"
        )
    if smallest < -_NEGATIVE_CURVATURE * abs(largest):
        reasons.append(f"not a minimum: smallest curvature {smallest:.2e} against largest {largest:.2e}")
    if at_infinity(problem):
        reasons.append(
            "the minimum is at infinity: cross-entropy without decay on rows that the model separates; train with decay"
        )
    if layer := dead_layer(problem):
        reasons.append(
            f"layer {layer} is dead: its units give zero on every row, so nothing below it is trained, and a "
            "perturbation that wakes it is not described"
        )
    if not solver_converged:
        reasons.append(f"the solver did not converge: {solver_ended}")
    if relative_residual is not None and relative_residual > RESIDUAL_LIMIT.get(problem.dtype, 1e-3):
        reasons.append(
            f"B mu leaves the range of H: relative residual {relative_residual:.1e}; the least-squares set is "
            "an estimate"
        )
    if phi is not None and not phi <= PHI_LIMIT:
        reasons.append(
            f"phi {phi:.2f} is above {PHI_LIMIT}: one linear step does not predict the weights, follow the path"
        )
    reasons += [reason for reason in (rank_jump, approximate) if reason]
    details: Mapping[str, Any] = {
        "relative_gradient": relative_gradient,
        "smallest_curvature": smallest,
        "largest_curvature": largest,
        "kernel_dimension": kernel_dimension,
        "tolerance": tolerance,
        "relative_residual": relative_residual,
        "phi": phi,
        "kink_share": kinks,
    }
    return Validity(ok=not reasons, reasons=tuple(reasons), details=details)


def at_infinity(problem: Problem) -> bool:
    """True for undecayed cross-entropy that the model has all but driven to zero on half of its rows or more.

    On separable rows that happens on all of them; on partly separable ones the weights still grow without limit.

    Returns:
        Whether the minimum is taken to be at infinity.
    """
    if problem.loss != "cross_entropy" or problem.decay > 0:
        return False
    with torch.no_grad():
        outputs = problem.outputs()
        separated = bool((outputs.argmax(1) == problem.y).all())
        return separated or float(problem.losses().median()) < _VANISHED


def dead_layer(problem: Problem) -> str:
    """Name of a ReLU module that gives zero on every training row; empty where there is none.

    Only modules are seen. Computed once a point.

    Returns:
        The name in `named_modules()`.
    """
    if "dead layer" not in problem.cache:
        problem.cache["dead layer"] = _find_dead_layer(problem)
    name: str = problem.cache["dead layer"]
    return name


def kink_share(problem: Problem, mu: Tensor, displacement: Tensor) -> float | None:
    """Share of piecewise linear activations that change sign between (x, w) and (x + mu, w + displacement).

    Only activations that are modules are seen.

    Returns:
        The share, or None where the model has no such module.
    """
    counted = _switched(problem, mu, displacement)
    return None if counted is None else counted[0] / counted[1]


def activation_changes(problem: Problem, mu: Tensor, displacement: Tensor) -> int | None:
    """How many piecewise linear activations (units times rows) change sign over the step.

    Returns:
        The count, or None where the model has no such module.
    """
    counted = _switched(problem, mu, displacement)
    return None if counted is None else counted[0]


def _switched(problem: Problem, mu: Tensor, displacement: Tensor) -> tuple[int, int] | None:
    """Activations that change sign, and all of them."""
    before = _signs(problem, problem.weights, problem.x)
    if not before:
        return None
    after = _signs(problem, problem.weights + displacement, problem.x + mu)
    pairs = [(one.positive, other.positive) for one, other in zip(before, after, strict=True)]
    return sum(int((one != other).sum()) for one, other in pairs), sum(one.numel() for one, _ in pairs)


def _signs(problem: Problem, weights: Tensor, x: Tensor) -> list[_Signs]:
    """Signs of the inputs of every piecewise linear activation module; no pass is made where there is none."""
    seen: list[_Signs] = []

    def watch(name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda layer, inputs: seen.append(_Signs(name, layer, inputs[0] > 0)))

    model = problem.module()
    kinked = [(name, module) for name, module in model.named_modules() if isinstance(module, _KINKED)]
    if not kinked:
        return []
    for name, module in kinked:
        watch(name, module)
    with torch.no_grad():
        functional_call(model, problem.parameters(weights), (x,))
    return seen


def _find_dead_layer(problem: Problem) -> str:
    for name, layer, positive in _signs(problem, problem.weights, problem.x):
        if isinstance(layer, nn.ReLU | nn.ReLU6) and not bool(positive.any()):
            return name
    return ""
