from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from poisonaudit.attack import (
    Budget,
    EstimatedMap,
    FlipPrediction,
    TargetWeights,
    ValidationLoss,
    adjoint_gains,
    choose_rows,
    minimise_estimate,
)
from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem
from poisonaudit.training import fit


@pytest.fixture(scope="module")
def problem():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(40, 5, generator=rng, dtype=torch.float64)
    y = (x @ torch.randn(5, 3, generator=rng, dtype=torch.float64)).argmax(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return fit(Problem(model, "cross_entropy", x, y, 1e-2)).problem


@pytest.fixture(scope="module")
def dense(problem):
    """H and B from automatic differentiation of the whole gradient, without the package's operators."""

    def gradient(weights, x):
        (found,) = torch.autograd.grad(problem.objective(weights, x), weights, create_graph=True)
        return found

    weights = problem.weights.clone().requires_grad_(True)
    hessian = torch.autograd.functional.jacobian(lambda w: gradient(w, problem.x), weights)
    mixed = torch.autograd.functional.jacobian(lambda x: gradient(weights, x), problem.x)
    return hessian, mixed


ROWS = torch.tensor([2, 5, 11, 30])


@pytest.fixture
def model(problem):
    return EstimatedMap(problem, ROWS)


@pytest.fixture(scope="module")
def target(problem):
    rng = torch.Generator().manual_seed(3)
    return TargetWeights(problem.weights + torch.randn(problem.size, generator=rng, dtype=torch.float64)).bind(problem)


NOTHING = torch.zeros(4, 5, dtype=torch.float64)


def test_step_and_adjoint_equal_the_dense_matrices(problem, dense, model):
    hessian, mixed = dense
    matrix = -torch.linalg.solve(hessian, mixed[:, ROWS].flatten(1))
    rng = torch.Generator().manual_seed(4)
    mu = torch.randn(4, 5, generator=rng, dtype=torch.float64)
    r = torch.randn(problem.size, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(model.step(mu), matrix @ mu.flatten(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(model.adjoint(r).flatten(), matrix.T @ r, rtol=1e-7, atol=1e-9)


def reference(problem, dense, goal, allowed, norm):
    """Least goal at the estimated weights by SciPy on dense matrices."""
    hessian, mixed = dense
    matrix = -torch.linalg.solve(hessian, mixed[:, ROWS].flatten(1))

    def value(mu):
        weights = problem.weights + matrix @ torch.from_numpy(mu)
        return goal.value(weights), (matrix.T @ goal.gradient(weights)).numpy()

    low, high = allowed.lower.flatten().numpy(), allowed.upper.flatten().numpy()
    if norm == "linf":
        low, high = np.maximum(low, -allowed.radius), np.minimum(high, allowed.radius)
        return minimize(value, np.zeros(20), jac=True, bounds=list(zip(low, high, strict=True)), tol=1e-14).fun
    ball = {
        "type": "ineq",
        "fun": lambda mu: allowed.radius**2 - (mu.reshape(4, 5) ** 2).sum(1),
        "jac": lambda mu: -2 * np.stack([np.where(np.arange(20) // 5 == i, mu, 0) for i in range(4)]),
    }
    return minimize(
        value,
        np.zeros(20),
        jac=True,
        bounds=list(zip(low, high, strict=True)),
        constraints=ball,
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 1000},
    ).fun


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apg_agrees_with_a_general_solver_and_its_bound_is_sound(problem, dense, model, target, norm):
    allowed = Budget(radius=0.3, rows=4, norm=norm, box=(0.0, 1.0)).around(problem.x[ROWS])
    found = minimise_estimate(model, target, allowed, NOTHING, accuracy=1e-6)
    best = reference(problem, dense, target, allowed, norm)
    start = target.value(problem.weights)
    assert allowed.violation(found.mu) <= 1e-12
    assert found.value == pytest.approx(best, abs=2e-6 * start)
    assert found.lower_bound <= best + 1e-8 * start
    assert found.value - found.lower_bound <= 1e-6 * start
    assert found.ended == "gap reached"
    assert target.value(problem.weights + model.step(found.mu)) == pytest.approx(found.value, rel=1e-9)


@pytest.mark.parametrize("method", ["apg", "adam", "lbfgsb"])
@pytest.mark.parametrize("name", ["target", "loss"])
def test_methods_agree_on_the_same_inner_problem(problem, dense, model, target, method, name):
    goal = target if name == "target" else ValidationLoss(problem.x[:8], problem.y[:8]).bind(problem)
    allowed = Budget(radius=0.2, rows=4, box=(0.0, 1.0)).around(problem.x[ROWS])
    found = minimise_estimate(model, goal, allowed, NOTHING, method=method, accuracy=1e-5)
    start, best = goal.value(problem.weights), reference(problem, dense, goal, allowed, "linf")
    assert allowed.violation(found.mu) <= 1e-12 and found.products > 0
    assert start - found.value >= 0.97 * (start - best) > 0
    assert (found.lower_bound is None) == (method != "apg" or name == "loss")


@pytest.mark.parametrize("method", ["apg", "adam", "lbfgsb"])
def test_product_limit_is_kept(problem, model, target, method):
    allowed = Budget(radius=0.3, rows=4).around(problem.x[ROWS])
    found = minimise_estimate(model, target, allowed, NOTHING, method=method, accuracy=1e-12, max_products=20)
    assert found.ended == "product limit" and found.products <= 24


def test_sets_a_method_does_not_take_are_refused(problem, model, target):
    rows = problem.x[ROWS]
    few = Budget(radius=0.3, rows=4, norm="l0", entries=2).around(rows)
    for allowed, method in ((few, "apg"), (Budget(radius=0.3, rows=4, norm="l2").around(rows), "lbfgsb")):
        with pytest.raises(UsageError, match="PA378"):
            minimise_estimate(model, target, allowed, NOTHING, method=method)
    with pytest.raises(UsageError, match=r"PA301 .*'apg'"):
        minimise_estimate(model, target, few.relaxed(), NOTHING, method="agp")


def test_adjoint_gains_equal_the_dense_formula_and_choose_the_top(problem, dense):
    hessian, mixed = dense
    goal = FlipPrediction(problem.x[0] + 0.1, 1).bind(problem)
    adjoint = torch.linalg.solve(hessian, -goal.gradient(problem.weights))
    slope = torch.einsum("pnd,p->nd", mixed, adjoint)
    budget = Budget(radius=0.1, rows=6)
    gains = adjoint_gains(problem, goal, budget)
    torch.testing.assert_close(gains, 0.1 * slope.abs().sum(1), rtol=1e-6, atol=1e-9)
    l2 = adjoint_gains(problem, goal, Budget(radius=0.1, rows=6, norm="l2"))
    torch.testing.assert_close(l2, 0.1 * slope.norm(dim=1), rtol=1e-6, atol=1e-9)
    rows = choose_rows(problem, goal, budget)
    assert rows.tolist() == sorted(gains.topk(6).indices.tolist())
    boxed = adjoint_gains(problem, goal, Budget(radius=10.0, rows=6, box=(0.0, 1.0)))
    corner = torch.where(slope < 0, 1 - problem.x, -problem.x)
    torch.testing.assert_close(boxed, -(slope * corner).sum(1), rtol=1e-6, atol=1e-9)


def test_random_rows_repeat_for_a_seed_and_given_rows_stay(problem):
    goal = FlipPrediction(problem.x[0], 1).bind(problem)
    random = Budget(radius=0.1, rows=6, choice="random")
    state = torch.get_rng_state()
    first = choose_rows(problem, goal, random, seed=3)
    assert torch.equal(first, choose_rows(problem, goal, random, seed=3))
    assert not torch.equal(first, choose_rows(problem, goal, random, seed=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.unique().numel() == 6
    given = choose_rows(problem, goal, Budget(radius=0.1, choice=[9, 3, 5]))
    assert given.tolist() == [3, 5, 9]


def test_any_convex_function_of_the_weights_is_a_goal(problem, dense, model):
    class Slope:
        convex = True

        def value(self, weights):
            return float(weights.sum())

        def gradient(self, weights):
            return torch.ones_like(weights)

    allowed = Budget(radius=0.3, rows=4).around(problem.x[ROWS])
    found = minimise_estimate(model, Slope(), allowed, NOTHING, accuracy=1e-9)
    hessian, mixed = dense
    slope = torch.linalg.solve(hessian, mixed[:, ROWS].flatten(1)).T @ torch.ones(problem.size, dtype=torch.float64)
    assert found.value == pytest.approx(float(problem.weights.sum() - 0.3 * slope.abs().sum()), rel=1e-9)
