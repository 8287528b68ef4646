"""Whether a model is a fixed function of single rows, asked of a few of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# How many rows are asked for.
PROBE_ROWS = 3
# What rounding may make of the same row in another batch, relative to the largest output.
_SAME = {torch.float64: 1e-8, torch.float32: 1e-3}
_COARSE = 1e-2


def why_not_row_by_row(call: Callable[[Tensor], Tensor], x: Tensor, outputs: Tensor) -> str | None:
    """Compare a few rows alone, together, and together once more.

    Args:
        call: the model, without gradients; its errors pass through.
        x: inputs (batch, ...).
        outputs: of the model for them, (batch, ...), from one earlier call or several.

    Returns:
        What the output of a row does that it must not, as the end of a sentence; None where nothing was noticed.
    """
    few = x[:PROBE_ROWS]
    together = call(few)
    alone = torch.cat([call(row.unsqueeze(0)) for row in few])
    limit = _SAME.get(outputs.dtype, _COARSE) * float(outputs.abs().max())
    for other, why in (
        (alone, "depends on the other rows of the batch"),
        (outputs[: len(few)], "changes between calls"),
    ):
        if other.shape != together.shape or bool(((together - other).abs() > limit).any()):
            return why
    return None
