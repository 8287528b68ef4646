"""The largest singular value against dense decompositions, and its bracket against known spectra."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from poisonaudit.solvers.extremal import SingularValue, largest_singular_value


def random_matrix(rows: int, columns: int, decay: float, seed: int) -> Tensor:
    """Singular values 1, 10^-decay, ..., in random directions."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, rank, generator=generator, dtype=torch.float64))[0]
    return (left * torch.logspace(0, -decay, rank, dtype=torch.float64)) @ right.T


def of(matrix: Tensor, **options: object) -> SingularValue:
    return largest_singular_value(
        lambda v: matrix @ v,
        lambda u: matrix.T @ u,
        *matrix.shape,
        **options,  # type: ignore[arg-type]
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 12), st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_value_vectors_and_bracket(rows: int, columns: int, decay: float, seed: int, scale: float) -> None:
    matrix = scale * random_matrix(rows, columns, decay, seed)
    exact = float(torch.linalg.matrix_norm(matrix, 2))
    found = of(matrix, seed=seed)
    assert found.value == pytest.approx(exact, rel=1e-9)
    assert found.value <= exact * (1 + 1e-12) <= found.upper * (1 + 2e-12)
    assert float((matrix @ found.right - found.value * found.left).norm()) <= 1e-6 * exact
    assert float(found.left.norm()) == pytest.approx(1.0) and float(found.right.norm()) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(20))
def test_too_few_steps_still_bracket_the_value(seed: int) -> None:
    """A clustered top of the spectrum, stopped early: the value is short of the truth, the upper end is not."""
    values = torch.cat([torch.linspace(1.0, 0.999, 200, dtype=torch.float64), torch.rand(200, dtype=torch.float64)])
    matrix = torch.diag(values)
    found = of(matrix, max_steps=15, seed=seed)
    assert not found.converged and found.steps == 15
    assert found.value < 1.0 <= found.upper < 1.6
    # The residual names an interval that holds some singular value.
    assert float((values - found.value).abs().min()) <= found.residual


def test_zero_and_scalar() -> None:
    zero = of(torch.zeros(4, 3, dtype=torch.float64))
    assert (zero.value, zero.upper, zero.converged) == (0.0, 0.0, True)
    one = of(torch.tensor([[-3.0]], dtype=torch.float64))
    assert one.value == pytest.approx(3.0) and one.upper == pytest.approx(3.0)


def test_a_repeated_largest_value_is_found_once() -> None:
    matrix = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    assert of(matrix).value == pytest.approx(2.0, rel=1e-12)


def test_the_bracket_narrows_with_steps() -> None:
    matrix = random_matrix(300, 300, 0.05, 3)
    widths = [of(matrix, max_steps=steps, accuracy=1e-15).upper for steps in (12, 25, 60)]
    assert widths == sorted(widths, reverse=True) and not math.isinf(widths[0])
