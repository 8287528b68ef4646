"""Solves through a dense eigendecomposition."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from poisonaudit.errors import NumericalFailure
from poisonaudit.solvers.solve import Solve


class DenseSpectrum:
    """Eigendecomposition of a symmetric matrix with eigenvalues up to `tolerance * max |lambda|` taken as zero.

    Args:
        matrix: symmetric (p, p).
        tolerance: relative rank tolerance.

    Raises:
        NumericalFailure: PA401, the matrix holds NaN or infinity.
    """

    method = "eigenvectors"
    products = 0

    def __init__(self, matrix: Tensor, tolerance: float) -> None:
        if not bool(torch.isfinite(matrix).all()):
            raise NumericalFailure(
                "PA401",
                "the Hessian holds NaN or infinite entries. Check the loss at these weights; rescale the inputs.",
            )
        self.matrix = matrix
        self.tolerance = tolerance
        self.eigenvalues, self.vectors = torch.linalg.eigh(matrix)
        self.largest_magnitude = float(self.eigenvalues.abs().max())
        self.in_range = self.eigenvalues.abs() > tolerance * self.largest_magnitude

    @property
    def smallest(self) -> float:
        """Smallest eigenvalue, with its sign."""
        return float(self.eigenvalues[0])

    @property
    def largest(self) -> float:
        """Largest eigenvalue, with its sign."""
        return float(self.eigenvalues[-1])

    @property
    def kernel_dimension(self) -> int:
        """Number of eigenvalues taken as zero."""
        return int((~self.in_range).sum())

    @cached_property
    def range_vectors(self) -> Tensor:
        """Orthonormal basis of the range at the rank tolerance, (p, rank)."""
        return self.vectors if bool(self.in_range.all()) else self.vectors[:, self.in_range].contiguous()

    @cached_property
    def _kernel_vectors(self) -> Tensor:
        return self.vectors[:, ~self.in_range].contiguous()

    @cached_property
    def pseudo_inverse(self) -> Tensor:
        """`A^+` itself, (p, p)."""
        kept = self.range_vectors
        return (kept / self.eigenvalues[self.in_range]) @ kept.T

    def inverse(self, rhs: Tensor) -> Tensor:
        """`A^+ rhs` for a vector (p,) or a block (p, k)."""
        if rhs.dim() == 2 and rhs.shape[1] > rhs.shape[0]:
            # Many columns: one product with the p x p pseudo-inverse instead of two with the vectors.
            return self.pseudo_inverse @ rhs
        kept = self.range_vectors
        coefficients = kept.T @ rhs
        values = self.eigenvalues[self.in_range]
        return kept @ (coefficients / (values if rhs.dim() == 1 else values[:, None]))

    def project_kernel(self, z: Tensor) -> Tensor:
        """`P_ker z` for a vector (p,) or a block (p, k)."""
        kernel = self._kernel_vectors
        return kernel @ (kernel.T @ z)

    def solve(self, rhs: Tensor) -> Solve:
        """Minimum-norm least-squares solution of `A v = rhs`, with its true residual."""
        value = self.inverse(rhs)
        residual = self.matrix @ value - rhs
        relative = worst_column(residual, rhs)
        slope = float((self.matrix @ residual).norm())
        bound = self.largest_magnitude * float(residual.norm())
        negligible = relative < 1e3 * torch.finfo(rhs.dtype).eps
        return Solve(
            value=value,
            relative_residual=relative,
            optimality=0.0 if negligible or bound == 0 else slope / bound,
            iterations=1,
            products=0,
            converged=True,
            ended="dense eigendecomposition",
            advice="",
            tolerance=self.tolerance,
        )

    def solve_from(self, start: Tensor, rhs: Tensor) -> Solve:
        """The solution nearest to `start`: its kernel part is that of `start`."""
        solve = self.solve(rhs)
        return replace(solve, value=solve.value + self.project_kernel(start))


def worst_column(residual: Tensor, rhs: Tensor) -> float:
    """Largest `|residual| / |rhs|` over the columns, 0 where a right-hand side is zero."""
    lengths = rhs.norm(dim=0)
    return float(torch.where(lengths > 0, residual.norm(dim=0) / lengths.clamp_min(1e-300), 0.0).max())
