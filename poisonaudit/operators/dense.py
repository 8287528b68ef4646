"""Dense H, Gauss-Newton H, B and J, for problems small enough to hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from poisonaudit.operators.linear_block import find_largest_linear, linear_block
from poisonaudit.operators.linearisation import Linearisation, linearise
from poisonaudit.problem import Problem

# Entries of one batch of products; 2e7 float64 entries are 160 MB.
_BATCH_ENTRIES = 20_000_000
_COLUMNS = 64


def dense_hessian(problem: Problem) -> Tensor:
    """`H = d R / d w`, (p, p), symmetrised: products in blocks, counted by the linearisation.

    The block of the largest Linear layer comes in closed form (`linear_block`), if one product agrees; only the other
    weights then take a product each.

    Returns:
        The whole matrix, decay included.
    """
    matrix = _with_linear_block(problem, linearise(problem))
    return _symmetric(_columns(problem, torch.arange(problem.size))) if matrix is None else matrix


def _columns(problem: Problem, which: Tensor) -> Tensor:
    """Columns of H, one product each."""
    kept = linearise(problem)
    parts = []
    for chosen in which.to(problem.device).split(_COLUMNS):
        block = torch.zeros(problem.size, len(chosen), dtype=problem.dtype, device=problem.device)
        block[chosen, torch.arange(len(chosen), device=problem.device)] = 1.0
        parts.append(kept.hessian(block))
    return torch.cat(parts, dim=1)


def _with_linear_block(problem: Problem, kept: Linearisation) -> Tensor | None:
    """H with one block in closed form, None where there is no such layer or a product contradicts it."""
    layer = find_largest_linear(problem)
    if layer is None:
        return None
    places = layer.places.flatten().to(problem.device)
    matrix = torch.zeros(problem.size, problem.size, dtype=problem.dtype, device=problem.device)
    matrix[places[:, None], places] = linear_block(problem, layer)
    # Two passes for each of the layer's outputs.
    kept.products += layer.places.shape[0]
    others = torch.ones(problem.size, dtype=torch.bool, device=problem.device)
    others[places] = False
    rest = others.nonzero().flatten()
    if len(rest):
        columns = _columns(problem, rest)
        matrix[:, rest] = columns
        matrix[rest[:, None], places] = columns[places].T
    probe = torch.randn(problem.size, generator=torch.Generator().manual_seed(0), dtype=problem.dtype)
    probe = probe.to(problem.device)
    image = kept.hessian(probe)
    wrong = float((matrix @ probe - image).norm())
    return _symmetric(matrix) if wrong <= torch.finfo(problem.dtype).eps ** 0.5 * float(image.norm()) else None


def dense_gauss_newton(problem: Problem) -> Tensor:
    """`J^T L'' J / n + decay I`, (p, p)."""
    jacobian = dense_jacobian(problem)
    rows, outputs, size = jacobian.shape

    def one_row_loss(output: Tensor, label: Tensor) -> Tensor:
        return problem.loss_per_row(output.view(1, *shape), label[None])[0]

    with torch.no_grad():
        values = problem.outputs()
    shape, values = values.shape[1:], values.reshape(rows, -1)
    curvature = vmap(jacrev(grad(one_row_loss)))(values, problem.y)
    weighted = torch.einsum("nab,nbp->nap", curvature, jacobian)
    product = jacobian.reshape(rows * outputs, size).T @ weighted.reshape(rows * outputs, size)
    identity = torch.eye(size, dtype=problem.dtype, device=problem.device)
    return _symmetric(product / problem.rows + problem.decay * identity)


def dense_jacobian(problem: Problem) -> Tensor:
    """`d f(x_i) / d w` of every training row, (n, c, p)."""

    def one_row(weights: Tensor, row: Tensor) -> Tensor:
        return problem.outputs(weights, row[None])[0].reshape(-1)

    def batched() -> Tensor:
        chunk = _rows_at_once(problem, problem.size)
        return vmap(jacrev(one_row), in_dims=(None, 0), chunk_size=chunk)(problem.weights, problem.x)

    def alone(row: int) -> Tensor:
        return _jacobian(lambda weights: one_row(weights, problem.x[row]), problem.weights)

    return _row_by_row(batched, alone, range(problem.rows)).detach()


def dense_input_jacobian(problem: Problem) -> Tensor:
    """`d f(x_i) / d x_i` of every training row, (n, c, d)."""

    def one_row(row: Tensor) -> Tensor:
        return problem.outputs(None, row[None])[0].reshape(-1)

    def batched() -> Tensor:
        return vmap(jacrev(one_row), chunk_size=_rows_at_once(problem, problem.size))(problem.x)

    jacobian = _row_by_row(batched, lambda row: _jacobian(one_row, problem.x[row]), range(problem.rows))
    return jacobian.reshape(problem.rows, jacobian.shape[1], -1).detach()


def dense_mixed(problem: Problem, rows: Tensor) -> Tensor:
    """`B_k = d R / d x_k` of the given rows, (k, p, d); the factor 1/n is in it.

    Args:
        problem: the point to differentiate at.
        rows: positions (k,).

    Returns:
        One p x d block per row.
    """

    def loss(row: Tensor, label: Tensor, weights: Tensor) -> Tensor:
        return problem.losses(weights, row[None], label[None])[0] / problem.rows

    entries = problem.x[0].numel()

    def batched() -> Tensor:
        chunk = _rows_at_once(problem, problem.size * entries)
        # d backward passes a row (one per input entry) instead of p.
        adjoint = vmap(jacrev(grad(loss), argnums=2), in_dims=(0, 0, None), chunk_size=chunk)
        return adjoint(problem.x[rows], problem.y[rows], problem.weights)

    def alone(row: int) -> Tensor:
        def slope(weights: Tensor) -> Tensor:
            leaf = problem.x[row].detach().requires_grad_(True)
            return torch.autograd.grad(loss(leaf, problem.y[row], weights), leaf, create_graph=True)[0].reshape(-1)

        return _jacobian(slope, problem.weights)

    blocks = _row_by_row(batched, alone, rows.tolist())
    return blocks.reshape(len(rows), entries, problem.size).mT.detach()


def _row_by_row(batched: Callable[[], Tensor], alone: Callable[[int], Tensor], rows: Iterable[int]) -> Tensor:
    """All rows at once, or one after the other for layers that have no batching rule (recurrent ones)."""
    try:
        return batched()
    except (RuntimeError, NotImplementedError) as trouble:
        if isinstance(trouble, torch.OutOfMemoryError):
            raise
        return torch.stack([alone(row) for row in rows])


def _jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """`d function / d at` by plain autograd, (*outputs, *inputs)."""
    found: Tensor = torch.autograd.functional.jacobian(function, at.detach())
    return found


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.T)


def _rows_at_once(problem: Problem, entries_per_row: int) -> int:
    return max(1, min(problem.rows, _BATCH_ENTRIES // max(1, entries_per_row)))
