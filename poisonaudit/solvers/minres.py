"""MINRES: three vectors of memory, for systems whose Krylov basis would not fit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poisonaudit.solvers.solve import Doubled, Operator, Progress, Solve, by_columns, checked, default_accuracy

_REACHED = "residual below the wanted accuracy"
_ORTHOGONAL = "residual orthogonal to the range: least-squares solution"
_SPOILT = "orthogonality lost"
_EXHAUSTED = "Krylov space exhausted"
_LIMIT = "product limit"
# |A r| / (|A| |r|) at which b is held to be outside the range. Kernel parts grow like its inverse and are
# subtracted at the end: further down they would cost more digits than the steps gain.
_OUTSIDE = 1e-7
_REFINEMENTS = 3
_ROUGH = 1e-4
_ADVICE = (
    "Without reorthogonalisation MINRES needs more steps than Lanczos: allow more products, add damping, or use "
    'method="lanczos" where its basis fits into memory.'
)


def minres(
    operator: Operator,
    rhs: Tensor,
    *,
    accuracy: float | None = None,
    shift: float = 0.0,
    max_products: int = 2_000,
    progress: Progress | None = None,
) -> Solve:
    """MINRES of Paige and Saunders (1975) on `(A + shift I) v = b`, A symmetric, definite or not.

    It stops on the residual, or on `|A r| / (|A| |r|)`. In the second case b is outside the range of A: going on would
    let the solution grow along the kernel without limit. All kernel parts in the Krylov space of one right-hand side
    are multiples of the part of b in the kernel, which is the residual itself, so taking `(r.v / r.r) r` away leaves
    the least-squares solution of minimum norm (the lifting of Liu, Milzarek and Roosta, 2023); what is still missing in
    the range, `A^+ A^+ A r`, is added by solves that are consistent. The vectors are float64 whatever the type of the
    operator. There is no rank tolerance: small eigenvalues are not cut off but reached late.

    Args:
        operator: A, for (p,) of the type of `rhs`.
        rhs: b, (p,), or columns (p, K), solved one after the other.
        accuracy: wanted relative residual, or optimality. Default 1e-10 in float64, 1e-5 in float32.
        shift: added to every eigenvalue; absolute.
        max_products: most products for a column before the check.
        progress: called with a message and a fraction.

    Returns:
        A Solve whose residual was recomputed with the operator.
    """
    if rhs.dim() == 2:
        return by_columns(
            lambda one: minres(
                operator, one, accuracy=accuracy, shift=shift, max_products=max_products, progress=progress
            ),
            rhs,
        )
    wanted = default_accuracy(rhs.dtype) if accuracy is None else accuracy
    product = Doubled(operator, rhs.dtype, shift)
    wide = rhs.double()
    if not bool(wide.any()):
        return Solve(torch.zeros_like(rhs), 0.0, 0.0, 0, 0, True, "right-hand side is zero", "", 0.0)
    run = _Run(product, torch.finfo(rhs.dtype).eps, max_products, progress)
    value, ended = run.iterate(wide, wanted)
    if ended != _REACHED and ended != _LIMIT and shift == 0.0:
        value = run.refine(wide, _lifted(value, wide - product(value)), wanted)
    return checked(
        product,
        rhs,
        value,
        accuracy=wanted,
        largest=run.largest,
        tolerance=0.0,
        iterations=product.products,
        ended=ended,
        advice=_ADVICE,
    )


def _lifted(value: Tensor, residual: Tensor) -> Tensor:
    """The value without its part along the residual."""
    square = float(residual.dot(residual))
    return value - (float(residual.dot(value)) / square) * residual if square > 0 else value


class _Run:
    """The recurrence, with what all runs on one right-hand side share."""

    def __init__(self, product: Doubled, precision: float, max_products: int, progress: Progress | None) -> None:
        self.product, self.precision = product, precision
        self.max_products, self.progress = max_products, progress
        self.largest = 0.0

    def iterate(self, rhs: Tensor, wanted: float) -> tuple[Tensor, str]:
        """The solution of the recurrence for one right-hand side (p,) float64, and how it ended."""
        scale = float(rhs.norm())
        previous, current, length = torch.zeros_like(rhs), rhs / scale, 0.0
        direction, before = torch.zeros_like(rhs), torch.zeros_like(rhs)
        cosine, sine, bar, skip, left = -1.0, 0.0, 0.0, 0.0, scale
        value = best_value = torch.zeros_like(rhs)
        best = math.inf
        while self.product.products < self.max_products:
            image = self.product(current) - length * previous
            overlap = float(current.dot(image))
            image = image - overlap * current
            previous_length, length = length, float(image.norm())
            self.largest = max(self.largest, math.hypot(math.hypot(previous_length, overlap), length))
            # The two earlier rotations on the new column of T.
            old_skip = skip
            upper, corner = cosine * bar + sine * overlap, sine * bar - cosine * overlap
            skip, bar = sine * length, -cosine * length
            # |A r| / (|A| |r|) of the solution before this step. Once rounding has spoilt the orthogonality of the
            # vectors it grows again, and the solution with it.
            slope = math.hypot(corner, bar) / max(self.largest, 1e-300)
            if slope < best:
                best, best_value = slope, value
            if slope <= max(_OUTSIDE, 20 * self.precision):
                return best_value, _ORTHOGONAL
            if slope > 1e6 * best:
                return best_value, _SPOILT
            pivot = math.hypot(corner, length)
            cosine, sine = corner / pivot, length / pivot
            direction, before = (current - old_skip * before - upper * direction) / pivot, direction
            value = value + (cosine * left) * direction
            left *= sine
            if self.progress is not None and self.product.products % 10 == 0:
                self.progress(f"MINRES: {self.product.products} products, residual {left / scale:.1e}", None)
            if left <= 0.9 * wanted * scale:
                return value, _REACHED
            if length <= 10 * self.precision * self.largest:
                return value, _EXHAUSTED
            previous, current = current, image / length
        return value, _LIMIT

    def refine(self, rhs: Tensor, value: Tensor, wanted: float) -> Tensor:
        """Improve a least-squares solution by `A^+ A^+ A r`, whose right-hand sides lie in the range."""
        for _ in range(_REFINEMENTS):
            residual = rhs - self.product(value)
            slope = self.product(residual)
            if float(slope.norm()) <= 0.1 * wanted * self.largest * float(residual.norm()):
                break
            inside, _ = self.iterate(slope, _ROUGH)
            if not bool(inside.any()):
                break
            value = value + self.iterate(inside, _ROUGH)[0]
        return value
