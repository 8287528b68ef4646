"""Make target weights a solution of the poisoned problem, `R(x + mu, w_t) = 0`; training need not go there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from poisonaudit.attack.arguments import as_tensor
from poisonaudit.attack.objectives.target_weights import TargetGoal, fitting_target
from poisonaudit.problem import Problem

WARNING = (
    "membership is not attraction: weights may solve the poisoned problem and training may still go elsewhere, even "
    "when it starts there; judge by the movement after retraining and by the curvature at the target"
)


@dataclass(frozen=True, eq=False)
class Membership:
    """Weights that are to be stationary for the poisoned data.

    Crafting makes `|R(x + mu, w_t)|` small (Gradient Canceling; Lu, Kamath and Yu, 2023); to first order at the clean
    solution this is `H v + B mu = 0`, `v = w_t - wbar`, a convex least-squares problem in mu. Retraining is judged by
    the movement toward w_t, as for `TargetWeights`, because a stationary point may be a saddle that training leaves.

    Attributes:
        weights: w_t, flat (p,).
        success_at: movement after retraining that counts as a success; None leaves it undefined.
    """

    weights: Tensor
    success_at: float | None = None

    kind = "membership"

    def bind(self, problem: Problem) -> MembershipGoal:
        """The objective at a clean trained problem.

        Args:
            problem: clean, at wbar.

        Returns:
            The bound objective.

        Raises:
            InputRefused: PA125, the target's length is not that of the weights; PA124, it is not finite.
            UsageError: PA364, the target is the model itself.
        """
        target = fitting_target(problem, self.weights)
        return MembershipGoal(target, target - problem.weights, self.success_at)

    def describe(self) -> dict[str, Any]:
        """JSON form: kind, size, norm of the target, success_at."""
        weights = as_tensor(self.weights, "target weights")
        norm = float(weights.norm())
        return {"kind": self.kind, "size": weights.numel(), "target_norm": norm, "success_at": self.success_at}


class MembershipGoal(TargetGoal):
    """Movement toward w_t is what retraining is judged by; crafting works on the residual instead."""

    def describe(self) -> dict[str, Any]:
        """JSON form, with the warning that goes with every membership result."""
        return {**super().describe(), "kind": Membership.kind, "warning": WARNING}
