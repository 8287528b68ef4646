"""`reproduce weight-noise`: rows against the library, the theory of the family, flags, resuming, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from poisonaudit.cli.main import cli
from poisonaudit.data import load_data
from poisonaudit.reproduce import REPRODUCTIONS, TAKEN, Bench, Line, Reproduction, Settings, noise_table
from poisonaudit.reproduce.noise_table import COLUMNS, RHO, Shape, averaged, he_network, measure, noise_flags
from poisonaudit.reproduce.writing import render_html
from poisonaudit.weight_noise import weight_conditions, weight_noise


def call(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


@pytest.fixture(scope="module", autouse=True)
def small() -> Any:
    patch = pytest.MonkeyPatch()
    for name, value in {
        "SHAPES_IF_QUICK": ((2, 16), (3, 8), (3, 16)),
        "ROWS": 40,
        "SEARCHED": 2,
        "EPOCHS_IF_QUICK": 1,
    }.items():
        patch.setattr(noise_table, name, value)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def result() -> Reproduction:
    return REPRODUCTIONS["weight-noise"](Bench(Settings(quick=True, seed=3)))


def lines(result: Reproduction, word: str) -> list[Line]:
    found = [row for row in result.rows if isinstance(row, Line) and word in row.label]
    assert found
    return found


def test_rows_are_the_librarys_numbers(result: Reproduction) -> None:
    x = load_data("digits").x_test[:40].double()
    nets = [he_network(Shape(3, 8), 3000 + each) for each in range(2)]
    frames = [weight_noise(net, x, RHO, 16, 3, extended=True) for net in nets]
    for place in range(3):
        (line,) = lines(result, f"He, L = 3, m = 8, i = {place + 1}")
        for key, column in (("sampled", "relative_rms"), ("formula", "relative_formula"), ("flips", "flip_rate")):
            assert line.values[key] == pytest.approx(sum(frame[column][place] for frame in frames) / 2, rel=1e-10)
    (joint,) = lines(result, "He, L = 3, m = 8, all at once")
    both = [frame.attrs["joint"] for frame in frames]
    assert joint.values["sampled"] == pytest.approx((both[0]["rms"] + both[1]["rms"]) / 2, rel=1e-10)
    assert joint.values["error"] == pytest.approx(
        math.hypot(both[0]["standard_error"], both[1]["standard_error"]) / 2, rel=1e-10
    )
    assert len(result.rows) == 2 * (3 + 4 + 4) and result.flags == ()
    for row in result.rows:
        assert isinstance(row, Line) and list(row.values) == list(COLUMNS)
        assert row.values["found"] <= row.values["bound"] * (1 + 1e-9) and row.values["found"] > 1.5


def test_he_networks_move_by_rho_whatever_the_layer() -> None:
    """The ratio of E|dv|^2 and E|v|^2 over He weights is rho^2 to first order, for every layer."""
    x = load_data("digits").x_test[:20].double()
    moved, size = torch.zeros(4, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for seed in range(60):
        found = weight_conditions(he_network(Shape(4, 32), seed), x)
        moved += found.spread.square().sum(1)
        size += found.outputs.square().sum()
    torch.testing.assert_close((moved / size).sqrt(), torch.ones(4, dtype=torch.float64), rtol=0, atol=0.08)


def test_the_bound_of_the_family_is_attained_by_rank_one_matrices() -> None:
    """|dv| <= rho M^L |x| for |W_j|_F <= M without biases: aligned rank-one matrices and noise reach it."""
    x = torch.rand(1, 64, dtype=torch.float64)
    model, bound = he_network(Shape(3, 8), 0), 1.7
    with torch.no_grad():
        entering = x[0]
        for weight in model.parameters():
            leaving = torch.ones(weight.shape[0], dtype=torch.float64)
            weight.copy_(bound * torch.outer(leaving / leaving.norm(), entering / entering.norm()))
            entering = leaving
        before = model(x)
        weight = model[2].weight
        weight.mul_(1 + RHO)
        assert float((model(x) - before).norm()) == pytest.approx(RHO * bound**3 * float(x.norm()), rel=1e-12)


def test_random_noise_stays_below_the_worst_case_over_the_root_of_the_columns() -> None:
    """E|eta z|^2 = |eta|^2 |z|^2 / columns and the rest of the network is Lipschitz: at any rho."""
    x = load_data("digits").x_test[:10].double()
    model = he_network(Shape(3, 16), 1)
    for rho in (0.1, 2.0):
        frame = weight_noise(model, x, rho, 200)
        columns = [value.shape[1] ** 0.5 for value in model.parameters()]
        assert (frame["rms_sampled"] <= frame["worst_case"] / columns + 4 * frame["standard_error"]).all()
        last = frame.iloc[-1]
        assert last["worst_case"] / columns[-1] == pytest.approx(last["rms_formula"], rel=1e-10)


def test_notes_and_pictures(result: Reproduction) -> None:
    notes = " ".join(result.notes)
    for words in (
        "rho^2 |B_i|_F^2",
        "root of the width",
        "whatever L, m and i",
        "different questions",
        "test accuracy",
    ):
        assert words in notes
    assert [picture.name for picture in result.pictures] == ["layers", "widths", "sizes"]
    assert "10 %" in result.pictures[2].text and all("<svg" in picture.svg for picture in result.pictures)
    sweep = result.details["sweep"]["He, all at once"]
    assert sweep["rhos"][0] == 0.001 and sweep["rhos"][-1] == 2.0 and len(sweep["relative_rms"]) == 9
    assert len(render_html(result, "poisonaudit reproduce weight-noise")) < 2_000_000
    body = json.dumps(result.to_json(), allow_nan=False)
    assert "weight-noise" in body and TAKEN["weight-noise"] == {"seed", "quick", "draws"}


def test_contradictions_are_flagged(result: Reproduction) -> None:
    sound = {"formula": 0.1, "sampled": 0.1, "error": 0.001, "flips": 0.0, "found": 3.0, "bound": 4.0, "rms_bound": 1.0}
    assert noise_flags({("he", "s"): [sound, sound]}) == ()
    for change, word in (
        ({"sampled": 0.11}, "off its exact value"),
        ({"found": 4.1}, "search exceeds"),
        ({"rms_bound": 0.9}, "exceeds its bound"),
    ):
        flags = noise_flags({("he", "s"): [{**sound, **change}, sound]})
        assert len(flags) == 1 and word in flags[0]


def test_means_over_networks() -> None:
    one = dict.fromkeys(COLUMNS, 2.0)
    found = averaged([[one], [{**one, "sampled": 4.0, "found": None, "error": 2.0}]])
    assert found[0]["sampled"] == 3.0 and found[0]["found"] == 2.0 and found[0]["error"] == pytest.approx(2**0.5)
    assert averaged([[{**one, "rms_bound": None}]])[0]["rms_bound"] is None
    points = measure(he_network(Shape(2, 8), 0), torch.rand(4, 64, dtype=torch.float64), 4, 0, searched=False)
    assert [point["found"] for point in points] == [None] * 3 and isinstance(he_network(Shape(2, 8), 0), nn.Module)


def test_the_command_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["reproduce", "weight-noise", "--quick", "--draws", "4", "--seed", "1"]
    whole = json.loads(call(*words, "--out", tmp_path / "whole", "--json").stdout)
    real, calls = noise_table.measure, []

    def interrupting(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*given, **more)

    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(noise_table, "measure", interrupting)
        call(*words, "--out", out, code=130)
        kept = {path.name for path in out.glob("stage-*")}
        assert "stage-noise-he-2-16.safetensors" in kept and "stage-noise-he-3-8.safetensors" not in kept
        resumed = json.loads(call(*words, "--resume", "--out", out, "--json").stdout)
    assert resumed["rows"] == whole["rows"] and len(calls) == 5 + 2 + 1 + 2 + 1
    names = {path.name for path in out.iterdir()}
    assert {"results.json", "table.csv", "table.md", "reproduction.html", "layers.svg", "widths.svg"} <= names
    call("verify", out)
    refused = call("reproduce", "weight-noise", "--depth", "3", code=2)
    assert "PA398" in refused.stderr and "--depth" in refused.stderr
