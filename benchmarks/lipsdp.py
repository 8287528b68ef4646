"""LipSDP-Neuron (Fazlyab, Robey, Hassani, Morari and Pappas, 2019) for nets of Linear layers and ReLU, in l_2.

With T_i >= 0 diagonal, slopes in [0, 1] and hidden layers 1 to l, sqrt(rho) bounds the constant if the block
tridiagonal matrix with diagonal rho I, 2 T_1, ..., 2 T_l - W_l' W_l and -T_i W_(i-1) beside it is positive
semidefinite. A block tridiagonal matrix is positive semidefinite exactly if it is a sum of ones that live on
neighbouring pairs of blocks; with the split X_i of diagonal block i, the conditions are

    [[X_(i-1), -W_(i-1)' T_i], [-T_i W_(i-1), 2 T_i - X_i]] >= 0 with X_0 = rho I, and X_l >= W_l' W_l,

the same optimum from smaller blocks. What a first-order solver returns is only nearly feasible; `bound_of` makes a
bound of its T: for fixed T the least rho is the largest eigenvalue of a Schur complement.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def solve(matrices: list[Tensor], seconds: float) -> tuple[float, list[Tensor], str]:
    """Run the programme.

    Args:
        matrices: W_0 to W_l.
        seconds: the solver stops there.

    Returns:
        sqrt(rho) as the solver ended, T_1 to T_l, and its status.
    """
    import cvxpy

    # Scaling every layer to norm 1 keeps the solver's tolerances meaningful.
    norms = [float(torch.linalg.matrix_norm(matrix, 2)) for matrix in matrices]
    weights = [(matrix / norm).numpy() for matrix, norm in zip(matrices, norms, strict=True)]
    rho = cvxpy.Variable(nonneg=True)
    left = rho * torch.eye(weights[0].shape[1]).numpy()
    limits, multipliers = [], []
    for weight in weights[:-1]:
        size = weight.shape[0]
        spread, split = cvxpy.Variable(size, nonneg=True), cvxpy.Variable((size, size), symmetric=True)
        beside = -cvxpy.diag(spread) @ weight
        limits.append(cvxpy.bmat([[left, beside.T], [beside, 2 * cvxpy.diag(spread) - split]]) >> 0)
        multipliers.append(spread)
        left = split
    limits.append(left - weights[-1].T @ weights[-1] >> 0)
    problem = cvxpy.Problem(cvxpy.Minimize(rho), limits)
    problem.solve(solver=cvxpy.SCS, time_limit_secs=seconds, eps=1e-6, max_iters=200_000)
    found = [torch.from_numpy(each.value).clamp_min(0.0) for each in multipliers]
    return math.sqrt(max(0.0, float(rho.value))) * math.prod(norms), found, str(problem.status)


def bound_of(matrices: list[Tensor], multipliers: list[Tensor]) -> float:
    """The bound that given multipliers prove, in plain float64; the best of several scalings of them.

    Args:
        matrices: W_0 to W_l.
        multipliers: T_1 to T_l, for `matrices` scaled to spectral norm 1.

    Returns:
        The bound; infinite if no scaling tried is feasible.
    """
    norms = [float(torch.linalg.matrix_norm(matrix, 2)) for matrix in matrices]
    weights = [matrix / norm for matrix, norm in zip(matrices, norms, strict=True)]
    # A multiplier that the solver left at zero would make the matrix singular.
    floor = 1e-9 * max(float(each.max()) for each in multipliers)
    multipliers = [each + floor for each in multipliers]
    sizes = [len(each) for each in multipliers]
    ends = [0, *itertools.accumulate(sizes)]
    fixed = torch.zeros(ends[-1], ends[-1], dtype=torch.float64)
    for layer, spread in enumerate(multipliers):
        own = slice(ends[layer], ends[layer + 1])
        fixed[own, own] = torch.diag(2.0 * spread)
        if layer:
            before = slice(ends[layer - 1], ends[layer])
            fixed[own, before] = -spread[:, None] * weights[layer]
            fixed[before, own] = fixed[own, before].T
    first = multipliers[0][:, None] * weights[0]
    best = math.inf
    for power in range(-3, 40):
        scale = 1.0 + 2.0**-power
        matrix = scale * fixed
        matrix[ends[-2] :, ends[-2] :] -= weights[-1].T @ weights[-1]
        factor, info = torch.linalg.cholesky_ex(matrix)
        if int(info) == 0:
            full = torch.zeros(ends[-1], first.shape[1], dtype=torch.float64)
            full[: sizes[0]] = scale * first
            half = torch.linalg.solve_triangular(factor, full, upper=False)
            best = min(best, float(torch.linalg.matrix_norm(half, 2)))
    return best * math.prod(norms)
