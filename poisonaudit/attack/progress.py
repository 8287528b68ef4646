"""What crafting has reached after a step, so that an interrupted run can go on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class CraftState:
    """State of `craft` between two outer steps.

    Attributes:
        step: last step that was finished.
        rows: positions (k,).
        damping: of H in the slopes and estimates of "pgd".
        deltas: perturbations (m, k, ...) of the points that were kept, the clean one first; they are only appended to.
        weights: weights (m, K, p) of the K solutions reached with each.
        values: the goal at each.
        history: as in `Poison`.
        products: operator products so far.
        gradients: gradients of retraining so far.
        seconds: wall time so far.
        finished: the last step gained too little for another.
    """

    step: int
    rows: Tensor
    damping: float
    deltas: Tensor
    weights: Tensor
    values: Sequence[float]
    history: Sequence[Mapping[str, Any]]
    products: int
    gradients: int
    seconds: float
    finished: bool

    def tensors(self) -> dict[str, Tensor]:
        """The part that is stored as tensors."""
        return {"rows": self.rows, "deltas": self.deltas, "weights": self.weights}

    def plain(self) -> dict[str, Any]:
        """The part that is stored as JSON."""
        names = ("step", "damping", "values", "history", "products", "gradients", "seconds", "finished")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> CraftState:
        """From the two stored parts."""
        parts: dict[str, Any] = {**tensors, **plain}
        return cls(**parts)
