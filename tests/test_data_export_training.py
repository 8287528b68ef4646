"""Training on exported poison gives the weights of the run's own retraining: exactly from npz, to rounding from PNG."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from poisonaudit.attack import Budget, Poison, TargetWeights
from poisonaudit.cli.console import Reporter
from poisonaudit.cli.main import cli
from poisonaudit.cli.pipeline.exports import storable
from poisonaudit.cli.pipeline.victim import assemble
from poisonaudit.data import load_data

SETS = [
    "model=linear",
    "limit=80",
    "decay=1e-2",
    "budget.share=0.1",
    "budget.radius=20/255",
    "objective.test_row=lowest_margin",
    "craft.steps=1",
    "retrain.fresh=1",
    "export=[npz, folder]",
]
WORDS = ["attack", "flip-one-digit", *(word for change in SETS for word in ("--set", change))]


def call(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "run"
    result = call(*WORDS, "--out", out)
    assert "8-bit pictures" in result.stderr
    return out


def trained(data: str, out: Path) -> dict[str, torch.Tensor]:
    words = ["--model", "linear", "--decay", "1e-2", "--loss", "cross_entropy", "--seed", "1", "--tolerance", "1e-10"]
    call("train", "--data", data, *words, "--out", out)
    return load_file(out / "weights.safetensors")


def test_training_on_the_npz_gives_the_retrained_weights_bit_for_bit(run: Path, tmp_path: Path) -> None:
    reached = trained(f"npz:{run / 'poisoned.npz'}", tmp_path / "again")
    stored = load_file(run / "weights-fresh-1.safetensors")
    clean = load_file(run / "weights-control-1.safetensors")
    for name, value in reached.items():
        assert torch.equal(value, stored[name])
        assert float((stored[name] - clean[name]).abs().max()) > 1e-3


def test_training_on_the_pictures_gives_them_to_rounding(run: Path, tmp_path: Path) -> None:
    reached = trained(f"folder:{run / 'poisoned'}", tmp_path / "again")
    stored, clean = load_file(run / "weights-fresh-1.safetensors"), load_file(run / "weights-control-1.safetensors")
    apart = torch.cat([(reached[name] - stored[name]).flatten() for name in reached]).norm()
    moved = torch.cat([(stored[name] - clean[name]).flatten() for name in reached]).norm()
    # Digits are multiples of 1/16, so that rounding moves every pixel, by at most half a step of 1/255.
    assert 0 < float(apart) < 0.1 * float(moved)


def test_the_pictures_hold_the_poison_inside_its_budget(run: Path) -> None:
    body, told = json.loads((run / "attack.json").read_text()), json.loads((run / "exports.json").read_text())
    data = load_data("digits", limit=80)
    back = load_data(f"folder:{run / 'poisoned'}")
    order = sorted(range(80), key=lambda i: (int(data.y_train[i]), int(data.train_ids[i])))
    base = (255 * data.x_train[order].double()).round() / 255
    moved = back.x_train.double() - base
    rows = [i for i, position in enumerate(order) if int(data.train_ids[position]) in body["rows"]]
    assert moved[rows].abs().max() <= 20 / 255 + 1e-7 and moved[rows].abs().max() > 19 / 255
    others = [i for i in range(80) if i not in rows]
    assert len(rows) == 8 and float(moved[others].abs().max()) < 1e-7
    assert told["npz"]["exact"] and 0.9 < told["folder"]["budget_used"] <= 1.0 + 1e-9
    assert told["folder"]["clean_rounding"] <= 0.5 / 255 + 1e-7
    assert told["folder"]["largest_against_the_unrounded_rows"] <= 20 / 255 + 1e-7
    files = json.loads((run / "manifest.json").read_text())["files"]
    assert sum(name.startswith("poisoned/") for name in files) == 80 + len(data.test_ids)


def test_tables_refuse_pictures_before_anything_is_trained(tmp_path: Path) -> None:
    words = ["attack", "flip-one-tumour", "--set", "export=[folder]", "--out", tmp_path / "run"]
    result = call(*words, code=2)
    assert result.stderr.startswith("PA348") and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()
    assert call("attack", "flip-one-tumour", "--set", "export=[zip]", "--dry-run", code=2).stderr.startswith("PA383")


def test_only_what_is_named_is_exported(run: Path, tmp_path: Path) -> None:
    call(*WORDS, "--set", "export=[]", "--set", "retrain.fresh=0", "--out", tmp_path / "none")
    assert not (tmp_path / "none" / "poisoned.npz").exists() and not (tmp_path / "none" / "poisoned").exists()
    assert "poisoned/ (8-bit pictures)" in call(*WORDS, "--dry-run").stdout
    before = (run / "poisoned" / "train").stat().st_mtime_ns
    call("attack", "--resume", "--out", run)
    assert (run / "poisoned" / "train").stat().st_mtime_ns == before


def test_storable_poison_is_single_precision_and_never_longer() -> None:
    victim = assemble("linear", "digits", limit=50, report=Reporter())
    problem, rows = victim.problem, torch.arange(0, 50, 2)
    generator = torch.Generator().manual_seed(0)
    wish = torch.randn(25, 64, generator=generator, dtype=torch.float64) * 0.1
    budget = Budget(radius=0.1, choice=rows, box=victim.data.box)
    allowed = budget.around(problem.x[rows])
    given = allowed.project(wish)
    poison = Poison(rows, given, {}, (), budget, TargetWeights(problem.weights), problem.weights, 0, 0.0)
    kept = storable(victim, poison)
    assert bool((kept.delta.abs() <= given.abs()).all()) and allowed.violation(kept.delta) == 0.0
    moved = problem.x + kept.perturbation(problem)
    assert torch.equal(moved.float().double(), moved) and not torch.equal(kept.delta, given)
    np.testing.assert_allclose(kept.delta.numpy(), given.numpy(), atol=1.2e-7)
