"""Moved training rows, where the derivative sends the weights, and where retraining does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poisonaudit.problem import Problem
from poisonaudit.reproduce.bench import Bench
from poisonaudit.reproduce.victim import Victim
from poisonaudit.sensitivity import graphical_derivative
from poisonaudit.training import fit
from poisonaudit.validity import PHI_LIMIT

# A dense Hessian beyond costs more products than any solve.
DENSE = 2_000
# Above this relative error one step does not predict the weights, whatever phi said; the limit for phi itself.
OFF = PHI_LIMIT


@dataclass(frozen=True)
class Moved:
    """Rows K moved by mu, and what became of the weights.

    Attributes:
        rows: positions K.
        stepsize: |mu_k| over |x_k|.
        mu: perturbation, shaped like the training rows.
        estimate: the graphical derivative's minimum-norm element with 1/n in both terms, (p,).
        retrained: weights after warm retraining on the moved rows, (p,).
        facts: how both came about, plain data.
    """

    rows: Tensor
    stepsize: float
    mu: Tensor
    estimate: Tensor
    retrained: Tensor
    facts: Mapping[str, Any]


def chosen_rows(problem: Problem, count: int, seed: int) -> Tensor:
    """`count` positions drawn from all rows, in the order drawn; fewer draws are the first of more."""
    order = torch.randperm(problem.rows, generator=torch.Generator().manual_seed(seed))
    return order[:count].to(problem.device)


def sign_direction(problem: Problem, rows: Tensor) -> Tensor:
    """`sign(grad_x L)` of each row at the present weights, scaled to norm 1, (k, ...)."""
    x = problem.x[rows].clone().requires_grad_(True)
    with torch.enable_grad():
        total = problem.losses(x=x, y=problem.y[rows]).sum()
    (gradient,) = torch.autograd.grad(total, x)
    signs = gradient.sign()
    return signs / row_norms(signs).clamp(min=1.0)


def perturbation(problem: Problem, rows: Tensor, stepsize: float) -> Tensor:
    """`mu_k = stepsize |x_k| s_k / |s_k|` with `s_k = sign(grad_x L_k)` on K, zero elsewhere (table 3).

    The paper writes `stepsize |x| sign(...)`. A sign vector of d entries has norm sqrt(d), so read literally the
    moves would be sqrt(d) times "up to 2 % of the norm of the data"; with the direction scaled to norm 1 they are
    exactly the stepsize.

    Args:
        problem: at the original solution.
        rows: positions K.
        stepsize: a share, 0.002 for 0.2 %.

    Returns:
        mu, shaped like `problem.x`.
    """
    mu = torch.zeros_like(problem.x)
    mu[rows] = stepsize * row_norms(problem.x[rows]) * sign_direction(problem, rows)
    return mu


def row_norms(values: Tensor) -> Tensor:
    """Norm of each row, shaped to multiply rows: (k, 1, ...)."""
    norms = values.flatten(1).norm(dim=1)
    return norms.view(-1, *[1] * (values.dim() - 1))


def estimated(bench: Bench, victim: Victim, rows: Tensor, stepsize: float) -> tuple[Tensor, dict[str, Any]]:
    """The graphical derivative for moved rows, kept as a stage.

    Args:
        bench: where stages are kept.
        victim: at the original solution.
        rows: positions K.
        stepsize: |mu_k| over |x_k|.

    Returns:
        v0 (p,) with 1/n in both terms, and how the solve ended.
    """
    problem = victim.problem

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        mu = perturbation(problem, rows, stepsize)
        method = "auto" if problem.size <= DENSE else "lanczos"
        found = graphical_derivative(problem, mu, method=method, progress=bench.voice)
        facts = {
            "relative_residual": found.relative_residual,
            "phi": found.phi,
            "kernel_dimension": found.kernel_dimension,
            "tolerance": found.tolerance,
            "products": found.products,
            "solve_ended": found.solve.ended,
            "smallest_curvature": found.validity.details.get("smallest_curvature"),
            "largest_curvature": found.validity.details.get("largest_curvature"),
            "valid": found.validity.ok,
            "reasons": list(found.validity.reasons),
        }
        return {"displacement": found.displacement}, facts

    text = f"graphical derivative: {len(rows)} of {problem.rows} rows moved by {stepsize:.1%}"
    kept, facts = bench.kept(f"estimate-{len(rows)}-{stepsize:g}", text, make)
    return kept["displacement"].to(problem.weights), dict(facts)


def retrained(
    bench: Bench, victim: Victim, rows: Tensor, stepsize: float, start: Tensor | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """Warm retraining on moved rows, kept as a stage.

    Args:
        bench: where stages are kept.
        victim: at the original solution.
        rows: positions K.
        stepsize: |mu_k| over |x_k|.
        start: first weights; None for the original solution.

    Returns:
        Weights (p,) and how near to stationary they are.
    """
    problem = victim.problem

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        moved = problem.with_data(problem.x + perturbation(problem, rows, stepsize))
        moved = moved if start is None else moved.at(start)
        reached = fit(moved, victim.tolerance, max_gradients=victim.max_gradients, progress=bench.voice)
        facts = {
            "relative_gradient": reached.relative_gradient,
            "converged": reached.converged,
            "reason": reached.reason,
            "gradients": reached.gradients,
        }
        return {"weights": reached.problem.weights}, facts

    text = f"retraining: {len(rows)} of {problem.rows} rows moved by {stepsize:.1%}"
    kept, facts = bench.kept(f"retrained-{len(rows)}-{stepsize:g}", text, make)
    return kept["weights"].to(problem.weights), dict(facts)


def both(bench: Bench, victim: Victim, rows: Tensor, stepsize: float) -> Moved:
    """Estimate and retraining for the same moved rows."""
    estimate, derivative = estimated(bench, victim, rows, stepsize)
    weights, training = retrained(bench, victim, rows, stepsize)
    mu = perturbation(victim.problem, rows, stepsize)
    return Moved(rows, stepsize, mu, estimate, weights, {"derivative": derivative, "retraining": training})


def loss_on(problem: Problem, weights: Tensor, moved: Moved) -> float:
    """Mean loss of the moved rows at given weights, decay left out: "empirical loss on the perturbed points"."""
    with torch.no_grad():
        x = problem.x[moved.rows] + moved.mu[moved.rows]
        return float(problem.losses(weights, x, problem.y[moved.rows]).mean())


def flags(victim: Victim, cases: Mapping[str, Moved]) -> tuple[str, ...]:
    """Every reason not to trust a column, in words."""
    found = []
    if not victim.facts["converged"]:
        found.append(
            f"the original solution is not stationary: relative gradient {victim.facts['relative_gradient']:.1e}, "
            f"{victim.tolerance:.0e} was wanted ({victim.facts['reason']})"
        )
    for name, case in cases.items():
        training, derivative = case.facts["retraining"], case.facts.get("derivative")
        if not training["converged"]:
            found.append(
                f"{name}: the retrained column is not the truth: relative gradient "
                f"{training['relative_gradient']:.1e}, {victim.tolerance:.0e} was wanted ({training['reason']})"
            )
        if derivative is not None and not derivative["valid"]:
            found.append(f"{name}: the estimate is flagged: {'; '.join(derivative['reasons'])}")
        change = case.retrained - victim.problem.weights
        error = float((case.estimate - change).norm() / change.norm().clamp(min=1e-300))
        if derivative is not None and derivative["valid"] and training["converged"] and error > OFF:
            found.append(
                f"{name}: one linear step is off by {error:.0%} of the retrained change in the weights, although its "
                f"own estimate of that error, phi, is {derivative['phi']:.2f} (curvatures from "
                f"{derivative['smallest_curvature']:.1e} to {derivative['largest_curvature']:.1e})"
            )
    return tuple(found)
