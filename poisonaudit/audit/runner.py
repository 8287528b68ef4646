"""`audit`: choose the measures, run them one after another, keep every ending."""

from __future__ import annotations

import dataclasses
import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poisonaudit.audit import (
    art_metrics,
    art_privacy,
    certified_radius,
    lipschitz,
    solution,
    stationarity,
    tangent,
    tangent_bounds,
    weight_noise,
)
from poisonaudit.audit.context import Context, Progress
from poisonaudit.audit.facts import ended
from poisonaudit.errors import InputRefused, NumericalFailure, PoisonAuditError, UsageError
from poisonaudit.problem import Problem, expect_problem
from poisonaudit.registry import lookup, third_party, unknown_name
from poisonaudit.results import AuditResult, Measure

MeasureFunction = Callable[[Context], Measure]
GROUP = "poisonaudit.measures"

MEASURES: dict[str, MeasureFunction] = {
    "stationarity.relative_gradient": stationarity.relative_gradient_measure,
    "solution.modulus": solution.modulus,
    "solution.row_modulus_max": solution.row_modulus_max,
    "solution.poison_budget": solution.poison_budget,
    "solution.theorem2_max": solution.theorem2_max,
    "solution.theorem3": solution.theorem3,
    "tangent.sensitivity": tangent.sensitivity,
    "tangent.sensitivity_normalised": tangent.sensitivity_normalised,
    "tangent.bound_path": tangent_bounds.bound_path,
    "tangent.bound_theorem31": tangent_bounds.bound_theorem31,
    "tangent.bound_theorem32": tangent_bounds.bound_theorem32,
    "lipschitz.upper.linf": lipschitz.upper_linf,
    "lipschitz.upper.l1": lipschitz.upper_l1,
    "lipschitz.lower.linf": lipschitz.lower_linf,
    "lipschitz.lower.l1": lipschitz.lower_l1,
    "lipschitz.certified_radius_median": certified_radius.median_radius,
    "weight_noise.rms": weight_noise.rms,
    "weight_noise.flip_rate": weight_noise.flip_rate,
    "weight_noise.condition_relative_max": weight_noise.condition_relative_max,
    "art.empirical_robustness": art_metrics.empirical_robustness,
    "art.loss_sensitivity": art_metrics.loss_sensitivity,
    "art.clever": art_metrics.clever,
    "art.shapr": art_privacy.shapr,
    "art.pdtp": art_privacy.pdtp,
}


def known_measures() -> list[str]:
    """Ids of all measures, those of other packages last."""
    return [*MEASURES, *(name for name in third_party(GROUP) if name not in MEASURES)]


def select_measures(wanted: str | Iterable[str] | None) -> tuple[list[str], frozenset[str]]:
    """Resolve ids and prefixes ("solution", "lipschitz.upper").

    Args:
        wanted: None for all; a list, or one string with commas.

    Returns:
        `(ids in the order they run, ids that were named in full)`.

    Raises:
        UsageError: PA301, nothing has that id or prefix; PA322, the list is empty.
    """
    ids = known_measures()
    if wanted is None:
        return ids, frozenset()
    entries = wanted.split(",") if isinstance(wanted, str) else list(wanted)
    names = [entry.strip().rstrip(".") for entry in entries if entry.strip()]
    if not names:
        raise UsageError("PA322", f"no measure was named. Name some of: {', '.join(ids)}.")
    prefixes = {".".join(name.split(".")[:depth]) for name in ids for depth in range(1, name.count(".") + 1)}
    chosen: set[str] = set()
    for name in names:
        matches = [known for known in ids if known == name or known.startswith(f"{name}.")]
        if not matches:
            raise unknown_name(name, [*ids, *prefixes], "measure")
        chosen.update(matches)
    return [name for name in ids if name in chosen], frozenset(names) & frozenset(ids)


def audit(
    problem: Problem,
    measures: str | Iterable[str] | None = None,
    test: tuple[Tensor, Tensor] | None = None,
    *,
    rows: int | None = None,
    seed: int = 0,
    model: str = "",
    data: str = "",
    inputs: Mapping[str, str] | None = None,
    environment: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    classification: bool = True,
    box: tuple[Tensor, Tensor] | None = None,
    row_ids: Sequence[int] | None = None,
    image_shape: tuple[int, ...] | None = None,
    feature_names: Sequence[str] = (),
    progress: Progress | None = None,
) -> AuditResult:
    """Score one model.

    A measure that cannot apply, costs too much or fails, numerically or by a bug (`details.bug`), is listed with that
    status and its reason; it never stops the others. Work shared by measures of a family is charged to the first of
    them (`seconds`).

    Args:
        problem: the trained model and its training rows.
        measures: ids or prefixes; None for all of reasonable cost. An id named in full runs whatever it costs.
        test: (inputs, labels) held out; without them the training rows stand in, and details say so.
        rows: solution measures look at the first so many training rows; None for all.
        seed: of everything drawn.
        model: name for the result.
        data: name for the result.
        inputs: input name -> sha256, for the result.
        environment: versions and machine, for the result.
        recipe: how the model was trained, for the result.
        classification: whether the outputs are class scores; False makes class measures "not applicable".
        box: (lower, upper) of the inputs, each shaped like a row.
        row_ids: name of every training row in the data's own order; its position without them.
        image_shape: (channels, height, width) of a row as a picture; draws the fragile rows.
        feature_names: names of a row's entries; lists the fragile rows of tables.
        progress: called with a message and a fraction.

    Returns:
        The result, measures in the registry's order.

    Raises:
        UsageError: PA323, rows is not a whole number above 0, or row_ids are not one for each row; PA301 or PA322
            from the list of measures.
        InputRefused: PA121, PA210, PA211 or PA212, the test rows or labels do not fit the problem.
    """
    expect_problem(problem, "audit")
    chosen, named = select_measures(measures)
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise UsageError("PA323", f"rows is {rows!r}. Give the number of training rows to measure, at least 1.")
    if rows is not None and rows > problem.rows:
        raise UsageError("PA323", f"rows is {rows}, there are {problem.rows} training rows. Ask for no more than that.")
    if row_ids is not None and len(row_ids) != problem.rows:
        raise UsageError("PA323", f"{len(row_ids)} row ids for {problem.rows} training rows. Give one for each row.")
    if test is not None:
        _refuse_unfit(problem, *test)
    positions = None if rows is None or rows >= problem.rows else torch.arange(rows, device=problem.device)
    context = Context(
        problem=problem,
        test=test,
        rows=positions,
        seed=seed,
        classification=classification,
        box=box,
        row_ids=None if row_ids is None else list(row_ids),
        image_shape=None if image_shape is None else tuple(image_shape),
        feature_names=tuple(feature_names),
        named=named,
        progress=progress,
    )
    if test is not None and classification:
        _refuse_labels(test[1], context.outputs)
    found: dict[str, Measure] = {}
    for done, name in enumerate(chosen):
        if progress is not None:
            progress(f"audit: {name}", done / len(chosen))
        found[name] = run_measure(name, lookup(MEASURES, name, "measure", group=GROUP), context)
    if progress is not None:
        progress("audit: done", 1.0)
    return AuditResult(
        model=model,
        data=data,
        measures=found,
        inputs=inputs or {},
        environment=environment or {},
        seed=seed,
        recipe=recipe or {},
    )


def run_measure(name: str, function: MeasureFunction, context: Context) -> Measure:
    """Run one measure; what went wrong with the numbers or the fit of the model becomes its status.

    Args:
        name: id.
        function: the measure.
        context: the audit.

    Returns:
        The measure with its wall time. What nobody expected is a failure as well, marked `details.bug`, with the type
        and place of the error: hours of other measures must not be lost with it.
    """
    begun = time.perf_counter()
    try:
        measure = _checked(function(context))
    except InputRefused as refusal:
        measure = ended(name, "not applicable", f"not applicable: {refusal.message}", {"code": refusal.code})
    except NumericalFailure as failure:
        measure = ended(name, "failed", failure.message, {"code": failure.code})
    except (torch.linalg.LinAlgError, ArithmeticError) as failure:  # type: ignore[attr-defined]
        measure = ended(name, "failed", f"{type(failure).__name__}: {_line(failure)}")
    except (MemoryError, torch.OutOfMemoryError) as failure:
        measure = ended(name, "failed", f"out of memory: {_line(failure)}")
    except PoisonAuditError as error:
        measure = ended(name, "failed", f"failed: {error.message}", {"code": error.code})
    except Exception as error:
        fact = f"{type(error).__name__}: {_line(error)}".rstrip(": ")
        reason = f"failed: {fact} ({_where(error)}); this is a bug, please report it"
        measure = ended(name, "failed", reason, {"bug": True, "error": fact, "where": _where(error)})
    if measure.value is not None and not math.isfinite(measure.value):
        measure = _without_nonfinite(measure)
    return dataclasses.replace(measure, seconds=time.perf_counter() - begun)


def bugs(result: AuditResult) -> list[Measure]:
    """The measures that failed by an error nobody expected."""
    return [measure for measure in result.measures.values() if measure.details.get("bug")]


def _checked(measure: Any) -> Measure:
    if not isinstance(measure, Measure):
        raise TypeError(f"the measure returned a {type(measure).__name__}, not a Measure")
    return measure


def _where(error: BaseException) -> str:
    """File, line and function of the innermost frame, without the folders of this machine."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"


def _without_nonfinite(measure: Measure) -> Measure:
    """Measures of other packages may return infinity or NaN as a plain number."""
    if math.isnan(measure.value or 0.0):
        failed = {**measure.details, "status": "failed"}
        return dataclasses.replace(
            measure, value=None, valid=False, reason="the computation returned NaN", details=failed
        )
    return dataclasses.replace(measure, value=None, details={**measure.details, "infinite": True})


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _refuse_unfit(problem: Problem, x: Tensor, y: Tensor) -> None:
    if x.shape[1:] != problem.x.shape[1:] or x.shape[0] == 0 or y.shape[:1] != x.shape[:1]:
        raise InputRefused(
            "PA211",
            f"test inputs are {tuple(x.shape)} with labels {tuple(y.shape)}, training rows are "
            f"{tuple(problem.x.shape[1:])} each. Pass test rows of that shape with one label each.",
        )
    if x.dtype != problem.dtype or x.device != problem.device:
        raise InputRefused(
            "PA121",
            f"test inputs are {x.dtype} on {x.device}, the problem is {problem.dtype} on {problem.device}. "
            "Convert with .to().",
        )
    if not bool(torch.isfinite(x).all()):
        raise InputRefused("PA210", "test inputs hold NaN or infinite entries. Remove or impute those rows.")


def _refuse_labels(labels: Tensor, outputs: int) -> None:
    """Class numbers must be classes of this model."""
    if labels.is_floating_point() or labels.dim() != 1 or outputs < 2:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= outputs:
        raise InputRefused(
            "PA212", f"test labels run from {low} to {high}, the model has {outputs} outputs. Use 0..{outputs - 1}."
        )
