"""solver_for: every method against the dense answer on real problems, damping, members, refusals, resumption."""

from __future__ import annotations

import pytest
import torch
from conftest import digits_rows, mlp
from torch import Tensor

from poisonaudit import Problem, fit
from poisonaudit.errors import UsageError
from poisonaudit.operators import dense_hessian, linearise
from poisonaudit.sensitivity import solver_for
from poisonaudit.solvers import SolveState


@pytest.fixture(scope="module")
def at() -> Problem:
    x, y = digits_rows(60)
    return fit(Problem(mlp([64, 3, 10]), "cross_entropy", x, y, decay=2e-2)).problem


@pytest.fixture(scope="module")
def free() -> Problem:
    """A point without decay: its Hessian has a kernel."""
    x, y = digits_rows(20)
    return Problem(mlp([64, 3, 10]), "half_squared", x, y)


def draw(problem: Problem, *columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(problem.size, *columns, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("damping", [0.0, 1e-2])
@pytest.mark.parametrize("method", ["dense", "lanczos", "minres", "lsmr", "cg", "nystroem"])
def test_methods_agree(at: Problem, method: str, damping: float) -> None:
    if method == "nystroem" and damping == 0.0:
        with pytest.raises(UsageError, match="PA304"):
            solver_for(at, method=method).solve(draw(at))
        return
    matrix = dense_hessian(at)
    damped = matrix + damping * float(torch.linalg.eigvalsh(matrix)[-1]) * torch.eye(at.size, dtype=matrix.dtype)
    solver = solver_for(at, method=method, damping=damping)
    for rhs in (draw(at), draw(at, 2, seed=1)):
        exact = torch.linalg.solve(damped, rhs)
        solve = solver.solve(rhs)
        assert solve.converged and float((solve.value - exact).norm() / exact.norm()) < 1e-7
        assert float((solver.inverse(rhs) - exact).norm() / exact.norm()) < 1e-7
    if method != "dense":
        assert solver.kernel_dimension is None and solver.products > 0 and solver.method == method
        assert solver.range_vectors is None
    ends = torch.linalg.eigvalsh(damped)
    assert solver.largest == pytest.approx(float(ends[-1]), rel=1e-6)
    assert solver.smallest >= float(ends[0]) * (1 - 1e-6)


@pytest.mark.parametrize("method", ["lanczos", "minres"])
def test_members_and_kernel_of_a_singular_hessian(free: Problem, method: str) -> None:
    matrix = dense_hessian(free)
    values, vectors = torch.linalg.eigh(matrix)
    magnitudes = values.abs().sort().values
    cut = 1e-6
    gap = magnitudes[magnitudes > cut * magnitudes[-1]][0] / magnitudes[magnitudes <= cut * magnitudes[-1]][-1]
    assert gap > 1e3, "the case needs a gap for two truncations to agree"
    kept = values.abs() > cut * values.abs().max()
    kernel = vectors[:, ~kept] @ vectors[:, ~kept].T
    solver = solver_for(free, tolerance=cut, method=method)
    z = draw(free, 2)
    assert float((solver.project_kernel(z) - kernel @ z).norm() / z.norm()) < 1e-6
    rhs = matrix @ draw(free, seed=3)
    member = solver.solve_from(z[:, 0].contiguous(), rhs)
    exact = vectors[:, kept] @ ((vectors[:, kept].T @ rhs) / values[kept]) + kernel @ z[:, 0]
    assert float((member.value - exact).norm() / exact.norm()) < 1e-6
    true = float((matrix @ member.value - rhs).norm() / rhs.norm())
    assert member.relative_residual == pytest.approx(true, rel=0.5, abs=1e-12)


def test_later_right_hand_sides_are_cheap(at: Problem) -> None:
    fresh = at.at(at.weights)
    solver = solver_for(fresh, method="lanczos", accuracy=1e-8)
    first = solver.solve(draw(at))
    later = [solver.solve(draw(at, seed=seed)) for seed in (1, 2, 3)]
    assert max(solve.products for solve in later) < first.products / 2
    assert solver.products == first.products + sum(solve.products for solve in later)
    # Another tolerance or damping at the same point finds the space as well.
    other = solver_for(fresh, method="lanczos", accuracy=1e-8, tolerance=1e-8).solve(draw(at, seed=4))
    assert other.products < first.products / 2


def test_an_interrupted_solve_goes_on(at: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    rhs, point = draw(at), at.at(at.weights)
    whole = solver_for(at.at(at.weights), method="lanczos").solve(rhs)
    kept = linearise(point)
    hessian, calls = kept.hessian, [0]

    def interrupted(v: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        return hessian(v)

    monkeypatch.setattr(kept, "hessian", interrupted)
    solver = solver_for(point, method="lanczos")
    with pytest.raises(KeyboardInterrupt):
        solver.solve(rhs)
    state = solver.state  # type: ignore[attr-defined]
    assert state is not None and state.products == 7
    elsewhere = solver_for(at.at(at.weights), method="lanczos")
    elsewhere.resume(SolveState.from_tensors(state.to_tensors()))  # type: ignore[attr-defined]
    for again in (solver.solve(rhs), elsewhere.solve(rhs)):
        assert float((again.value - whole.value).norm() / whole.value.norm()) < 1e-12
        assert again.products == whole.products - 7


def test_progress_is_told(at: Problem) -> None:
    told: list[str] = []
    solver_for(at.at(at.weights), method="lanczos", progress=lambda text, _: told.append(text)).solve(draw(at))
    assert told and all("residual" in text for text in told)


def test_refusals(at: Problem) -> None:
    with pytest.raises(UsageError, match="PA301.*lanczos"):
        solver_for(at, method="lanczoz")
    with pytest.raises(UsageError, match="PA301"):
        solver_for(at, "hesian")  # type: ignore[arg-type]
    for keywords in ({"damping": -1.0}, {"damping": float("inf")}, {"tolerance": 1.0}, {"accuracy": 0.0}):
        with pytest.raises(UsageError, match="PA304"):
            solver_for(at, **keywords)  # type: ignore[arg-type]
