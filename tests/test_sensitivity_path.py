"""Path following against closed forms, retraining, and where it has to report failure."""

from __future__ import annotations

import pytest
import torch
from conftest import mlp
from torch import Tensor, nn

from benchmarks.validity_flag import cases, scores, victim
from poisonaudit import Problem, fit, follow_path, graphical_derivative


class Cubic(nn.Module):
    """Outputs the objective itself, w^3 / 3 - x w: minima w = sqrt(x), which meet the maxima and end at x = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w**3 / 3 - x * self.w


def value(outputs: Tensor, y: Tensor) -> Tensor:
    return outputs.sum(1)


def cubic() -> Problem:
    return Problem(Cubic(), value, torch.ones(1, 1, dtype=torch.float64), torch.zeros(1))


@pytest.mark.parametrize("end", [4.0, 0.3, 0.01])
def test_a_branch_in_closed_form(end: float) -> None:
    path = follow_path(cubic(), torch.tensor([[end - 1.0]], dtype=torch.float64))
    assert path.converged and path.fold_at is None
    assert float(path.weights[0]) == pytest.approx(end**0.5, rel=1e-7)


def test_a_fold_is_named_where_it_lies() -> None:
    path = follow_path(cubic(), torch.tensor([[-1.5]], dtype=torch.float64))
    assert not path.converged and "folds" in path.reason
    assert path.fold_at == pytest.approx(2 / 3, abs=0.05)
    # The last point is still on the branch.
    assert float(path.weights[0]) == pytest.approx((1 - 1.5 * path.fraction) ** 0.5, rel=1e-6)


def ten_rows(problem: Problem, share: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(problem.rows, generator=generator)[:10]
    draw = torch.randn(10, problem.x[0].numel(), generator=generator, dtype=torch.float64)
    mu = torch.zeros_like(problem.x)
    lengths = share * problem.x[rows].norm(dim=1, keepdim=True)
    mu[rows] = lengths * draw / draw.norm(dim=1, keepdim=True)
    return mu


VICTIMS = [
    ("digits", "linear", 1e-3),
    ("digits", "tanh", 1e-2),
    ("digits", "cnn", 1e-2),
    ("breast_cancer", "linear", 1e-2),
    ("breast_cancer", "tanh", 1e-2),
    ("wine", "linear", 1e-3),
    ("wine", "silu", 1e-2),
]


@pytest.mark.parametrize("name", VICTIMS, ids=lambda name: "-".join(map(str, name)))
def test_one_step_and_the_path_against_retraining(name: tuple[str, str, float]) -> None:
    """Cosine, first-order decay of one step's error, and a path that lands where retraining does."""
    problem = victim(*name)
    whole = ten_rows(problem, 0.05, seed=4)

    def truth(mu: Tensor) -> Tensor:
        again = fit(problem.with_data(problem.x + mu), tolerance=1e-11)
        assert again.relative_gradient < 1e-9, again.reason
        return again.problem.weights - problem.weights

    errors = []
    for scale in (1 / 25, 1 / 50):
        change = truth(scale * whole)
        step = graphical_derivative(problem, scale * whole).displacement
        assert float(nn.functional.cosine_similarity(step, change, dim=0)) >= 0.999
        errors.append(float((step - change).norm() / change.norm()))
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.2)
    change, path = truth(whole), follow_path(problem, whole)
    assert path.converged, path.reason
    assert float((path.weights - problem.weights - change).norm() / change.norm()) < 0.01


def test_the_path_holds_where_one_step_is_forty_percent_off() -> None:
    problem = victim("digits", "linear", 1e-3)
    generator = torch.Generator().manual_seed(0)
    x = problem.x.clone().requires_grad_(True)
    (uphill,) = torch.autograd.grad(problem.losses(x=x).sum(), x)
    rows = torch.randperm(problem.rows, generator=generator)[:10]
    mu = torch.zeros_like(problem.x)
    lengths = 0.05 * problem.x[rows].norm(dim=1, keepdim=True)
    mu[rows] = lengths * uphill[rows] / uphill[rows].norm(dim=1, keepdim=True)
    mu = 3.0 * mu
    change = fit(problem.with_data(problem.x + mu), tolerance=1e-11).problem.weights - problem.weights
    step, path = graphical_derivative(problem, mu), follow_path(problem, mu)
    assert float((step.displacement - change).norm() / change.norm()) > 0.4 and not step.validity.ok
    assert path.converged and float((path.weights - problem.weights - change).norm() / change.norm()) < 0.01


def interpolating(rows: int = 14) -> Problem:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    fitted = fit(Problem(mlp([5, 20, 1]), "half_squared", x, y), tolerance=1e-13)
    assert fitted.converged
    return fitted.problem


def test_an_undecayed_path_does_not_drift_along_the_kernel() -> None:
    """Four sub-steps end where a hundred do: corrections have no part along the solution set."""
    problem = interpolating()
    mu = ten_rows(problem, 0.05, seed=1)
    coarse, fine = follow_path(problem, mu), follow_path(problem, mu, steps=100)
    assert coarse.converged and fine.converged
    moved = fine.weights - problem.weights
    assert float((coarse.weights - fine.weights).norm() / moved.norm()) < 0.01
    assert float(coarse.problem.objective()) < 1e-16


def test_relu_paths_count_activation_changes() -> None:
    problem = Problem(
        nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double(),
        "half_squared",
        torch.tensor([[1.0], [2.0]], dtype=torch.float64),
        torch.tensor([[1.0], [2.0]], dtype=torch.float64),
        decay=1e-3,
    ).at(torch.tensor([1.0, 1.0], dtype=torch.float64))
    problem = fit(problem).problem
    still = follow_path(problem, torch.tensor([[0.1], [0.1]], dtype=torch.float64))
    assert still.converged and still.activation_changes == 0
    across = follow_path(problem, torch.tensor([[-1.2], [0.0]], dtype=torch.float64))
    assert across.activation_changes == 1 or not across.converged


def test_a_lost_path_says_whether_one_step_is_nearer() -> None:
    problem = cubic()
    mu = torch.tensor([[-1.5]], dtype=torch.float64)
    path = follow_path(problem, mu)
    step = graphical_derivative(problem, mu)
    moved = problem.with_data(problem.x + mu)
    gradients = [float(moved.gradient(w).norm()) for w in (problem.weights + step.displacement, path.weights)]
    assert ("one linear step leaves the smaller gradient" in path.reason) == (gradients[0] < gradients[1])


def test_the_validity_flag_on_a_few_cases() -> None:
    found = []
    for index, name in enumerate([("wine", "linear", 1e-3), ("breast_cancer", "tanh", 1e-2), ("wine", "silu", 1e-2)]):
        found += list(cases(victim(*name), 12, seed=20 + index))
    result = scores(found)
    assert result["cases"] == 36 and result["recall"] >= 0.8 and result["precision"] >= 0.6
    for case in found:
        # The radius is where phi would reach its limit: flagged for phi means beyond it.
        if case["phi"] is not None:
            assert (case["phi"] > 0.3) == (case["length"] > case["trust_radius"])


@pytest.mark.soak
def test_the_validity_flag_on_240_cases() -> None:
    from benchmarks.validity_flag import CASES, VICTIMS

    found = []
    for index, name in enumerate(VICTIMS):
        found += list(cases(victim(*name), CASES, seed=index))
    result = scores(found)
    assert result["cases"] >= 200 and result["precision"] >= 0.8 and result["recall"] >= 0.8
