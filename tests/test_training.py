"""Fit: reaches its tolerance, repeats bit for bit, and says when it did not converge."""

from __future__ import annotations

import pytest
import torch
from conftest import digits_rows, mlp
from torch import nn

from poisonaudit import Problem, fit, follow_path, graphical_derivative
from poisonaudit.errors import UsageError
from poisonaudit.operators import dense_hessian
from poisonaudit.training import initialise, relative_gradient


def problem(activation: type[nn.Module] = nn.Tanh, rows: int = 80) -> Problem:
    x, y = digits_rows(rows)
    return Problem(mlp([64, 6, 10], activation), "cross_entropy", x, y, decay=1e-2)


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_reaches_a_tight_minimum(method: str) -> None:
    fitted = fit(problem(), method=method, start="fresh", seed=3)
    assert fitted.converged and fitted.relative_gradient <= 1e-10
    at = fitted.problem
    spectrum = torch.linalg.eigvalsh(dense_hessian(at))
    exact = float(at.gradient().norm() / (spectrum[-1] * at.weights.norm()))
    assert exact <= 1.05e-10
    assert float(spectrum[0]) > 0


def test_repeats_bit_for_bit_and_depends_on_the_seed() -> None:
    first, second = (fit(problem(), start="fresh", seed=1).problem.weights for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, fit(problem(), start="fresh", seed=2).problem.weights)
    state = torch.get_rng_state()
    initialise(problem(), 5)
    assert torch.equal(state, torch.get_rng_state())


def test_warm_start_stays_near_and_does_not_touch_its_problem() -> None:
    at = fit(problem(), start="fresh").problem
    weights = at.weights.clone()
    mu = 1e-3 * torch.ones_like(at.x)
    moved = fit(at.with_data(at.x + mu))
    assert moved.converged
    assert float((moved.problem.weights - weights).norm()) < 0.1 * float(weights.norm())
    assert torch.equal(at.weights, weights)


def test_relative_gradient_against_the_dense_spectrum() -> None:
    at = problem()
    largest = float(torch.linalg.eigvalsh(dense_hessian(at))[-1])
    expected = float(at.gradient().norm()) / (largest * float(at.weights.norm()))
    assert relative_gradient(at) == pytest.approx(expected, rel=1e-3)


def test_says_when_it_did_not_converge() -> None:
    """A minimum on a kink: J = mean |x w - y| style hinge, whose gradient does not vanish there."""

    class Hinge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.4], dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.w - x) - 0.3 * self.w

    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    hinge = Problem(Hinge(), lambda outputs, y: outputs + 0.0 * y, x, torch.zeros(2, dtype=torch.float64))
    fitted = fit(hinge, max_steps=50)
    assert not fitted.converged
    assert fitted.relative_gradient > 1e-6
    assert "kink" in fitted.reason or "Newton steps" in fitted.reason


def test_separable_undecayed_cross_entropy_is_flagged() -> None:

    x, y = digits_rows(40)
    at = fit(Problem(mlp([64, 12, 10]), "cross_entropy", x, y), max_steps=200).problem
    mu = torch.zeros_like(x)
    mu[0] = 1e-3
    verdict = graphical_derivative(at, mu).validity
    assert not verdict.ok and any("infinity" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("decay", [1e4, 1e8])
def test_a_decay_that_leaves_no_gradient_is_told_as_such(decay: float) -> None:
    """One L-BFGS round ends where the gradient is exactly 0; its scale is not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(45, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (45,), generator=generator)
    told: list[str] = []
    strong = Problem(mlp([3, 3]), "cross_entropy", x, y, decay)
    fitted = fit(strong, start="fresh", progress=lambda message, _: told.append(message))
    assert fitted.converged and float(fitted.problem.weights.norm()) < 1.0 / decay
    assert told[0].startswith("L-BFGS: 50 iterations, relative gradient") and "inf" not in told[0]


def test_zero_weights_have_no_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to divide by where the figure is infinite."""
    monkeypatch.setattr("poisonaudit.training.relative_gradient", lambda at: float("inf"))
    told: list[str] = []
    fit(problem(), max_steps=50, progress=lambda message, _: told.append(message))
    assert told[0] == "L-BFGS: 50 iterations, relative gradient inf"


def test_bad_arguments() -> None:
    with pytest.raises(UsageError, match="PA304"):
        fit(problem(), tolerance=0.0)
    with pytest.raises(UsageError, match="PA304"):
        fit(problem(), method="sgd")  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
def test_warm_training_stays_near_on_a_manifold_of_solutions(activation: type[nn.Module]) -> None:
    """Undecayed and interpolating: the point reached is about as near as the nearest solution."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    at = fit(Problem(mlp([5, 30, 1], activation), "half_squared", x, torch.sin(x.sum(1, keepdim=True)))).problem
    draw = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    for size in (1e-3, 1e-2):
        mu = size * draw
        predicted = graphical_derivative(at, mu)
        moved = fit(at.with_data(x + mu))
        assert moved.converged
        distance = float((moved.problem.weights - at.weights).norm())
        assert distance == pytest.approx(predicted.distance, rel=0.15)


def test_leaves_a_saddle() -> None:
    """All weights zero is stationary up to the output biases, and no minimum."""
    x, y = digits_rows(80)
    model = mlp([64, 6, 10])
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    fitted = fit(Problem(model, "cross_entropy", x, y, decay=1e-3))
    assert fitted.converged
    assert float(torch.linalg.eigvalsh(dense_hessian(fitted.problem))[0]) > 0
    assert float(fitted.problem.objective()) < 0.5


def test_single_precision_asks_for_what_it_can_reach() -> None:
    at = problem()
    single = Problem(at.module().float(), "cross_entropy", at.x.float(), at.y, decay=1e-2)
    fitted = fit(single)
    assert fitted.converged and fitted.problem.dtype == torch.float32
    assert fitted.relative_gradient <= 1e-6


def test_training_does_not_depend_on_what_ran_before() -> None:
    at = fit(problem()).problem
    mu = 1e-2 * torch.ones_like(at.x)
    fresh = fit(at.at(at.weights).with_data(at.x + mu)).problem.weights
    graphical_derivative(at, mu)
    follow_path(at, mu)
    fit(at)
    assert torch.equal(fresh, fit(at.with_data(at.x + mu)).problem.weights)


@pytest.mark.parametrize(("decay", "loss"), [(1e-3, "cross_entropy"), (1e-2, "half_squared")])
def test_fits_by_products_only(monkeypatch: pytest.MonkeyPatch, decay: float, loss: str) -> None:
    """Beyond the dense limit Newton steps come from Krylov spaces; they reach minima too, past saddles."""
    monkeypatch.setattr("poisonaudit.newton.DENSE_LIMIT", 0)
    x, y = digits_rows(80)
    given = Problem(mlp([64, 12, 12, 10]), loss, x, y, decay)
    fitted = fit(given, tolerance=1e-10)
    assert fitted.converged, fitted.reason
    values = torch.linalg.eigvalsh(dense_hessian(fitted.problem))
    assert float(values[0]) >= -1e-6 * float(values[-1])
    # The zero vector of a decayed problem is a saddle where it is stationary; the fit left it.
    assert float(fitted.problem.objective()) < 0.9 * float(given.at(0 * given.weights).objective())


@pytest.mark.parametrize("limit", [1, 150, 400])
def test_a_spent_budget_is_said_and_kept_nearly(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = digits_rows(40)
    start = Problem(mlp([64, 8, 10], seed=5), "cross_entropy", x, y, decay=1e-3)
    monkeypatch.setattr("poisonaudit.newton.DENSE_LIMIT", 0)
    counted: list[int] = []
    gradient_of = Problem.objective

    def counting(*given: object, **named: object) -> object:
        counted.append(1)
        return gradient_of(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Problem, "objective", counting)
    found = fit(start, 1e-12, max_gradients=limit)
    assert not found.converged and "budget" in found.reason
    # A round of L-BFGS or the largest curvature that the polish begins with may go over it.
    assert found.gradients <= limit + 130 and len(counted) <= limit + 130
    assert float(found.problem.objective()) < float(start.objective())
