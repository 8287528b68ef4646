"""`reproduce lipschitz-training`: rows recomputed, the penalty at work, comparisons in words, resuming, refusals."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from poisonaudit.cli.main import cli
from poisonaudit.data import DataSet, load_data
from poisonaudit.lipschitz import lipschitz_bounds, lipschitz_penalty
from poisonaudit.lipschitz.local import certified_radii
from poisonaudit.models import build_model, load_weights
from poisonaudit.reproduce import REPRODUCTIONS, Bench, Settings, Silence, training_runs, training_table
from poisonaudit.reproduce.training_runs import half_squared_norm, train
from poisonaudit.reproduce.training_table import COLUMNS, STRENGTHS, Run, compared, training_flags, winners


def call(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_data("digits").to(torch.float64)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "run"
    shown = call("reproduce", "lipschitz-training", "--quick", "--strengths", "0.02", "--out", out, "--json")
    return out, json.loads(shown.stdout)


def test_the_penalty_lowers_bound_and_k5(written: tuple[Path, dict[str, Any]]) -> None:
    body = written[1]
    assert body["flags"] == []
    lines = {row["label"].split(", ")[1]: row for row in body["rows"]}
    assert list(lines) == ["no penalty", "decay 0.02", "K_5 0.02", "K_5 of margins 0.02"]
    plain = lines.pop("no penalty")
    for line in lines.values():
        assert line["k5"] < plain["k5"] and line["upper"] < plain["upper"]
    # K_5 is what its own penalty is about: decay of the same factor leaves more of it.
    assert lines["K_5 0.02"]["k5"] < 0.8 * lines["decay 0.02"]["k5"]
    for line in (plain, *lines.values()):
        assert line["lower"] <= line["upper"] <= line["k5"] * (1 + 1e-9)
        assert line["ratio"] == pytest.approx(line["upper"] / line["lower"])
        shares = [line[f"certified_{radius}"] for radius in ("0.02", "0.05", "0.1")]
        assert sorted(shares, reverse=True) == shares and shares[0] > 0.3


def test_rows_are_those_of_the_stored_weights(written: tuple[Path, dict[str, Any]], digits: DataSet) -> None:
    out, body = written
    names = ("none-0", "decay-0.02", "k5-0.02", "margins-0.02")
    for row, name in zip(body["rows"], names, strict=True):
        model = build_model("mlp:64-16-10", input_shape=(64,), outputs=10, seed=9)
        load_weights(model, out / f"stage-weights-1-{name}.safetensors")
        bounds = lipschitz_bounds(model, x=digits.x_test)
        assert (row["k5"], row["upper"], row["lower"]) == (bounds.k5, bounds.certified, bounds.lower)
        with torch.no_grad():
            right = model(digits.x_test).argmax(1) == digits.y_test
        assert row["test_accuracy"] == pytest.approx(float(right.double().mean()))
    # The last: radii again, from another bisection, agree to its steps.
    again = certified_radii(model, digits.x_test[:24], digits.y_test[:24], box=(0.0, 1.0), largest=0.4, steps=9)
    assert row["median_radius"] == pytest.approx(again.median, abs=0.0051)
    assert row["certified_0.05"] <= again.accuracy([0.0499])[0] and row["certified_0.05"] >= again.accuracy([0.0551])[0]


def test_training_minimises_what_it_says(digits: DataSet) -> None:
    """Without noise, one full batch: the gradient of loss + strength * penalty vanishes where training ends."""
    rows = dataclasses.replace(digits, x_train=digits.x_train[:100], y_train=digits.y_train[:100])
    model = build_model("mlp:64-10", input_shape=(64,), outputs=10)
    train(model, rows, half_squared_norm, 0.5, seed=0, epochs=1000, voice=Silence())
    loss = nn.functional.cross_entropy(model(rows.x_train), rows.y_train) + 0.5 * half_squared_norm(model)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-6


def test_a_run_verifies_and_its_page_is_whole(written: tuple[Path, dict[str, Any]]) -> None:
    out, body = written
    call("verify", out)
    assert body["columns"].keys() == COLUMNS.keys() and body["settings"]["certified_rows"] == 24
    page = (out / "reproduction.html").read_text()
    assert "Certified accuracy against the l_inf radius" in page and "<script" not in page
    for name in ("radii.svg", "frontier.svg"):
        assert "<svg" in (out / name).read_text()
    weights = out / "stage-weights-1-k5-0.02.safetensors"
    audited = call(
        "audit", "--model", "mlp:64-16-10", "--weights", weights, "--data", "digits", "--decay", "0",
        "--measures", "lipschitz.upper", "--out", out.parent / "audit", "--json",
    )  # fmt: skip
    measures = {item["id"]: item["value"] for item in json.loads(audited.stdout)["measures"]}
    assert measures["lipschitz.upper.linf"] == pytest.approx(body["rows"][2]["upper"], rel=1e-12)


def test_an_interrupted_run_goes_on_where_it_was(
    written: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["reproduce", "lipschitz-training", "--quick", "--strengths", "0.02"]
    calls: list[int] = []

    def interrupting(model: nn.Module) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return lipschitz_penalty(model)

    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setitem(training_runs.PENALTIES, "k5", interrupting)  # type: ignore[arg-type]
        call(*words, "--out", out, code=130)
    stages = {path.name for path in out.glob("stage-*")}
    assert len(stages) == 4 and not any("k5" in name for name in stages)
    resumed = json.loads(call(*words[:2], "--resume", "--out", out, "--json").stdout)

    def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    assert timeless(resumed["rows"]) == timeless(written[1]["rows"])
    assert "PA386" in call(*words[:3], "--strengths", "0.1", "--resume", "--out", out, code=2).stderr


def run(method: str, strength: float, accuracy: float, upper: float, certified: float = 0.5, **more: float) -> Run:
    numbers: dict[str, float | None] = {"test_accuracy": accuracy, "upper": upper, "k5": upper, "lower": 1.0, **more}
    return Run("mlp:64-9-10", method, strength, {**numbers, "certified_0.1": certified}, torch.zeros(1), torch.ones(1))


RUNS = [
    run("none", 0.0, 0.97, 100.0, 0.0),
    run("decay", 0.1, 0.975, 60.0, 0.3),
    run("decay", 0.2, 0.96, 50.0, 0.4),
    run("decay", 0.3, 0.955, 10.0, 0.9),
    run("k5", 0.1, 0.98, 40.0, 0.45),
    run("k5", 0.2, 0.90, 5.0, 0.9),
    run("margins", 0.1, 0.94, 20.0, 0.6),
]


def test_methods_are_compared_at_equal_accuracy() -> None:
    found = winners(RUNS)
    assert {method: one.strength for method, one in found.items()} == {"none": 0.0, "decay": 0.2, "k5": 0.1}
    text = compared(RUNS)
    assert "decay 0.2: bound 50, 40.0% certified" in text and "Nothing that accurate came of K_5 of margins." in text
    assert "0.80 of the bound of decay there, and +5.0 points" in text
    # The rival may win, and the sentence says so.
    beaten = [run("decay", 0.4, 0.98, 20.0, 0.7) if one.method == "decay" else one for one in RUNS]
    assert "2.00 of the bound of decay there, and -25.0 points" in compared(beaten)
    assert "of the bound of decay" not in compared([one for one in RUNS if one.method != "decay"])


def test_contradictions_are_flagged() -> None:
    assert training_flags(RUNS) == ()
    for other, told in (
        (run("k5", 1.0, 0.9, 100.0), "did not lower K_5"),
        (run("decay", 1.0, 0.9, 0.5), "above the upper one"),
        (run("decay", 1.0, 0.9, 50.0, k5=49.0), "above K_5"),
    ):
        (flag,) = training_flags([*RUNS, other])
        assert told in flag and flag.startswith("64-9-10, ")


def test_a_penalty_that_wins_is_named_and_has_no_bracket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_table, "CERTIFIED_IF_QUICK", 2)
    strong = Settings(quick=True, strengths=(50.0,), model="mlp:64-8-8-8-10")
    collapsed = REPRODUCTIONS["lipschitz-training"](Bench(strong))
    assert [row.remark != "" for row in collapsed.rows] == [False, True, True, True]
    json.dumps(collapsed.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["--draws", "9"], 2, ["PA398", "--draws"]),
        (["--data", "wine"], 2, ["PA398", "--data"]),
        (["--strengths", "0"], 2, ["PA304", "above 0"]),
        (["--strengths", "1e-3,x"], 2, ["PA304"]),
        (["--strengths", "1e-3,0.001"], 2, ["PA304", "different"]),
        (["--model", "mlp:64-10?normalize=0,1"], 3, ["PA130"]),
        (["--model", "lenet"], 3, ["PA13"]),
    ],
)
def test_refusals_are_one_line(
    words: list[str], code: int, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = call("reproduce", "lipschitz-training", "--quick", *words, code=code)
    assert len(refused.stderr.splitlines()) == 1 and all(part in refused.stderr for part in parts), refused.stderr
    assert not [path for path in tmp_path.rglob("*") if path.name == "results.json"]


def test_strengths_ascend_as_the_figures_join_them() -> None:
    for strengths in STRENGTHS.values():
        assert all(low < high for low, high in itertools.pairwise(strengths))
