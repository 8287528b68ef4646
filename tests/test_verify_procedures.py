"""Tight, loose and own training side by side: same seeds, own controls, what the summary says, null poisons."""

from __future__ import annotations

import json
import statistics

import pytest
import torch
from torch import nn

from poisonaudit.attack import Budget, FlipPrediction, Poison, TargetWeights, craft
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.gates import attack_measures
from poisonaudit.problem import Problem
from poisonaudit.results import AttackResult, finite
from poisonaudit.training import fit
from poisonaudit.verify import loose_trainer, paired_test, retrain, sgd_trainer
from tests.conftest import LinearRows, mlp


@pytest.fixture(scope="module")
def rows():
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    x = torch.tensor((x - x.mean(0)) / x.std(0))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order][:120], torch.tensor(y).long()[order][:120], x[order][120:], torch.tensor(y).long()[order][120:]


@pytest.fixture(scope="module")
def problem(rows):
    return fit(Problem(mlp([13, 3, 3]), "cross_entropy", rows[0], rows[1], 1e-2)).problem


@pytest.fixture(scope="module")
def poison(problem, rows):
    objective = FlipPrediction(rows[2][0], (int(rows[3][0]) + 1) % 3)
    return craft(problem, objective, Budget(radius=0.3, rows=10), steps=2, test=rows[2:])


def own(problem: Problem, seed: int) -> nn.Module:
    model = problem.module()
    with torch.no_grad():
        for value, fresh in zip(
            model.parameters(), problem.parameters(sgd_trainer(5)(problem, seed)).values(), strict=True
        ):
            value.copy_(fresh)
    return model


@pytest.fixture(scope="module")
def judged(problem, poison, rows):
    return retrain(problem, poison, fresh=3, trainer=own, test=rows[2:])


def test_every_procedure_runs_from_the_same_seeds_with_its_own_control(judged, problem, poison):
    poisoned = poison.poisoned(problem)
    procedures = {"loose": loose_trainer(), "trainer": sgd_trainer(5)}
    for kind in ("tight", "loose", "trainer"):
        runs, controls = judged.runs(kind), judged.control.runs(kind)
        assert [run.seed for run in runs] == [run.seed for run in controls] == [1, 2, 3]
        assert {run.kind for run in (*runs, *controls)} == {kind}
        for run, clean in zip(runs, controls, strict=True):
            change = run.outcome["margin"] - clean.outcome["margin"]
            assert run.outcome["margin_change"] == pytest.approx(change)
            assert run.outcome["displacement_norm"] == pytest.approx(float((run.weights - clean.weights).norm()))
        if kind in procedures:
            assert torch.equal(runs[1].weights, procedures[kind](poisoned, 2))
            assert torch.equal(controls[2].weights, procedures[kind](problem, 3))
    assert all(run.converged for run in (*judged.tight, *judged.control.tight))
    assert not any(run.converged for run in (*judged.loose, *judged.trainer))
    assert judged.fresh == judged.trainer and judged.control.fresh == judged.control.trainer


def test_without_a_trainer_fresh_is_tight_and_loose_can_be_replaced_or_left_out(problem, poison, judged):
    plain = retrain(problem, poison, fresh=3, control=judged.control)
    assert plain.fresh == plain.tight and plain.trainer == () and plain.summary()["trainer"] is None
    for one, other in zip(plain.tight, judged.tight, strict=True):
        assert torch.equal(one.weights, other.weights)
    quick = loose_trainer(epochs=1)
    replaced = retrain(problem, poison, fresh=1, loose=quick, tight=False)
    assert torch.equal(replaced.loose[0].weights, quick(poison.poisoned(problem), 1)) and replaced.tight == ()
    none = retrain(problem, poison, fresh=1, loose=False)
    assert none.loose == () and none.control.loose == () and none.summary()["loose"] is None


def test_summary_gives_every_procedure_in_one_shape(judged, poison):
    summary = judged.summary()
    assert summary["tight"].keys() == summary["loose"].keys() == summary["trainer"].keys()
    assert summary["trainer"].items() <= summary.items() and summary["not_predicted"] is None
    assert summary["fresh_runs"] == 3 and summary["not_converged"] == 3 and summary["tight"]["not_converged"] == 0
    predicted = poison.predicted["margin_change"]
    for kind in ("tight", "loose", "trainer"):
        runs, controls = judged.runs(kind), judged.control.runs(kind)
        changes = [run.outcome["margin"] - clean.outcome["margin"] for run, clean in zip(runs, controls, strict=True)]
        told = summary[kind]["paired"]["margin_change"]
        assert told["mean"] == pytest.approx(statistics.fmean(changes))
        assert told["standard_error"] == pytest.approx(statistics.stdev(changes) / 3**0.5)
        assert told["test"]["p_value"] == paired_test(changes).p_value == 0.25
        assert told["ratio"]["median"] == pytest.approx(statistics.median(changes) / predicted)
        assert told["ratio"]["lowest"] == pytest.approx(min(change / predicted for change in changes))
        assert told["ratio"]["warm"] == pytest.approx(judged.warm.outcome["margin_change"] / predicted)
        accuracy = [
            run.outcome["test_accuracy"] - clean.outcome["test_accuracy"]
            for run, clean in zip(runs, controls, strict=True)
        ]
        assert summary[kind]["accuracy_change"]["mean"] == pytest.approx(statistics.fmean(accuracy))
        assert summary[kind]["success"]["successes"] == sum(run.outcome["success"] for run in runs)
    body = json.loads(json.dumps([finite(judged.to_json()), finite(judged.control.to_json())], allow_nan=False))
    for part in body:
        assert part["fresh"] == part["trainer"] and len(part["tight"]) == len(part["loose"]) == 3
        assert part["loose"][0]["kind"] == "loose" and part["loose"][0]["reason"].startswith("Adam, 40 epochs")


def test_an_invalid_prediction_says_so(judged):
    flagged = {**judged.predicted, "valid": False, "reasons": ["phi is 2, above 0.3.", "the path was lost"]}
    changed = type(judged)(judged.warm, judged.tight, judged.control, flagged, judged.loose, judged.trainer)
    assert changed.summary()["not_predicted"] == "phi is 2, above 0.3; the path was lost"


def test_movement_and_cosine_are_told(problem):
    target = TargetWeights(problem.weights + 0.2 * torch.sin(torch.arange(problem.size).double()))
    poison = craft(problem, target, Budget(radius=0.3, rows=10), steps=1)
    judged = retrain(problem, poison, fresh=2)
    summary = judged.summary()["loose"]
    assert summary["cosine"]["mean"] == pytest.approx(statistics.fmean(run.outcome["cosine"] for run in judged.loose))
    assert summary["cosine"]["predicted"] == poison.predicted["cosine"]
    assert summary["paired"]["movement"]["warm"] == judged.warm.outcome["movement"] > 0


@pytest.mark.parametrize("kind", ["flip", "target"])
def test_a_null_poison_has_no_effect_at_all(problem, rows, kind):
    """delta = 0: every poisoned run is its control bit for bit, changes are 0, p is 1."""
    flip = FlipPrediction(rows[2][0], 0)
    objective = flip if kind == "flip" else TargetWeights(problem.weights + 0.1)
    nothing = torch.zeros(4, 13, dtype=torch.float64)
    null = Poison(torch.arange(4), nothing, {}, (), Budget(radius=1.0, rows=4), objective, problem.weights, 0, 0.0)
    judged = retrain(problem, null, fresh=2, trainer=own, test=rows[2:])
    assert torch.equal(judged.warm.weights, judged.control.warm.weights)
    key = "margin_change" if kind == "flip" else "movement"
    for kind_of_training in ("tight", "loose", "trainer"):
        for run, clean in zip(judged.runs(kind_of_training), judged.control.runs(kind_of_training), strict=True):
            assert torch.equal(run.weights, clean.weights)
            assert run.outcome[key] == 0.0 and run.outcome["displacement_norm"] == 0.0
        told = judged.summary()[kind_of_training]
        assert told["paired"][key]["mean"] == 0.0 and told["paired"][key]["standard_error"] == 0.0
        assert told["paired"][key]["test"]["p_value"] == 1.0 and told["paired"][key]["test"]["method"] == "none"
        assert told["paired"][key]["ratio"] is None and told["accuracy_change"]["mean"] == 0.0
        assert told["success"] == told["control_success"]
        assert told["cosine"] is None or told["cosine"]["mean"] is None
    json.dumps(finite(judged.to_json()), allow_nan=False)


def test_a_model_that_cannot_be_initialised_is_left_to_the_users_trainer():
    x = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = fit(Problem(LinearRows([0.5, -1.0]), "half_squared", x, x.sum(1), 1e-2)).problem
    target = TargetWeights(problem.weights + 0.1)
    poison = craft(problem, target, Budget(radius=0.1, rows=5), steps=1)

    def newton(given: Problem, seed: int) -> torch.Tensor:
        return fit(given, seed=seed).problem.weights

    judged = retrain(problem, poison, fresh=2, trainer=newton)
    assert len(judged.trainer) == 2 and judged.tight == judged.loose == ()
    assert "reset_parameters" in judged.summary()["notes"][0] and judged.summary()["tight"] is None
    with pytest.raises(InputRefused, match="PA126"):
        retrain(problem, poison, fresh=1)


def test_controls_of_other_seeds_are_refused_for_every_procedure(problem, poison, judged):
    lacking = type(judged.control)(judged.control.warm, judged.control.tight)
    again = retrain(problem, poison, fresh=3, control=lacking)
    for one, other in zip(again.control.loose, judged.control.loose, strict=True):
        assert torch.equal(one.weights, other.weights)
    mixed = type(judged.control)(judged.control.warm, loose=judged.control.loose)
    with pytest.raises(UsageError, match="PA372"):
        retrain(problem, poison, fresh=2, control=mixed)


def test_a_gate_takes_the_users_own_training_as_it_is(judged):
    result = AttackResult(
        name="flip",
        model="m",
        data="d",
        recipe={},
        budget={},
        rows=[],
        predicted=finite(judged.predicted),
        retrained=finite(judged.to_json()),
        control=finite(judged.control.to_json()),
    )
    (measure,) = attack_measures(result)
    assert measure.valid and measure.details["fresh"] == [run.outcome["success"] for run in judged.trainer]
    tight = finite({**judged.to_json(), "fresh": [{**judged.tight[0].to_json(), "converged": False}]})
    (loose,) = attack_measures(AttackResult.from_json({**result.to_json(), "retrained": tight}))
    assert not loose.valid
