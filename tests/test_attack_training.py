"""Crafting through the owner's own training: each step judged where that training ends, on seeds of its own."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from conftest import digits_rows
from torch import nn

from poisonaudit import Problem, craft, fit, retrain
from poisonaudit.attack import Budget, CraftState, FlipPrediction, Membership, Poison, TargetWeights
from poisonaudit.attack.baselines import run_baseline
from poisonaudit.attack.ensemble import training_seeds
from poisonaudit.attack.first_step import DAMPINGS
from poisonaudit.data import load_data
from poisonaudit.errors import InputRefused, PoisonAuditError, UsageError
from poisonaudit.verify import MinibatchTrainer, loose_trainer


class Stopped(Exception):
    """Raised by a test to interrupt crafting."""


BUDGET = Budget(radius=0.2, rows=8, box=(0.0, 1.0))
# Stops long before a minimum, as owners do.
OWNER = loose_trainer(epochs=25)
STEPS = 4


@pytest.fixture(scope="module")
def net() -> Problem:
    """A ReLU network, whose minima lie on kinks."""
    x, y = digits_rows(160)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)).double()
    return fit(Problem(model, "cross_entropy", x, y, decay=1e-3), 1e-4, dense_test=False).problem


def flip(problem: Problem) -> FlipPrediction:
    """A test digit, wanted as the next class."""
    data = load_data("digits", limit=160)
    return FlipPrediction(data.x_test[2].double(), int(data.y_test[2] + 1) % 10)


@pytest.fixture(scope="module")
def poison(net: Problem) -> Poison:
    return craft(net, flip(net), BUDGET, steps=STEPS, trainer=OWNER, solutions=2)


def mean_margin(net: Problem, poison: Poison | None, seeds: range | list[int]) -> float:
    rows = net.x if poison is None else net.x + poison.perturbation(net)
    goal = flip(net).bind(net)
    return statistics.fmean(goal.margin(OWNER(net.with_data(rows), seed)) for seed in seeds)


def test_every_step_is_judged_by_the_owners_training(net: Problem, poison: Poison) -> None:
    seeds = training_seeds(2, 0)
    goal = flip(net).bind(net)

    def value(rows: torch.Tensor) -> float:
        return statistics.fmean(goal.value(OWNER(net.with_data(rows), seed)) for seed in seeds)

    reached = [line["retrained_objective"] for line in poison.history]
    assert reached[0] == pytest.approx(value(net.x), rel=1e-12)
    # What comes back is the best of the steps.
    assert min(reached) == pytest.approx(value(net.x + poison.perturbation(net)), rel=1e-12)
    assert all(line["phi"] is None for line in poison.history)
    torch.testing.assert_close(poison.weights, OWNER(poison.poisoned(net), seeds[0]), rtol=0, atol=0)
    assert any(note.startswith("crafted through the owner's training, from 2 seeds") for note in poison.notes)
    # From two seeds: clean, a first step with each damping, and the steps; the rest is products.
    trained = 2 * (1 + len(DAMPINGS) + STEPS) * OWNER.epochs
    assert poison.gradients == trained + 2 * poison.products


def test_the_damping_is_the_one_whose_first_step_trains_best(net: Problem, poison: Poison) -> None:
    def stop(state: CraftState) -> None:
        raise Stopped(state)

    options: dict[str, Any] = {"steps": STEPS, "trainer": OWNER, "solutions": 2, "on_step": stop}
    reached = {}
    for damping in DAMPINGS:
        with pytest.raises(Stopped) as stopped:
            craft(net, flip(net), BUDGET, damping=damping, **options)
        reached[damping] = stopped.value.args[0].values[1]
    best = min(reached, key=lambda each: reached[each])
    assert poison.history[1]["retrained_objective"] == pytest.approx(reached[best], rel=1e-12)
    assert any(f"with H damped by {best:g} of its largest eigenvalue" in note for note in poison.notes)
    # It matters: the worst of them gains less than half of what the best does.
    clean = float(poison.history[0]["retrained_objective"])
    assert clean - max(reached.values()) < 0.5 * (clean - reached[best])


def test_it_moves_fresh_trainings_further_than_random_signs_and_gradient_matching(net: Problem, poison: Poison) -> None:
    fresh = range(50, 55)
    clean, ours = mean_margin(net, None, fresh), mean_margin(net, poison, fresh)
    rivals = [run_baseline(name, net, flip(net), BUDGET, poison.rows) for name in ("random_signs", "gradient_matching")]
    assert ours > clean + 0.8
    assert all(ours > mean_margin(net, rival, fresh) + 0.3 for rival in rivals)
    # The report's own verification says the same.
    seen = retrain(net, poison, fresh=[50, 51], loose=OWNER, tight=False, tolerance=1e-4)
    margins = [run.outcome["margin"] for run in seen.loose]
    assert statistics.fmean(margins) == pytest.approx(mean_margin(net, poison, [50, 51]), rel=1e-9)


def test_an_owner_who_trains_tightly_gives_what_crafting_without_one_gives() -> None:
    x, y = digits_rows(80)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10)).double()
    smooth = fit(Problem(model, "cross_entropy", x, y, decay=1e-2)).problem
    budget = Budget(radius=0.1, rows=8, choice=range(8), box=(0.0, 1.0))

    def tightly(problem: Problem, seed: int) -> torch.Tensor:
        return fit(problem, 1e-9, dense_test=False).problem.weights

    ours = craft(smooth, flip(smooth), budget, steps=4, tolerance=1e-9)
    through = craft(smooth, flip(smooth), budget, steps=4, trainer=tightly, damping=1e-4)
    torch.testing.assert_close(through.delta, ours.delta, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(through.weights, ours.weights, rtol=1e-4, atol=1e-6)


def test_it_repeats_and_goes_on_bit_for_bit(net: Problem, poison: Poison) -> None:
    states: list[CraftState] = []

    def stop_after_two(state: CraftState) -> None:
        states.append(state)
        if state.step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        craft(net, flip(net), BUDGET, steps=STEPS, trainer=OWNER, solutions=2, on_step=stop_after_two)
    kept = CraftState.of(states[-1].tensors(), states[-1].plain())
    resumed = craft(net, flip(net), BUDGET, steps=STEPS, trainer=OWNER, solutions=2, state=kept)
    assert torch.equal(poison.delta, resumed.delta) and torch.equal(poison.rows, resumed.rows)
    assert poison.gradients == resumed.gradients


def test_a_trainer_may_return_a_module_and_distances_are_worked_on_by_slopes(net: Problem) -> None:
    def owner(problem: Problem, seed: int) -> nn.Module:
        return problem.at(OWNER(problem, seed)).module()

    target = TargetWeights(net.weights + 0.1 * torch.ones_like(net.weights))
    crafted = craft(net, target, BUDGET, steps=2, trainer=owner)
    assert bool(crafted.delta.any())
    # It does not tell its passes over the rows, so only products are counted.
    assert crafted.gradients == 2 * crafted.products


def short(problem: Problem, seed: int) -> Any:
    return problem.weights[:-1]


@pytest.mark.parametrize(
    ("given", "refusal", "code"),
    [
        ({"trainer": "own.py:train"}, UsageError, "PA314"),
        ({"trainer": OWNER, "members": 2}, UsageError, "PA367"),
        ({"trainer": OWNER, "outer": "path"}, UsageError, "PA367"),
        ({"trainer": OWNER, "method": "apg"}, UsageError, "PA367"),
        ({"trainer": OWNER, "solutions": 0}, UsageError, "PA341"),
        ({"trainer": OWNER, "solutions": [torch.zeros(3)]}, UsageError, "PA367"),
        ({"trainer": short}, InputRefused, "PA125"),
    ],
)
def test_what_does_not_go_with_a_trainer_is_refused_in_a_line(
    given: dict[str, Any], refusal: type[PoisonAuditError], code: str, net: Problem
) -> None:
    with pytest.raises(refusal) as error:
        craft(net, flip(net), BUDGET, **given)
    assert error.value.code == code and "\n" not in str(error.value)


def test_membership_has_no_training_between_steps(net: Problem) -> None:
    with pytest.raises(UsageError, match="membership"):
        craft(net, Membership(net.weights), BUDGET, trainer=OWNER)


def test_minibatch_trainers_tell_their_passes_over_the_rows() -> None:
    assert MinibatchTrainer("sgd", 7, 32, 0.1).gradients == 7
