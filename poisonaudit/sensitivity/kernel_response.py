"""Does the moved gradient push along the kernel? Then the linear set is not where the solutions go."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.operators import Linearisation, linearise
from poisonaudit.problem import Problem
from poisonaudit.sensitivity.curvature import Curvature, kernel_is_trivial
from poisonaudit.validity import PHI_LIMIT

# Between the exponents 2 and 3 of the length.
_EXPONENT = 2.5
# Steps are short enough for the leading power, long enough for single precision to resolve it.
_LENGTH = {torch.float64: 1e-3, torch.float32: 5e-2}
_ROUNDING = 100.0


@dataclass(frozen=True)
class KernelResponse:
    """What a step along the linear set leaves along the kernel of H.

    Attributes:
        exponent: a in `|P_ker R(x + t mu, w + t v0)| ~ t^a`; None where it is below rounding, or there is no kernel.
        share: length of the step along the kernel that it asks for, relative to the linear one; None where the
            exponent settles it.
        reason: why the derivative is not to be trusted; empty where nothing speaks against it.
    """

    exponent: float | None
    share: float | None
    reason: str


def kernel_response(problem: Problem, solver: Curvature, mu: Tensor, displacement: Tensor) -> KernelResponse:
    """Test the rank condition along one direction.

    Where the rank of H stays constant along the solutions, the gradient at (x + t mu, w + t v0) is of order t^2 and
    orthogonal to a kernel that has turned by O(t), so its part along the kernel at (x, w) is of order t^3. A part of
    order t^2 asks for a step along the kernel of that length over the curvature there, which the perturbation itself
    has to make, so the step is no shorter than the linear one and may be as long as 1: duplicated rows that part. The
    derivative and the minimum-norm displacement say nothing of it.

    Costs two gradients and two columns of a solve, and one product of a fresh linearisation where the exponent is low.

    Args:
        problem: the point.
        solver: its curvature.
        mu: perturbation, shaped like the inputs.
        displacement: v0 (p,).

    Returns:
        What was found.
    """
    nothing = KernelResponse(None, None, "")
    length, moved = float(mu.norm()), (mu.reshape(len(mu), -1) != 0).any(1)
    if kernel_is_trivial(solver) or not 0.0 < length < float("inf"):
        return nothing
    size = max(float(problem.x[moved].norm()), 1e-300)
    step = min(1.0, _LENGTH[problem.dtype] * size / length)
    still = linearise(problem).gradient
    points = [(t, problem.weights + t * displacement, problem.x + t * mu) for t in (step, 0.5 * step)]
    changes = torch.stack([problem.gradient(w, x) - still for _, w, x in points], dim=1)
    along = solver.project_kernel(changes)
    whole, half = along.norm(dim=0).tolist()
    largest = abs(solver.largest)
    noise = _ROUNDING * torch.finfo(problem.dtype).eps * largest * float(problem.weights.norm())
    noise = max(noise, getattr(solver, "accuracy", 0.0) * float(changes[:, 0].norm()))
    if not half > noise:
        return nothing
    exponent = float(torch.tensor(whole / half).log2())
    if exponent >= _EXPONENT:
        return KernelResponse(exponent, None, "")
    _, weights, x = points[0]
    direction = along[:, 0] / whole
    bent = float(direction @ Linearisation(problem.at(weights).with_data(x)).hessian(direction))
    linear = step * float(displacement.norm())
    share = whole / max(abs(bent), 1e-300) / max(linear, 1e-300)
    if share <= PHI_LIMIT:
        return KernelResponse(exponent, share, "")
    return KernelResponse(
        exponent,
        share,
        "the rank of H changes along the perturbation: the gradient pushes along the kernel like "
        f"t^{exponent:.1f} (t^3 where the rank is constant), towards weights {share:.1g} times as far as the linear "
        "step; solutions may jump",
    )
