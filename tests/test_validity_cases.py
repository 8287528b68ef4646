"""Points where the solution map has no trustworthy number: each is flagged or refused, in every function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import LinearRows, digits_rows, mlp
from torch import Tensor, nn

from poisonaudit import (
    Problem,
    coderivative,
    fit,
    follow_path,
    graphical_derivative,
    lipschitz_modulus,
    row_moduli,
)
from poisonaudit.errors import UntrustedNumber
from poisonaudit.sensitivity.curvature import solver_for
from poisonaudit.sensitivity.kernel_response import kernel_response


class Saddle(nn.Module):
    """f(x) = w1 w2 x at w = 0: stationary for every target, H = [[0, -1], [-1, 0]] for target 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w[0] * self.w[1] * x[:, 0]


def separable() -> Problem:
    x = torch.tensor([[1.0, 0.2], [0.8, -0.1], [-1.0, 0.3], [-0.7, -0.2]], dtype=torch.float64)
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, 0.0], [-4.0, 0.0]]))
        model.bias.zero_()
    return Problem(model, "cross_entropy", x, torch.tensor([0, 0, 1, 1]))


def untrained() -> Problem:
    x, y = digits_rows(40)
    return Problem(mlp([64, 6, 10]), "cross_entropy", x, y, 1e-3)


def indefinite() -> Problem:
    return Problem(Saddle(), "half_squared", torch.ones(3, 1).double(), torch.ones(3).double())


def dead() -> Problem:
    x, y = digits_rows(60)
    model = mlp([64, 6, 10], nn.ReLU)
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    return fit(Problem(model, "cross_entropy", x, y)).problem


def duplicated() -> Problem:
    x = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    w = [1.0, 2.0, 0.5]
    return Problem(LinearRows(w), "half_squared", x, x @ torch.tensor(w, dtype=torch.float64))


def draw(problem: Problem, size: float = 1e-3) -> Tensor:
    """One row moved at random."""
    mu = torch.zeros_like(problem.x)
    generator = torch.Generator().manual_seed(3)
    mu[0] = size * torch.randn(problem.x[0].shape, generator=generator, dtype=torch.float64)
    return mu


BAD: dict[str, tuple[Callable[[], Problem], str]] = {
    "separable": (separable, "at infinity"),
    "untrained": (untrained, "not stationary"),
    "indefinite": (indefinite, "not a minimum"),
    "dead": (dead, "is dead"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_every_number_carries_the_reason(name: str, method: str) -> None:
    build, words = BAD[name]
    problem = build()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(problem.size, generator=generator, dtype=torch.float64)
    numbers: list[Any] = [
        graphical_derivative(problem, draw(problem), method=method),
        coderivative(problem, direction, method=method),
        lipschitz_modulus(problem, method=method),
    ]
    for number in numbers:
        assert not number.validity.ok
        assert any(words in reason for reason in number.validity.reasons), number.validity.reasons
    with pytest.warns(UntrustedNumber, match=words):
        row_moduli(problem, torch.tensor([0]), method=method)


@pytest.mark.parametrize("name", ["separable", "untrained"])
def test_a_path_from_nowhere_is_a_failure(name: str) -> None:
    path = follow_path(BAD[name][0](), draw(BAD[name][0]()))
    assert not path.converged and path.reason


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_duplicated_rows_that_part(method: str) -> None:
    problem = duplicated()
    mu = draw(problem)
    step = graphical_derivative(problem, mu, method=method)
    assert step.relative_residual < 1e-12 and step.phi is not None and step.phi < 1e-3
    assert not step.validity.ok and "rank of H changes" in step.validity.reasons[0]
    # The truth: the weights jump, many hundred times as far as the linear step says.
    moved = fit(problem.with_data(problem.x + mu)).problem
    assert float((moved.weights - problem.weights).norm()) > 100 * step.distance
    value = coderivative(problem, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), method=method)
    assert value.relative_residual < 1e-12 and not value.validity.ok
    modulus = lipschitz_modulus(problem, method=method)
    assert math.isinf(modulus.value) and not modulus.finite
    assert torch.isinf(row_moduli(problem, method=method)).all()


@pytest.mark.parametrize("size", [1e-2, 1e-5, 1e-8, 1e-12])
def test_the_verdict_depends_on_the_direction_alone(size: float) -> None:
    problem = duplicated()
    step = graphical_derivative(problem, size * draw(problem) / draw(problem).norm())
    assert not step.validity.ok and "rank of H changes" in step.validity.reasons[0]


def test_duplicated_rows_that_move_together_do_not_jump() -> None:
    problem = duplicated()
    mu = draw(problem)
    mu[1] = mu[0]
    step = graphical_derivative(problem, mu)
    assert step.validity.ok
    moved = fit(problem.with_data(problem.x + mu)).problem
    change = moved.weights - problem.weights
    assert float((change - step.displacement).norm()) < 5e-3 * float(change.norm())


def interpolating(activation: type[nn.Module], twice: bool = False) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(12, 1, generator=generator, dtype=torch.float64)
    if twice:
        x, y = torch.cat([x, x[:1]]), torch.cat([y, y[:1]])
    return fit(Problem(mlp([5, 20, 1], activation), "half_squared", x, y), tolerance=1e-12).problem


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.Identity])
def test_a_kernel_of_constant_rank_answers_with_the_third_power(activation: type[nn.Module]) -> None:
    problem = interpolating(activation)
    if activation is nn.Identity:
        # Two linear layers: a kernel that comes of the rescaling between them, at a residual that does not vanish.
        problem = fit(
            Problem(mlp([5, 3, 1], nn.Identity), "half_squared", problem.x, problem.y), tolerance=1e-12
        ).problem
    mu = draw(problem, 1e-2)
    step = graphical_derivative(problem, mu)
    found = kernel_response(problem, solver_for(problem), mu, step.displacement)
    assert step.kernel_dimension and found.exponent == pytest.approx(3.0, abs=0.05)
    assert found.reason == "" and step.validity.ok


def test_a_rank_that_changes_answers_with_the_second_power() -> None:
    problem = interpolating(nn.Tanh, twice=True)
    mu = draw(problem, 1e-2)
    step = graphical_derivative(problem, mu)
    found = kernel_response(problem, solver_for(problem), mu, step.displacement)
    assert found.exponent == pytest.approx(2.0, abs=0.05) and found.share > 100
    assert step.phi is not None and step.phi < 0.3 and not step.validity.ok


def one_row() -> Problem:
    x, y = digits_rows(1)
    return fit(Problem(mlp([64, 4, 10]), "cross_entropy", x, y, 1e-2)).problem


def one_class() -> Problem:
    x, y = digits_rows(60)
    return fit(Problem(mlp([64, 4, 10]), "cross_entropy", x[y == 3], y[y == 3], 1e-2)).problem


@pytest.mark.parametrize("build", [one_row, one_class])
def test_one_row_and_one_class_are_right(build: Callable[[], Problem]) -> None:
    problem = build()
    mu = draw(problem)
    step = graphical_derivative(problem, mu)
    change = fit(problem.with_data(problem.x + mu)).problem.weights - problem.weights
    assert step.validity.ok
    assert float((step.displacement - change).norm()) < 2e-2 * float(change.norm())
    modulus, rows = lipschitz_modulus(problem), row_moduli(problem)
    assert modulus.finite and modulus.validity.ok
    assert float(rows.max()) <= modulus.value * (1 + 1e-9)
    if problem.rows == 1:
        assert float(rows[0]) == pytest.approx(modulus.value, rel=1e-7)
    assert float(change.norm() / mu.norm()) <= modulus.value * 1.01


def test_one_class_without_decay_is_flagged() -> None:
    x, y = digits_rows(60)
    problem = fit(Problem(nn.Linear(64, 10).double(), "cross_entropy", x[y == 3], y[y == 3])).problem
    step = graphical_derivative(problem, draw(problem))
    assert any("at infinity" in reason for reason in step.validity.reasons)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"damping": 1e-2}, "damping 0.01"),
        ({"curvature": "gauss_newton"}, "gauss_newton"),
        ({"scaling": "paper"}, "paper"),
    ],
)
def test_what_is_not_the_derivative_by_choice_says_so(given: dict[str, Any], word: str) -> None:
    x, y = digits_rows(40)
    problem = fit(Problem(mlp([64, 4, 10]), "cross_entropy", x, y, decay=1e-2)).problem
    mu = torch.zeros_like(x)
    mu[:2] = 1e-4
    step = graphical_derivative(problem, mu, **given)
    (reason,) = [each for each in step.validity.reasons if "approximate by choice" in each]
    assert not step.validity.ok and word in reason
    assert graphical_derivative(problem, mu).validity.ok
    if "scaling" not in given:
        value = coderivative(problem, problem.weights, **given)
        assert not value.validity.ok and any(word in each for each in value.validity.reasons)
    # Where it changes nothing it is no reason: the squared loss at interpolation.
    exact = interpolating(nn.Tanh)
    if "curvature" in given:
        assert graphical_derivative(exact, 1e-6 * exact.x, **given).validity.ok


@pytest.mark.parametrize("given", [{"damping": 1.0}, {"curvature": "gauss_newton"}])
def test_a_saddle_is_one_whatever_matrix_is_solved_with(given: dict[str, Any]) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.w[0] * self.w[1] * x + self.w[2]

    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    saddle = Problem(Product(), "half_squared", x, torch.tensor([[0.5], [1.0], [1.5]], dtype=torch.float64))
    mu = torch.tensor([[0.1], [0.0], [0.0]], dtype=torch.float64)
    for verdict in (
        graphical_derivative(saddle, mu, **given).validity,
        coderivative(saddle, torch.ones(3, dtype=torch.float64), **given).validity,
    ):
        assert any("not a minimum" in reason for reason in verdict.reasons)
