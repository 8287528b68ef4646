"""The solution set as an object: its nearest element, its members, its dimension and distances between sets."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.sensitivity.curvature import Curvature

# A kernel part below this share of the draw is what the solver leaves, not a kernel.
_TRIVIAL = 1e-6


@dataclass(frozen=True)
class SolutionSet:
    """The affine piece `{origin + displacement + k : k in ker H}` near a solution.

    With a zero displacement it is the tangent piece of the present solution set F(x) at the trained weights; with
    v0 = -H^+ B mu it is the estimate of F(x + mu) there (Wang, Wang and Ban, 2025, eq. 14).

    Attributes:
        origin: the trained weights, (p,).
        displacement: minimum-norm element v0 of the set, seen from the origin, (p,); orthogonal to ker H.
        tolerance: rank tolerance that says what counts as kernel.
    """

    origin: Tensor
    displacement: Tensor
    tolerance: float
    _solver: Curvature = field(repr=False)

    @property
    def nearest(self) -> Tensor:
        """The element nearest to the origin: the weights `origin + v0`, (p,)."""
        return self.origin + self.displacement

    @property
    def distance(self) -> float:
        """Distance of the origin to the set, `|v0|`.

        The piece through the origin is parallel, so this is the Pompeiu-Hausdorff distance between the two as well.
        """
        return float(self.displacement.norm())

    @property
    def kernel_dimension(self) -> int | None:
        """Dimension of the set: eigenvalues of H up to the tolerance; None where only products were made."""
        return self._solver.kernel_dimension

    def member(self, z: Tensor) -> Tensor:
        """The element nearest to `origin + z`: what an undamped Krylov solve started at z converges to.

        Args:
            z: where the solve starts, seen from the origin, (p,) or columns (p, K).

        Returns:
            Weights `origin + v0 + P_ker z`, shaped like z.

        Raises:
            InputRefused: PA125, z does not fit the weights; PA210, it is not finite.
        """
        self._check(z.shape[0] if z.dim() in (1, 2) and 0 not in z.shape else -1, z.dtype)
        if not bool(torch.isfinite(z).all()):
            raise InputRefused("PA210", "the start holds NaN or infinite entries. Check the step that produced it.")
        base = self.nearest if z.dim() == 1 else self.nearest[:, None]
        # H z' = 0 solved from z leaves z's own part in the kernel.
        return base + self._solver.solve_from(z, torch.zeros_like(z)).value

    def members(self, count: int, radius: float, seed: int = 0) -> Tensor:
        """Elements `radius` away from the nearest one, in directions of the kernel drawn at random.

        Where the kernel is trivial the set has one element, and every member is it.

        Args:
            count: how many.
            radius: norm of each member's kernel part, >= 0.
            seed: of the draws.

        Returns:
            Weights (count, p).

        Raises:
            UsageError: PA304, count < 1 or radius < 0.
        """
        return self.nearest + self.kernel_draws(count, radius, seed)

    def kernel_draws(self, count: int, radius: float, seed: int = 0) -> Tensor:
        """The kernel parts of `members`: directions of ker H drawn at random, of length `radius`.

        Args:
            count: how many.
            radius: their norm, >= 0.
            seed: of the draws.

        Returns:
            (count, p), zero where the kernel is trivial.

        Raises:
            UsageError: PA304, count < 1 or radius < 0.
        """
        if count < 1 or not 0 <= radius < float("inf"):
            raise UsageError("PA304", f"members got count={count}, radius={radius}. Use count >= 1 and radius >= 0.")
        size = self.origin.numel()
        if self.kernel_dimension == 0:
            return torch.zeros(count, size, dtype=self.origin.dtype, device=self.origin.device)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        draws = torch.randn(count, size, generator=generator, dtype=torch.float64).to(self.origin)
        kernel = self._solver.project_kernel(draws.T.contiguous()).T
        lengths = kernel.norm(dim=1, keepdim=True)
        trivial = lengths <= _TRIVIAL * draws.norm(dim=1, keepdim=True)
        return torch.where(trivial, torch.zeros_like(kernel), radius * kernel / lengths)

    def distance_to(self, weights: Tensor) -> Tensor:
        """Distance of weights to the set: the part of `weights - nearest` outside ker H.

        Args:
            weights: (p,), or several (count, p).

        Returns:
            A scalar tensor, or (count,).

        Raises:
            InputRefused: PA125, the weights do not fit.
        """
        self._check(weights.shape[-1] if weights.dim() in (1, 2) else -1, weights.dtype)
        apart = (weights - self.nearest).reshape(-1, self.origin.numel()).T.contiguous()
        if self.kernel_dimension != 0:
            apart = apart - self._solver.project_kernel(apart)
        lengths = apart.norm(dim=0)
        return lengths[0] if weights.dim() == 1 else lengths

    def _check(self, entries: int, dtype: torch.dtype) -> None:
        if entries != self.origin.numel() or dtype != self.origin.dtype:
            raise InputRefused(
                "PA125",
                f"the vector has {entries} entries of {dtype}, the weights {self.origin.numel()} of "
                f"{self.origin.dtype}. Give one entry per weight, flattened in named_parameters() order.",
            )


def pompeiu_hausdorff(first: Tensor, second: Tensor) -> float:
    """Pompeiu-Hausdorff distance of two finite sets, from its definition (Wang, Wang and Ban, 2025, definition 1).

    `max( max_a min_b |a - b|, max_b min_a |a - b| )`. For samples of two continuous sets it is an upper estimate of
    neither: it depends on how densely both were sampled.

    Args:
        first: points (m, p).
        second: points (k, p).

    Returns:
        The distance, in the points' unit.

    Raises:
        InputRefused: PA128, a set is empty, or the points do not fit each other.
    """
    fits = first.dim() == second.dim() == 2 and first.shape[1] == second.shape[1] and first.dtype == second.dtype
    if not fits or first.shape[0] == 0 or second.shape[0] == 0:
        raise InputRefused(
            "PA128",
            f"the sets are {tuple(first.shape)} {first.dtype} and {tuple(second.shape)} {second.dtype}. "
            "Give points as rows, (m, p) and (k, p) with m, k >= 1, of one dtype.",
        )
    # Differences, not the expanded square: near points would lose half their digits.
    between = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    return float(torch.maximum(between.amin(1).amax(), between.amin(0).amax()))
