"""Several solutions at once, members of a solution set, other outer steps, other rows, and runs that go on."""

from __future__ import annotations

import pytest
import torch
from conftest import digits_rows
from torch import Tensor, nn

from poisonaudit import Problem, craft, fit, row_moduli
from poisonaudit.attack import Budget, CraftState, FlipPrediction, FlipPredictions, TargetWeights, choose_rows
from poisonaudit.attack.ensemble import JointGoal, JointMap, MemberGoal, over_members
from poisonaudit.attack.steps import slope_in_inputs
from poisonaudit.errors import InputRefused, UsageError


@pytest.fixture(scope="module")
def net() -> Problem:
    x, y = digits_rows(80)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10)).double()
    return fit(Problem(model, "cross_entropy", x, y, decay=1e-2)).problem


@pytest.fixture(scope="module")
def others(net: Problem) -> list[Tensor]:
    return [fit(net, seed=seed, start="fresh").problem.weights for seed in (11, 12)]


BUDGET = Budget(radius=0.2, rows=8, box=(0.0, 1.0))


def flip(problem: Problem) -> FlipPrediction:
    return FlipPrediction(problem.x[3] * 0.9, int(problem.y[3] + 1) % 10, "cross_entropy")


@pytest.mark.parametrize("aggregate", ["mean", "worst"])
def test_the_joint_slope_is_the_derivative_after_retraining_every_solution(
    aggregate: str, net: Problem, others: list[Tensor]
) -> None:
    problems = [net, *(net.at(weights) for weights in others)]
    goals = [flip(net).bind(each) for each in problems]
    slope, _ = slope_in_inputs(problems, goals, aggregate)
    mu = torch.randn(net.x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def retrained(size: float) -> float:
        values = [
            goal.value(fit(each.with_data(net.x + size * mu), 1e-12).problem.weights)
            for goal, each in zip(goals, problems, strict=True)
        ]
        return max(values) if aggregate == "worst" else sum(values) / len(values)

    h = 1e-5
    measured = (retrained(h) - retrained(-h)) / (2 * h)
    assert float((slope * mu).sum()) == pytest.approx(measured, rel=1e-3)


def test_the_joint_map_stacks_the_maps_and_its_adjoint_is_its_transpose(net: Problem, others: list[Tensor]) -> None:
    rows = torch.tensor([1, 5, 9])
    joint = JointMap([net, net.at(others[0])], rows)
    mu = torch.randn(3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = torch.randn(2 * net.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float(joint.step(mu).dot(u)) == pytest.approx(float((joint.adjoint(u) * mu).sum()), rel=1e-9)
    assert joint.weights.shape == (2 * net.size,) and joint.products == 4
    goals = [flip(net).bind(net), flip(net).bind(net.at(others[0]))]
    goal = JointGoal(goals, "mean")
    assert goal.value(joint.weights) == pytest.approx(
        (goals[0].value(net.weights) + goals[1].value(others[0])) / 2, rel=1e-12
    )
    h = 1e-6
    difference = (goal.value(joint.weights + h * u) - goal.value(joint.weights - h * u)) / (2 * h)
    assert float(goal.gradient(joint.weights).dot(u)) == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize("method", ["corner", "apg"])
def test_one_poison_for_three_solutions_improves_them_on_average(
    method: str, net: Problem, others: list[Tensor]
) -> None:
    poison = craft(net, flip(net), BUDGET, solutions=others, method=method, steps=2)
    values = []
    for weights in (net.weights, *others):
        clean = net.at(weights)
        goal = flip(net).bind(clean)
        poisoned = clean.with_data(net.x + poison.perturbation(net))
        values.append((goal.value(weights), goal.value(fit(poisoned).problem.weights)))
    before, after = (sum(each) / 3 for each in zip(*values, strict=True))
    assert after < before - 0.1
    assert poison.history[0]["retrained_objective"] == pytest.approx(before, rel=1e-9)


def test_solutions_are_trained_from_seeds_of_their_own(net: Problem) -> None:
    poison = craft(net, flip(net), BUDGET, solutions=2, steps=1, aggregate="worst")
    again = craft(net, flip(net), BUDGET, solutions=2, steps=1, aggregate="worst")
    assert torch.equal(poison.delta, again.delta) and poison.gradients > 0
    alone = craft(net, flip(net), BUDGET, steps=1)
    assert not torch.equal(poison.delta, alone.delta)


def test_members_of_a_manifold_of_solutions_share_the_goal() -> None:
    # Two weights, one row, no decay: w1 + w2 = 1 is the solution set, its kernel direction (1, -1).
    model = nn.Linear(2, 1, bias=False).double()
    problem = Problem(model, "half_squared", torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 1).double())
    problem = problem.at(torch.tensor([0.5, 0.5], dtype=torch.float64))
    goal = TargetWeights(torch.tensor([1.5, 0.5], dtype=torch.float64)).bind(problem)
    over = over_members(problem, goal, 4, 0.3, "mean", 0)
    assert isinstance(over, MemberGoal) and over.offsets.shape == (5, 2) and over.convex
    length = 0.3 * float(problem.weights.norm())
    torch.testing.assert_close(over.offsets[1:].norm(dim=1), torch.full((4,), length, dtype=torch.float64))
    torch.testing.assert_close(over.offsets.sum(1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    # The mean of 1/2 |w + o - t|^2 over members, in closed form.
    apart = problem.weights + over.offsets - torch.tensor([1.5, 0.5], dtype=torch.float64)
    assert over.value(problem.weights) == pytest.approx(float(0.5 * apart.square().sum(1).mean()), rel=1e-12)
    torch.testing.assert_close(over.gradient(problem.weights), apart.mean(0))
    worst = over_members(problem, goal, 4, 0.3, "worst", 0)
    assert worst.value(problem.weights) == pytest.approx(float(0.5 * apart.square().sum(1).max()), rel=1e-12)


def test_members_that_change_nothing_are_said_to(net: Problem) -> None:
    told = craft(net, flip(net), BUDGET, members=3, steps=1).notes
    assert any(note.startswith("members is 3 and changes nothing: H has no kernel here") for note in told)
    assert not any("members" in note for note in craft(net, flip(net), BUDGET, steps=1).notes)


def test_members_change_nothing_where_the_solution_is_unique(net: Problem) -> None:
    goal = flip(net).bind(net)
    assert over_members(net, goal, 3, 0.1, "mean", 0) is goal
    one, other = (craft(net, flip(net), BUDGET, members=count, steps=1) for count in (0, 3))
    assert torch.equal(one.delta, other.delta)


def test_following_the_path_ends_where_warm_retraining_does(net: Problem) -> None:
    small = Budget(radius=0.05, rows=8, box=(0.0, 1.0))
    ways = {outer: craft(net, flip(net), small, outer=outer, steps=1, tolerance=1e-9) for outer in ("retrain", "path")}
    torch.testing.assert_close(ways["path"].weights, ways["retrain"].weights, rtol=1e-4, atol=1e-6)
    assert ways["path"].gradients < ways["retrain"].gradients


def test_an_interrupted_run_goes_on_bit_for_bit(net: Problem) -> None:
    states: list[CraftState] = []

    class Stopped(Exception):
        pass

    def stop_after_two(state: CraftState) -> None:
        states.append(state)
        if state.step == 2:
            raise Stopped

    whole = craft(net, flip(net), BUDGET, steps=4, solutions=2)
    with pytest.raises(Stopped):
        craft(net, flip(net), BUDGET, steps=4, solutions=2, on_step=stop_after_two)
    kept = CraftState.of(states[-1].tensors(), states[-1].plain())
    resumed = craft(net, flip(net), BUDGET, steps=4, solutions=2, state=kept)
    assert torch.equal(whole.delta, resumed.delta) and torch.equal(whole.rows, resumed.rows)
    assert [line["retrained_objective"] for line in whole.history] == [
        line["retrained_objective"] for line in resumed.history
    ]
    assert whole.predicted["margin"] == resumed.predicted["margin"]


def test_rows_by_modulus_and_by_class(net: Problem) -> None:
    goal = flip(net).bind(net)
    largest = row_moduli(net, warn=False).sort(descending=True).indices[:6].sort().values
    assert torch.equal(choose_rows(net, goal, Budget(radius=0.1, rows=6, choice="kappa")), largest)
    wanted = int(net.y[3] + 1) % 10
    chosen = choose_rows(net, goal, Budget(radius=0.1, rows=3, choice="class"), seed=1)
    assert set(net.y[chosen].tolist()) == {wanted}
    assert torch.equal(chosen, choose_rows(net, goal, Budget(radius=0.1, rows=3, choice="class"), seed=1))
    named = choose_rows(net, goal, Budget(radius=0.1, rows=3, choice="class", row_class=7))
    assert set(net.y[named].tolist()) == {7}


@pytest.mark.parametrize(
    ("budget", "fact"),
    [
        (Budget(radius=0.1, rows=60, choice="class"), "60 are to be perturbed"),
        (Budget(radius=0.1, rows=1, choice="class", row_class=77), "class 77 has 0 training rows"),
    ],
)
def test_classes_without_enough_rows_are_refused(budget: Budget, fact: str, net: Problem) -> None:
    with pytest.raises(UsageError, match=fact) as error:
        choose_rows(net, flip(net).bind(net), budget)
    assert error.value.code == "PA342"


def test_bad_words_are_refused_in_a_line(net: Problem) -> None:
    several = FlipPredictions(net.x[:2] * 0.9, [1, 2])
    with pytest.raises(UsageError, match="wants none"):
        choose_rows(net, several.bind(net), Budget(radius=0.1, rows=2, choice="class"))
    with pytest.raises(UsageError, match="choice is not 'class'"):
        Budget(radius=0.1, rows=2, row_class=1)
    for given, fact in [
        ({"outer": "walk"}, "outer step"),
        ({"aggregate": "best"}, "aggregate"),
        ({"solutions": 0}, "0 solutions"),
        ({"members": -1}, "members is -1"),
    ]:
        with pytest.raises(UsageError, match=fact):
            craft(net, flip(net), BUDGET, **given)
    with pytest.raises(InputRefused, match="a solution has weights"):
        craft(net, flip(net), BUDGET, solutions=[net.weights[:-1]])
