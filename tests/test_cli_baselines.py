"""Baselines, detectors and inspection in an attack run: the same rows, budget and controls; stored, resumed, shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from poisonaudit import retrain
from poisonaudit.attack.baselines import BASELINES, options_of, refuse_bad_options
from poisonaudit.cli.console import Reporter
from poisonaudit.cli.main import cli
from poisonaudit.cli.pipeline import baselines as baselines_module
from poisonaudit.cli.pipeline import defences
from poisonaudit.cli.pipeline.attack import clean_victim, load_victim
from poisonaudit.cli.pipeline.crafting import stored_poison
from poisonaudit.cli.pipeline.goals import make_budget
from poisonaudit.cli.pipeline.objectives import make_objective
from poisonaudit.cli.pipeline.stages import Stages
from poisonaudit.config.load import load_config
from poisonaudit.config.schema import AttackConfig
from poisonaudit.errors import NumericalFailure, UsageError
from poisonaudit.results import AttackResult
from poisonaudit.store import RunFolder
from poisonaudit.verify.detectors import DETECTORS, run_detectors
from poisonaudit.verify.inspection import RANKINGS

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": "linear",
    "data": "breast_cancer",
    "limit": 60,
    "decay": 1e-2,
    "objective": {"kind": "flip", "test_row": "median_margin"},
    "budget": {"rows": 6, "radius": 0.5},
    "craft": {"steps": 2},
    "retrain": {"fresh": 1, "loose": 1, "loose_epochs": 5},
    "export": [],
    "baselines": ["random_signs", {"gradient_matching": {"steps": 20}}, "gradient_canceling"],
    "detectors": {"names": ["loss_filter", "nearest_neighbours"], "filter": True},
}


def call(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


def recipe(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def body_of(run: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((run / "attack.json").read_text())
    return body


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if "seconds" not in key}
    return [timeless(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("baselines")
    return folder / "run", call("attack", recipe(folder), "--out", folder / "run")


def test_baselines_have_the_rows_and_the_budget_of_the_attack(attacked: tuple[Path, Result]) -> None:
    run, said = attacked
    body = body_of(run)
    assert list(body["baselines"]) == ["random_signs", "gradient_matching", "gradient_canceling"]
    for name in ("random_signs", "gradient_matching"):
        stored, entry = load_file(run / f"baseline-{name}.safetensors"), body["baselines"][name]
        assert stored["rows"].tolist() == body["rows"] and 0 < float(stored["delta"].abs().max()) <= 0.5 + 1e-12
        assert entry["applicable"] and entry["cost"].keys() == {"seconds", "gradients", "products"}
        assert [each["seed"] for each in entry["retrained"]["fresh"]] == [1] and len(entry["retrained"]["loose"]) == 1
        assert entry["detectors"].keys() == {"loss_filter", "nearest_neighbours"}
        for stage in ("warm", "fresh-1", "loose-1"):
            assert (run / f"weights-baseline-{name}-{stage}.safetensors").exists()
    refused = body["baselines"]["gradient_canceling"]
    assert refused["applicable"] is False and "target weights" in refused["reason"] and "retrained" not in refused
    # Controls are shared: nothing but the poisoned side is trained for a baseline.
    assert not list(run.glob("weights-baseline-*control*")) and not (run / "baseline-gradient_canceling.json").exists()
    assert body["cost"]["crafting_gradients"] > 0
    assert "beside other attacks" in said.stdout and "random_signs" in said.stdout
    assert AttackResult.from_json(body).baselines == body["baselines"]
    html = (run / "report.html").read_text()
    assert "gradient_matching" in html and "loss_filter" in html and "row_modulus" in html
    call("verify", run)


def test_a_baseline_is_retrained_as_the_library_does(attacked: tuple[Path, Result], tmp_path: Path) -> None:
    run, report = attacked[0], Reporter()
    config, folder = load_config(AttackConfig, [recipe(tmp_path)]), RunFolder.open(run)
    stages = Stages(folder, load_victim(config, False, report), report)
    victim = clean_victim(config, stages, report)
    objective, _ = make_objective(config, Stages(folder, victim, report), report)
    budget, entry = make_budget(config.budget, victim), body_of(run)["baselines"]["gradient_matching"]
    poison = stored_poison(folder, victim, budget, objective, "gradient_matching")
    assert poison.method == "gradient_matching" and torch.equal(poison.weights, victim.problem.weights)
    direct = retrain(victim.problem, poison, fresh=1, test=victim.test, loose=False)
    for mine, theirs in (
        (entry["retrained"]["warm"], direct.warm.to_json()),
        (entry["retrained"]["fresh"][0], direct.fresh[0].to_json()),
    ):
        for key in ("margin", "margin_change", "displacement_norm", "train_loss"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-6, abs=1e-7), key
    found = run_detectors(
        poison.poisoned(victim.problem), direct.warm.weights, poison.rows, ["nearest_neighbours"], seed=config.seed
    )
    assert entry["detectors"]["nearest_neighbours"]["auroc"] == pytest.approx(found["nearest_neighbours"]["auroc"])


def test_filtering_retrains_without_what_is_flagged(attacked: tuple[Path, Result]) -> None:
    body = body_of(attacked[0])
    for detectors in (body["detectors"], body["baselines"]["random_signs"]["detectors"]):
        left = detectors["loss_filter"]["filtered"]
        assert left["rows_left"] == 60 - left["flagged"] and left["applicable"]
        assert {"clean", "poisoned", "filtered", "random", "clean_filtered"} == left["arms"].keys()
    # The poisoned arm is the run's own retraining, not a new one.
    arm = body["detectors"]["loss_filter"]["filtered"]["arms"]["poisoned"]["runs"]
    for key in ("margin", "seconds"):
        assert [run[key] for run in arm] == [body["retrained"]["warm"][key], body["retrained"]["fresh"][0][key]]


def test_inspection_is_told_for_every_ranking(attacked: tuple[Path, Result]) -> None:
    inspection = body_of(attacked[0])["inspection"]
    assert inspection.keys() == {*RANKINGS, "mean_rank"}
    assert all(each["applicable"] and 0 <= each["auroc"] <= 1 for each in inspection.values())


def test_an_interrupted_run_keeps_finished_baselines(
    attacked: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, run_names = baselines_module.run_baseline, []

    def interrupted(name: str, *given: Any, **options: Any) -> Any:
        run_names.append(name)
        if name == "gradient_matching":
            raise KeyboardInterrupt
        return real(name, *given, **options)

    out = tmp_path / "run"
    monkeypatch.setattr(baselines_module, "run_baseline", interrupted)
    call("attack", recipe(tmp_path), "--out", out, code=130)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*baseline-random_signs*")}
    assert {"baseline-random_signs.json", "weights-baseline-random_signs-fresh-1.safetensors"} <= kept.keys()
    monkeypatch.setattr(baselines_module, "run_baseline", real)
    said = call("attack", "--resume", "--out", out)
    assert "baseline random_signs: kept from before" in said.stderr
    assert all((out / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert timeless(body_of(out)) == timeless(body_of(attacked[0]))


def test_resuming_repeats_no_detection(attacked: tuple[Path, Result], tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(attacked[0], out)
    for name in ("attack.json", "manifest.json", "report.html"):
        (out / name).unlink()
    call("attack", "--resume", "--out", out)
    # Wall times too: what is kept is not run again.
    for key in ("detectors", "inspection", "baselines"):
        assert body_of(out)[key] == body_of(attacked[0])[key]


def test_a_baseline_that_fails_is_no_failure_of_the_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **options: Any) -> Any:
        raise NumericalFailure("PA431", "the solve gave NaN.")

    monkeypatch.setattr(baselines_module, "run_baseline", fails)
    off = {"detectors": False, "inspection": False, "retrain": {"fresh": 0}}
    call("attack", recipe(tmp_path, baselines=["influence"], **off), "--out", tmp_path / "run")
    body = body_of(tmp_path / "run")
    assert body["baselines"]["influence"] == {"applicable": False, "reason": "it failed: the solve gave NaN."}
    assert body["detectors"] == {} and body["inspection"] == {}


def test_all_baselines_with_options_for_some(tmp_path: Path) -> None:
    """For target weights ART's attacks do not apply, and the report says so of each."""
    steps = {name: {"steps": 5} for name in ("gradient_matching", "gradient_canceling", "influence")}
    goal = {"kind": "target_weights", "source": {"direction": {"along": "random", "length": 0.05}}}
    changes: dict[str, Any] = {"objective": goal, "retrain": {"fresh": 0}, "inspection": False, "detectors": False}
    path = recipe(tmp_path, baselines={"all": {}, **steps}, **changes)
    call("attack", path, "--out", tmp_path / "run")
    found = body_of(tmp_path / "run")["baselines"]
    assert list(found) == list(BASELINES)
    able = {name for name, each in found.items() if each["applicable"]}
    assert able == {*steps, "random_signs"}
    assert all(each["reason"] for name, each in found.items() if name not in able)
    assert len({found[name]["retrained"]["warm"]["movement"] for name in able}) == len(able)


def test_costly_rankings_are_left_out_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defences, "_MOST_WEIGHTS", 10)
    path = recipe(tmp_path, baselines=None, detectors=False, retrain={"fresh": 0})
    said = call("attack", path, "--out", tmp_path / "run")
    assert "row_modulus and self_influence are left out: 62 weights" in said.stderr
    inspection = body_of(tmp_path / "run")["inspection"]
    assert not inspection["row_modulus"]["applicable"] and "left out" in inspection["self_influence"]["reason"]
    assert inspection["loss"]["applicable"] and inspection["mean_rank"]["applicable"]


def test_every_detector_runs_by_default(tmp_path: Path) -> None:
    body = {key: value for key, value in TINY.items() if key not in ("detectors", "baselines")}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**body, "retrain": {"fresh": 0}}))
    call("attack", path, "--out", tmp_path / "run")
    found = body_of(tmp_path / "run")["detectors"]
    assert found.keys() == DETECTORS.keys()
    assert all("filtered" not in each and each["auroc_unpoisoned"] is not None for each in found.values())


@pytest.mark.parametrize(
    ("changes", "code", "fact"),
    [
        ({"baselines": {"gradient_matching": {"steps": "abc"}}}, "PA367", "steps is 'abc'; a whole number >= 1 is"),
        ({"baselines": [{"gradient_matching": {"steps": 0}}]}, "PA367", "gradient_matching: steps is 0"),
        ({"baselines": {"random_signs": {"steps": 1.5}}}, "PA367", "steps is 1.5"),
        ({"baselines": {"gradient_matching": {"surrogate": "objectiv"}}}, "PA301", "Did you mean 'objective'"),
        ({"baselines": {"gradient_matching": {"restarts": True}}}, "PA304", "restarts is True"),
        ({"baselines": {"gradient_matching": {"rate": 0}}}, "PA304", "rate is 0; a number above 0"),
        ({"baselines": {"gradient_canceling": {"enough": -1}}}, "PA304", "enough is -1"),
        ({"baselines": {"influence": {"damping": 1e200}}}, "PA304", "damping is 1e+200"),
        ({"baselines": {"influence": {"test": 3}}}, "PA304", "test is 3"),
        ({"baselines": {"art_bullseye": {"as_shipped": "no"}}}, "PA304", "as_shipped is 'no'"),
        ({"baselines": {"art_feature_collision": {"similarity_coeffs": [1, 0]}}}, "PA304", "similarity_coeffs is"),
        ({"baselines": {"art_feature_collision": {"similarity_coeffs": "12"}}}, "PA304", "similarity_coeffs is '12'"),
        ({"craft": {"method": "lbfgsb"}, "budget": {"rows": 6, "radius": 0.5, "norm": "l2"}}, "PA378", "norm linf"),
    ],
)
def test_what_cannot_work_is_refused_before_any_training(
    changes: dict[str, Any], code: str, fact: str, tmp_path: Path
) -> None:
    for words in (["--dry-run"], ["--out", tmp_path / "run"]):
        result = call("attack", recipe(tmp_path, **changes), *words, code=2)
        assert code in result.stderr and fact in result.stderr
    assert not (tmp_path / "run" / "weights-clean.safetensors").exists()


def test_a_rehearsal_refuses_a_taken_folder(attacked: tuple[Path, Result], tmp_path: Path) -> None:
    call("attack", recipe(tmp_path), "--dry-run", "--out", attacked[0], code=2)


@pytest.mark.parametrize("name", BASELINES)
def test_every_option_of_a_baseline_has_a_rule_that_its_default_keeps(name: str) -> None:
    usual = options_of(name)
    refuse_bad_options(name, **usual)
    for option in usual:
        with pytest.raises(UsageError, match="PA301 unknown surrogate|PA304|PA367"):
            refuse_bad_options(name, **{option: "no"})
