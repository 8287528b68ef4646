"""How far inputs may move before a prediction can change, proved row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from poisonaudit.audit.context import Context
from poisonaudit.audit.facts import measured, not_applicable, skipped
from poisonaudit.audit.lipschitz import sampled, told_rows
from poisonaudit.lipschitz.costs import radius_seconds
from poisonaudit.lipschitz.local import certified_radii
from poisonaudit.results import Measure
from poisonaudit.row_statistics import median

_ROWS = 100
_FEWEST_ROWS = 20
# Seconds of proofs that more than the fewest rows may take.
_SECONDS = 60.0
# Radii are known to the width of the inputs over 2^12, for pixels a sixteenth of a grey level.
_STEPS = 12
_AT_ONCE = 5
# Shares of the largest radius found at which the curve is stored.
_CURVE = 24


def median_radius(context: Context) -> Measure:
    """Median over test rows of the l_inf radius in which the prediction provably stays right; 0 where it is wrong."""
    name = "lipschitz.certified_radius_median"
    if not context.has_classes:
        return not_applicable(name, "not applicable: there are no classes whose prediction could change")
    seconds = radius_seconds(context.model, tuple(context.evaluation_rows.shape[1:]))
    if reason := context.too_dear(name, _FEWEST_ROWS * seconds):
        return skipped(name, reason)
    count = min(_ROWS, max(_FEWEST_ROWS, int(_SECONDS / seconds)))
    rows, chosen = sampled(context.evaluation_rows, count, context.seed)
    labels = context.evaluation_labels[chosen.to(context.evaluation_labels.device)]
    box = _box(context, rows)
    width = _width(rows, box)
    radii, correct = [], []
    for part, own in zip(rows.split(_AT_ONCE), labels.split(_AT_ONCE), strict=True):
        found = certified_radii(context.model, part, own, largest=width, steps=_STEPS, box=box)
        radii.append(found.radii)
        correct.append(found.correct)
        if context.progress is not None:
            context.progress(f"audit: {name}, row {sum(map(len, radii))} of {len(rows)}", None)
    every, right = torch.cat(radii), torch.cat(correct)
    reach = float(every.max())
    at = [reach * step / _CURVE for step in range(_CURVE + 1)] if reach > 0.0 else [0.0]
    details = {
        "norm": "linf",
        "rows": told_rows(context, len(rows)),
        "within": "all inputs" if box is None else "the range of the pictures",
        "resolution": width / 2**_STEPS,
        "largest_searched": width,
        "accuracy": float(right.double().mean()),
        "mean": float(every.mean()),
        "largest": reach,
        "curve": {
            "radius": at,
            "certified_accuracy": [float((right & (every >= radius)).double().mean()) for radius in at],
        },
    }
    return measured(name, median(every), details=details)


def _box(context: Context, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Of pictures, whose range is a fact; the range of a table's columns binds nobody at prediction time."""
    if context.box is None or context.image_shape is None:
        return None
    low, high = (torch.as_tensor(end, dtype=rows.dtype, device=rows.device) for end in context.box)
    return (low, high) if bool(((low <= rows) & (rows <= high)).all()) else None


def _width(rows: Tensor, box: tuple[Tensor, Tensor] | None) -> float:
    """Widest side of the box, of the rows where there is none."""
    low, high = box if box is not None else (rows.amin(), rows.amax())
    return max(float((high - low).max()), 1e-12)
