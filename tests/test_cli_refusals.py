"""Bad input: one line on stderr, the right exit code, no traceback, nothing half-written, no code run."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from poisonaudit.cli.main import cli

FACTORY = """
import pathlib, torch
pathlib.Path(r"{sentinel}").touch()
class Stubborn(torch.nn.Dropout):
    def train(self, mode=True):
        return super().train(True)
def stubborn(**given):
    return torch.nn.Sequential(torch.nn.Linear(13, 3), Stubborn(0.5))
def plain(**given):
    return torch.nn.Linear(13, 3)
def broken(**given):
    raise ValueError("no model today")
"""


class Payload:
    """Unpickling it would create the sentinel."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (os.mkdir, (str(self.path),))


def refused(words: list[str], exit_code: int, *parts: str) -> Result:
    result = CliRunner().invoke(cli, words)
    lines = result.stderr.splitlines()
    assert result.exit_code == exit_code, (result.stderr, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert len(lines) == 1, lines
    assert re.match(r"PA\d{3} \S", lines[0]), lines
    for part in parts:
        assert part in lines[0], lines[0]
    return result


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with one good weights file for `linear` on wine beside it."""
    monkeypatch.chdir(tmp_path)
    save_file({"weight": torch.zeros(3, 13), "bias": torch.zeros(3)}, tmp_path / "good.safetensors")
    return tmp_path


def untouched(workplace: Path) -> None:
    """Neither the run's folder nor the folder of runs is there."""
    assert not (workplace / "out").exists()
    assert not (workplace / "poisonaudit-runs").exists()


AUDIT = ["audit", "--model", "linear", "--data", "wine", "--decay", "0", "--out", "out", "--weights"]


def state_names() -> tuple[str, str]:
    """Names that the linear model's state dict has here."""
    from poisonaudit.models import build_model

    weight, bias = build_model("linear", input_shape=(13,), outputs=3).state_dict()
    return weight, bias


@pytest.mark.parametrize(
    ("weight", "bias", "code", "part"),
    [
        (torch.zeros(3, 12), torch.zeros(3), "PA110", "3x12"),
        (torch.full((3, 13), float("nan")), torch.zeros(3), "PA113", ""),
        (torch.zeros(3, 13), torch.full((3,), float("inf")), "PA113", ""),
    ],
)
@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_weights_of_another_shape_or_not_finite(
    workplace: Path, weight: torch.Tensor, bias: torch.Tensor, code: str, part: str, form: str
) -> None:
    state = dict(zip(state_names(), (weight, bias), strict=True))
    path = workplace / f"bad.{form}"
    save_file(state, path) if form == "safetensors" else torch.save(state, path)
    refused([*AUDIT, str(path)], 3, code, part)
    untouched(workplace)


def test_missing_and_surplus_names_in_weights(workplace: Path) -> None:
    save_file({"other": torch.zeros(3)}, workplace / "bad.safetensors")
    refused([*AUDIT, "bad.safetensors"], 3, "PA1")
    untouched(workplace)


def test_pickled_modules_are_refused_and_not_run(workplace: Path) -> None:
    sentinel = workplace / "sentinel"
    torch.save(torch.nn.Linear(13, 3), workplace / "module.pt")
    torch.save({"weight": Payload(sentinel)}, workplace / "payload.pt")
    (workplace / "payload.pkl").write_bytes(pickle.dumps(Payload(sentinel)))
    for name in ("module.pt", "payload.pt", "payload.pkl"):
        refused([*AUDIT, name], 3, "PA1")
    assert not sentinel.exists()
    untouched(workplace)


@pytest.mark.parametrize("name", ["garbage.safetensors", "garbage.pt", "empty.safetensors", "empty.pt", "w.bin"])
def test_damaged_or_unknown_weights(workplace: Path, name: str) -> None:
    (workplace / name).write_bytes(b"" if name.startswith("empty") else b"\x80\x04garbage" * 9)
    refused([*AUDIT, name], 3, "PA1")
    untouched(workplace)


def save_rows(path: Path, **changes: np.ndarray) -> None:
    generator = np.random.default_rng(0)
    rows = {
        "x_train": generator.normal(size=(20, 13)).astype(np.float32),
        "y_train": np.arange(20) % 3,
        "x_test": generator.normal(size=(9, 13)).astype(np.float32),
        "y_test": np.arange(9) % 3,
    }
    np.savez(path, **{**rows, **changes})


@pytest.mark.parametrize(
    ("changes", "query"),
    [
        ({"x_train": np.full((20, 13), np.nan, dtype=np.float32)}, ""),
        ({"x_test": np.full((9, 13), np.inf, dtype=np.float32)}, ""),
        ({"x_train": np.zeros((19, 13), dtype=np.float32)}, ""),
        ({"x_test": np.zeros((9, 12), dtype=np.float32)}, ""),
        ({"y_train": np.zeros(20, dtype=np.int64)}, ""),
        ({"y_train": np.arange(20) % 3 + 5}, "?classes=3"),
        ({"y_train": np.arange(20) % 3 - 1}, "?classes=3"),
        ({"y_test": np.full(9, 7)}, "?classes=3"),
        ({"y_train": np.array([Payload(Path("sentinel"))] * 20, dtype=object)}, ""),
    ],
)
def test_data_that_is_not_finite_or_does_not_fit(workplace: Path, changes: dict[str, np.ndarray], query: str) -> None:
    save_rows(workplace / "d.npz", **changes)
    refused(["train", "--model", "linear", "--data", f"npz:d.npz{query}", "--out", "out"], 3, "PA2")
    assert not (workplace / "sentinel").exists()
    untouched(workplace)


def test_model_with_another_number_of_outputs(workplace: Path) -> None:
    refused(["train", "--model", "mlp:13-8-4", "--data", "wine", "--out", "out"], 3, "PA13")
    refused(["train", "--model", "mlp:12-8-3", "--data", "wine", "--out", "out"], 3, "PA13")
    untouched(workplace)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train", "--model", "lineer", "--data", "wine"], ["'linear'"]),
        (["train", "--model", "linear", "--data", "wein"], ["'wine'"]),
        (["train", "--model", "linear", "--data", "wine", "--loss", "cross_entrpy"], ["'cross_entropy'"]),
        (["train", "--model", "mlp:13-4-3?activaton=tanh", "--data", "wine"], ["'activation'"]),
        (["train", "--model", "mlp:13-4-3?activation=tahn", "--data", "wine"], ["'tanh'"]),
        (["audit", "--config", "audit-digit"], ["'audit-digits'"]),
        (["attack", "flip-one-digt"], ["'flip-one-digit'"]),
        (["attack", "flip-one-digit", "--set", "budgt.rows=3"], ["'budget'"]),
        (["validate", "train-digit"], ["'train-digits'"]),
    ],
)
def test_unknown_names_have_near_matches(workplace: Path, words: list[str], parts: list[str]) -> None:
    out = [] if words[0] == "validate" else ["--out", "out"]
    refused([*words, *out], 2, "Did you mean", *parts)
    untouched(workplace)


@pytest.mark.parametrize(
    ("words", "exit_code", "part"),
    [
        (["--measures", "solutoin"], 2, "'solution'"),
        (["--measures", ","], 2, "PA"),
        (["--fail-on", "solution.modulus"], 2, "--fail-on"),
        (["--fail-on", "solution.modulu>1"], 2, "'solution.modulus'"),
        (["--fail-on", "solution.modulus>nan"], 2, "--fail-on"),
        (["--rows", "0"], 2, "PA390"),
        (["--limit", "0"], 2, "PA390"),
        (["--limit", "100000"], 2, "PA"),
        (["--device", "cudda"], 2, "PA350"),
        (["--device", "cuda:99"], 2, "PA350"),
        (["--device", "meta"], 2, "PA350"),
        (["--decay", "-1"], 2, "decay"),
        (["--decay", "nan"], 2, "PA3"),
        (["--set", "seed"], 2, "PA384"),
        (["--set", "sed=1"], 2, "'seed'"),
    ],
)
def test_bad_options_of_audit(workplace: Path, words: list[str], exit_code: int, part: str) -> None:
    state = dict(zip(state_names(), (torch.zeros(3, 13), torch.zeros(3)), strict=True))
    save_file(state, workplace / "w.safetensors")
    refused([*AUDIT, "w.safetensors", *words], exit_code, part)
    untouched(workplace)


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        ([*AUDIT, "absent.safetensors"], 3),
        (["train", "--model", "linear", "--data", "npz:absent.npz", "--out", "out"], 3),
        (["train", "--model", "linear", "--data", "csv:absent.csv?target=y", "--out", "out"], 3),
        (["train", "--config", "absent.yaml", "--out", "out"], 2),
        (["attack", "absent.yaml", "--out", "out"], 2),
        (["audit", "absent-run", "--out", "out"], 2),
        (["compare", "absent-run", "--out", "out"], 2),
        (["report", "absent-run"], 2),
        (["verify", "absent-run"], 2),
        (["attack", "--resume", "--out", "absent-run"], 2),
        (["train", "--model", "absent.py:net", "--data", "wine", "--trust-code", "--out", "out"], 3),
    ],
)
def test_missing_files(workplace: Path, words: list[str], exit_code: int) -> None:
    refused(words, exit_code, "absent")
    untouched(workplace)


@pytest.mark.parametrize("command", ["train", "audit", "attack", "compare"])
def test_malformed_yaml_names_the_line(workplace: Path, command: str) -> None:
    (workplace / "c.yaml").write_text("seed: 1\nmodel: [linear\n")
    words = ["c.yaml"] if command == "attack" else ["--config", "c.yaml"]
    refused([command, *words, "--out", "out"], 2, "PA381 c.yaml line 3")
    untouched(workplace)


def test_code_needs_trust_and_a_train_mode_net_is_refused(workplace: Path) -> None:
    sentinel = workplace / "ran"
    (workplace / "net.py").write_text(FACTORY.replace("{sentinel}", str(sentinel)))
    words = ["train", "--data", "wine", "--out", "out", "--model"]
    refused([*words, "net.py:plain"], 3, "--trust-code")
    assert not sentinel.exists()
    refused([*words, "net.py:stubborn", "--trust-code"], 3, "PA120", "train mode")
    assert sentinel.exists()
    refused([*words, "net.py:plian", "--trust-code"], 3, "PA1")
    refused([*words, "net.py:broken", "--trust-code"], 3, "PA1", "no model today")
    untouched(workplace)


def test_taken_and_impossible_folders(workplace: Path) -> None:
    words = ["train", "--model", "linear", "--data", "wine", "--out"]
    (workplace / "taken").mkdir()
    (workplace / "taken" / "mine.txt").write_text("keep")
    refused([*words, "taken"], 2, "PA310", "not empty")
    assert [path.name for path in (workplace / "taken").iterdir()] == ["mine.txt"]
    refused([*words, "taken/mine.txt"], 2)
    (workplace / "empty").mkdir()
    for command in (["demo"], ["compare", "taken"], ["audit", "taken"]):
        assert "--resume" not in refused([*command, "--out", "taken"], 2, "PA310").stderr
    refused(["attack", "flip-one-digit", "--out", "taken"], 2, "PA310", "or --resume")
    refused(["attack", "flip-one-digit", "--resume"], 2, "PA312")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_may_not_be_written(workplace: Path) -> None:
    (workplace / "closed").mkdir(mode=0o500)
    refused(["train", "--model", "linear", "--data", "wine", "--out", "closed/run"], 5, "PA503")


def test_file_in_the_way_of_a_folder(workplace: Path) -> None:
    (workplace / "file").write_text("")
    refused(["train", "--model", "linear", "--data", "wine", "--out", "file/run"], 5, "PA50")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("objective.test_row=999999", "PA354"),
        ("objective.label=11", "PA357"),
        ("objective.label=eleven", "PA357"),
        ("budget.rows=1000", "PA361"),
        ("device=cuda:77", "PA350"),
        ("data=npz:absent.npz", "PA2"),
    ],
)
def test_recipes_that_do_not_fit_their_data(workplace: Path, change: str, part: str) -> None:
    words = ["attack", "flip-one-tumour", "--set", "model=linear", "--limit", "60", "--set", change, "--out", "out"]
    refused(words, 3 if "absent" in change else 2, part)
    untouched(workplace)
    refused([*words[:-2], "--dry-run"], 3 if "absent" in change else 2, part)


def test_flips_that_do_not_fit_their_data(workplace: Path) -> None:
    recipe = "target-weights-label-flips"
    source = "objective.source.label_flips"
    for change in (
        f"{source}.count=1000",
        f"{source}.from=10",
        f"{source}.to=none",
        "objective.source={file: absent.pt}",
    ):
        words = ["attack", recipe, "--limit", "60", "--set", change, "--out", "out"]
        refused(words, 3 if "absent" in change else 2, "PA")
    untouched(workplace)


def test_attack_advises_what_it_has(workplace: Path) -> None:
    """It has neither --weights nor --model, which other commands are told to pass."""
    save_file({"weight": torch.zeros(3, 12), "bias": torch.zeros(3)}, workplace / "other.safetensors")
    base = ["attack", "target-weights-label-flips", "--set", "model=linear", "--set", "data=wine", "--out", "out"]
    base += ["--limit", "60"]
    for file, code in (("absent.pt", "PA101"), ("other.safetensors", "PA11")):
        words = [*base, "--set", f"objective.source={{file: {file}}}"]
        said = refused(words, 3, code, "objective.source.file: ", "Name a file with weights of linear.").stderr
        assert "--weights" not in said and "--model" not in said
    said = refused([*base, "--set", "weights=absent.pt"], 3, "PA101", "Check the path in weights.").stderr
    assert "--weights" not in said
    said = refused([*base, "--set", "model=mlp:12-4-3"], 3, "PA132", "Pass --set model=mlp:13-4-3.").stderr
    assert "--model" not in said
    refused(["train", "--model", "mlp:12-4-3", "--data", "wine", "--out", "out"], 3, "PA132", "Pass --model mlp:13")
    untouched(workplace)


def test_a_layer_of_width_zero_is_the_fault_that_is_named(workplace: Path) -> None:
    words = ["train", "--data", "wine", "--out", "out", "--model"]
    refused([*words, "mlp:13-0-3"], 2, "PA325 mlp:13-0-3 has a layer of width 0")
    refused([*words, "mlp:13-9999999-9999999-3"], 2, "PA325", "at most 500000000")


def test_runs_that_hold_something_else(workplace: Path) -> None:
    for name, body in (("manifest.json", "{}"), ("audit.json", '{"schema": "other/1"}'), ("audit.json", "{")):
        folder = workplace / f"run{len(list(workplace.iterdir()))}"
        folder.mkdir()
        (folder / "manifest.json").write_text('{"schema": "poisonaudit/run/1", "command": "audit", "files": {}}')
        (folder / name).write_text(body)
        result = CliRunner().invoke(cli, ["compare", str(folder), "--out", "out"])
        assert result.exit_code in {2, 3, 5}, result.stderr
        assert len(result.stderr.splitlines()) == 1
    untouched(workplace)
