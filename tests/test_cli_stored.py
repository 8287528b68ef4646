"""Run files that were damaged or changed: refused in one line, whatever reads them, with nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_report_samples import ENVIRONMENT, attacks, audits, sample

from poisonaudit.cli.main import cli
from poisonaudit.cli.pipeline.stored import check_attack, check_audit, check_comparison
from poisonaudit.store import RunFolder, sha256_file


def stored_run(path: Path, name: str, body: dict[str, Any]) -> Path:
    """A finished run with one result."""
    folder = RunFolder.create(name, path)
    folder.write_json(f"{name}.json", body)
    folder.write_manifest(name, {}, {}, 0)
    return path


def refused(words: list[str | Path], code: str) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 3, (result.stderr, result.exception)
    (line,) = result.stderr.splitlines()
    assert line.startswith(code), line
    return line


def changed(run: Path, name: str, change: Callable[[dict[str, Any]], object], *, recorded: bool) -> None:
    body = json.loads((run / name).read_text())
    change(body)
    (run / name).write_text(json.dumps(body))
    if recorded:
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["files"][name] = sha256_file(run / name)
        (run / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stored") / "train"
    words = ["train", "--model", "linear", "--data", "wine", "--decay", "1e-2", "--limit", "60", "--out", str(out)]
    assert CliRunner().invoke(cli, words).exit_code == 0
    return out


@pytest.mark.parametrize(
    ("entry", "value", "part"),
    [
        ("decay", "x", "decay is 'x', not a number"),
        ("decay", None, "decay"),
        ("decay", -1, "decay"),
        ("limit", 2.5, "limit"),
        ("seed", True, "seed"),
        ("train_ids", [0, "1"], "train_ids"),
        ("loss", 3, "loss"),
        ("weights_sha256", None, "weights_sha256"),
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_damaged_recipes_are_refused(
    trained: Path, tmp_path: Path, entry: str, value: Any, part: str, recorded: bool
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    changed(run, "train.json", lambda body: body.update({entry: value}), recorded=recorded)
    assert part in refused(["audit", run, "--out", tmp_path / "out"], "PA221")
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_was_changed_after_training_is_refused(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    changed(run, "train.json", lambda body: body.update(decay=0.5), recorded=False)
    refused(["audit", run, "--out", tmp_path / "out"], "PA222")
    attack = ["attack", "flip-one-wine", "--set", f"victim={run}", "--out", tmp_path / "out"]
    refused(attack, "PA222")
    refused(["compare", run, "--out", tmp_path / "out"], "PA222")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda body: body.update(schema="poisonaudit/attack/99"), "PA220"),
        (lambda body: body.update(schema="poisonaudit/attack/"), "PA220"),
        (lambda body: body["predicted"].update(margin="abc"), "PA221"),
        (lambda body: body["retrained"]["warm"].update(margin=[1.0]), "PA221"),
        (lambda body: body["retrained"]["fresh"][0].update(success="yes"), "PA221"),
        (lambda body: body["control"].update(fresh={}), "PA221"),
        (lambda body: body["budget"].update(radius="wide"), "PA221"),
        (lambda body: body.update(rows="all"), "PA221"),
        (lambda body: body.update(verified_cost={"value": "8"}), "PA221"),
        (lambda body: body.update(surplus=1, gates=[{"rule": 1}]), "PA221"),
        (lambda body: body.pop("name"), "PA221"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "report"])
def test_damaged_attacks_are_refused_before_anything_is_written(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], code: str, command: str
) -> None:
    run = stored_run(tmp_path / "run", "attack", attacks()[2].to_json())
    changed(run, "attack.json", change, recorded=True)
    refused([command, run, *(["--out", tmp_path / "out"] if command == "compare" else [])], code)
    assert not (tmp_path / "out").exists()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(("key", "value"), [("value", "1"), ("valid", 1), ("details", []), ("seconds", "quick")])
def test_damaged_audits_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    run = stored_run(tmp_path / "run", "audit", audits()[0].to_json())
    changed(run, "audit.json", lambda body: body["measures"][1].update({key: value}), recorded=True)
    assert f"measures[1].{key}" in refused(["compare", run, "--out", tmp_path / "out"], "PA221")


def test_numbers_that_were_changed_after_the_run_are_refused(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "run", "audit", audits()[0].to_json())
    changed(run, "audit.json", lambda body: body["measures"][1].update(value=0.001), recorded=False)
    refused(["report", run], "PA222")


def test_sound_results_pass_with_entries_null_or_missing() -> None:
    for each in attacks():
        check_attack(each.to_json())
    for audit in audits():
        check_audit(audit.to_json())
    check_comparison(sample().to_json())
    empty: dict[str, Any] = {"name": "a", "model": "m", "data": "d", "environment": ENVIRONMENT}
    check_attack({**empty, "predicted": None, "retrained": {"warm": None, "fresh": None}, "rows": None})
