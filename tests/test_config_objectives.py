"""What recipes may say about objectives, crafting, baselines and detectors: short forms, refusals, round trips."""

from __future__ import annotations

from typing import Any

import pytest

from poisonaudit.attack.budget import CHOICES
from poisonaudit.attack.ensemble import AGGREGATES
from poisonaudit.attack.objectives import OBJECTIVES
from poisonaudit.config.load import check_config, plain
from poisonaudit.config.objectives import KINDS, FlipConfig
from poisonaudit.config.schema import AttackConfig
from poisonaudit.errors import UsageError

BASE: dict[str, Any] = {"model": "linear", "data": "digits", "budget": {"rows": 3, "radius": 0.1}}
FILE = {"file": "w.safetensors"}
FORMS: list[dict[str, Any]] = [
    {"kind": "target_weights", "source": {"label_flips": {"from": 8, "to": 1, "count": 10}}, "layers": ["0.weight"]},
    {"kind": "target_region", "source": FILE, "shape": "ball", "share": 0.9},
    {"kind": "match_predictions", "source": {"direction": {"along": "flattest"}}, "rows": "test"},
    {"kind": "membership", "source": {"fine_tune": {"data": "digits?split=2"}}, "success_at": None},
    {"kind": "flip", "test_row": 7, "label": 3, "surrogate": "cross_entropy"},
    {"kind": "flips", "test_rows": [3, 9], "label": [1, "2"]},
    {"kind": "validation_loss", "count": 7, "success_at": 0.1},
    {"kind": "group_accuracy", "class": 3, "temperature": 0.5},
]


def checked(**changes: Any) -> AttackConfig:
    return check_config(AttackConfig, {**BASE, "objective": {"kind": "flip"}, **changes}, "recipe")


def holds(body: Any, form: Any) -> bool:
    """All that the form says, defaults beside it."""
    return all(holds(body[key], each) for key, each in form.items()) if isinstance(form, dict) else bool(body == form)


def test_every_kind_of_the_library_can_be_named() -> None:
    assert set(KINDS) == set(OBJECTIVES) == {form["kind"] for form in FORMS}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form["kind"])
def test_a_configuration_reads_itself_back(form: dict[str, Any]) -> None:
    config = checked(objective=form, baselines=["influence"], detectors=["loss_filter"])
    body = plain(config)
    assert holds(body["objective"], form)
    assert check_config(AttackConfig, body, "again") == config


def test_forms_of_earlier_versions_mean_the_same() -> None:
    config = checked(objective={"kind": "target_weights", "source": FILE})
    assert config.objective.success_at == 0.5 and config.objective.layers is None  # type: ignore[union-attr]
    assert checked().objective == FlipConfig(kind="flip")
    assert checked().baselines == {} and checked().detectors is not None and checked().inspection


def test_short_forms_of_baselines() -> None:
    assert checked(baselines="all").baselines == {"all": {}}
    assert checked(baselines=["influence", {"gradient_matching": {"steps": 5}}]).baselines == {
        "influence": {},
        "gradient_matching": {"steps": 5},
    }
    assert checked(baselines={"influence": None}).baselines == {"influence": {}}
    assert checked(baselines=[]).baselines == checked(baselines=None).baselines == {}


def test_short_forms_of_detectors() -> None:
    every = checked(detectors=True).detectors
    assert every == checked(detectors="all").detectors == checked().detectors and every is not None
    assert every.names is None and not every.filter
    assert checked(detectors=False).detectors is None is checked(detectors=[]).detectors
    named = checked(detectors=["loss_filter"]).detectors
    assert named == checked(detectors={"names": ["loss_filter"]}).detectors and named is not None
    assert named.names == ("loss_filter",)


def test_what_crafting_and_budgets_know_can_be_named() -> None:
    for choice in CHOICES:
        assert checked(budget={**BASE["budget"], "choice": choice}).budget.choice == choice
    for aggregate in AGGREGATES:
        assert checked(craft={"aggregate": aggregate, "solutions": 2}).craft.aggregate == aggregate
    assert checked(budget={**BASE["budget"], "choice": "class", "row_class": "3"}).budget.row_class == "3"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective": {"kind": "flap"}}, "objective.kind: unknown kind 'flap'. Did you mean 'flip'"),
        ({"objective": {"kind": "flip", "labels": 3}}, "in objective, unknown key 'labels'. Did you mean 'label'"),
        ({"objective": {"kind": "membership"}}, "objective.source is missing"),
        ({"objective": {"kind": "membership", "source": {}}}, "exactly one of label_flips, file, direction"),
        ({"objective": {"kind": "membership", "source": {**FILE, "direction": {"along": "random"}}}}, "exactly one"),
        ({"objective": {"kind": "membership", "source": {"fine_tune": {}}}}, "objective.source.fine_tune: give exact"),
        ({"objective": {"kind": "membership", "source": {"fine_tune": {"rows": [1, 1]}}}}, "rows names a row twice"),
        ({"objective": {"kind": "membership", "source": {"direction": {"along": "up"}}}}, "'flattest'"),
        ({"objective": {"kind": "membership", "source": {"direction": {"along": "random", "length": 0}}}}, "length"),
        ({"objective": {"kind": "target_region", "source": FILE, "shape": "ball", "share": 1}}, "share below 1"),
        ({"objective": {"kind": "target_region", "source": FILE, "shape": "box"}}, "objective.shape"),
        ({"objective": {"kind": "flips"}}, "either test_rows (ids) or count"),
        ({"objective": {"kind": "flips", "count": 2, "label": [1, 2]}}, "a list of labels needs test_rows"),
        ({"objective": {"kind": "flips", "test_rows": [1], "label": [1, 2]}}, "as many of them"),
        ({"objective": {"kind": "flips", "test_rows": [1, 1]}}, "names a row twice"),
        ({"objective": {"kind": "flips", "count": 2, "success_at": 1.5}}, "objective.success_at"),
        ({"objective": {"kind": "group_accuracy"}}, "either class (a label) or test_rows"),
        ({"objective": {"kind": "validation_loss", "rows": "train"}}, "objective.rows"),
        ({"budget": {**BASE["budget"], "row_class": 3}}, "row_class goes with choice: class"),
        ({"budget": {"radius": 0.1, "choice": [4, 4]}}, "choice names a row twice"),
        ({"craft": {"solutions": 0}}, "craft.solutions"),
        ({"craft": {"outer": "walk"}}, "craft.outer"),
        ({"baselines": ["influence", "influence"]}, "each name once"),
        ({"baselines": 3}, "baselines"),
        ({"detectors": {"filters": True}}, "in detectors, unknown key 'filters'. Did you mean 'filter'"),
        ({"detectors": {"share": 1.0}}, "detectors.share"),
    ],
    ids=lambda value: str(value)[:70],
)
def test_what_is_wrong_is_told_in_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as refused:
        checked(**changes)
    assert refused.value.code == "PA383" and told in refused.value.message
    assert len(str(refused.value).splitlines()) == 1
