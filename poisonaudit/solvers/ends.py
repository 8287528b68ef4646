"""Ends of a spectrum in three vectors of memory."""

from __future__ import annotations

import torch
from torch import Tensor

from poisonaudit.solvers.solve import Doubled, Operator


def short_curvature_ends(
    operator: Operator, size: int, like: Tensor, *, steps: int = 60, seed: int = 0
) -> tuple[float, float]:
    """Smallest and largest eigenvalue as extreme Ritz values of Lanczos without reorthogonalisation.

    Lost orthogonality makes copies of Ritz values that have converged (Paige, 1976); it does not move the extreme
    ones outside the spectrum by more than rounding, so the smallest stays an upper, the largest a lower estimate.

    Args:
        operator: v -> A v, symmetric.
        size: p.
        like: gives dtype and device.
        steps: products.
        seed: of the start.

    Returns:
        `(smallest, largest)`.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    product = Doubled(operator, like.dtype)
    last = torch.randn(size, generator=generator, dtype=torch.float64).to(like.device)
    last /= last.norm()
    before = torch.zeros_like(last)
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(steps, size)):
        image = product(last)
        diagonal.append(float(last @ image))
        image -= diagonal[-1] * last
        if beside:
            image -= beside[-1] * before
        length = float(image.norm())
        if length <= 10 * torch.finfo(like.dtype).eps * max(map(abs, diagonal)):
            break
        before, last = last, image / length
        beside.append(length)
    square = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    inner = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
    square += torch.diag(inner, 1) + torch.diag(inner, -1)
    values = torch.linalg.eigvalsh(square)
    return float(values[0]), float(values[-1])
