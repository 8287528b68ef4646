"""Robustness metrics of the Adversarial Robustness Toolbox at prediction time: FGSM, loss gradients, CLEVER."""

from __future__ import annotations

import math
import statistics

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from poisonaudit.audit.art_common import (
    PRECISION,
    estimator,
    evaluation_inputs,
    evaluation_targets,
    no_classes,
    told_rows,
    with_art,
)
from poisonaudit.audit.context import Context
from poisonaudit.audit.facts import measured, not_applicable, skipped
from poisonaudit.results import Measure

_FGSM_STEPS = 50
_CLEVER = {"rows": 20, "batches": 50, "batch_size": 100, "radius": 5.0, "norm": 2}
# Seconds of one gradient call of ART on a small net; CLEVER makes 2 x batch_size of them per row and class.
_GRADIENT_CALL = 0.001
# A score so far below the first-order distance comes from a fit of the extreme value distribution that failed.
_DEGENERATE = 1e-2


def empirical_robustness(context: Context) -> Measure:
    """Mean relative l_inf size of the least FGSM step that changes a prediction, over the rows it does change."""
    name = "art.empirical_robustness"
    if not context.has_classes:
        return no_classes(name)
    every, width = evaluation_inputs(context), _width(context)
    # The size is relative to that of the row: of rows that are zero it is infinite.
    x = every[np.abs(every).reshape(len(every), -1).max(1) > 0]
    if not len(x):
        return not_applicable(name, "not applicable: all rows are zero, a relative size has no meaning")

    def compute() -> tuple[float, float]:
        from art.attacks.evasion import FastGradientMethod
        from art.metrics import empirical_robustness as metric

        classifier = estimator(context)
        settings = {"norm": np.inf, "eps": width, "eps_step": width / _FGSM_STEPS, "batch_size": 256}
        crafted = FastGradientMethod(classifier, minimal=True, **settings).generate(x)
        before, after = (classifier.predict(rows).argmax(1) for rows in (x, crafted))
        return float(metric(classifier, x, "fgsm", settings)), float((before != after).mean())

    found = with_art(context, name, compute)
    if isinstance(found, Measure):
        return found
    value, fooled = found
    details = {
        "rows": told_rows(context, len(every)),
        "zero_rows_left_out": len(every) - len(x),
        "fooled": fooled,
        "largest_step": width,
        **PRECISION,
    }
    if fooled == 0:
        # ART returns 0 here, which would read as "not robust at all".
        return not_applicable(name, f"not applicable: FGSM fooled no row up to l_inf {width:g}", details)
    return measured(name, value, reason=f"mean over the {fooled:.0%} of rows that FGSM fools", details=details)


def loss_sensitivity(context: Context) -> Measure:
    """Mean l_2 norm of the gradient of the cross-entropy in the input, over test rows."""
    name = "art.loss_sensitivity"
    if not context.has_classes:
        return no_classes(name)
    x, targets = evaluation_inputs(context), evaluation_targets(context)

    def compute() -> float:
        from art.metrics import loss_sensitivity as metric

        return float(metric(estimator(context), x, targets))

    found = with_art(context, name, compute)
    if isinstance(found, Measure):
        return found
    details = {"rows": told_rows(context, len(x)), "loss": "cross_entropy", **PRECISION}
    return measured(name, found, details=details)


def clever(context: Context) -> Measure:
    """CLEVER score, untargeted, l_2: median over 20 test rows, 50 batches of 100, radius 5."""
    name = "art.clever"
    if not context.has_classes:
        return no_classes(name)
    x = evaluation_inputs(context)[: int(_CLEVER["rows"])]
    calls = len(x) * (context.outputs - 1) * 2 * _CLEVER["batch_size"]
    if name not in context.named:
        minutes = math.ceil(calls * _GRADIENT_CALL / 60)
        return skipped(name, f"skipped: cost, about {minutes} minute(s); name {name} to run it")

    def compute() -> list[float]:
        from art.metrics import clever_u

        classifier, scores = estimator(context), []
        for done, row in enumerate(x):
            if context.progress is not None:
                context.progress(f"audit: {name}, row {done + 1} of {len(x)}", None)
            settings = (int(_CLEVER["batches"]), int(_CLEVER["batch_size"]), _CLEVER["radius"], int(_CLEVER["norm"]))
            scores.append(float(clever_u(classifier, row, *settings, verbose=False)))
        return scores

    found = with_art(context, name, compute)
    if isinstance(found, Measure):
        return found
    near = first_order_distances(context, len(x))
    failed = sum(score < _DEGENERATE * min(own, _CLEVER["radius"]) for score, own in zip(found, near, strict=True))
    details = {
        **_CLEVER,
        "rows": told_rows(context, len(x)),
        "scores": found,
        "first_order_median": _finite(statistics.median(near)),
        "fits_that_failed": failed,
        **PRECISION,
    }
    share = f"the extreme value fit failed on {failed} of {len(x)} rows, whose scores are near 0 without meaning"
    reason = share if failed else ""
    return measured(name, statistics.median(found), valid=2 * failed < len(x), reason=reason, details=details)


def first_order_distances(context: Context, count: int) -> list[float]:
    """`min_j (z_c - z_j) / |grad (z_c - z_j)|_2` of the first test rows, c the predicted class.

    A CLEVER score is the same with the largest gradient met nearby, so it should be of this order or below.

    Args:
        context: the audit.
        count: of rows.

    Returns:
        One distance a row, infinite where the logits do not depend on the input.
    """
    problem, x = context.problem, context.evaluation_rows[:count]

    def logits(row: Tensor) -> Tensor:
        return problem.outputs(x=row[None])[0]

    with torch.no_grad():
        scores = problem.outputs(x=x)
        slopes = vmap(jacrev(logits), chunk_size=1)(x).flatten(2)
    predicted = scores.argmax(1, keepdim=True)
    margins = scores.gather(1, predicted) - scores
    own = slopes.gather(1, predicted[:, :, None].expand(-1, 1, slopes.shape[2]))
    distances = margins / (own - slopes).norm(dim=2)
    # The predicted class itself is 0 / 0.
    return distances.nan_to_num(nan=math.inf).scatter(1, predicted, math.inf).amin(1).tolist()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _width(context: Context) -> float:
    """Widest side of the box, of the data where there is none."""
    if context.box is not None:
        lower, upper = (torch.as_tensor(end) for end in context.box)
        return float((upper - lower).max())
    rows = context.evaluation_rows
    return max(float(rows.max() - rows.min()), 1e-12)
