"""What a solve takes and returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
Progress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Solve:
    """Minimum-norm least-squares solution of `A v = b`, and how the solver came to it.

    For a block of right-hand sides the residual and the optimality are the worst over its columns.

    Attributes:
        value: v, (p,) or (p, K).
        relative_residual: `|A v - b| / |b|`, recomputed from the operator (0 for b = 0).
        optimality: `|A (A v - b)| / (|A| |A v - b|)`, near 0 at a least-squares solution even where b is outside the
            range of A; 0 where the residual itself is negligible.
        iterations: of the solver; a step with a block counts once.
        products: with the operator, the check included; a block of K counts K.
        converged: the stated accuracy was reached.
        ended: how the solver ended, in words.
        advice: what to try next; empty if converged.
        tolerance: relative rank tolerance used; 0 where the method has none.
    """

    value: Tensor
    relative_residual: float
    optimality: float
    iterations: int
    products: int
    converged: bool
    ended: str
    advice: str
    tolerance: float


def default_tolerance(dtype: torch.dtype) -> float:
    """Relative rank tolerance: 1e-9 in float64, 1e-5 in narrower types."""
    return 1e-9 if dtype == torch.float64 else 1e-5


def default_accuracy(dtype: torch.dtype) -> float:
    """Wanted relative residual: 1e-10 in float64, 1e-5 in narrower types."""
    return 1e-10 if dtype == torch.float64 else 1e-5


class Doubled:
    """`A + shift I` for float64 vectors, whatever type the operator works in; counts what it answers.

    The operator gets its own type, so that a float32 network is multiplied at float32 speed; recurrences, dot products
    and norms stay in float64.

    Args:
        operator: (p,) or (p, K) of `dtype` to the same.
        dtype: the operator's type.
        shift: added to every eigenvalue.
    """

    def __init__(self, operator: Operator, dtype: torch.dtype, shift: float = 0.0) -> None:
        self.operator = operator
        self.dtype = dtype
        self.shift = shift
        self.products = 0

    def __call__(self, v: Tensor) -> Tensor:
        """Multiply (p,) or (p, K) in float64."""
        image = self.operator(v.to(self.dtype)).double()
        self.products += 1 if v.dim() == 1 else v.shape[1]
        return image if self.shift == 0.0 else image + self.shift * v


def checked(
    product: Doubled,
    rhs: Tensor,
    value: Tensor,
    *,
    residual: Tensor | None = None,
    accuracy: float,
    largest: float,
    tolerance: float,
    iterations: int,
    ended: str,
    advice: str,
) -> Solve:
    """The solve with residual and optimality recomputed by the operator itself.

    Args:
        product: A, counting.
        rhs: b, (p,) or (p, K) in the operator's type.
        value: v, float64, or as it is handed out.
        residual: `A v - b`, float64, where it is known already for what is handed out.
        accuracy: relative residual, or optimality, that counts as converged.
        largest: estimate of |A|.
        tolerance: rank tolerance to report.
        iterations: to report.
        ended: to report.
        advice: given where the check fails.

    Returns:
        The Solve, its value in the type of `rhs`.
    """
    # The value is checked as it is handed out.
    value = value.to(rhs.dtype)
    if residual is None:
        residual = product(value.double()) - rhs.double()
    lengths = rhs.double().norm(dim=0)
    left = residual.norm(dim=0)
    relative = torch.where(lengths > 0, left / lengths.clamp_min(1e-300), torch.zeros_like(left))
    negligible = relative <= max(accuracy, 100 * torch.finfo(rhs.dtype).eps)
    optimality = 0.0
    if not bool(negligible.all()) and largest > 0:
        slopes = product(residual).norm(dim=0) / (largest * left.clamp_min(1e-300))
        optimality = float(torch.where(negligible, torch.zeros_like(slopes), slopes).max())
    converged = bool(negligible.all()) or optimality <= max(10 * accuracy, 100 * tolerance)
    return Solve(
        value=value,
        relative_residual=float(relative.max()),
        optimality=optimality,
        iterations=iterations,
        products=product.products,
        converged=converged,
        ended=ended,
        advice="" if converged else advice,
        tolerance=tolerance,
    )


def by_columns(solve: Callable[[Tensor], Solve], rhs: Tensor) -> Solve:
    """Solve the columns of a block one after the other, for methods that know no blocks."""
    solves = [solve(column.contiguous()) for column in rhs.T]
    worst = max(solves, key=lambda one: (not one.converged, one.relative_residual))
    return replace(
        worst,
        value=torch.stack([one.value for one in solves], dim=1),
        relative_residual=max(one.relative_residual for one in solves),
        optimality=max(one.optimality for one in solves),
        iterations=sum(one.iterations for one in solves),
        products=sum(one.products for one in solves),
    )
