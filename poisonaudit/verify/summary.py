"""What several retrainings say together: rates, paired changes with tests, and how far the prediction was off."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from poisonaudit.quantities import counted_from_control, unmoved
from poisonaudit.verify.statistics import mean_and_error, paired_test, success_rate

if TYPE_CHECKING:
    from poisonaudit.verify.retrained import Retraining


def summarise(
    runs: Sequence[Retraining],
    controls: Sequence[Retraining],
    warm: Retraining,
    predicted: Mapping[str, Any],
    quantities: Sequence[str],
    level: float,
) -> dict[str, Any]:
    """One group of trainings from fresh seeds, all by the same procedure.

    Args:
        runs: on poisoned rows.
        controls: on clean rows, from the same seeds in the same order.
        warm: the warm retraining.
        predicted: the predicted outcome.
        quantities: what is paired: changes from a seed's own control.
        level: confidence level of the intervals.

    Returns:
        Plain data: `fresh_runs`, `not_converged`, `control_not_converged`, `success`, `control_success` (exact
        intervals; None where the objective defines no success, and for controls that effects are counted from; every
        run counts, converged or not), `paired`
        (see `paired_changes`), `cosine` (mean, standard_error, predicted, warm; None where the objective has none),
        `accuracy_change` (of the test accuracy, paired).
    """
    # Success is counted from the control of the same seed then; that control's own would be another seed's effect.
    own = any(counted_from_control(key) for key in quantities if key in warm.outcome)
    return {
        "fresh_runs": len(runs),
        "not_converged": sum(not run.converged for run in runs),
        "control_not_converged": sum(not run.converged for run in controls),
        "success": _rate(runs, level),
        "control_success": None if own else _rate(controls, level),
        "paired": {key: paired_changes(key, runs, warm, predicted) for key in quantities if key in warm.outcome},
        "cosine": _mean("cosine", runs, warm, predicted) if "cosine" in warm.outcome else None,
        "accuracy_change": _accuracy_change(runs, controls),
    }


def paired_changes(
    key: str, runs: Sequence[Retraining], warm: Retraining, predicted: Mapping[str, Any]
) -> dict[str, Any]:
    """A change from control to poisoned, over the seeds.

    Args:
        key: of a quantity that is counted from the seed's own control, e.g. movement, margin_change.
        runs: on poisoned rows.
        warm: the warm retraining.
        predicted: the predicted outcome.

    Returns:
        `mean` and `standard_error` over the seeds, `predicted`, `warm`, `test` (see `paired_test`, of the effects;
        None without seeds), `ratio` (retrained / predicted effect: `median`, `lowest` and `highest` over the seeds,
        `warm`; None where no effect is predicted). Effects are counted from the value of an unmoved model.
    """
    still = unmoved(key)
    values = [value - still for value in _numbers(key, runs)]
    expected = predicted.get(key)
    ratio = None
    if expected is not None and expected != still:
        expected = expected - still
        ratios = [value / expected for value in values]
        reached = warm.outcome.get(key)
        reached = None if reached is None else reached - still
        ratio = {
            "median": statistics.median(ratios) if ratios else None,
            "lowest": min(ratios, default=None),
            "highest": max(ratios, default=None),
            "warm": None if reached is None else reached / expected,
        }
    test = dataclasses.asdict(paired_test(values)) if values else None
    return {**_mean(key, runs, warm, predicted), "test": test, "ratio": ratio}


def not_predicted(predicted: Mapping[str, Any]) -> str | None:
    """Why the prediction must not be used, None where nothing speaks against it or nothing was predicted."""
    if predicted.get("valid") is not False:
        return None
    reasons = [str(reason).rstrip(".") for reason in predicted.get("reasons") or ()]
    return "; ".join(reasons) or "the prediction is flagged as not valid, without a reason"


def _mean(key: str, runs: Sequence[Retraining], warm: Retraining, predicted: Mapping[str, Any]) -> dict[str, Any]:
    mean, error = mean_and_error(_numbers(key, runs))
    return {"mean": mean, "standard_error": error, "predicted": predicted.get(key), "warm": warm.outcome.get(key)}


def _numbers(key: str, runs: Sequence[Retraining]) -> list[float]:
    """What the runs have; where weights did not move at all, some quantities are undefined."""
    values = [run.outcome.get(key) for run in runs]
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def _rate(runs: Sequence[Retraining], level: float) -> dict[str, Any] | None:
    """Successes among runs; None if the objective leaves success undefined or there are no runs."""
    outcomes = [run.outcome.get("success") for run in runs]
    if not outcomes or any(success is None for success in outcomes):
        return None
    return dataclasses.asdict(success_rate(sum(map(bool, outcomes)), len(outcomes), level))


def _accuracy_change(runs: Sequence[Retraining], controls: Sequence[Retraining]) -> dict[str, Any] | None:
    """Mean change of test accuracy from control to poisoned, over the seeds."""
    pairs = [
        (run.outcome["test_accuracy"], control.outcome["test_accuracy"])
        for run, control in zip(runs, controls, strict=True)
    ]
    if not pairs or any(value is None for pair in pairs for value in pair):
        return None
    mean, error = mean_and_error([poisoned - clean for poisoned, clean in pairs])
    return {"mean": mean, "standard_error": error}
