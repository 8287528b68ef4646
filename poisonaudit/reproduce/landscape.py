"""Figure 4 of Wang, Wang and Ban: the loss landscape of the poisoned network around its solutions."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poisonaudit.operators import dense_jacobian, linearise
from poisonaudit.problem import Problem
from poisonaudit.reproduce.bench import Bench
from poisonaudit.reproduce.landscape_figures import Plane, surface_and_contours
from poisonaudit.reproduce.moved import DENSE, Moved, chosen_rows, estimated, flags, loss_on, perturbation, retrained
from poisonaudit.reproduce.result import Reproduction, Row
from poisonaudit.reproduce.tables import STEP, common_notes, over
from poisonaudit.reproduce.victim import Victim, make_victim
from poisonaudit.sensitivity.curvature import solver_for

MEMBERS = 5
_GRID, _GRID_IF_QUICK = 21, 9
_FLAT = 3.0
_JACOBIAN_ENTRIES = 80_000_000


def wang_figure4(bench: Bench) -> Reproduction:
    """Figure 4: loss landscape of the poisoned network with the original, estimated and retrained solutions."""
    begun = time.perf_counter()
    victim = make_victim(bench)
    problem, seed = victim.problem, bench.settings.seed
    picked = chosen_rows(problem, problem.rows // 2, seed)
    estimate, derivative = estimated(bench, victim, picked, STEP)
    weights, training = retrained(bench, victim, picked, STEP)
    mu = perturbation(problem, picked, STEP)
    case = Moved(picked, STEP, mu, estimate, weights, {"derivative": derivative, "retraining": training})
    poisoned = problem.with_data(problem.x + mu)
    flat, curvatures = _flat_directions(bench, victim, float(estimate.norm()))
    members = problem.weights + estimate + flat
    factor = problem.rows / len(picked)
    points = {
        "original": problem.weights,
        **{f"estimated {index}": member for index, member in enumerate(members, 1)},
        "1/|K|": problem.weights + factor * estimate,
        "retrained": weights,
    }
    count = _GRID_IF_QUICK if bench.settings.quick else _GRID
    planes = (
        _random_plane(poisoned, points, count, seed, bench),
        _solution_plane(poisoned, points, estimate, flat, count, bench),
    )
    change = weights - problem.weights
    moved_loss = loss_on(problem, problem.weights, case)
    losses = [float(poisoned.objective(member)) for member in members]
    rows = (
        _objective("J on the moved data, original solution", poisoned, problem.weights),
        Row(
            "J on the moved data, estimated solution",
            None,
            float(poisoned.objective(problem.weights + estimate)),
            float(poisoned.objective(problem.weights + factor * estimate)),
            float(poisoned.objective(weights)),
        ),
        Row(f"J, largest of {MEMBERS} members of the estimated set", None, max(losses)),
        Row("loss on the moved rows, original solution", None, moved_loss, moved_loss),
        Row(
            "loss on the moved rows, estimated solution",
            None,
            loss_on(problem, problem.weights + estimate, case),
            loss_on(problem, problem.weights + factor * estimate, case),
            loss_on(problem, weights, case),
        ),
        Row(
            "|w1 - w2| / |w1|, original against estimated",
            None,
            float(estimate.norm() / problem.weights.norm()),
            float(factor * estimate.norm() / problem.weights.norm()),
            float(change.norm() / problem.weights.norm()),
        ),
        Row(
            "|estimate - retrained change| / |retrained change|",
            None,
            over(estimate - change, change),
            over(factor * estimate - change, change),
            0.0,
        ),
    )
    notes = (
        *common_notes(victim, len(picked)),
        f"{len(picked)} of {problem.rows} rows are moved by {STEP:.1%} of their norm; the paper moves 500 of 1,000. "
        "It prints no numbers for this figure.",
        f"At a strict minimum the estimated set is one point. The {MEMBERS} members are opened by directions in which "
        f"the data do not bend J: its curvature along them is {min(curvatures):.1e} to {max(curvatures):.1e}, the "
        f"decay {problem.decay:g} and what the residuals add. Their distance from the one point is the length of the "
        "estimated step. The paper gets different solutions from solves that it starts or stops differently.",
        "Random directions are scaled filter by filter to the weights' norms (Li et al., 2018); weights of one "
        "dimension, biases and normalisation, are held. On that scale all solutions lie within a fraction of a grid "
        "cell, so the second plane goes through the original and the estimated solution and one flat direction.",
    )
    return Reproduction(
        name="wang-figure4",
        title="Figure 4: loss landscape of the poisoned network",
        rows=rows,
        notes=notes,
        flags=flags(victim, {"figure 4": case}),
        pictures=tuple(surface_and_contours(plane) for plane in planes),
        settings=victim.settings,
        details={
            "original": dict(victim.facts),
            "case": {"rows": picked.tolist(), **case.facts},
            "members_curvature": curvatures,
            "members_objective": losses,
            "points": {plane.key: {name: list(place) for name, place in plane.points.items()} for plane in planes},
        },
        inputs=victim.inputs,
        seed=seed,
        seconds=time.perf_counter() - begun,
    )


def filter_normalised(problem: Problem, seed: int) -> Tensor:
    """A random direction with each filter scaled to the norm of the weights' filter (Li et al., 2018), (p,).

    A filter is a slice along the first axis of a weight of two dimensions or more; the others get 0.

    Args:
        problem: gives the weights and their shapes.
        seed: of the draw.

    Returns:
        The direction.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for value in problem.parameters(problem.weights).values():
        draw = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        if value.dim() < 2:
            parts.append(torch.zeros_like(value).reshape(-1))
            continue
        norms = value.flatten(1).norm(dim=1) / draw.flatten(1).norm(dim=1).clamp(min=1e-12)
        parts.append((draw * norms.view(-1, *[1] * (value.dim() - 1))).reshape(-1))
    return torch.cat(parts)


def _objective(label: str, poisoned: Problem, weights: Tensor) -> Row:
    value = float(poisoned.objective(weights))
    return Row(label, None, value, value)


def _flat_directions(bench: Bench, victim: Victim, length: float) -> tuple[Tensor, list[float]]:
    """Directions along which the data do not bend J, (members, p) of the given length, and J's curvature along each.

    They are random draws without the part that moves any output to first order (see `flat_part`).

    Returns:
        The directions and the curvatures.
    """
    problem = victim.problem

    def make() -> tuple[dict[str, Tensor], dict[str, list[float]]]:
        generator = torch.Generator().manual_seed(bench.settings.seed)
        draws = torch.randn(problem.size, MEMBERS, generator=generator, dtype=torch.float64).to(problem.weights)
        kernel = flat_part(problem, draws)
        flat = (length * kernel / kernel.norm(dim=0).clamp(min=1e-300)).T
        hessian = linearise(problem).hessian
        curvatures = [float(row.dot(hessian(row)) / row.dot(row).clamp(min=1e-300)) for row in flat]
        return {"flat": flat}, {"curvatures": curvatures}

    kept, facts = bench.kept("members", "members of the estimated set", make)
    return kept["flat"].to(problem.weights), [float(value) for value in facts["curvatures"]]


def flat_part(problem: Problem, draws: Tensor) -> Tensor:
    """The part of some directions along which the data do not bend J, to first order in the outputs.

    Args:
        problem: the point.
        draws: (p, K).

    Returns:
        (p, K), the draws less what moves an output; where the Jacobian is too large to hold, less their part in
        the range of H at a tolerance of a few times the decay.
    """
    with torch.no_grad():
        equations = problem.outputs().numel()
    if equations < problem.size and equations * problem.size <= _JACOBIAN_ENTRIES:
        jacobian = dense_jacobian(problem).reshape(equations, -1)
        values, vectors = torch.linalg.eigh(jacobian @ jacobian.T)
        kept = values > torch.finfo(values.dtype).eps * len(values) * values[-1]
        basis = vectors[:, kept] / values[kept].sqrt()
        for _ in range(2):  # once more for what rounding left
            draws = draws - jacobian.T @ (basis @ (basis.T @ (jacobian @ draws)))
        return draws
    method = "auto" if problem.size <= DENSE else "lanczos"
    largest = solver_for(problem, method=method).largest
    return solver_for(problem, "hessian", _FLAT * problem.decay / largest, method=method).project_kernel(draws)


def _random_plane(poisoned: Problem, points: dict[str, Tensor], count: int, seed: int, bench: Bench) -> Plane:
    """Two filter-normalised random directions around the original solution, made orthogonal."""
    first, second = filter_normalised(poisoned, seed + 1), filter_normalised(poisoned, seed + 2)
    second = second - first * (first.dot(second) / first.dot(first))
    axis = np.linspace(-1.0, 1.0, count)
    return _plane("random", "two filter-normalised random directions", poisoned, points, (first, second), axis, bench)


def _solution_plane(
    poisoned: Problem, points: dict[str, Tensor], estimate: Tensor, flat: Tensor, count: int, bench: Bench
) -> Plane:
    """Through the original and the estimated solution, and along the first member's flat direction."""
    second = flat[0] - estimate * (flat[0].dot(estimate) / estimate.dot(estimate).clamp(min=1e-300))
    second = second * (estimate.norm() / second.norm().clamp(min=1e-300))
    axis = np.linspace(-2.5, 3.5, count)
    name = "the estimated step and a flat direction, both in units of |v0|"
    return _plane("solutions", name, poisoned, points, (estimate, second), axis, bench)


def _plane(
    key: str,
    name: str,
    poisoned: Problem,
    points: dict[str, Tensor],
    directions: tuple[Tensor, Tensor],
    axis: NDArray[np.float64],
    bench: Bench,
) -> Plane:
    """Objective values on a grid, and the points projected onto the plane."""
    first, second = directions
    bench.voice.stage(f"loss landscape over {name}")
    values = np.empty((len(axis), len(axis)))
    origin = points["original"]
    with torch.no_grad():
        for i, along in enumerate(axis):
            for j, across in enumerate(axis):
                values[i, j] = float(poisoned.objective(origin + float(across) * first + float(along) * second))
            bench.voice(f"landscape: row {i + 1} of {len(axis)}", (i + 1) / len(axis))
    places = {}
    for label, weights in points.items():
        apart = weights - origin
        places[label] = tuple(float(apart.dot(d) / d.dot(d).clamp(min=1e-300)) for d in directions)
    return Plane(key, name, axis, values, places)
