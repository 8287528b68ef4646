"""Randomised Nystroem approximation of a positive semi-definite operator, as a preconditioner."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.errors import NumericalFailure, UsageError
from poisonaudit.solvers.solve import Doubled, Operator


@dataclass(frozen=True)
class Nystroem:
    """`A ~ U diag(values) U^T` of low rank, and the preconditioner of `A + shift I` made of it.

    Attributes:
        vectors: U, (p, rank) float64, orthonormal.
        values: eigenvalues of the approximation, descending, (rank,).
        shift: the damping that it preconditions.
        products: with A, spent on it.
    """

    vectors: Tensor
    values: Tensor
    shift: float
    products: int

    def __call__(self, residual: Tensor) -> Tensor:
        """`P^-1 r` (Frangella, Tropp and Udell, 2023, eq. 1.3), (p,) float64."""
        inner = self.vectors.T @ residual
        factors = (self.values[-1] + self.shift) / (self.values + self.shift) - 1.0
        return residual + self.vectors @ (factors * inner)


def nystroem(operator: Operator, like: Tensor, rank: int, shift: float, *, seed: int = 0) -> Nystroem:
    """Approximate A by one block product with a random orthonormal block (Tropp et al., 2017, algorithm 3).

    The preconditioned solve finds the solution of the *damped* system, which is unique. Where A has a kernel and no
    damping lifts it, a preconditioner changes which solution has minimum norm; so damping is demanded.

    Args:
        operator: A, symmetric positive semi-definite, for (p, K) of the type of `like`.
        like: gives p, type and device.
        rank: columns K of the block, cut to p.
        shift: absolute damping of the system to be preconditioned, > 0.
        seed: of the block.

    Returns:
        The approximation.

    Raises:
        UsageError: PA304, no damping, or a rank below 1.
        NumericalFailure: PA403, A is indefinite on the block.
    """
    if not shift > 0.0 or rank < 1:
        raise UsageError(
            "PA304",
            f"Nystroem preconditioning got damping {shift:g} and rank {rank}. Without damping it would change which "
            'solution has minimum norm: pass damping > 0 and rank >= 1, or use method="lanczos".',
        )
    size, columns = like.numel(), min(rank, like.numel())
    generator = torch.Generator(device="cpu").manual_seed(seed)
    block = torch.randn(size, columns, generator=generator, dtype=torch.float64).to(like.device)
    block, _ = torch.linalg.qr(block)
    product = Doubled(operator, like.dtype)
    image = product(block)
    # Lifts rounding above zero before the factorisation; taken away again from the values.
    lift = torch.finfo(like.dtype).eps * float(image.norm())
    core = block.T @ image
    factor, trouble = torch.linalg.cholesky_ex(0.5 * (core + core.T) + lift * torch.eye(columns).to(core))
    if int(trouble) != 0:
        raise NumericalFailure(
            "PA403",
            "the Hessian is indefinite on a random block, so Nystroem preconditioning does not apply. "
            'Use method="lanczos" or "minres", or the Gauss-Newton curvature by name.',
        )
    half = torch.linalg.solve_triangular(factor, (image + lift * block).T, upper=False).T
    vectors, roots, _ = torch.linalg.svd(half, full_matrices=False)
    return Nystroem(vectors, (roots.square() - lift).clamp_min(0.0), shift, product.products)
