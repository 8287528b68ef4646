"""Columns that move in whole steps: those whose step is longer than the radius are named, and wholly stuck budgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from torch import nn

from poisonaudit import Problem, craft, fit
from poisonaudit.attack import Budget, Membership, TargetWeights
from poisonaudit.attack.baselines import run_baseline
from poisonaudit.cli.main import cli
from poisonaudit.errors import UsageError
from poisonaudit.verify import verified_cost
from poisonaudit.verify.stealth import stealth_damage

NOTHING = torch.zeros(2, 3, dtype=torch.float64)


@pytest.fixture(scope="module")
def line() -> Problem:
    """Least squares with three weights."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=rng, dtype=torch.float64)
    y = x @ torch.ones(3, 1, dtype=torch.float64) + torch.randn(8, 1, generator=rng, dtype=torch.float64)
    return fit(Problem(nn.Linear(3, 1, bias=False).double(), "half_squared", x, y, 0.1), 1e-12).problem


def test_columns_that_cannot_move_are_those_that_no_admissible_point_moves() -> None:
    budget = Budget(radius=0.5, rows=2, spacing={0: 0.6, 1: 0.5, 2: 1.2}, scale=[1.0, 1.0, 2.0], box=(-1.0, 1.0))
    far = 10 * torch.ones_like(NOTHING)
    moved = budget.around(NOTHING).best_linear(far).abs().amax(0) > 0
    assert moved.tolist() == [False, True, False]
    (said,) = budget.remarks(NOTHING)
    assert said.startswith("columns 0 (step 0.6), 2 (step 1.2) cannot move") and "\n" not in said
    assert "spacing" in said and "integer" in said and "0.5" in said
    assert budget.remarks(NOTHING, ["age", "dose", "visits"])[0].startswith("columns age (step 0.6), visits (step")
    # A step that is the radius, to rounding, is no longer than it.
    assert not Budget(radius=0.3, rows=2, spacing={0: 0.1 + 0.2}).remarks(NOTHING)
    assert not Budget(radius=0.3, rows=2).remarks(NOTHING)


def test_immutable_columns_are_not_told_of_and_long_lists_are_cut() -> None:
    budget = Budget(radius=0.5, rows=2, spacing={0: 0.6, 1: 0.6}, immutable=[0])
    assert budget.remarks(NOTHING)[0].startswith("column 1 (step 0.6) cannot move")
    wide = torch.zeros(1, 20)
    (said,) = Budget(radius=0.5, rows=1, spacing=dict.fromkeys(range(19), 2.0)).remarks(wide)
    assert "7 (step 2) and 11 more cannot move" in said and "8 (step" not in said


def test_entries_of_a_channel_are_counted() -> None:
    steps = torch.zeros(2, 2, 2)
    steps[1, 0] = 3.0
    (said,) = Budget(radius=1.0, rows=1, spacing=steps).remarks(torch.zeros(1, 2, 2, 2))
    assert said.startswith("column 2 entries of 1 (step 3)")


@pytest.mark.parametrize("kept", [{"spacing": {0: 2.0, 1: 2.0}, "immutable": [2]}, {"immutable": [0, 1, 2]}])
def test_budgets_in_which_nothing_moves_are_refused(line: Problem, kept: dict[str, object]) -> None:
    budget = Budget(radius=0.5, rows=2, **kept)  # type: ignore[arg-type]
    assert not budget.moves(line.x) and Budget(radius=2.0, rows=2, spacing={0: 2.0}).moves(line.x)
    target = line.weights + 0.1
    for objective in (TargetWeights(target), Membership(target)):
        with pytest.raises(UsageError, match="PA385 no entry of a row can move"):
            craft(line, objective, budget)
    with pytest.raises(UsageError, match="PA385"):
        run_baseline("random_signs", line, TargetWeights(target), budget, [0, 1])
    with pytest.raises(UsageError, match="PA385"):
        stealth_damage(line, TargetWeights(target), [Budget(radius=3.0, rows=1), budget], detectors=[])


@pytest.mark.parametrize(
    ("given", "width"),
    [
        ({"choice": [1], "radius": 0.5}, 0.0),
        ({"choice": [1], "radius": 0.5, "norm": "l2"}, 0.0),
        ({"choice": [1], "radius": 0.5, "norm": "l0", "entries": 1}, 0.0),
        ({"choice": [1], "radius": 9.0, "spacing": {0: 0.75}, "immutable": [1, 2]}, 0.5),
    ],
)
def test_a_box_without_room_is_refused(line: Problem, given: dict[str, Any], width: float) -> None:
    stuck = Budget(box=(line.x[1] - width, line.x[1] + width), **given)
    assert not stuck.moves(line.x)
    with pytest.raises(UsageError, match="PA385 .*box"):
        craft(line, TargetWeights(line.weights + 0.1), stuck)
    # Other rows lie outside that box, and may come back to it; a little more room is enough for this one.
    assert Budget(**{**given, "choice": [0], "radius": 9.0}, box=stuck.box).moves(line.x)
    assert Budget(**given, box=(line.x[1], line.x[1] + 0.8)).moves(line.x)


def test_poisons_of_every_kind_carry_the_remark(line: Problem) -> None:
    budget = Budget(radius=0.5, rows=2, spacing={1: 0.75})
    target = line.weights + 0.1
    poisons = [craft(line, kind(target), budget, steps=1) for kind in (TargetWeights, Membership)]
    poisons.append(run_baseline("random_signs", line, TargetWeights(target), budget, poisons[0].rows))
    for poison in poisons:
        assert any(note.startswith("column 1 (step 0.75) cannot move") for note in poison.notes)
        assert not poison.delta[:, 1].any()
    assert bool(poisons[0].delta.any()) and bool(poisons[2].delta.any())


def test_a_search_counts_radii_without_any_step_as_failures_and_trains_nothing() -> None:
    x, y = torch.tensor([[1.0], [0.5], [-1.0], [2.0]]).double(), torch.tensor([[1.0], [1.0], [-2.0], [1.0]]).double()
    one = fit(Problem(nn.Linear(1, 1, bias=False).double(), "half_squared", x, y, 0.1), 1e-13).problem

    def solution(moved: float) -> float:
        inputs = x[:, 0] + torch.tensor([0.0, 0.0, 0.0, moved]).double()
        return float(inputs.dot(y[:, 0]) / (inputs.square().sum() + 0.4))

    before, after, far = solution(0.0), solution(-0.4), solution(-1.0)
    assert after > before and far - before > 1.5 * (after - before)
    # One step of 0.4 is enough, and the target lies further than the largest radius reaches.
    share = 0.9 * (after - before) / (far - before)
    objective = TargetWeights(torch.tensor([far]).double(), success_at=share)
    budget = Budget(radius=0.7, choice=[3], spacing={0: 0.4})
    found = verified_cost(one, objective, budget, high=0.7, fresh=1, steps=2, precision=0.2)
    assert found.value is not None and 0.4 <= found.value <= 0.5 and 0.3 <= found.lower < 0.4
    assert all(trial.amount >= 0.4 and trial.succeeded for trial in found.trials)
    assert "no entry of a row can move (whole steps, box)" in found.reason and found.monotone


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"norm": "l2", "spacing": {0: 1.0}}, ("norm 'l2'", "leave spacing (integer in a recipe) out")),
        ({"spacing": {0: -1.0}}, ("spacing (integer in a recipe)", "negative")),
        ({"spacing": torch.ones(5)}, ("spacing (integer in a recipe)", "(5,)", "(3,)")),
    ],
)
def test_refusals_name_the_key_of_both_kinds_of_user(given: dict[str, object], words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="PA369") as caught:
        Budget(radius=0.1, rows=2, **given).around(NOTHING)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words)


def recipe(folder: Path, **budget: object) -> Path:
    path = folder / "recipe.yaml"
    body = {"model": "linear", "data": "wine", "limit": 60, "decay": 1e-2, "objective": {"kind": "flip"}}
    path.write_text(yaml.safe_dump({**body, "budget": {"rows": 3, **budget}}))
    return path


def dry(path: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["attack", str(path), "--dry-run", *words])


def test_the_plan_names_the_columns(tmp_path: Path) -> None:
    path = recipe(tmp_path, radius=0.05, integer=["magnesium", "proline", "alcohol"])
    said = dry(path)
    notes = [line for line in said.stdout.splitlines() if line.startswith("# note:")]
    assert said.exit_code == 0 and len(notes) == 1
    assert "alcohol (step" in notes[0] and "magnesium (step" in notes[0] and "proline" not in notes[0]
    assert json.loads(dry(path, "--json").stdout)["notes"] == [notes[0].removeprefix("# note: ")]
    assert json.loads(dry(recipe(tmp_path, radius=2.0, integer=["magnesium"]), "--json").stdout)["notes"] == []


def test_a_recipe_in_which_nothing_moves_is_refused_before_training(tmp_path: Path) -> None:
    said = dry(recipe(tmp_path, radius=1e-6, integer=list(range(13))))
    assert said.exit_code == 2 and said.stderr.startswith("PA385") and len(said.stderr.splitlines()) == 1
    said = dry(recipe(tmp_path, radius=1.0, norm="l2", integer=["proline"]))
    assert said.exit_code == 2 and said.stderr.startswith("PA369") and "integer" in said.stderr
