"""The test with convolutional networks: architectures, training, bounds in both forms of pooling, checks, resuming."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn
from torch.nn import functional

from poisonaudit.cli.main import cli
from poisonaudit.data import load_data
from poisonaudit.errors import InputRefused
from poisonaudit.lipschitz import lipschitz_bounds, lower
from poisonaudit.reproduce import REPRODUCTIONS, Bench, Line, Reproduction, Settings, Silence, cnn_table
from poisonaudit.reproduce.cnn_checks import FAR, accuracy_check, best_forms, cnn_checks, cnn_flags
from poisonaudit.reproduce.cnn_network import BATCH, RATE, Architecture, architectures, trained
from poisonaudit.reproduce.cnn_printed import NORMS, POOLINGS, PRINTED, Case
from poisonaudit.reproduce.cnn_table import our_lines
from poisonaudit.reproduce.writing import render_html

SMALL = {name: Architecture((2, 2, 3)[: place + 1], 3, 6) for place, name in enumerate("ABC")}


def call(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


def values(line: Line) -> dict[str, float]:
    return {key: number for key, number in line.values.items() if number is not None}


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Narrow networks and a short search for lower bounds, which takes most of the time."""
    patch.setattr(cnn_table, "architectures", lambda shape: SMALL)
    patch.setattr(cnn_table, "STEPS_IF_QUICK", 250)
    for name, value in {"ASCENTS": 1, "FEWEST_ASCENTS": 1, "STEPS": 2, "FEWEST_STEPS": 2}.items():
        patch.setattr(lower, name, value)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def result() -> Reproduction:
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        return REPRODUCTIONS["despres-cnn"](Bench(Settings(quick=True)))


# The source's table


def test_the_printed_table_has_the_orders_the_source_claims() -> None:
    assert len(PRINTED) == 12
    for (name, pooling, norm), (star, first, third, fourth) in PRINTED.items():
        assert fourth < min(first, third) < max(first, third) < star
        if pooling == "explicit":
            implicit = PRINTED[name, "implicit", norm]
            assert all(a > FAR * b for a, b in zip((star, first, third, fourth), implicit, strict=True))


# Networks and training


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 30)])
def test_networks_grow_by_a_block_and_take_their_pictures(shape: tuple[int, ...]) -> None:
    before = torch.random.get_rng_state()
    for blocks, plan in enumerate(architectures(shape).values(), 1):
        model = plan.build(shape, 10, seed=3)
        assert model(torch.zeros(2, *shape)).shape == (2, 10)
        assert sum(isinstance(layer, nn.MaxPool2d) for layer in model) == blocks == len(plan.channels)
        again, other = plan.build(shape, 10, seed=3), plan.build(shape, 10, seed=4)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
        assert not torch.equal(model[0].weight, other[0].weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_descends_the_stated_objective() -> None:
    rows, decay, steps = load_data("digits", images=True, limit=300), 0.05, 30
    model = SMALL["A"].build((1, 8, 8), 10, seed=1)
    state, facts = trained(model, rows, decay=decay, steps=steps, seed=5, voice=Silence())

    # Written out: Adam with its bias corrections on the mean loss plus (decay/2) |w|^2, in double precision.
    reference = SMALL["A"].build((1, 8, 8), 10, seed=1).double()
    weights = list(reference.parameters())
    first, second = [[torch.zeros_like(w) for w in weights] for _ in range(2)]
    generator = torch.Generator().manual_seed(5)
    for step in range(1, steps + 1):
        picked = torch.randint(300, (BATCH,), generator=generator)
        loss = functional.cross_entropy(reference(rows.x_train[picked].double()), rows.y_train[picked])
        loss = loss + 0.5 * decay * sum(w.square().sum() for w in weights)
        rate = RATE * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        with torch.no_grad():
            for w, g, m, v in zip(weights, torch.autograd.grad(loss, weights), first, second, strict=True):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                w -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    for name, weight in reference.state_dict().items():
        assert torch.allclose(state[name].double(), weight, atol=2e-4), name
    with torch.no_grad():
        correct = reference(rows.x_test.double()).argmax(1) == rows.y_test
    assert facts["test_accuracy"] == pytest.approx(float(correct.double().mean()), abs=0.01)


def test_too_small_pictures_are_refused() -> None:
    with pytest.raises(InputRefused, match=r"PA132 .* from 8 x 8, these are 6 x 9"):
        architectures((1, 6, 9))


# Bounds


def test_lines_hold_the_bounds_and_poolings_cost_what_the_cascade_says(small: None) -> None:
    model = SMALL["B"].build((1, 8, 8), 4, seed=2)
    x = torch.rand(8, 1, 8, 8)
    lines = our_lines(model, "B", x, Bench(Settings(seed=7)))
    assert list(lines) == [("B", pooling, norm) for norm in NORMS for pooling in POOLINGS]
    for (_, pooling, norm), line in lines.items():
        bounds = lipschitz_bounds(model, norm, x=x.double(), seed=7, max_pool=pooling)
        for key in ("k_star", "k1", "k3", "k4", "k5", "certified"):
            assert line.values[key] == getattr(bounds, key)
        assert bounds.lower <= values(line)["lower"] <= bounds.best * (1 + 1e-10)
    for norm, factor in (("l1", 4.0), ("linf", 16.0)):
        explicit, implicit = (values(lines["B", pooling, norm]) for pooling in POOLINGS)
        # Two poolings of two levels each.
        assert explicit["k_star"] == pytest.approx(factor**2 * implicit["k_star"], rel=1e-10)
        assert explicit["lower"] == implicit["lower"]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_ours_stand_below_the_printed_lines_and_nothing_is_flagged(result: Reproduction) -> None:
    assert len(result.rows) == 16
    for printed, ours in zip(result.rows[::2], result.rows[1::2], strict=True):
        assert printed.label.removesuffix("printed") == ours.label.removesuffix("ours")
        assert isinstance(printed, Line) and isinstance(ours, Line)
        assert values(printed).keys() == {"k_star", "k1", "k3", "k4"}
        value = values(ours)
        assert value["lower"] <= value["certified"] <= value["k5"] * (1 + 1e-9)
        assert value["k5"] <= value["k4"] * (1 + 1e-10) <= min(value["k1"], value["k3"]) * (1 + 1e-9)
        assert max(value["k1"], value["k3"]) <= value["k_star"] and value["seconds"] > 0
    # So narrow, so short: a quarter of the digits right is more than chance; what is said agrees with the accuracy.
    accuracies = {name: facts["test_accuracy"] for name, facts in result.details["networks"].items()}
    assert list(accuracies) == ["A", "B"] and accuracies["A"] > 0.25
    assert len(result.flags) == sum(accuracy < 0.9 for accuracy in accuracies.values())
    held = [check["held"] for check in result.details["checks"]]
    assert held[:3] == [True, True, True]
    assert all(check["text"] in result.notes for check in result.details["checks"])


def test_the_result_has_every_form(result: Reproduction) -> None:
    body = result.to_json()
    json.dumps(body, allow_nan=False)
    assert [figure["file"] for figure in body["figures"]] == ["bounds-l1.svg", "bounds-linf.svg"]
    page = render_html(result, "poisonaudit reproduce despres-cnn")
    assert "certified: " in page and all(picture.svg in page for picture in result.pictures)
    assert body["settings"]["decay"] == 5e-3 and body["settings"]["steps"] == 250
    assert "conv 2 of 3 x 3, pool, conv 2 of 3 x 3, pool, dense 6, dense 10" in result.notes[0]


# Checks


def cases(result: Reproduction) -> dict[Case, Line]:
    order: list[Case] = [(name, pooling, norm) for name in "AB" for norm in NORMS for pooling in POOLINGS]
    return {case: line for case, line in zip(order, result.rows[1::2], strict=True) if isinstance(line, Line)}


@pytest.mark.parametrize(
    ("key", "factor", "place", "told"),
    [("k4", 1e3, 0, "min(K_1, K_3)"), ("k5", 1e3, 1, "K_5 <= K_4"), ("lower", 1e6, 2, "lower <= every bound")],
)
def test_a_violated_order_is_said_and_flagged(
    result: Reproduction, key: str, factor: float, place: int, told: str
) -> None:
    ours = cases(result)
    case: Case = ("B", "implicit", "l1")
    line = ours[case]
    wrong = {**ours, case: dataclasses.replace(line, values={**line.values, key: factor * values(line)[key]})}
    checks = cnn_checks(wrong)
    assert not checks[place].held and checks[place].text.startswith("Not held") and "in 7 of 8" in checks[place].text
    assert any(told in text and text.startswith("B, implicit, l^1") for text in cnn_flags(wrong, {}))


def test_lines_without_k4_are_counted_apart(result: Reproduction) -> None:
    ours = {
        case: dataclasses.replace(line, values={**line.values, "k4": None}) if case[0] == "B" else line
        for case, line in cases(result).items()
    }
    checks = cnn_checks(ours)
    assert checks[0].held and "in 4 of 4 lines; 4 lines have no K_4" in checks[0].text
    assert cnn_flags(ours, {}) == ()


def test_ratios_of_the_forms_are_those_of_the_table(result: Reproduction) -> None:
    ours = cases(result)
    star, fourth = cnn_checks(ours)[3:]
    assert "A l^1 4 (677)" in star.text and "B l^inf 256 (2.5e+03)" in star.text
    ratio = values(ours["A", "explicit", "linf"])["k4"] / values(ours["A", "implicit", "linf"])["k4"]
    assert f"A l^inf {ratio:.3g} (74)" in fourth.text
    smaller = min(POOLINGS, key=lambda form: values(ours["B", form, "l1"])["certified"])
    assert f"B l^1 {values(ours['B', smaller, 'l1'])['certified']:.4g} ({smaller})" in best_forms(ours)


def test_accuracies_are_judged() -> None:
    assert accuracy_check({"A": 0.96, "B": 0.99}).held
    check = accuracy_check({"A": 0.96, "B": 0.93})
    assert not check.held and "B 93.0%" in check.text
    (told,) = cnn_flags({}, {"A": 0.95, "B": 0.1})
    assert told == "B classifies 10.0% of the test rows: it has not learned its task."


# As a command


def test_an_interrupted_run_goes_on_with_its_models(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cnn_table, "STEPS_IF_QUICK", 5)
    words = ["reproduce", "despres-cnn", "--quick", "--limit", "200"]
    done: list[str] = []

    def interrupting(model: nn.Module, name: str, *given: Any) -> Any:
        done.append(name)
        if done == ["A", "B"]:
            raise KeyboardInterrupt
        return our_lines(model, name, *given)

    out = tmp_path / "run"
    monkeypatch.setattr(cnn_table, "our_lines", interrupting)
    call(*words, "--out", out, code=130)
    assert {path.name for path in out.glob("stage-*")} == {
        f"stage-{name}.safetensors" for name in ("model-A", "bounds-A", "model-B")
    }
    resumed = call(*words, "--resume", "--out", out, "--json")
    assert done == ["A", "B", "B"] and "kept from before" in resumed.stderr
    body = json.loads(resumed.stdout)
    assert [row["label"] for row in body["rows"]][1::8] == ["A, explicit, l^1, ours", "B, explicit, l^1, ours"]
    assert len(body["rows"]) == 16 and all(row["k4"] > 0 for row in body["rows"])
    assert any("has not learned its task" in text for text in body["flags"])
    call("verify", out)
    assert "PA386" in call(*words[:3], "--limit", "201", "--resume", "--out", out, code=2).stderr


def test_mnist_is_read_from_its_makers_files(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", pictures), ("labels-idx1", (np.arange(20) % 10).astype(np.uint8))):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())
    monkeypatch.setattr(cnn_table, "NAMES", ("A",))
    monkeypatch.setattr(cnn_table, "STEPS_IF_QUICK", 3)
    monkeypatch.setattr(cnn_table, "architectures", lambda shape: {"A": Architecture((1,), 3, 2)})
    data = f"mnist:{tmp_path / 'root'}"
    found = call("reproduce", "despres-cnn", "--quick", "--data", data, "--out", tmp_path / "run", "--json")
    body = json.loads(found.stdout)
    assert body["settings"]["data"] == data and body["settings"]["input_shape"] == [1, 28, 28]
    assert body["settings"]["decay"] == 1e-2 and "train-images-idx3-ubyte" in body["inputs"]


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["--data", "breast_cancer"], 3, ["PA215"]),
        (["--data", "digits?size=6"], 3, ["PA132", "6 x 6"]),
        (["--data", "mnist:nowhere"], 3, ["nowhere"]),
        (["--depth", "3", "--root", "x"], 2, ["PA398", "--depth, --root"]),
        (["--decay", "0"], 2, ["PA304"]),
    ],
)
def test_refusals_are_one_line(
    words: list[str], code: int, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = call("reproduce", "despres-cnn", *words, code=code)
    assert len(shown.stderr.splitlines()) == 1 and all(part in shown.stderr for part in parts), shown.stderr
