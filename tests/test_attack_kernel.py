"""Undecayed least squares with fewer rows than weights: which part of a prediction the poisoned data decide."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from poisonaudit import Problem, fit, follow_path, graphical_derivative
from poisonaudit.attack import Budget, Poison, TargetWeights, craft, predict
from poisonaudit.cli.tables import attack_text
from poisonaudit.report import render_html
from poisonaudit.results import AttackResult, finite
from poisonaudit.validity import PHI_LIMIT
from poisonaudit.verify import retrain

ROWS, COLUMNS = 6, 15


def least_squares(decay: float = 0.0) -> tuple[Problem, Tensor]:
    """At a solution that has a kernel part of its own, and a direction in which three rows move."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, COLUMNS, generator=rng, dtype=torch.float64)
    y = torch.randn(ROWS, 1, generator=rng, dtype=torch.float64)
    start = torch.randn(COLUMNS, generator=rng, dtype=torch.float64)
    direction = torch.zeros_like(x)
    direction[:3] = torch.randn(3, COLUMNS, generator=rng, dtype=torch.float64)
    model = nn.Linear(COLUMNS, 1, bias=False).double()
    return fit(Problem(model, "half_squared", x, y, decay).at(start), 1e-13).problem, direction


@pytest.fixture(scope="module")
def case() -> tuple[Problem, Tensor]:
    return least_squares()


def nearest_member(problem: Problem, x: Tensor) -> Tensor:
    """The member of `{w : x w = y}` nearest to the clean weights, in closed form."""
    return problem.weights + torch.linalg.pinv(x) @ (problem.y[:, 0] - x @ problem.weights)


def kernel(x: Tensor) -> Tensor:
    """Projector on the kernel of H = x^T x / n."""
    return torch.eye(COLUMNS, dtype=x.dtype) - torch.linalg.pinv(x) @ x


def test_path_and_warm_retraining_end_in_different_members_of_one_set(case: tuple[Problem, Tensor]) -> None:
    problem, direction = case
    moved = problem.x + 0.3 * direction
    path = follow_path(problem, 0.3 * direction).weights
    warm = fit(problem.with_data(moved), 1e-12).problem.weights
    torch.testing.assert_close(warm, nearest_member(problem, moved), rtol=1e-8, atol=1e-10)
    for member in (path, warm):
        assert float((moved @ member - problem.y[:, 0]).norm()) < 1e-8
    apart, length = path - warm, float((warm - problem.weights).norm())
    # Orthogonal to the kernel they agree to rounding; along it by a fifth of the whole displacement they do not.
    assert float((apart - kernel(moved) @ apart).norm()) < 1e-9 * length
    assert float(apart.norm()) > 0.2 * length


def test_the_kernel_part_of_warm_retraining_is_of_second_order_and_unseen_by_phi(case: tuple[Problem, Tensor]) -> None:
    problem, direction = case
    parts = []
    for size in (0.02, 0.01):
        warm = nearest_member(problem, problem.x + size * direction) - problem.weights
        parts.append(float((kernel(problem.x) @ warm).norm()))
    assert parts[0] / parts[1] == pytest.approx(4.0, rel=0.05)
    mu = 0.3 * direction
    step, warm = graphical_derivative(problem, mu), nearest_member(problem, problem.x + mu) - problem.weights
    error, share = step.displacement - warm, kernel(problem.x)
    inside = float((share @ error).norm() / warm.norm())
    across = float((error - share @ error).norm() / warm.norm())
    assert step.phi is not None and step.phi < PHI_LIMIT and across < 2 * step.phi and inside > 3 * step.phi


def test_other_optimisers_and_seeds_end_in_other_members(case: tuple[Problem, Tensor]) -> None:
    problem, direction = case
    x, y = problem.x + 0.01 * direction, problem.y[:, 0]
    weights = problem.weights.clone().requires_grad_(True)
    adam = torch.optim.Adam([weights], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 3000)
    for _ in range(3000):
        adam.zero_grad()
        (0.5 * (x @ weights - y).square().mean()).backward()
        adam.step()
        schedule.step()
    reached = weights.detach()
    near = nearest_member(problem, x)
    length = float((near - problem.weights).norm())
    assert float((x @ reached - y).norm()) < 1e-6 and float((reached - near).norm()) > 0.1 * length
    fresh = [fit(each, 1e-12, 3, start="fresh").problem.weights for each in (problem, problem.with_data(x))]
    assert float((fresh[1] - fresh[0] - (near - problem.weights)).norm()) > 0.5 * length


@pytest.mark.parametrize(("size", "valid"), [(0.01, True), (0.1, True), (0.6, False)])
def test_predictions_say_what_of_them_the_data_decide(case: tuple[Problem, Tensor], size: float, valid: bool) -> None:
    problem, direction = case
    told, _ = predict(problem, size * direction)
    reached = follow_path(problem, size * direction).weights - problem.weights
    share = float((kernel(problem.x) @ reached).norm() / reached.norm())
    assert told["kernel_share"] == pytest.approx(share, rel=1e-6)
    assert told["phi"] < PHI_LIMIT and told["method"] == "path"
    assert told["valid"] == told["linear"]["valid"] == valid == (share <= PHI_LIMIT)
    (said,) = told["notes"] if valid else told["reasons"]
    assert not (told["reasons"] if valid else told["notes"])
    assert f"kernel of dimension {COLUMNS - ROWS}" in said and f"{share:.0%}" in said
    assert "valid for the displacement orthogonal to the kernel" in said


def test_without_a_kernel_there_is_nothing_to_say() -> None:
    problem, direction = least_squares(decay=0.1)
    told, _ = predict(problem, 0.1 * direction)
    assert told["valid"] and told["notes"] == [] and told["kernel_share"] is None


def test_nothing_moved_is_no_share(case: tuple[Problem, Tensor]) -> None:
    problem, _ = case
    told, _ = predict(problem, torch.zeros_like(problem.x))
    assert told["kernel_share"] == 0.0


def poison_of(problem: Problem, mu: Tensor) -> Poison:
    rows, objective = torch.arange(3), TargetWeights(problem.weights + 0.1)
    predicted, _ = predict(problem, mu, objective)
    return Poison(rows, mu[:3], predicted, (), Budget(radius=1.0, rows=3), objective, problem.weights, 0, 0.0)


def shown(problem: Problem, poison: Poison, tolerance: float) -> tuple[AttackResult, str]:
    retrained = retrain(problem, poison, fresh=1, loose=False, tolerance=tolerance)
    result = AttackResult(
        "kernel", "linear", "noise", {"objective": {"kind": "target_weights"}}, poison.budget.describe(), [0, 1, 2],
        finite(poison.predicted), finite(retrained.to_json()), finite(retrained.control.to_json()),
    )  # fmt: skip
    return result, render_html(result, command="")


def test_the_reservation_is_shown(case: tuple[Problem, Tensor]) -> None:
    problem, direction = case
    result, page = shown(problem, poison_of(problem, 0.01 * direction), 1e-10)
    assert "Prediction: H has a kernel of dimension 9" in page
    assert "prediction: H has a kernel of dimension 9" in attack_text(result)
    assert "already meet the tolerance" not in page


def test_warm_retraining_that_had_nothing_to_do_says_so(case: tuple[Problem, Tensor]) -> None:
    problem, direction = case
    poison = poison_of(problem, 1e-6 * direction)
    loose, tight = retrain(problem, poison, 0, loose=False, tolerance=1e-3), retrain(problem, poison, 0, loose=False)
    assert torch.equal(loose.warm.weights, problem.weights) and loose.warm.converged
    (note,) = loose.remarks
    assert "already meet the tolerance" in note and "warm retraining did not move" in note
    assert f"{loose.warm.relative_gradient:.1e}" in note and loose.summary()["remarks"] == [note]
    assert loose.notes == tight.remarks == () and not torch.equal(tight.warm.weights, problem.weights)
    # A poison of nothing leaves nothing to be trained at any tolerance.
    assert retrain(problem, poison_of(problem, 0 * direction), 0, loose=False, tolerance=1e-3).remarks == ()
    _, page = shown(problem, poison, 1e-3)
    assert "The clean weights already meet the tolerance of retraining" in page


def test_crafted_poisons_carry_the_reservation(case: tuple[Problem, Tensor]) -> None:
    problem, _ = case
    poison = craft(problem, TargetWeights(problem.weights + 0.02), Budget(radius=0.01, rows=2), steps=1)
    assert any("orthogonal to the kernel" in note for note in poison.predicted["notes"])
