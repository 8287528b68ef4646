"""The search for the smallest verified budget: closed forms, plans against oracles, resuming, refusals."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from scipy.special import betaincinv
from torch import nn

from poisonaudit.attack import Budget, FlipPrediction, GroupAccuracy, TargetWeights
from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem
from poisonaudit.results import finite
from poisonaudit.training import fit, initialise
from poisonaudit.verify import CostTrial, verified_cost
from poisonaudit.verify.cost_search import Search


def line(x: torch.Tensor, y: torch.Tensor, decay: float) -> Problem:
    """Least squares with one weight, w = sum x y / (sum x^2 + n decay)."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False).double()
    return fit(Problem(model, "half_squared", x[:, None], y[:, None], decay), 1e-13).problem


@pytest.fixture(scope="module")
def slope() -> Problem:
    return line(torch.tensor([1.0, 0.5, -1.0, 2.0, 1.5]).double(), torch.tensor([1.0, 1, -2, 1, 2]).double(), 0.1)


def least_radius(problem: Problem, row: int, wanted: float) -> float:
    """Smallest |m| for which moving one row by m puts the solution at `wanted`: a root of a quadratic."""
    x, y = problem.x[:, 0], problem.y[:, 0]
    total = float(x.dot(x)) + problem.rows * problem.decay
    a, b, c = wanted, 2 * wanted * float(x[row]) - float(y[row]), wanted * total - float(x.dot(y))
    return min(abs((-b + sign * math.sqrt(b * b - 4 * a * c)) / (2 * a)) for sign in (1, -1))


@pytest.mark.parametrize(
    ("given", "precision"), [({"high": 0.4}, 0.02), ({}, 0.2), ({"low": 0.1}, 0.2)], ids=["high", "none", "low"]
)
def test_the_bracket_holds_the_least_radius_of_least_squares(slope, given, precision):
    wbar = float(slope.weights)
    target = TargetWeights(slope.weights * 1.2, success_at=0.5)
    exact = least_radius(slope, 3, wbar * 1.1)
    found = verified_cost(
        slope, target, Budget(radius=0.05, choice=[3]), precision=precision, fresh=1, steps=1, **given
    )
    assert found.value is not None and found.value == found.upper
    assert found.lower < exact <= found.upper, (found.lower, exact, found.upper)
    assert found.upper - found.lower <= precision * found.upper
    assert found.monotone and found.unit == "input units" and found.predicted == found.value
    assert "upper bound" in found.reason
    amounts = [trial.amount for trial in found.trials]
    assert amounts == sorted(set(amounts)) and all(trial.succeeded == (trial.amount >= exact) for trial in found.trials)


def test_the_number_of_rows_is_exact():
    rows, radius, decay = 12, 0.05, 0.2
    problem = line(torch.ones(rows).double(), torch.ones(rows).double(), decay)
    wbar, target = 1 / (1 + decay), 1.3 / (1 + decay)

    def movement(count: int) -> float:
        # The slope in m is 1 - 2 w < 0, so every row goes down by the whole radius.
        moved = (rows - count * radius) / (rows - 2 * count * radius + count * radius**2 + rows * decay)
        return (moved - wbar) / (target - wbar)

    least = next(count for count in range(1, rows + 1) if movement(count) >= 0.1)
    assert 2 < least < rows
    objective = TargetWeights(problem.weights * 1.3, success_at=0.1)
    for given in ({}, {"low": 2, "high": rows - 1}):
        budget = Budget(radius=radius, rows=2)
        found = verified_cost(problem, objective, budget, over="rows", fresh=1, steps=1, **given)
        assert (found.value, found.lower) == (least, least - 1) and found.unit == "training rows"
        assert all(isinstance(trial.amount, int) and trial.rows == trial.amount for trial in found.trials)


def test_no_value_where_the_largest_budget_fails_or_nothing_is_to_be_done(slope):
    far = TargetWeights(slope.weights * 3, success_at=0.9)
    failed = verified_cost(slope, far, Budget(radius=0.01, choice=[0]), high=0.02, fresh=1)
    assert failed.value is failed.upper is None and failed.lower == 0.02 and len(failed.trials) == 1
    assert failed.reason.startswith("no radius up to 0.02, the largest asked for")
    boxed = Budget(radius=0.01, choice=[0], box=(-1.03, 2.04))
    stuck = verified_cost(slope, far, boxed, low=1.0, fresh=1, steps=1)
    # Row 0 sits at 1; the farthest that any row may go is from -1 to 2.04.
    assert stuck.value is None and stuck.lower == pytest.approx(3.04) and "all the box allows" in stuck.reason
    met = verified_cost(slope, TargetWeights(slope.weights * 1.2, success_at=-1.0), Budget(radius=0.1, rows=1))
    assert met.value is None and met.trials == () and "clean model already meets" in met.reason


def test_a_success_that_controls_reach_by_themselves_does_not_count(slope):
    target = TargetWeights(slope.weights * 1.2, success_at=0.5)

    def trainer(problem: Problem, seed: int) -> torch.Tensor:
        return slope.weights * 1.3

    found = verified_cost(slope, target, Budget(radius=0.3, choice=[3]), trainer=trainer, fresh=3)
    assert found.value is None and "3 of 3 clean controls" in found.reason
    (trial,) = found.trials
    assert trial.rate.successes == 0 and trial.controls == 3 and trial.warm


@pytest.fixture(scope="module")
def digits() -> tuple[Problem, FlipPrediction]:
    from sklearn.datasets import load_digits

    x, y = load_digits(n_class=3, return_X_y=True)
    x, y = torch.tensor(x) / 16, torch.tensor(y).long()
    # Every second pixel of both axes: 16 columns keep this quick.
    x = x.view(-1, 8, 8)[:, ::2, ::2].reshape(len(x), 16)
    torch.manual_seed(0)
    problem = fit(Problem(nn.Linear(16, 3).double(), "cross_entropy", x[:80], y[:80], 1e-2)).problem
    with torch.no_grad():
        logits = problem.outputs(x=x[80:])
    top = logits.topk(2, 1)
    row = int((top.values[:, 0] - top.values[:, 1]).argsort()[30])
    return problem, FlipPrediction(x[80 + row], int(top.indices[row, 1]))


@pytest.fixture(scope="module")
def flipped(digits):
    kept: list[CostTrial] = []
    problem, objective = digits
    budget = Budget(radius=0.1, rows=8, box=(0.0, 1.0))
    return verified_cost(problem, objective, budget, fresh=2, steps=2, precision=0.3, store=kept.append), kept


def test_a_flip_on_digits_is_verified_by_training_anew(digits, flipped):
    problem, objective = digits
    found, kept = flipped
    assert found.value is not None and found.upper - found.lower <= 0.3 * found.upper
    goal = objective.bind(problem)
    best = next(trial for trial in found.trials if trial.amount == found.value)
    assert best.poison is not None and float(best.poison.delta.abs().max()) <= found.value + 1e-12
    for seed in (1, 2):
        assert not goal.success(fit(problem, 1e-10, seed, start="fresh").problem.weights)
        assert goal.success(fit(best.poison.poisoned(problem), 1e-10, seed, start="fresh").problem.weights)
    assert sorted(trial.amount for trial in kept) == [trial.amount for trial in found.trials]
    assert best.rate.lower == pytest.approx(betaincinv(2, 1, 0.025)) and best.rate.upper == 1.0
    assert best.products > 0 and best.gradients >= 2 * best.products and best.crafting_seconds > 0


def test_json_form(flipped):
    found, _ = flipped
    body = json.loads(json.dumps(finite(found.to_json()), allow_nan=False))
    wanted = {"over", "value", "unit", "lower", "upper", "trials", "monotone", "predicted", "reason", "kind"}
    assert set(body) == wanted and body["kind"] == "upper" and body["over"] == "radius"
    for trial, stored in zip(found.trials, body["trials"], strict=True):
        assert CostTrial.from_json(stored) == dataclasses.replace(trial, poison=None)


def test_an_interrupted_search_goes_on_where_it_stopped(digits, flipped):
    problem, objective = digits
    found, kept = flipped
    again: list[CostTrial] = []
    before = [CostTrial.from_json(trial.to_json()) for trial in kept[:-1]]
    outside = dataclasses.replace(kept[0], amount=50.0)
    resumed = verified_cost(
        problem,
        objective,
        Budget(radius=0.1, rows=8, box=(0.0, 1.0)),
        fresh=2,
        steps=2,
        precision=0.3,
        already=before,
        store=again.append,
    )
    assert [trial.amount for trial in again] == [trial.amount for trial in kept[-1:]]
    for one, other in zip(resumed.trials, found.trials, strict=True):
        same = {"crafting_seconds": 0.0, "retraining_seconds": 0.0, "poison": None}
        assert dataclasses.replace(one, **same) == dataclasses.replace(other, **same)
    for one, other in zip(again, kept[-1:], strict=True):
        assert torch.equal(one.poison.delta, other.poison.delta)
    nothing = verified_cost(
        problem,
        objective,
        Budget(radius=0.1, rows=8, box=(0.0, 1.0)),
        high=0.8,
        fresh=2,
        steps=2,
        precision=0.3,
        already=[*kept, outside],
        store=again.append,
    )
    assert nothing.value == found.value and len(again) == 1 and len(nothing.trials) == len(kept)


def test_controls_are_trained_once(digits):
    problem, objective = digits
    clean = []

    def trainer(given: Problem, seed: int) -> torch.Tensor:
        clean.append(torch.equal(given.x, problem.x))
        return fit(given, 1e-8, seed, start="fresh").problem.weights

    found = verified_cost(
        problem,
        objective,
        Budget(radius=0.4, rows=8),
        low=0.2,
        high=0.4,
        fresh=2,
        steps=1,
        precision=0.6,
        trainer=trainer,
    )
    assert sum(clean) == 2 and len(clean) - 2 == 2 * len(found.trials) and len(found.trials) >= 2


def test_a_failure_above_a_success_is_told(digits, flipped):
    problem, objective = digits
    found, kept = flipped
    worse = dataclasses.replace(kept[0], amount=2 * max(t.amount for t in kept), succeeded=False)
    told = verified_cost(problem, objective, Budget(radius=0.1, rows=8), fresh=2, precision=0.3, already=[*kept, worse])
    assert not told.monotone and "not monotone" in told.reason
    assert told.value == found.value and told.lower == found.lower
    short = verified_cost(problem, objective, Budget(radius=0.1, rows=8), fresh=2, already=kept[:2], most_trials=2)
    assert "stopped after 2 trials" in short.reason


def run(search: Search, wins) -> tuple[list[float], list[float]]:
    won: list[float] = []
    lost: list[float] = []
    while (amount := search.next(won, lost)) is not None:
        assert amount not in won and amount not in lost
        (won if wins(amount) else lost).append(amount)
        assert len(won) + len(lost) < 60
    return won, lost


@pytest.mark.parametrize("threshold", [3e-4, 0.011, 0.1, 0.5, 0.99, 3.7])
@pytest.mark.parametrize("high", [None, 4.0])
@pytest.mark.parametrize("precision", [0.1, 0.01])
def test_the_plan_brackets_any_threshold(threshold, high, precision):
    won, lost = run(Search("radius", 0.1, None, high, 8.0, precision), lambda amount: amount >= threshold)
    assert max(lost) < threshold <= min(won) and min(won) - max(lost) <= precision * min(won)
    # Something well below the largest failure was tried too.
    assert min(lost) <= max(lost) / 2


@pytest.mark.parametrize("threshold", [1, 2, 7, 63, 64, 100])
@pytest.mark.parametrize("start", [1, 5, 100])
def test_the_plan_finds_every_number_of_rows(threshold, start):
    won, lost = run(Search("rows", start, None, None, 100, 0.0), lambda amount: amount >= threshold)
    assert min(won) == threshold and (threshold == 1 or max(lost) == threshold - 1)
    assert len(won) + len(lost) <= 17


def test_the_plan_goes_on_below_a_success_under_a_failure():
    # Wins at 0.3 and above, and in a window that bisection steps over.
    won, lost = run(Search("radius", 0.25, None, 0.4, 8.0, 0.1), lambda a: a >= 0.3 or 0.07 <= a <= 0.15)
    assert min(won) <= 0.08 and max(amount for amount in lost if amount < min(won)) < 0.07
    assert any(failed > min(won) for failed in lost)
    # Where the smallest budget is given nothing below it is tried.
    won, lost = run(Search("radius", 0.25, 0.2, 0.4, 8.0, 0.1), lambda a: a >= 0.3 or 0.07 <= a <= 0.15)
    assert min(*won, *lost) == 0.2


def test_trainings_that_fall_short_are_counted(slope):
    target = TargetWeights(slope.weights * 1.2, success_at=0.5)

    def loose(given: Problem, seed: int) -> torch.Tensor:
        weights = initialise(given, seed)
        for _ in range(8):
            weights = weights - 0.3 * given.gradient(weights)
        return weights

    found = verified_cost(
        slope, target, Budget(radius=0.3, choice=[3]), trainer=loose, high=0.3, fresh=1, steps=1, precision=0.5
    )
    assert f"{len(found.trials)} of {len(found.trials)} retrainings did not converge" in found.reason


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"low": 0.2, "high": 0.1}, "PA346"),
        ({"low": 0.1, "high": 0.1}, "PA346"),
        ({"high": 0.0}, "PA346"),
        ({"high": math.inf}, "PA346"),
        ({"precision": 0.0}, "PA346"),
        ({"precision": 1.0}, "PA346"),
        ({"need": 4}, "PA346"),
        ({"fresh": 0}, "PA346"),
        ({"most_trials": 0}, "PA346"),
        ({"over": "rows", "high": 2.5}, "PA346"),
        ({"over": "rows", "high": 6}, "PA346"),
        ({"over": "rows", "budget": Budget(radius=0.1, choice=[1, 2])}, "PA346"),
        ({"over": "radii"}, "PA301"),
        ({"objective": "no success"}, "PA345"),
    ],
)
def test_bad_searches_are_refused_in_one_line(slope, given, code):
    target = TargetWeights(slope.weights * 1.2, success_at=None if "objective" in given else 0.5)
    given = {key: value for key, value in given.items() if key != "objective"}
    budget = given.pop("budget", Budget(radius=0.1, rows=1))
    with pytest.raises(UsageError, match=code) as refused:
        verified_cost(slope, target, budget, **given)
    assert len(str(refused.value).splitlines()) == 1


def test_a_group_without_a_drop_to_reach_is_refused(digits):
    problem, _ = digits
    with pytest.raises(UsageError, match="PA345"):
        verified_cost(problem, GroupAccuracy(problem.x[:9], problem.y[:9]), Budget(radius=0.1, rows=2))
