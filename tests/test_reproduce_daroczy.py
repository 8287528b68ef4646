"""`reproduce daroczy-*`: rows from stored states, errors against their definition, formulas, resuming, CIFAR-10."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from poisonaudit.cli.main import cli
from poisonaudit.reproduce import Bench, Settings, Silence, daroczy_estimates, daroczy_runs
from poisonaudit.reproduce.daroczy_bound import BASE, DEPTHS, INPUTS, OUTPUTS, Setting, curve
from poisonaudit.reproduce.daroczy_estimates import PRINTED, TABLE, Score, better, scored, verdict
from poisonaudit.reproduce.daroczy_runs import States, initial, make_plan, states, train
from poisonaudit.tangent import activation_patterns, sensitivity_factors, tangent_bounds
from poisonaudit.tangent.factors import BASELINE

QUICK = ["--quick", "--limit", "150"]


def call(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "table"
    shown = call("reproduce", "daroczy-table2", *QUICK, "--out", out, "--json")
    return out, json.loads(shown.stdout)


def run(train_loss: list[float], test_loss: list[float], factors: Mapping[str, list[float]], seed: int = 0) -> States:
    """Accuracy is 1 - loss / 10, so that both errors are known."""
    count = len(train_loss)
    losses = {"train": torch.tensor(train_loss).double(), "test": torch.tensor(test_loss).double()}
    measured = {f"{part}_loss": values for part, values in losses.items()}
    measured |= {f"{part}_accuracy": 1.0 - values / 10.0 for part, values in losses.items()}
    own = {BASELINE: [1.0] * count, **factors}
    return States(
        "SGD",
        seed,
        torch.arange(count),
        measured,
        {name: torch.tensor(values).double() for name, values in own.items()},
    )


def test_errors_are_means_of_absolute_differences() -> None:
    first = run([1.0, 2.0, 4.0], [1.5, 3.0, 4.4], {"eq7": [1.4, math.nan, 1.1]})
    second = run([1.0, 1.0, 1.0], [1.2, 1.1, 1.5], {"eq7": [1.2, 1.1, 1.5]}, seed=1)
    found = scored([first, second])
    own, base = found["eq7"], found[BASELINE]
    assert base.loss.tolist() == pytest.approx([(0.5 + 1.0 + 0.4) / 3, 0.8 / 3])
    assert own.loss.tolist() == pytest.approx([0.1 / 2, 0.0])  # the state without a factor is left out
    assert own.loss_gain.tolist() == pytest.approx([0.05 - 0.9 / 2, -0.8 / 3])  # against the same states
    assert own.accuracy.tolist() == pytest.approx([0.01 / 2, 0.0])
    literal = [abs(1.4 * 0.9 - 0.85), abs(1.1 * 0.6 - 0.56)]
    assert float(own.literal[0]) == pytest.approx(sum(literal) / 2)
    assert float(own.literal_gain[0]) == pytest.approx(sum(literal) / 2 - (0.05 + 0.04) / 2)
    assert own.missing == 1 and own.correlation == pytest.approx(1.0) and base.correlation is None
    assert base.loss_gain.tolist() == [0.0, 0.0]


def test_a_difference_counts_where_students_interval_leaves_0() -> None:
    # t at 0.975 with 3 degrees of freedom is 3.182.
    spread = torch.tensor([-1.0, 1.0, -1.0, 1.0]).double()
    error = float(spread.std()) / 2
    assert better(spread - 3.1 * error) is None and better(spread - 3.3 * error) is True
    assert better(spread + 3.3 * error) is False and better(torch.tensor([-5.0])) is None


def test_the_verdict_names_winners_and_losers() -> None:
    def score(*gains: float) -> Score:
        values = torch.tensor(gains).double()
        return Score(values, values, values, values, -values, values, None, 0)

    found = {"SGD": {BASELINE: score(0, 0, 0), "eq7": score(-1, -1.1, -0.9), "eq6": score(1, -1, 0)}}
    text = verdict(found)
    assert "cross-entropy: better than test = train: eq. 7, mean of norms (SGD, -1 +- 0.06)" in text
    assert "Not to be told apart: eq. 6, corrected (SGD" in text
    assert "accuracy: better than test = train: none. Worse: eq. 7, mean of norms" in text
    assert "accuracy read literally: better than test = train: eq. 7, mean of norms" in text
    assert "over 3 runs" in text and "Of 6 comparisons" in text


def test_table_2_is_made_of_the_stored_states(table: tuple[Path, dict[str, Any]]) -> None:
    out, body = table
    assert body["columns"].keys() == TABLE.keys() and len(body["rows"]) == 20
    stored = body["details"]["runs"]
    assert set(stored) == {"SGD 0", "SGD 1", "Adam 0", "Adam 1"}
    row = next(row for row in body["rows"] if row["label"] == "Adam, eq. 7, mean of norms")
    errors, gains = [], []
    for seed in (0, 1):
        kept = stored[f"Adam {seed}"]
        measured = zip(kept["eq7"], kept["train_loss"], kept["test_loss"], strict=True)
        pairs = [(abs(f * a - b), abs(a - b)) for f, a, b in measured]
        errors.append(sum(own for own, _ in pairs) / len(pairs))
        gains.append(sum(own - base for own, base in pairs) / len(pairs))
    assert row["loss"] == pytest.approx(sum(errors) / 2) and row["loss_gain"] == pytest.approx(sum(gains) / 2)
    assert row["loss_gain_error"] == pytest.approx(abs(gains[0] - gains[1]) / 2)
    control = next(row for row in body["rows"] if row["label"] == "Adam, control, 0.98 throughout")
    literal = [
        abs(0.98 * a - b)
        for seed in (0, 1)
        for a, b in zip(stored[f"Adam {seed}"]["train_accuracy"], stored[f"Adam {seed}"]["test_accuracy"], strict=True)
    ]
    assert control["accuracy_literal"] == pytest.approx(sum(literal) / len(literal))
    printed = {row["label"]: (row["printed_loss"], row["printed_accuracy"]) for row in body["rows"]}
    assert [printed[f"SGD, {daroczy_estimates.TOLD[name]}"] for name in PRINTED] == list(PRINTED.values())
    assert sum(pair != (None, None) for pair in printed.values()) == 3
    assert "Does an estimate beat test = train?" in body["notes"][0]
    page = (out / "reproduction.html").read_text()
    assert "minus that of test = train" in page and "<script" not in page
    call("verify", out)


def test_states_are_those_of_the_training_they_name() -> None:
    """Trained again by hand: losses of all rows, sensitivities of the first 64, eq. 5 against the epoch before."""
    plan = make_plan(Bench(Settings(quick=True, limit=150)))
    found = states(Bench(), plan, "SGD", 3)
    assert found.epochs.tolist() == [2, 4, 6]
    model, earlier = initial(plan, 3), nn.Module()
    for epoch in train(model, plan, "SGD", 3, Silence()):
        if epoch == 4:
            break
        earlier = copy.deepcopy(model)
    x, y = plan.rows.x_train, plan.rows.y_train
    with torch.no_grad():
        outputs = model(x).double()
    assert float(found.measured["train_loss"][1]) == pytest.approx(float(nn.functional.cross_entropy(outputs, y)))
    assert float(found.measured["train_accuracy"][1]) == float((outputs.argmax(1) == y).double().mean())
    factors = sensitivity_factors(model, x[:64], plan.rows.x_test[:64], earlier)
    for name, values in found.factors.items():
        assert float(values[1]) == pytest.approx(factors[name].value, rel=1e-6), name
    assert float(found.factors["eq5"][1]) != 1.0


def test_initial_weights_are_uniform_and_training_goes_down() -> None:
    plan = make_plan(Bench(Settings(quick=True)))
    model = initial(plan, 0)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            reach = layer.in_features**-0.5
            for value in (layer.weight, layer.bias):
                assert float(value.detach().abs().max()) <= reach
            assert float(layer.weight.detach().abs().mean()) == pytest.approx(reach / 2, rel=0.06)
    assert not torch.equal(initial(plan, 0)[0].weight, initial(plan, 1)[0].weight)
    before, _ = daroczy_runs.loss_and_accuracy(model, plan.rows.x_train, plan.rows.y_train, "cpu")
    for _ in train(model, plan, "Adam", 0, Silence()):
        pass
    after, _ = daroczy_runs.loss_and_accuracy(model, plan.rows.x_train, plan.rows.y_train, "cpu")
    assert after < 0.8 * before


def test_figure_1_counts_the_units_of_the_stored_weights(tmp_path: Path) -> None:
    out = tmp_path / "run"
    body = json.loads(call("reproduce", "daroczy-figure1", *QUICK, "--out", out, "--json").stdout)
    plan = make_plan(Bench(Settings(quick=True, limit=150)))
    model = initial(plan, 0)
    from safetensors.torch import load_file

    kept = load_file(out / "stage-weights.safetensors")
    assert all(torch.equal(kept[f"before.{name}"], value) for name, value in model.state_dict().items())
    model.load_state_dict({name[6:]: value for name, value in kept.items() if name.startswith("after.")})
    patterns = activation_patterns(model, plan.rows.x_test)
    rows = {row["label"]: row for row in body["rows"]}
    assert len(rows) == 20
    total = rows["all layers, after training, test rows"]
    assert total["mean"] == pytest.approx(patterns.mean) and total["deviation"] == pytest.approx(patterns.deviation)
    assert total["p_normal"] == pytest.approx(patterns.normality.p_value)
    powers = patterns.total.double() ** 6
    mu, s = patterns.mean, patterns.deviation
    normal = mu**6 + 15 * mu**4 * s**2 + 45 * mu**2 * s**4 + 15 * s**6
    assert total["moment"] == pytest.approx(float(powers.mean()) / normal, rel=1e-9)
    third = rows["layer 3, after training, test rows"]
    assert third["mean"] == pytest.approx(float(patterns.active[:, 2].double().mean()))
    assert body["details"]["distinct_patterns"]["after, test"] == patterns.distinct
    assert {"totals.svg", "layers.svg"} <= {path.name for path in out.iterdir()}


def test_figure_3_shows_one_run(tmp_path: Path) -> None:
    body = json.loads(call("reproduce", "daroczy-figure3", *QUICK, "--out", tmp_path / "run", "--json").stdout)
    kept = body["details"]["run"]
    rows = {row["label"]: row for row in body["rows"]}
    differences = [b - a for a, b in zip(kept["test_loss"], kept["train_loss"], strict=True)]
    assert rows["test = train"]["loss_bias"] == pytest.approx(sum(differences) / 3)
    assert rows["measured on test rows"]["last_accuracy"] == kept["test_accuracy"][-1]
    assert rows["eq. 6, corrected"]["last_loss"] == pytest.approx(kept["eq6"][-1] * kept["train_loss"][-1])
    assert [figure["file"] for figure in body["figures"]] == ["loss.svg", "accuracy.svg", "gap.svg"]


def equal_net(setting: Setting, inputs: int) -> tuple[nn.Sequential, Tensor]:
    """All weights w_max, and rows that turn on everything or nothing."""
    widths = [inputs, *[setting.width] * (setting.depth - 1), OUTPUTS]
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layer = nn.Linear(before, after, bias=False).double()
        nn.init.constant_(layer.weight, setting.largest)
        layers += [layer, nn.ReLU()]
    x = torch.ones(4, inputs).double()
    x[3] *= -1.0
    return nn.Sequential(*layers[:-1]).eval(), x


def test_figure_2_is_the_theorem_for_a_net() -> None:
    """The same formulas as `tangent_bounds` has for a real network with these numbers."""
    setting = dataclasses.replace(BASE, width=6, depth=4)
    model, x = equal_net(setting, INPUTS)
    found = tangent_bounds(model, x)
    own = dataclasses.replace(setting, mean=found.active_mean, deviation=found.active_deviation).bounds()
    printed = {one.name: one.log10 for one in found.as_printed}
    assert own["corrected"] == pytest.approx(found.theorem32_gaussian.log10, rel=1e-12)
    assert own["printed"] == pytest.approx(printed["theorem32_text_as_printed"], rel=1e-12)
    assert own["appendix"] == pytest.approx(printed["theorem32_appendix_as_printed"], rel=1e-12)


def test_figure_2_turns_down_with_depth_where_the_note_says(tmp_path: Path) -> None:
    low, high = (dataclasses.replace(BASE, largest=size) for size in (0.01, 0.1))
    share = curve(low, "corrected", growing=True)
    assert share.index(max(share)) < len(DEPTHS) - 1 and share[-1] < share[0]
    assert curve(high, "corrected", growing=True)[-1] == max(curve(high, "corrected", growing=True))
    fixed = curve(high, "corrected", growing=False)
    assert 0 < fixed.index(max(fixed)) < len(DEPTHS) - 1
    body = json.loads(call("reproduce", "daroczy-figure2", "--out", tmp_path / "run", "--json").stdout)
    assert body["details"]["peaks"]["growing"]["0.01"]["corrected"] == DEPTHS[share.index(max(share))]
    doubled = {row["label"]: row for row in body["rows"]}["largest weights x 2"]
    assert doubled["corrected_gain"] == pytest.approx(2 * 4 * math.log10(2)) and doubled["printed_gain"] == (
        pytest.approx(2 * 5 * math.log10(2))
    )


def test_an_interrupted_run_goes_on_where_it_was(
    table: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "cut", daroczy_runs.train

    def interrupted(model: nn.Module, plan: Any, optimiser: str, seed: int, voice: Any) -> Any:
        if (optimiser, seed) == ("Adam", 0):
            raise KeyboardInterrupt
        return real(model, plan, optimiser, seed, voice)

    with monkeypatch.context() as patch:
        patch.setattr(daroczy_runs, "train", interrupted)
        call("reproduce", "daroczy-table2", *QUICK, "--out", out, code=130)
    assert {path.name for path in out.glob("stage-*")} == {
        "stage-states-sgd-0.safetensors",
        "stage-states-sgd-1.safetensors",
    }
    resumed = json.loads(call("reproduce", "daroczy-table2", "--resume", "--out", out, "--json").stdout)
    assert resumed["rows"] == table[1]["rows"]


def test_a_root_means_cifar10(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 3072), dtype=np.uint8)
    for index, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        batch = {b"data": pixels[index], b"labels": [(index + row) % 10 for row in range(40)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    words = ["--root", tmp_path / "root", "--limit", "70", "--quick", "--decay", "1e-3"]
    body = json.loads(call("reproduce", "daroczy-figure3", *words, "--out", tmp_path / "run", "--json").stdout)
    settings = body["settings"]
    assert settings["network"] == "3072-100-100-100-100-10" and settings["rows"] == 70 and settings["decay"] == 1e-3
    assert {"data_batch_1", "test_batch"} <= body["inputs"].keys()
    full = make_plan(Bench(Settings(root=str(tmp_path / "root"))))
    assert (full.epochs, full.every, full.measured, full.decay) == (50, 1, 1000, 5e-4)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["daroczy-table2", "--model", "lenet"], ["PA398", "--model"]),
        (["daroczy-figure2", "--limit", "9"], ["PA398", "--limit"]),
        (["daroczy-figure1", "--decay", "0"], ["PA304", "decay"]),
        (["daroczy-figure1", "--draws", "9"], ["PA398", "--draws"]),
    ],
)
def test_refusals_are_one_line(words: list[str], parts: list[str]) -> None:
    refused = call("reproduce", *words, code=2)
    assert len(refused.stderr.splitlines()) == 1 and all(part in refused.stderr for part in parts), refused.stderr
