"""What the model gives away of single training rows, by ART: SHAPr and pointwise differential training privacy."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poisonaudit.audit.art_common import (
    PRECISION,
    as_array,
    estimator,
    evaluation_inputs,
    evaluation_targets,
    no_classes,
    one_hot,
    told_rows,
    with_art,
)
from poisonaudit.audit.context import Context
from poisonaudit.audit.facts import measured, not_applicable, skipped
from poisonaudit.problem import Problem
from poisonaudit.results import Measure
from poisonaudit.row_statistics import median
from poisonaudit.training import fit, relative_gradient
from poisonaudit.validity import STATIONARITY_LIMIT, at_infinity

_SHOWN = 10
# Seconds that ART's loop takes for a pair of a training and a test row.
_PAIR = 6e-6
# Rows left out by PDTP, drawn where no rows are asked for, and what retraining without one aims at.
_LEFT_OUT, _TOLERANCE = 50, 1e-8
# Of warm retraining, measured: gradients it takes, and operations of its factorisation a second.
_GRADIENTS, _SPEED = 250, 1e10
# Probabilities are compared in bins of 1 %: from the lowest centre to the highest.
_CEILING = 0.995 / 0.005


def shapr(context: Context) -> Measure:
    """SHAPr (Duddu, Szyller and Asokan 2022): largest score over training rows.

    A row's score is its Shapley value in the accuracy of a one-nearest-neighbour classifier in the space of the model's
    outputs, `sum_j phi_i(j) * n / m` over m test rows: a row without which test rows were answered otherwise is one
    that the outputs remember. The mean over all rows is that classifier's accuracy, whatever the model, so the value is
    the largest.

    Args:
        context: the audit.

    Returns:
        The measure.
    """
    name = "art.shapr"
    if not context.has_classes:
        return no_classes(name)
    if context.test is None:
        return not_applicable(name, "not applicable: it takes test rows, which the model was not trained on")
    x, targets = evaluation_inputs(context), evaluation_targets(context)
    if reason := context.too_dear(name, _PAIR * len(x) * context.problem.rows):
        return skipped(name, reason)

    def compute() -> Any:
        from art.metrics import SHAPr

        own = one_hot(_training_labels(context), context.outputs)
        return SHAPr(estimator(context), as_array(context.problem.x), own, x, targets)

    found = with_art(context, name, compute)
    if isinstance(found, Measure):
        return found
    every = torch.as_tensor(found).double()
    positions = torch.arange(context.problem.rows) if context.rows is None else context.rows.cpu()
    values = every[positions]
    details = {
        "rows": len(values),
        "test_rows": told_rows(context, len(x)),
        "neighbours": 1,
        "distance": "Euclidean, of the outputs before softmax",
        "median": median(values),
        "share_above_0": float((values > 0).double().mean()),
        "mean_is_neighbour_accuracy": float(every.mean()),
        "most_exposed": _most_exposed(context, positions, values),
        **PRECISION,
    }
    return measured(name, float(values.max()), details=details)


def pdtp(context: Context) -> Measure:
    """PDTP (Long, Bindschaedler and Gunter 2017): largest ratio of probabilities with and without a training row.

    ART's metric leaves out one row at a time and trains again. Its estimator here trains to the minimum without that
    row, warm from the audited weights, so that what differs is due to the row and not to another start. For each row
    left out the metric is `max max(p / p', p' / p)` over all training rows and classes, p and p' rounded to the centres
    of bins of 1 %.

    Args:
        context: the audit; `rows` says which rows are left out, else 50 are drawn with the audit's seed.

    Returns:
        The measure; its value is the largest over the rows left out.
    """
    name, problem = "art.pdtp", context.problem
    if not context.has_classes:
        return no_classes(name)
    if problem.loss != "cross_entropy":
        return not_applicable(name, "not applicable: the outputs are class probabilities only for the cross-entropy")
    if at_infinity(problem):
        reason = "cross-entropy without decay on rows that the model separates has its minimum at infinity"
        return not_applicable(name, f"not applicable: {reason}, so that training again has no end; train with decay")
    left_out = _rows_left_out(context)
    if name not in context.named:
        minutes = math.ceil(len(left_out) * _retraining_seconds(problem) / 60)
        told = f"about {minutes} minute(s) to train without each of {len(left_out)} rows"
        return skipped(name, f"skipped: cost, {told}; name {name} to run it")
    reached: list[float] = []

    def compute() -> Any:
        from art.metrics import PDTP

        module = copy.deepcopy(context.model).float()
        again = estimator(context, model=module, kind=_leave_one_out(context, module, left_out, reached))
        own = one_hot(_training_labels(context), context.outputs)
        rows = torch.tensor(left_out).numpy()
        return PDTP(estimator(context), again, as_array(problem.x), own, indexes=rows, num_iter=1)[0]

    found = with_art(context, name, compute)
    if isinstance(found, Measure):
        return found
    values, figure = torch.as_tensor(found).double(), relative_gradient(problem)
    ended_above = sum(each > _TOLERANCE for each in reached)
    details = {
        "rows": len(left_out),
        "drawn": context.rows is None and len(left_out) < problem.rows,
        "retrained": f"warm from the audited weights to relative gradient {_TOLERANCE:.0e}",
        "retrainings_above_tolerance": ended_above,
        "relative_gradient": figure,
        "iterations": 1,
        "comparison": "ratio, probabilities in bins of 1 %",
        "ceiling": _CEILING,
        "at_ceiling": int((values > _CEILING * (1 - 1e-3)).sum()),
        "median": median(values),
        "most_exposed": _most_exposed(context, torch.tensor(left_out), values),
        **PRECISION,
    }
    reasons = []
    if not figure < STATIONARITY_LIMIT:
        reasons.append(
            f"not stationary: relative gradient {figure:.1e}, so that training again moves what any row does"
        )
    if ended_above:
        reasons.append(f"{ended_above} of {len(left_out)} retrainings ended above the tolerance")
    return measured(name, float(values.max()), valid=not reasons, reason="; ".join(reasons), details=details)


def _training_labels(context: Context) -> Tensor:
    y = context.problem.y
    return y.argmax(1) if y.is_floating_point() else y


def _most_exposed(context: Context, positions: Tensor, values: Tensor) -> list[dict[str, Any]]:
    """The rows of largest values, by their names in the data."""
    labels, found = _training_labels(context), []
    for index in torch.argsort(values, descending=True, stable=True)[:_SHOWN].tolist():
        position = int(positions[index])
        row = position if context.row_ids is None else int(context.row_ids[position])
        found.append({"row": row, "label": int(labels[position]), "value": float(values[index])})
    return found


def _rows_left_out(context: Context) -> list[int]:
    if context.rows is not None:
        return context.rows.tolist()
    generator = torch.Generator().manual_seed(context.seed)
    return torch.randperm(context.problem.rows, generator=generator)[:_LEFT_OUT].sort().values.tolist()


def _retraining_seconds(problem: Problem) -> float:
    """One warm fit: gradients, timed here, and the factorisation of the Hessian."""
    begun = time.perf_counter()
    problem.gradient()
    gradient = time.perf_counter() - begun
    return _GRADIENTS * gradient + (4.0 * problem.rows * problem.size**2 + problem.size**3) / _SPEED


def _leave_one_out(context: Context, module: torch.nn.Module, rows: Sequence[int], reached: list[float]) -> Any:
    """A subclass of ART's classifier whose `fit` is the problem's own, without the row that the metric left out.

    Args:
        context: the audit.
        module: that the classifier predicts with; gets the weights.
        rows: left out, in the metric's order.
        reached: gets the relative gradient of every fit.

    Returns:
        The class.
    """
    from art.estimators.classification import PyTorchClassifier

    problem, turns, total = context.problem, itertools.cycle(rows), len(rows)

    class LeaveOneOut(PyTorchClassifier):  # type: ignore[misc]
        """Trains in double precision on the problem's own rows: those that come in were rounded to single."""

        def reset(self) -> None:
            """Nothing: training is warm, and `fit` begins from the audited weights each time."""

        def fit(self, x: Any, y: Any, **_: Any) -> None:
            """Train without the next row of the order in which the metric asks.

            Raises:
                RuntimeError: the metric left out another row than expected.
            """
            row = next(turns)
            kept = torch.cat([torch.arange(row), torch.arange(row + 1, problem.rows)]).to(problem.device)
            if x.shape[0] != len(kept) or (as_array(problem.x[kept]) != x).any():
                raise RuntimeError(f"the metric asked for training without another row than {row}")
            if context.progress is not None:
                context.progress(f"audit: art.pdtp, retraining {len(reached) + 1} of {total}", None)
            rest = Problem(problem.module(), problem.loss, problem.x[kept], problem.y[kept], problem.decay)
            found = fit(rest, _TOLERANCE, dense_test=False)
            reached.append(found.relative_gradient)
            with torch.no_grad():
                for own, value in found.problem.parameters(found.problem.weights).items():
                    module.get_parameter(own).copy_(value)

    return LeaveOneOut
