"""attack --trainer: consent, what is stored and shown, resuming, refusals; loose training in recipes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from poisonaudit.cli.console import Reporter
from poisonaudit.cli.main import cli
from poisonaudit.cli.pipeline import stages as stages_module
from poisonaudit.cli.pipeline.attack import run_attack
from poisonaudit.config.catalogue import find_recipe
from poisonaudit.config.load import load_config
from poisonaudit.config.schema import AttackConfig
from poisonaudit.store import RunFolder

TOY = ["model=linear", "limit=60", "budget.rows=4", "craft.steps=1", "retrain.fresh=2", "budget.radius=0.5"]
WORDS = ["attack", "flip-one-tumour", *(word for change in TOY for word in ("--set", change))]
OWN = """
import torch
from pathlib import Path

def train(problem, seed, epochs=20):
    calls = Path(__file__).with_name("calls")
    calls.write_text((calls.read_text() if calls.exists() else "") + f"{seed}\\n")
    model = problem.module().requires_grad_(True)
    for layer in model.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=problem.decay)
    for _ in range(epochs):
        optimiser.zero_grad()
        problem.loss_per_row(model(problem.x), problem.y).mean().backward()
        optimiser.step()
    return model

def fails(problem, seed):
    return problem.no_such_thing

def short(problem, seed):
    return torch.zeros(2, dtype=problem.x.dtype)
"""


def call(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


def refused(*words: str | Path, code: int, start: str) -> str:
    result = call(*words, code=code)
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith(start), result.stderr
    return result.stderr


def result_of(run: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((run / "attack.json").read_text())
    return body


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if "seconds" not in key}
    return [timeless(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "my code #1"
    folder.mkdir()
    (folder / "own.py").write_text(OWN)
    return folder / "own.py"


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("trainer")
    (folder / "own.py").write_text(OWN)
    done = call(*WORDS, "--trainer", f"{folder / 'own.py'}:train", "--trust-code", "--out", folder / "run")
    return folder, done.stdout


def test_own_tight_and_loose_training_are_stored_and_shown(attacked: tuple[Path, str]) -> None:
    folder, shown = attacked
    run, body = folder / "run", result_of(folder / "run")
    digest = hashlib.sha256((folder / "own.py").read_bytes()).hexdigest()
    assert body["inputs"]["trainer:own.py"] == digest
    assert json.loads((run / "manifest.json").read_text())["inputs"]["trainer:own.py"] == digest
    assert body["recipe"]["retrain"]["trainer"].endswith("own.py:train")
    for part in (body["retrained"], body["control"]):
        for kind in ("tight", "loose", "trainer"):
            assert [entry["seed"] for entry in part[kind]] == [1, 2]
            assert {entry["kind"] for entry in part[kind]} == {kind}
        assert part["fresh"] == part["trainer"]
        assert part["trainer"][0]["reason"] == f"own.py:train (sha256 {digest[:12]})"
    summary = body["retrained"]["summary"]
    assert summary["tight"]["fresh_runs"] == summary["loose"]["fresh_runs"] == summary["trainer"]["fresh_runs"] == 2
    lines = [line.split()[0] for line in shown.splitlines() if line]
    assert {"tight", "loose", "own"} <= set(lines)
    names = {path.name for path in run.glob("weights-*")}
    for kind in ("loose", "trainer"):
        for seed in (1, 2):
            assert {f"weights-{kind}-{seed}.safetensors", f"weights-control-{kind}-{seed}.safetensors"} <= names
    # One call for each seed and side: the first control, made before crafting, is not made again.
    assert sorted((folder / "calls").read_text().split()) == ["1", "1", "2", "2"]
    call("verify", run)
    call("report", run)


def test_staged_trainings_are_the_librarys(attacked: tuple[Path, str]) -> None:
    from poisonaudit import retrain
    from poisonaudit.cli.pipeline.attack import clean_victim, load_victim
    from poisonaudit.cli.pipeline.crafting import stored_poison
    from poisonaudit.cli.pipeline.goals import make_budget
    from poisonaudit.cli.pipeline.objectives import make_objective
    from poisonaudit.cli.pipeline.stages import Stages
    from poisonaudit.verify import load_trainer

    folder, _ = attacked
    config, report = load_config(AttackConfig, [find_recipe("flip-one-tumour")], TOY), Reporter()
    run = RunFolder.open(folder / "run")
    victim = clean_victim(config, Stages(run, load_victim(config, False, report), report), report)
    stages = Stages(run, victim, report)
    objective, _ = make_objective(config, stages, report)
    poison = stored_poison(run, victim, make_budget(config.budget, victim), objective)
    trainer = load_trainer(f"{folder / 'own.py'}:train", trust_code=True)
    calls = (folder / "calls").read_text()
    direct = retrain(victim.problem, poison, fresh=2, trainer=trainer, test=victim.test, tight=False)
    (folder / "calls").write_text(calls)
    body = result_of(folder / "run")
    for kind in ("loose", "trainer"):
        assert timeless(body["retrained"][kind]) == timeless([entry.to_json() for entry in direct.runs(kind)])
        assert timeless(body["control"][kind]) == timeless([entry.to_json() for entry in direct.control.runs(kind)])


def test_resume_keeps_every_finished_training(
    attacked: tuple[Path, str], own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted twice, in the user's training and in the loose one; the result is that of one go."""
    run, words = tmp_path / "run", [*WORDS, "--trainer", f"{own}:train", "--trust-code"]
    real = stages_module.trained

    def interrupted_at(count: int) -> list[Any]:
        done: list[Any] = []

        def train(*arguments: Any) -> Any:
            if len(done) == count:
                raise KeyboardInterrupt
            done.append(arguments)
            return real(*arguments)

        monkeypatch.setattr(stages_module, "trained", train)
        return done

    def kept() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in run.glob("weights-*")}

    interrupted_at(2)
    hint = call(*words, "--out", run, code=130).stderr.splitlines()[-1]
    assert "poisonaudit attack --resume --out" in hint
    first = kept()
    assert "weights-trainer-1.safetensors" in first and "weights-control-trainer-2.safetensors" not in first
    refused("attack", "--resume", "--out", run, code=3, start="PA130")
    interrupted_at(3)
    call("attack", "--resume", "--trust-code", "--out", run, code=130)
    second = kept()
    assert first.items() <= second.items() and "weights-control-loose-1.safetensors" in second
    assert not (run / "attack.json").exists()
    done = interrupted_at(99)
    call("attack", "--resume", "--trust-code", "--out", run)
    assert second.items() <= kept().items() and len(done) == 3
    assert (own.parent / "calls").read_text().split() == ["1", "1", "2", "2"]
    mine, theirs = timeless(result_of(run)), timeless(result_of(attacked[0] / "run"))
    for part in (mine, theirs):
        part["recipe"]["retrain"].pop("trainer")
    assert mine == theirs


def test_a_changed_trainer_is_another_run(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*WORDS, "--trainer", f"{own}:train", "--trust-code", "--out", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr(stages_module, "trained", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt()))
        call(*words, code=130)
    own.write_text(OWN + "\n# changed\n")
    line = refused("attack", "--resume", "--trust-code", "--out", tmp_path / "run", code=2, start="PA386")
    assert "inputs.trainer:own.py was" in line


def test_code_needs_consent_and_nothing_is_left_behind(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trainer = ["--trainer", f"{own}:train"]
    assert "--trust-code" in refused(*WORDS, *trainer, "--out", out, code=3, start="PA130")
    assert "--trust-code" in refused(*WORDS, *trainer, "--dry-run", code=3, start="PA130")
    trusted = [*WORDS, "--trust-code", "--out", out, "--trainer"]
    refused(*trusted, f"{own}:tarin", code=3, start="PA131")
    refused(*trusted, f"{own.parent}/none.py:train", code=3, start="PA101")
    refused(*trusted, "train", code=2, start="PA373")
    line = refused(*WORDS, *trainer, "--trust-code", "--set", "retrain.fresh=0", "--out", out, code=2, start="PA383")
    assert "a trainer is named, but fresh is 0" in line
    assert not out.exists() and not (own.parent / "calls").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("fails", "PA131 own.py:fails failed at line 20: AttributeError"), ("short", "PA125 ")]
)
def test_what_fails_in_it_shows_before_anything_is_crafted(own: Path, tmp_path: Path, name: str, words: str) -> None:
    result = call(*WORDS, "--trainer", f"{own}:{name}", "--trust-code", "--out", tmp_path / "run", code=3)
    assert result.stderr.splitlines()[-1].startswith(words), result.stderr
    assert "crafting" not in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "craft.json").exists()
    shown = CliRunner().invoke(
        cli, [*WORDS, "--trainer", f"{own}:fails", "--trust-code", "--debug", "--out", str(tmp_path / "b")]
    )
    assert shown.exit_code == 3 and "Traceback" in shown.stderr and "AttributeError" in shown.stderr


def test_the_plan_lists_every_training(own: Path) -> None:
    words = [*WORDS, "--dry-run", "--json", "--trust-code", "--trainer", f"{own}:train?epochs=3"]
    body = json.loads(call(*words, "--set", "retrain.loose=3").stdout)
    plan = " | ".join(body["plan"])
    assert "own.py:train?epochs=3 from seeds 1 to 2 on poisoned and on clean rows (4 trainings)" in plan
    assert "loosely, 40 epochs of Adam, from seeds 1 to 3 on poisoned and on clean rows (6 trainings)" in plan
    assert body["config"]["retrain"]["fresh"] == 2 and body["config"]["retrain"]["loose"] == 3
    assert "loosely" not in " | ".join(json.loads(call(*words, "--set", "retrain.loose=0").stdout)["plan"])
    assert not (own.parent / "calls").exists()


def test_loose_training_of_a_recipe(tmp_path: Path) -> None:
    sets = ["retrain.loose=3", "retrain.loose_epochs=2", "retrain.fresh=0"]
    config = load_config(AttackConfig, [find_recipe("flip-one-tumour")], [*TOY, *sets])
    body = run_attack(config, tmp_path / "a", report=Reporter()).result.to_json()
    assert [entry["seed"] for entry in body["retrained"]["loose"]] == [1, 2, 3]
    assert body["retrained"]["loose"][0]["reason"].startswith("Adam, 2 epochs") and body["retrained"]["fresh"] == []
    # Controls of another run serve only where they were trained alike.
    again = load_config(AttackConfig, [find_recipe("flip-one-tumour")], [*TOY, *sets[:1], "retrain.fresh=0"])
    other = run_attack(again, tmp_path / "b", controls=tmp_path / "a", report=Reporter()).result.to_json()
    assert other["control"]["loose"][0]["reason"].startswith("Adam, 40 epochs")
    third = run_attack(config, tmp_path / "c", controls=tmp_path / "a", report=Reporter()).result.to_json()
    assert third["control"]["loose"] == body["control"]["loose"]  # seconds too: taken over, not trained
    assert third["control"]["warm"]["seconds"] == body["control"]["warm"]["seconds"]


def test_crafting_goes_through_the_owners_training(own: Path, tmp_path: Path) -> None:
    words = [*WORDS, "--set", "craft.outer=training", "--set", "craft.solutions=2", "--set", "retrain.loose=0"]
    plan = call(*words, "--dry-run").stdout
    assert "each trained by 40 epochs of Adam from 2 seeds" in plan
    ours = [*words, "--trainer", f"{own}:train", "--trust-code"]
    assert "own.py:train from 2 seeds" in call(*ours, "--dry-run").stdout
    call(*ours, "--out", tmp_path / "run")
    body = result_of(tmp_path / "run")
    assert [line["phi"] for line in body["history"]] == [None, None]
    assert any("crafted through the owner's training, from 2 seeds" in note for note in body["notes"])
    # Crafting calls it with seeds of its own: clean, six dampings, one step; verification with 1 and 2.
    seeds = (own.parent / "calls").read_text().split()
    assert {seed: seeds.count(seed) for seed in set(seeds)} == {"1000000": 8, "1000001": 8, "1": 2, "2": 2}


def test_a_search_does_not_go_with_it() -> None:
    words = [*WORDS, "--set", "craft.outer=training", "--set", "search={over: rows, low: 2, high: 4}"]
    refused(*words, "--dry-run", code=2, start="PA387")
