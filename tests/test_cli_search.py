"""attack with a search for the verified cost, and with hardened variants: stored, resumed, planned, refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from poisonaudit.cli.main import cli
from poisonaudit.data import load_data
from poisonaudit.results import AttackResult

SETS = [
    "model=linear",
    "limit=60",
    "decay=1e-2",
    "budget.rows=6",
    "craft.steps=1",
    "retrain.fresh=2",
    "budget.radius=0.4",
    "objective.test_row=81",
    "search={over: radius, low: 0.02, high: 0.8, precision: 0.4}",
    "hardening={decays: [1e-2, 1e-1], row_shares: [0.7]}",
]
WORDS = ["attack", "flip-one-tumour", *(word for change in SETS for word in ("--set", change))]


def call(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if "seconds" not in key}
    return [timeless(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("search") / "run"
    return out, call(*WORDS, "--out", out)


def test_the_verified_cost_is_stored_with_its_trials(searched: tuple[Path, Result]) -> None:
    run, said = searched
    body = json.loads((run / "attack.json").read_text())
    cost = body["verified_cost"]
    assert cost["kind"] == "upper" and cost["over"] == "radius" and "standard deviations" in cost["unit"]
    assert cost["lower"] < cost["value"] == cost["upper"] and cost["upper"] - cost["lower"] <= 0.4 * cost["upper"]
    assert f"verified cost: radius {cost['value']:.4g}" in said.stdout and "upper bound" in said.stdout
    assert AttackResult.from_json(body).verified_cost == cost
    # The run's own attack is one of the trials, and is not run again.
    own = next(trial for trial in cost["trials"] if trial["budget"] == 0.4)
    assert own["succeeded"] == all(run["success"] for run in body["retrained"]["fresh"])
    assert own["crafting_seconds"] == body["cost"]["crafting_seconds"]
    stored = [json.loads(path.read_text()) for path in sorted((run / "search").glob("trial-*.json"))]
    assert len(stored) == len(cost["trials"]) - 1 and own["budget"] not in [trial["budget"] for trial in stored]
    ids = set(load_data("breast_cancer", limit=60).train_ids.tolist())
    for path in (run / "search").glob("trial-*.safetensors"):
        poison, trial = load_file(path), json.loads(path.with_suffix(".json").read_text())
        assert set(poison["rows"].tolist()) <= ids and len(poison["rows"]) == 6
        assert float(poison["delta"].abs().max()) <= trial["budget"] + 1e-12
    call("verify", run)


def test_variants_are_compared(searched: tuple[Path, Result]) -> None:
    run, said = searched
    entries = json.loads((run / "attack.json").read_text())["hardening"]
    # The first decay is the victim's own.
    assert [entry["label"] for entry in entries] == ["as attacked", "decay 0.1", "42 rows"]
    assert [entry["rows"] for entry in entries] == [60, 60, 42]
    assert [entry["decay"] for entry in entries] == [0.01, 0.1, 0.01]
    assert entries[1]["kappa"] < entries[0]["kappa"] and all(entry["kappa_valid"] for entry in entries)
    with (run / "hardening.csv").open() as stream:
        table = list(csv.DictReader(stream))
    for entry, line in zip(entries, table, strict=True):
        assert float(line["kappa"]) == pytest.approx(entry["kappa"], rel=1e-12)
        assert float(line["value"]) == pytest.approx(entry["cost"]["value"], rel=1e-12)
        assert entry["label"] in said.stdout and entry["test_accuracy"] > 0.8
    report = (run / "report.html").read_text(encoding="utf-8")
    report = report[report.index('<section id="hardening"') : report.index('<section id="other-attacks"')]
    assert all(entry["label"] in report and repr(entry["value"]) in report for entry in entries)
    # Controls of a variant are clean trainings of that variant.
    weights = {name: load_file(run / f"weights-hardening-decay-0.1-{name}.safetensors") for name in ("control-1",)}
    trained = load_file(run / "weights-hardening-decay-0.1.safetensors")
    for key, value in trained.items():
        assert torch.allclose(weights["control-1"][key], value, atol=1e-6)


def test_an_interrupted_search_is_resumed(searched: tuple[Path, Result], tmp_path: Path) -> None:
    """As a kill leaves it: the last trials of two searches and everything after them are missing."""
    out = tmp_path / "run"
    shutil.copytree(searched[0], out)
    for name in ("attack.json", "manifest.json", "hardening.csv", "report.html", "results.csv"):
        (out / name).unlink()
    lost = [sorted((out / place).glob("trial-*.json"))[-1] for place in ("search", "hardening-42-rows")]
    # A trial without its JSON is not complete, whatever else is there.
    assert len(lost) == 2 and all(path.with_suffix(".safetensors").exists() for path in lost)
    for path in lost:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("trial-*.json")}
    result = call("attack", "--resume", "--out", out)
    assert "search: 3 trials kept from before" in result.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items()) and all(path.exists() for path in lost)
    one, other = (json.loads((run / "attack.json").read_text()) for run in (out, searched[0]))
    assert timeless(one["verified_cost"]) == timeless(other["verified_cost"])
    assert timeless(one["hardening"]) == timeless(other["hardening"])
    for path in lost:
        again, before = (
            load_file(run / path.relative_to(out).with_suffix(".safetensors")) for run in (out, searched[0])
        )
        assert torch.equal(again["delta"], before["delta"]) and torch.equal(again["rows"], before["rows"])


def test_rows_and_target_weights(tmp_path: Path) -> None:
    changes = [
        "data=breast_cancer",
        "limit=60",
        "decay=1e-1",
        "objective.source.label_flips={from: 0, to: 1, count: 3}",
        "objective.success_at=0.4",
        "training.tolerance=1e-8",
        "budget.share=null",
        "budget.rows=8",
        "budget.radius=0.2",
        "craft.steps=1",
        "retrain.fresh=1",
        "search={over: rows, low: 2, high: 16}",
        "hardening={row_shares: [0.9]}",
    ]
    words = [word for change in changes for word in ("--set", change)]
    call("attack", "target-weights-label-flips", *words, "--out", tmp_path / "run")
    body = json.loads((tmp_path / "run" / "attack.json").read_text())
    cost = body["verified_cost"]
    assert cost["over"] == "rows" and cost["unit"] == "training rows" and cost["value"] == cost["lower"] + 1
    assert isinstance(cost["value"], int) and {trial["budget"] for trial in cost["trials"]} >= {8}
    targets = [load_file(tmp_path / "run" / f"weights-{name}target.safetensors") for name in ("", "hardening-54-rows-")]
    assert any(not torch.equal(targets[0][key], targets[1][key]) for key in targets[0])
    assert body["hardening"][1]["rows"] == 54


def test_the_plan_lists_the_search() -> None:
    plan = json.loads(call(*WORDS, "--dry-run", "--json").stdout)["plan"]
    assert any("smallest radius between 0.02 and 0.8 at which 2 of 2 seeds succeed" in step for step in plan)
    assert any("decay 0.01, decay 0.1, 70.0% of the rows" in step for step in plan)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("search={low: 0.2, high: 0.1}", "PA383"),
        ("search={over: radii}", "PA383"),
        ("search={need: 3}", "PA383"),
        ("search={over: rows, low: 1.5}", "PA383"),
        ("search={precision: 0}", "PA383"),
        ("search=null", "PA383"),
        ("hardening={}", "PA383"),
        ("hardening={row_shares: [1.5]}", "PA383"),
        ("retrain.fresh=0", "PA383"),
        ("search={over: rows, high: 61}", "PA346"),
        ("search={over: rows, high: 50}", "PA346"),
        ("hardening={row_shares: [0.05]}", "PA361"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line_before_anything_is_trained(change: str, code: str) -> None:
    result = call(*WORDS, "--set", change, "--dry-run", code=2)
    assert result.stderr.startswith(code) and len(result.stderr.splitlines()) == 1
