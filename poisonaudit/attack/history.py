"""One line of the history of a crafting run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from poisonaudit.attack.inner import PRODUCT_LIMIT


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
    ended: str | None = None,
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
        ended: how the inner problem ended; None where there was none.

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
        "ended": ended,
    }


def limit_notes(history: Sequence[Mapping[str, Any]], limit: int | None) -> list[str]:
    """What the limit of products did to a run, in one sentence or none.

    Args:
        history: of the run.
        limit: `max_products`.

    Returns:
        The sentence where some inner problem was cut short.
    """
    steps = {line["step"] for line in history if line["step"]}
    cut = {line["step"] for line in history if line.get("ended") == PRODUCT_LIMIT}
    if not cut:
        return []
    return [
        f"max_products={limit} stopped the inner problem in {len(cut)} of {len(steps)} steps; a larger one may gain"
    ]
