"""Does the solution map jump? Tried on the map itself, by following paths, and on its curvature row by row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.operators import Linearisation
from poisonaudit.problem import Problem
from poisonaudit.sensitivity.curvature import KernelCurvature
from poisonaudit.sensitivity.kernel_response import kernel_response
from poisonaudit.sensitivity.path import follow_path
from poisonaudit.solvers.extremal import Progress
from poisonaudit.training import fit

# Beyond this many times kappa a displacement is not explained by kappa.
_MANY_TIMES = 5.0
_GROWS = 1.5
# Growth that all directions show together is a jump's 1 / size, whatever kappa is.
_DOUBLES = 1.75


@dataclass(frozen=True)
class DisplacementTest:
    """What the followed paths showed.

    Attributes:
        bounded: no sign of a jump.
        ratios: `|w^p - w| / |mu|` for each direction at the size delta and at delta / 2; infinite where the path
            was lost.
        reason: in words.
    """

    bounded: bool
    ratios: tuple[tuple[float, float], ...]
    reason: str


def displacement_test(
    problem: Problem,
    rows: Tensor,
    kappa: float,
    *,
    directions: int = 3,
    relative_size: float = 1e-3,
    seed: int = 0,
) -> DisplacementTest:
    """Compare actual displacements per unit of perturbation with kappa at two sizes.

    A bounded map keeps `|w^p - w| / |mu|` near or below kappa at both; a jump shows as growth while the size
    halves, as many times kappa, or as a corrector that runs away. The rank tolerance is kept far below the squared
    size, so that curvature the perturbation creates counts as curvature.

    Args:
        problem: a minimum whose Hessian has a kernel.
        rows: positions that may move.
        kappa: the formula's value.
        directions: random perturbations tried.
        relative_size: delta / |x| over the moved rows.
        seed: of the directions.

    Returns:
        Verdict and ratios. Random directions can miss a jump; they do not invent one.
    """
    if problem.dtype != torch.float64:
        # The second size squared is below what single precision resolves.
        problem = fit(problem.to(torch.float64), tolerance=1e-9).problem
    generator = torch.Generator(device="cpu").manual_seed(seed)
    length = relative_size * float(problem.x[rows].norm())
    ratios: list[tuple[float, float]] = []
    for _ in range(directions):
        draw = torch.randn(problem.x[rows].shape, generator=generator, dtype=torch.float64).to(problem.x)
        mu = torch.zeros_like(problem.x)
        mu[rows] = length * draw / draw.norm()
        ratios.append((_ratio(problem, mu, relative_size), _ratio(problem, 0.5 * mu, relative_size)))
    for whole, half in ratios:
        if max(whole, half) == float("inf"):
            return DisplacementTest(False, tuple(ratios), "infinite or unstable: the corrector runs away nearby")
        if half > _GROWS * whole and half > kappa:
            return DisplacementTest(
                False,
                tuple(ratios),
                f"infinite or unstable: displacement per unit grows from {whole:.3g} to {half:.3g} as the "
                f"perturbation halves (formula {kappa:.3g})",
            )
        if max(whole, half) > _MANY_TIMES * kappa:
            return DisplacementTest(
                False,
                tuple(ratios),
                f"infinite or unstable: displacement per unit {max(whole, half):.3g} is many times the formula's "
                f"{kappa:.3g}",
            )
    if all(half > _DOUBLES * whole > 0 for whole, half in ratios):
        grown = ", ".join(f"{whole:.3g} to {half:.3g}" for whole, half in ratios)
        return DisplacementTest(
            False,
            tuple(ratios),
            f"infinite or unstable: displacement per unit doubles as perturbations halve ({grown})",
        )
    return DisplacementTest(
        True,
        tuple(ratios),
        f"H has a kernel, but displacements stay below {_MANY_TIMES:g} kappa at two sizes",
    )


def _ratio(problem: Problem, mu: Tensor, relative_size: float) -> float:
    """`|w^p - w| / |mu|`, infinite where the path is lost."""
    path = follow_path(problem, mu, steps=1, tolerance=1e-9, rank_tolerance=1e-4 * relative_size**2)
    if not path.converged:
        return float("inf")
    return float((path.weights - problem.weights).norm() / mu.norm())


def rank_changes(
    problem: Problem,
    solver: KernelCurvature,
    rows: Tensor,
    *,
    most: int = 400,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Tensor, str]:
    """Which rows change the rank of H when they move: `kernel_response` along a random direction of each.

    A row by itself shows what a perturbation of all rows hides behind the few that move the weights most. More than
    `most` rows are tried in groups; a group that shows something is taken apart.

    Args:
        problem: a minimum whose Hessian has a kernel.
        solver: its curvature.
        rows: positions (k,).
        most: groups at the start.
        seed: of the directions.
        progress: called with a message and a fraction.

    Returns:
        Boolean (k,), and the first reason found, empty where there is none.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    draws = torch.randn(problem.x[rows].shape, generator=generator, dtype=torch.float64).to(problem.x)
    changing = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    size = -(-len(rows) // most)
    groups = list(torch.arange(len(rows), device=rows.device).split(size))
    reason, done = "", 0
    while groups:
        group = groups.pop(0)
        done += 1
        if progress is not None and done % 50 == 0:
            progress(f"rank test {done}", done / (done + len(groups)))
        found = _response(problem, solver, rows[group], draws[group])
        if found and len(group) > 1:
            groups += list(group.split(1))
        elif found:
            changing[group], reason = True, reason or f"row {int(rows[group])}: {found}"
    return changing, reason


def _response(problem: Problem, solver: KernelCurvature, rows: Tensor, draw: Tensor) -> str:
    mu = torch.zeros_like(problem.x)
    mu[rows] = draw
    # Not `linearise`: passes per row would stay in the problem's cache.
    step = solver.inverse(-Linearisation(problem, rows).mixed(draw))
    return kernel_response(problem, solver, mu, step).reason
