"""The memory model of a kept linearisation and a solve, against what PyTorch's allocator hands out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory import allocated
from poisonaudit.errors import UsageError
from poisonaudit.models import build_model
from poisonaudit.operators import Linearisation, linearise
from poisonaudit.problem import Problem
from poisonaudit.sensitivity.curvature import solver_for
from poisonaudit.solvers.memory import basis_vectors, solve_bytes


def mlp(dtype: torch.dtype = torch.float64, rows: int = 600) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10)).to(dtype)
    return Problem(model, "cross_entropy", torch.rand(rows, 64, dtype=dtype), torch.arange(rows) % 10, 1e-3)


def pictures(name: str) -> Problem:
    torch.manual_seed(0)
    if name == "resnet20":
        model: nn.Module = build_model("resnet20", input_shape=(3, 32, 32), outputs=10, dtype=torch.float32).eval()
        return Problem(model, "cross_entropy", torch.rand(8, 3, 32, 32), torch.arange(8), 1e-3)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(1568, 10)).double().eval()
    return Problem(model, "cross_entropy", torch.rand(60, 1, 28, 28).double(), torch.arange(60) % 10, 1e-3)


CASES = {
    "mlp": mlp,
    "mlp, float32": lambda: mlp(torch.float32),
    "mlp, many rows": lambda: mlp(rows=4_000),
    "cnn": lambda: pictures("cnn"),
    "resnet20": lambda: pictures("resnet20"),
}


def directions(problem: Problem, columns: int = 1) -> Tensor:
    torch.manual_seed(1)
    found = torch.randn(problem.size, columns, dtype=problem.dtype)
    return found[:, 0] if columns == 1 else found


@pytest.mark.parametrize("path", ["fast", "general"])
@pytest.mark.parametrize("name", CASES)
def test_passes_and_one_product(name: str, path: str) -> None:
    problem = CASES[name]()
    v = directions(problem)
    stated = Linearisation(problem, path=path).memory_bytes

    def job() -> Linearisation:
        kept = Linearisation(problem, path=path)
        kept.both_adjoint(v)
        return kept

    assert 0.75 <= stated / allocated(job)[0] <= 1.25


@pytest.mark.parametrize("name", ["mlp, many rows", "cnn"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_chunks_stay_below_a_limit(name: str, share: float) -> None:
    problem = CASES[name]()
    block = directions(problem, 8)
    whole = Linearisation(problem)
    limit = int(share * whole.memory_bytes)
    # The block itself and its result belong to the caller.
    own = 3 * block.numel() * 8

    def job() -> Tensor:
        return Linearisation(problem, memory_limit=limit).hessian(block)

    assert allocated(job)[0] <= limit + own
    assert torch.allclose(job(), whole.hessian(block), rtol=0, atol=1e-12)


@pytest.mark.parametrize("limit", [None, 40_000_000])
@pytest.mark.parametrize("method", ["lanczos", "minres", "dense"])
def test_passes_and_a_solve(method: str, limit: int | None) -> None:
    base = mlp(rows=300)
    if method == "dense":
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 10), nn.Tanh(), nn.Linear(10, 10)).double()
        base = Problem(model, "cross_entropy", base.x[:100], base.y[:100], 1e-3)
        # Too little for the matrices of 760 weights.
        limit = None if limit is None else 20_000_000
    problem = Problem(base.module(), "cross_entropy", base.x, base.y, 1e-3, memory_limit=limit)
    if method == "dense" and limit is not None:
        with pytest.raises(UsageError, match="PA307"):
            solver_for(problem, method="dense")
        assert solver_for(problem).method == "lanczos"
        return
    rhs = directions(problem)
    # Undamped the matrix is indefinite here, and eigenvectors are what takes most.
    damping = 0.0 if method == "dense" else 0.5

    def job() -> object:
        solver = solver_for(problem, method=method, damping=damping, accuracy=1e-8)
        assert solver.solve(rhs).converged
        return solver

    peak, _ = allocated(job)
    solver, kept = solver_for(problem, method=method, damping=damping, accuracy=1e-8), linearise(problem)
    reserved, vectors = limit is not None, 0
    if method == "lanczos":
        space = solver._space()  # type: ignore[attr-defined]
        vectors = solver._most_vectors if reserved else space.count  # type: ignore[attr-defined]
    stated = kept.memory_bytes + solve_bytes(method, problem.size, vectors=vectors, reserved=reserved)
    assert 0.75 <= stated / peak <= 1.25
    if limit is not None:
        assert peak <= limit


def test_limits_too_small_are_refused_with_a_way_out() -> None:
    base = mlp(rows=100)
    passes = Linearisation(base).memory_bytes
    short = Problem(base.module(), "cross_entropy", base.x, base.y, memory_limit=2 * passes + 30 * 8 * base.size)
    with pytest.raises(UsageError, match=r"PA307.*minres"):
        solver_for(short, method="lanczos")
    with pytest.raises(UsageError, match="PA307"):
        solver_for(Problem(base.module(), "cross_entropy", base.x, base.y, memory_limit=1_000), method="minres")


def test_a_limit_and_its_basis_fit_each_other() -> None:
    for limit in (10**8, 10**9):
        most = basis_vectors(limit, 50_000)
        assert solve_bytes("lanczos", 50_000, vectors=most, reserved=True) <= limit
        assert solve_bytes("lanczos", 50_000, vectors=most + 1, reserved=True) > limit
