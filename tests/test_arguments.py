"""Arguments of the wrong type: one line with a code, from every public function, and arrays where they are meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import mlp

from poisonaudit import (
    Problem,
    audit,
    coderivative,
    craft,
    fit,
    follow_path,
    graphical_derivative,
    lipschitz_modulus,
    retrain,
    row_moduli,
    theorem2_moduli,
)
from poisonaudit.arguments import MOST_DAMPING
from poisonaudit.attack import Budget, FlipPrediction, FlipPredictions, TargetRegion, TargetWeights, ValidationLoss
from poisonaudit.attack.baselines import run_baseline
from poisonaudit.attack.objectives.target_region import Ball, Box, HalfSpace
from poisonaudit.data import load_data
from poisonaudit.errors import PoisonAuditError
from poisonaudit.verify import verified_cost
from poisonaudit.verify.detectors.run import detect, run_detectors


@pytest.fixture(scope="module")
def small() -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, dtype=torch.float64, generator=generator)
    y = (x @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64) > 0).long()
    return fit(Problem(mlp([3, 2]), "cross_entropy", x, y, decay=0.1)).problem


def refused(call: Callable[[], Any], code: str, *parts: str) -> None:
    with pytest.raises(PoisonAuditError) as caught:
        call()
    text = str(caught.value)
    assert text.startswith(code) and "\n" not in text, text
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize("wrong", [None, 3, "problem"])
def test_what_needs_a_problem_says_so(wrong: Any) -> None:
    mu = torch.zeros(2, 3)
    calls: dict[str, Callable[[], Any]] = {
        "audit": lambda: audit(wrong),
        "fit": lambda: fit(wrong),
        "lipschitz_modulus": lambda: lipschitz_modulus(wrong),
        "row_moduli": lambda: row_moduli(wrong),
        "theorem2_moduli": lambda: theorem2_moduli(wrong),
        "graphical_derivative": lambda: graphical_derivative(wrong, mu),
        "coderivative": lambda: coderivative(wrong, mu),
        "follow_path": lambda: follow_path(wrong, mu),
        "craft": lambda: craft(wrong, FlipPrediction(mu[0], 1), Budget(radius=0.1, rows=1)),
        "retrain": lambda: retrain(wrong, None),  # type: ignore[arg-type]
        "run_detectors": lambda: run_detectors(wrong, mu, [0]),
    }
    for name, call in calls.items():
        refused(call, "PA314", f"{name} got a {type(wrong).__name__}", "for problem", "Pass poisonaudit.Problem(")


def test_crafting_names_the_argument_that_is_wrong(small: Problem) -> None:
    goal, budget = FlipPrediction(small.x[0], 1), Budget(radius=0.1, rows=1)
    anything: Any = craft
    refused(lambda: anything(small, "flip", budget), "PA314", "a str ('flip') for objective", "FlipPrediction")
    refused(lambda: anything(small, goal, "x"), "PA314", "for budget", "Budget(radius=")
    for given in ({"on_step": 3}, {"state": 3}, {"progress": 3}):
        refused(lambda given=given: anything(small, goal, budget, **given), "PA314", f"for {next(iter(given))}.")
    for given in ({"damping": 1e200}, {"damping": 1.1e6}, {"damping": -1.0}, {"seed": -1}, {"seed": 0.5}):
        name, value = next(iter(given.items()))
        refused(lambda given=given: anything(small, goal, budget, **given), "PA367", f"{name} is {value!r}")
    refused(lambda: coderivative(small, small.weights, damping=1e200), "PA304", "damping", "[0, 1e+06]")
    for given in ({"steps": "3"}, {"steps": 2.5}, {"steps": True}, {"members": "a"}, {"damping": "a"}):
        refused(lambda given=given: anything(small, goal, budget, **given), "PA367", repr(next(iter(given.values()))))
    refused(lambda: run_baseline("influence", small, "flip", budget, [0]), "PA314", "run_baseline", "for objective")
    refused(lambda: verified_cost(small, goal, None), "PA314", "verified_cost", "for budget")  # type: ignore[arg-type]


def test_the_most_damping_still_crafts(small: Problem) -> None:
    goal, budget = FlipPrediction(small.x[0], 1), Budget(radius=0.1, rows=1)
    poison = craft(small, goal, budget, steps=1, damping=MOST_DAMPING)
    assert bool(poison.delta.isfinite().all()) and poison.delta.any()


def test_regions_take_arrays_and_numbers(small: Problem) -> None:
    anything: Any = TargetRegion
    refused(lambda: anything(3), "PA314", "TargetRegion got a int (3) for region", "a Ball")
    normal = torch.ones_like(small.weights)
    reach = float(small.weights.sum()) + 1.0
    values = [
        TargetRegion(HalfSpace(given, reach)).bind(small).value(small.weights)  # type: ignore[arg-type]
        for given in (normal, normal.numpy(), normal.tolist())
    ]
    assert values[0] == values[1] == values[2] > 0.0
    half, ball, box = cast(Any, HalfSpace), cast(Any, Ball), cast(Any, Box)
    for call, what in ((lambda: half(normal, "a"), "offset"), (lambda: ball(normal, torch.inf), "radius")):
        refused(call, "PA376", f"the region's {what}")
    refused(lambda: box("a", normal), "PA127", "the lower limit")


def test_retraining_names_the_argument_that_is_wrong(small: Problem) -> None:
    poison = craft(small, FlipPrediction(small.x[0], 1), Budget(radius=0.01, rows=1), steps=1)
    anything: Any = retrain
    refused(lambda: anything(small, None), "PA314", "a NoneType for poison", "craft returned")
    refused(lambda: anything(small, poison, trainer="train.py:train"), "PA314", "for trainer", "callable")
    refused(lambda: anything(small, poison, loose="adam"), "PA314", "for loose")
    refused(lambda: anything(small, poison, fresh="a"), "PA371", "'a'")
    refused(lambda: anything(small, poison, fresh=[1.5]), "PA371", "1.5")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"immutable": ["age"]}, "PA369 immutable is ['age']"),
        ({"immutable": 3}, "PA369"),
        ({"scale": ["a", 1.0]}, "PA369"),
        ({"spacing": {"age": 1.0}}, "PA369"),
        ({"norm": "l0", "entries": "2"}, "PA369"),
        ({"share": "a", "rows": None}, "PA361"),
        ({"share": True, "rows": None}, "PA361"),
        ({"box": ("a", 1.0)}, "PA362"),
        ({"choice": ["first"], "rows": None}, "PA363"),
        ({"radius": "12/255"}, "PA360 radius is '12/255'"),
        ({"radius": True}, "PA360 radius is True"),
        ({"radius": 10**400}, "PA360"),
        ({"radius": np.array([0.1])}, "PA360 radius is array([0.1])"),
        ({"rows": "2"}, "PA361 rows is '2'"),
    ],
)
def test_budgets_take_numbers(given: dict[str, Any], code: str) -> None:
    refused(lambda: Budget(**{"radius": 0.1, "rows": 1, **given}), code)


@pytest.mark.parametrize("number", [np.float64, np.float32, np.array, torch.tensor])
def test_budgets_take_numbers_of_any_library(number: Callable[[Any], Any]) -> None:
    budget = Budget(radius=number(0.25), share=number(0.5))
    assert type(budget.radius) is type(budget.share) is float
    assert budget.radius == 0.25 and budget.count(10) == 5
    counted = Budget(radius=1, rows=torch.tensor(3), norm="l0", entries=np.int64(2))  # type: ignore[arg-type]
    body = json.loads(json.dumps(counted.describe()))
    assert body["rows"] == 3 and body["entries"] == 2 and body["radius"] == 1.0


def test_objectives_take_arrays_and_give_the_same_goal(small: Problem) -> None:
    row, target = small.x[3], small.weights + 0.1
    for one, other in (
        (FlipPrediction(row, 1), FlipPrediction(row.numpy(), np.int64(1))),  # type: ignore[arg-type]
        (FlipPrediction(row, 1), FlipPrediction(row.tolist(), torch.tensor(1))),  # type: ignore[arg-type]
        (FlipPrediction(row, 1), FlipPrediction(row.numpy()[None, ::-1][:, ::-1], 1)),  # type: ignore[arg-type]
        (FlipPredictions(small.x[:4], [0, 1, 1, 0]),
         FlipPredictions(small.x[:4].numpy(), np.array([0, 1, 1, 0]))),  # type: ignore[arg-type]
        (ValidationLoss(small.x[:4], small.y[:4]),
         ValidationLoss(small.x[:4].numpy(), small.y[:4].numpy())),  # type: ignore[arg-type]
        (TargetWeights(target), TargetWeights(target.numpy())),  # type: ignore[arg-type]
    ):  # fmt: skip
        assert one.bind(small).value(small.weights) == other.bind(small).value(small.weights)
        assert one.describe() == other.describe()


def test_rows_and_classes_that_are_no_numbers(small: Problem) -> None:
    anything: Any = FlipPrediction
    refused(lambda: anything("row", 1), "PA127", "the row to flip")
    refused(lambda: anything(None, 1), "PA127")
    for label in (2.5, 1.0, True, "1", None, torch.tensor(1.5)):
        refused(lambda label=label: anything(small.x[0], label), "PA366", "whole numbers")
    several: Any = FlipPredictions
    refused(lambda: several(small.x[:2], ["a", "b"]), "PA127", "the wanted classes")
    refused(lambda: several(small.x[:2], [0.5, 1]).bind(small), "PA211")
    refused(lambda: graphical_derivative(small, small.x.numpy()), "PA127", "mu is a ndarray")  # type: ignore[arg-type]


def test_detectors_need_the_weights_of_the_problem(small: Problem) -> None:
    short, right = small.weights[:-1], small.weights
    refused(lambda: run_detectors(small, short, [0]), "PA125", f"({small.size - 1},)", f"({small.size},)")
    refused(lambda: run_detectors(small, right, [0], unpoisoned=(small, short)), "PA125")
    refused(lambda: detect(small, right.tolist(), expected_share=0.1), "PA125", "list")  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", ["a", 2.5, True, 1])
def test_limits_are_whole_numbers(limit: Any) -> None:
    refused(lambda: load_data("wine", limit=limit), "PA333", repr(limit))
