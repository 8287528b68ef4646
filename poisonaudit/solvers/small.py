"""The projected least-squares problem inside a Krylov space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Projected:
    """Solution of `min |c - T y|` over the space, and what it leaves.

    Attributes:
        coefficients: y (m, K).
        left: `c - T y` (M, K).
        residuals: its lengths (K,); the true ones, as V is orthonormal.
        optimality: bounds on `|A r| / (|A| |r|)` (K,).
    """

    coefficients: Tensor
    left: Tensor
    residuals: Tensor
    optimality: Tensor


def projected(small: Tensor, target: Tensor, tolerance: float, largest: float) -> Projected:
    """Solve `min |c - T y|`, singular values up to `tolerance * |A|` taken as zero.

    Args:
        small: T (M, m).
        target: c (M, K).
        tolerance: relative rank tolerance.
        largest: |A| as far as it is known; the largest singular value of T counts too.

    Returns:
        Coefficients and residuals.
    """
    basis, triangle = torch.linalg.qr(small)
    if _least_singular(triangle) > tolerance * max(largest, float(small.norm())):
        # Every singular value is above the cut: nothing to truncate, and no need of the much dearer SVD.
        largest = max(largest, float(small.norm(dim=0).max()) if small.shape[1] else 0.0)
        coefficients = torch.linalg.solve_triangular(triangle, basis.T @ target, upper=True)
    else:
        left, singular, right = torch.linalg.svd(small, full_matrices=False)
        largest = max(largest, float(singular[0]) if len(singular) else 0.0)
        kept = singular > tolerance * largest
        coefficients = right[kept].T @ ((left[:, kept].T @ target) / singular[kept, None])
    return _left_over(small, target, coefficients, target - small @ coefficients, largest)


def glance(small: Tensor, target: Tensor, largest: float) -> Projected:
    """Residuals of `min |c - T y|` without truncation and without y, by a QR decomposition: never above the true ones.

    Cheaper than `projected`, which has to follow before anything is believed.

    Args:
        small: T (M, m).
        target: c (M, K).
        largest: |A| as far as it is known.

    Returns:
        Residuals; the coefficients are empty.
    """
    basis, _ = torch.linalg.qr(small)
    rest = target - basis @ (basis.T @ target)
    return _left_over(small, target, small.new_zeros(0, target.shape[1]), rest, largest)


def _least_singular(triangle: Tensor) -> float:
    """A lower bound of the smallest singular value, 1 / |R^-1|_F; 0 where R is singular."""
    if not triangle.shape[0] or not bool(triangle.diagonal().all()):
        return 0.0
    inverse = torch.linalg.solve_triangular(triangle, torch.eye(len(triangle)).to(triangle), upper=True)
    length = float(inverse.norm())
    return 1.0 / length if 0.0 < length < float("inf") else 0.0


def _left_over(small: Tensor, target: Tensor, coefficients: Tensor, rest: Tensor, largest: float) -> Projected:
    m = small.shape[1]
    lengths = rest.norm(dim=0)
    # A r is known for the multiplied part of r and at most |A| times the open part.
    slopes = (small @ rest[:m]).norm(dim=0) / max(largest, 1e-300) + rest[m:].norm(dim=0)
    return Projected(coefficients, rest, lengths, slopes / lengths.clamp_min(1e-300))
