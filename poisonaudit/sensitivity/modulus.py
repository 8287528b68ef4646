"""Joint Lipschitz modulus of the solution map, its worst direction and the poison budget it sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from poisonaudit.errors import UsageError
from poisonaudit.operators import Linearisation, linearise
from poisonaudit.problem import Problem, expect_problem
from poisonaudit.results import Validity
from poisonaudit.sensitivity.approximation import hessian_ends
from poisonaudit.sensitivity.curvature import Curvature, KernelCurvature, assess_here, kernel_is_trivial, solver_for
from poisonaudit.sensitivity.rows import Form, checked_rows, sample_space_for, sample_space_validity
from poisonaudit.sensitivity.sample_space import SampleCurvature, SampleSpace
from poisonaudit.sensitivity.stability import displacement_test, rank_changes
from poisonaudit.solvers.extremal import Progress, SingularValue, largest_singular_value
from poisonaudit.training import relative_gradient
from poisonaudit.validity import STATIONARITY_LIMIT

# Groups of rows in which the rank is tried where every trial costs a solve, and where it costs little.
_GROUPS, _MOST_ROWS = 12, 400
# Of |P_ker B| / |B|; single precision leaves more.
RANGE_LIMIT = {torch.float64: 1e-6, torch.float32: 1e-3}


@dataclass(frozen=True)
class Modulus:
    """`kappa = |H^+ B|_2` over the given rows, where the solution map is Lipschitz-like.

    Attributes:
        value: kappa, weight norm per input norm; infinite where B leaves the range of H or the map jumps.
        direction: the unit perturbation that moves the weights most to first order, shaped like x, zero outside the
            rows. Where the value is infinite, that of the truncated formula.
        finite: value is finite.
        truncated: `|H^+ B|_2` at the rank tolerance, a lower estimate of the modulus where `finite` is False.
        tolerance: rank tolerance relative to max |lambda|.
        reason: why the value is infinite, or on which condition it is finite.
        lower: largest value met; below `|H^+ B|_2` up to the accuracy of the solves.
        upper: not below `|H^+ B|_2` but with probability 1e-6 over the random start, or exactly (see `form`);
            infinite where the value is.
        form: "weights" (`H^+ B` by products) or "samples" (`J^+ D`, exact at interpolation of the squared loss).
        validity: may the value be trusted at this point (stationary, a minimum, not at infinity).
        details: range defect, displacement test, kernel dimension, products, why the other form was not used.
    """

    value: float
    direction: Tensor
    finite: bool
    truncated: float
    tolerance: float
    reason: str
    lower: float
    upper: float
    form: Literal["weights", "samples"]
    validity: Validity = field(default_factory=lambda: Validity(True))
    details: Mapping[str, Any] = field(default_factory=dict)

    def poison_budget(self, radius: float) -> float:
        """Least perturbation (Frobenius norm) that can move the weights by `radius`, to first order: `radius / kappa`.

        Args:
            radius: distance in weight space, >= 0.

        Returns:
            Input norm; 0 where the modulus is infinite, infinite where it is 0.

        Raises:
            UsageError: PA304, the radius is negative or not finite.
        """
        if not 0.0 <= radius < math.inf:
            raise UsageError("PA304", f"the radius is {radius}. Give a finite distance >= 0.")
        if radius == 0.0 or not self.finite:
            return 0.0
        return radius / self.value if self.value > 0 else math.inf


def lipschitz_modulus(
    problem: Problem,
    rows: Tensor | None = None,
    *,
    tolerance: float | None = None,
    seed: int = 0,
    form: Form = "auto",
    method: str = "auto",
    progress: Progress | None = None,
) -> Modulus:
    """`kappa = sup {|B^T u| : |H u| <= 1} = |H^+ B|_2` (coderivative criterion), with the exact Hessian.

    It is the modulus only where range(B) lies in range(H) and the rank of H does not jump nearby. The first is
    measured as `|P_ker B| / |B|`. The second holds where H has no kernel, or where J has full row rank at an
    interpolating minimum; otherwise it is tried: along a random direction of each row (see `rank_changes`), and on the
    map itself, whose path is followed for random perturbations of two sizes (see `displacement_test`).

    Args:
        problem: a minimum.
        rows: positions of the rows that may move; None for all.
        tolerance: rank tolerance relative to max |lambda|.
        seed: of the start vectors and of the displacement test.
        form: "auto" takes the sample-space form where it is exact (see `why_not_sample_space`), else the weights;
            "weights" and "samples" ask for one of them.
        method: solver for H, as in `solver_for`.
        progress: called with a message and a fraction.

    Returns:
        The modulus, its bracket and direction, and the evidence for it.

    Raises:
        UsageError: PA304, rows that do not fit; PA305, form="samples" where it is not exact.
    """
    expect_problem(problem, "lipschitz_modulus")
    positions = checked_rows(problem, rows)
    samples, why_not = sample_space_for(problem, tolerance, form)
    if samples is not None:
        return _by_samples(problem, positions, samples, seed)
    part = linearise(problem, None if rows is None else positions)
    before = part.products
    solver = solver_for(problem, "hessian", tolerance, method=method, progress=progress)
    solved = solver.products
    found, defect = bidiagonalise(problem, part, solver, seed, progress)
    direction = torch.zeros_like(problem.x)
    if found.value > 0:
        direction[positions] = found.right.to(problem.x).view(part.problem.x[positions].shape)
    stationary = relative_gradient(problem) < STATIONARITY_LIMIT
    finite, reason = True, ""
    evidence: dict[str, Any] = {}
    limit = RANGE_LIMIT[problem.dtype]
    if defect > limit:
        finite, reason = False, f"B leaves the range of H: |P_ker B| / |B| = {defect:.1e}, limit {limit:.0e}"
    elif solver.kernel_dimension == 0:
        reason = "H has no kernel at the rank tolerance"
    elif kernel_is_trivial(solver):
        reason = f"no kernel as far as products showed: smallest curvature met {solver.smallest:.1e}"
    elif not stationary:
        reason = "the rank condition was not tested: the point is not stationary"
    elif found.value == 0:
        reason = "moving the rows does not move the gradient"
    else:
        finite, reason, evidence = tried(problem, solver, positions, found.value, seed, progress)
    if not found.converged:
        reason += f"; the extremal value did not settle: residual {found.residual / found.value:.1e} of it"
    details = {
        "range_defect": defect,
        "kernel_dimension": solver.kernel_dimension,
        "largest_curvature": solver.largest,
        "smallest_curvature": solver.smallest,
        "products": part.products - before + solver.products - solved,
        "steps": found.steps,
        "settled": found.converged,
        "curvature": "hessian",
        "method": solver.method,
        "why_not_samples": why_not,
        **evidence,
    }
    return Modulus(
        value=found.value if finite else math.inf,
        direction=direction,
        finite=finite,
        truncated=found.value,
        tolerance=solver.tolerance,
        reason=reason,
        lower=found.value,
        upper=found.upper if finite else math.inf,
        form="weights",
        validity=assess_here(problem, solver),
        details=details,
    )


def tried(
    problem: Problem, solver: KernelCurvature, rows: Tensor, value: float, seed: int, progress: Progress | None = None
) -> tuple[bool, str, dict[str, Any]]:
    """Both tests of a map whose rank condition nothing proves.

    Args:
        problem: a minimum whose Hessian has a kernel.
        solver: its curvature.
        rows: positions that may move.
        value: the formula's modulus.
        seed: of random directions.
        progress: called with a message and a fraction.

    Returns:
        Whether nothing spoke against the value, the reason, and the evidence.
    """
    # By products only every direction costs a solve.
    most = _GROUPS if solver.kernel_dimension is None else rows.numel()
    changing, why = rank_changes(problem, solver, rows, most=min(most, _MOST_ROWS), seed=seed, progress=progress)
    test = displacement_test(problem, rows, value, seed=seed)
    evidence = {"displacement_ratios": test.ratios, "rows_changing_rank": rows[changing].tolist()}
    if why:
        return False, f"infinite or unstable: {why}", evidence
    return test.bounded, test.reason, evidence


def rounding_of_mixed(problem: Problem) -> float:
    """Size below which a `B_k` is rounding: what an input's last digits do to a gradient of the problem's scale.

    Args:
        problem: the point.

    Returns:
        `100 eps lambda_max |w|` over the largest norm of a row.
    """
    length = float(problem.x.reshape(problem.rows, -1).norm(dim=1).max())
    scale = max(map(abs, hessian_ends(problem))) * float(problem.weights.norm())
    return 100.0 * torch.finfo(problem.dtype).eps * scale / max(length, 1e-300)


def bidiagonalise(
    problem: Problem, part: Linearisation, solver: Curvature, seed: int, progress: Progress | None = None
) -> tuple[SingularValue, float]:
    """Largest singular value of `H^+ B` on the rows of `part`, and the share of B outside the range of H.

    Args:
        problem: the point.
        part: linearisation restricted to the rows that move.
        solver: H at the point.
        seed: of the start.
        progress: called with a message.

    Returns:
        The singular value and `|P_ker B| / |B|`.
    """
    shape = part.mixed_adjoint(torch.zeros_like(problem.weights)).shape
    columns = int(torch.Size(shape).numel())
    # Where H is known by products only, what a solve leaves over is what lies outside the range.
    lengths, leftovers = [0.0], [0.0]

    def mixed(mu: Tensor) -> Tensor:
        return part.mixed(mu.to(problem.dtype).view(shape))

    def forward(mu: Tensor) -> Tensor:
        change = mixed(mu)
        if solver.kernel_dimension is not None:
            return solver.inverse(change).double()
        solve = solver.solve(change)
        lengths.append(float(change.norm()))
        leftovers.append(lengths[-1] * solve.relative_residual)
        return solve.value.double()

    def adjoint(u: Tensor) -> Tensor:
        return part.mixed_adjoint(solver.inverse(u.to(problem.dtype))).double().reshape(-1)

    dense = solver.kernel_dimension is not None
    double = problem.dtype == torch.float64
    settings: dict[str, Any] = {
        "accuracy": (1e-9 if dense else 1e-6) if double else 1e-4,
        "seed": seed,
        "device": problem.device,
    }
    found = largest_singular_value(forward, adjoint, problem.size, columns, progress=progress, **settings)
    if not dense:
        return found, max(leftovers) / max(lengths) if max(lengths) > 0 else 0.0
    if solver.kernel_dimension == 0:
        return found, 0.0

    def back(u: Tensor) -> Tensor:
        return part.mixed_adjoint(u.to(problem.dtype)).double().reshape(-1)

    def outside(mu: Tensor) -> Tensor:
        return solver.project_kernel(mixed(mu)).double()

    rough = {**settings, "accuracy": 1e-3, "width": math.inf}
    whole = largest_singular_value(lambda mu: mixed(mu).double(), back, problem.size, columns, **rough).value
    if whole <= rounding_of_mixed(problem):
        return found, 0.0
    escaped = largest_singular_value(
        outside,
        lambda u: back(solver.project_kernel(u.to(problem.dtype))),
        problem.size,
        columns,
        **rough,
    )
    return found, escaped.value / whole


def _by_samples(problem: Problem, positions: Tensor, samples: SampleSpace, seed: int) -> Modulus:
    """The modulus from `J^+ D`: exact up to rounding, the rank condition read off J."""
    value, unit = samples.modulus(positions)
    direction = torch.zeros_like(problem.x)
    direction[positions] = unit.view(problem.x[positions].shape)
    defect = samples.range_defect(positions)
    limit = RANGE_LIMIT[problem.dtype]
    finite, reason = True, "J has full row rank at an interpolating minimum"
    evidence: dict[str, Any] = {}
    if defect > limit:
        finite, reason = False, f"B leaves the range of H: |P_ker B| / |B| = {defect:.1e}, limit {limit:.0e}"
    elif not samples.full_row_rank and value > 0:
        finite, reason, evidence = tried(problem, SampleCurvature(problem, samples), positions, value, seed)
    details = {
        "range_defect": defect,
        "kernel_dimension": samples.kernel_dimension,
        "largest_curvature": samples.largest_curvature,
        "smallest_curvature": 0.0,
        "products": samples.products,
        "curvature": "hessian",
        "method": "sample space",
        **evidence,
    }
    return Modulus(
        value=value if finite else math.inf,
        direction=direction,
        finite=finite,
        truncated=value,
        tolerance=samples.tolerance,
        reason=reason,
        lower=value,
        upper=value if finite else math.inf,
        form="samples",
        validity=sample_space_validity(problem, samples),
        details=details,
    )
