"""The study of predictive validity: its plan, baselines in closed form, two tiny cases, and what the analysis says."""

from __future__ import annotations

import collections
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import predictive_analysis, predictive_damage, predictive_page, predictive_plan, predictive_scores
from benchmarks.predictive_baselines import baselines, gradients, input_jacobians, sam_sharpness
from benchmarks.predictive_plan import Model, budget_of, flip_targets, models, trained
from benchmarks.predictive_validity import settings
from poisonaudit import Problem, fit, graphical_derivative, lipschitz_modulus
from poisonaudit.attack.poison import embed

TINY = [Model(0, "wine", "linear", 0.1, 0.1, "tight", 5), Model(1, "wine", "linear", 0.1, 0.0, "loose 10", 6)]


def test_the_plan_is_balanced_and_does_not_change() -> None:
    plan = models()
    assert plan == models() and len({each.key for each in plan}) == len(plan) == 60
    for data in ("digits", "breast_cancer", "wine"):
        own = [each for each in plan if each.data == data]
        assert collections.Counter(each.training for each in own) == {"tight": 14, "loose 40": 3, "loose 10": 3}
        assert collections.Counter(each.noise for each in own) == {0.0: 8, 0.1: 6, 0.2: 6}
        assert sum(each.convex for each in own) == 4 and sum(each.kinked for each in own) == 7
    # What was committed before anything was measured.
    assert [each.seed for each in plan[::20]] == [330983649, 832388557, 914658367]
    assert plan[12].key == "12 digits mlp:64-8-8-10?activation=relu, decay 0.003, noise 0.1, tight"
    json.dumps([settings(), *(each.facts() for each in plan)])


def test_labels_targets_and_budgets() -> None:
    noisy, clean = (predictive_plan.clean_problem(each) for each in TINY)
    assert int((noisy.y != clean.y).sum()) == round(0.1 * noisy.rows)
    data = predictive_plan.data_of("wine")
    targets = flip_targets("wine")
    assert targets == flip_targets("wine") and len({row for row, _ in targets}) == 5
    assert all(wanted != int(data.y_test[row]) for row, wanted in targets)
    mu = budget_of("wine").around(data.x_train).best_linear(torch.ones_like(data.x_train))
    width = data.box[1] - data.box[0]
    assert float((mu / width).max()) == pytest.approx(0.1) and bool((data.x_train + mu <= data.box[1] + 1e-9).all())
    digits = predictive_plan.data_of("digits").x_train
    assert float(budget_of("digits").around(digits).best_linear(torch.ones_like(digits)).max()) == pytest.approx(
        16 / 255
    )


def test_baselines_in_closed_form() -> None:
    """Softmax regression: grad_W L = (p - y) x^T, grad_x L = W^T (p - y), Jacobian W."""
    problem = trained(TINY[0])
    weight = problem.weights[:39].view(3, 13)
    residual = problem.outputs().softmax(1) - nn.functional.one_hot(problem.y, 3)
    by_weights, by_input = gradients(problem)
    expected = residual.norm(dim=1) * (problem.x.square().sum(1) + 1).sqrt()
    assert torch.allclose(by_weights, expected) and torch.allclose(by_input, (residual @ weight).norm(dim=1))
    test = predictive_plan.test_rows("wine")
    assert torch.allclose(input_jacobians(problem, test[0]), weight.norm().expand(len(test[0])))
    found = baselines(problem, test)
    assert found["baseline.decay"] == 0.1 and all(math.isfinite(value) for value in found.values())
    assert found["baseline.weight_norm"] == pytest.approx(float(problem.weights.norm()))


def test_sharpness_of_a_quadratic() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(20, size, generator=generator, dtype=torch.float64) for size in (4, 1))
    problem = fit(Problem(nn.Linear(4, 1, bias=False).double(), "half_squared", x, y, decay=0.1)).problem
    largest = float(torch.linalg.eigvalsh(x.T @ x / 20)[-1]) + 0.1
    assert sam_sharpness(problem, 0.3) == pytest.approx(0.5 * largest * 0.09, rel=1e-6)


def test_the_worst_displacement_is_in_the_budget_and_ahead_of_random_corners() -> None:
    problem, budget = trained(TINY[0]), budget_of("wine")
    rows, delta, length = predictive_damage.worst_displacement(problem, budget, 0)
    assert len(rows) == budget.count(problem.rows) == 6
    allowed = budget.around(problem.x[rows])
    assert torch.equal(allowed.project(delta), delta)
    mu = embed(problem, rows, delta)
    assert length == pytest.approx(float(graphical_derivative(problem, mu).displacement.norm()), rel=1e-8)
    assert length <= lipschitz_modulus(problem, rows).value * float(mu.norm()) * (1 + 1e-9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        other = torch.randperm(problem.rows, generator=generator)[:6].sort().values
        corner = budget.around(problem.x[other]).best_linear(torch.randn(6, 13, generator=generator).double())
        assert float(graphical_derivative(problem, embed(problem, other, corner)).displacement.norm()) < length


@pytest.fixture(scope="module")
def tiny_cases() -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictive_damage, "SEEDS", 2)
        patch.setattr(predictive_damage, "STEPS", {"validation": 1, "flip": 1})
        patch.setattr(predictive_damage, "flip_targets", lambda name: flip_targets(name, 1))
        patch.setattr(predictive_scores, "MEASURES", ("stationarity.relative_gradient", "solution.modulus", "new.one"))
        return [
            {
                "model": each.facts(),
                "damage": predictive_damage.damage(each),
                "scores": predictive_scores.scores(each)["scores"],
            }
            for each in TINY
        ]


def test_two_tiny_models_end_to_end(tiny_cases: list[dict]) -> None:
    tight, loose = (each["damage"] for each in tiny_cases)
    json.dumps(tiny_cases, allow_nan=False)
    assert len(tight["seeds"]) == 1 and len(loose["seeds"]) == 2
    assert tight["relative_gradient"] < 1e-8 < 1e-3 < loose["relative_gradient"] and loose["polished_by"] > 0
    # One minimum: wherever training starts, the same weights, and the same damage.
    assert tight["displacement"]["fresh"] == pytest.approx([tight["displacement"]["own_start"]], rel=1e-3)
    assert tight["validation"]["fresh"]["loss_rise"] == pytest.approx(
        [tight["validation"]["own_start"]["loss_rise"]], rel=1e-2
    )
    assert tight["displacement"]["own_start"] == pytest.approx(tight["displacement"]["predicted"], rel=0.5)
    assert tight["validation"]["own_start"]["loss_rise"] > 0 and tight["flips"][0]["own_start"]["poisoned"] is not None
    assert tight["retrainings"] == 1 + 2 * 3 and tight["retrainings_above_tolerance"] == 0
    found = [predictive_analysis.damages(each) for each in tiny_cases]
    assert all(value is not None for each in found for value in each.values())
    assert tiny_cases[0]["scores"]["solution.modulus"]["valid"]
    assert not tiny_cases[1]["scores"]["solution.modulus"]["valid"] and "new.one" not in tiny_cases[0]["scores"]
    assert predictive_analysis.score(tiny_cases[1], "solution.modulus") is None
    assert predictive_analysis.score(tiny_cases[1], "solution.modulus", flagged=True) > 0


def test_too_few_models_have_no_correlations_but_a_page(tiny_cases: list[dict]) -> None:
    found = predictive_analysis.analysed(tiny_cases)
    assert found["tests"] == 0 and found["comparisons"] == [] and found["damages"]["movement"]["models"] == 2
    record = {"summary": found, "date": "2026-11-21", "machine": {"processor": "x"}, "versions": {"torch": "2.15"}}
    assert "none (n = 2)" in predictive_page.results(record)
    json.dumps(found, allow_nan=False)


def test_an_attack_that_fails_is_kept_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no\n luck")

    monkeypatch.setattr(predictive_damage, "worst_displacement", broken)
    found = predictive_damage._kept(lambda: predictive_damage._displacement(predictive_damage._Victim(TINY[1])))
    assert found["failed"] == "RuntimeError: no luck" and found["seconds"] > 0


def drawn_cases() -> list[dict]:
    """Thirty models whose damage is one score and noise; another score is its mirror image, a third is nothing."""
    generator = np.random.default_rng(2)
    cases = []
    for index in range(30):
        data, hidden, lure = ("digits", "wine", "breast_cancer")[index % 3], *generator.normal(size=2)
        harm = float(hidden + 0.2 * generator.normal()) + 10.0 * (index % 3)
        entry = {"infinite": False, "valid": True, "status": "measured", "reason": "", "seconds": 0.0}
        flip = {"own_start": {"clean": 0.0, "poisoned": harm}, "fresh": {"clean": [0, 0], "poisoned": [harm, harm]}}
        scores = {
            "solution.good": {**entry, "value": float(hidden), "direction": "lower_is_safer"},
            "art.mirrored": {**entry, "value": -float(hidden), "direction": "higher_is_safer"},
            "art.noise": {**entry, "value": float(lure), "direction": "lower_is_safer"},
            "stationarity.relative_gradient": {**entry, "value": 0.0, "direction": "neutral"},
            "baseline.test_accuracy": {**entry, "value": float(lure), "direction": "higher_is_safer"},
            "baseline.turned": {**entry, "value": -float(hidden + lure), "direction": "lower_is_safer"},
        }
        if index < 6:
            scores["solution.good"] |= {"valid": False, "reason": "not stationary: relative gradient 1"}
        elif index < 9:
            scores["solution.good"] |= {"value": None, "infinite": True}
        cases.append(
            {
                "model": {"data": data, "key": f"model {index}"},
                "damage": {
                    "displacement": {"own_start": harm} if index else {"failed": "NumericalFailure: PA1"},
                    "validation": {
                        "own_start": {"loss_rise": harm},
                        "fresh": {"loss_rise": [harm, harm + 1], "accuracy_drop": [harm, -0.5 * harm]},
                    },
                    "flips": [flip, {**flip, "seconds": 1.0}],
                },
                "scores": scores,
            }
        )
    return cases


@pytest.fixture(scope="module")
def summary() -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictive_analysis, "DRAWS", 200)
        patch.setattr(predictive_analysis, "PERMUTATIONS", 1_999)
        return predictive_analysis.analysed(drawn_cases())


def entry_of(found: list[dict], name: str, harm: str) -> dict:
    return next(each for each in found if each["score"] == name and each["damage"] == harm)


def test_the_analysis_finds_what_was_put_in(summary: dict) -> None:
    json.dumps(summary, allow_nan=False)
    told = summary["correlations"]
    assert not any(each["score"].startswith("stationarity") for each in told)
    within = entry_of(told, "art.mirrored", "loss_own")["within"]
    assert within["value"] > 0.85 and within["low"] > 0.6 and within["p_holm"] < 0.05 and within["models"] == 30
    assert entry_of(told, "art.noise", "loss_own")["within"]["p_holm"] > 0.05
    assert entry_of(told, "art.mirrored", "movement")["within"]["models"] == 29
    # Shifts of whole data sets hide the order over all models, not the order within.
    assert entry_of(told, "art.mirrored", "loss_own")["pooled"]["value"] < 0.6
    good = entry_of(told, "solution.good", "loss_own")
    assert (
        good["within"]["models"] == 24
        and entry_of(summary["flagged"], "solution.good", "loss_own")["within"]["models"] == 30
    )
    assert summary["missing"] == {"solution.good": {"not stationary": 6}}
    assert summary["failures"] == [{"model": "model 0", "attack": "displacement", "reason": "NumericalFailure: PA1"}]
    assert summary["tests"] == 3 * len(predictive_analysis.DAMAGES)
    assert summary["expected_false_finds"] == pytest.approx(0.05 * summary["tests"])


def test_the_best_baseline_may_be_turned_and_measures_may_not(summary: dict) -> None:
    best = summary["best_baseline"]["loss_own"]
    assert best["score"] == "baseline.turned" and best["sign"] == -1
    ahead = entry_of(summary["comparisons"], "art.mirrored", "loss_own")
    assert ahead["value"] > 0 and ahead["low"] > 0
    behind = entry_of(summary["comparisons"], "art.noise", "loss_own")
    assert behind["value"] < 0 and behind["high"] < 0
    assert entry_of(summary["correlations"], "baseline.test_accuracy", "loss_own")["partial"] is None
    assert summary["damages"]["loss_fresh"]["agreement_of_seeds"] == pytest.approx(1.0)
    assert summary["damages"]["accuracy_fresh"]["agreement_of_seeds"] == pytest.approx(-1.0)


def test_the_page_is_rewritten_between_its_marks(summary: dict, tmp_path) -> None:
    record = {"summary": summary, "date": "2026-11-21", "machine": {"processor": "x"}, "versions": {"torch": "2.15"}}
    page = tmp_path / "page.md"
    page.write_text(f"before\n{predictive_page.BEGIN}\nstale line\n{predictive_page.END}\nafter\n")
    for _ in range(2):
        predictive_page.rewrite(record, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "stale line" not in text
    assert text.count("### What the poison did") == 1 and "not stationary (6)" in text and "None" not in text
    rows = [line for line in text.splitlines() if line.startswith("| `art.mirrored`")]
    assert len(rows) == 4 and all(row.count(" | ") == len(predictive_analysis.DAMAGES) for row in rows)
    assert "**" in rows[0]
    assert all(mark in predictive_page.PAGE.read_text() for mark in (predictive_page.BEGIN, predictive_page.END))
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the lines"):
        predictive_page.rewrite(record, page)
