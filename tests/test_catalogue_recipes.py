"""The catalogue: found by name, well-formed, documented, and every recipe runs at toy size."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import poisonaudit
from poisonaudit.cli.main import cli
from poisonaudit.config import catalogue
from poisonaudit.config.catalogue import attack_recipes, configurations, find_any, find_recipe
from poisonaudit.config.load import check_config
from poisonaudit.config.objectives import KINDS
from poisonaudit.config.schema import AttackConfig
from poisonaudit.config.yaml_reader import read_yaml
from poisonaudit.errors import UsageError

RECIPES = sorted(attack_recipes())
TOY = ["limit=60", "craft.steps=1", "retrain.fresh=0", "budget.share=null", "inspection=false"]
SMALL = ["budget.rows=3", "model=linear"]
NET = ["budget.rows=3", "model=mlp:64-3-10?activation=tanh"]
# What is set to make each recipe a matter of seconds.
SIZES: dict[str, list[str]] = {
    "flip-one-cifar10-picture": [
        "model=linear",
        "data=cifar10:ROOT",
        "limit=20",
        "decay=0.1",
        "budget.rows=2",
    ],
    "flip-one-digit": [*NET, "baselines=[random_signs]"],
    "flip-one-digit-several-victims": [*NET, "baselines=[]"],
    "flip-one-digit-trained-loosely": [
        *NET,
        "baselines=[random_signs]",
        "retrain.loose=1",
        "retrain.loose_epochs=2",
    ],
    "flip-one-tumour": SMALL,
    "flip-one-tumour-immutable-columns": SMALL,
    "flip-one-wine": SMALL,
    "flip-over-solution-set": ["limit=20", "budget.rows=3", "craft.members=2"],
    "flip-several-digits": [*NET, "detectors=[loss_filter]"],
    "harden-by-decay": [
        "data=wine",
        "objective.test_row=lowest_margin",
        "budget.rows=6",
        "retrain={fresh: 1, loose: 0}",
        "search={over: radius, low: 0.05, high: 0.8, precision: 0.5}",
        "hardening.decays=[1e-2]",
        "detectors=false",
        "inspection=false",
    ],
    "hurt-one-class": NET,
    "match-predictions-label-flips": [*NET, "objective.source.label_flips.count=2"],
    "membership-label-flips": [*NET, "objective.source.label_flips.count=2", "craft.max_products=100"],
    "raise-validation-loss": [*NET, "baselines=[random_signs]"],
    "target-region-flattest-direction": NET,
    "target-weights-label-flips": [
        *NET,
        "objective.source.label_flips.count=2",
        "training.tolerance=1e-8",
    ],
}


def write_pictures(root: Path) -> None:
    """CIFAR-10's true form with classes that a net can tell apart: grey levels by class, and a little noise."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"):
        labels = list(range(10))
        levels = 25 * np.arange(10)[:, None] + random.integers(0, 10, (10, 3072))
        batch = {b"labels": labels, b"data": levels.astype(np.uint8)}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def test_catalogue_is_found_and_complete() -> None:
    assert len(RECIPES) >= 16
    assert set(RECIPES) == set(SIZES)
    known = {check_config(AttackConfig, read_yaml(find_recipe(name)), name).objective.kind for name in RECIPES}
    assert known == set(KINDS)
    assert {"audit-digits", "compare-digits", "train-digits"} <= set(configurations())


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_well_formed_and_documented(name: str) -> None:
    path = find_recipe(name)
    config = check_config(AttackConfig, read_yaml(path), str(path))
    assert config.name == name
    assert config.description
    readme = (path.parent / "README.md").read_text()
    for heading in ("Threat model", "Formula", "Source", "Expected numbers", "What it shows"):
        assert f"## {heading}" in readme, heading


@pytest.mark.parametrize("name", [*RECIPES, *sorted(configurations())])
def test_validate_accepts_everything_in_the_catalogue(name: str) -> None:
    result = CliRunner().invoke(cli, ["validate", name])
    assert result.exit_code == 0, result.output
    assert "well-formed" in result.stdout


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_at_toy_size(name: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    if name == "flip-one-cifar10-picture":
        write_pictures(tmp_path / "pictures")
    changes = [each.replace("ROOT", str(tmp_path / "pictures")) for each in (*TOY, *SIZES[name])]
    words = [word for change in changes for word in ("--set", change)]
    result = CliRunner().invoke(cli, ["attack", name, *words, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert {"attack.json", "manifest.json", "poison.safetensors", "poisoned.npz", "report.html"} <= {
        path.name for path in out.iterdir()
    }
    report = (out / "report.html").read_text()
    assert "row_class: not stated" not in report
    assert ("immutable: radius error" in report) == (name == "flip-one-tumour-immutable-columns")


def test_the_cifar_recipe_plans_for_its_own_resnet(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    words = ["--set", f"data=cifar10:{tmp_path}", "--set", "limit=20", "--set", "budget.share=0.1", "--dry-run"]
    result = CliRunner().invoke(cli, ["attack", "flip-one-cifar10-picture", *words])
    assert result.exit_code == 0, result.output
    assert "train resnet56?activation=silu&normalize=cifar10" in result.stdout
    assert "p = 853,018 weights, n = 20 rows" in result.output


def test_catalogue_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "poisonaudit"
    recipe = package / "catalogue" / "attacks" / "mine" / "recipe.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("name: mine\n")
    (tmp_path / "site-packages" / "attacks" / "foreign").mkdir(parents=True)
    (tmp_path / "site-packages" / "attacks" / "foreign" / "recipe.yaml").write_text("name: foreign\n")
    monkeypatch.setattr(poisonaudit, "__file__", str(package / "__init__.py"))
    assert catalogue.attack_recipes() == {"mine": recipe}
    # Without its own catalogue a package must not take a stranger's folder beside it for one.
    recipe.unlink()
    recipe.parent.rmdir()
    recipe.parent.parent.rmdir()
    assert catalogue.attack_recipes() == {}


def test_unknown_names_have_near_matches(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'flip-one-digit'"):
        find_recipe("flip-one-digt")
    with pytest.raises(UsageError, match="there is no file"):
        find_recipe(str(tmp_path / "absent.yaml"))
    assert find_any("audit-digits").name == "audit-digits.yaml"
    assert find_recipe(str(find_recipe("flip-one-digit").parent)) == find_recipe("flip-one-digit")
