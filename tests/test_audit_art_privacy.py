"""SHAPr and PDTP against their definitions: Shapley values by enumeration, retraining without each row by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from poisonaudit import Problem, fit
from poisonaudit.audit import art_privacy, audit
from poisonaudit.audit.context import COST_LIMIT

Case = tuple[Problem, Tensor, Tensor]


def problem_of(rows: int, classes: int, *, network: bool = False, decay: float = 1e-2, seed: int = 0) -> Case:
    """A tight minimum on noisy classes, and test rows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows + 12, 3, generator=generator, dtype=torch.float64)
    y = (x[:, :classes] + 0.7 * torch.randn(rows + 12, classes, generator=generator).double()).argmax(1)
    torch.manual_seed(seed)
    layers = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, classes)] if network else [nn.Linear(3, classes)]
    problem = Problem(nn.Sequential(*layers).double(), "cross_entropy", x[:rows], y[:rows], decay)
    return fit(problem, 1e-10).problem, x[rows:], y[rows:]


def neighbour_shapley(problem: Problem, x: Tensor, y: Tensor) -> Tensor:
    """`phi_i = sum_S |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))`, v the share of test rows that the nearest row of S
    in the space of the outputs answers, 0 for none; times n."""
    with torch.no_grad():
        own, asked = problem.outputs(), problem.outputs(x=x)
    distance, count = torch.cdist(asked, own), problem.rows
    right = (problem.y[None] == y[:, None]).double()

    def value(rows: tuple[int, ...]) -> float:
        if not rows:
            return 0.0
        nearest = torch.tensor(rows)[distance[:, list(rows)].argmin(1)]
        return float(right[torch.arange(len(x)), nearest].mean())

    found = torch.zeros(count, dtype=torch.float64)
    for row in range(count):
        others = [other for other in range(count) if other != row]
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for chosen in itertools.combinations(others, size):
                found[row] += weight * (value((*chosen, row)) - value(chosen))
    return count * found


@pytest.mark.parametrize("classes", [2, 3])
def test_shapr_is_the_shapley_value_by_enumeration(classes: int) -> None:
    problem, x, y = problem_of(8, classes)
    expected = neighbour_shapley(problem, x, y)
    found = audit(problem, ["art.shapr"], (x, y), row_ids=list(range(100, 108))).measures["art.shapr"]
    assert found.status == "measured", found.reason
    assert found.value == pytest.approx(float(expected.max()), abs=1e-5)
    exposed = found.details["most_exposed"]
    for each in exposed:
        assert each["value"] == pytest.approx(float(expected[each["row"] - 100]), abs=1e-5)
        assert each["label"] == int(problem.y[each["row"] - 100])
    assert [each["value"] for each in exposed] == sorted((each["value"] for each in exposed), reverse=True)
    assert found.details["share_above_0"] == pytest.approx(float((expected > 1e-7).double().mean()))
    assert found.direction == "lower_is_safer" and found.kind == "statistic"


def test_the_mean_of_shapr_is_the_accuracy_of_one_neighbour() -> None:
    """Efficiency of Shapley values: that is why the value is not the mean."""
    problem, x, y = problem_of(40, 3)
    found = audit(problem, ["art.shapr"], (x, y)).measures["art.shapr"]
    with torch.no_grad():
        nearest = torch.cdist(problem.outputs(x=x), problem.outputs()).argmin(1)
    accuracy = float((problem.y[nearest] == y).double().mean())
    assert found.details["mean_is_neighbour_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    some = audit(problem, ["art.shapr"], (x, y), rows=7).measures["art.shapr"]
    assert some.details["rows"] == 7 and some.value <= found.value
    assert some.details["mean_is_neighbour_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_shapr_needs_test_rows_and_classes_and_time() -> None:
    problem, x, y = problem_of(8, 3)
    alone = audit(problem, ["art.shapr"]).measures["art.shapr"]
    assert alone.status == "not applicable" and "test rows" in alone.reason
    regression = audit(problem, ["art.shapr", "art.pdtp"], (x, y), classification=False).measures
    assert all(each.status == "not applicable" and "classes" in each.reason for each in regression.values())


def test_dear_shapr_is_skipped_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, x, y = problem_of(8, 3)
    monkeypatch.setattr(art_privacy, "_PAIR", 2 * COST_LIMIT / (8 * len(x)))
    skipped = audit(problem, ["art"], (x, y)).measures["art.shapr"]
    assert skipped.status == "skipped" and "about 10 minutes; name art.shapr" in skipped.reason
    assert audit(problem, ["art.shapr"], (x, y)).measures["art.shapr"].status == "measured"


def binned(logits: Tensor) -> Tensor:
    """Probabilities at the centres of bins of 1 %."""
    return ((logits.softmax(1) * 100).floor().clamp(max=99) + 0.5) / 100


@pytest.mark.parametrize("network", [False, True])
def test_pdtp_is_what_retraining_without_each_row_gives(network: bool) -> None:
    problem, x, y = problem_of(24, 3, network=network, decay=3e-2)
    rows, expected = 6, []
    before = binned(problem.outputs())
    for row in range(rows):
        kept = [other for other in range(problem.rows) if other != row]
        rest = Problem(problem.module(), "cross_entropy", problem.x[kept], problem.y[kept], problem.decay)
        after = binned(problem.outputs(fit(rest, 1e-10).problem.weights))
        expected.append(float(torch.maximum(before / after, after / before).max()))
    found = audit(problem, ["art.pdtp"], (x, y), rows=rows).measures["art.pdtp"]
    assert found.status == "measured" and found.valid, found.reason
    told = {each["row"]: each["value"] for each in found.details["most_exposed"]}
    # A probability within rounding of a bin's edge may fall to either side of it in single precision.
    agree = sum(told[row] == pytest.approx(expected[row], rel=1e-5) for row in range(rows))
    assert agree >= rows - 1 and found.value == pytest.approx(max(told.values()))
    assert found.value > 1.0 and found.details["retrainings_above_tolerance"] == 0
    assert found.details["rows"] == 6 and not found.details["drawn"]


def test_pdtp_is_skipped_by_default_with_an_estimate() -> None:
    problem, x, y = problem_of(80, 3)
    skipped = audit(problem, ["art"], (x, y)).measures["art.pdtp"]
    assert skipped.status == "skipped" and "minute(s) to train without each of 50 rows" in skipped.reason
    assert "name art.pdtp" in skipped.reason


@pytest.mark.parametrize("network", [False, True])
def test_pdtp_estimates_count_the_gradients_that_warm_fits_take(network: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds depend on what else the machine does; the number of gradients does not."""
    problem, _, _ = problem_of(200, 3, network=network)
    for row in range(3):
        kept = [other for other in range(problem.rows) if other != row]
        rest = Problem(problem.module(), "cross_entropy", problem.x[kept], problem.y[kept], problem.decay)
        assert art_privacy._GRADIENTS / 4 < fit(rest, 1e-8, dense_test=False).gradients < 4 * art_privacy._GRADIENTS
    ticks = itertools.count(0.0, 0.5)
    monkeypatch.setattr(art_privacy.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(art_privacy, "_SPEED", math.inf)
    assert art_privacy._retraining_seconds(problem) == pytest.approx(0.5 * art_privacy._GRADIENTS)


def test_pdtp_draws_rows_by_seed_and_leaves_global_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, x, y = problem_of(30, 2)
    monkeypatch.setattr(art_privacy, "_LEFT_OUT", 4)
    state, weights = np.random.get_state()[1].copy(), problem.weights.clone()
    first, again, other = (audit(problem, ["art.pdtp"], (x, y), seed=seed).measures["art.pdtp"] for seed in (1, 1, 2))
    assert first.details["most_exposed"] == again.details["most_exposed"] and first.details["drawn"]
    assert {e["row"] for e in first.details["most_exposed"]} != {e["row"] for e in other.details["most_exposed"]}
    assert np.array_equal(np.random.get_state()[1], state) and torch.equal(problem.weights, weights)


def test_pdtp_says_when_it_cannot_be_trusted_or_computed() -> None:
    problem, x, y = problem_of(20, 3)
    away = problem.at(problem.weights + 0.1)
    found = audit(away, ["art.pdtp"], (x, y), rows=2).measures["art.pdtp"]
    assert not found.valid and "not stationary" in found.reason and found.value is not None
    squared = Problem(problem.module(), "half_squared", problem.x, problem.y, 0.1)
    assert "cross-entropy" in audit(squared, ["art.pdtp"], (x, y)).measures["art.pdtp"].reason
    separable = Problem(problem.module(), "cross_entropy", x, problem.outputs(x=x).argmax(1))
    assert "minimum at infinity" in audit(separable, ["art.pdtp"]).measures["art.pdtp"].reason


def test_a_metric_that_leaves_out_other_rows_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, x, y = problem_of(20, 3)

    def reordered(target, extra, x, y, indexes, num_iter):
        extra.fit(np.delete(x, indexes[1], 0), np.delete(y, indexes[1], 0))

    monkeypatch.setattr("art.metrics.PDTP", reordered)
    found = audit(problem, ["art.pdtp"], (x, y), rows=3).measures["art.pdtp"]
    assert found.status == "not applicable" and "RuntimeError: the metric asked for" in found.reason
