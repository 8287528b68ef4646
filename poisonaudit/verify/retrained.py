"""Results of retraining: what was reached, beside what was predicted and beside clean controls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from poisonaudit.quantities import PAIRED
from poisonaudit.verify.statistics import mean_and_error, success_rate


@dataclass(frozen=True, eq=False)
class Retraining:
    """One training run.

    Attributes:
        weights: reached (p,).
        seed: of the initialisation; None for a warm start.
        converged: relative gradient at most the tolerance asked for.
        relative_gradient: `|R| / (lambda_max |w|)` reached.
        seconds: wall time.
        outcome: see `poisonaudit.attack.outcome`; fresh poisoned seeds are judged against their own control.
        reason: how it ended, in words.
    """

    weights: Tensor
    seed: int | None
    converged: bool
    relative_gradient: float
    seconds: float
    outcome: Mapping[str, Any]
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data without the weights."""
        return {
            "seed": self.seed,
            "converged": self.converged,
            "relative_gradient": self.relative_gradient,
            "seconds": self.seconds,
            "reason": self.reason,
            **self.outcome,
        }


@dataclass(frozen=True, eq=False)
class Control:
    """The same training without poison.

    Attributes:
        warm: the clean weights, polished.
        fresh: clean data from the seeds of the poisoned runs, in the same order.
    """

    warm: Retraining
    fresh: tuple[Retraining, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data: {"warm": ..., "fresh": [...]}."""
        return {"warm": self.warm.to_json(), "fresh": [run.to_json() for run in self.fresh]}


@dataclass(frozen=True, eq=False)
class Retrained:
    """What really happens with the poison.

    Attributes:
        warm: training continued from the clean weights on the poisoned rows.
        fresh: training from new seeds on the poisoned rows, by `fit` or by the user's own trainer.
        control: the same without poison.
        predicted: the poison's predicted outcome.
    """

    warm: Retraining
    fresh: tuple[Retraining, ...]
    control: Control
    predicted: Mapping[str, Any] = field(default_factory=dict)

    def summary(self, level: float = 0.95) -> dict[str, Any]:
        """Success rates with exact intervals, mean paired changes, and runs that did not converge.

        Args:
            level: confidence level of the intervals.

        Returns:
            Plain data: `fresh_runs`, `not_converged` (fresh, poisoned), `warm_success`, `success` and
            `control_success` (None where the objective defines no success; every fresh run counts, converged or
            not), `paired` (quantity -> mean, standard_error, predicted, warm), `accuracy_change`.
        """
        runs, controls = self.fresh, self.control.fresh
        return {
            "fresh_runs": len(runs),
            "not_converged": sum(not run.converged for run in runs),
            "control_not_converged": sum(not run.converged for run in controls),
            "warm_converged": self.warm.converged,
            "warm_success": self.warm.outcome.get("success"),
            "success": _rate(runs, level),
            "control_success": _rate(controls, level),
            "paired": {key: self._paired(key) for key in PAIRED if key in self.warm.outcome},
            "accuracy_change": _accuracy_change(runs, controls),
        }

    def records(self) -> list[dict[str, Any]]:
        """Predicted beside retrained, one record per retraining and quantity.

        Returns:
            Dicts with `quantity`, `start` ("warm" or "fresh"), `seed`, `predicted`, `retrained`, `ratio`
            (retrained / predicted, None at 0), `converged`.
        """
        found = []
        for key in PAIRED:
            for run in (self.warm, *self.fresh):
                if key not in run.outcome:
                    continue
                predicted, reached = self.predicted.get(key), run.outcome[key]
                found.append(
                    {
                        "quantity": key,
                        "start": "warm" if run.seed is None else "fresh",
                        "seed": run.seed,
                        "predicted": predicted,
                        "retrained": reached,
                        "ratio": reached / predicted if predicted and reached is not None else None,
                        "converged": run.converged,
                    }
                )
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data: {"warm": ..., "fresh": [...], "summary": ..., "records": [...]}; see `control.to_json`."""
        return {
            "warm": self.warm.to_json(),
            "fresh": [run.to_json() for run in self.fresh],
            "summary": self.summary(),
            "records": self.records(),
        }

    def _paired(self, key: str) -> dict[str, Any]:
        # A ratio is null or NaN where its control has nothing left to go.
        values = [value for run in self.fresh if (value := run.outcome[key]) is not None and not math.isnan(value)]
        mean, error = mean_and_error(values)
        return {
            "mean": mean,
            "standard_error": error,
            "predicted": self.predicted.get(key),
            "warm": self.warm.outcome[key],
        }


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
