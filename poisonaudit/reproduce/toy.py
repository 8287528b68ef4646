"""Section 5.1 of Wang, Wang and Ban: f(x) = w1 w2 x on two rows, figures 2 and 3."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import vmap

from poisonaudit.problem import Problem
from poisonaudit.reproduce.bench import Bench
from poisonaudit.reproduce.result import Reproduction, Row
from poisonaudit.reproduce.toy_figures import figure_2, figure_3
from poisonaudit.sensitivity import GraphicalDerivative, graphical_derivative, lipschitz_modulus
from poisonaudit.training import fit

PRINTED_MODULUS, PRINTED_RADIUS, PRINTED_BEFORE, PRINTED_AFTER = 0.2, 0.178, 0.4, 0.01
# The paper's x^p = x + 0.2 (-1, -2).
STEP = 0.2
BALL = 0.2
MEMBERS = 5


class ToyNet(nn.Module):
    """`f(x) = w1 w2 x` at w = (1, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.second = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Rows (n, 1) -> (n, 1)."""
        return self.first * self.second * x


def toy_problem() -> Problem:
    """Rows (1, 2) and (2, 4), half squared loss; our objective is the mean, half of the paper's sum."""
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    return Problem(ToyNet(), "half_squared", x, 2.0 * x)


def summed_loss(problem: Problem, weights: Tensor, x: Tensor) -> float:
    """The paper's eq. 15: the sum of both rows' losses, twice our mean."""
    return float(problem.losses(weights, x).sum())


def nearest_on(product: float, point: Tensor) -> Tensor:
    """Nearest weights with `w1 w2 = product > 0` in the positive quadrant, by Newton on the Lagrange condition.

    `w = point + t grad(w1 w2)` gives `w1^2 - w1 a = w2^2 - w2 b` for point (a, b) and w2 = product / w1.

    Args:
        product: of the two weights.
        point: (2,), in the positive quadrant.

    Returns:
        The nearest point, (2,).
    """
    first, a, b = float(point[0]), float(point[0]), float(point[1])
    for _ in range(100):
        second = product / first
        value = first * (first - a) - second * (second - b)
        slope = 2.0 * first - a + (2.0 * second - b) * second / first
        step = value / slope
        first -= step
        if abs(step) <= 1e-15 * abs(first):
            break
    return torch.tensor([first, product / first], dtype=torch.float64)


def five_members(derivative: GraphicalDerivative) -> Tensor:
    """Five estimated solutions in the ball of radius 0.2 around w, evenly spaced on the line `w + v0 + ker H`.

    Each is what a solve started at a point of that line's direction converges to.

    Args:
        derivative: of the toy problem.

    Returns:
        Weights (5, 2).
    """
    reach = 0.95 * math.sqrt(BALL**2 - derivative.distance**2)
    along = derivative.members(1, 1.0)[0] - derivative.displacement
    starts = torch.linspace(-reach, reach, MEMBERS, dtype=torch.float64) * along[:, None]
    return derivative.solution_set.member(starts).T


def wang_toy(bench: Bench) -> Reproduction:
    """Figures 2 and 3: the two-weight network, its true and its estimated solution sets."""
    begun = time.perf_counter()
    bench.voice.stage("the toy network")
    problem = toy_problem()
    origin, mu = problem.weights, -STEP * problem.x
    poisoned = problem.x + mu
    modulus = lipschitz_modulus(problem)
    mean = graphical_derivative(problem, mu)
    paper = graphical_derivative(problem, mu, scaling="paper")
    members = five_members(mean)
    retrained = fit(problem.with_data(poisoned), 1e-12).problem.weights
    product = 2.0 / (1.0 - STEP)
    nearest = nearest_on(product, origin)
    size = float(mu.norm())
    radius = modulus.value * size
    before = summed_loss(problem, origin, poisoned)
    after = {
        "mean": summed_loss(problem, origin + mean.displacement, poisoned),
        "paper": summed_loss(problem, origin + paper.displacement, poisoned),
        "retrained": summed_loss(problem, retrained, poisoned),
    }
    losses = [summed_loss(problem, member, poisoned) for member in members]
    least = float((nearest - origin).norm())
    distances = [float((nearest_on(product, member) - member).norm()) for member in members]
    rows = (
        Row("Lipschitz modulus kappa", PRINTED_MODULUS, modulus.value, modulus.value, None, "the paper's 0.2 is 0.4"),
        Row("radius kappa |x - x^p|", PRINTED_RADIUS, radius, radius, least, "retrained: distance to the true set"),
        Row("v, first weight", None, *_entries(mean, paper, retrained - origin, 0)),
        Row("v, second weight", None, *_entries(mean, paper, retrained - origin, 1)),
        Row("sum of losses on x^p at the original w", PRINTED_BEFORE, before, before, None),
        Row(
            "sum of losses on x^p at w + v",
            PRINTED_AFTER,
            after["mean"],
            after["paper"],
            after["retrained"],
            'the paper says "around 0.01"',
        ),
        Row("largest of the five estimated solutions", PRINTED_AFTER, max(losses), max(losses), None, "sum of losses"),
        Row("their largest distance to the true set S(x^p)", None, max(distances), max(distances), 0.0),
    )
    return Reproduction(
        name="wang-toy",
        title="Section 5.1, figures 2 and 3: the toy network f(x) = w1 w2 x",
        rows=rows,
        notes=_notes(radius, least, size),
        flags=() if mean.validity.ok else tuple(mean.validity.reasons),
        pictures=(
            figure_2(origin, product, radius, nearest),
            figure_3(origin, product, members, _grid_of(problem, poisoned), before, losses),
        ),
        settings={"rows": [[1.0, 2.0], [2.0, 4.0]], "mu": mu.reshape(-1).tolist(), "loss": "half_squared"},
        details={
            "modulus_lower": modulus.lower,
            "modulus_upper": modulus.upper,
            "modulus_finite": modulus.finite,
            "kernel_dimension": mean.kernel_dimension,
            "phi": mean.phi,
            "members": members.tolist(),
            "member_losses": losses,
            "member_distances": distances,
            "nearest_true_solution": nearest.tolist(),
            "retrained": retrained.tolist(),
        },
        seed=bench.settings.seed,
        seconds=time.perf_counter() - begun,
    )


def _entries(
    mean: GraphicalDerivative, paper: GraphicalDerivative, change: Tensor, index: int
) -> tuple[float, float, float]:
    return float(mean.displacement[index]), float(paper.displacement[index]), float(change[index])


def _grid_of(problem: Problem, x: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The poisoned sum of losses over the weights that figure 3 shows."""
    first, second = np.linspace(0.7, 1.6, 91), np.linspace(1.6, 2.5, 91)
    points = torch.tensor(np.stack(np.meshgrid(first, second), axis=-1).reshape(-1, 2))
    values = vmap(lambda weights: problem.losses(weights, x).sum())(points)
    return first, second, values.detach().numpy().reshape(91, 91)


def _notes(radius: float, least: float, size: float) -> tuple[str, ...]:
    return (
        f"kappa is 0.4, not the printed 0.2. The printed radius 0.178 confirms it: |x - x^p| = {size:.4f} and "
        f"0.4 x {size:.4f} = {radius:.4f}, while 0.2 x {size:.4f} = {0.2 * size:.4f}.",
        f"The expanded set S(x) + {radius:.4f} B does not contain the nearest true solution, which is {least:.4f} "
        "away: kappa bounds the move to first order only, and one linear step under-covers.",
        "Losses here are the paper's sum over both rows (eq. 15). This toolkit's objective is the mean, half of it: "
        "0.2 before and 0.006083 after. kappa and v do not depend on that factor.",
        "Both rows are moved, so |K| = n and both scalings agree.",
        "The retrained solution is where training from w = (1, 2) on x^p ends, one point of the curve w1 w2 = 2.5.",
    )
