from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from scipy.special import betaincinv
from torch import nn

from poisonaudit.attack import Budget, FlipPrediction, TargetWeights, craft
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.problem import Problem
from poisonaudit.results import finite
from poisonaudit.training import fit, initialise
from poisonaudit.verify import mean_and_error, outcome, retrain, success_rate


@pytest.fixture(scope="module")
def rows():
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    x = torch.tensor((x - x.mean(0)) / x.std(0))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order][:120], torch.tensor(y).long()[order][:120], x[order][120:], torch.tensor(y).long()[order][120:]


@pytest.fixture(scope="module")
def problem(rows):
    torch.manual_seed(0)
    return fit(Problem(nn.Linear(13, 3).double(), "cross_entropy", rows[0], rows[1], 1e-2)).problem


@pytest.fixture(scope="module")
def poison(problem, rows):
    target = TargetWeights(problem.weights + 0.3 * torch.sin(torch.arange(problem.size).double()))
    return craft(problem, target, Budget(radius=0.5, rows=12), steps=2, test=rows[2:])


@pytest.fixture(scope="module")
def judged(problem, poison, rows):
    return retrain(problem, poison, fresh=3, test=rows[2:])


def test_convex_victims_reach_the_same_point_warm_and_fresh_and_the_control_does_not_move(judged, poison):
    warm = judged.warm.outcome["movement"]
    assert warm == pytest.approx(poison.predicted["movement"], rel=1e-4) and warm > 0.01
    assert [run.seed for run in judged.fresh] == [1, 2, 3] == [run.seed for run in judged.control.fresh]
    for run, clean in zip(judged.fresh, judged.control.fresh, strict=True):
        assert run.converged and clean.converged and run.relative_gradient <= 1e-10
        assert run.outcome["movement"] == pytest.approx(warm, rel=1e-5)
        assert clean.outcome["movement"] == pytest.approx(0.0, abs=1e-6)
        assert run.outcome.keys() == clean.outcome.keys() == judged.warm.outcome.keys()
        assert set(run.outcome) <= set(poison.predicted)
    assert judged.control.warm.outcome["displacement_norm"] < 1e-8 and judged.control.warm.seed is None


def test_summary_and_records_put_predicted_beside_retrained(judged, poison):
    summary = judged.summary()
    assert summary["fresh_runs"] == 3 and summary["not_converged"] == 0
    assert summary["success"] is None and summary["control_success"] is None
    paired = summary["paired"]["movement"]
    assert paired["predicted"] == poison.predicted["movement"]
    assert paired["mean"] == pytest.approx(judged.warm.outcome["movement"], rel=1e-5)
    assert paired["standard_error"] < 1e-6
    records = judged.records()
    assert [record["start"] for record in records] == ["warm", "fresh", "fresh", "fresh"]
    assert all(record["ratio"] == pytest.approx(1.0, rel=1e-3) for record in records)
    body = finite(judged.to_json())
    assert body["fresh"][0]["seed"] == 1 and "movement" in body["fresh"][0]
    json.dumps([body, finite(judged.control.to_json())], allow_nan=False)


def test_a_flip_counts_successes_with_an_interval(problem, rows):
    with torch.no_grad():
        top = problem.outputs(x=rows[2]).topk(2, 1)
    row = int((top.values[:, 0] - top.values[:, 1]).argmin())
    objective = FlipPrediction(rows[2][row], int(top.indices[row, 1]))
    poison = craft(problem, objective, Budget(radius=1.0, share=0.2), steps=3)
    judged = retrain(problem, poison, fresh=(11, 12))
    assert poison.predicted["success"] and judged.warm.outcome["success"]
    summary = judged.summary()
    assert summary["success"]["successes"] == 2 and summary["success"]["rate"] == 1.0
    assert summary["success"]["lower"] == pytest.approx(0.025**0.5)  # closed form for n of n
    assert summary["control_success"]["successes"] == 0
    change = summary["paired"]["margin_change"]
    assert change["mean"] == pytest.approx(poison.predicted["margin_change"], rel=1e-3)
    assert judged.control.fresh[0].outcome["margin_change"] == pytest.approx(0.0, abs=1e-6)


def test_fresh_seeds_of_a_network_are_paired_with_their_own_control(rows):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(13, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    problem = fit(Problem(model, "cross_entropy", rows[0], rows[1], 1e-2)).problem
    objective = FlipPrediction(rows[2][0], (int(rows[3][0]) + 1) % 3)
    poison = craft(problem, objective, Budget(radius=0.1, rows=6), steps=2)
    judged = retrain(problem, poison, fresh=2)
    for run, clean in zip(judged.fresh, judged.control.fresh, strict=True):
        assert run.outcome["margin_change"] == pytest.approx(run.outcome["margin"] - clean.outcome["margin"])
        apart = float((run.weights - clean.weights).norm())
        assert run.outcome["displacement_norm"] == pytest.approx(apart)
        # each seed starts where the modules' own initialisation puts it
        alone = fit(problem.with_data(poison.poisoned(problem).x), 1e-10, run.seed, start="fresh")
        assert torch.equal(alone.problem.weights, run.weights)


def test_the_users_own_trainer_is_used_as_it_is_and_its_loose_ends_are_reported(problem, poison):
    called = []

    def trainer(given: Problem, seed: int) -> torch.Tensor:
        called.append((seed, torch.equal(given.x, problem.x)))
        weights = initialise(given, seed)
        for _ in range(20):
            weights = weights - 0.5 * given.gradient(weights)
        return weights

    judged = retrain(problem, poison, fresh=2, trainer=trainer)
    assert sorted(called) == [(1, False), (1, True), (2, False), (2, True)]
    assert torch.equal(judged.control.fresh[0].weights, trainer(problem, 1))
    assert torch.equal(judged.fresh[1].weights, trainer(poison.poisoned(problem), 2))
    assert not any(run.converged for run in judged.fresh) and judged.warm.converged
    assert judged.fresh[0].relative_gradient > 1e-6
    summary = judged.summary()
    assert summary["not_converged"] == 2 and summary["control_not_converged"] == 2
    assert not any(record["converged"] for record in judged.records() if record["start"] == "fresh")


def test_a_trainer_that_returns_something_else_is_refused(problem, poison):
    with pytest.raises(InputRefused, match="PA125"):
        retrain(problem, poison, fresh=1, trainer=lambda given, seed: torch.zeros(3).double())


def test_a_control_can_serve_several_poisons_of_the_same_seeds(problem, judged, poison):
    said = []
    again = retrain(
        problem, poison, fresh=3, control=judged.control, progress=lambda text, fraction: said.append(fraction)
    )
    for run, other in zip(again.fresh, judged.fresh, strict=True):
        assert torch.equal(run.weights, other.weights)
    assert again.control.fresh[0].outcome["test_accuracy"] is None  # judged anew, without test rows
    assert all(0 <= fraction <= 1 for fraction in said)
    with pytest.raises(UsageError, match="PA372"):
        retrain(problem, poison, fresh=2, control=judged.control)


def test_nothing_is_modified_and_runs_repeat(problem, poison, judged):
    before = (problem.x.clone(), problem.weights.clone(), poison.delta.clone(), torch.get_rng_state())
    again = retrain(problem, poison, fresh=1)
    after = (problem.x, problem.weights, poison.delta, torch.get_rng_state())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert torch.equal(again.fresh[0].weights, judged.fresh[0].weights)
    none = retrain(problem, poison, fresh=0)
    assert none.fresh == () and none.summary()["success"] is None
    assert none.summary()["paired"]["movement"]["mean"] is None


@pytest.mark.parametrize("fresh", [-1, (3, 3)])
def test_bad_seeds_are_refused(problem, poison, fresh):
    with pytest.raises(UsageError, match="PA371"):
        retrain(problem, poison, fresh=fresh)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (9, 16), (1, 2)])
def test_clopper_pearson_is_the_beta_quantile_form(k, n):
    rate = success_rate(k, n)
    assert rate.lower == pytest.approx(0.0 if k == 0 else betaincinv(k, n - k + 1, 0.025), abs=1e-9)
    assert rate.upper == pytest.approx(1.0 if k == n else betaincinv(k + 1, n - k, 0.975), abs=1e-9)


def test_intervals_hold_for_known_cases():
    nine = success_rate(9, 16)  # the printed interval of 9 of 16 is .30 to .80 (exact), .33 to .77 is Wilson's
    assert nine.lower == pytest.approx(0.2988, abs=1e-3) and nine.upper == pytest.approx(0.8025, abs=1e-3)
    assert success_rate(0, 0).rate is None
    with pytest.raises(UsageError, match="PA370"):
        success_rate(3, 2)
    assert mean_and_error([]) == (None, None) and mean_and_error([2.0]) == (2.0, None)
    mean, error = mean_and_error([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5 and error == pytest.approx(math.sqrt(5 / 3 / 4))


def test_outcome_is_the_same_function_for_both_packages():
    from poisonaudit.attack import outcome as attack_outcome

    assert outcome is attack_outcome


def test_a_control_of_another_problem_is_refused(problem, poison, judged):
    other = fit(Problem(problem.module(), problem.loss, problem.x, problem.y, 1.0)).problem
    null = dataclasses.replace(poison, delta=torch.zeros_like(poison.delta))
    control = retrain(other, null, fresh=3, loose=False).control
    with pytest.raises(UsageError, match="trained on another problem") as refusal:
        retrain(problem, poison, fresh=3, loose=False, control=control)
    assert refusal.value.code == "PA372"


def test_a_trainer_without_seeds_is_refused(problem, poison):
    with pytest.raises(UsageError, match="no fresh seed") as refusal:
        retrain(problem, poison, fresh=0, trainer=lambda problem, seed: problem.weights)
    assert refusal.value.code == "PA371"


@pytest.mark.parametrize("tolerance", [2.0, 0.01, 0.0, float("nan"), "small", True])
def test_a_tolerance_that_untrained_weights_meet_is_refused(problem, poison, tolerance):
    with pytest.raises(UsageError, match="PA371 tolerance is"):
        retrain(problem, poison, fresh=0, tolerance=tolerance)


def test_no_base_rate_where_each_control_is_what_success_is_counted_from(problem):
    toward = TargetWeights(problem.weights + 0.1, success_at=0.01)
    judged = retrain(problem, craft(problem, toward, Budget(radius=0.2, rows=3), steps=1), fresh=2, loose=False)
    summary = judged.summary()
    assert summary["success"] is not None and summary["control_success"] is None
