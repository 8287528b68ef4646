"""Metrics of the Adversarial Robustness Toolbox, on a float32 copy of the model."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from poisonaudit.art_estimator import art_classifier, art_session
from poisonaudit.audit.context import Context
from poisonaudit.audit.facts import measured, not_applicable, skipped
from poisonaudit.results import Measure

_ROWS = 256
_FGSM_STEPS = 50
_CLEVER = {"rows": 20, "batches": 50, "batch_size": 100, "radius": 5.0, "norm": 2}
# Seconds of one gradient call of ART on a small net; CLEVER makes 2 x batch_size of them per row and class.
_GRADIENT_CALL = 0.001


def empirical_robustness(context: Context) -> Measure:
    """Mean relative l_inf size of the least FGSM step that changes a prediction, over the rows it does change."""
    name = "art.empirical_robustness"
    if not context.has_classes:
        return _no_classes(name)
    x, width = _inputs(context), _width(context)

    def compute(classifier: Any) -> tuple[float, float]:
        from art.attacks.evasion import FastGradientMethod
        from art.metrics import empirical_robustness as metric

        settings = {"norm": np.inf, "eps": width, "eps_step": width / _FGSM_STEPS, "batch_size": 256}
        crafted = FastGradientMethod(classifier, minimal=True, **settings).generate(x)
        before, after = (classifier.predict(rows).argmax(1) for rows in (x, crafted))
        return float(metric(classifier, x, "fgsm", settings)), float((before != after).mean())

    found = _with_art(context, name, compute)
    if isinstance(found, Measure):
        return found
    value, fooled = found
    details = {"rows": f"first {len(x)} of {context.evaluated_on}", "fooled": fooled, "largest_step": width, **_VERSION}
    if fooled == 0:
        # ART returns 0 here, which would read as "not robust at all".
        return not_applicable(name, f"not applicable: FGSM fooled no row up to l_inf {width:g}", details)
    return measured(name, value, reason=f"mean over the {fooled:.0%} of rows that FGSM fools", details=details)


def loss_sensitivity(context: Context) -> Measure:
    """Mean l_2 norm of the gradient of the cross-entropy in the input, over test rows."""
    name = "art.loss_sensitivity"
    if not context.has_classes:
        return _no_classes(name)
    x = _inputs(context)
    labels = np.eye(context.outputs, dtype=np.float32)[context.evaluation_labels[: len(x)].cpu().numpy()]

    def compute(classifier: Any) -> float:
        from art.metrics import loss_sensitivity as metric

        return float(metric(classifier, x, labels))

    found = _with_art(context, name, compute)
    if isinstance(found, Measure):
        return found
    details = {"rows": f"first {len(x)} of {context.evaluated_on}", "loss": "cross_entropy", **_VERSION}
    return measured(name, found, details=details)


def clever(context: Context) -> Measure:
    """CLEVER score, untargeted, l_2: median over 20 test rows, 50 batches of 100, radius 5."""
    name = "art.clever"
    if not context.has_classes:
        return _no_classes(name)
    x = _inputs(context)[: int(_CLEVER["rows"])]
    calls = len(x) * (context.outputs - 1) * 2 * _CLEVER["batch_size"]
    if name not in context.named:
        minutes = math.ceil(calls * _GRADIENT_CALL / 60)
        return skipped(name, f"skipped: cost, about {minutes} minute(s); name {name} to run it")

    def compute(classifier: Any) -> list[float]:
        from art.metrics import clever_u

        scores = []
        for done, row in enumerate(x):
            if context.progress is not None:
                context.progress(f"audit: {name}, row {done + 1} of {len(x)}", None)
            settings = (int(_CLEVER["batches"]), int(_CLEVER["batch_size"]), _CLEVER["radius"], int(_CLEVER["norm"]))
            scores.append(float(clever_u(classifier, row, *settings, verbose=False)))
        return scores

    found = _with_art(context, name, compute)
    if isinstance(found, Measure):
        return found
    details = {**_CLEVER, "rows": f"first {len(x)} of {context.evaluated_on}", "scores": found, **_VERSION}
    return measured(name, statistics.median(found), details=details)


_VERSION = {"dtype": "float32"}


def _no_classes(name: str) -> Measure:
    return not_applicable(name, "not applicable: the metric is about classes")


def _inputs(context: Context) -> Any:
    return context.evaluation_rows[:_ROWS].detach().float().cpu().numpy()


def _width(context: Context) -> float:
    """Widest side of the box, of the data where there is none."""
    if context.box is not None:
        lower, upper = (torch.as_tensor(end) for end in context.box)
        return float((upper - lower).max())
    rows = context.evaluation_rows
    return max(float(rows.max() - rows.min()), 1e-12)


def _with_art(context: Context, name: str, compute: Callable[[Any], Any]) -> Any:
    """The metric's value, or a "not applicable" measure with what ART said."""
    model = copy.deepcopy(context.model).float()
    with art_session(context.seed):
        # ART checks its arguments and its models with plain exceptions of every type: none of them may stop an audit.
        try:
            classifier = art_classifier(
                model,
                tuple(context.evaluation_rows.shape[1:]),
                context.outputs,
                context.box,
                # ART differentiates the loss of the whole batch, so a mean would shrink every row by 1/n.
                reduction="sum",
                device_type="gpu" if context.problem.device.type == "cuda" else "cpu",
            )
            return compute(classifier)
        except Exception as trouble:
            said = " ".join(f"{type(trouble).__name__}: {trouble}".split())
            return not_applicable(name, f"not applicable: ART could not compute it ({said})")
