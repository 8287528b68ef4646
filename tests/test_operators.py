"""Products against dense references built another way, and against finite differences."""

from __future__ import annotations

import pytest
import torch
from conftest import mlp
from torch import Tensor, nn

from poisonaudit.operators import dense_gauss_newton, dense_hessian, dense_mixed, linearise
from poisonaudit.operators.dense import dense_input_jacobian, dense_jacobian
from poisonaudit.problem import Problem


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    ).double()


def case(name: str) -> Problem:
    generator = torch.Generator().manual_seed(11)
    shape = (7, 1, 4, 4) if name == "conv" else (7, 5)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.arange(7) % 3
    model = {
        "linear": lambda: nn.Linear(5, 3).double(),
        "tanh": lambda: mlp([5, 6, 3]),
        "gelu": lambda: mlp([5, 6, 4, 3], nn.GELU),
        "relu": lambda: mlp([5, 6, 3], nn.ReLU),
        "conv": conv_net,
        "callable": lambda: mlp([5, 6, 3]),
        "squared": lambda: mlp([5, 6, 3]),
    }[name]()
    loss = {
        "squared": "half_squared",
        "callable": lambda outputs, y: (
            outputs.cosh().log().sum(1) + nn.functional.cross_entropy(outputs, y, reduction="none")
        ),
    }.get(name, "cross_entropy")
    return Problem(model, loss, x, labels, decay=0.03)


CASES = ["linear", "tanh", "gelu", "relu", "conv", "callable", "squared"]


def reference(problem: Problem) -> tuple[Tensor, Tensor]:
    """H and B by central differences of the gradient."""
    step, p = 1e-5, problem.size
    columns = []
    for unit in torch.eye(p, dtype=torch.float64):
        ahead, behind = (problem.gradient(problem.weights + sign * step * unit) for sign in (1, -1))
        columns.append((ahead - behind) / (2 * step))
    mixed = []
    for unit in torch.eye(problem.x.numel(), dtype=torch.float64):
        move = step * unit.view_as(problem.x)
        mixed.append((problem.gradient(x=problem.x + move) - problem.gradient(x=problem.x - move)) / (2 * step))
    return torch.stack(columns, dim=1), torch.stack(mixed, dim=1)


@pytest.mark.parametrize("name", CASES)
def test_products_equal_finite_differences(name: str) -> None:
    problem = case(name)
    hessian, mixed = reference(problem)
    generator = torch.Generator().manual_seed(1)
    u, v = torch.randn(2, problem.size, generator=generator, dtype=torch.float64)
    mu = torch.randn(problem.x.shape, generator=generator, dtype=torch.float64)
    kept = linearise(problem)
    assert torch.allclose(kept.gradient, problem.gradient(), atol=1e-14)
    assert torch.allclose(kept.hessian(v), hessian @ v, atol=1e-7)
    assert torch.allclose(kept.mixed(mu), mixed @ mu.reshape(-1), atol=1e-7)
    assert torch.allclose(kept.mixed_adjoint(u).reshape(-1), mixed.T @ u, atol=1e-7)
    both = kept.both_adjoint(u)
    assert torch.equal(both[0], kept.hessian(u)) and torch.equal(both[1], kept.mixed_adjoint(u))
    assert kept.products == 6
    assert torch.allclose(dense_hessian(problem), hessian, atol=1e-7)
    blocks = dense_mixed(problem, torch.arange(problem.rows))
    flat = blocks.permute(1, 0, 2).reshape(problem.size, -1)
    assert torch.allclose(flat, mixed, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_rows_part_and_adjointness(name: str) -> None:
    problem = case(name)
    rows = torch.tensor([5, 1])
    generator = torch.Generator().manual_seed(2)
    u = torch.randn(problem.size, generator=generator, dtype=torch.float64)
    mu = torch.zeros_like(problem.x)
    mu[rows] = torch.randn(mu[rows].shape, generator=generator, dtype=torch.float64)
    part, whole = linearise(problem, rows), linearise(problem)
    assert torch.allclose(part.mixed(mu[rows]), whole.mixed(mu), atol=1e-13)
    assert torch.allclose(part.mixed_adjoint(u), whole.mixed_adjoint(u)[rows], atol=1e-13)
    assert float(whole.mixed(mu).dot(u)) == pytest.approx(float((mu * whole.mixed_adjoint(u)).sum()), abs=1e-12)
    assert linearise(problem, rows) is part


@pytest.mark.parametrize("name", CASES)
def test_gauss_newton_and_jacobian(name: str) -> None:
    problem = case(name)
    generator = torch.Generator().manual_seed(3)
    v = torch.randn(problem.size, generator=generator, dtype=torch.float64)
    kept = linearise(problem)
    jacobian = dense_jacobian(problem)
    assert torch.allclose(kept.push_forward(v), jacobian @ v, atol=1e-11)
    weight = torch.randn(kept.push_forward(v).shape, generator=generator, dtype=torch.float64)
    assert torch.allclose(kept.pull_back(weight), torch.einsum("ncp,nc->p", jacobian, weight), atol=1e-11)
    dense = dense_gauss_newton(problem)
    assert torch.allclose(kept.gauss_newton(v), dense @ v, atol=1e-11)
    outputs = problem.outputs().detach()
    expected = problem.decay * torch.eye(problem.size, dtype=torch.float64)
    for row in range(problem.rows):
        curvature = torch.autograd.functional.hessian(
            lambda o, row=row: problem.loss_per_row(o[None], problem.y[row : row + 1])[0], outputs[row]
        )
        expected = expected + jacobian[row].T @ curvature @ jacobian[row] / problem.rows
    assert torch.allclose(dense, expected, atol=1e-11)


def test_linear_model_gauss_newton_is_the_hessian() -> None:
    problem = case("linear")
    assert torch.allclose(dense_gauss_newton(problem), dense_hessian(problem), atol=1e-12)


def test_float32_stays_float32() -> None:
    problem = case("tanh")
    single = Problem(problem.module().float(), "cross_entropy", problem.x.float(), problem.y, decay=0.03)
    kept = linearise(single)
    assert kept.hessian(torch.ones(single.size)).dtype == torch.float32
    assert torch.allclose(dense_hessian(single).double(), dense_hessian(problem), atol=1e-5)


def test_layers_without_a_batching_rule_are_done_row_by_row() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(2, 3, batch_first=True)
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.layer(x)[0][:, -1])
            return out

    torch.manual_seed(0)
    x = torch.randn(5, 4, 2, dtype=torch.float64)
    problem = Problem(Recurrent().double(), "cross_entropy", x, torch.arange(5) % 2, 0.1)
    kept, v = linearise(problem), torch.randn(problem.size, dtype=torch.float64)
    mu = torch.randn_like(x)
    mixed = dense_mixed(problem, torch.arange(5))
    assert torch.allclose(torch.einsum("npd,nd->p", mixed, mu.flatten(1)), kept.mixed(mu), atol=1e-12)
    assert torch.allclose(dense_jacobian(problem) @ v, kept.push_forward(v), atol=1e-12)
    moved = torch.einsum("ncd,nd->nc", dense_input_jacobian(problem), mu.flatten(1))
    step = 1e-6
    change = (problem.outputs(x=x + step * mu) - problem.outputs(x=x - step * mu)) / (2 * step)
    assert torch.allclose(moved, change.detach(), atol=1e-8)
