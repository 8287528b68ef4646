"""`poisonaudit reproduce`: files, exit codes, JSON, refusals, interrupts and resuming."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from poisonaudit.cli.main import cli
from poisonaudit.reproduce import REPRODUCTIONS, moved

SMALL = ["--data", "digits", "--model", "mlp:64-6-10?activation=tanh", "--limit", "30", "--decay", "1e-3"]


def call(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} in JSON")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("runs") / "toy"
    return out, call("reproduce", "wang-toy", "--out", out, "--json")


def test_a_run_holds_every_form_and_verifies(toy: tuple[Path, Result]) -> None:
    out, result = toy
    names = {path.name for path in out.iterdir()}
    assert names == {"results.json", "table.csv", "table.md", "reproduction.html", "figure2.svg", "figure3.svg"} | {
        "manifest.json",
        "plan.json",
        "command.json",
    }
    body = json.loads(result.stdout, parse_constant=refuse)
    assert body == json.loads((out / "results.json").read_text(), parse_constant=refuse)
    assert body["schema"] == "poisonaudit/reproduction/1" and body["name"] == "wang-toy"
    assert [figure["file"] for figure in body["figures"]] == ["figure2.svg", "figure3.svg"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["command"] == "reproduce"
    assert manifest["arguments"]["words"][:2] == ["reproduce", "wang-toy"]
    call("verify", out)


def test_the_text_form_has_table_and_notes(tmp_path: Path) -> None:
    shown = call("reproduce", "wang-toy", "--out", tmp_path / "run").stdout
    assert "Lipschitz modulus kappa" in shown and "kappa is 0.4" in shown and "reproduction.html" in shown


def test_ls_lists_all_reproductions() -> None:
    listed = json.loads(call("ls", "reproductions", "--json").stdout)
    assert [item["name"] for item in listed] == list(REPRODUCTIONS)
    assert all(item["description"] for item in listed)


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["wang-toyy"], 2, ["PA301", "Did you mean 'wang-toy'", "wang-figure4"]),
        (["wang-table1", "--root", "x", "--data", "digits"], 2, ["PA396", "--root"]),
        (["wang-toy", "--model", "linear", "--limit", "5"], 2, ["PA398", "--limit, --model"]),
        (["wang-table1", "--decay", "0"], 2, ["PA304", "infinity"]),
        (["wang-table1", "--tolerance", "2"], 2, ["PA304", "tolerance"]),
        (["wang-table1", "--device", "tpu"], 2, ["PA350"]),
        (["wang-table1", "--resume"], 2, ["PA312"]),
        (["wang-table1", "--resume", "--out", "nowhere"], 2, ["PA352"]),
        (["wang-table1", "--model", "resnet57"], 2, ["PA301"]),
        (["wang-table1", "--data", "digits", "--model", "mlp:64-6-10", "--weights", "none.pt"], 3, ["PA101"]),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    words: list[str], code: int, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("reproduce", *words, code=code)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for part in parts:
        assert part in result.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name == "results.json"]


def test_a_taken_folder_is_refused(toy: tuple[Path, Result]) -> None:
    assert "PA310" in call("reproduce", "wang-toy", "--out", toy[0], code=2).stderr


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["reproduce", "wang-table1", *SMALL]
    whole = json.loads(call(*words, "--out", tmp_path / "whole", "--json").stdout)
    calls: list[int] = []
    genuine = moved.fit

    def interrupting(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return genuine(*given, **named)

    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(moved, "fit", interrupting)
        stopped = call(*words, "--out", out, code=130)
    assert "--resume --out" in stopped.stderr and not (out / "results.json").exists()
    kept = {path.name for path in out.glob("stage-*")}
    assert {"stage-original.safetensors", "stage-retrained-1-0.002.safetensors"} <= kept
    assert "PA386" in call("reproduce", "wang-table1", "--resume", "--seed", "5", "--out", out, code=2).stderr
    assert "PA386" in call("reproduce", "wang-table2", "--resume", "--out", out, code=2).stderr
    resumed = json.loads(call("reproduce", "wang-table1", "--resume", "--out", out, "--json").stdout)
    assert resumed["rows"] == whole["rows"] and resumed["flags"] == whole["flags"] == []
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["arguments"]["words"][: len(words)] == words
    call("verify", out)


def test_weights_from_a_file_are_taken_and_polished(tmp_path: Path) -> None:
    train = tmp_path / "train"
    model = ["--model", "mlp:64-6-10?activation=tanh", "--data", "digits", "--limit", "30", "--decay", "1e-3"]
    call("train", *model, "--tolerance", "1e-6", "--out", train)
    result = call(
        "reproduce",
        "wang-table2",
        *SMALL,
        "--weights",
        train / "weights.safetensors",
        "--out",
        tmp_path / "r",
        "--json",
    )
    body = json.loads(result.stdout)
    assert body["details"]["original"]["trained_here"] is False
    assert body["details"]["original"]["relative_gradient"] <= 1e-9
    assert "weights" in body["inputs"] and body["flags"] == []


def test_a_spent_budget_is_flagged(tmp_path: Path) -> None:
    words = ["--data", "digits", "--model", "mlp:64-40-10?activation=tanh", "--limit", "30", "--max-gradients", "1"]
    result = call("reproduce", "wang-table2", *words, "--out", tmp_path / "run")
    assert "flagged: the original solution is not stationary" in result.stdout
    assert "warning: " in result.stderr


def test_a_root_means_cifar10_in_its_makers_form(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3072), dtype=np.uint8)
    for index, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        batch = {b"data": pixels[index], b"labels": [(index + row) % 10 for row in range(4)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    words = ["--root", tmp_path / "root", "--model", "mlp:3072-4-10?activation=tanh", "--limit", "20"]
    result = call("reproduce", "wang-table2", *words, "--max-gradients", "60", "--out", tmp_path / "run", "--json")
    body = json.loads(result.stdout)
    assert body["settings"]["data"] == f"cifar10:{tmp_path / 'root'}" and body["settings"]["rows"] == 20
    assert {"data_batch_1", "test_batch"} <= body["inputs"].keys()
    # So few gradients do not reach a minimum.
    assert any("not stationary" in text for text in body["flags"])
