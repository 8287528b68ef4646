"""The solution set as an object: closed forms, dense projections, and where retraining from its members ends."""

from __future__ import annotations

import pytest
import torch
from conftest import mlp
from torch import Tensor, nn

from poisonaudit import Problem, fit, graphical_derivative
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.operators import dense_hessian, dense_mixed
from poisonaudit.sensitivity import pompeiu_hausdorff


@pytest.fixture(scope="module")
def free() -> Problem:
    """Undecayed squared loss with more weights than rows: ker H has p - n dimensions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(10, 1, generator=generator, dtype=torch.float64)
    return fit(Problem(mlp([4, 8, 1], nn.Tanh), "half_squared", x, y), tolerance=1e-13).problem


def perturbation(problem: Problem, size: float = 1e-3) -> Tensor:
    draw = torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return size * draw / draw.norm()


def kernel_projector(problem: Problem, tolerance: float = 1e-9) -> Tensor:
    values, vectors = torch.linalg.eigh(dense_hessian(problem))
    kernel = vectors[:, values.abs() <= tolerance * values.abs().max()]
    return kernel @ kernel.T


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_against_dense_projections(free: Problem, method: str) -> None:
    mu = perturbation(free)
    found = graphical_derivative(free, mu, method=method).solution_set
    kernel = kernel_projector(free)
    hessian = dense_hessian(free)
    mixed = dense_mixed(free, torch.arange(free.rows)).permute(1, 0, 2).reshape(free.size, -1) @ mu.reshape(-1)
    exact = -torch.linalg.pinv(hessian, rtol=1e-9, hermitian=True) @ mixed
    assert float((found.displacement - exact).norm()) < 1e-7 * float(exact.norm())
    assert found.distance == pytest.approx(float(exact.norm()), rel=1e-7)
    assert float((kernel @ found.displacement).norm()) < 1e-8 * found.distance
    assert found.kernel_dimension == (free.size - free.rows if method == "dense" else None)
    # A member is what a solve started at z ends in: the projection of origin + z onto the set.
    z = torch.randn(free.size, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.allclose(found.member(z), (free.weights + exact)[:, None] + kernel @ z, rtol=0, atol=1e-7)
    assert torch.allclose(found.member(z[:, 0]), found.member(z)[:, 0], rtol=0, atol=1e-8)
    members = found.members(5, 0.3, seed=4)
    parts = members - found.nearest
    assert torch.allclose(parts.norm(dim=1), torch.full((5,), 0.3, dtype=torch.float64))
    assert float((hessian @ parts.T).norm()) < 1e-7 * float(hessian.norm())
    assert float(found.distance_to(members).max()) < 1e-7
    away = torch.randn(3, free.size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    outside = (away - found.nearest) - (away - found.nearest) @ kernel
    assert torch.allclose(found.distance_to(away), outside.norm(dim=1), rtol=1e-6)


def test_retraining_from_members_ends_at_the_set(free: Problem) -> None:
    """Fits of the moved data started at members end within second order of the estimated set, and not at one point."""
    far = []
    for size in (4e-3, 2e-3):
        mu = perturbation(free, size)
        estimated = graphical_derivative(free, mu).solution_set
        moved = free.with_data(free.x + mu)
        starts = estimated.members(4, 20 * estimated.distance, seed=0)
        ends = torch.stack([fit(moved.at(start), tolerance=1e-12).problem.weights for start in starts])
        far.append(float(estimated.distance_to(ends).max()))
        assert far[-1] < estimated.distance
        assert float(torch.pdist(ends).min()) > 10 * far[-1]
    # Radius and size halve together, so what is left is a quarter.
    assert far[0] / far[1] == pytest.approx(4.0, rel=0.2)


def test_a_definite_hessian_has_one_member(digits_tanh: Problem) -> None:
    found = graphical_derivative(digits_tanh, perturbation(digits_tanh)).solution_set
    assert found.kernel_dimension == 0
    assert torch.equal(found.members(3, 1.0), found.nearest.expand(3, -1))
    shift = torch.ones_like(digits_tanh.weights)
    assert float(found.distance_to(found.nearest + shift)) == pytest.approx(digits_tanh.size**0.5)


def test_parallel_pieces_are_their_distance_apart(free: Problem) -> None:
    moved = graphical_derivative(free, perturbation(free)).solution_set
    still = graphical_derivative(free, torch.zeros_like(free.x)).solution_set
    kernels = moved.kernel_draws(6, 0.5, seed=1)
    assert still.distance == 0.0
    apart = pompeiu_hausdorff(still.nearest + kernels, moved.nearest + kernels)
    assert apart == pytest.approx(moved.distance, rel=1e-9)


def test_pompeiu_hausdorff_from_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        sizes = torch.randint(1, 7, (3,), generator=generator).tolist()
        a, b, c = (torch.randn(size, 3, generator=generator, dtype=torch.float64) for size in sizes)
        one_way = max(min(float((p - q).norm()) for q in b) for p in a)
        other_way = max(min(float((p - q).norm()) for q in a) for p in b)
        assert pompeiu_hausdorff(a, b) == pytest.approx(max(one_way, other_way), rel=1e-12)
        assert pompeiu_hausdorff(a, b) == pompeiu_hausdorff(b, a)
        assert pompeiu_hausdorff(a, a) == 0.0
        assert pompeiu_hausdorff(a, c) <= pompeiu_hausdorff(a, b) + pompeiu_hausdorff(b, c) + 1e-12


def test_what_does_not_fit_is_refused(free: Problem) -> None:
    found = graphical_derivative(free, perturbation(free)).solution_set
    for bad in (torch.zeros(3).double(), torch.zeros(free.size)):
        with pytest.raises(InputRefused, match="PA125"):
            found.member(bad)
        with pytest.raises(InputRefused, match="PA125"):
            found.distance_to(bad)
    with pytest.raises(UsageError, match="PA304"):
        found.members(0, 1.0)
    with pytest.raises(UsageError, match="PA304"):
        found.members(1, -1.0)
    for first, second in ((torch.zeros(0, 2), torch.zeros(1, 2)), (torch.zeros(2, 2), torch.zeros(2, 3))):
        with pytest.raises(InputRefused, match="PA128"):
            pompeiu_hausdorff(first, second)
