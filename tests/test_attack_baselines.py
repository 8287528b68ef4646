"""Baseline attacks: closed forms, finite differences, dense references, and the budget in every norm."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from poisonaudit.attack import Budget, FlipPrediction, MatchPredictions, TargetWeights, craft, outcome
from poisonaudit.attack.baselines import BASELINES, applicable, options_of, run_baseline
from poisonaudit.attack.baselines.gradient_matching import matching_loss
from poisonaudit.attack.baselines.spectral import minimise
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.operators import dense_hessian, dense_mixed
from poisonaudit.problem import Problem
from poisonaudit.results import finite
from poisonaudit.training import fit
from poisonaudit.verify import retrain

OURS = ("gradient_matching", "gradient_canceling", "influence", "random_signs")
QUICK = {"gradient_matching": {"steps": 6, "restarts": 2}, "gradient_canceling": {"steps": 8}}
COLUMNS = torch.linspace(0.5, 2.0, 64, dtype=torch.float64)
BUDGETS = {
    "linf": {"radius": 0.1, "box": (0.0, 1.0)},
    "linf, box of columns": {"radius": 0.1, "box": (torch.zeros(64), COLUMNS.clamp(max=1.0))},
    "linf, no box": {"radius": 0.1},
    "linf, scaled": {"radius": 0.1, "scale": COLUMNS, "immutable": [0, 20, 21]},
    "linf, steps": {"radius": 0.2, "box": (0.0, 1.0), "spacing": {column: 1 / 16 for column in range(64)}},
    "l2": {"radius": 0.5, "norm": "l2", "box": (0.0, 1.0)},
    "l2, scaled": {"radius": 0.5, "norm": "l2", "scale": COLUMNS},
    "l1": {"radius": 1.0, "norm": "l1", "box": (0.0, 1.0)},
    "l0": {"radius": 0.5, "norm": "l0", "entries": 4, "box": (0.0, 1.0)},
}


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(n_class=4, return_X_y=True)
    x, y = torch.tensor(x) / 16, torch.tensor(y).long()
    return x[:100], y[:100], x[100:300], y[100:300]


@pytest.fixture(scope="module")
def logistic(digits):
    torch.manual_seed(0)
    found = fit(Problem(nn.Linear(64, 4).double(), "cross_entropy", digits[0], digits[1], 1e-2))
    assert found.converged
    return found.problem


@pytest.fixture(scope="module")
def tanh_net(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    found = fit(Problem(model, "cross_entropy", digits[0], digits[1], 1e-2))
    assert found.converged
    return found.problem


def close_flip(problem, digits, rank=3):
    """A test row that is right by a small margin, and the runner-up."""
    with torch.no_grad():
        top = problem.outputs(x=digits[2]).topk(2, 1)
    right = (top.indices[:, 0] == digits[3]).nonzero().flatten()
    row = int(right[(top.values[right, 0] - top.values[right, 1]).argsort()[rank]])
    return FlipPrediction(digits[2][row], int(top.indices[row, 1]))


def objective_for(name, problem, digits):
    if name != "gradient_canceling":
        return close_flip(problem, digits)
    generator = torch.Generator().manual_seed(3)
    step = torch.randn(problem.size, generator=generator, dtype=torch.float64)
    return TargetWeights(problem.weights + 0.05 * problem.weights.norm() * step / step.norm())


@pytest.mark.parametrize("kind", BUDGETS)
@pytest.mark.parametrize("name", OURS)
def test_stays_in_the_budget_repeats_and_touches_nothing(name, kind, tanh_net, digits):
    budget, objective = Budget(rows=5, **BUDGETS[kind]), objective_for(name, tanh_net, digits)
    rows = [40, 3, 77, 12]
    assert applicable(name, tanh_net, objective, budget) == ""
    before = [tanh_net.x.clone(), tanh_net.y.clone(), tanh_net.weights.clone(), torch.get_rng_state()]
    module, numpy_state = tanh_net.module().state_dict(), np.random.get_state()[1].copy()
    poison = run_baseline(name, tanh_net, objective, budget, rows, seed=5, **QUICK.get(name, {}))
    again = run_baseline(name, tanh_net, objective, budget, torch.tensor(rows), seed=5, **QUICK.get(name, {}))
    for old, new in zip(before, (tanh_net.x, tanh_net.y, tanh_net.weights, torch.get_rng_state()), strict=True):
        assert torch.equal(old, new)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert all(torch.equal(value, tanh_net.module().state_dict()[key]) for key, value in module.items())
    assert torch.equal(poison.delta, again.delta)
    assert poison.rows.tolist() == sorted(rows) and poison.method == name
    allowed = budget.around(tanh_net.x[poison.rows])
    assert allowed.violation(poison.delta) <= 1e-12
    assert bool(poison.delta.any()) and allowed.used(poison.delta) > 0.3
    assert poison.delta.dtype == torch.float64 and torch.equal(poison.weights, tanh_net.weights)
    assert poison.gradients >= 2 * poison.products and poison.seconds > 0
    json.dumps([finite(dict(poison.predicted)), finite(list(poison.history))], allow_nan=False)
    if name in ("gradient_matching", "influence", "gradient_canceling"):
        assert poison.history[-1]["objective"] < poison.history[0]["objective"]
        made = [entry["step"] for entry in poison.history]
        assert made[0] == 0 and made[-1] <= QUICK.get(name, options_of(name))["steps"]


def test_gradient_of_the_matching_loss_equals_finite_differences():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 3, (6,))
    problem = Problem(model, "cross_entropy", x, y, 1e-2)
    rows = torch.tensor([1, 4])
    aim = FlipPrediction(torch.randn(3).double(), 1, "cross_entropy").bind(problem).gradient(problem.weights)
    mu = 0.3 * torch.randn(2, 3, dtype=torch.float64)

    def loss(at):
        # independent of the implementation: one gradient a row, by autograd on the user's module
        total = torch.zeros_like(problem.weights)
        for row, step in zip(rows, at, strict=True):
            value = nn.functional.cross_entropy(model((x[row] + step)[None]), y[row : row + 1])
            total += torch.cat([part.flatten() for part in torch.autograd.grad(value, list(model.parameters()))])
        return 1.0 - float(nn.functional.cosine_similarity(total, aim, dim=0))

    value, slope = matching_loss(problem, x[rows], y[rows], aim, mu)
    assert float(value) == pytest.approx(loss(mu), abs=1e-12)
    for index in np.ndindex(2, 3):
        step = torch.zeros_like(mu)
        step[index] = 1e-5
        assert float(slope[index]) == pytest.approx((loss(mu + step) - loss(mu - step)) / 2e-5, abs=1e-8)


def test_gradient_matching_aligns_far_beyond_its_starts_and_keeps_the_best_restart(tanh_net, digits):
    objective = close_flip(tanh_net, digits)
    budget, rows = Budget(radius=0.15, rows=6, box=(0.0, 1.0)), [3, 12, 40, 55, 77, 90]
    poison = run_baseline("gradient_matching", tanh_net, objective, budget, rows, seed=1, steps=60, restarts=3)
    starts = [entry["similarity"] for entry in poison.history if entry["step"] == 0]
    ends = [entry["similarity"] for entry in poison.history if entry["step"] == 60]
    assert len(starts) == 4 and len(ends) == 3
    aim = FlipPrediction(objective.x, objective.label, "cross_entropy").bind(tanh_net).gradient(tanh_net.weights)
    reached = 1.0 - float(matching_loss(tanh_net, tanh_net.x[rows], tanh_net.y[rows], aim, poison.delta)[0])
    assert reached >= max(ends) - 1e-12 and reached > max(starts) + 0.1
    # 3 restarts of 61 points and the clean one, 3 passes each through 6 of 100 rows, and the objective's gradient
    assert poison.gradients == math.ceil(1 + (3 * 61 + 1) * 3 * 0.06)
    # a small step of training on the poisoned rows alone lowers the adversarial loss
    goal = FlipPrediction(objective.x, objective.label, "cross_entropy").bind(tanh_net)
    point = tanh_net.weights.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(
        tanh_net.losses(point, tanh_net.x[rows] + poison.delta, tanh_net.y[rows]).sum(), point
    )
    assert goal.value(tanh_net.weights - 1e-4 * gradient) < goal.value(tanh_net.weights)


def test_gradient_matching_takes_flips_with_the_cross_entropy_or_as_they_are(tanh_net, digits):
    objective = close_flip(tanh_net, digits)
    budget, rows = Budget(radius=0.1, rows=3, box=(0.0, 1.0)), [3, 12, 40]
    smooth = FlipPrediction(objective.x, objective.label, "cross_entropy")
    by_margin, by_default, by_entropy = (
        run_baseline("gradient_matching", tanh_net, each, budget, rows, steps=4, restarts=1, surrogate=surrogate).delta
        for each, surrogate in ((objective, "objective"), (objective, "cross_entropy"), (smooth, "objective"))
    )
    assert torch.equal(by_default, by_entropy) and not torch.equal(by_margin, by_entropy)
    with pytest.raises(UsageError, match="PA301.*Did you mean 'objective'"):
        run_baseline("gradient_matching", tanh_net, objective, budget, rows, surrogate="objectiv")
    with pytest.raises(UsageError, match="PA304"):
        run_baseline("gradient_matching", tanh_net, objective, budget, rows, restarts=0)


def test_nothing_to_match_is_told(logistic):
    # the first pixel is black everywhere, so its weight changes no prediction and there is nothing left to match
    assert not bool(logistic.x[:, 0].any())
    target = logistic.weights.clone()
    target[0] += 1.0
    budget = Budget(radius=0.1, rows=2)
    poison = run_baseline("gradient_matching", logistic, MatchPredictions(target), budget, [0, 1], steps=2)
    assert not bool(poison.delta.any()) and "nothing to match" in poison.notes[0]


def least_squares(rows, radius, seed=0):
    """Ridge regression, a poison of those rows, and the weights that it makes exactly optimal."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]], dtype=torch.float64)
    y += 0.3 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    problem = fit(Problem(nn.Linear(4, 1).double(), "half_squared", x, y, 1e-2)).problem
    mu = torch.zeros_like(x)
    mu[rows] = radius * (2 * torch.rand(len(rows), 4, generator=generator, dtype=torch.float64) - 1)
    ones = torch.cat([x + mu, torch.ones(40, 1, dtype=torch.float64)], 1)
    normal = ones.T @ ones / 40 + 1e-2 * torch.eye(5, dtype=torch.float64)
    return problem, torch.linalg.solve(normal, ones.T @ y / 40).flatten()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_gradient_canceling_reaches_what_a_known_poison_reaches(norm):
    rows = [1, 5, 9, 13, 17, 21, 30, 33]
    problem, target = least_squares(rows, 0.2)
    radius = {"linf": 0.2, "l2": 0.4, "l1": 0.8}[norm]
    poison = run_baseline(
        "gradient_canceling", problem, TargetWeights(target), Budget(radius=radius, rows=8, norm=norm), rows
    )
    assert poison.predicted["stationarity_ratio"] < 1e-5
    # on a strictly convex problem a stationary point is where training ends
    trained = retrain(problem, poison, fresh=0).warm.weights
    torch.testing.assert_close(trained, target, rtol=1e-4, atol=1e-5)
    assert poison.predicted["curvature_smallest"] >= 1e-2 - 1e-9
    at_target = poison.poisoned(problem).at(target)
    ends = torch.linalg.eigvalsh(dense_hessian(at_target))
    assert poison.predicted["curvature_smallest"] == pytest.approx(float(ends[0]), rel=1e-6)
    assert poison.predicted["curvature_largest"] == pytest.approx(float(ends[-1]), rel=1e-6)


def test_gradient_canceling_reports_the_residual_that_is_left(tanh_net, digits):
    objective = objective_for("gradient_canceling", tanh_net, digits)
    ratios = []
    for radius in (0.01, 0.1):
        poison = run_baseline("gradient_canceling", tanh_net, objective, Budget(radius=radius, rows=4), [3, 12, 40, 77])
        clean = tanh_net.gradient(objective.weights).norm()
        left = poison.poisoned(tanh_net).gradient(objective.weights).norm()
        assert poison.predicted["stationarity"] == pytest.approx(float(left), rel=1e-9)
        assert poison.predicted["stationarity_ratio"] == pytest.approx(float(left / clean), rel=1e-9)
        assert poison.history[-1]["objective"] == pytest.approx(float(left / clean) ** 2, rel=1e-9)
        ratios.append(poison.predicted["stationarity_ratio"])
    assert ratios[1] < ratios[0] < 1.0


def test_gradient_canceling_takes_targets_in_every_form_and_refuses_other_objectives(tanh_net, digits):
    budget, rows = Budget(radius=0.1, rows=2), [3, 12]
    target = objective_for("gradient_canceling", tanh_net, digits).weights
    by_weights, by_predictions, by_layer = (
        run_baseline("gradient_canceling", tanh_net, each, budget, rows, steps=5)
        for each in (TargetWeights(target), MatchPredictions(target), TargetWeights(target, layers=["2"]))
    )
    assert torch.equal(by_weights.delta, by_predictions.delta)
    mixed = torch.cat([tanh_net.weights[: 64 * 4 + 4], target[64 * 4 + 4 :]])
    left = by_layer.poisoned(tanh_net).gradient(mixed).norm()
    assert by_layer.predicted["stationarity"] == pytest.approx(float(left), rel=1e-9)
    flip = close_flip(tanh_net, digits)
    assert "target weights" in applicable("gradient_canceling", tanh_net, flip, budget)
    with pytest.raises(InputRefused, match="PA281.*target weights"):
        run_baseline("gradient_canceling", tanh_net, flip, budget, rows)


def test_spectral_projected_gradient_solves_a_quadratic_over_a_box():
    """Against the closed form: with a diagonal quadratic the minimum over a box is the clipped one."""
    scales = torch.tensor([[1.0, 10.0, 100.0, 1000.0]], dtype=torch.float64)
    centre = torch.tensor([[0.5, -2.0, 0.3, 0.05]], dtype=torch.float64)

    def loss(mu):
        return 0.5 * (scales * (mu - centre).square()).sum(), scales * (mu - centre)

    allowed = Budget(radius=0.4, rows=1).around(torch.zeros(1, 4, dtype=torch.float64))
    found = minimise(loss, allowed, torch.zeros(1, 4, dtype=torch.float64), 100)
    # the value is then exact to rounding, of which the point is the square root
    torch.testing.assert_close(found.delta, centre.clamp(-0.4, 0.4), rtol=0, atol=1e-7)


def test_influence_without_damping_is_the_first_corner_of_crafting(logistic, digits):
    objective = close_flip(logistic, digits)
    budget = Budget(radius=0.02, rows=6, box=(0.0, 1.0))
    crafted = craft(logistic, objective, budget, steps=1, method="corner")
    assert bool(crafted.delta.any())
    for damping in (0.0, 1e-10):
        poison = run_baseline("influence", logistic, objective, budget, crafted.rows, damping=damping)
        torch.testing.assert_close(poison.delta, crafted.delta, rtol=0, atol=1e-12)


def test_influence_equals_the_dense_damped_reference(tanh_net, digits):
    objective = close_flip(tanh_net, digits)
    goal = objective.bind(tanh_net)
    hessian, mixed = dense_hessian(tanh_net), dense_mixed(tanh_net, torch.tensor([3, 12, 40]))
    damping, rows = 0.3, [3, 12, 40]
    damped = hessian + damping * torch.linalg.eigvalsh(hessian)[-1] * torch.eye(tanh_net.size, dtype=torch.float64)
    adjoint = -torch.linalg.solve(damped, goal.gradient(tanh_net.weights))
    slope = torch.einsum("p,kpd->kd", adjoint, mixed)
    poison = run_baseline("influence", tanh_net, objective, Budget(radius=0.05, rows=3), rows, damping=damping)
    torch.testing.assert_close(poison.delta, -0.05 * slope.sign() * (slope != 0), rtol=0, atol=1e-12)
    step = torch.linalg.solve(damped, -torch.einsum("kpd,kd->p", mixed, poison.delta))
    expected = outcome(tanh_net, tanh_net.weights + step, objective)
    assert poison.predicted["margin_change"] == pytest.approx(expected["margin_change"], rel=1e-5)
    assert not poison.predicted["valid"] and "damping" in " ".join(poison.predicted["reasons"])
    clean, moved = tanh_net.gradient(), poison.poisoned(tanh_net).gradient()
    assert poison.history[-1]["objective"] == pytest.approx(float(adjoint.dot(moved - clean)), rel=1e-5)


def test_influence_with_signed_steps_is_at_least_as_good_by_its_own_measure(tanh_net, digits):
    objective, rows = close_flip(tanh_net, digits), [3, 12, 40, 77]
    budget = Budget(radius=0.3, rows=4, box=(0.0, 1.0))
    corner, steps = (
        run_baseline("influence", tanh_net, objective, budget, rows, damping=1e-2, steps=count) for count in (1, 40)
    )
    best = min(entry["objective"] for entry in steps.history)
    assert best < corner.history[-1]["objective"] < 0
    with pytest.raises(UsageError, match="PA304"):
        run_baseline("influence", tanh_net, objective, budget, rows, damping=-1.0)


def test_random_signs_sit_in_the_corner_and_change_with_the_seed(logistic, digits):
    objective, rows = close_flip(logistic, digits), [3, 12, 40]
    clean = logistic.x[rows]
    budget = Budget(radius=0.3, rows=3, box=(0.0, 1.0))
    poison = run_baseline("random_signs", logistic, objective, budget, rows, seed=1)
    moved = clean + poison.delta
    at_corner = (moved == (clean + 0.3).clamp(max=1.0)) | (moved == (clean - 0.3).clamp(min=0.0))
    close = (moved - (clean + 0.3).clamp(max=1.0)).abs().minimum((moved - (clean - 0.3).clamp(min=0.0)).abs())
    assert float(close.max()) < 1e-15 and bool(at_corner.any())
    free = run_baseline("random_signs", logistic, objective, Budget(radius=0.3, rows=3), rows, seed=1).delta
    assert bool((free.abs() == 0.3).all()) and 0.3 < float((free > 0).double().mean()) < 0.7
    other = run_baseline("random_signs", logistic, objective, Budget(radius=0.3, rows=3), rows, seed=2).delta
    assert 0.3 < float((free == other).double().mean()) < 0.7
    round_ball = run_baseline("random_signs", logistic, objective, Budget(radius=0.3, rows=3, norm="l2"), rows).delta
    torch.testing.assert_close(round_ball.abs(), torch.full_like(clean, 0.3 / 8), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["l1", "l0"])
def test_random_signs_spread_over_entries_where_few_can_move(kind, logistic, digits):
    objective, touched = close_flip(logistic, digits), set()
    for seed in range(8):
        poison = run_baseline("random_signs", logistic, objective, Budget(rows=3, **BUDGETS[kind]), [3, 12, 40], seed)
        touched |= set(poison.delta.nonzero()[:, 1].tolist())
    assert len(touched) > 12


def test_crafting_beats_the_control_after_retraining(logistic, digits):
    objective, budget = close_flip(logistic, digits, rank=6), Budget(radius=0.05, rows=8, box=(0.0, 1.0))
    crafted = craft(logistic, objective, budget, steps=3)
    moved = {"craft": retrain(logistic, crafted, fresh=0).warm.outcome["margin_change"]}
    for name in ("random_signs", "influence", "gradient_matching"):
        options = {"steps": 40, "restarts": 1} if name == "gradient_matching" else {}
        poison = run_baseline(name, logistic, objective, budget, crafted.rows, **options)
        reached = retrain(logistic, poison, fresh=0)
        assert reached.warm.converged
        moved[name] = reached.warm.outcome["margin_change"]
    assert moved["craft"] > 3 * abs(moved["random_signs"])
    assert moved["craft"] >= moved["influence"] - 1e-9 and moved["influence"] > 3 * abs(moved["random_signs"])
    assert moved["gradient_matching"] > moved["random_signs"]


def test_progress_and_names(tanh_net, digits):
    said: list[tuple[str, float | None]] = []
    objective, budget = close_flip(tanh_net, digits), Budget(radius=0.1, rows=2)
    for name in OURS:
        aim = objective_for(name, tanh_net, digits)
        run_baseline(
            name, tanh_net, aim, budget, [3, 12], progress=lambda text, share: said.append((text, share)), steps=2
        )
        assert said[-1][1] == 1.0 and all(share is None or 0 <= share <= 1 for _, share in said)
    assert set(OURS) < set(BASELINES) and all(entry.source for entry in BASELINES.values())
    with pytest.raises(UsageError, match="PA301.*Did you mean 'gradient_matching'"):
        run_baseline("gradient_macthing", tanh_net, objective, budget, [3])
    with pytest.raises(UsageError, match="PA301.*Did you mean 'random_signs'"):
        applicable("random_sign", tanh_net, objective, budget)
    with pytest.raises(UsageError, match="PA301.*'restart'.*Did you mean 'restarts'"):
        run_baseline("gradient_matching", tanh_net, objective, budget, [3], restart=2)


@pytest.mark.parametrize(
    ("rows", "steps", "code"),
    [([3, 3], 1, "PA363"), ([3, 500], 1, "PA363"), ([], 1, "PA363"), ([1, 2, 3], 1, "PA361"), ([3], 0, "PA367")],
)
def test_bad_rows_and_steps_are_refused(rows, steps, code, logistic, digits):
    with pytest.raises(UsageError, match=code):
        run_baseline(
            "random_signs", logistic, close_flip(logistic, digits), Budget(radius=0.1, rows=2), rows, steps=steps
        )


def test_rows_outside_the_box_are_told(logistic, digits):
    budget = Budget(radius=0.1, rows=3, box=(0.0, 0.5))
    poison = run_baseline("random_signs", logistic, close_flip(logistic, digits), budget, [3, 12, 40])
    assert any("outside the box" in note for note in poison.notes)


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
@pytest.mark.parametrize("name", OURS)
def test_pictures_in_float32(name, norm, digits):
    """Rows with several axes, weights far from a minimum, and float32 throughout, with gradients switched off."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(72, 4))
    problem = Problem(model, "cross_entropy", digits[0].float().reshape(-1, 1, 8, 8), digits[1], 1e-2)
    flip = FlipPrediction(digits[2][0].float().reshape(1, 8, 8), 2)
    objective = TargetWeights(problem.weights + 0.1) if name == "gradient_canceling" else flip
    budget = Budget(radius=0.2, rows=3, norm=norm, entries=5 if norm == "l0" else None, box=(0.0, 1.0))
    with torch.no_grad():
        poison = run_baseline(name, problem, objective, budget, [3, 12, 40], **QUICK.get(name, {}))
    assert poison.delta.shape == (3, 1, 8, 8) and poison.delta.dtype == torch.float32
    assert budget.around(problem.x[poison.rows]).violation(poison.delta) <= 1e-6 and bool(poison.delta.any())
    assert not poison.delta.requires_grad and poison.poisoned(problem).rows == 100
