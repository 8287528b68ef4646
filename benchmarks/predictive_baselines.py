"""What anybody could compute without this toolkit: the scores that an audit measure has to beat."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from poisonaudit import Problem
from poisonaudit.attack import outcome
from poisonaudit.operators import dense_hessian

# Radius of SAM (Foret et al. 2021, their default), and steps of ascent.
SAM_RADIUS, SAM_STEPS = 0.05, 20

# Which way each is usually read.
DIRECTIONS = {
    "baseline.gradient_weights": "lower_is_safer",
    "baseline.gradient_input": "lower_is_safer",
    "baseline.input_jacobian": "lower_is_safer",
    "baseline.sharpness": "lower_is_safer",
    "baseline.sam_sharpness": "lower_is_safer",
    "baseline.weight_norm": "lower_is_safer",
    "baseline.test_loss": "lower_is_safer",
    "baseline.test_accuracy": "higher_is_safer",
    "baseline.decay": "higher_is_safer",
}


def baselines(problem: Problem, test: tuple[Tensor, Tensor]) -> dict[str, float]:
    """All of them.

    Args:
        problem: at the trained weights.
        test: held-out rows and labels.

    Returns:
        Name -> value.
    """
    figures = outcome(problem, problem.weights, test=test)
    by_weights, by_input = gradients(problem)
    return {
        "baseline.gradient_weights": float(by_weights.mean()),
        "baseline.gradient_input": float(by_input.mean()),
        "baseline.input_jacobian": float(input_jacobians(problem, test[0]).mean()),
        "baseline.sharpness": float(torch.linalg.eigvalsh(dense_hessian(problem))[-1]),
        "baseline.sam_sharpness": sam_sharpness(problem),
        "baseline.weight_norm": float(problem.weights.norm()),
        "baseline.test_loss": float(figures["test_loss"]),
        "baseline.test_accuracy": float(figures["test_accuracy"]),
        "baseline.decay": problem.decay,
    }


def gradients(problem: Problem) -> tuple[Tensor, Tensor]:
    """Norms of the gradients of each training row's loss, decay left out, in the weights and in the row, (n,) each.

    At a minimum the gradient of the whole objective is zero; what tells models apart is its size row by row.
    """
    module = problem.module()

    def loss(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(module, problem.parameters(weights), (x[None],))
        return problem.loss_per_row(outputs, y[None])[0]

    both = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0, 0))(problem.weights, problem.x, problem.y)
    return both[0].norm(dim=1), both[1].flatten(1).norm(dim=1)


def input_jacobians(problem: Problem, x: Tensor) -> Tensor:
    """Frobenius norms of the Jacobians of the logits in the input, (m,)."""
    module = problem.module()

    def logits(row: Tensor) -> Tensor:
        return functional_call(module, problem.parameters(problem.weights), (row[None],))[0]

    return vmap(jacrev(logits))(x).flatten(1).norm(dim=1)


def sam_sharpness(problem: Problem, radius: float = SAM_RADIUS, steps: int = SAM_STEPS) -> float:
    """Rise of the training objective at the worst weights found within `radius` (Foret et al. 2021, eq. 1).

    One ascent step is what SAM takes; at a minimum the gradient vanishes, so that the ascent starts along the steepest
    eigenvector, to both sides, and goes on.
    """
    steepest = torch.linalg.eigh(dense_hessian(problem))[1][:, -1]
    begin, best = float(problem.objective().detach()), 0.0
    for side in (1.0, -1.0):
        step = side * radius * steepest
        for _ in range(steps):
            here = problem.weights + step
            with torch.no_grad():
                best = max(best, float(problem.objective(here)) - begin)
            gradient = problem.gradient(here)
            step = radius * gradient / gradient.norm().clamp_min(1e-300)
    return best
