"""Every kind of objective and weight source from a recipe: run, stored, checked before training, resumed, refused."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from poisonaudit.attack import crafting as crafting_module
from poisonaudit.cli.main import cli
from poisonaudit.cli.pipeline import crafting as stage_module
from poisonaudit.config.catalogue import find_recipe
from poisonaudit.config.load import load_config
from poisonaudit.config.schema import AttackConfig
from poisonaudit.data import load_data
from poisonaudit.problem import Problem
from poisonaudit.results import AttackResult
from poisonaudit.training import fit
from poisonaudit.verify import loose_trainer

ALONG = {"direction": {"along": "random", "length": 0.05}}
FLIPPED = {"label_flips": {"from": 0, "to": 1, "count": 3}}
TINY: dict[str, Any] = {
    "name": "tiny",
    "model": "linear",
    "data": "breast_cancer",
    "limit": 60,
    "decay": 1e-2,
    "budget": {"rows": 6, "radius": 0.5},
    "craft": {"steps": 2},
    "retrain": {"fresh": 1, "loose": 0},
    "detectors": False,
    "inspection": False,
    "export": [],
}


def call(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


def recipe(folder: Path, objective: dict[str, Any], **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**TINY, "objective": objective, **changes}))
    return path


def attacked(folder: Path, objective: dict[str, Any], **changes: Any) -> dict[str, Any]:
    call("attack", recipe(folder, objective, **changes), "--out", folder / "run")
    body: dict[str, Any] = json.loads((folder / "run" / "attack.json").read_text())
    assert AttackResult.from_json(body).recipe["objective"]["kind"] == objective["kind"]
    return body


def clean_problem(run: Path, limit: int = 60) -> Problem:
    """The victim of a run, rebuilt from its stored clean weights."""
    data = load_data("breast_cancer", limit=limit).to(torch.float64)
    model = torch.nn.Sequential(torch.nn.Linear(30, 2)).double()
    model.load_state_dict({f"0.{key.split('.')[-1]}": value for key, value in stored(run, "clean").items()})
    return Problem(model, "cross_entropy", data.x_train, data.y_train, 1e-2)


def stored(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / f"weights-{name}.safetensors")


def flat(run: Path, name: str, problem: Problem) -> torch.Tensor:
    parts = {key.split(".")[-1]: value for key, value in stored(run, name).items()}
    return torch.cat([parts[each.split(".")[-1]].flatten() for each in problem.names])


@pytest.mark.parametrize(
    ("objective", "key"),
    [
        ({"kind": "target_weights", "source": FLIPPED}, "movement"),
        ({"kind": "target_region", "source": FLIPPED}, "region_distance_ratio"),
        ({"kind": "target_region", "source": ALONG, "shape": "ball", "share": 0.3}, "region_distance_ratio"),
        ({"kind": "match_predictions", "source": FLIPPED, "success_at": 0.9}, "prediction_distance_ratio"),
        (
            {"kind": "match_predictions", "source": FLIPPED, "rows": "test", "distance": "divergence"},
            "prediction_distance_ratio",
        ),
        ({"kind": "membership", "source": FLIPPED}, "movement"),
        ({"kind": "flip", "surrogate": "cross_entropy"}, "margin_change"),
        ({"kind": "flips", "count": 3, "success_at": 0.5}, "margin_change"),
        ({"kind": "validation_loss", "count": 20, "success_at": 0.001}, "validation_loss_rise"),
        ({"kind": "group_accuracy", "class": "malignant", "success_at": 0.01}, "group_accuracy_drop"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(str(each) for each in value.values())[:40],
)
def test_every_kind_runs_and_retraining_follows_the_prediction(
    objective: dict[str, Any], key: str, tmp_path: Path
) -> None:
    body = attacked(tmp_path, objective)
    predicted, warm, fresh = body["predicted"], body["retrained"]["warm"], body["retrained"]["fresh"][0]
    nothing = 1.0 if key.endswith("ratio") else 0.0
    assert warm["converged"] and fresh["converged"]
    # A convex problem has one minimum: fresh training finds the warm one, and the prediction is near it.
    assert fresh[key] == pytest.approx(warm[key], rel=1e-4, abs=1e-7)
    effect, expected = warm[key] - nothing, predicted[key] - nothing
    assert (effect < 0) == key.endswith("ratio") or key == "group_accuracy_drop"
    assert effect == pytest.approx(expected, rel=0.35, abs=0.02)
    assert len(body["rows"]) == 6 and body["cost"]["crafting_gradients"] > 0
    if objective["kind"] != "match_predictions" or "success_at" in objective:
        assert isinstance(warm["success"], bool)


def test_target_weights_of_one_layer_leave_the_other_free(tmp_path: Path) -> None:
    source = {"direction": {"along": "flattest", "length": 0.2}}
    body = attacked(tmp_path, {"kind": "target_weights", "source": source, "layers": ["0.bias"]})
    assert body["recipe"]["objective"]["layers"] == ["0.bias"]
    problem = clean_problem(tmp_path / "run")
    target, clean, warm = (flat(tmp_path / "run", name, problem) for name in ("target", "clean", "control-warm"))
    reached = flat(tmp_path / "run", "warm", problem)
    offset = (target - clean)[-2:]
    moved = float((reached - clean)[-2:].dot(offset) / offset.dot(offset))
    assert body["retrained"]["warm"]["movement"] == pytest.approx(moved, abs=1e-9)
    assert float((clean - warm).norm()) < 1e-8


@pytest.mark.parametrize("along", ["random", "flattest", "steepest"])
def test_a_direction_has_its_length(along: str, tmp_path: Path) -> None:
    source = {"direction": {"along": along, "length": 0.05}}
    attacked(tmp_path, {"kind": "target_weights", "source": source}, retrain={"fresh": 0}, craft={"steps": 1})
    problem = clean_problem(tmp_path / "run")
    target, clean = (flat(tmp_path / "run", name, problem) for name in ("target", "clean"))
    assert float((target - clean).norm()) == pytest.approx(0.05 * float(clean.norm()), rel=1e-9)


def test_fine_tuning_reaches_the_minimum_of_the_other_rows(tmp_path: Path) -> None:
    """On rows by id, without a class, and on another data set: each a separate fit gives the same weights."""
    data = load_data("breast_cancer", limit=60).to(torch.float64)
    ids = data.train_ids[:40].tolist()
    other = load_data("breast_cancer?split=3").to(torch.float64)
    mostly = (data.y_train != 0).nonzero().flatten()
    forms: dict[str, tuple[dict[str, Any], torch.Tensor, torch.Tensor]] = {
        "rows": ({"rows": ids}, data.x_train[:40], data.y_train[:40]),
        "class": ({"without_class": "malignant"}, data.x_train[mostly], data.y_train[mostly]),
        "data": ({"data": "breast_cancer?split=3"}, other.x_train, other.y_train),
    }
    for name, (tune, x, y) in forms.items():
        (tmp_path / name).mkdir()
        goal = {"kind": "target_weights", "source": {"fine_tune": tune}}
        attacked(tmp_path / name, goal, retrain={"fresh": 0}, craft={"steps": 1})
        problem = clean_problem(tmp_path / name / "run")
        wanted = fit(Problem(problem.module(), "cross_entropy", x, y, 1e-2)).problem.weights
        assert torch.allclose(flat(tmp_path / name / "run", "target", problem), wanted, atol=1e-5), name


def test_the_half_space_is_the_one_in_the_guide(tmp_path: Path) -> None:
    """`<v, w - wbar> >= share |v|^2` holds after retraining exactly where success is stored."""
    goal = {"kind": "target_region", "source": FLIPPED, "share": 0.05}
    body = attacked(tmp_path, goal, budget={"rows": 20, "radius": 0.5})
    run, problem = tmp_path / "run", clean_problem(tmp_path / "run")
    target, clean, warm = (flat(run, name, problem) for name in ("target", "clean", "warm"))
    offset = target - clean
    inside = float(offset.dot(warm - clean)) >= 0.05 * float(offset.dot(offset)) * (1 - 1e-9)
    assert inside == body["retrained"]["warm"]["success"]
    assert body["recipe"]["objective"]["target_distance"] == pytest.approx(float(offset.norm()), rel=1e-9)


def test_the_attackers_test_rows_are_told(tmp_path: Path) -> None:
    data = load_data("breast_cancer", limit=60)
    ids = data.test_ids.tolist()
    told = {}
    goals: dict[str, dict[str, Any]] = {
        "named": {"kind": "flips", "test_rows": [ids[4], ids[2]], "label": "runner_up"},
        "random": {"kind": "flips", "count": 2, "choose": "random", "label": "benign"},
        "loss": {"kind": "validation_loss", "count": 5},
        "group": {"kind": "group_accuracy", "test_rows": [ids[0], ids[1]]},
    }
    for name, goal in goals.items():
        (tmp_path / name).mkdir()
        told[name] = attacked(tmp_path / name, goal, retrain={"fresh": 0}, craft={"steps": 1})["recipe"]["objective"]
    assert told["named"]["test_rows"] == [ids[4], ids[2]] and told["loss"]["test_rows"] == ids[:5]
    assert told["group"]["test_rows"] == [ids[0], ids[1]]
    assert told["random"]["wanted"] == [1, 1] and told["random"]["true_labels"] == [0, 0]
    for one, other in zip(told["named"]["clean_predictions"], told["named"]["wanted"], strict=True):
        assert one != other


def test_set_aware_crafting_and_rows_of_a_class(tmp_path: Path) -> None:
    crafts = {"steps": 1, "solutions": 2, "members": 2, "aggregate": "worst", "outer": "path"}
    budget = {"rows": 5, "radius": 0.5, "choice": "class", "row_class": "malignant"}
    body = attacked(
        tmp_path, {"kind": "flip"}, model="mlp:30-3-2?activation=tanh", craft=crafts, budget=budget, limit=40
    )
    data = load_data("breast_cancer", limit=40)
    labels = {int(row): int(label) for row, label in zip(data.train_ids, data.y_train, strict=True)}
    assert {labels[row] for row in body["rows"]} == {0} and body["budget"]["row_class"] == "malignant"
    assert {key: body["recipe"]["craft"][key] for key in crafts} == crafts
    # Training the second solution is part of the price.
    single = attacked_in(tmp_path / "single", {**crafts, "solutions": 1, "members": 0}, budget)
    assert body["cost"]["crafting_gradients"] > single["cost"]["crafting_gradients"]


def attacked_in(folder: Path, crafts: dict[str, Any], budget: dict[str, Any]) -> dict[str, Any]:
    folder.mkdir()
    model = "mlp:30-3-2?activation=tanh"
    return attacked(folder, {"kind": "flip"}, model=model, craft=crafts, budget=budget, limit=40)


def test_every_option_of_crafting_reaches_craft() -> None:
    from poisonaudit import craft
    from poisonaudit.cli.pipeline.crafting import crafting_options

    changes = ["steps=3", "method=adam", "outer=path", "solutions=4", "members=5", "aggregate=worst", "damping=0.01"]
    recipe = [find_recipe("flip-one-digit")]
    config = load_config(AttackConfig, recipe, [f"craft.{change}" for change in changes])
    options = crafting_options(config, None)
    assert options == dataclasses.asdict(config.craft)
    through = crafting_options(load_config(AttackConfig, recipe, ["craft.outer=training"]), None)
    assert through["trainer"] == loose_trainer() and through["outer"] == "retrain"
    for given in (options, through):
        assert given.keys() <= inspect.signature(craft).parameters.keys()


def test_rows_of_largest_modulus(tmp_path: Path) -> None:
    from poisonaudit import row_moduli

    budget = {"rows": 4, "radius": 0.3, "choice": "kappa"}
    body = attacked(tmp_path, {"kind": "flip"}, budget=budget, retrain={"fresh": 0})
    problem, data = clean_problem(tmp_path / "run"), load_data("breast_cancer", limit=60)
    largest = row_moduli(problem).argsort(descending=True)[:4]
    assert sorted(body["rows"]) == sorted(data.train_ids[largest].tolist())


def test_interrupted_crafting_is_resumed_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goal = {"kind": "flip", "test_row": "median_margin"}
    changes: dict[str, Any] = {"model": "mlp:30-4-2?activation=tanh", "craft": {"steps": 4}, "retrain": {"fresh": 0}}
    path = recipe(tmp_path, goal, **changes)
    call("attack", path, "--out", tmp_path / "whole")
    real, kept = stage_module.store_state, []

    def interrupted(folder: Any, state: Any) -> None:
        real(folder, state)
        kept.append(state.step)
        if state.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(stage_module, "store_state", interrupted)
    said = call("attack", path, "--out", tmp_path / "run", code=130)
    assert "poisonaudit attack --resume --out" in said.stderr
    assert kept == [1, 2] and not (tmp_path / "run" / "craft.json").exists()
    assert (tmp_path / "run" / "crafting.safetensors").exists()
    monkeypatch.setattr(stage_module, "store_state", real)
    proposed: list[int] = []
    advance = crafting_module.advance
    monkeypatch.setattr(crafting_module, "advance", lambda *given: proposed.append(1) or advance(*given))
    said = call("attack", "--resume", "--out", tmp_path / "run")
    assert "crafting: 2 of 4 steps kept from before" in said.stderr
    one, other = (load_file(tmp_path / name / "poison.safetensors") for name in ("whole", "run"))
    assert torch.equal(one["rows"], other["rows"]) and torch.equal(one["delta"], other["delta"])
    bodies = [json.loads((tmp_path / name / "attack.json").read_text()) for name in ("whole", "run")]
    assert len(bodies[1]["history"]) > len([line for line in bodies[1]["history"] if line["step"] <= 2])
    assert [line["retrained_objective"] for line in bodies[0]["history"]] == [
        line["retrained_objective"] for line in bodies[1]["history"]
    ]
    # Only the steps that were missing were taken.
    assert len(proposed) == len([line for line in bodies[1]["history"] if line["step"] > 2])
    assert bodies[0]["predicted"]["margin"] == bodies[1]["predicted"]["margin"]
    assert not list((tmp_path / "run").glob("crafting*"))


def test_a_kill_between_the_two_files_of_a_step_loses_nothing_but_the_step(tmp_path: Path) -> None:
    from poisonaudit.attack.progress import CraftState
    from poisonaudit.cli.pipeline.crafting import store_state, stored_state
    from poisonaudit.store import RunFolder

    folder = RunFolder.create("attack", tmp_path / "run")
    rows, history = torch.tensor([1, 2]), [{"step": 0}]

    def state(step: int) -> CraftState:
        deltas, weights = (torch.arange(step * 2.0).reshape(step, 2), torch.arange(step * 3.0).reshape(step, 1, 3))
        return CraftState(step, rows, 1e-4, deltas, weights, [0.0] * step, history, 1, 1, 0.1, False)

    store_state(folder, state(2))
    folder.write_tensors("crafting.safetensors", state(3).tensors())
    found = stored_state(folder)
    assert found is not None and found.step == 2
    assert torch.equal(found.deltas, state(2).deltas) and torch.equal(found.weights, state(2).weights)


def test_a_variant_gets_target_weights_of_its_own(tmp_path: Path) -> None:
    goal = {"kind": "target_region", "source": {"direction": {"along": "flattest", "length": 0.02}}, "share": 0.3}
    search = {"over": "radius", "low": 0.1, "high": 1.0, "precision": 0.5, "need": 1}
    body = attacked(tmp_path, goal, search=search, hardening={"decays": [0.05]}, craft={"steps": 1})
    assert [entry["label"] for entry in body["hardening"]] == ["as attacked", "decay 0.05"]
    problem = clean_problem(tmp_path / "run")
    variant = flat(tmp_path / "run", "hardening-decay-0.05", problem)
    target = flat(tmp_path / "run", "hardening-decay-0.05-target", problem)
    assert float((target - variant).norm()) == pytest.approx(0.02 * float(variant.norm()), rel=1e-9)


IDS = load_data("breast_cancer", limit=60).test_ids.tolist()
TRAIN = load_data("breast_cancer", limit=60).train_ids.tolist()


@pytest.mark.parametrize(
    ("objective", "changes", "code", "exit_code"),
    [
        ({"kind": "flip", "test_row": TRAIN[0]}, {}, "PA354", 2),
        ({"kind": "flip", "label": 7}, {}, "PA357", 2),
        ({"kind": "flips", "test_rows": [IDS[0], TRAIN[0]]}, {}, "PA354", 2),
        ({"kind": "flips", "count": 5000}, {}, "PA354", 2),
        ({"kind": "flips", "count": 2, "label": "healthy"}, {}, "PA357", 2),
        ({"kind": "validation_loss", "count": 5000}, {}, "PA354", 2),
        ({"kind": "validation_loss"}, {"search": {"over": "radius"}}, "PA345", 2),
        ({"kind": "target_weights", "source": ALONG, "success_at": None}, {"search": {"over": "rows"}}, "PA345", 2),
        ({"kind": "group_accuracy", "class": 9}, {}, "PA357", 2),
        ({"kind": "group_accuracy", "test_rows": [TRAIN[0]]}, {}, "PA354", 2),
        ({"kind": "target_weights", "source": ALONG, "layers": ["1.bias"]}, {}, "PA377", 2),
        ({"kind": "membership", "source": {"fine_tune": {"rows": [IDS[0]]}}}, {}, "PA356", 2),
        ({"kind": "membership", "source": {"fine_tune": {"rows": TRAIN}}}, {}, "PA338", 2),
        ({"kind": "membership", "source": {"fine_tune": {"without_class": "healthy"}}}, {}, "PA357", 2),
        ({"kind": "membership", "source": {"fine_tune": {"data": "digits"}}}, {}, "PA338", 2),
        ({"kind": "membership", "source": {"fine_tune": {"data": "digit"}}}, {}, "PA301", 2),
        ({"kind": "match_predictions", "source": {"file": "absent.safetensors"}}, {}, "PA1", 3),
        ({"kind": "target_weights", "source": {"label_flips": {"from": 0, "to": 1, "count": 999}}}, {}, "PA355", 2),
        ({"kind": "flip"}, {"budget": {"rows": 600, "radius": 0.1}}, "PA361", 2),
        ({"kind": "flip"}, {"budget": {"radius": 0.1, "choice": [IDS[0]]}}, "PA356", 2),
        ({"kind": "flip"}, {"budget": {"rows": 50, "radius": 0.1, "choice": "class", "row_class": 0}}, "PA342", 2),
        ({"kind": "flip"}, {"budget": {"rows": 5, "radius": 0.1, "choice": "class", "row_class": 5}}, "PA357", 2),
        ({"kind": "validation_loss"}, {"budget": {"rows": 5, "radius": 0.1, "choice": "class"}}, "PA342", 2),
        ({"kind": "flip"}, {"baselines": ["influense"]}, "PA301", 2),
        ({"kind": "flip"}, {"baselines": {"influence": {"stepps": 3}}}, "PA301", 2),
        ({"kind": "flip"}, {"detectors": ["spectral"]}, "PA301", 2),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_does_not_fit_is_refused_in_one_line_before_training(
    objective: dict[str, Any], changes: dict[str, Any], code: str, exit_code: int, tmp_path: Path
) -> None:
    # The run itself: a dry run makes the same checks, and writes nothing in any case.
    said = call("attack", recipe(tmp_path, objective, **changes), "--out", tmp_path / "run", code=exit_code)
    assert said.stderr.startswith(code) and len(said.stderr.splitlines()) == 1, said.stderr
    assert said.stdout == "" and not (tmp_path / "run").exists()


def test_a_dry_run_makes_the_same_checks(tmp_path: Path) -> None:
    path = recipe(tmp_path, {"kind": "group_accuracy", "class": 9}, retrain={"fresh": 0})
    assert call("attack", path, "--dry-run", code=2).stderr.startswith("PA357")


def test_target_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    words = ["--model", "mlp:30-3-2", "--data", "breast_cancer", "--decay", "1e-2", "--limit", "60"]
    call("train", *words, "--tolerance", "1e-3", "--out", tmp_path / "other")
    source = {"file": str(tmp_path / "other" / "weights.safetensors")}
    path = recipe(tmp_path, {"kind": "target_region", "source": source})
    said = call("attack", path, "--dry-run", code=3)
    assert said.stderr.startswith("PA1") and len(said.stderr.splitlines()) == 1


def test_regression_has_losses_but_no_classes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(80, 3, generator=generator)
    lines = ["a,b,c,price", *(f"{a},{b},{c},{a + 2 * b - c + 0.1:.6f}" for a, b, c in values.tolist())]
    (tmp_path / "prices.csv").write_text("\n".join(lines) + "\n")
    data = {"data": f"csv:{tmp_path / 'prices.csv'}?target=price", "budget": {"rows": 4, "radius": 0.5}}
    body = attacked(tmp_path, {"kind": "validation_loss", "success_at": 1e-6}, **data)
    assert body["retrained"]["warm"]["validation_loss_rise"] > 0 and body["retrained"]["warm"]["success"]
    for goal in ({"kind": "flips", "count": 2}, {"kind": "group_accuracy", "class": 0}):
        said = call("attack", recipe(tmp_path, goal, **data), "--dry-run", code=2)
        assert said.stderr.startswith("PA358") and len(said.stderr.splitlines()) == 1


def test_a_victim_that_is_not_stationary_is_flagged(tmp_path: Path) -> None:
    words = ["--model", "mlp:64-4-10?activation=tanh", "--data", "digits", "--decay", "1e-3", "--limit", "60"]
    call("train", *words, "--max-gradients", "20", "--out", tmp_path / "loose")
    absent = {"model": None, "data": None, "limit": None, "decay": None, "craft": {"steps": 1}}
    body = attacked(tmp_path, {"kind": "flip"}, victim=str(tmp_path / "loose"), **absent, retrain={"fresh": 0})
    assert body["predicted"]["valid"] is False
    assert any("not stationary" in reason for reason in body["predicted"]["reasons"])


def test_a_victim_without_decay_on_separable_rows_is_flagged(tmp_path: Path) -> None:
    """The minimum lies at infinity; what is said about it must not look like a prediction."""
    path = recipe(tmp_path, {"kind": "flip"}, decay=0.0, retrain={"fresh": 0}, craft={"steps": 1})
    said = call("attack", path, "--out", tmp_path / "run")
    body = json.loads((tmp_path / "run" / "attack.json").read_text())
    assert body["predicted"]["valid"] is False
    assert any("at infinity" in reason for reason in body["predicted"]["reasons"])
    assert "* not predicted" in said.stdout and "at infinity" in said.stderr
    assert not body["retrained"]["warm"]["converged"]


def test_the_plan_names_every_part(tmp_path: Path) -> None:
    goal = {"kind": "match_predictions", "source": {"fine_tune": {"without_class": 0}}, "rows": "test"}
    changes: dict[str, Any] = {
        "baselines": ["influence", {"random_signs": {}}],
        "detectors": {"names": ["loss_filter"], "filter": True},
        "inspection": True,
        "craft": {"solutions": 3, "members": 2, "outer": "path"},
    }
    plan = "\n".join(
        json.loads(call("attack", recipe(tmp_path, goal, **changes), "--dry-run", "--json").stdout)["plan"]
    )
    for part in (
        "the rows without class 0 for the target weights, for predictions to match on test rows",
        "3 solutions together (2 trained for it), 2 members of each solution set, mean, following the path",
        "run influence, random_signs on the same rows and budget",
        "look for the poison by loss_filter; retrain without what each flags",
        "rank the training rows for inspection",
    ):
        assert part in plan, plan
