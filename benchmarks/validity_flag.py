"""Does the validity flag of one linear step tell good predictions from bad ones? Measured against retraining."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from sklearn import datasets
from torch import Tensor, nn

from benchmarks.timing import write
from poisonaudit import Problem, fit, graphical_derivative

# A prediction is bad where it misses the retrained change by more than this share of that change.
BAD = 0.3
CASES = 24
ROWS = 120


def data(name: str, *, held_out: bool = False) -> tuple[Tensor, Tensor]:
    """The first rows of a bundled data set, or the others; digits in [0, 1], tables standardised by the first."""
    loader = {"digits": datasets.load_digits, "breast_cancer": datasets.load_breast_cancer, "wine": datasets.load_wine}
    x, y = loader[name](return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    first, wanted = torch.tensor(x)[order[:ROWS]], order[ROWS:] if held_out else order[:ROWS]
    rows = torch.tensor(x)[wanted]
    rows = rows / 16 if name == "digits" else (rows - first.mean(0)) / first.std(0)
    return rows, torch.tensor(y)[wanted]


def model(kind: str, inputs: int, classes: int) -> nn.Module:
    """A small float64 network; "cnn" takes 8 x 8 pictures."""
    if kind == "linear":
        return nn.Linear(inputs, classes).double()
    if kind == "cnn":
        layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Tanh(), nn.AvgPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, classes)).double()
    activation = {"tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}[kind]
    return nn.Sequential(nn.Linear(inputs, 8), activation(), nn.Linear(8, classes)).double()


VICTIMS = [
    ("digits", "linear", 1e-2),
    ("digits", "linear", 1e-3),
    ("digits", "tanh", 1e-2),
    ("digits", "tanh", 1e-3),
    ("digits", "gelu", 1e-2),
    ("digits", "cnn", 1e-2),
    ("breast_cancer", "linear", 1e-2),
    ("breast_cancer", "tanh", 1e-2),
    ("wine", "linear", 1e-3),
    ("wine", "silu", 1e-2),
]


def victim(name: str, kind: str, decay: float) -> Problem:
    """A tight minimum.

    Raises:
        RuntimeError: training did not reach it.
    """
    x, y = data(name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = model(kind, x.shape[1], int(y.max()) + 1)
    fitted = fit(Problem(net, "cross_entropy", x, y, decay))
    if not fitted.converged:
        raise RuntimeError(f"{name} {kind}: {fitted.reason}")
    return fitted.problem


def cases(problem: Problem, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Random rows, sizes and directions; every one predicted, then retrained from the trained weights."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        rows = int(torch.randint(1, 21, (1,), generator=generator))
        chosen = torch.randperm(problem.rows, generator=generator)[:rows]
        size = 10 ** (-3 + 2.6 * float(torch.rand(1, generator=generator)))
        direction = torch.randn(rows, problem.x[0].numel(), generator=generator, dtype=torch.float64)
        if float(torch.rand(1, generator=generator)) < 0.5:
            direction = direction.sign()
        mu = torch.zeros_like(problem.x)
        mu[chosen] = (
            size * problem.x[chosen].norm(dim=1, keepdim=True) * direction / direction.norm(dim=1, keepdim=True)
        )
        step = graphical_derivative(problem, mu)
        retrained = fit(problem.with_data(problem.x + mu), tolerance=1e-9)
        change = retrained.problem.weights - problem.weights
        yield {
            "rows": rows,
            "relative_size": size,
            "phi": step.phi,
            "trust_radius": step.trust_radius,
            "length": float(mu.norm()),
            "flagged": not step.validity.ok,
            "error": float((step.displacement - change).norm() / change.norm()),
            "retrained": retrained.converged,
        }


def scores(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Precision and recall of the flag for predictions that miss by more than `BAD` of the true change."""
    kept = [case for case in found if case["retrained"]]
    flagged = [case for case in kept if case["flagged"]]
    bad = [case for case in kept if case["error"] > BAD]
    both = [case for case in flagged if case["error"] > BAD]
    return {
        "cases": len(kept),
        "without_a_retrained_minimum": len(found) - len(kept),
        "share_flagged": len(flagged) / len(kept),
        "share_bad": len(bad) / len(kept),
        "precision": len(both) / len(flagged) if flagged else math.nan,
        "recall": len(both) / len(bad) if bad else math.nan,
    }


def run() -> None:
    """Measure and store every case."""
    found = []
    for index, (name, kind, decay) in enumerate(VICTIMS):
        problem = victim(name, kind, decay)
        mine = [{"victim": f"{name} {kind} {decay:g}", **case} for case in cases(problem, CASES, seed=index)]
        print(mine[0]["victim"], scores(mine), flush=True)
        found += mine
    write("validity_flag", {"bad": f"|step - change| / |change| > {BAD}", **scores(found), "all_cases": found})
