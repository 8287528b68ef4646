"""Projected steps along the damped coderivative: each part against dense algebra, the whole against retraining."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import digits_rows
from torch import Tensor, nn

from poisonaudit import Problem, craft, fit
from poisonaudit.attack import Budget, FlipPrediction
from poisonaudit.attack import steps as module
from poisonaudit.attack.crafting import _task
from poisonaudit.attack.poison import embed
from poisonaudit.attack.steps import Task, advance, slope_in_inputs, start_of
from poisonaudit.errors import UsageError
from poisonaudit.operators import dense_hessian, dense_mixed

DAMPING = 1e-2


@pytest.fixture(scope="module")
def net() -> Problem:
    x, y = digits_rows(80)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10)).double()
    return fit(Problem(model, "cross_entropy", x, y, decay=1e-3)).problem


def flip(problem: Problem) -> FlipPrediction:
    return FlipPrediction(problem.x[3] * 0.9, int(problem.y[3] + 1) % 10)


def task_of(net: Problem, radius: float) -> Task:
    budget = Budget(radius=radius, rows=8, box=(0.0, 1.0))
    return _task(net, flip(net), budget, 0, "pgd", "retrain", 1, 0, "mean", None, DAMPING, 1e-9, None, 1.0, None)[0]


def damped(net: Problem) -> Tensor:
    hessian = dense_hessian(net)
    largest = torch.linalg.eigvalsh(hessian)[-1]
    return hessian + DAMPING * largest * torch.eye(net.size, dtype=torch.float64)


@pytest.mark.parametrize("by_products", [False, True])
def test_slopes_are_those_of_the_damped_matrix(
    by_products: bool, net: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FEW_WEIGHTS", 0 if by_products else 700)
    monkeypatch.setattr(module, "_ACCURACY", 1e-9)
    goal = flip(net).bind(net)
    slope, _ = slope_in_inputs([net], [goal], "mean", DAMPING)
    adjoint = torch.linalg.solve(damped(net), -goal.gradient(net.weights))
    exact = torch.stack([block.T @ adjoint for block in dense_mixed(net, torch.arange(net.rows))])
    torch.testing.assert_close(slope, exact, rtol=1e-4, atol=1e-6 * float(exact.abs().max()))


def test_phi_of_a_damped_step_leaves_the_damping_itself_out(net: Problem) -> None:
    task = task_of(net, 0.1)
    first = start_of(task)
    delta = task.allowed.best_linear(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).double())
    trial = advance(task, first, delta)
    change = embed(net, task.rows, delta)
    matrix = damped(net)
    mixed = sum(block @ change[row] for row, block in enumerate(dense_mixed(net, torch.arange(net.rows))))
    step = -torch.linalg.solve(matrix, mixed)
    # What the linear model leaves out: R(x + mu, w + v) - R(x, w) - H v - B mu.
    beyond = net.gradient(net.weights + step, net.x + change) - net.gradient() - dense_hessian(net) @ step - mixed
    exact = float(torch.linalg.solve(matrix, beyond).norm() / step.norm())
    assert trial.phi == pytest.approx(exact, rel=2e-2)
    assert trial.predicted == pytest.approx(task.goals[0].value(net.weights + step), rel=1e-4)
    reached = fit(net.with_data(net.x + change), 1e-10).problem.weights
    assert trial.point.value == pytest.approx(task.goals[0].value(reached), abs=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_moves_are_steepest_in_the_sets_own_norm(norm: str, net: Problem) -> None:
    scale = torch.linspace(0.5, 2.0, 64).double()
    allowed = Budget(radius=0.3, rows=2, norm=norm, scale=scale, immutable=[0, 5], box=(0.0, 1.0)).around(net.x[:2])
    slope = torch.randn(2, 64, generator=torch.Generator().manual_seed(1)).double()
    move = allowed.step_along(slope, 0.4)
    assert not bool(move[:, [0, 5]].any())
    lengths = {"linf": torch.inf, "l2": 2, "l1": 1}
    in_units = (move / scale).norm(p=lengths[norm], dim=1)
    torch.testing.assert_close(in_units, torch.full((2,), 0.12, dtype=torch.float64))
    # The dual norm of what may move says how much any move of that length can gain.
    free = slope * scale
    free[:, [0, 5]] = 0
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}
    torch.testing.assert_close((slope * move).sum(1), 0.12 * free.norm(p=dual[norm], dim=1))


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_crafted_steps_stay_inside_and_beat_a_random_corner(norm: str, net: Problem) -> None:
    radius = 1.0 if norm == "l2" else 0.15
    budget = Budget(radius=radius, rows=8, norm=norm, entries=20 if norm == "l0" else None, box=(0.0, 1.0))
    poison = craft(net, flip(net), budget, steps=6)
    allowed = budget.around(net.x[poison.rows])
    assert allowed.violation(poison.delta) < 1e-9
    goal = flip(net).bind(net)
    reached = goal.value(fit(poison.poisoned(net), 1e-8).problem.weights)
    random = allowed.best_linear(torch.randn(8, 64, generator=torch.Generator().manual_seed(2)).double())
    control = goal.value(fit(net.with_data(net.x + embed(net, poison.rows, random))).problem.weights)
    clean = goal.value(net.weights)
    assert clean - reached > 2 * max(clean - control, 0.0) and reached < clean - 0.5
    assert min(line["retrained_objective"] for line in poison.history) <= reached + 1e-3


def test_a_single_step_may_use_the_whole_radius(net: Problem) -> None:
    poison = craft(net, flip(net), Budget(radius=0.1, rows=4, box=(-1.0, 2.0)), steps=1)
    assert float(poison.delta.abs().max()) == pytest.approx(0.1)


def test_damping_below_zero_is_refused(net: Problem) -> None:
    for damping in (-1e-3, math.nan, math.inf):
        with pytest.raises(UsageError, match="damping is") as error:
            craft(net, flip(net), Budget(radius=0.1, rows=1), damping=damping)
        assert error.value.code == "PA367"


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_all_entries_that_the_budget_allows_are_used(norm: str, net: Problem) -> None:
    radius, entries = (4.0, None) if norm == "l1" else (0.3, 12)
    budget = Budget(radius=radius, rows=4, norm=norm, entries=entries, box=(0.0, 1.0))
    poison = craft(net, flip(net), budget, steps=6)
    moved = (poison.delta.abs() > 1e-9).sum(1)
    assert int(moved.min()) >= (12 if norm == "l0" else 5)
    assert budget.around(net.x[poison.rows]).used(poison.delta) > 0.85
