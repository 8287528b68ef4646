"""Membership: the residual at the target against closed forms and exhaustive search; where training really goes."""

from __future__ import annotations

import pytest
import torch
from conftest import digits_rows
from torch import nn

from poisonaudit import Problem, craft, fit
from poisonaudit.attack import Budget, Membership, TargetWeights, weights_along, weights_from_fine_tuning
from poisonaudit.attack.history import history_entry
from poisonaudit.errors import InputRefused, NumericalFailure, UsageError
from poisonaudit.operators import dense_hessian, dense_mixed


@pytest.fixture(scope="module")
def net() -> Problem:
    x, y = digits_rows(60)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10)).double()
    return fit(Problem(model, "cross_entropy", x, y, decay=1e-2)).problem


def one_weight(decay: float = 0.5) -> Problem:
    """`1/2 (w x - 1)^2 + decay/2 w^2` on one row x = 1: the solution is x / (x^2 + decay)."""
    model = nn.Linear(1, 1, bias=False).double()
    one = torch.ones(1, 1, dtype=torch.float64)
    return Problem(model, "half_squared", one, one, decay).at(torch.tensor([1 / (1 + decay)], dtype=torch.float64))


def test_a_target_that_a_poison_reaches_is_made_a_solution() -> None:
    problem = one_weight()
    moved = 1.2 / (1.2**2 + 0.5)
    poison = craft(problem, Membership(torch.tensor([moved]).double()), Budget(radius=0.5, choice=[0]), steps=20)
    # x / (x^2 + 1/2) = moved has two solutions, 1.2 and 0.5 / 1.2; the nearer one is inside the budget.
    assert float(poison.delta) == pytest.approx(0.2, abs=1e-6)
    facts = poison.predicted["membership"]
    assert facts["residual_ratio"] < 1e-6 and facts["drift"] < 1e-4 and facts["lowest_curvature"] > 0
    assert poison.predicted["movement"] == pytest.approx(1.0, abs=1e-4)
    assert "membership is not attraction" in poison.notes[0]


def test_the_certificate_is_the_best_that_first_order_allows() -> None:
    problem = one_weight()
    target = torch.tensor([0.2], dtype=torch.float64)
    poison = craft(problem, Membership(target), Budget(radius=0.1, choice=[0]), steps=3)
    # H v + B mu with H = 3/2 and B = 2 w x - y = 1/3: |mu| <= 0.1 leaves this much of it.
    v = float(target - problem.weights)
    least = min(abs(1.5 * v + (2 * float(problem.weights) - 1) * mu) for mu in (-0.1, 0.1)) / abs(1.5 * v)
    bound = poison.predicted["membership"]["first_order_lower_bound"]
    assert 0.98 * least <= bound <= least + 1e-12
    assert any("to first order" in note for note in poison.notes)


def test_the_residual_is_that_of_the_poisoned_problem_and_falls(net: Problem) -> None:
    target = weights_along(net, "random", 0.2, seed=1)
    poison = craft(net, Membership(target), Budget(radius=0.15, rows=20, box=(0.0, 1.0)), steps=4)
    before = net.at(target).gradient()
    after = poison.poisoned(net).at(target).gradient()
    ratio = float(after.norm() / before.norm())
    assert poison.predicted["membership"]["residual_ratio"] == pytest.approx(ratio, rel=1e-9)
    assert ratio < 0.95
    assert all(line.keys() == history_entry(0, 0.0, 0.0).keys() for line in poison.history)
    values = [line["retrained_objective"] for line in poison.history]
    assert values[0] == pytest.approx(0.5 * float(before.square().sum()), rel=1e-12)
    assert 0.5 * float(after.square().sum()) == pytest.approx(min(values), rel=1e-12)
    facts = poison.predicted["membership"]
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(poison.poisoned(net).at(target)))
    assert facts["lowest_curvature"] == pytest.approx(float(eigenvalues[0] / eigenvalues[-1]), rel=1e-6)
    started = fit(poison.poisoned(net).at(target), 1e-6).problem.weights
    offset = float((target - net.weights).norm())
    assert facts["drift"] == pytest.approx(float((started - target).norm()) / offset, rel=1e-6)


def test_the_first_order_optimum_is_that_of_a_dense_solver(net: Problem) -> None:
    from scipy.optimize import lsq_linear

    target, rows = weights_along(net, "random", 0.1, seed=2), [0, 7, 20]
    poison = craft(net, Membership(target), Budget(radius=0.3, choice=rows), steps=1)
    mixed = torch.cat(list(dense_mixed(net, torch.tensor(rows))), dim=1)
    image = dense_hessian(net) @ (target - net.weights)
    exact = lsq_linear(mixed.numpy(), -image.numpy(), bounds=(-0.3, 0.3), tol=1e-12)
    wanted = (2 * exact.cost) ** 0.5 / float(image.norm())
    facts = poison.predicted["membership"]
    assert facts["first_order_residual_ratio"] == pytest.approx(wanted, rel=1e-3)
    assert facts["first_order_lower_bound"] <= wanted * (1 + 1e-9)


def test_directions_are_eigenvectors_of_the_hessian(net: Problem) -> None:
    values, vectors = torch.linalg.eigh(dense_hessian(net))
    length = 0.1 * float(net.weights.norm())
    for name, index in [("flattest", int(values.abs().argmin())), ("steepest", int(values.abs().argmax()))]:
        moved = weights_along(net, name, 0.1) - net.weights
        assert float(moved.norm()) == pytest.approx(length, rel=1e-9)
        curvature = float(moved @ dense_hessian(net) @ moved) / length**2
        assert curvature == pytest.approx(float(values[index]), rel=5e-2)
    steep = weights_along(net, "steepest", 0.1) - net.weights
    assert abs(float(steep @ vectors[:, -1])) / length > 0.95
    random = weights_along(net, "random", 0.1, seed=4) - net.weights
    assert float(random.norm()) == pytest.approx(length, rel=1e-9)
    assert not torch.equal(random, weights_along(net, "random", 0.1, seed=5) - net.weights)


def test_the_flattest_direction_of_a_singular_hessian_lies_in_its_kernel() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    problem = Problem(model, "half_squared", torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 1).double())
    problem = problem.at(torch.tensor([0.5, 0.5], dtype=torch.float64))
    moved = weights_along(problem, "flattest", 0.5) - problem.weights
    assert float(moved.sum()) == pytest.approx(0.0, abs=1e-12) and float(moved.norm()) > 0.3


def test_a_fine_tuned_model_is_a_minimum_of_its_own_rows(net: Problem) -> None:
    x, y = net.x[:40], net.y[:40]
    target = weights_from_fine_tuning(net, x, y)
    other = Problem(net.module(), "cross_entropy", x, y, net.decay).at(target)
    assert float(other.gradient().norm()) < 1e-6
    poison = craft(net, TargetWeights(target, success_at=0.1), Budget(radius=0.3, rows=20, box=(0.0, 1.0)), steps=3)
    reached = fit(poison.poisoned(net)).problem.weights
    offset = target - net.weights
    assert float((reached - net.weights).dot(offset) / offset.dot(offset)) > 0.05


def test_bad_targets_are_refused_in_a_line(net: Problem) -> None:
    with pytest.raises(UsageError, match="direction"):
        weights_along(net, "upward", 0.1)  # type: ignore[arg-type]
    for length in (0.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="length of the direction") as error:
            weights_along(net, "random", length)
        assert error.value.code == "PA343"
    with pytest.raises(InputRefused, match="target weights are"):
        craft(net, Membership(net.weights[:-1]), Budget(radius=0.1, rows=1))
    with pytest.raises(UsageError, match="the model's own"):
        craft(net, Membership(net.weights), Budget(radius=0.1, rows=1))
    free = Problem(net.module(), "cross_entropy", net.x[:2], net.y[:2], 0.0)
    with pytest.raises(NumericalFailure, match="training on 2 other rows"):
        weights_from_fine_tuning(free, net.x[:2], net.y[:2], accepted=1e-30, tolerance=1e-30)


def test_a_target_that_is_a_solution_already_is_refused_and_options_that_do_not_apply(net: Problem) -> None:
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.tensor([[1.0, 2.0, 0.0], [0.5, -1.0, 0.0]], dtype=torch.float64)
    free = Problem(model, "half_squared", x, torch.zeros(2, 1, dtype=torch.float64), 0.0)
    free = free.at(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    target = Membership(torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64))
    with pytest.raises(UsageError, match="solve the clean problem already"):
        craft(free, target, Budget(radius=0.1, rows=1, choice="random"))
    away = Membership(weights_along(net, "random", 0.1))
    for given in ({"solutions": 2}, {"members": 1}, {"outer": "path"}, {"method": "corner"}):
        with pytest.raises(UsageError, match="do not apply"):
            craft(net, away, Budget(radius=0.1, rows=1), **given)


def test_weights_are_those_of_warm_retraining(net: Problem) -> None:
    poison = craft(net, Membership(weights_along(net, "random", 0.2)), Budget(radius=0.1, rows=5), steps=2)
    reached = fit(poison.poisoned(net), 1e-8).problem.weights
    torch.testing.assert_close(poison.weights, reached, rtol=1e-3, atol=1e-4)
    assert not torch.equal(poison.weights, net.weights)
