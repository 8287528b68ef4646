"""K_2 (Virmaux and Scaman): every hidden layer's diagonal is maximised alone, between split weight matrices.

`W_r = (U S^(1/2)) (S^(1/2) V^T)` by the thin singular value decomposition for the inner matrices, the
outermost two kept as they are; `K_2 = prod_r max_D N(right part of W_r, D, left part of W_(r-1))`. The
maximum of a convex function of D lies at a vertex, so a layer of n neurons takes 2^n norms. Ties between
singular values leave the basis, and so the value, to the linear algebra library; every basis gives an upper
bound of K.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poisonaudit.lipschitz.enumeration import largest_linf, largest_spectral
from poisonaudit.lipschitz.network import Chain
from poisonaudit.lipschitz.upper import norm_in

K2_WIDTH = 16
# A spectral norm costs a decomposition, not a sum.
K2_WIDTH_L2 = 12


def singular_split_bound(chain: Chain) -> float | None:
    """K_2, scaled like the chain.

    Args:
        chain: the network.

    Returns:
        The bound; None if a hidden layer is wider than 16 neurons (12 in l_2) or a decomposition did not converge.
    """
    if chain.hidden == 0:
        return norm_in(chain, chain.weights[0])
    if any(weight.shape[0] > (K2_WIDTH_L2 if chain.norm == "l2" else K2_WIDTH) for weight in chain.weights[:-1]):
        return None
    lefts, rights = [chain.weights[0]], []
    value = 1.0
    try:
        for weight in chain.weights[1:-1]:
            left, right = _split(weight)
            lefts.append(left)
            rights.append(right)
        rights.append(chain.weights[-1])
        for right, left, lower, upper in zip(rights, lefts, chain.lower, chain.upper, strict=True):
            if chain.norm == "l2":
                value *= largest_spectral(right[None], left, lower, upper)
            else:
                value *= largest_linf(right, left, lower, upper)
    except RuntimeError:  # torch.linalg.LinAlgError is one
        return None
    return value if math.isfinite(value) else None


def _split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight = left @ right`, each with the roots of the singular values; rounding-level ones dropped."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    # The square root would lift a singular value of 1e-17 (noise) to 3e-9.
    keep = s > s[0] * max(weight.shape) * torch.finfo(torch.float64).eps
    root = s[keep].sqrt()
    return u[:, keep] * root, root[:, None] * vh[keep]
