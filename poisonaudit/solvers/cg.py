"""Conjugate gradients that stop where the curvature does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from poisonaudit.solvers.solve import (
    Doubled,
    Operator,
    Progress,
    Solve,
    by_columns,
    checked,
    default_accuracy,
    default_tolerance,
)

_ADVICE = (
    "H is not positive definite there, and conjugate gradients are undefined: use the default Lanczos solver, or more "
    "damping than the most negative curvature."
)
_MORE = "Allow more products, add damping, or use the default Lanczos solver."


def conjugate_gradients(
    operator: Operator,
    rhs: Tensor,
    *,
    tolerance: float | None = None,
    accuracy: float | None = None,
    shift: float = 0.0,
    max_products: int = 2_000,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
    progress: Progress | None = None,
) -> Solve:
    """Conjugate gradients on `(A + shift I) v = b`, for positive definite matrices only.

    A direction d with `d^T A d <= tolerance |A| |d|^2` ends the run, and the result says so: on an indefinite matrix
    the method would divide by what is nearly zero, or walk to a saddle.

    Args:
        operator: A, symmetric, for (p,) of the type of `rhs`.
        rhs: b, (p,), or columns (p, K), solved one after the other.
        tolerance: least curvature taken as positive, relative to |A|; default the rank tolerance of the type.
        accuracy: wanted relative residual; default 1e-10 in float64, 1e-5 in float32.
        shift: added to every eigenvalue; absolute.
        max_products: most products for a column before the check.
        preconditioner: approximate inverse of `A + shift I`, positive definite, for float64 vectors (p,).
        progress: called with a message and a fraction.

    Returns:
        A Solve whose residual was recomputed with the operator.
    """
    if rhs.dim() == 2:
        return by_columns(
            lambda one: conjugate_gradients(
                operator,
                one,
                tolerance=tolerance,
                accuracy=accuracy,
                shift=shift,
                max_products=max_products,
                preconditioner=preconditioner,
                progress=progress,
            ),
            rhs,
        )
    wanted = default_accuracy(rhs.dtype) if accuracy is None else accuracy
    floor = default_tolerance(rhs.dtype) if tolerance is None else tolerance
    product = Doubled(operator, rhs.dtype, shift)
    residual = rhs.double()
    scale = float(residual.norm())
    if scale == 0.0:
        return Solve(torch.zeros_like(rhs), 0.0, 0.0, 0, 0, True, "right-hand side is zero", "", floor)
    value, direction = torch.zeros_like(residual), torch.zeros_like(residual)
    before, largest, ended, advice = 0.0, 0.0, "product limit", _MORE
    while product.products < max_products:
        conditioned = residual if preconditioner is None else preconditioner(residual)
        overlap = float(residual.dot(conditioned))
        direction = conditioned + (overlap / before if before else 0.0) * direction
        before = overlap
        image = product(direction)
        length = float(direction.norm())
        largest = max(largest, float(image.norm()) / length)
        curvature = float(direction.dot(image))
        if curvature <= floor * largest * length**2:
            kind = "negative" if curvature < 0 else "vanishing"
            ended, advice = f"{kind} curvature: {curvature / length**2:.1e} along a direction", _ADVICE
            break
        value = value + (overlap / curvature) * direction
        residual = residual - (overlap / curvature) * image
        relative = float(residual.norm()) / scale
        if progress is not None and product.products % 10 == 0:
            progress(f"conjugate gradients: {product.products} products, residual {relative:.1e}", None)
        if relative <= 0.9 * wanted:
            ended = "residual below the wanted accuracy"
            break
    return checked(
        product,
        rhs,
        value,
        accuracy=wanted,
        largest=largest,
        tolerance=floor,
        iterations=product.products,
        ended=ended,
        advice=advice,
    )
