"""One line of the history of a crafting run."""

from __future__ import annotations

from typing import Any


def history_entry(
    step: int,
    predicted: float,
    reached: float,
    *,
    phi: float | None = None,
    used: float = 0.0,
    converged: bool = True,
    kept: bool = False,
    products: int = 0,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """One linearisation, as it stands in `Poison.history`; the defaults are those of the clean model, step 0.

    Args:
        step: number of the linearisation.
        predicted: the goal at the linear estimate.
        reached: the goal where the step really led.
        phi: largest over the solutions; None where nothing moved or no displacement was estimated.
        used: share of the budget.
        converged: every retraining of the step reached the tolerance.
        kept: the step was the best so far.
        products: operator products.
        seconds: wall time.

    Returns:
        A dict of plain values.
    """
    return {
        "step": step,
        "predicted_objective": predicted,
        "retrained_objective": reached,
        "phi": phi,
        "budget_used": used,
        "converged": converged,
        "kept": kept,
        "products": products,
        "seconds": seconds,
    }
