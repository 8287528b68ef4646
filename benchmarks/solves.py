"""Damped solves against other libraries: gradients, products, true residual; later right-hand sides; growth."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.timing import interleave, ratios, write
from poisonaudit.operators import Linearisation
from poisonaudit.problem import Problem
from poisonaudit.solvers import KrylovSpace, Solve, block_lanczos, conjugate_gradients, minres

DAMPING = 1e-2
WANTED = 2e-6
LATER = 12
# In single precision its residual does not fall to the wanted one, and it would go on.
PYDVL_ITERATIONS = 60


def trained(hidden: int = 256, rows: int = 1_500, steps: int = 600) -> Problem:
    """MLP 64-hidden-hidden-10 with ReLU on digits after full-batch Adam steps, float32, no decay."""
    data = load_digits()
    x = torch.tensor(data.data[:rows] / 16, dtype=torch.float32)
    y = torch.tensor(data.target[:rows])
    torch.manual_seed(0)
    layers = [nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)]
    model = nn.Sequential(*layers)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return Problem(model, "cross_entropy", x, y)


class Truth:
    """Residuals with products in float64, whatever the solver worked in."""

    def __init__(self, at: Problem) -> None:
        self._kept = Linearisation(at.to(torch.float64))

    def __call__(self, rhs: Tensor, value: Tensor) -> float:
        """Relative residual of the damped system."""
        v = value.double()
        return float((self._kept.hessian(v) + DAMPING * v - rhs.double()).norm() / rhs.double().norm())


def right_hand_sides(at: Problem, count: int) -> list[Tensor]:
    """Normalised B mu, five random rows moved at random in each."""
    kept, found = Linearisation(at), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        mu = torch.zeros_like(at.x)
        rows = torch.randperm(at.rows, generator=generator)[:5]
        mu[rows] = torch.randn(5, *at.x.shape[1:], generator=generator).to(at.dtype)
        rhs = kept.mixed(mu)
        found.append(rhs / rhs.norm())
    return found


def ours(at: Problem, rhs: Tensor) -> dict[str, Callable[[], Solve]]:
    """Our solvers on a linearisation that is there."""
    hessian = Linearisation(at).hessian
    common: dict[str, Any] = {"accuracy": WANTED, "shift": DAMPING}
    return {
        "lanczos": lambda: block_lanczos(hessian, rhs, tolerance=0.0, **common),
        "cg": lambda: conjugate_gradients(hessian, rhs, tolerance=0.0, **common),
        "minres": lambda: minres(hessian, rhs, **common),
    }


def with_curvlinops(at: Problem, rhs: Tensor) -> Callable[[], Tensor] | None:
    """CG of curvlinops on its own Hessian operator; None where it is not installed."""
    try:
        import curvlinops
        from curvlinops.examples import IdentityLinearOperator
    except ImportError:
        return None
    model = at.module().requires_grad_(True)
    weights = list(model.parameters())
    loss = nn.CrossEntropyLoss()
    hessian = curvlinops.HessianLinearOperator(model, loss, weights, [(at.x, at.y)], progressbar=False)
    shift = DAMPING * IdentityLinearOperator([part.shape for part in weights], at.device, at.dtype)
    inverse = curvlinops.CGInverseLinearOperator(hessian + shift, eps=0, tolerance=WANTED, max_iter=2_000)
    return lambda: inverse @ rhs


def with_pydvl(at: Problem, row: int) -> Callable[[], Tensor] | None:
    """CG of pyDVL for the gradient at one row; it takes no other right-hand side. None where it is not installed."""
    try:
        from pydvl.influence.torch import CgInfluence
    except ImportError:
        return None
    model = at.module().requires_grad_(True)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(at.x, at.y), batch_size=at.rows)
    influence = CgInfluence(
        model,
        nn.functional.cross_entropy,
        regularization=DAMPING,
        rtol=WANTED,
        atol=0.0,
        maxiter=PYDVL_ITERATIONS,
        precompute_grad=True,
        warn_on_max_iteration=False,
    ).fit(loader)
    x, y = at.x[row : row + 1], at.y[row : row + 1]
    return lambda: influence.influence_factors(x, y).reshape(-1)


def against_others(dtype: torch.dtype) -> dict[str, Any]:
    """One right-hand side B mu, and one gradient of a row, which every library takes."""
    at = trained().to(dtype)
    truth = Truth(at)
    row = 0
    module = at.module().requires_grad_(True)
    nn.functional.cross_entropy(module(at.x[row : row + 1]), at.y[row : row + 1]).backward()
    gradient = torch.cat([value.grad.reshape(-1) for value in module.parameters() if value.grad is not None])
    result: dict[str, Any] = {}
    for name, rhs in (("B mu of 5 rows", right_hand_sides(at, 1)[0]), ("gradient of one row", gradient)):
        jobs: dict[str, Callable[[], Any]] = {"gradient": at.gradient, "linearise": lambda: Linearisation(at)}
        jobs |= ours(at, rhs)
        others = {"curvlinops cg": with_curvlinops(at, rhs)}
        if name == "gradient of one row":
            others["pyDVL cg"] = with_pydvl(at, row)
        jobs |= {key: job for key, job in others.items() if job is not None}
        seconds = interleave(jobs, repeats=5)
        units = ratios(seconds, "gradient")
        figures: dict[str, Any] = {}
        for key, job in jobs.items():
            figures[key] = {"gradients": units[key]}
            if key in ("gradient", "linearise"):
                continue
            found = job()
            value = found.value if isinstance(found, Solve) else found
            figures[key]["true_residual"] = truth(rhs, value)
            if isinstance(found, Solve):
                figures[key] |= {
                    "residual_in_own_precision": found.relative_residual,
                    "iterations": found.iterations,
                    "products": found.products,
                    "ended": found.ended,
                }
        missing = [key for key, job in others.items() if job is None]
        result[name] = {"figures": figures, "not_installed": missing, "seconds": seconds}
    return result


def later() -> dict[str, Any]:
    """Right-hand sides one after the other at one w, the space kept; and each with a fresh space."""
    at = trained()
    hessian, truth = Linearisation(at).hessian, Truth(at)
    space = KrylovSpace(at.size, torch.finfo(at.dtype).eps)
    kept, fresh, residuals = [], [], []
    for rhs in right_hand_sides(at, LATER):
        settings: dict[str, Any] = {"tolerance": 0.0, "accuracy": WANTED, "shift": DAMPING}
        solve = block_lanczos(hessian, rhs, space=space, **settings)
        kept.append(solve.iterations)
        residuals.append(truth(rhs, solve.value))
        fresh.append(block_lanczos(hessian, rhs, **settings).iterations)
    return {"iterations_space_kept": kept, "iterations_fresh": fresh, "true_residuals": residuals}


def growth() -> list[dict[str, Any]]:
    """Seconds, gradients and products of one solve as n and p grow."""
    found = []
    for hidden, rows in ((64, 1_500), (128, 1_500), (256, 1_500), (512, 1_500), (256, 375), (256, 750)):
        at = trained(hidden, rows)
        rhs = right_hand_sides(at, 1)[0]
        hessian = Linearisation(at).hessian

        def solve(hessian: Callable[[Tensor], Tensor] = hessian, rhs: Tensor = rhs) -> Solve:
            return block_lanczos(hessian, rhs, tolerance=0.0, accuracy=WANTED, shift=DAMPING)

        seconds = interleave({"gradient": at.gradient, "solve": solve}, repeats=5)
        found.append(
            {
                "weights": at.size,
                "rows": rows,
                "products": solve().products,
                "gradients": ratios(seconds, "gradient")["solve"],
                "seconds": sorted(seconds["solve"])[len(seconds["solve"]) // 2],
            }
        )
    return found


def run() -> None:
    """Measure and store."""
    begun = time.perf_counter()
    body = {
        "problem": f"digits, MLP 64-256-256-10, 600 Adam steps; H + {DAMPING} I, residual {WANTED}",
        "one_solve": {"float32": against_others(torch.float32), "float64": against_others(torch.float64)},
        "later_right_hand_sides": later(),
        "growth": growth(),
    }
    print(f"solves: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    write("solves", body)
