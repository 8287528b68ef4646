"""Every solver against dense float64: definite, singular, inconsistent and indefinite systems, blocks, recycling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_solvers import SPECTRA, symmetric
from torch import Tensor

from poisonaudit.errors import NumericalFailure, UsageError
from poisonaudit.solvers import (
    KrylovSpace,
    Solve,
    SolveState,
    block_lanczos,
    conjugate_gradients,
    curvature_ends,
    lsmr,
    minres,
    new_state,
    nystroem,
)

Double = torch.float64


def lanczos(operator: Callable[[Tensor], Tensor], rhs: Tensor) -> Solve:
    return block_lanczos(operator, rhs, tolerance=1e-9)


SOLVERS = {"lanczos": lanczos, "minres": minres, "lsmr": lsmr, "cg": conjugate_gradients}


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=Double)


def pinv(matrix: Tensor) -> Tensor:
    return torch.linalg.pinv(matrix, hermitian=True, rtol=1e-9)


@pytest.mark.parametrize("columns", [0, 3])
@pytest.mark.parametrize("consistent", [True, False])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("solver", SOLVERS)
def test_against_dense(solver: str, spectrum: str, consistent: bool, columns: int) -> None:
    if solver == "cg" and (spectrum == "indefinite" or not consistent):
        pytest.skip("conjugate gradients are for definite, consistent systems")
    matrix = symmetric(SPECTRA[spectrum])
    rhs = draw(40, columns) if columns else draw(40)
    rhs = matrix @ rhs if consistent else rhs
    exact = pinv(matrix) @ rhs
    solve = SOLVERS[solver](lambda v: matrix @ v, rhs)
    assert solve.converged and not solve.advice, solve
    assert float((solve.value - exact).norm() / exact.norm()) < 1e-7
    true = ((matrix @ solve.value - rhs).norm(dim=0) / rhs.norm(dim=0)).max()
    assert solve.relative_residual == pytest.approx(float(true), rel=1e-6, abs=1e-13)


@pytest.mark.parametrize("solver", SOLVERS)
def test_counts_products_and_takes_a_shift(solver: str) -> None:
    matrix, rhs, calls = symmetric(SPECTRA["singular"]), draw(40), [0]

    def counted(v: Tensor) -> Tensor:
        calls[0] += 1 if v.dim() == 1 else v.shape[1]
        return matrix @ v

    keywords = {"tolerance": 1e-9} if solver == "lanczos" else {}
    full = {"lanczos": block_lanczos, "minres": minres, "lsmr": lsmr, "cg": conjugate_gradients}[solver]
    solve = full(counted, rhs, shift=0.3, **keywords)  # type: ignore[operator]
    exact = torch.linalg.solve(matrix + 0.3 * torch.eye(40, dtype=Double), rhs)
    assert float((solve.value - exact).norm() / exact.norm()) < 1e-9
    assert solve.products == calls[0] > 0


def test_conjugate_gradients_stop_at_negative_curvature() -> None:
    matrix = symmetric(SPECTRA["indefinite"])
    solve = conjugate_gradients(lambda v: matrix @ v, draw(40))
    assert not solve.converged and "curvature" in solve.ended and "Lanczos" in solve.advice
    singular = symmetric(SPECTRA["clustered"])
    flat = conjugate_gradients(lambda v: singular @ v, draw(40))
    assert not flat.converged and "curvature" in flat.ended


def test_short_runs_say_what_to_do() -> None:
    matrix, rhs = symmetric(torch.logspace(-8, 0, 60, dtype=Double)), torch.ones(60, dtype=Double)
    for solve in (
        minres(lambda v: matrix @ v, rhs, max_products=8),
        lsmr(lambda v: matrix @ v, rhs, max_products=8),
        conjugate_gradients(lambda v: matrix @ v, rhs, max_products=8),
        block_lanczos(lambda v: matrix @ v, rhs, tolerance=1e-12, max_products=8),
    ):
        assert not solve.converged and solve.ended == "product limit" and solve.advice


@pytest.mark.parametrize("solver", ["lanczos", "lsmr"])
def test_solves_that_start_elsewhere_reach_the_member_of_the_set(solver: str) -> None:
    matrix = symmetric(SPECTRA["singular"])
    rhs, start = matrix @ draw(40), draw(40, seed=2)
    inverse = pinv(matrix)
    exact = inverse @ rhs + start - inverse @ (matrix @ start)
    if solver == "lsmr":
        value = lsmr(lambda v: matrix @ v, rhs, start=start).value
    else:
        value = start + lanczos(lambda v: matrix @ v, rhs - matrix @ start).value
    assert float((value - exact).norm() / exact.norm()) < 1e-7


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 25), st.integers(0, 8), st.integers(1, 4), st.integers(0, 1_000))
def test_laws_of_the_least_squares_solution(size: int, kernel: int, columns: int, seed: int) -> None:
    """Residual orthogonal to the range, value to the kernel, linear in the right-hand side; any signs, any rank."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(size, generator=generator, dtype=Double) + 0.1
    values[torch.rand(size, generator=generator) < 0.4] *= -1.0
    values[: min(kernel, size)] = 0.0
    matrix = symmetric(values, seed)
    rhs = torch.randn(size, columns, generator=generator, dtype=Double)
    solve = lanczos(lambda v: matrix @ v, rhs)
    residual = matrix @ solve.value - rhs
    scale = float(solve.value.norm() + rhs.norm())
    assert float((matrix @ residual).norm()) < 1e-8 * scale
    kernel_part = solve.value - pinv(matrix) @ (matrix @ solve.value)
    assert float(kernel_part.norm()) < 1e-8 * scale
    weights = torch.randn(columns, generator=generator, dtype=Double)
    together = lanczos(lambda v: matrix @ v, rhs @ weights)
    assert float((together.value - solve.value @ weights).norm()) < 1e-7 * scale * float(weights.norm() + 1)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("consistent", [True, False])
def test_recycled_solves_equal_fresh_ones_for_fewer_products(spectrum: str, consistent: bool) -> None:
    matrix, space = symmetric(SPECTRA[spectrum]), KrylovSpace(40, torch.finfo(Double).eps)
    made = []
    for seed in range(5):
        rhs = matrix @ draw(40, seed=seed) if consistent else draw(40, seed=seed)
        exact = pinv(matrix) @ rhs
        solve = block_lanczos(lambda v: matrix @ v, rhs, tolerance=1e-9, space=space)
        assert solve.converged and float((solve.value - exact).norm() / exact.norm()) < 1e-7
        made.append(solve.products)
        if seed == 2:
            space.compress(20)
    if spectrum != "clustered":
        assert max(made[1:3]) < made[0] / 4


def test_a_damped_solve_leaves_nothing_behind_in_an_undamped_one() -> None:
    """A damped run takes kernel parts into the space; the next undamped solution must be orthogonal to the kernel."""
    matrix, space = symmetric(SPECTRA["singular"]), KrylovSpace(40, torch.finfo(Double).eps)
    block_lanczos(lambda v: matrix @ v, draw(40), tolerance=1e-9, shift=0.1, space=space)
    rhs = matrix @ draw(40, seed=7)
    solve = block_lanczos(lambda v: matrix @ v, rhs, tolerance=1e-9, space=space)
    exact = pinv(matrix) @ rhs
    assert float((solve.value - exact).norm() / exact.norm()) < 1e-7


def test_the_range_part_stays_orthonormal_when_open_directions_are_short() -> None:
    """A start that is all but spanned leaves open directions at rounding level."""
    matrix = symmetric(torch.linspace(0.1, 5.0, 60, dtype=Double))
    space = KrylovSpace(60, torch.finfo(Double).eps)
    for seed in range(3):
        block_lanczos(lambda v: matrix @ v, draw(60, seed=seed), tolerance=0.0, accuracy=1e-13, space=space)
    curvature_ends(lambda v: matrix @ v, 60, draw(60), steps=60, space=space)
    space.keep_range()
    basis, m = space.vectors, space.multiplied
    assert space.count <= 60
    assert torch.allclose(basis @ basis.T, torch.eye(space.count, dtype=Double), atol=1e-12)
    assert torch.allclose(matrix @ basis[:m].T, basis.T @ space.small, atol=1e-11)


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_images_stay_exact_through_compression(shift: float) -> None:
    matrix = symmetric(torch.linspace(0.1, 5.0, 60, dtype=Double))
    space = KrylovSpace(60, torch.finfo(Double).eps)
    for seed in range(3):
        block_lanczos(lambda v: matrix @ v, draw(60, seed=seed), tolerance=0.0, accuracy=1e-3, shift=shift, space=space)
    for change in (lambda: None, lambda: space.compress(8), space.keep_range):
        change()
        basis, m = space.vectors, space.multiplied
        assert torch.allclose(basis @ basis.T, torch.eye(space.count, dtype=Double), atol=1e-12)
        assert torch.allclose(matrix @ basis[:m].T, basis.T @ space.small, atol=1e-11)


def test_blocks_with_equal_and_zero_columns() -> None:
    matrix, one = symmetric(SPECTRA["positive"]), draw(40)
    rhs = torch.stack([one, one, torch.zeros(40, dtype=Double), -2.0 * one], dim=1)
    solve = lanczos(lambda v: matrix @ v, rhs)
    exact = torch.linalg.solve(matrix, rhs)
    assert float((solve.value - exact).norm() / exact.norm()) < 1e-9
    assert not solve.value[:, 2].any()
    # One direction, plus the check of four columns.
    assert solve.products <= 40 + 8


def test_one_weight_and_a_zero_operator() -> None:
    assert float(lanczos(lambda v: 4.0 * v, torch.tensor([2.0], dtype=Double)).value) == pytest.approx(0.5)
    for solver in ("lanczos", "minres", "lsmr"):
        nothing = SOLVERS[solver](torch.zeros_like, draw(5))
        assert not nothing.value.any() and nothing.relative_residual == pytest.approx(1.0)


def test_a_full_space_is_compressed_and_the_solve_goes_on() -> None:
    matrix, rhs = symmetric(torch.logspace(-2, 0, 200, dtype=Double)), draw(200)
    solve = block_lanczos(lambda v: matrix @ v, rhs, tolerance=1e-12, max_vectors=30, accuracy=1e-8, max_products=5_000)
    assert solve.converged and solve.relative_residual <= 1e-8


@pytest.mark.parametrize("columns", [1, 3])
def test_interrupted_solves_go_on_exactly(columns: int) -> None:
    matrix, rhs = symmetric(torch.logspace(-4, 0, 80, dtype=Double)), draw(80, columns)
    whole = block_lanczos(lambda v: matrix @ v, rhs, tolerance=1e-12)
    calls = [0]

    def interrupted(v: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == 9:
            raise KeyboardInterrupt
        return matrix @ v

    state = new_state(rhs)
    with pytest.raises(KeyboardInterrupt):
        block_lanczos(interrupted, rhs, tolerance=1e-12, state=state)
    saved = SolveState.from_tensors(state.to_tensors())
    short = block_lanczos(lambda v: matrix @ v, rhs, tolerance=1e-12, state=saved, max_products=30)
    assert short.ended == "product limit" and not short.converged
    resumed = block_lanczos(lambda v: matrix @ v, rhs, tolerance=1e-12, state=saved)
    assert float((resumed.value - whole.value).norm() / whole.value.norm()) < 1e-12
    assert resumed.iterations == whole.iterations
    with pytest.raises(UsageError, match="PA304"):
        block_lanczos(lambda v: matrix @ v, 2 * rhs, tolerance=1e-12, state=saved)
    with pytest.raises(UsageError, match="PA304"):
        SolveState.from_tensors({"vectors": torch.zeros(1)})


def test_states_survive_safetensors() -> None:
    from safetensors.torch import load, save

    matrix, rhs = symmetric(SPECTRA["positive"]), draw(40)
    state = new_state(rhs)
    block_lanczos(lambda v: matrix @ v, rhs, tolerance=1e-9, state=state, max_products=12)
    again = SolveState.from_tensors(load(save(state.to_tensors())))
    first = block_lanczos(lambda v: matrix @ v, rhs, tolerance=1e-9, state=state)
    second = block_lanczos(lambda v: matrix @ v, rhs, tolerance=1e-9, state=again)
    assert torch.equal(first.value, second.value)


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_operators_with_float64_recurrences(solver: str) -> None:
    wide = symmetric(torch.linspace(0.05, 1.0, 40, dtype=Double))
    matrix, rhs = wide.float(), draw(40).float()

    def product(v: Tensor) -> Tensor:
        assert v.dtype == torch.float32
        return matrix @ v

    keywords = {"tolerance": 1e-5} if solver == "lanczos" else {}
    full = {"lanczos": block_lanczos, "minres": minres, "lsmr": lsmr, "cg": conjugate_gradients}[solver]
    solve = full(product, rhs, accuracy=2e-6, **keywords)  # type: ignore[operator]
    assert solve.value.dtype == torch.float32 and solve.converged and solve.relative_residual <= 1e-5
    exact = torch.linalg.solve(matrix.double(), rhs.double())
    assert float((solve.value.double() - exact).norm() / exact.norm()) < 1e-4


def test_nystroem_preconditions_damped_systems() -> None:
    values = torch.cat([torch.logspace(3, 0, 20, dtype=Double), 1e-3 * torch.rand(180, dtype=Double)])
    matrix, rhs = symmetric(values), draw(200)
    approximation = nystroem(lambda v: matrix @ v, rhs, 30, 1e-2)
    assert approximation.values[:20].tolist() == pytest.approx(values[:20].tolist(), rel=5e-2)
    plain = conjugate_gradients(lambda v: matrix @ v, rhs, shift=1e-2)
    fast = conjugate_gradients(lambda v: matrix @ v, rhs, shift=1e-2, preconditioner=approximation)
    exact = torch.linalg.solve(matrix + 1e-2 * torch.eye(200, dtype=Double), rhs)
    assert float((fast.value - exact).norm() / exact.norm()) < 1e-8
    assert fast.iterations < plain.iterations / 2
    with pytest.raises(UsageError, match="PA304"):
        nystroem(lambda v: matrix @ v, rhs, 30, 0.0)
    with pytest.raises(NumericalFailure, match="PA403"):
        nystroem(lambda v: -(matrix @ v), rhs, 30, 1e-2)


def test_nan_products_are_refused() -> None:
    with pytest.raises(NumericalFailure, match="PA401"):
        lanczos(lambda v: v * float("nan"), draw(4))


def test_a_space_cut_back_many_times_stays_orthonormal() -> None:
    """Errors of the basis would grow with every restart if a pass left what it took away times them."""
    generator = torch.Generator().manual_seed(0)
    size = 600
    values = torch.logspace(-5, 0, size, dtype=torch.float64)
    space = KrylovSpace(size, torch.finfo(torch.float64).eps)
    for _ in range(25):
        rhs = torch.randn(size, generator=generator, dtype=torch.float64)
        solve = block_lanczos(
            lambda v: values * v if v.dim() == 1 else values[:, None] * v,
            rhs,
            tolerance=0.0,
            max_vectors=90,
            max_products=400,
            shift=1e-3,
            space=space,
        )
        assert solve.converged and float((values * solve.value + 1e-3 * solve.value - rhs).norm()) < 2e-10 * rhs.norm()
        space.compress(40)
        basis = space.vectors
        assert float((basis @ basis.T - torch.eye(len(basis))).abs().max()) < 1e-12
        images = values[:, None] * basis[: space.multiplied].T
        assert float((images - basis.T @ space.small).norm(dim=0).max()) < 1e-12
