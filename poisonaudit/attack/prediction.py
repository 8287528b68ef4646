"""What a poison is predicted to do, before anybody retrains: one linear step, and the path from the clean solution."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from poisonaudit.attack.objectives import Objective
from poisonaudit.attack.outcome import TestRows, outcome
from poisonaudit.problem import Problem
from poisonaudit.sensitivity import follow_path, graphical_derivative, solver_for
from poisonaudit.sensitivity.curvature import kernel_is_trivial
from poisonaudit.validity import PHI_LIMIT


def predict(
    problem: Problem, mu: Tensor, objective: Objective | None = None, test: TestRows | None = None
) -> tuple[dict[str, Any], int]:
    """Outcome of the estimated weights for a poison, by continuation where it converges, else by one linear step.

    Where H has a kernel the solutions form a set, of which stationarity fixes only the part of a displacement that is
    orthogonal to the kernel. The path ends in one member and training in another: full-gradient training from wbar in
    one whose kernel part is of second order in mu (for a model linear in its weights the member nearest to wbar),
    optimisers that scale each coordinate, such as Adam, in one further off, and fresh seeds start from other members
    altogether. phi, a norm of `H^+ (...)`, does not see that part; `kernel_share`, `|P_ker(w - wbar)| / |w - wbar|` at
    the end of the path, does, and above phi's own limit the weights count as not predicted.

    Args:
        problem: clean, at the clean solution.
        mu: perturbation like `problem.x`.
        objective: what was attacked.
        test: (x, y) for the accuracy.

    Returns:
        The outcome of the better prediction with `method`, `valid`, `reasons` (why it is not), `notes` (with what
        reservation it is), `phi`, `kernel_share` (None without a kernel), and both predictions under `linear` and
        `path`; and the number of operator products used.
    """
    derivative, path = graphical_derivative(problem, mu), follow_path(problem, mu)
    share, reservation, products = _kernel_part(problem, path.weights - problem.weights)
    # What may be said of the kernel speaks against both predictions alike.
    against = [reservation] if share is not None and share > PHI_LIMIT else []
    notes = [reservation] if reservation and not against else []
    phi, reasons = derivative.phi, [*derivative.validity.reasons, *against]
    linear = {
        **outcome(problem, problem.weights + derivative.displacement, objective, test),
        "valid": not reasons,
        "reasons": reasons,
        "phi": phi,
        "relative_residual": derivative.relative_residual,
        "tolerance": derivative.tolerance,
    }
    ways: dict[str, Any] = {
        "linear": linear,
        "path": {
            "converged": path.converged,
            "fraction": path.fraction,
            "steps": path.steps,
            "reason": path.reason,
            "relative_gradient": path.relative_gradient,
        },
    }
    # Where the path was lost these are the figures of its last point, at `fraction` of the perturbation.
    figures = outcome(problem, path.weights, objective, test)
    ways["path"].update(figures)
    if not path.converged:
        failed = f"the path from the clean solution was not followed to its end: {path.reason}"
        chosen = {**linear, "method": "linear", "valid": False, "reasons": [*reasons, failed]}
        return {**chosen, "notes": notes, "kernel_share": share, **ways}, derivative.products + products
    # phi judges the length of one step; the path has many, but starts from the same stationary point.
    start = [reason for reason in reasons if not reason.startswith("phi ")]
    chosen = {**figures, "method": "path", "valid": not start, "reasons": start, "phi": phi}
    return {**chosen, "notes": notes, "kernel_share": share, **ways}, derivative.products + products


def _kernel_part(problem: Problem, displacement: Tensor) -> tuple[float | None, str, int]:
    """Share of a displacement that lies in the kernel of H, what that means, and the products used; "" without one."""
    solver = solver_for(problem)
    if kernel_is_trivial(solver):
        return None, "", 0
    before, length = solver.products, float(displacement.norm())
    share = float(solver.project_kernel(displacement).norm()) / length if length > 0 else 0.0
    size = solver.kernel_dimension
    has = "may have a kernel, as far as products tell," if size is None else f"has a kernel of dimension {size}"
    told = (
        f"H {has} at rank tolerance {solver.tolerance:.0e}, and the solutions then form a set: valid for the "
        f"displacement orthogonal to the kernel; along it, where {share:.0%} of the displacement lies and phi sees "
        "nothing, the start and the method of training decide, and fresh seeds end in other members"
    )
    return share, told, solver.products - before
