"""Lanczos least squares and the dense spectrum against pinv, singular, indefinite and inconsistent systems."""

from __future__ import annotations

import pytest
import torch
from conftest import digits_rows, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from poisonaudit import Problem, fit, graphical_derivative, lipschitz_modulus
from poisonaudit.errors import NumericalFailure
from poisonaudit.solvers import DenseSpectrum, block_lanczos, curvature_ends


def symmetric(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return basis @ torch.diag(eigenvalues) @ basis.T


SPECTRA = {
    "positive": torch.logspace(-3, 1, 40, dtype=torch.float64),
    "singular": torch.cat([torch.zeros(15, dtype=torch.float64), torch.logspace(-3, 1, 25, dtype=torch.float64)]),
    "indefinite": torch.cat(
        [-torch.logspace(-2, 0, 10, dtype=torch.float64), torch.logspace(-2, 1, 30, dtype=torch.float64)]
    ),
    "clustered": torch.tensor([0.0] * 20 + [1.0] * 10 + [2.0] * 10, dtype=torch.float64),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("consistent", [True, False])
def test_minimum_norm_least_squares(name: str, consistent: bool) -> None:
    matrix = symmetric(SPECTRA[name])
    generator = torch.Generator().manual_seed(1)
    rhs = torch.randn(40, generator=generator, dtype=torch.float64)
    if consistent:
        rhs = matrix @ rhs
    exact = torch.linalg.pinv(matrix, hermitian=True, rtol=1e-9) @ rhs
    residual = float((matrix @ exact - rhs).norm() / rhs.norm())
    dense = DenseSpectrum(matrix, 1e-9)
    solves = [block_lanczos(lambda v: matrix @ v, rhs, tolerance=1e-9), dense.solve(rhs)]
    for solve in solves:
        assert torch.allclose(solve.value, exact, rtol=1e-6, atol=1e-7 * float(exact.norm()))
        assert solve.relative_residual == pytest.approx(residual, abs=1e-8)
        assert solve.converged and not solve.advice
    assert dense.kernel_dimension == int((SPECTRA[name] == 0).sum())
    kernel = dense.project_kernel(rhs)
    assert torch.allclose(matrix @ kernel, torch.zeros(40, dtype=torch.float64), atol=1e-8)


def test_stops_short_and_says_so() -> None:
    matrix = symmetric(torch.logspace(-8, 0, 60, dtype=torch.float64))
    rhs = torch.ones(60, dtype=torch.float64)
    solve = block_lanczos(lambda v: matrix @ v, rhs, tolerance=1e-12, max_products=10)
    assert not solve.converged and solve.advice and solve.ended == "product limit"
    true = float((matrix @ solve.value - rhs).norm() / rhs.norm())
    assert solve.relative_residual == pytest.approx(true, rel=1e-9)
    assert solve.products == 12


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 25), st.integers(0, 1_000))
def test_law_reported_residual_is_the_true_one(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    eigenvalues = torch.randn(size, generator=generator, dtype=torch.float64)
    eigenvalues[::3] = 0.0
    matrix = symmetric(eigenvalues, seed)
    rhs = torch.randn(size, generator=generator, dtype=torch.float64)
    solve = block_lanczos(lambda v: matrix @ v, rhs, tolerance=1e-9)
    assert solve.relative_residual == pytest.approx(float((matrix @ solve.value - rhs).norm() / rhs.norm()), abs=1e-12)
    assert float(solve.value.norm()) <= float((torch.linalg.pinv(matrix, rtol=1e-9) @ rhs).norm()) * (1 + 1e-6) + 1e-9


def test_zero_right_hand_side() -> None:
    solve = block_lanczos(lambda v: v, torch.zeros(3, dtype=torch.float64), tolerance=1e-9)
    assert solve.converged and solve.relative_residual == 0.0 and not solve.value.any()


def test_curvature_ends() -> None:
    matrix = symmetric(SPECTRA["indefinite"])
    like = torch.zeros(40, dtype=torch.float64)
    smallest, largest = curvature_ends(lambda v: matrix @ v, 40, like, steps=40)
    assert smallest == pytest.approx(-1.0, abs=1e-9) and largest == pytest.approx(10.0, abs=1e-9)


def test_nan_is_refused() -> None:
    with pytest.raises(NumericalFailure, match="PA401"):
        DenseSpectrum(torch.full((2, 2), float("nan")), 1e-9)


def krylov_pair() -> tuple[Problem, Problem]:
    """One minimum twice, for a dense solve and for one by products."""
    x, y = digits_rows(60)
    at = fit(Problem(mlp([64, 3, 10]), "cross_entropy", x, y, decay=2e-2)).problem
    return at, at.at(at.weights)


def test_krylov_curvature_agrees_with_dense() -> None:
    at, fresh = krylov_pair()
    mu = torch.zeros_like(at.x)
    mu[3] = 0.01
    dense, krylov = graphical_derivative(at, mu), graphical_derivative(fresh, mu, method="lanczos")
    assert dense.kernel_dimension == 0 and krylov.kernel_dimension is None
    assert torch.allclose(krylov.displacement, dense.displacement, rtol=1e-6, atol=1e-9)
    assert krylov.validity.ok == dense.validity.ok


@pytest.mark.soak
def test_krylov_modulus_agrees_with_dense() -> None:
    at, fresh = krylov_pair()
    rows = torch.tensor([3, 8])
    assert lipschitz_modulus(fresh, rows, method="lanczos").truncated == pytest.approx(
        lipschitz_modulus(at, rows).value, rel=1e-6
    )
