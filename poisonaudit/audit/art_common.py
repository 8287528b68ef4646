"""What metrics of the Adversarial Robustness Toolbox share: an estimator made from the Problem, and its failures."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from poisonaudit.art_estimator import art_classifier, art_session
from poisonaudit.audit.context import Context
from poisonaudit.audit.facts import not_applicable
from poisonaudit.results import Measure

# ART computes in single precision, and so does the copy of the model that it gets.
PRECISION = {"dtype": "float32"}
_MOST_ROWS = 256


def no_classes(name: str) -> Measure:
    """The ending of every one of these metrics for regression."""
    return not_applicable(name, "not applicable: the metric is about classes")


def evaluation_inputs(context: Context) -> Any:
    """The first 256 test rows as ART takes them."""
    return as_array(context.evaluation_rows[:_MOST_ROWS])


def evaluation_targets(context: Context) -> Any:
    """Their classes, one-hot."""
    return one_hot(context.evaluation_labels[:_MOST_ROWS], context.outputs)


def told_rows(context: Context, count: int) -> str:
    """Which of the evaluation rows were used, in words."""
    return f"first {count} of {context.evaluated_on}"


def as_array(rows: Tensor) -> Any:
    """A float32 array."""
    return rows.detach().float().cpu().numpy()


def one_hot(labels: Tensor, classes: int) -> Any:
    """Rows of the unit matrix, float32."""
    return np.eye(classes, dtype=np.float32)[labels.cpu().numpy()]


def estimator(context: Context, *, model: Any = None, kind: Any = None) -> Any:
    """ART's classifier around a float32 copy of the model.

    Args:
        context: the audit.
        model: float32 module in place of that copy.
        kind: subclass of ART's `PyTorchClassifier`.

    Returns:
        The classifier.
    """
    return art_classifier(
        copy.deepcopy(context.model).float() if model is None else model,
        tuple(context.evaluation_rows.shape[1:]),
        context.outputs,
        context.box,
        # ART differentiates the loss of the whole batch, so a mean would shrink every row by 1/n.
        reduction="sum",
        device_type="gpu" if context.problem.device.type == "cuda" else "cpu",
        kind=kind,
    )


def with_art(context: Context, name: str, compute: Callable[[], Any]) -> Any:
    """What `compute` returns, or a "not applicable" measure with what ART said.

    Args:
        context: the audit; its seed is that of the global generators that ART draws from, which are put back.
        name: of the measure.
        compute: uses ART.

    Returns:
        The result, or a `Measure`.
    """
    with art_session(context.seed):
        # ART checks its arguments and its models with plain exceptions of every type: none of them may stop an audit.
        try:
            return compute()
        except Exception as trouble:
            said = " ".join(f"{type(trouble).__name__}: {trouble}".split())
            return not_applicable(name, f"not applicable: ART could not compute it ({said})")
