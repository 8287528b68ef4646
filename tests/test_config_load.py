"""Configurations: layers, checks, near matches, and that the plain form reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from poisonaudit.config.load import check_config, load_config, plain
from poisonaudit.config.overrides import apply_overrides, merge
from poisonaudit.config.schema import AttackConfig, AuditConfig, CompareConfig, TrainConfig
from poisonaudit.errors import UsageError

RECIPE: dict[str, Any] = {
    "name": "a",
    "model": "linear",
    "data": "digits",
    "decay": 1e-3,
    "objective": {"kind": "target_weights", "source": {"label_flips": {"from": 3, "to": 8, "count": 20}}},
    "budget": {"rows": 20, "radius": "16/255"},
}


def test_recipe_resolves_and_its_plain_form_reads_back() -> None:
    config = check_config(AttackConfig, RECIPE, "r.yaml")
    assert config.budget.radius == 16 / 255
    assert config.retrain.fresh == 5
    assert plain(config)["objective"]["source"]["label_flips"]["from"] == 3
    assert check_config(AttackConfig, plain(config), "again") == config


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("budget.radiu=3", "in budget, unknown key 'radiu'. Did you mean 'radius'?"),
        ("objective.source.label_flips.frm=3", "unknown key 'frm'. Did you mean 'from'?"),
        ("bugdet=1", "unknown key 'bugdet'. Did you mean 'budget'?"),
        ("objective.kind=flp", "unknown kind 'flp'. Did you mean 'flip' or 'flips'?"),
        ("objective.kind=flip", "in objective, unknown key 'source'"),
        ("model=null", "model is missing"),
        ("budget.rows=true", "budget.rows"),
        ("budget.rows=0", "budget.rows"),
        ("budget.rows=1.5", "budget.rows"),
        ("budget.choice=best", "'adjoint', 'kappa', 'class' or 'random'"),
        ("budget.choice=[1, 2]", "exactly one of rows"),
        ("budget.share=0.1", "exactly one of rows"),
        ("budget.radius=a/b", "budget.radius"),
        ("budget.radius=-1", "budget.radius"),
        ("budget.radius=1/0", "budget.radius"),
        ("budget.box=[1, 0]", "lower < upper"),
        ("budget=1", "budget"),
        ("seed=-1", "seed"),
        ("decay=.inf", "decay"),
        ("decay=-1", "decay"),
        ("objective.source.file=w.pt", "exactly one of label_flips, file"),
        ("objective.source.label_flips.to=3", "same class"),
        ("objective.source.label_flips.rows=[1]", "either count"),
        ("craft.steps=0", "craft.steps"),
        ("fail_on=[1]", "fail_on.0"),
    ],
)
def test_bad_recipes_name_the_key(assignment: str, part: str) -> None:
    with pytest.raises(UsageError, match="PA383") as caught:
        check_config(AttackConfig, apply_overrides(RECIPE, [assignment]), "r.yaml")
    assert part in str(caught.value)
    assert str(caught.value).startswith("PA383 r.yaml: ")


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["craft.steps=0"], "--set craft.steps=0: craft.steps: input should be greater than or equal to 1, got 0."),
        (["retrain.fresh=true"], "--set retrain.fresh=true: retrain.fresh: input should be a valid integer, got true."),
        (["retrain.fresh=null"], "got null."),
        (["retrain.fresh=[1]"], "got [1]."),
        (["craft.damping=1e200"], "--set craft.damping=1e200: craft.damping: input should be less than"),
        (["name=x", "craft.stps=3"], "--set craft.stps=3: in craft, unknown key 'stps'."),
        (["retrain={fresh: 1, tolerance: 0}"], "--set retrain={fresh: 1, tolerance: 0}: retrain.tolerance: input"),
        (["retrain.fresh='1'"], "got '1'. Write it without quotes."),
        (["retrain.fresh=many"], "got 'many'."),
        (["budget.rows=3", "budget.rows=0"], "--set budget.rows=0: budget.rows"),
        (["objective.kind=flp"], "unknown kind 'flp'"),
        (["retrain.fresh=2"], "r.yaml: craft.steps: input should be a valid integer, got '12'. Write it"),
    ],
)
def test_a_bad_value_is_told_with_the_place_it_came_from(tmp_path: Path, assignments: list[str], said: str) -> None:
    file = tmp_path / "r.yaml"
    steps = '"12"' if assignments == ["retrain.fresh=2"] else "12"
    file.write_text(json.dumps(RECIPE)[:-1] + f', "craft": {{"steps": {steps}}}}}')
    with pytest.raises(UsageError, match="PA383") as caught:
        load_config(AttackConfig, [file], assignments)
    assert said in str(caught.value), str(caught.value)


def test_an_option_outweighs_an_assignment_in_errors(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps(RECIPE))
    with pytest.raises(UsageError, match=r"PA383 .*r.yaml: seed: .* got -1"):
        load_config(AttackConfig, [tmp_path / "r.yaml"], ["seed=3"], {"seed": -1})


def test_no_loose_training_is_false_or_zero() -> None:
    for given in (False, 0):
        assert check_config(AttackConfig, {**RECIPE, "retrain": {"loose": given}}, "x").retrain.loose == 0
    assert check_config(AttackConfig, {**RECIPE, "retrain": {"loose": None}}, "x").retrain.loose is None
    with pytest.raises(UsageError, match="retrain.loose.* got true"):
        check_config(AttackConfig, {**RECIPE, "retrain": {"loose": True}}, "x")


@pytest.mark.parametrize("assignment", ["budget.rows", "=3", "budget..rows=3", "model.x=3"])
def test_bad_assignments_are_refused(assignment: str) -> None:
    with pytest.raises(UsageError, match="PA384"):
        apply_overrides(RECIPE, [assignment])


def test_assignments_make_groups_and_leave_the_original_alone() -> None:
    changed = apply_overrides(RECIPE, ["craft.steps=3", "budget.rows=7"])
    assert changed["craft"] == {"steps": 3}
    assert changed["budget"]["rows"] == 7
    assert "craft" not in RECIPE and RECIPE["budget"]["rows"] == 20


def test_merge_goes_key_by_key() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"b": 3}, "d": {"e": 1}}) == {
        "a": {"b": 3, "c": 2},
        "d": {"e": 1},
    }


def test_later_layers_win(tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("model: linear\ndata: wine\nseed: 1\ndecay: 1e-2\nlimit: 50\n")
    second.write_text("seed: 2\nlimit: 60\n")
    config = load_config(TrainConfig, [first, second], ["limit=70"], {"decay": 0.5, "loss": None})
    assert (config.seed, config.limit, config.decay, config.loss) == (2, 70, 0.5, None)


def test_what_must_be_given() -> None:
    with pytest.raises(UsageError, match="weights and data are missing"):
        check_config(AuditConfig, {"model": "linear"}, "x")
    with pytest.raises(UsageError, match="runs"):
        check_config(CompareConfig, {"runs": []}, "x")
    with pytest.raises(UsageError, match="data is missing"):
        check_config(TrainConfig, {"model": "linear"}, "x")
    assert check_config(AuditConfig, {"run": "r"}, "x").measures is None


def test_victim_excludes_weights() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        check_config(AttackConfig, {**RECIPE, "victim": "r", "weights": "w.pt"}, "x")


def test_values_without_a_plain_form_are_refused() -> None:
    for value in (b"x", float("nan"), {1, 2}):
        with pytest.raises(UsageError, match="PA383"):
            check_config(TrainConfig, {"model": "linear", "data": value}, "x")
