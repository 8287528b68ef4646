"""Displacements, coderivatives and moduli against dense float64 references built with torch.func alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from conftest import digits_rows, mlp
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev

from poisonaudit import (
    Problem,
    coderivative,
    fit,
    graphical_derivative,
    lipschitz_modulus,
    row_moduli,
)


class Residual(nn.Module):
    """A convolutional net with batch norm and one skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.inner = nn.Conv2d(3, 3, 3, padding=1)
        self.activation = nn.Tanh()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.stem(x)))
        x = x + self.activation(self.inner(x))
        return self.head(self.flatten(self.pool(x)))


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def settled(model: nn.Module) -> nn.Module:
    """Batch norm with statistics that matter, then eval mode."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.3 * torch.randn(module.num_features, generator=generator)
            module.running_var = 0.5 + torch.rand(module.num_features, generator=generator)
    return model.double().eval()


def victim(name: str) -> Problem:
    x, y = digits_rows(60)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if name == "linear":
            model: nn.Module = nn.Linear(64, 10).double()
        elif name == "mlp":
            model = mlp([64, 6, 10])
        else:
            model, x = settled(conv_net() if name == "cnn" else Residual()), x.view(-1, 1, 8, 8)
    fitted = fit(Problem(model, "cross_entropy", x, y, decay=1e-2), tolerance=1e-11)
    assert fitted.relative_gradient < 1e-9, fitted.reason
    return fitted.problem


@dataclass(frozen=True)
class Reference:
    """H and B as dense matrices, made by torch.func from the objective alone."""

    problem: Problem
    hessian: Tensor
    mixed: Tensor  # (p, n, d)

    def inverse(self, rhs: Tensor) -> Tensor:
        return torch.linalg.solve(self.hessian, rhs)


NAMES = ["linear", "mlp", "cnn", "residual"]
METHODS = ["dense", "lanczos"]


@pytest.fixture(scope="module", params=NAMES)
def reference(request: pytest.FixtureRequest) -> Reference:
    problem = victim(request.param)
    model, shapes, names = problem.module(), problem.shapes, problem.names

    def objective(weights: Tensor, x: Tensor) -> Tensor:
        parts = torch.split(weights, [shape.numel() for shape in shapes])
        named = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        loss = nn.functional.cross_entropy(functional_call(model, named, (x,)), problem.y)
        return loss + 0.5 * problem.decay * weights @ weights

    dense = hessian(objective)(problem.weights, problem.x).detach()
    # d R / d x as the transpose of d (d J / d x) / d w: one backward pass an input entry.
    mixed = jacrev(grad(objective, argnums=1))(problem.weights, problem.x).detach()
    return Reference(problem, dense, mixed.reshape(problem.rows, -1, problem.size).permute(2, 0, 1))


def draw(problem: Problem, rows: list[int], seed: int) -> Tensor:
    mu = torch.zeros_like(problem.x)
    generator = torch.Generator().manual_seed(seed)
    mu[rows] = 1e-3 * torch.randn(mu[rows].shape, generator=generator, dtype=torch.float64)
    return mu


@pytest.mark.parametrize("method", METHODS)
def test_displacement_and_coderivative(reference: Reference, method: str) -> None:
    problem = reference.problem
    mu = draw(problem, [2, 17, 40], 1)
    exact = -reference.inverse(reference.mixed.reshape(problem.size, -1) @ mu.reshape(-1))
    found = graphical_derivative(problem, mu, method=method)
    assert float((found.displacement - exact).norm() / exact.norm()) < 1e-7
    assert found.relative_residual < 1e-8 and found.validity.ok, found.validity.reasons
    p = torch.randn(problem.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pulled = torch.einsum("pnd,p->nd", reference.mixed, -reference.inverse(p))
    adjoint = coderivative(problem, p, method=method)
    assert float((adjoint.value.reshape(pulled.shape) - pulled).norm() / pulled.norm()) < 1e-7
    # <p, DF(mu)> = <D*F(p), mu>: the two derivatives are adjoint to each other.
    assert float(p @ found.displacement) == pytest.approx(float((adjoint.value * mu).sum()), rel=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_joint_and_row_moduli(reference: Reference, method: str) -> None:
    problem, rows = reference.problem, [1, 8, 33]
    moved = reference.inverse(reference.mixed[:, rows].reshape(problem.size, -1))
    exact = float(torch.linalg.matrix_norm(moved, 2))
    found = lipschitz_modulus(problem, torch.tensor(rows), method=method)
    assert found.value == pytest.approx(exact, rel=1e-7)
    assert found.lower <= exact * (1 + 1e-7) and exact <= found.upper * (1 + 1e-7)
    reached = moved @ found.direction[rows].reshape(-1)
    assert float(reached.norm()) == pytest.approx(exact, rel=1e-7)
    each = moved.reshape(problem.size, len(rows), -1)
    per_row = [float(torch.linalg.matrix_norm(each[:, k], 2)) for k in range(len(rows))]
    assert row_moduli(problem, torch.tensor(rows), method=method).tolist() == pytest.approx(per_row, rel=1e-7)


def test_all_row_moduli_and_the_joint_one(reference: Reference) -> None:
    problem = reference.problem
    moved = reference.inverse(reference.mixed.reshape(problem.size, -1)).reshape(reference.mixed.shape)
    exact = [float(torch.linalg.matrix_norm(moved[:, k], 2)) for k in range(problem.rows)]
    found = row_moduli(problem)
    assert found.tolist() == pytest.approx(exact, rel=1e-7)
    joint = lipschitz_modulus(problem)
    assert joint.value == pytest.approx(float(torch.linalg.matrix_norm(moved.flatten(1), 2)), rel=1e-7)
    assert float(found.max()) <= joint.value * (1 + 1e-9) <= float(found.square().sum().sqrt()) * (1 + 2e-9)
    assert joint.form == "weights" and "half_squared" in joint.details["why_not_samples"]


def test_sampled_displacements_stay_below_the_modulus(reference: Reference) -> None:
    """The law the modulus stands for, on retrained models: |dw| <= kappa |mu| up to the second-order remainder."""
    problem = reference.problem
    kappa = lipschitz_modulus(problem)
    length = 1e-3 * float(problem.x.flatten(1).norm(dim=1).mean())
    for seed in range(3):
        mu = torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        mu = length * (kappa.direction if seed == 0 else mu / mu.norm())
        retrained = fit(problem.with_data(problem.x + mu), tolerance=1e-11).problem
        ratio = float((retrained.weights - problem.weights).norm()) / length
        phi = graphical_derivative(problem, mu).phi
        assert phi is not None and ratio <= kappa.value * (1 + 2 * phi + 1e-6)
        if seed == 0:
            assert ratio == pytest.approx(kappa.value, rel=2 * phi + 1e-6)
