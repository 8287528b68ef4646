"""attack: what it stores, that it equals the library's own retraining, dry runs, resuming, interrupts, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from poisonaudit.cli.console import Reporter
from poisonaudit.cli.main import cli
from poisonaudit.cli.pipeline.attack import run_attack
from poisonaudit.cli.pipeline.stages import Stages
from poisonaudit.config.catalogue import find_recipe
from poisonaudit.config.load import load_config
from poisonaudit.config.schema import AttackConfig
from poisonaudit.data import load_data
from poisonaudit.errors import StorageError
from poisonaudit.report.formats import number
from poisonaudit.store import RunFolder
from poisonaudit.verify import retraining as retraining_module

TOY = ["model=linear", "limit=60", "budget.rows=4", "craft.steps=2", "retrain.fresh=2", "budget.radius=0.5"]
SETS = [word for change in TOY for word in ("--set", change)]
WORDS = ["attack", "flip-one-tumour", *SETS]


def call(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


def result_of(run: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((run / "attack.json").read_text())
    return body


def timeless(value: Any) -> Any:
    """Without wall times, which no two runs share."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if "seconds" not in key}
    return [timeless(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("attacks") / "run"
    call(*WORDS, "--out", out)
    return out


def test_attack_stores_everything(attacked: Path) -> None:
    body = result_of(attacked)
    assert body["schema"] == "poisonaudit/attack/1"
    assert {"recipe", "budget", "rows", "predicted", "retrained", "control", "detectors"} <= body.keys()
    assert (
        [run["seed"] for run in body["retrained"]["fresh"]]
        == [1, 2]
        == [run["seed"] for run in body["control"]["fresh"]]
    )
    for outcome in (body["predicted"], body["retrained"]["warm"], *body["retrained"]["fresh"], body["control"]["warm"]):
        assert {"margin", "prediction", "success", "displacement_norm", "test_accuracy"} <= outcome.keys()
    names = {path.name for path in attacked.iterdir()}
    assert {"weights-warm.safetensors", "weights-fresh-1.safetensors", "weights-fresh-2.safetensors"} <= names
    assert {"attack.json", "poison.safetensors", "poisoned.npz", "report.html", "results.csv", "manifest.json"} <= names
    assert body["recipe"]["objective"]["test_row"] in load_data("breast_cancer").test_ids.tolist()


def test_the_poison_keeps_its_budget_and_its_rows(attacked: Path) -> None:
    body, run = result_of(attacked), RunFolder.open(attacked)
    poison = run.read_tensors("poison.safetensors")
    data = load_data("breast_cancer", limit=60).to(torch.float64)
    assert poison["rows"].tolist() == body["rows"] and len(body["rows"]) == 4
    assert float(poison["delta"].abs().max()) <= 0.5 + 1e-12
    positions = [data.train_ids.tolist().index(row) for row in body["rows"]]
    moved = data.x_train[positions] + poison["delta"]
    assert bool((moved >= data.box[0] - 1e-12).all() & (moved <= data.box[1] + 1e-12).all())
    # The box that was used, not its name in the recipe; what the report says of it is its range.
    assert body["budget"]["box"] == [end.tolist() for end in data.box] and body["recipe"]["budget"]["box"] == "data"
    assert body["budget"]["choice"] == "adjoint" and body["budget"]["rows"] == 4
    low, high = float(data.box[0].min()), float(data.box[0].max())
    told = f"per column: lower {number(low)} to {number(high)}, upper"
    assert told in (attacked / "report.html").read_text(encoding="utf-8")
    again = load_data(f"npz:{attacked / 'poisoned.npz'}")
    expected = data.x_train.clone()
    expected[positions] = moved
    np.testing.assert_allclose(again.x_train.numpy(), expected.float().numpy(), atol=0, rtol=0)
    assert again.train_ids.tolist() == data.train_ids.tolist()


def test_staged_retraining_is_the_librarys(attacked: Path) -> None:
    from poisonaudit import retrain
    from poisonaudit.cli.pipeline.attack import clean_victim, load_victim
    from poisonaudit.cli.pipeline.crafting import stored_poison
    from poisonaudit.cli.pipeline.goals import make_budget
    from poisonaudit.cli.pipeline.objectives import make_objective

    config = load_config(AttackConfig, [find_recipe("flip-one-tumour")], TOY)
    report, folder = Reporter(), RunFolder.open(attacked)
    stages = Stages(folder, load_victim(config, False, report), report)
    victim = clean_victim(config, stages, report)
    stages = Stages(folder, victim, report)
    objective, _ = make_objective(config, stages, report)
    poison = stored_poison(folder, victim, make_budget(config.budget, victim), objective)
    direct = retrain(victim.problem, poison, fresh=2, test=victim.test)
    body = result_of(attacked)
    # Up to the last bits: the library's trainings may share a factorisation, staged ones stand alone.
    for mine, theirs in ((body["retrained"], direct.to_json()), (body["control"], direct.control.to_json())):
        for one, other in zip((mine["warm"], *mine["fresh"]), (theirs["warm"], *theirs["fresh"]), strict=True):
            assert one.keys() == other.keys()
            for key in ("seed", "converged", "success", "prediction", "test_accuracy"):
                assert one[key] == other[key], key
            for key in ("margin", "margin_change", "displacement_norm", "train_loss"):
                assert one[key] == pytest.approx(other[key], rel=1e-6, abs=1e-7), key
    assert body["retrained"]["summary"].keys() == direct.summary().keys()


def test_what_is_known_of_the_poison_is_in_every_result(tmp_path: Path) -> None:
    sets = ["model=linear", "limit=60", "budget={rows: 2, radius: 0.01, integer: [magnesium]}", "craft.steps=1",
            "retrain={fresh: 0, loose: 0}", "baselines=[]", "detectors=false", "inspection=false"]  # fmt: skip
    words = ["attack", "flip-one-wine", *(word for change in sets for word in ("--set", change))]
    said = call(*words, "--out", tmp_path / "run")
    body = result_of(tmp_path / "run")
    (note,) = [text for text in body["notes"] if "cannot move" in text]
    assert note.startswith("column magnesium (step")
    assert f"poison: {note}" in said.stdout
    assert "Poison: column magnesium (step" in (tmp_path / "run" / "report.html").read_text()
    call("report", tmp_path / "run", "--format", "md")
    assert "column magnesium" in (tmp_path / "run" / "report.md").read_text()


def test_a_rehearsal_on_a_stored_victim_tells_of_that_victim(tmp_path: Path) -> None:
    train = ["train", "--model", "linear", "--data", "breast_cancer", "--decay", "1e-2", "--limit", "50"]
    call(*train, "--out", tmp_path / "train")
    words = ["attack", "flip-one-tumour", "--set", f"victim={tmp_path / 'train'}", "--dry-run"]
    config = json.loads(call(*words, "--json").stdout)["config"]
    own = {"model": "linear", "data": "breast_cancer", "limit": 50, "decay": 0.01, "loss": "cross_entropy"}
    assert {key: config[key] for key in own} == own
    assert "limit: 50" in call(*words).stdout
    given = ["--limit", "5", "--set", "decay=0", "--set", "training.tolerance=1e-6"]
    told = call(*words, *given).stderr
    assert f"{tmp_path / 'train'} is attacked as it was trained; not used: " in told
    assert "model=mlp" in told and "decay=0.0, limit=5, training.tolerance=1e-06." in told
    bare = {"name": "bare", "objective": {"kind": "flip"}, "budget": {"rows": 2, "radius": 0.1}}
    (tmp_path / "bare.yaml").write_text(json.dumps({**bare, "victim": str(tmp_path / "train")}))
    assert "not used" not in call("attack", tmp_path / "bare.yaml", "--dry-run").stderr


def test_attack_on_a_stored_victim_is_joined_to_its_audit(tmp_path: Path) -> None:
    words = ["--model", "linear", "--data", "breast_cancer", "--decay", "1e-3", "--limit", "60"]
    call("train", *words, "--out", tmp_path / "train")
    call("audit", tmp_path / "train", "--measures", "stationarity", "--out", tmp_path / "audit")
    call(*WORDS, "--set", f"victim={tmp_path / 'train'}", "--out", tmp_path / "stored")
    call(*WORDS, "--out", tmp_path / "trained")
    said = call("compare", tmp_path / "audit", tmp_path / "stored", tmp_path / "trained", "--out", tmp_path / "compare")
    # Two runs of one recipe on one model are told apart by their folders.
    for run in ("stored", "trained"):
        assert len([line for line in said.stdout.splitlines() if f"flip-one-tumour ({run})" in line]) == 1
    body = json.loads((tmp_path / "compare" / "comparison.json").read_text())
    joined = {item["id"]: item for item in body["audits"][0]["measures"]}
    # The recipe trains the same model from the same seed, so both attacks are attacks on the audited weights.
    stored, trained = result_of(tmp_path / "stored"), result_of(tmp_path / "trained")
    assert stored["recipe"]["victim"]["weights_sha256"] == trained["recipe"]["victim"]["weights_sha256"]
    assert timeless(stored["retrained"]) == timeless(trained["retrained"])
    assert joined["attack.flip_success"]["value"] is not None
    call(
        "compare",
        tmp_path / "audit",
        tmp_path / "stored",
        "--fail-on",
        "attack.flip_success>0.5",
        "--out",
        tmp_path / "gate",
        code=1,
    )


def test_foreign_weights_are_polished_first(tmp_path: Path) -> None:
    words = ["--model", "linear", "--data", "breast_cancer", "--decay", "1e-3", "--limit", "60", "--tolerance", "1e-3"]
    call("train", *words, "--out", tmp_path / "train")
    weights = tmp_path / "train" / "weights.safetensors"
    result = call(*WORDS, "--set", f"weights={weights}", "--set", "retrain.fresh=0", "--out", tmp_path / "a")
    assert "polish moved the weights by" in result.stderr
    assert result_of(tmp_path / "a")["control"]["warm"]["converged"]


def test_target_weights_from_a_file(tmp_path: Path) -> None:
    words = ["--model", "linear", "--data", "digits", "--decay", "1e-3", "--limit", "60"]
    call("train", *words, "--out", tmp_path / "clean")
    call("train", *words[:-1], "70", "--out", tmp_path / "other")
    source = f"objective.source={{file: {tmp_path / 'other' / 'weights.safetensors'}}}"
    sets = [*SETS[:2], "--set", source, "--set", "budget.share=null", *SETS[4:8], "--set", "retrain.fresh=1"]
    call("attack", "target-weights-label-flips", "--limit", "60", *sets, "--out", tmp_path / "a")
    body = result_of(tmp_path / "a")
    assert body["retrained"]["warm"]["movement"] > 0
    assert abs(body["retrained"]["warm"]["movement"] - body["predicted"]["movement"]) < 0.1


def test_fail_on_of_an_attack(attacked: Path, tmp_path: Path) -> None:
    call(*WORDS, "--fail-on", "attack.flip_success<0", "--out", tmp_path / "pass")
    call(*WORDS, "--fail-on", "attack.flip_success<2", "--out", tmp_path / "fail", code=1)


def test_dry_run_prints_configuration_and_plan_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*WORDS, "--dry-run", "--seed", "7")
    assert "radius: 0.5" in result.stdout and "seed: 7" in result.stdout
    assert "retrain from seeds 8 to 9" in result.stdout
    body = json.loads(call(*WORDS, "--dry-run", "--json").stdout)
    assert body["config"]["budget"]["rows"] == 4 and len(body["plan"]) >= 5
    assert list(tmp_path.iterdir()) == []


def test_resume_keeps_what_is_finished(attacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, trained = tmp_path / "run", []
    real = retraining_module.fit

    def interrupted(*args: Any, **given: Any) -> Any:
        trained.append(given.get("start"))
        if len(trained) == 5:
            raise KeyboardInterrupt
        return real(*args, **given)

    monkeypatch.setattr(retraining_module, "fit", interrupted)
    result = call(*WORDS, "--out", run, code=130)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("interrupted.") and f"poisonaudit attack --resume --out {run}" in last
    assert not (run / "attack.json").exists() and not (run / "manifest.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in run.glob("weights-*")}
    assert "weights-control-1.safetensors" in kept and "weights-fresh-1.safetensors" not in kept
    monkeypatch.setattr(retraining_module, "fit", real)
    result = call("attack", "--resume", "--out", run)
    assert "poison: kept from before" in result.stderr
    for name, when in kept.items():
        assert (run / name).stat().st_mtime_ns == when
    assert timeless(result_of(run)) == timeless(result_of(attacked))


def test_resume_refuses_another_configuration_or_machine(
    attacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for change, part in (
        (["--seed", "5"], "config.seed was 0, is 5"),
        (["--set", "budget.rows=5"], "config.budget.rows"),
    ):
        result = call(*WORDS, *change, "--resume", "--out", attacked, code=2)
        assert result.stderr.startswith("PA386") and part in result.stderr
        assert len(result.stderr.splitlines()) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    result = call(*WORDS, "--resume", "--out", attacked, code=2)
    assert "environment.threads was" in result.stderr
    assert call("attack", "--resume", "--seed", "1", "--out", attacked, code=2).stderr.startswith("PA392")
    (tmp_path / "empty").mkdir()
    assert call("attack", "--resume", "--out", tmp_path / "empty", code=2).stderr.startswith("PA352")


def test_resuming_a_finished_run_changes_nothing(attacked: Path) -> None:
    before = timeless(result_of(attacked))
    call("attack", "--resume", "--out", attacked)
    assert timeless(result_of(attacked)) == before
    call("verify", attacked)


@pytest.mark.parametrize("damage", ["[]", "{}", "null", '{"predicted": 3}', '"craft"'])
def test_a_poison_whose_facts_are_damaged_is_refused(attacked: Path, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(attacked, run)
    (run / "craft.json").write_text(damage)
    result = call("attack", "--resume", "--out", run, code=5)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("PA505") and "craft.json" in last, result.stderr
    # The same for what an interrupted crafting leaves behind.
    (run / "craft.json").unlink()
    (run / "crafting.json").write_text(damage)
    shutil.copy(run / "poison.safetensors", run / "crafting.safetensors")
    last = call("attack", "--resume", "--out", run, code=5).stderr.splitlines()[-1]
    assert last.startswith("PA505") and "crafting.json" in last, last


def test_a_reporter_is_enough_to_call_the_pipeline(tmp_path: Path) -> None:
    config = load_config(AttackConfig, [find_recipe("flip-one-tumour")], [*TOY, "retrain.fresh=0", "craft.steps=1"])
    assert run_attack(config, tmp_path / "a", report=Reporter()).result.name == "flip-one-tumour"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupt_from_the_keyboard_exits_130_and_resumes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*WORDS, "--set", "retrain.fresh=400", "--out", str(run)]
    script = "from poisonaudit.cli.main import main; main()"
    # A shell may have told its children to ignore the signal; Python then never sees it.
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{script}",
            *words,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (run / "weights-fresh-1.safetensors").exists() and time.monotonic() < deadline:
            assert child.poll() is None, child.communicate()
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, stderr
    assert stdout == ""
    assert stderr.splitlines()[-1].startswith("interrupted. What was finished is kept.")
    assert "Traceback" not in stderr
    assert not (run / "attack.json").exists()
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    plan = json.loads((run / "plan.json").read_text())
    plan["config"]["retrain"]["fresh"] = 1
    (run / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, "-c", script, "attack", "--resume", "--out", str(run)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "kept from before" in done.stderr and result_of(run)["retrained"]["fresh"]


def test_columns_stay_move_in_whole_steps_and_few_at_a_time(tmp_path: Path) -> None:
    """A table whose second column counts something and whose last is nobody's to change."""
    generator = torch.Generator().manual_seed(0)
    age = torch.randint(20, 80, (160,), generator=generator)
    level = torch.rand(160, generator=generator) * 3
    fixed = torch.rand(160, generator=generator)
    label = ((age - 50) / 30 + level - 1.5 + 0.3 * fixed > 0).long()
    lines = [
        "level,age,fixed,label",
        *(f"{a:.6f},{b},{c:.6f},{d}" for a, b, c, d in zip(level, age, fixed, label, strict=True)),
    ]
    (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")
    words = ["--set", f"data=csv:{tmp_path / 'people.csv'}?target=label", "--set", "model=linear", "--set", "limit=100"]
    words += ["--set", "budget.radius=0.4", "--set", "budget.immutable=[fixed]", "--set", "budget.integer=[age]"]
    words += ["--set", "budget.norm=l0", "--set", "budget.entries=1", "--set", "retrain.fresh=0"]
    out = tmp_path / "run"
    call("attack", "flip-one-tumour", *words, "--out", out)
    stored = load_file(out / "poison.safetensors")
    body = json.loads((out / "attack.json").read_text())
    delta = stored["delta"].double()
    data = load_data(f"csv:{tmp_path / 'people.csv'}?target=label", limit=100)
    deviation = float(data.preprocessing["deviation"][1])
    moved = delta != 0
    assert int(moved.sum(1).max()) == 1 and not moved[:, 2].any() and moved[:, :2].any()
    years = delta[:, 1] * deviation
    assert torch.allclose(years, years.round(), atol=1e-4)
    assert body["budget"]["spacing"] == {"1": pytest.approx(1 / deviation)} and body["budget"]["integer"] == ["age"]
    assert body["budget"]["entries"] == 1 and body["budget"]["immutable"] == ["fixed"]
    refused = call("attack", "flip-one-tumour", *words, "--set", "budget.integer=[aje]", "--dry-run", code=2)
    assert "PA379" in refused.stderr and "'age'" in refused.stderr


def test_the_inner_method_of_a_recipe_is_used(tmp_path: Path) -> None:
    bodies = {}
    for method in ("corner", "adam"):
        call(*WORDS, "--set", f"craft.method={method}", "--set", "retrain.fresh=0", "--out", tmp_path / method)
        bodies[method] = result_of(tmp_path / method)
        assert bodies[method]["retrained"]["warm"]["margin_change"] > 0
    assert bodies["adam"]["cost"]["crafting_products"] != bodies["corner"]["cost"]["crafting_products"]
    assert "PA" in call(*WORDS, "--set", "craft.method=adams", "--dry-run", code=2).stderr


@pytest.mark.parametrize("damage", ["[]", "{}", '{"result": 3}'])
def test_stages_of_another_form_are_refused(tmp_path: Path, damage: str) -> None:
    folder = RunFolder.create("attack", tmp_path / "run")
    stages = Stages(folder, None, None)  # type: ignore[arg-type]
    assert stages.result("told", lambda: {"a": 1}) == stages.result("told", dict) == {"a": 1}
    folder.file("told.json").write_text(damage)
    with pytest.raises(StorageError, match=r"PA505 .*told\.json does not hold"):
        stages.result("told", dict)
