"""The tables of Després and Pintore: golden values, exact errors, random draws within chance."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from poisonaudit.cli.main import cli
from poisonaudit.lipschitz import square_model
from poisonaudit.lipschitz.exact import exact_constant
from poisonaudit.reproduce import REPRODUCTIONS, TAKEN, Bench, Line, Reproduction, Settings, random_table, square_table
from poisonaudit.reproduce.axes import logarithmic
from poisonaudit.reproduce.random_table import drawn, random_flags, ratios_of
from poisonaudit.reproduce.square_table import PRINTED, PRINTED_KEYS, square_flags
from poisonaudit.reproduce.writing import render_csv, render_html, render_markdown

K1 = (2.0, 3.53125, 6.921875, 14.428772, 30.7563705, 66.0022725)
K2 = (1.5, 3.64531576, 6.4592517, 12.4588255, 24.6818391, 49.2450105)
# Means of ratios to K_*, each from 1,000 draws of another seed, which differ by up to 0.006.
MEANS = {"k": 0.142, "k1": 0.453, "k2": 0.326, "k3": 0.542, "k4": 0.286, "k5": 0.281}


def lines(result: Reproduction, word: str) -> list[Line]:
    found = [row for row in result.rows if isinstance(row, Line) and word in row.label]
    assert found
    return found


def call(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def square() -> Reproduction:
    return REPRODUCTIONS["despres-square"](Bench())


@pytest.fixture(scope="module")
def product() -> Reproduction:
    return REPRODUCTIONS["despres-product"](Bench(Settings(depth=2)))


@pytest.fixture(scope="module")
def random() -> Reproduction:
    return REPRODUCTIONS["despres-random"](Bench(Settings(draws=60, seed=11)))


# The network for x^2


def test_square_has_the_golden_values_at_every_depth(square: Reproduction) -> None:
    ours = lines(square, "ours")
    assert len(ours) == 6 and square.flags == ()
    for depth, line in enumerate(ours, 1):
        constant = 2 - 2.0**-depth
        expected = {
            "lower": constant,
            "k": constant,
            "k_star": 1 + 2 * 4.0 ** (depth - 1),
            "k3": depth + 1.0,
            "k4": constant,
            "k5": constant,
            "error": 4.0 ** -(depth + 1),
        }
        for key, value in expected.items():
            assert line.values[key] == pytest.approx(value, rel=1e-13), (depth, key)
        assert line.values["k1"] == pytest.approx(K1[depth - 1], rel=1e-7)
        assert line.values["k2"] == pytest.approx(K2[depth - 1], rel=1e-7)


def test_square_stands_beside_the_printed_values_and_names_the_misprint(square: Reproduction) -> None:
    for printed, ours in zip(lines(square, "printed"), lines(square, "ours"), strict=True):
        for key in PRINTED_KEYS:
            told, found = printed.values[key], ours.values[key]
            assert told is not None and found is not None
            assert found == pytest.approx(1.9375 if told == 1.93875 else told, abs=1e-5)
    assert [row.label for row in lines(square, "l =") if row.remark] == ["l = 4, printed"]
    (remark,) = [row.remark for row in lines(square, "l =") if row.remark]
    assert "misprint of 1.9375" in remark
    assert any("1.93875" in text and "1.9375" in text for text in square.notes)
    for form in (render_html(square), render_markdown(square), render_csv(square)):
        assert "1.93875" in form and "misprint" in form


def test_square_goes_deeper_and_leaves_out_what_is_too_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(square_table, "ENUMERATED", 2.0**20)
    result = REPRODUCTIONS["despres-square"](Bench(Settings(depth=16)))
    assert result.flags == ()
    last = lines(result, "l = 16, ours")[0].values
    assert last["k"] is None and last["k4"] is None
    assert last["k5"] == pytest.approx(2 - 2.0**-16, rel=1e-14) == last["lower"]
    # The source's 4^-l / 3 is 4/3 of it.
    assert last["error"] == pytest.approx(4.0**-17, rel=1e-6)
    assert result.details["error_bounds"][-1] == pytest.approx(4 / 3 * 4.0**-17)


def test_no_point_of_the_interval_has_a_larger_error_than_the_middles() -> None:
    x = torch.rand(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for depth in (1, 3, 5):
        with torch.no_grad():
            error = (square_model(depth)(x) - x.square()).abs().max()
        assert 0.9 * 4.0 ** -(depth + 1) < float(error) <= 4.0 ** -(depth + 1) * (1 + 1e-12)


def test_square_flags_what_contradicts_the_table_or_the_theory(square: Reproduction) -> None:
    ours = lines(square, "ours")
    for key, told in (("k3", "K_3"), ("k5", "K_5"), ("lower", "L is"), ("error", "error")):
        values = {**ours[2].values, key: 1.01 * float(ours[2].values[key] or 0.0)}
        found = square_flags([*ours[:2], dataclasses.replace(ours[2], values=values), *ours[3:]])
        assert found and all(text.startswith("l = 3: ") for text in found) and told in found[0]


# Random matrices


def test_random_averages_agree_within_their_standard_errors(random: Reproduction) -> None:
    assert random.flags == ()
    (average,) = lines(random, "Average, ours")
    for key, mean in MEANS.items():
        error = random.details["standard_errors"][key]
        assert abs(float(average.values[key] or 0.0) - mean) < 4.0 * error + 0.006, key
    (difference,) = lines(random, "Difference")
    assert difference.values["k5"] is None
    assert all(abs(value) < 4.0 for key, value in difference.values.items() if value is not None)


def test_random_rows_are_the_statistics_of_the_draws() -> None:
    random = REPRODUCTIONS["despres-random"](Bench(Settings(draws=12, seed=11)))
    ratios: dict[str, list[float]] = {}
    for matrices in drawn(12, 11):
        for key, value in ratios_of(matrices)[0].items():
            ratios.setdefault(key, []).append(value)
    for key in MEANS:
        values = np.array(ratios[key])
        found = [float(line.values[key] or 0.0) for line in lines(random, "ours")]
        assert found == pytest.approx([values.max(), values.mean(), values.min(), values.std(ddof=1)], rel=1e-12)
    assert all(low <= k * (1 + 1e-12) for low, k in zip(ratios["lower"], ratios["k"], strict=True))
    assert all(k5 <= k4 * (1 + 1e-12) for k5, k4 in zip(ratios["k5"], ratios["k4"], strict=True))


def test_k_of_a_random_network_is_that_of_all_65536_patterns() -> None:
    first, second, third = drawn(1, 3)[0]
    inner, outer = (
        torch.tensor(list(itertools.product((0.0, 1.0), repeat=width)), dtype=torch.float64) for width in (10, 6)
    )
    below = second @ (inner[:, :, None] * first)
    literal = max(float((third @ (gates[:, None] * below)).abs().sum(2).max()) for gates in outer)
    assert exact_constant([first, second, third]) == pytest.approx(literal, rel=1e-13)


def test_the_first_networks_do_not_depend_on_how_many_are_drawn() -> None:
    for short, long in zip(drawn(3, 5), drawn(7, 5), strict=False):
        assert all(torch.equal(a, b) for a, b in zip(short, long, strict=True))
    assert not torch.equal(drawn(1, 5)[0][0], drawn(1, 6)[0][0])


def test_random_flags_tell_of_other_distributions_and_of_bounds_below_k() -> None:
    ratios = {key: torch.full((5,), 0.3, dtype=torch.float64) for key in (*MEANS, "ellipsoid")}
    ratios |= {"k": torch.full((5,), 0.2, dtype=torch.float64), "lower": torch.full((5,), 0.1, dtype=torch.float64)}
    assert random_flags(ratios, {"k": 1.0}) == ()
    assert "5.0 standard errors" in random_flags(ratios, {"k": 5.0})[0]
    assert random_flags(ratios, {"k": math.nan})
    ratios["k2"][3] = 0.19
    assert random_flags(ratios, {}) == ("k2 is below K, which it bounds, in 1 draws.",)


# All three, as a command


def test_every_reproduction_says_what_it_takes() -> None:
    assert TAKEN.keys() == REPRODUCTIONS.keys()
    fields = {item.name for item in dataclasses.fields(Settings)}
    assert all(taken <= fields for taken in TAKEN.values())


def test_rows_have_the_tables_columns(square: Reproduction, product: Reproduction, random: Reproduction) -> None:
    for result in (square, product, random):
        body = result.to_json()
        assert body["schema"] == "poisonaudit/reproduction/1" and "Després" in body["source"]
        assert all(row.keys() == {"label", "remark", *body["columns"]} for row in body["rows"])
        json.dumps(body, allow_nan=False)
        page = render_html(result, "poisonaudit reproduce x")
        assert "default-src &#39;none&#39;" in page and "<script" not in page
        assert all(picture.svg in page for picture in result.pictures)
        assert render_csv(result).splitlines()[0] == ",".join(["quantity", *result.columns, "remark"])
        assert all(row.label in render_markdown(result) for row in result.rows)
    # Only a table with remarks has a column for them.
    assert ">Remark</th>" in render_html(square) and ">Remark</th>" not in render_html(product)


def test_labels_of_logarithmic_axes_are_plain_numbers() -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    logarithmic(axes.set_yscale, axes.yaxis)
    axes.plot([1, 2], [1e-3, 1e6])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert {"0.01", "1", "1e+06"} <= set(labels) and not any("$" in text for text in labels)


def test_the_command_writes_a_run_that_verifies(tmp_path: Path) -> None:
    out = tmp_path / "run"
    shown = call("reproduce", "despres-square", "--depth", "4", "--out", out)
    assert "l = 4, printed" in shown.stdout and "1.93875" in shown.stdout and "hidden layers" in shown.stderr
    names = {path.name for path in out.iterdir()}
    assert {"results.json", "table.csv", "table.md", "reproduction.html", "bounds.svg", "errors.svg"} <= names
    assert len(json.loads((out / "results.json").read_text())["rows"]) == 8
    call("verify", out)
    assert len(json.loads(call("reproduce", "despres-product", "--depth", "1", "--json").stdout)["rows"]) == 2


def test_an_interrupted_table_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_table, "_BLOCK", 4)
    words = ["reproduce", "despres-random", "--draws", "10", "--seed", "2"]
    whole = json.loads(call(*words, "--out", tmp_path / "whole", "--json").stdout)
    calls: list[int] = []

    def interrupting(matrices: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return ratios_of(matrices)

    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(random_table, "ratios_of", interrupting)
        call(*words, "--out", out, code=130)
        assert {path.name for path in out.glob("stage-*")} == {"stage-draws-0-4.safetensors"}
        calls.append(1)
        resumed = json.loads(call(*words, "--resume", "--out", out, "--json").stdout)
    assert len(calls) == 7 + 1 + 6
    assert resumed["rows"] == whole["rows"]
    assert "PA386" in call(*words[:2], "--draws", "12", "--resume", "--out", out, code=2).stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["despres-square", "--depth", "0"], ["PA304", "1 to 16"]),
        (["despres-product", "--depth", "17"], ["PA304", "1 to 16"]),
        (["despres-random", "--draws", "1"], ["PA304", "2 to 100,000"]),
        (["despres-random", "--depth", "3"], ["PA398", "--depth"]),
        (["despres-square", "--draws", "9", "--data", "digits"], ["PA398", "--data, --draws"]),
        (["wang-table1", "--draws", "9"], ["PA398", "--draws"]),
        (["despres-sqare"], ["PA301", "despres-square"]),
    ],
)
def test_refusals_are_one_line(
    words: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("reproduce", *words, code=2)
    assert len(result.stderr.splitlines()) == 1 and all(part in result.stderr for part in parts), result.stderr
    assert not list(tmp_path.iterdir())


def test_printed_table_is_the_sources() -> None:
    """The closed forms behind the printed columns, so that no digit of ours is a slip of the pen."""
    for depth, (lower, k_star, k1, k2, k3, k4) in PRINTED.items():
        assert (k_star, k3) == (1 + 2 * 4.0 ** (depth - 1), depth + 1.0)
        assert lower == k4 == (1.93875 if depth == 4 else 2 - 2.0**-depth)
        assert (k1, k2) == pytest.approx((K1[depth - 1], K2[depth - 1]), abs=1e-5)


@pytest.mark.soak
def test_random_table_in_full_agrees_with_the_printed_one() -> None:
    for seed in (0, 1):
        result = REPRODUCTIONS["despres-random"](Bench(Settings(seed=seed)))
        assert result.flags == ()
        (average,) = lines(result, "Average, ours")
        for key, mean in MEANS.items():
            assert average.values[key] == pytest.approx(mean, abs=0.01)
        (deviation,) = lines(result, "Standard deviation, ours")
        (printed,) = lines(result, "Standard deviation, printed")
        for key, value in printed.values.items():
            assert value is None or deviation.values[key] == pytest.approx(value, rel=0.15)
