"""Reproductions: the toy network against closed forms, tables against retraining."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from conftest import digits_rows, mlp
from scipy.optimize import minimize_scalar

from poisonaudit.problem import Problem
from poisonaudit.reproduce import REPRODUCTIONS, Bench, Reproduction, Settings
from poisonaudit.reproduce.landscape import filter_normalised, flat_part
from poisonaudit.reproduce.moved import Moved, chosen_rows, estimated, flags, perturbation
from poisonaudit.reproduce.toy import nearest_on
from poisonaudit.reproduce.victim import make_victim, resolve
from poisonaudit.reproduce.writing import picture_file, render_csv, render_html, render_markdown
from poisonaudit.sensitivity import graphical_derivative
from poisonaudit.training import fit

# A tanh network whose minima are tight and quickly found.
SMALL = Settings(data="digits", model="mlp:64-8-10?activation=tanh", limit=40, decay=1e-3, quick=True)


def number(result: Reproduction, label: str, column: str) -> float:
    (row,) = [row for row in result.rows if row.label == label]
    value = getattr(row, column)
    assert value is not None, (label, column)
    return float(value)


@pytest.fixture(scope="module")
def toy_result() -> Reproduction:
    return REPRODUCTIONS["wang-toy"](Bench())


@pytest.fixture(scope="module")
def small() -> Problem:
    x, y = digits_rows(40)
    return fit(Problem(mlp([64, 8, 10]), "cross_entropy", x, y, decay=1e-3), 1e-11).problem


@pytest.mark.parametrize(
    ("label", "column", "expected"),
    [
        ("Lipschitz modulus kappa", "printed", 0.2),
        ("Lipschitz modulus kappa", "ours_mean", 0.4),
        ("radius kappa |x - x^p|", "ours_mean", 0.4 * 0.2 * math.sqrt(5)),
        ("v, first weight", "ours_mean", 0.16),
        ("v, second weight", "ours_paper", 0.08),
        ("sum of losses on x^p at the original w", "ours_mean", 0.4),
        # residual 2 - 0.8 * 1.16 * 2.08 on the first row, twice that on the second
        ("sum of losses on x^p at w + v", "ours_mean", 2.5 * (2 - 0.8 * 1.16 * 2.08) ** 2),
        ("sum of losses on x^p at w + v", "retrained", 0.0),
    ],
)
def test_toy_numbers_are_the_closed_forms(toy_result: Reproduction, label: str, column: str, expected: float) -> None:
    assert number(toy_result, label, column) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_toy_members_lie_on_the_tangent_line_within_the_ball(toy_result: Reproduction) -> None:
    members = torch.tensor(toy_result.details["members"], dtype=torch.float64)
    origin, along = torch.tensor([1.0, 2.0]).double(), torch.tensor([2.0, 1.0]).double()
    assert members.shape == (5, 2)
    assert torch.allclose((members - origin) @ along, torch.full((5,), 0.16 * 2 + 0.08).double(), atol=1e-12)
    assert float((members - origin).norm(dim=1).max()) < 0.2
    assert float(torch.pdist(members).min()) > 0.01
    losses = [2.5 * (2 - 0.8 * float(a * b)) ** 2 for a, b in members]
    assert toy_result.details["member_losses"] == pytest.approx(losses)


def test_nearest_solution_of_the_toy_against_a_search(toy_result: Reproduction) -> None:
    found = minimize_scalar(
        lambda a: (a - 1) ** 2 + (2.5 / a - 2) ** 2, bounds=(0.9, 1.6), method="bounded", options={"xatol": 1e-12}
    )
    assert number(toy_result, "radius kappa |x - x^p|", "retrained") == pytest.approx(math.sqrt(found.fun), rel=1e-7)
    assert number(toy_result, "radius kappa |x - x^p|", "retrained") > 0.4 * 0.2 * math.sqrt(5)
    point = nearest_on(2.5, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert float(point[0]) == pytest.approx(found.x, rel=1e-5)


@pytest.mark.parametrize("stepsize", [0.002, 0.02])
def test_moves_are_the_stated_share_of_a_rows_norm_along_the_gradients_signs(small: Problem, stepsize: float) -> None:
    rows = chosen_rows(small, 5, seed=3)
    mu = perturbation(small, rows, stepsize)
    norms = small.x.norm(dim=1)
    moved = mu.norm(dim=1)
    assert torch.allclose(moved[rows], stepsize * norms[rows])
    assert int((moved > 0).sum()) == 5
    x = small.x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(small.losses(x=x).sum(), x)
    assert torch.equal(mu[rows].sign(), gradient[rows].sign())
    assert torch.equal(chosen_rows(small, 1, seed=3), rows[:1])


def test_flat_directions_leave_every_output_where_it_is(small: Problem) -> None:
    problem = Problem(small.module(), "cross_entropy", small.x[:20], small.y[:20], small.decay)
    draws = torch.randn(problem.size, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flat = flat_part(problem, draws)
    jacobian = torch.func.jacrev(problem.outputs)(problem.weights).reshape(-1, problem.size)
    _, singular, right = torch.linalg.svd(jacobian, full_matrices=False)
    right = right[singular > 1e-7 * singular[0]]
    assert torch.allclose(flat, draws - right.T @ (right @ draws), atol=1e-8)
    assert float(flat.norm()) > 0.5 * float(draws.norm())


@pytest.fixture(scope="module")
def tables() -> dict[str, Reproduction]:
    return {name: REPRODUCTIONS[f"wang-{name}"](Bench(SMALL)) for name in ("table1", "table2", "table3")}


def test_tables_are_unflagged_and_complete(tables: dict[str, Reproduction]) -> None:
    for result in tables.values():
        assert result.flags == ()
        body = result.to_json()
        assert body["schema"] == "poisonaudit/reproduction/1" and body["inputs"].keys() == {"digits"}
        assert all(math.isfinite(value) for row in result.rows for value in row.numbers if value is not None)
    assert [row.printed for row in tables["table1"].rows] == [None, 0.0041, 1.9e-5, None, 0.0045, 6.2e-5]


def test_the_derivative_is_what_retraining_does_and_the_papers_scaling_is_not(tables: dict[str, Reproduction]) -> None:
    for told in ("one row", "10 rows"):
        label = f"{told}: loss after the move, estimated solution"
        true = number(tables["table1"], label, "retrained")
        assert number(tables["table1"], label, "ours_mean") == pytest.approx(true, rel=0.01)
        before = number(tables["table1"], f"{told}: loss after the move, original solution", "ours_mean")
        assert before - number(tables["table1"], label, "ours_paper") > 3 * (before - true) > 0
    label = "|estimate - retrained change| / |retrained change|"
    assert number(tables["table2"], label, "ours_mean") < 0.1
    assert number(tables["table2"], label, "ours_paper") == pytest.approx(3.0, rel=0.1)
    assert number(tables["table2"], "length of the estimate over the retrained change", "ours_mean") == pytest.approx(
        1.0, rel=0.1
    )
    assert number(tables["table2"], "cosine of the estimate with the retrained change", "ours_mean") > 0.995


def test_first_order_errors_grow_with_the_move(tables: dict[str, Reproduction]) -> None:
    errors = [
        number(tables["table3"], row.label, "ours_mean")
        for row in tables["table3"].rows
        if row.label.endswith("|retrained change|")
    ]
    assert len(errors) == 4 and errors == sorted(errors)
    assert errors[1] / errors[0] == pytest.approx(2.5, rel=0.2)


def test_the_papers_column_is_the_librarys_paper_scaling() -> None:
    victim = make_victim(Bench(SMALL))
    rows = chosen_rows(victim.problem, 10, 0)
    mu = perturbation(victim.problem, rows, 0.002)
    mean, paper = (graphical_derivative(victim.problem, mu, scaling=name) for name in ("mean", "paper"))
    assert torch.allclose(paper.displacement, 4.0 * mean.displacement, rtol=1e-9)


def test_figure4_marks_every_solution_on_both_planes() -> None:
    result = REPRODUCTIONS["wang-figure4"](Bench(SMALL))
    assert result.flags == () and len(result.pictures) == 2
    places = result.details["points"]["solutions"]
    assert places["original"] == [0.0, 0.0]
    # Members are the estimate plus flat directions, so their first coordinate differs from 1 only by what is not
    # orthogonal to the estimate in them.
    assert places["1/|K|"][0] == pytest.approx(2.0)
    assert places["retrained"][0] == pytest.approx(1.0, abs=0.1)
    # The decay, and what the curvature of the network itself adds where residuals are left.
    assert all(0 < value < 20 * 1e-3 for value in result.details["members_curvature"])
    assert {f"estimated {index}" for index in range(1, 6)} <= places.keys()
    before, after = (
        number(result, f"J on the moved data, {name} solution", "ours_mean") for name in ("original", "estimated")
    )
    assert after < before
    assert number(result, "J on the moved data, estimated solution", "retrained") <= after * (1 + 1e-12)


def test_filter_normalised_directions_have_the_filters_norms(small: Problem) -> None:
    direction = small.parameters(filter_normalised(small, 0))
    for name, value in small.parameters(small.weights).items():
        if value.dim() < 2:
            assert not bool(direction[name].any())
        else:
            assert torch.allclose(direction[name].flatten(1).norm(dim=1), value.flatten(1).norm(dim=1))
    assert not torch.equal(filter_normalised(small, 0), filter_normalised(small, 1))


def test_resolved_settings() -> None:
    assert resolve(Settings(root="somewhere"))["model"] == "resnet56"
    assert resolve(Settings(root="somewhere"))["data"] == "cifar10:somewhere"
    assert resolve(Settings(root="somewhere"))["limit"] == 1000
    assert resolve(Settings())["data"] == "digits?size=32"
    assert [resolve(item)["decay"] for item in (Settings(), Settings(root="x"), Settings(decay=0.1))] == [
        5e-3,
        5e-4,
        0.1,
    ]


def test_every_form_is_self_contained(toy_result: Reproduction) -> None:
    page = render_html(toy_result, "poisonaudit reproduce <wang-toy>")
    assert "&lt;wang-toy&gt;" in page and "default-src &#39;none&#39;" in page
    for word in ("http://", "https://", "<script", "src=", "@import"):
        assert word not in page
    for picture in toy_result.pictures:
        root = ElementTree.fromstring(picture_file(picture))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert picture.svg in page
    assert render_csv(toy_result).splitlines()[0] == "quantity,printed,ours_mean,ours_paper,retrained,remark"
    assert "0.4" in render_markdown(toy_result)


def test_a_step_that_retraining_contradicts_is_flagged_whatever_phi_says() -> None:
    victim = make_victim(Bench(SMALL))
    problem = victim.problem
    rows = chosen_rows(problem, 10, 0)
    step, derivative = estimated(Bench(), victim, rows, 0.002)
    training = {"converged": True, "relative_gradient": 1e-10, "reason": ""}
    facts = {"derivative": derivative, "retraining": training}
    mu = perturbation(problem, rows, 0.002)
    near, far = (Moved(rows, 0.002, mu, step, problem.weights + scale * step, facts) for scale in (1.1, 5.0))
    assert flags(victim, {"near": near}) == ()
    (told,) = flags(victim, {"near": near, "far": far})
    assert told.startswith("far: one linear step is off by 80%") and "phi" in told
