"""K by enumeration: against the literal definition, against closed forms, and against the bounds that must hold it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.lipschitz import lipschitz_bounds, square_network
from poisonaudit.lipschitz.exact import exact_constant, exact_work


def drawn(widths: Sequence[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = itertools.pairwise(widths)
    return [torch.randn(after, before, generator=generator, dtype=torch.float64) for before, after in shapes]


def literal(matrices: Sequence[Tensor], norm: str, slopes: tuple[float, float]) -> float:
    """The definition: one product of matrices per choice of all gates."""
    widths = [len(matrix) for matrix in matrices[:-1]]
    best = 0.0
    for gates in itertools.product(slopes, repeat=sum(widths)):
        product, used = matrices[0], 0
        for width, matrix in zip(widths, matrices[1:], strict=True):
            diagonal = torch.diag(torch.tensor(gates[used : used + width], dtype=torch.float64))
            product, used = matrix @ diagonal @ product, used + width
        best = max(best, float(torch.linalg.norm(product, ord=math.inf if norm == "linf" else 1)))
    return best


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize(
    ("widths", "slopes"),
    [
        ((3, 2), (0.0, 1.0)),
        ((4, 6, 3), (0.0, 1.0)),
        ((9, 2, 1), (0.0, 1.0)),
        ((2, 3, 5, 2), (0.0, 1.0)),
        ((2, 3, 3, 3, 4), (0.0, 1.0)),
        ((3, 4, 4, 2), (-0.3, 1.0)),
        ((3, 4, 4, 2), (0.0, 0.25)),
        ((3, 4, 4, 2), (-1.0, -0.5)),
        ((3, 4, 4, 2), (0.5, 0.5)),
    ],
)
def test_enumeration_is_the_definition(widths: tuple[int, ...], slopes: tuple[float, float], norm: str) -> None:
    for seed in range(3):
        matrices = drawn(widths, seed)
        assert exact_constant(matrices, norm, slopes) == pytest.approx(literal(matrices, norm, slopes), rel=1e-12)


def test_blocks_leave_no_pattern_out(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = drawn((5, 6, 4, 5, 3), 1)
    whole = exact_constant(matrices)
    for entries in (1, 7, 64):
        monkeypatch.setattr("poisonaudit.lipschitz.exact._BLOCK_ENTRIES", entries)
        assert exact_constant(matrices) == pytest.approx(whole, rel=1e-13)


@pytest.mark.parametrize("depth", range(1, 7))
def test_the_square_networks_k_is_its_lipschitz_constant(depth: int) -> None:
    for norm in ("linf", "l1"):
        assert exact_constant(square_network(depth), norm) == pytest.approx(2 - 2.0**-depth, rel=1e-14)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_k_lies_between_what_is_attained_and_every_bound(norm: str) -> None:
    for seed in range(4):
        matrices = drawn((8, 10, 6, 3), seed)
        bounds = lipschitz_bounds(matrices, norm)
        k = exact_constant(matrices, norm)
        assert bounds.lower <= k * (1 + 1e-12)
        for upper in (bounds.k1, bounds.k2, bounds.k3, bounds.k4, bounds.k5, bounds.ellipsoid, bounds.certified):
            assert upper is not None and k <= upper * (1 + 1e-12)
        assert k < 0.99 * bounds.k5


def test_both_norms_are_each_others_transpose() -> None:
    matrices = drawn((4, 5, 3, 6), 2)
    turned = [matrix.T for matrix in reversed(matrices)]
    assert exact_constant(matrices, "l1") == pytest.approx(exact_constant(turned, "linf"), rel=1e-13)


def test_plain_lists_arrays_and_single_precision_are_taken() -> None:
    rows = [[[1.0, -2.0], [0.5, 3.0]], [[1.0, -1.0]]]
    # (1, -2) alone gives 3, -(0.5, 3) alone 3.5, both together 0.5 + 5.
    assert exact_constant(rows) == pytest.approx(5.5)
    assert exact_constant([np.array(item, dtype=np.float32) for item in rows]) == pytest.approx(5.5)


def test_zero_weights_give_zero() -> None:
    assert exact_constant([torch.zeros(3, 2), torch.ones(1, 3)]) == 0.0


def test_what_is_too_large_is_refused_before_any_work() -> None:
    matrices = drawn((30, 40, 40, 10), 0)
    assert exact_work(matrices) > 2.0**60
    with pytest.raises(UsageError, match=r"PA395.*lipschitz_bounds"):
        exact_constant(matrices)
    assert exact_work([torch.ones(2000, 2000)] * 3) == math.inf
    with pytest.raises(UsageError, match="PA395"):
        exact_constant([torch.ones(2000, 2000)] * 3)


def test_one_matrix_is_its_own_norm_at_any_size() -> None:
    matrix = drawn((200, 30), 0)[0]
    assert exact_constant([matrix]) == pytest.approx(float(matrix.abs().sum(1).max()), rel=1e-13)
    assert exact_constant([matrix], "l1") == pytest.approx(float(matrix.abs().sum(0).max()), rel=1e-13)


@pytest.mark.parametrize(
    ("matrices", "code"),
    [
        ([], "PA130"),
        (torch.ones(2, 2), "PA130"),
        ([torch.ones(2)], "PA130"),
        ([torch.ones(2, 2), torch.ones(2, 3)], "PA130"),
        ([torch.full((1, 1), math.nan)], "PA130"),
        ([["a"]], "PA130"),
    ],
)
def test_what_is_no_network_is_refused(matrices: object, code: str) -> None:
    with pytest.raises(InputRefused, match=code):
        exact_constant(matrices)  # type: ignore[arg-type]


def test_unknown_norms_and_slopes_are_refused() -> None:
    with pytest.raises(UsageError, match="PA301"):
        exact_constant([torch.ones(1, 1)], "l2")
    for slopes in ((1.0, 0.0), (0.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(UsageError, match="PA304"):
            exact_constant([torch.ones(1, 1)], slopes=slopes)
