"""The modulus row by row: kappa_k, for all rows at once."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from poisonaudit.errors import UntrustedNumber
from poisonaudit.operators import Linearisation, dense_mixed, linearise
from poisonaudit.problem import Problem, expect_problem
from poisonaudit.sensitivity.curvature import Curvature, KernelCurvature, assess_here, kernel_is_trivial, solver_for
from poisonaudit.sensitivity.modulus import RANGE_LIMIT, bidiagonalise, rounding_of_mixed
from poisonaudit.sensitivity.rows import Form, checked_rows, sample_space_for, sample_space_validity
from poisonaudit.sensitivity.sample_space import SampleCurvature
from poisonaudit.sensitivity.stability import rank_changes
from poisonaudit.solvers.extremal import Progress
from poisonaudit.training import relative_gradient
from poisonaudit.validity import STATIONARITY_LIMIT

_BLOCK_ENTRIES = 40_000_000
_COLUMNS = 64
# A product through the network against the same number of multiplications in one large matrix product.
_SLOWER = 4.0


def row_moduli(
    problem: Problem,
    rows: Tensor | None = None,
    *,
    tolerance: float | None = None,
    form: Form = "auto",
    method: str = "auto",
    test_jumps: bool = True,
    seed: int = 0,
    warn: bool = True,
    progress: Progress | None = None,
) -> Tensor:
    """`kappa_k = |H^+ B_k|_2`: only row k moves, the others still hold the weights in place.

    A row is infinite where its `B_k` leaves the range of H, or where the rank of H changes when it moves. Changes are
    looked for where H has a kernel that no rank condition covers, along a random direction of each row (of groups of
    rows beyond 400; see `rank_changes`).

    With H decomposed, the moduli come from `B^T H^+`, p adjoint products shared by all rows; by products only, from
    a few solves for each row, which is dear for many rows.

    Args:
        problem: a minimum.
        rows: positions (k,); None for all.
        tolerance: rank tolerance relative to max |lambda|.
        form: as in `lipschitz_modulus`.
        method: solver for H, as in `solver_for`.
        test_jumps: look for jumps; without it a row next to one gets a number that is a lower estimate.
        seed: of the directions.
        warn: warn (`UntrustedNumber`) where the point does not allow to trust the numbers; callers that say so
            themselves turn it off.
        progress: called with a message and a fraction.

    Returns:
        (k,), weight norm per input norm.
    """
    expect_problem(problem, "row_moduli")
    positions = checked_rows(problem, rows)
    samples, _ = sample_space_for(problem, tolerance, form)
    if samples is not None:
        solver: KernelCurvature = SampleCurvature(problem, samples)
        moduli = samples.row_moduli(positions)
        safe = samples.full_row_rank
        validity = sample_space_validity(problem, samples)
    else:
        solver = curvature = solver_for(problem, "hessian", tolerance, method=method, progress=progress)
        moduli = _by_weights(problem, positions, curvature, progress)
        safe = kernel_is_trivial(curvature)
        validity = assess_here(problem, curvature)
    if warn and not validity.ok:
        warnings.warn(f"row moduli: {'; '.join(validity.reasons)}", UntrustedNumber, stacklevel=2)
    if safe or not test_jumps or relative_gradient(problem) >= STATIONARITY_LIMIT:
        return moduli
    jumping, _ = rank_changes(problem, solver, positions, seed=seed, progress=progress)
    return torch.where(jumping & (moduli > 0), torch.full_like(moduli, math.inf), moduli)


def _by_weights(problem: Problem, rows: Tensor, solver: Curvature, progress: Progress | None) -> Tensor:
    """kappa_k through H^+, infinite where B_k leaves the range of H."""
    entries = problem.x[0].numel()
    if solver.kernel_dimension is None:
        return _by_products(problem, rows, solver, progress)
    adjoint = _adjoint_is_cheaper(problem, entries)
    # Grams of d x d a row are accumulated in the adjoint form; p x d blocks are held in the other.
    per_row = entries**2 + entries * _COLUMNS if adjoint else problem.size * entries
    parts = rows.split(max(1, _BLOCK_ENTRIES // max(1, per_row)))
    found = []
    for index, part in enumerate(parts):
        if progress is not None and len(parts) > 1:
            progress(f"row moduli: part {index + 1} of {len(parts)}", index / len(parts))
        found.append((_by_adjoints if adjoint else _by_columns)(problem, part, solver))
    return torch.cat(found)


def _by_products(problem: Problem, rows: Tensor, solver: Curvature, progress: Progress | None) -> Tensor:
    """kappa_k one row at a time, by bidiagonalising `H^+ B_k`: a few solves a row instead of one an input entry."""
    moduli = torch.empty(len(rows), dtype=problem.dtype, device=problem.device)
    for index, row in enumerate(rows):
        # Not `linearise`: a graph per row would stay in the problem's cache.
        found, defect = bidiagonalise(problem, Linearisation(problem, row[None]), solver, seed=index)
        moduli[index] = math.inf if defect > RANGE_LIMIT[problem.dtype] else found.value
        if progress is not None:
            progress(f"row moduli: row {index + 1} of {len(rows)}", (index + 1) / len(rows))
    return moduli


def _adjoint_is_cheaper(problem: Problem, entries: int) -> bool:
    """P products with B^T instead of d solves a row: 2 G p against 2 p^2 d n multiplications."""
    from torch.utils.flop_counter import FlopCounterMode

    if "gradient_flops" not in problem.cache:
        with FlopCounterMode(display=False) as counter:
            problem.gradient()
        problem.cache["gradient_flops"] = counter.get_total_flops()
    products = 2.0 * problem.cache["gradient_flops"] * problem.size
    columns = 2.0 * problem.size**2 * entries * problem.rows
    return _SLOWER * products < columns and entries**2 <= _BLOCK_ENTRIES


def _by_adjoints(problem: Problem, rows: Tensor, solver: Curvature) -> Tensor:
    """kappa_k^2 = largest eigenvalue of `B_k^T H^+ H^+ B_k`, summed over blocks of columns of H^+."""
    part = linearise(problem, None if len(rows) == problem.rows else rows)
    entries = problem.x[0].numel()
    shape = (len(rows), entries, entries)
    gram = torch.zeros(shape, dtype=problem.dtype, device=problem.device)
    kernel = solver.kernel_dimension != 0
    outside, whole = (torch.zeros_like(gram), torch.zeros_like(gram)) if kernel else (gram, gram)
    identity = torch.eye(problem.size, dtype=problem.dtype, device=problem.device)
    for block in identity.split(_COLUMNS, dim=1):
        _add_square(gram, part.mixed_adjoint(solver.inverse(block)))
        if kernel:
            _add_square(outside, part.mixed_adjoint(solver.project_kernel(block)))
            _add_square(whole, part.mixed_adjoint(block.contiguous()))
    moduli = _root(gram)
    return _infinite_outside(moduli, _root(outside), _root(whole), problem) if kernel else moduli


def _by_columns(problem: Problem, rows: Tensor, solver: Curvature) -> Tensor:
    """kappa_k from dense `B_k` and solves with its columns."""
    blocks = dense_mixed(problem, rows)
    count, size, entries = blocks.shape
    columns = blocks.permute(1, 0, 2).reshape(size, count * entries)
    moved = solver.inverse(columns)
    outside = solver.project_kernel(columns) if solver.kernel_dimension else None
    moduli = _spectral_norms(moved, count)
    if outside is None:
        return moduli
    return _infinite_outside(moduli, _spectral_norms(outside, count), _spectral_norms(columns, count), problem)


def _infinite_outside(moduli: Tensor, outside: Tensor, whole: Tensor, problem: Problem) -> Tensor:
    leaves = (outside > RANGE_LIMIT[problem.dtype] * whole) & (whole > rounding_of_mixed(problem))
    return torch.where(leaves, torch.full_like(moduli, math.inf), moduli)


def _add_square(gram: Tensor, columns: Tensor) -> None:
    """`gram_k += C_k C_k^T` for C (k, *d, K)."""
    flat = columns.reshape(gram.shape[0], gram.shape[1], -1)
    gram.baddbmm_(flat, flat.mT)


def _root(gram: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0).sqrt()


def _spectral_norms(columns: Tensor, count: int) -> Tensor:
    """Largest singular value of each row's (p, d) block in columns (p, count d)."""
    blocks = columns.reshape(columns.shape[0], count, -1).permute(1, 2, 0)
    if blocks.shape[1] > blocks.shape[2]:
        blocks = blocks.mT
    return _root(blocks @ blocks.mT)
