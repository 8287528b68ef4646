"""Shared fixtures: seeded small problems, fitted once per session."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

from poisonaudit.problem import Problem
from poisonaudit.training import fit

# A failure must come back when the test is run again, alone or beside others: no draw is left to the clock.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Iterator[None]:
    """Seeds anew: what a fixture shared by many tests draws may not depend on which of them runs first."""
    _seed()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    _seed()
    return (yield)


class ToyNet(nn.Module):
    """f(x) = w1 w2 x at w = (1, 2): section 5.1 of Wang, Wang and Ban (2025)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.second = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first * self.second * x


class LinearRows(nn.Module):
    """f(x) = w . x, scalar output."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w


def mlp(widths: list[int], activation: type[nn.Module] = nn.Tanh, seed: int = 0) -> nn.Sequential:
    """A float64 MLP with seeded default initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            layers += [nn.Linear(before, after)] + ([activation()] if index < len(widths) - 2 else [])
        return nn.Sequential(*layers).double().eval()


def digits_rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[:count] / 16.0), torch.tensor(y[:count])


@pytest.fixture(scope="session")
def toy() -> Problem:
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    return Problem(ToyNet(), "half_squared", x, 2 * x)


@pytest.fixture(scope="session")
def digits_tanh() -> Problem:
    """The tight minimum of a tanh MLP on 300 digits, decay 1e-3."""
    x, y = digits_rows(300)
    fitted = fit(Problem(mlp([64, 12, 10]), "cross_entropy", x, y, decay=1e-3), seed=0)
    assert fitted.converged, fitted.reason
    return fitted.problem
