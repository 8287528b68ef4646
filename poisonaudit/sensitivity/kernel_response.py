"""Does the moved gradient push along the kernel? Then the linear set is not where the solutions go."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.operators import Linearisation, linearise
from poisonaudit.problem import Problem
from poisonaudit.sensitivity.curvature import KernelCurvature, kernel_is_trivial
from poisonaudit.validity import PHI_LIMIT, activation_changes

# Between the exponents 2 and 3 of the length.
_EXPONENT = 2.5
# The longest step is short enough for the leading powers, long enough for single precision to resolve it.
_LENGTH = {torch.float64: 1e-3, torch.float32: 5e-2}
# A third power with a large factor hides a second one with a small factor; shorter steps bring it out.
_SHORTER = 1.0 / 16.0
_LEVELS = 4
_ABOVE_NOISE = 20.0
_NOT_ROUNDING = 1.5


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


def kernel_response(problem: Problem, solver: KernelCurvature, mu: Tensor, displacement: Tensor) -> KernelResponse:
    """Test the rank condition along one direction.

    Where the rank of H stays constant along the solutions, the gradient at (x + t mu, w + t v0) is of order t^2 and
    orthogonal to a kernel that has turned by O(t), so its part along the kernel at (x, w) is of order t^3. A part of
    order t^2 asks for a step along the kernel of that length over the curvature there, which the perturbation itself
    has to make, so the step is no shorter than the linear one and may be as long as 1: duplicated rows that part. The
    derivative and the minimum-norm displacement say nothing of it.

    The verdict depends on the direction of mu, not on its length: steps of a thousandth of the moved rows' norm, and
    three times a sixteenth of that while rounding allows, are tried. Costs four gradients and products with P_ker a
    step, two products, and one of a fresh linearisation at each step with a low exponent.

    Args:
        problem: the point.
        solver: its curvature.
        mu: perturbation, shaped like the inputs.
        displacement: v0 (p,).

    Returns:
        What was found.
    """
    last, suspect = KernelResponse(None, None, ""), None
    length, moved = float(mu.norm()), (mu.reshape(len(mu), -1) != 0).any(1)
    if kernel_is_trivial(solver) or not 0.0 < length < float("inf"):
        return last
    size = max(float(problem.x[moved].norm()), 1e-300)
    step = _LENGTH[problem.dtype] * size / length
    kept, scale = linearise(problem), torch.finfo(problem.dtype).eps
    generator = torch.Generator(device="cpu").manual_seed(0)
    draws = torch.randn(2, problem.size, generator=generator, dtype=torch.float64).to(problem.weights)
    # What the solve left over is of first order, and no sign of anything.
    still, first = kept.gradient, kept.hessian(displacement) + kept.mixed(mu)
    for _ in range(_LEVELS):
        if activation_changes(problem, step * mu, step * displacement):
            # A kink inside the step is no change of rank; a shorter one may miss it.
            step *= _SHORTER
            continue
        points = [(problem.weights + t * displacement, problem.x + t * mu) for t in (step, 0.5 * step)]
        # Rounding the weights otherwise shows how much of the answer is rounding.
        points += [(points[1][0] * (1 + 2 * scale * draw), points[1][1]) for draw in draws]
        changes = torch.stack([problem.gradient(*point) - still for point in points], dim=1)
        changes -= step * torch.stack([first, 0.5 * first, 0.5 * first, 0.5 * first], dim=1)
        along = solver.project_kernel(changes)
        whole, half = along[:, :2].norm(dim=0).tolist()
        noise = _ABOVE_NOISE * float((along[:, 2:] - along[:, 1:2]).norm(dim=0).max())
        rounding = 100.0 * scale + getattr(solver, "accuracy", 0.0)
        exponent = float(torch.tensor(whole / max(half, 1e-300)).log2())
        if not half > max(noise, rounding * float(changes[:, 1].norm())) or exponent < _NOT_ROUNDING:
            break
        last = KernelResponse(exponent, None, "")
        if exponent < _EXPONENT:
            weights, x = points[0]
            direction = along[:, 0] / whole
            bent = float(direction @ Linearisation(problem.at(weights).with_data(x)).hessian(direction))
            share = whole / max(abs(bent), 1e-300) / max(step * float(displacement.norm()), 1e-300)
            if share > PHI_LIMIT:
                if suspect is not None:
                    return suspect
                # A shorter step has to say the same, or fall below rounding: kinks in functions are not seen above.
                suspect = KernelResponse(exponent, share, _words(exponent, share))
            last = KernelResponse(exponent, share, "")
        else:
            suspect = None
        step *= _SHORTER
    return last if suspect is None else suspect


def _words(exponent: float, share: float) -> str:
    return (
        "the rank of H changes along the perturbation: the gradient pushes along the kernel like "
        f"t^{exponent:.1f} (t^3 where the rank is constant), towards weights {share:.1g} times as far as the linear "
        "step; solutions may jump"
    )
