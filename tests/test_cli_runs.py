"""train, audit, compare, report and verify on small real data: files, recipes, overrides, gates, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from poisonaudit.cli.main import cli
from poisonaudit.models import build_model
from poisonaudit.store import sha256_file

QUICK = ["--measures", "stationarity,solution.modulus,solution.row_modulus_max"]


def call(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


def record(run: Path, name: str) -> None:
    """Make the manifest agree with a file again, as a careful forger would."""
    manifest = body_of(run / "manifest.json")
    manifest["files"][name] = sha256_file(run / name)
    (run / "manifest.json").write_text(json.dumps(manifest))


def body_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "train"
    call(
        "train", "--model", "linear", "--data", "wine", "--decay", "1e-2", "--limit", "60", "--seed", "3", "--out", out
    )
    return out


@pytest.fixture(scope="module")
def audited(trained: Path) -> Path:
    out = trained.parent / "audit"
    call("audit", trained, *QUICK, "--out", out)
    return out


def test_train_stores_weights_recipe_and_manifest(trained: Path) -> None:
    recipe, manifest = body_of(trained / "train.json"), body_of(trained / "manifest.json")
    assert {path.name for path in trained.iterdir()} == {"weights.safetensors", "train.json", "manifest.json"}
    assert recipe["schema"] == "poisonaudit/train/1"
    expected = {"model": "linear", "data": "wine", "loss": "cross_entropy", "decay": 0.01, "seed": 3, "limit": 60}
    assert {key: recipe[key] for key in expected} == expected
    assert recipe["dtype"] == "float64" and recipe["rows"] == 60 and len(recipe["train_ids"]) == 60
    assert recipe["converged"] and recipe["relative_gradient"] <= 1e-10
    assert recipe["weights_sha256"] == sha256_file(trained / "weights.safetensors")
    assert 0.9 <= recipe["test_accuracy"] <= 1.0
    assert manifest["command"] == "train" and manifest["seed"] == 3 and manifest["inputs"].keys() == {"wine"}
    assert manifest["arguments"]["words"][:3] == ["train", "--model", "linear"]
    assert {value.dtype for value in load_file(trained / "weights.safetensors").values()} == {torch.float64}


def test_training_repeats_bit_for_bit_and_the_folder_is_free_again(trained: Path, tmp_path: Path) -> None:
    words = ["train", "--model", "linear", "--data", "wine", "--decay", "0.01", "--limit", "60", "--seed", "3"]
    result = call(*words, "--out", tmp_path / "again", "--json")
    assert json.loads(result.stdout)["weights_sha256"] == sha256_file(trained / "weights.safetensors")


def test_training_stops_at_a_limit_of_gradients_and_says_so(tmp_path: Path) -> None:
    words = ["train", "--model", "linear", "--data", "wine", "--decay", "0.01", "--limit", "60"]
    result = call(*words, "--max-gradients", "1", "--out", tmp_path / "run", "--json")
    recipe = json.loads(result.stdout)
    assert not recipe["converged"] and "budget" in recipe["reason"] and recipe["gradients"] < 200
    assert "training stopped" in result.stderr


def test_runs_without_out_go_to_the_folder_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call("train", "--model", "linear", "--data", "wine", "--limit", "60")
    (run,) = (tmp_path / "poisonaudit-runs").iterdir()
    assert run.name.startswith("train-")


def test_large_models_are_float32_and_say_so(tmp_path: Path) -> None:
    words = ["train", "--model", "mlp:64-300-10", "--data", "digits", "--limit", "20", "--tolerance", "1e3"]
    result = call(*words, "--out", tmp_path / "run")
    assert "float32" in result.stderr
    assert body_of(tmp_path / "run" / "train.json")["dtype"] == "float32"


def test_regression_has_half_squared_by_default(tmp_path: Path) -> None:
    lines = ["a,b,y", *(f"{i},{(i * 7) % 11},{0.5 * i - ((i * 7) % 11) + 0.1 * (i % 3)}" for i in range(40))]
    (tmp_path / "r.csv").write_text("\n".join(lines))
    out = tmp_path / "run"
    call("train", "--model", "linear", "--data", f"csv:{tmp_path / 'r.csv'}?target=y&task=regression", "--out", out)
    recipe = body_of(out / "train.json")
    assert recipe["loss"] == "half_squared" and recipe["test_accuracy"] is None
    call("audit", out, *QUICK, "--out", tmp_path / "audit")


def test_audit_reads_the_recipe(trained: Path, audited: Path) -> None:
    result = body_of(audited / "audit.json")
    assert result["schema"] == "poisonaudit/audit/1"
    assert (result["model"], result["data"], result["recipe"]["decay"]) == ("linear", "wine", 0.01)
    assert (
        result["recipe"]["weights_sha256"]
        == result["inputs"]["weights"]
        == sha256_file(trained / "weights.safetensors")
    )
    assert result["recipe"]["warnings"] == []
    measures = {item["id"]: item for item in result["measures"]}
    assert measures["stationarity.relative_gradient"]["value"] < 1e-9
    assert measures["solution.modulus"]["valid"]
    ids = set(body_of(trained / "train.json")["train_ids"])
    assert {row["row"] for row in measures["solution.row_modulus_max"]["details"]["fragile"]} <= ids
    assert {path.name for path in audited.iterdir()} == {"audit.json", "report.html", "results.csv", "manifest.json"}


def test_audit_json_on_stdout_is_what_is_stored(trained: Path, tmp_path: Path) -> None:
    result = call("audit", trained, *QUICK, "--rows", "5", "--json", "--out", tmp_path / "a")
    assert json.loads(result.stdout) == body_of(tmp_path / "a" / "audit.json")


def test_overrides_are_warned_of_and_flagged(trained: Path, tmp_path: Path) -> None:
    result = call("audit", trained, "--decay", "0.5", *QUICK, "--out", tmp_path / "a")
    assert "warning: decay 0.5 is used" in result.stderr
    stored = body_of(tmp_path / "a" / "audit.json")
    assert any("0.5" in text for text in stored["recipe"]["warnings"])
    modulus = next(item for item in stored["measures"] if item["id"] == "solution.modulus")
    assert not modulus["valid"]


def test_foreign_weights_assume_no_decay_and_can_be_polished(trained: Path, tmp_path: Path) -> None:
    words = [
        "audit",
        "--model",
        "linear",
        "--data",
        "wine",
        "--limit",
        "60",
        "--weights",
        trained / "weights.safetensors",
    ]
    result = call(*words, "--decay", "0.02", "--polish", *QUICK, "--out", tmp_path / "polished")
    assert "polish moved the weights by" in result.stderr
    stored = body_of(tmp_path / "polished" / "audit.json")
    assert stored["recipe"]["polished"]["distance"] > 0 and stored["recipe"]["polished"]["converged"]
    assert next(m for m in stored["measures"] if m["id"] == "stationarity.relative_gradient")["value"] < 1e-9
    result = call(*words, "--measures", "stationarity", "--out", tmp_path / "assumed")
    assert "decay is unknown and taken as 0" in result.stderr


@pytest.mark.parametrize("form", ["plain", "wrapped"])
def test_foreign_state_dicts_are_understood(form: str, trained: Path, tmp_path: Path) -> None:
    state = load_file(trained / "weights.safetensors")
    wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}
    torch.save(state if form == "plain" else wrapped, tmp_path / "w.pt")
    words = [
        "audit",
        "--model",
        "linear",
        "--data",
        "wine",
        "--limit",
        "60",
        "--decay",
        "0.01",
        "--measures",
        "stationarity",
    ]
    call(*words, "--weights", tmp_path / "w.pt", "--out", tmp_path / "a")
    assert body_of(tmp_path / "a" / "audit.json")["measures"][0]["value"] < 1e-9


@pytest.mark.parametrize(
    ("rules", "code", "outcomes"),
    [
        (["solution.modulus>1e9"], 0, ["PASS"]),
        (["solution.modulus>1e-9"], 1, ["FAIL"]),
        (["solution.modulus<1e-9", "solution.modulus<1e9"], 1, ["PASS", "FAIL"]),
        (["weight_noise.rms>1"], 1, ["INCONCLUSIVE"]),
    ],
)
def test_fail_on_decides_the_exit_code(
    trained: Path, tmp_path: Path, rules: list[str], code: int, outcomes: list[str]
) -> None:
    gates = [word for rule in rules for word in ("--fail-on", rule)]
    result = call("audit", trained, *QUICK, *gates, "--out", tmp_path / "a", code=code)
    assert [gate["outcome"] for gate in body_of(tmp_path / "a" / "audit.json")["gates"]] == outcomes
    for outcome in outcomes:
        assert outcome in result.stdout


def test_a_bug_in_one_measure_leaves_the_audit_and_exits_4(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from poisonaudit.audit import MEASURES

    def broken(_: Any) -> None:
        raise IndexError("no such column")

    monkeypatch.setitem(MEASURES, "solution.modulus", broken)
    result = call("audit", trained, *QUICK, "--out", tmp_path / "a", code=4)
    assert "warning: solution.modulus failed: IndexError: no such column" in result.stderr
    stored = {item["id"]: item for item in body_of(tmp_path / "a" / "audit.json")["measures"]}
    assert stored["solution.modulus"]["details"]["bug"] and not stored["solution.modulus"]["valid"]
    assert stored["solution.row_modulus_max"]["valid"] and (tmp_path / "a" / "report.html").is_file()
    gated = call("audit", trained, *QUICK, "--fail-on", "solution.modulus>1", "--out", tmp_path / "b", code=1)
    assert "INCONCLUSIVE" in gated.stdout


def test_changed_weights_and_changed_data_are_refused(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "train"
    run.mkdir()
    for path in trained.iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    state = load_file(run / "weights.safetensors")
    save_file({name: value + 1 for name, value in state.items()}, run / "weights.safetensors")
    result = call("audit", run, "--out", tmp_path / "a", code=3)
    assert result.stderr.startswith("PA190")
    assert "changed" in call("verify", run, code=3).stdout
    recipe = body_of(trained / "train.json")
    recipe["train_ids"] = recipe["train_ids"][::-1]
    (run / "weights.safetensors").write_bytes((trained / "weights.safetensors").read_bytes())
    (run / "train.json").write_text(json.dumps(recipe))
    assert call("audit", run, "--out", tmp_path / "a", code=3).stderr.startswith("PA222")
    record(run, "train.json")
    assert call("audit", run, "--out", tmp_path / "a", code=3).stderr.startswith("PA290")
    assert not (tmp_path / "a").exists()


def test_verify_finds_every_change(audited: Path, tmp_path: Path) -> None:
    assert "unchanged" in call("verify", audited).stdout
    run = tmp_path / "audit"
    run.mkdir()
    for path in audited.iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    (run / "results.csv").unlink()
    (run / "audit.json").write_text("{}")
    (run / "more.txt").write_text("")
    states = {item["file"]: item["state"] for item in json.loads(call("verify", run, "--json", code=3).stdout)}
    assert states == {
        "audit.json": "changed",
        "results.csv": "missing",
        "report.html": "unchanged",
        "more.txt": "not recorded",
    }


def test_report_renders_again_and_the_run_still_verifies(audited: Path) -> None:
    before = (audited / "report.html").read_bytes()
    result = call("report", audited, "--format", "html,json,csv,md,sarif,junit")
    assert (audited / "report.html").read_bytes() == before
    assert len(result.stdout.splitlines()) == 6
    for line in result.stdout.splitlines():
        assert Path(line).stat().st_size > 0
    call("verify", audited)
    assert call("report", audited, "--format", "pdf", code=2).stderr.startswith("PA301")


def test_report_of_a_training_run_says_what_to_do(trained: Path) -> None:
    assert "poisonaudit audit" in call("report", trained, code=2).stderr


def test_compare_joins_runs_and_audits_training_runs(trained: Path, audited: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    call("train", "--model", "mlp:13-4-3?activation=tanh", "--data", "wine", "--limit", "60", "--out", other)
    out = tmp_path / "compare"
    result = call("compare", audited, other, *QUICK, "--out", out, "--fail-on", "solution.modulus>1e9")
    stored = body_of(out / "comparison.json")
    assert {audit["model"] for audit in stored["audits"]} == {"linear", "mlp:13-4-3?activation=tanh"}
    assert [gate["outcome"] for gate in stored["gates"]] == ["PASS", "PASS"]
    assert "solution.modulus" in result.stdout
    assert (out / "audit-2-other" / "audit.json").is_file()
    again = call("compare", out, "--out", tmp_path / "again", "--json")
    assert len(json.loads(again.stdout)["audits"]) == 2
    call("compare", out, "--out", tmp_path / "gated", "--fail-on", "solution.modulus>1e-9", code=1)


def test_configurations_and_layers(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"run: {trained}\nmeasures: [stationarity]\nseed: 4\n")
    call("audit", "--config", tmp_path / "c.yaml", "--set", "seed=5", "--out", tmp_path / "a")
    assert body_of(tmp_path / "a" / "audit.json")["seed"] == 5
    call("audit", "--config", tmp_path / "c.yaml", "--set", "seed=5", "--seed", "6", "--out", tmp_path / "b")
    assert body_of(tmp_path / "b" / "audit.json")["seed"] == 6


def test_listings_are_complete() -> None:
    for kind in ("models", "data", "measures", "attacks", "reproductions"):
        entries = json.loads(call("ls", kind, "--json").stdout)
        assert entries and all(entry["name"] for entry in entries), kind
    assert "linear" in call("ls", "models").stdout
    assert "wang-toy" in call("ls", "reproductions").stdout


def test_doctor_reports_the_self_test() -> None:
    checks = {check["name"]: check for check in json.loads(call("doctor", "--json").stdout)}
    assert checks["self-test"]["state"] == "ok"
    assert checks["torchvision"]["state"] == "ok"


def test_doctor_that_finds_the_machine_unable_exits_4(monkeypatch: pytest.MonkeyPatch) -> None:
    from poisonaudit.cli.commands import doctor

    def broken() -> tuple[str, str]:
        raise ImportError("no such thing")

    monkeypatch.setitem(doctor._CHECKS, "torchvision", broken)
    result = call("doctor", code=4)
    assert "torchvision" in result.stderr and "no such thing" in result.stdout


def test_own_code_is_recorded_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("import torch\ndef net(**given):\n    return torch.nn.Linear(13, 3)\n")
    out = tmp_path / "run"
    call("train", "--model", f"{path}:net", "--data", "wine", "--limit", "60", "--trust-code", "--out", out)
    assert sha256_file(path) in body_of(out / "manifest.json")["inputs"].values()


def test_models_are_named_alike_everywhere() -> None:
    assert list(build_model("linear", input_shape=(13,), outputs=3).state_dict())


def test_interrupted_training_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from poisonaudit.cli.pipeline import train

    def interrupted(*args: Any, **given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", interrupted)
    monkeypatch.chdir(tmp_path)
    for out in (["--out", "run"], []):
        result = call("train", "--model", "linear", "--data", "wine", *out, code=130)
        assert result.stderr.splitlines()[-1] == "interrupted. Nothing was left half-written."
        assert list(tmp_path.iterdir()) == []


def test_picture_models_are_audited_and_their_poison_is_shown(tmp_path: Path) -> None:
    from poisonaudit.attack import Budget, FlipPrediction, Poison
    from poisonaudit.cli.console import Reporter
    from poisonaudit.cli.pipeline.exports import pictures
    from poisonaudit.cli.pipeline.victim import assemble

    words = ["train", "--model", "lenet", "--data", "digits", "--limit", "30", "--tolerance", "1e-1"]
    call(*words, "--out", tmp_path / "train")
    call("audit", tmp_path / "train", "--measures", "stationarity", "--rows", "2", "--out", tmp_path / "audit")
    victim = assemble("lenet", "digits", decay=1e-3, limit=30, report=Reporter())
    rows = torch.tensor([3, 7])
    delta = torch.stack([torch.full((1, 8, 8), 0.25), torch.full((1, 8, 8), -0.5)]).double()
    goal = FlipPrediction(victim.data.x_test[0], 1)
    budget = Budget(rows=2, radius=0.5)
    poison = Poison(rows, delta, {}, (), budget, goal, victim.problem.weights, products=0, seconds=0.0)
    shown = pictures(victim, poison)
    assert [item["row"] for item in shown] == victim.data.train_ids[[7, 3]].tolist()
    clean, poisoned = shown[0]["clean"], shown[0]["poisoned"]
    assert clean["shape"] == poisoned["shape"] == [1, 8, 8]
    pixels = victim.data.x_train[7].flatten()
    assert clean["pixels"] == (255 * pixels).round().int().tolist()
    assert poisoned["pixels"] == (255 * (pixels - 0.5).clamp(0, 1)).round().int().tolist()
