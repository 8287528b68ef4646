"""Newton steps and escapes from saddles by products only, for more weights than a dense Hessian allows."""

from __future__ import annotations

import torch
from torch import Tensor

from poisonaudit.operators import linearise
from poisonaudit.problem import Problem
from poisonaudit.solvers import Doubled, KrylovSpace, curvature_ends, default_tolerance

_MOST_PRODUCTS = 400
_PAUSE = 5
_ESCAPE_PRODUCTS = 100


def krylov_step(at: Problem, damping: float, accuracy: float, *, gauss_newton: bool) -> tuple[Tensor, int]:
    """`-V |T|^-1 V^T R` in the Krylov space of the gradient: Newton's step, negative curvature by its magnitude.

    Where H is positive definite this is the step of conjugate gradients; where it is not, directions of negative
    curvature are descended instead of climbed (saddle-free Newton, Dauphin and others, 2014). Without decay the
    damping is added, relative to the largest curvature met, as in the dense step.

    Args:
        at: the point.
        damping: relative, for problems without decay.
        accuracy: wanted relative residual of the step's equation.
        gauss_newton: take the Gauss-Newton matrix, whose range the step then stays in.

    Returns:
        `(step (p,), products)`.
    """
    kept = linearise(at)
    operator = kept.gauss_newton if gauss_newton else kept.hessian
    gradient = kept.gradient.double()
    length = float(gradient.norm())
    space = KrylovSpace(at.size, torch.finfo(at.dtype).eps, at.device)
    space.enter((gradient / length)[:, None])
    product = Doubled(operator, at.dtype)
    coefficients = torch.ones(1, dtype=torch.float64)
    while space.open and space.multiplied < _MOST_PRODUCTS:
        space.multiply(product, 1)
        if space.multiplied % _PAUSE and space.open and space.multiplied < _MOST_PRODUCTS:
            continue
        values, vectors, _ = space.ritz()
        largest = float(values.abs().max())
        shift = damping * largest if at.decay == 0.0 else 0.0
        floor = default_tolerance(at.dtype) * largest
        coefficients = vectors @ (vectors[0] / (values.abs() + shift).clamp_min(floor))
        left = float((space.small[space.multiplied :] @ coefficients).norm())
        if left <= accuracy:
            break
    return -length * space.combine(coefficients[:, None])[:, 0].to(at.dtype), space.multiplied


def most_negative(at: Problem) -> tuple[float, Tensor, float]:
    """Smallest Ritz value of H from a random start, its vector (p,), and the largest magnitude met.

    Returns:
        `(value, vector, largest)`; the smallest eigenvalue is not above the value.
    """
    space = KrylovSpace(at.size, torch.finfo(at.dtype).eps, at.device)
    ends = curvature_ends(linearise(at).hessian, at.size, at.weights, steps=_ESCAPE_PRODUCTS, space=space)
    _, vectors, _ = space.ritz()
    return ends[0], space.combine(vectors[:, :1])[:, 0].to(at.dtype), max(map(abs, ends))
