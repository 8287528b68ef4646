"""Largest singular value of an operator given by products, with a bracket."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Progress = Callable[[str, float | None], None]

# Probability, over the random start, that `upper` is below the true value.
FAILURE = 1e-6
_FIRST_STEPS = 24


@dataclass(frozen=True)
class SingularValue:
    """What Golub-Kahan bidiagonalisation found.

    Attributes:
        value: largest singular value found; a lower bound up to the accuracy of the products.
        upper: not exceeded but with probability 1e-6 over the random start.
        left: unit left singular vector (m,), float64.
        right: unit right singular vector (k,), float64.
        residual: `|A right - value left|`; some singular value of A lies within it of `value`.
        steps: pairs of products with A^T and A.
        converged: the residual is below the accuracy asked for.
    """

    value: float
    upper: float
    left: Tensor
    right: Tensor
    residual: float
    steps: int
    converged: bool


def largest_singular_value(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    rows: int,
    columns: int,
    *,
    accuracy: float = 1e-9,
    width: float = 1.5,
    max_steps: int = 300,
    seed: int = 0,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> SingularValue:
    """Golub-Kahan bidiagonalisation of A (rows x columns) with full reorthogonalisation, from a Gaussian start.

    After k steps `A^T U_k = V_k L_k^T` with L_k lower bidiagonal, so the singular values of L_k are Ritz values: the
    largest is below the true one. It is also not far below: Kuczynski and Wozniakowski (1992, theorem 4.2) bound the
    probability that k Lanczos steps on `A A^T` leave a relative error above e by `1.648 sqrt(rows)
    exp(-sqrt(e) (2 k - 1))`, whatever the spectrum; solved for e at probability 1e-6 this gives `upper`.

    Args:
        forward: (columns,) -> (rows,), float64 in and out.
        adjoint: (rows,) -> (columns,).
        rows: of A.
        columns: of A.
        accuracy: wanted residual relative to the value; the value's own error is of its square.
        width: wanted `upper / value`; a converged value alone leaves the bracket open where it came in few steps.
        max_steps: most pairs of products.
        seed: of the start.
        device: where the vectors live.
        progress: called with a message and a fraction.

    Returns:
        Value, bracket and vectors; the value is 0 where A is.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    start = torch.randn(rows, generator=generator, dtype=torch.float64).to(device)
    left = _Basis(rows, start / start.norm())
    right: _Basis | None = None
    diagonal: list[float] = []  # A^T u_j = diagonal_j v_j + below_(j-1) v_(j-1)
    below: list[float] = []
    value, residual, exhausted = 0.0, math.inf, False
    coefficients = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    while True:
        image = adjoint(left.last)
        if right is not None:
            image = right.orthogonal(image - below[-1] * right.last)
        length = float(image.norm())
        full = right is not None and right.count == columns
        if full or length <= _negligible(value, rows + columns):
            # A^T U stays in the span of V: what was found is all there is.
            exhausted = True
            if right is None:
                return SingularValue(0.0, 0.0, left.last, torch.zeros(columns, dtype=torch.float64), 0.0, 1, True)
            diagonal.append(0.0)
            value, coefficients = _top(diagonal, below)
            residual = 0.0
            break
        diagonal.append(length)
        if right is None:
            right = _Basis(columns, image / length)
        else:
            right.append(image / length)
        value, coefficients = _top(diagonal, below)
        image = left.orthogonal(forward(right.last) - diagonal[-1] * left.last)
        length = float(image.norm())
        residual = length * abs(float(coefficients[1][-1]))
        if progress is not None:
            progress(f"modulus: step {len(diagonal)}, value {value:.6g}, residual {residual / value:.1e}", None)
        if left.count == rows or length <= _negligible(value, rows + columns):
            exhausted, residual = True, length
            break
        settled = residual <= accuracy * value and _upper(value, len(diagonal), rows) <= width * value
        if settled or len(diagonal) >= max_steps:
            break
        below.append(length)
        left.append(image / length)
    steps = len(diagonal)
    upper = value + residual if exhausted else _upper(value, steps, rows)
    return SingularValue(
        value=value,
        upper=upper,
        left=_unit(left.combine(coefficients[0])),
        right=_unit(right.combine(coefficients[1])),
        residual=residual,
        steps=steps,
        converged=exhausted or residual <= accuracy * value,
    )


class _Basis:
    """Orthonormal columns, kept orthonormal by projecting every newcomer twice."""

    def __init__(self, size: int, first: Tensor) -> None:
        self._columns = torch.empty(size, _FIRST_STEPS, dtype=first.dtype, device=first.device)
        self._columns[:, 0] = first
        self.count = 1

    @property
    def last(self) -> Tensor:
        """The newest column (size,)."""
        return self._columns[:, self.count - 1].contiguous()

    def append(self, column: Tensor) -> None:
        """Keep one more column."""
        if self.count == self._columns.shape[1]:
            self._columns = torch.cat([self._columns, torch.empty_like(self._columns)], dim=1)
        self._columns[:, self.count] = column
        self.count += 1

    def orthogonal(self, vector: Tensor) -> Tensor:
        """The part of a vector outside the span."""
        kept = self._columns[:, : self.count]
        for _ in range(2):
            vector = vector - kept @ (kept.T @ vector)
        return vector

    def combine(self, coefficients: Tensor) -> Tensor:
        """Sum of the columns, weighted."""
        # The last vector of an exhausted process does not exist; its coefficient is zero.
        count = min(self.count, len(coefficients))
        return self._columns[:, :count] @ coefficients[:count].to(self._columns)


def _top(diagonal: list[float], below: list[float]) -> tuple[float, tuple[Tensor, Tensor]]:
    """Largest singular value of the lower bidiagonal matrix, with its vectors."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    index = torch.arange(len(diagonal) - 1)
    matrix[index + 1, index] = torch.tensor(below[: len(index)], dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix)
    return float(values[0]), (left[:, 0], right[0])


def _upper(value: float, steps: int, rows: int) -> float:
    """The Kuczynski-Wozniakowski bound on the singular value, infinite where too few steps were made."""
    root = math.log(1.648 * math.sqrt(rows) / FAILURE) / (2 * steps - 1)
    return value / math.sqrt(1.0 - root**2) if root < 1.0 else math.inf


def _negligible(value: float, size: int) -> float:
    return 10 * torch.finfo(torch.float64).eps * value * size**0.5


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()
