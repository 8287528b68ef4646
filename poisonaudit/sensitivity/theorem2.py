"""The factors of the source paper's theorems 2 and 3: cheap proxies, not bounds of the solution map."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from poisonaudit.errors import UsageError
from poisonaudit.operators.dense import dense_input_jacobian, dense_jacobian
from poisonaudit.problem import Problem, expect_problem

Layer = int | Literal["all"] | None


def theorem2_moduli(problem: Problem, layer: Layer = None) -> Tensor:
    """`|(df/dW)^+ df/dx_k|_2` of each row for one weight matrix, for all weights at once, or the largest over matrices.

    For a scalar output this is `|df/dx_k| / |df/dW|_F` (Theorem 2 and eq. 44 of Wang, Wang and Ban, 2025). It is
    **not** a bound of the solution map: it ignores that the other rows constrain the weights too. Over all weights at
    once it is a lower bound of kappa_k where the rows are interpolated; for one matrix it can lie on either side.

    Args:
        problem: the point.
        layer: index among the weight matrices (parameters with at least two dimensions) in order; "all" for all p
            weights together, biases included; None for the largest factor over the matrices.

    Returns:
        (n,); infinite where the output does not depend on the weights in question but does on the row, 0 where on
        neither.

    Raises:
        UsageError: PA304, there is no weight matrix, or none has that index.
    """
    expect_problem(problem, "theorem2_moduli")
    spans = _spans(problem, layer)
    found = []
    for jacobian, inputs in _blocks(problem):
        factors = [_factor(jacobian[:, :, begin:end], inputs) for begin, end in spans]
        found.append(torch.stack(factors).amax(0))
    return torch.cat(found)


def theorem3_modulus(problem: Problem, layer: Layer = None) -> float:
    """`sqrt(n) max_k` of the factors of Theorem 2 (Theorem 3 and eq. 48 of Wang, Wang and Ban, 2025).

    **Not** a bound either, with no fixed order to the true modulus: for `f = w.x` and rows (1, 0), (1, delta) it says
    2.0 whatever delta is, while the modulus grows like 2 / delta.

    Args:
        problem: the point.
        layer: as in `theorem2_moduli`.

    Returns:
        Weight norm per input norm.
    """
    return math.sqrt(problem.rows) * float(theorem2_moduli(problem, layer).max())


def _spans(problem: Problem, layer: Layer) -> list[tuple[int, int]]:
    """Where the weights in question lie in the flat vector, one span per factor."""
    if layer == "all":
        return [(0, problem.size)]
    offsets = [0]
    for shape in problem.shapes:
        offsets.append(offsets[-1] + shape.numel())
    matrices = [index for index, shape in enumerate(problem.shapes) if len(shape) >= 2]
    if not matrices:
        raise UsageError(
            "PA304", "the model has no weight matrix (a parameter with two dimensions or more) to measure."
        )
    if layer is not None and (isinstance(layer, bool | str) or not 0 <= layer < len(matrices)):
        raise UsageError(
            "PA304",
            f"layer {layer!r} does not exist; the model has weight matrices 0..{len(matrices) - 1}, and 'all'.",
        )
    chosen = matrices if layer is None else [matrices[layer]]
    return [(offsets[index], offsets[index + 1]) for index in chosen]


def _blocks(problem: Problem) -> Iterator[tuple[Tensor, Tensor]]:
    """df/dw (k, c, p) and df/dx (k, c, d) of a few rows at a time: all rows at once can outgrow the memory."""
    yield dense_jacobian(problem), dense_input_jacobian(problem)


def _factor(weights: Tensor, inputs: Tensor) -> Tensor:
    """`|J^+ D|_2` row by row through the small Gram matrix: J (n, c, q), D (n, c, d) -> (n,).

    With `J J^T = Q L Q^T`, `|J^+ D|_2 = |L^(-1/2) Q^T D|_2` on the kept eigenvalues.

    Returns:
        One factor per row.
    """
    values, vectors = torch.linalg.eigh(weights @ weights.mT)
    largest = values[:, -1:].clamp_min(0)
    kept = values > 1e-14 * largest
    inverse = torch.where(kept & (largest > 0), values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt(), 0.0)
    factor = torch.linalg.matrix_norm(inverse[:, :, None] * (vectors.mT @ inputs), ord=2)
    silent = (largest[:, 0] <= 0) & (inputs.flatten(1).abs().amax(1) > 0)
    return torch.where(silent, torch.full_like(factor, float("inf")), factor)
