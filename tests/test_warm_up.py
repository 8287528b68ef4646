"""Batch normalisation and dropout: trained in train mode, then frozen, and fitted in eval mode."""

from __future__ import annotations

import pytest
import torch
from conftest import digits_rows
from torch import nn

from poisonaudit import Problem, fit, graphical_derivative
from poisonaudit.losses import resolve_loss
from poisonaudit.training import with_statistics
from poisonaudit.warm_up import in_statistics_of, needs_warm_up, warm_up


def network(*, affine: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4, affine=affine), nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(36, 10)).double().eval()


def problem(rows: int = 60) -> Problem:
    x, y = digits_rows(rows)
    return Problem(network(), "cross_entropy", x, y, 1e-2)


@pytest.fixture(scope="module")
def fitted() -> Problem:
    reached = fit(problem(), start="fresh", seed=1)
    assert reached.converged
    return reached.problem


def test_statistics_are_those_of_the_rows(fitted: Problem) -> None:
    """Frozen at the means that the layer saw at the end of training in train mode, one plain average over the rows."""
    start = problem()
    loss, _ = resolve_loss("cross_entropy", start.outputs(), start.y)
    module = warm_up(network(), loss, start.x, start.y, 1e-2, seed=3)
    assert not module.training and int(module[2].num_batches_tracked) == 1
    seen = module[1](module[0](start.x))
    assert torch.allclose(module[2].running_mean, seen.mean((0, 2, 3)), rtol=0, atol=1e-12)
    assert torch.allclose(module[2].running_var, seen.transpose(0, 1).flatten(1).var(1), rtol=1e-12)
    assert module[2].momentum == 0.1
    assert not torch.equal(fitted.module()[2].running_mean, torch.zeros(4).double())


def test_a_fit_goes_on_in_eval_mode_at_frozen_statistics(fitted: Problem) -> None:
    again = fit(fitted)
    assert torch.equal(again.problem.module()[2].running_mean, fitted.module()[2].running_mean)
    assert float((again.problem.weights - fitted.weights).norm()) < 1e-8 * float(fitted.weights.norm())
    # Retraining holds what the graphical derivative says, as on any other network.
    mu = torch.zeros_like(fitted.x)
    mu[0] = 1e-4 * torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    change = fit(fitted.with_data(fitted.x + mu)).problem.weights - fitted.weights
    step = graphical_derivative(fitted, mu)
    assert float((step.displacement - change).norm()) < 1e-2 * float(change.norm())


def test_fresh_fits_are_told_in_the_statistics_that_are_there(fitted: Problem) -> None:
    fresh = fit(fitted, start="fresh", seed=5)
    assert fresh.converged
    before, after = fitted.module()[2], fresh.problem.module()[2]
    assert torch.equal(before.running_mean, after.running_mean) and torch.equal(before.running_var, after.running_var)
    # So weights alone carry the result.
    assert torch.equal(fitted.at(fresh.problem.weights).outputs(), fresh.problem.outputs())


def test_rewriting_statistics_keeps_the_function() -> None:
    x, _ = digits_rows(20)
    first, second = network(), network()
    generator = torch.Generator().manual_seed(2)
    for net in (first, second):
        with torch.no_grad():
            net[2].running_mean.copy_(torch.randn(4, generator=generator, dtype=torch.float64))
            net[2].running_var.copy_(torch.rand(4, generator=generator, dtype=torch.float64) + 0.5)
            net[2].weight.copy_(torch.randn(4, generator=generator, dtype=torch.float64))
    rewritten = in_statistics_of(first, second)
    assert torch.allclose(rewritten(x), second(x), rtol=0, atol=1e-13)
    assert torch.equal(rewritten[2].running_var, first[2].running_var)
    assert not torch.equal(second[2].running_var, first[2].running_var)
    fixed = in_statistics_of(network(affine=False), network(affine=False))
    assert torch.equal(fixed[2].running_mean, torch.zeros(4).double())


def test_who_needs_it() -> None:
    untouched, plain = network(), nn.Sequential(nn.Linear(2, 2))
    dropping = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    assert needs_warm_up(untouched, fresh=False) and needs_warm_up(untouched, fresh=True)
    assert not needs_warm_up(plain, fresh=True)
    assert needs_warm_up(dropping, fresh=True) and not needs_warm_up(dropping, fresh=False)
    with torch.no_grad():
        untouched[2].running_mean.fill_(0.1)
    assert not needs_warm_up(untouched, fresh=False)
    settled = Problem(untouched, "cross_entropy", *digits_rows(20), 1e-2)
    assert with_statistics(settled) is settled


def test_it_repeats_bit_for_bit_and_leaves_the_global_generator_alone() -> None:
    start = problem()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second = (with_statistics(start, seed=4) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(first.module()[2].running_mean, second.module()[2].running_mean)
