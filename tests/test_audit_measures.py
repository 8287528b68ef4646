"""The audit's numbers against dense float64 linear algebra, and every way a measure can end."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from poisonaudit.audit import MEASURES, Context, audit, bugs, known_measures, select_measures, solution
from poisonaudit.audit import runner as _runner
from poisonaudit.audit.facts import FACTS, measured
from poisonaudit.errors import InputRefused, NumericalFailure, UsageError
from poisonaudit.problem import Problem
from poisonaudit.results import AuditResult
from poisonaudit.sensitivity import curvature
from poisonaudit.tangent import tangent_sensitivity
from poisonaudit.training import fit

CHEAP = ["stationarity", "solution", "tangent", "lipschitz", "weight_noise"]


def data(count: int, features: int = 4, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (count,), generator=generator)


def net(*widths: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after, dtype=torch.float64), activation()]
    return nn.Sequential(*layers[:-1]).eval()


@pytest.fixture(scope="module")
def logistic() -> Problem:
    x, y = data(30)
    return fit(Problem(net(4, 3), "cross_entropy", x, y, decay=1e-2)).problem


@pytest.fixture(scope="module")
def scored(logistic: Problem) -> AuditResult:
    return audit(logistic, CHEAP, data(12, seed=5), model="m", data="d", seed=3)


def dense_map(problem: Problem) -> Tensor:
    """`H^-1 B` of a strict minimum, (p, n, d), by autograd alone."""
    hessian = torch.autograd.functional.hessian(problem.objective, problem.weights)

    def residual(x: Tensor) -> Tensor:
        point = problem.weights.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(problem.objective(point, x), point, create_graph=True)
        return gradient

    mixed = torch.autograd.functional.jacobian(residual, problem.x)
    return torch.linalg.solve(hessian, mixed.flatten(1)).reshape(mixed.shape)


def test_solution_measures_equal_dense_linear_algebra(logistic: Problem, scored: AuditResult) -> None:
    moved = dense_map(logistic)
    kappa = float(torch.linalg.matrix_norm(moved.flatten(1), 2))
    rows = torch.linalg.matrix_norm(moved.permute(1, 0, 2), 2)
    found = scored.measures
    assert found["solution.modulus"].value == pytest.approx(kappa, rel=1e-8)
    assert found["solution.row_modulus_max"].value == pytest.approx(float(rows.max()), rel=1e-8)
    budget = 0.01 * float(logistic.weights.norm()) / kappa
    assert found["solution.poison_budget"].value == pytest.approx(budget, rel=1e-8)
    assert all(found[name].valid for name in found if name.startswith("solution"))
    assert found["solution.modulus"].kind == "exact" and found["solution.modulus"].details["kernel_dimension"] == 0
    fragile = found["solution.row_modulus_max"].details["fragile"]
    assert [item["row"] for item in fragile] == rows.argsort(descending=True)[:12].tolist()
    assert fragile[0]["value"] == pytest.approx(float(rows.max()), rel=1e-8)
    assert fragile[0]["label"] == int(logistic.y[fragile[0]["row"]]) and fragile[0]["picture"] is None


def test_theorem_measures_equal_their_formula(logistic: Problem, scored: AuditResult) -> None:
    """f = W x + b: df/dW maps W' to W' x, whose pseudo-inverse applied to W has operator norm |W|_2 / |x|."""
    weight = logistic.parameters(logistic.weights)["0.weight"]
    factors = torch.linalg.matrix_norm(weight, 2) / logistic.x.norm(dim=1)
    assert scored.measures["solution.theorem2_max"].value == pytest.approx(float(factors.max()), rel=1e-8)
    assert scored.measures["solution.theorem3"].value == pytest.approx(30**0.5 * float(factors.max()), rel=1e-8)
    assert scored.measures["solution.theorem3"].kind == "statistic"
    few = audit(logistic, ["solution"], rows=7)
    assert few.measures["solution.theorem3"].value == pytest.approx(7**0.5 * float(factors[:7].max()), rel=1e-8)
    moved = dense_map(logistic)[:, :7]
    assert few.measures["solution.modulus"].value == pytest.approx(
        float(torch.linalg.matrix_norm(moved.flatten(1), 2)), rel=1e-8
    )
    assert few.measures["solution.row_modulus_max"].details["rows"] == 7


def test_other_families(logistic: Problem, scored: AuditResult) -> None:
    found, x = scored.measures, data(12, seed=5)[0]
    model = logistic.module()
    weight = model[0].weight.detach()
    assert found["tangent.sensitivity"].value == pytest.approx(float(tangent_sensitivity(model, x).mean()), rel=1e-12)
    assert found["tangent.sensitivity"].value == pytest.approx(12.0)  # a linear map: one per (output, input)
    assert found["tangent.sensitivity_normalised"].value == pytest.approx(float(weight.square().sum()), rel=1e-12)
    for norm, exact in (("linf", weight.abs().sum(1).max()), ("l1", weight.abs().sum(0).max())):
        upper, lower = found[f"lipschitz.upper.{norm}"], found[f"lipschitz.lower.{norm}"]
        assert lower.value == pytest.approx(float(exact), rel=1e-12) and upper.value >= float(exact)
        assert upper.value == pytest.approx(float(exact), rel=1e-10) and (upper.kind, lower.kind) == ("upper", "lower")
        assert {"k_star", "k1", "k3", "k4", "k5", "winner", "certified", "lower"} <= set(upper.details)
    with torch.no_grad():
        values = model(x)
    exact = ((0.1 * weight.norm() * x.norm(dim=1) / 4**0.5 / values.norm(dim=1)).square().mean()).sqrt()
    noise = found["weight_noise.rms"]
    assert noise.details["first_order_formula"] == pytest.approx(float(exact), rel=1e-12)
    assert abs(noise.value - float(exact)) < 3 * noise.details["standard_error"]
    condition = (x.norm(dim=1) * weight.norm() / values.norm(dim=1)).median()
    assert found["weight_noise.condition_relative_max"].value == pytest.approx(float(condition), rel=1e-12)
    assert 0 <= found["weight_noise.flip_rate"].value <= 1
    assert found["stationarity.relative_gradient"].value < 1e-10


def test_result_is_plain_json_complete_and_repeatable(logistic: Problem, scored: AuditResult) -> None:
    body = json.loads(json.dumps(scored.to_json(), allow_nan=False))
    again = AuditResult.from_json(body)
    assert (again.model, again.data, again.seed) == ("m", "d", 3)
    assert list(again.measures) == [name for name in MEASURES if not name.startswith("art.")]
    assert set(FACTS) == set(MEASURES)
    for name, measure in scored.measures.items():
        assert measure.unit and measure.status == "measured" and measure.seconds >= 0
        assert (measure.unit, measure.direction) == (FACTS[name].unit, FACTS[name].direction)
    repeat = audit(logistic, CHEAP, data(12, seed=5), seed=3)
    assert [m.value for m in repeat.measures.values()] == [m.value for m in scored.measures.values()]
    assert list(scored.to_frame()["id"]) == list(scored.measures)


def test_selection() -> None:
    assert select_measures(None) == (list(MEASURES), frozenset())
    chosen, named = select_measures(["lipschitz.upper", "solution.modulus", "tangent."])
    assert chosen == [
        "solution.modulus",
        "tangent.sensitivity",
        "tangent.sensitivity_normalised",
        "tangent.bound_path",
        "tangent.bound_theorem31",
        "tangent.bound_theorem32",
        "lipschitz.upper.linf",
        "lipschitz.upper.l1",
    ]
    assert named == {"solution.modulus"}
    assert select_measures("weight_noise.rms, stationarity")[0] == [
        "stationarity.relative_gradient",
        "weight_noise.rms",
    ]
    for wrong, near in (("solution.modulos", "solution.modulus"), ("lipshitz", "lipschitz"), ("tan", "tangent")):
        with pytest.raises(UsageError, match=f"PA301.*Did you mean.*'{near}'"):
            select_measures([wrong])
    with pytest.raises(UsageError, match="PA322"):
        select_measures([" "])


def test_far_from_stationary_is_flagged_and_still_reported() -> None:
    x, y = data(20)
    found = audit(
        Problem(net(4, 3), "cross_entropy", x, y, decay=1e-2), ["solution", "stationarity", "tangent"]
    ).measures
    for name in found:
        if name.startswith("solution"):
            assert not found[name].valid and "not stationary" in found[name].reason
            assert found[name].value is not None and found[name].status == "measured"
    assert found["tangent.sensitivity"].valid
    assert "not stationary" in found["stationarity.relative_gradient"].reason
    assert found["stationarity.relative_gradient"].valid


def test_a_minimum_at_infinity_is_refused() -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([0, 1])
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.float64)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-9.0, 9.0], [9.0, -9.0]]))
    found = audit(Problem(model, "cross_entropy", x, y), ["solution"]).measures
    assert len(found) == 5
    for measure in found.values():
        assert measure.value is None and not measure.valid and measure.reason.startswith("refused")
        assert measure.status == "not applicable"


def test_infinite_modulus_of_duplicated_rows() -> None:
    """Two copies of (1, 0, 0), y = 1, w = (1, 2, .5): the formula says 1.62, the truth is infinite."""
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 0.5]]))
    x = torch.tensor([[1.0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    problem = Problem(model, "half_squared", x, torch.ones(2, 1, dtype=torch.float64))
    result = audit(problem, ["solution"], classification=False)
    kappa, budget = result.measures["solution.modulus"], result.measures["solution.poison_budget"]
    assert kappa.value is None and kappa.infinite and kappa.number == math.inf and kappa.valid
    assert kappa.details["truncated"] == pytest.approx(1.62, abs=0.01) and kappa.kind == "estimate"
    assert budget.value == 0.0 and budget.reason
    rows = result.measures["solution.row_modulus_max"]
    assert not rows.valid and rows.reason.startswith("a lower estimate only")
    stored = AuditResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert stored.measures["solution.modulus"].number == math.inf


def test_regression_has_no_class_measures() -> None:
    x, _ = data(20)
    y = x @ torch.tensor([1.0, -2, 0.5, 0], dtype=torch.float64)[:, None]
    problem = fit(Problem(net(4, 1), "half_squared", x, y, decay=1e-3)).problem
    found = audit(problem, ["weight_noise", "art"], classification=False).measures
    for name in ("weight_noise.flip_rate", "art.clever", "art.loss_sensitivity", "art.empirical_robustness"):
        assert found[name].status == "not applicable" and not found[name].valid and found[name].value is None
    assert (
        found["weight_noise.rms"].status == "measured" and "training rows" in found["weight_noise.rms"].details["rows"]
    )


def test_a_net_a_family_cannot_read_is_not_applicable() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)).double().eval()
    x, y = data(10, 9, 2)
    problem = fit(Problem(model, "cross_entropy", x.reshape(-1, 1, 3, 3), y, decay=0.1)).problem
    found = audit(problem, [*CHEAP]).measures
    assert found["solution.modulus"].status == found["tangent.sensitivity"].status == "measured"
    assert found["lipschitz.upper.linf"].value >= found["lipschitz.lower.linf"].value > 0
    for name in ("rms", "flip_rate", "condition_relative_max"):
        assert found[f"weight_noise.{name}"].status == "measured" and found[f"weight_noise.{name}"].valid
    bound = found["tangent.bound_path"]
    assert bound.status == "not applicable" and bound.reason.startswith("not applicable: ")
    assert bound.details["code"].startswith("PA1")
    picture = found["solution.row_modulus_max"].details["fragile"][0]["picture"]
    assert picture["shape"] == [3, 3] and len(picture["pixels"]) == 9 and all(type(p) is int for p in picture["pixels"])


def test_a_model_of_an_unusual_kind_loses_only_the_measures_that_need_more(toy: Problem) -> None:
    """The toy net of the source paper: no weight matrix, no layers; its modulus is 0.4."""
    found = audit(toy, CHEAP, classification=False).measures
    assert found["solution.modulus"].value == pytest.approx(0.4, abs=1e-9)
    assert found["solution.poison_budget"].value == pytest.approx(0.01 * 5**0.5 / 0.4, rel=1e-9)
    assert found["tangent.sensitivity"].status == "measured"
    assert found["lipschitz.upper.l1"].value >= found["lipschitz.lower.l1"].value > 0
    for name in ("solution.theorem2_max", "solution.theorem3", "weight_noise.rms"):
        assert found[name].status == "not applicable"


def test_dear_measures_are_skipped_unless_named(logistic: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solution, "DENSE_LIMIT", 5)
    monkeypatch.setattr(solution, "_PRODUCTS_OF_A_SOLVE", 1e9)
    found = audit(logistic, ["solution", "solution.poison_budget"]).measures
    for name in ("solution.modulus", "solution.row_modulus_max"):
        assert found[name].status == "skipped" and found[name].reason.startswith("skipped: cost")
        assert f"name {name}" in found[name].reason
    assert found["solution.poison_budget"].status == found["solution.theorem2_max"].status == "measured"
    monkeypatch.setattr(solution, "_BLOCK_ENTRIES", 5)
    assert audit(logistic, ["solution.theorem2_max", "solution"]).measures["solution.theorem3"].status == "skipped"


def test_solution_measures_by_products_equal_the_dense_ones(logistic: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["solution.modulus", "solution.row_modulus_max", "solution.poison_budget"]
    dense = audit(logistic, names).measures
    for module in (solution, curvature):
        monkeypatch.setattr(module, "DENSE_LIMIT", 5)
    by_products = audit(logistic.at(logistic.weights), names).measures
    for name in names:
        assert by_products[name].valid and by_products[name].kind == "estimate"
        assert by_products[name].value == pytest.approx(dense[name].value, rel=1e-6)


@pytest.mark.parametrize(
    "trouble",
    [
        NumericalFailure("PA403", "did not converge. Reason. Action."),
        torch.linalg.LinAlgError("the algorithm failed"),
        ZeroDivisionError("division by zero"),
    ],
    ids=lambda trouble: type(trouble).__name__,
)
def test_numerical_failures_stop_nothing(
    logistic: Problem, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    calls = []

    def fails(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise trouble

    monkeypatch.setattr(solution, "lipschitz_modulus", fails)
    found = audit(logistic, ["solution", "tangent"]).measures
    for name in ("solution.modulus", "solution.poison_budget"):
        assert found[name].status == "failed" and not found[name].valid and found[name].reason
    assert found["solution.row_modulus_max"].status == found["tangent.sensitivity"].status == "measured"
    if isinstance(trouble, NumericalFailure):
        assert len(calls) == 1  # shared work that failed is not tried again


@pytest.mark.parametrize("bug", [TypeError("no way"), KeyError("no way"), RuntimeError("no way")])
def test_a_bug_in_one_measure_is_marked_and_loses_no_other(
    logistic: Problem, monkeypatch: pytest.MonkeyPatch, bug: Exception
) -> None:
    calls = []

    def fails(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise bug

    monkeypatch.setattr(solution, "lipschitz_modulus", fails)
    result = audit(logistic, ["solution"])
    for name in ("solution.modulus", "solution.poison_budget"):
        found = result.measures[name]
        assert found.status == "failed" and not found.valid and found.value is None
        assert found.details["bug"] and "test_audit_measures.py" in found.details["where"]
        assert found.reason.startswith(f"failed: {type(bug).__name__}: ") and "no way" in found.reason
    assert {measure.id for measure in bugs(result)} == {"solution.modulus", "solution.poison_budget"}
    assert result.measures["solution.row_modulus_max"].status == "measured" and len(calls) == 1


def test_an_interrupt_still_ends_the_audit(logistic: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(solution, "lipschitz_modulus", interrupted)
    with pytest.raises(KeyboardInterrupt):
        audit(logistic, ["solution.modulus"])


def test_other_packages_add_measures(logistic: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "mine.score"

        def load(self) -> Any:
            return lambda context: measured("mine.score", float(context.problem.rows))

    monkeypatch.setattr("poisonaudit.registry.entry_points", lambda group: [Point()])
    assert known_measures()[-1] == "mine.score"
    found = audit(logistic, ["mine", "stationarity"]).measures
    assert list(found) == ["stationarity.relative_gradient", "mine.score"] and found["mine.score"].value == 30
    context = Context(logistic)
    assert _runner.run_measure("mine.nan", lambda _: measured("mine.nan", math.nan), context).status == "failed"
    from poisonaudit.results import Measure

    plain = Measure("mine.inf", math.inf, "", "estimate", "neutral")
    assert _runner.run_measure("mine.inf", lambda _: plain, context).infinite
    nothing: Any = lambda _: None  # noqa: E731
    assert "returned a NoneType" in _runner.run_measure("mine.none", nothing, context).reason


def test_fragile_rows_carry_ids_pictures_and_features() -> None:
    x, y = data(20, 4, 2, seed=2)
    problem = fit(Problem(net(4, 2), "cross_entropy", x, y, decay=0.1)).problem
    known: dict[str, Any] = {"row_ids": list(range(100, 120)), "image_shape": (1, 2, 2), "feature_names": "abcd"}
    box = (torch.zeros(4, dtype=torch.float64), torch.full((4,), 2.0, dtype=torch.float64))
    found = audit(problem, ["solution.row_modulus_max"], box=box, **known).measures["solution.row_modulus_max"]
    assert len(found.details["fragile"]) == 12
    first = found.details["fragile"][0]
    assert first["row"] == 100 + first["position"] and first["features"] is None
    pixels = (x[first["position"]] / 2 * 255).round().long().tolist()
    assert first["picture"] == {"shape": [2, 2], "pixels": pixels}
    table = audit(problem, ["solution.row_modulus_max"], feature_names=["a", "b", "c", "d"])
    first = table.measures["solution.row_modulus_max"].details["fragile"][0]
    assert first["picture"] is None
    assert first["features"] == dict(zip("abcd", x[first["position"]].tolist(), strict=True))
    with pytest.raises(UsageError, match="PA323.*3 row ids"):
        audit(problem, ["tangent"], row_ids=[1, 2, 3])


def test_progress_and_refusals(logistic: Problem) -> None:
    seen: list[tuple[str, float | None]] = []
    audit(logistic, ["tangent"], progress=lambda text, part: seen.append((text, part)))
    assert seen[0] == ("audit: tangent.sensitivity", 0.0) and seen[-1][1] == 1.0
    for rows in (0, -1, 2.5, True):
        with pytest.raises(UsageError, match="PA323"):
            audit(logistic, ["tangent"], rows=rows)
    x, y = data(5)
    for test, code in (
        ((x[:, :3], y), "PA211"),
        ((x, y[:3]), "PA211"),
        ((x.float(), y), "PA121"),
        ((x / 0, y), "PA210"),
        ((x, y + 3), "PA212"),
    ):
        with pytest.raises(InputRefused) as caught:
            audit(logistic, ["tangent"], test)
        assert caught.value.code == code
