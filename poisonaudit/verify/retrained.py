"""Results of retraining: what was reached, beside what was predicted and beside clean controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from poisonaudit.quantities import PAIRED, unmoved
from poisonaudit.verify.summary import not_predicted, summarise

# How a run was trained: by `fit` to its tolerance, by minibatches without polishing, by the user's own procedure.
Kind = Literal["tight", "loose", "trainer"]


@dataclass(frozen=True, eq=False)
class Retraining:
    """One training run.

    Attributes:
        weights: reached (p,).
        seed: of the initialisation; None for a warm start.
        converged: relative gradient at most the tolerance asked for; loose training and a user's own hardly are, and
            their weights are judged as they are.
        relative_gradient: `|R| / (lambda_max |w|)` reached.
        seconds: wall time.
        outcome: see `poisonaudit.attack.outcome`; fresh poisoned seeds are judged against their own control.
        reason: how it ended, in words.
        kind: how it was trained.
    """

    weights: Tensor
    seed: int | None
    converged: bool
    relative_gradient: float
    seconds: float
    outcome: Mapping[str, Any]
    reason: str = ""
    kind: Kind = "tight"

    def to_json(self) -> dict[str, Any]:
        """Plain data without the weights."""
        return {
            "seed": self.seed,
            "kind": self.kind,
            "converged": self.converged,
            "relative_gradient": self.relative_gradient,
            "seconds": self.seconds,
            "reason": self.reason,
            **self.outcome,
        }


@dataclass(frozen=True, eq=False)
class Control:
    """The same trainings without poison, from the seeds of the poisoned runs, in the same order.

    Attributes:
        warm: the clean weights, polished.
        tight: by `fit`, to its tolerance.
        loose: by loose training.
        trainer: by the user's own training.
    """

    warm: Retraining
    tight: tuple[Retraining, ...] = ()
    loose: tuple[Retraining, ...] = ()
    trainer: tuple[Retraining, ...] = ()

    @property
    def fresh(self) -> tuple[Retraining, ...]:
        """The controls of `Retrained.fresh`."""
        return self.trainer or self.tight

    def runs(self, kind: Kind) -> tuple[Retraining, ...]:
        """The fresh runs of one kind."""
        return {"tight": self.tight, "loose": self.loose, "trainer": self.trainer}[kind]

    def to_json(self) -> dict[str, Any]:
        """Plain data: "warm", and lists "fresh", "tight", "loose", "trainer"."""
        return {"warm": self.warm.to_json(), **_lists(self)}


@dataclass(frozen=True, eq=False)
class Retrained:
    """What really happens with the poison.

    Every procedure is shown beside the others, because they differ: tight minima are what predictions are about, and
    overstate what the poison does to models that are trained loosely or by the user's own procedure.

    Attributes:
        warm: training continued from the clean weights on the poisoned rows, tight.
        tight: training from new seeds on the poisoned rows by `fit`, to its tolerance.
        control: the same trainings without poison.
        predicted: the poison's predicted outcome.
        loose: by loose training, from the same seeds.
        trainer: by the user's own training, from the same seeds; empty where none was given.
        notes: what was not trained, and why.
        remarks: what to know of what was trained, e.g. that warm retraining had nothing to do.
    """

    warm: Retraining
    tight: tuple[Retraining, ...]
    control: Control
    predicted: Mapping[str, Any] = field(default_factory=dict)
    loose: tuple[Retraining, ...] = ()
    trainer: tuple[Retraining, ...] = ()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def fresh(self) -> tuple[Retraining, ...]:
        """The fresh runs that the attack is judged by: the user's own training where one was given, else the tight."""
        return self.trainer or self.tight

    def runs(self, kind: Kind) -> tuple[Retraining, ...]:
        """The fresh runs of one kind."""
        return {"tight": self.tight, "loose": self.loose, "trainer": self.trainer}[kind]

    def summary(self, level: float = 0.95) -> dict[str, Any]:
        """Success rates with exact intervals, paired changes with tests, and how far the prediction was off.

        Args:
            level: confidence level of the intervals.

        Returns:
            Plain data: the entries of `summarise` for `fresh`; the same again under "tight", "loose" and "trainer",
            None for a procedure that was not used; `warm_converged`, `warm_success`; `not_predicted` (why the
            prediction must not be used, None where it may); `notes` and `remarks`.
        """
        found = {kind: self._group(kind, level) for kind in ("tight", "loose", "trainer")}
        judged = found["trainer"] or found["tight"] or self._group("tight", level, empty=True)
        assert judged is not None
        return {
            **judged,
            "warm_converged": self.warm.converged,
            "warm_success": self.warm.outcome.get("success"),
            "not_predicted": not_predicted(self.predicted),
            **found,
            "notes": list(self.notes),
            "remarks": list(self.remarks),
        }

    def records(self) -> list[dict[str, Any]]:
        """Predicted beside retrained, one record per quantity and retraining, warm and fresh.

        Returns:
            Dicts with `quantity`, `start` ("warm" or "fresh"), `kind`, `seed`, `predicted`, `retrained`, `ratio`
            (retrained / predicted effect, counted from an unmoved model; None where none is predicted), `converged`.
        """
        found = []
        for key in PAIRED:
            for run in (self.warm, *self.fresh):
                if key not in run.outcome:
                    continue
                predicted, reached, still = self.predicted.get(key), run.outcome[key], unmoved(key)
                found.append(
                    {
                        "quantity": key,
                        "start": "warm" if run.seed is None else "fresh",
                        "kind": run.kind,
                        "seed": run.seed,
                        "predicted": predicted,
                        "retrained": reached,
                        "ratio": None
                        if predicted in (None, still) or reached is None
                        else (reached - still) / (predicted - still),
                        "converged": run.converged,
                    }
                )
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data without weights; the controls are in `control.to_json`.

        Returns:
            "warm"; lists "fresh" (the runs that the attack is judged by, again), "tight", "loose" and "trainer";
            "summary" and "records".
        """
        return {
            "warm": self.warm.to_json(),
            **_lists(self),
            "summary": self.summary(),
            "records": self.records(),
        }

    def _group(self, kind: Kind, level: float, *, empty: bool = False) -> dict[str, Any] | None:
        runs = self.runs(kind)
        if not runs and not empty:
            return None
        return summarise(runs, self.control.runs(kind), self.warm, self.predicted, PAIRED, level)


def _lists(runs: Retrained | Control) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [run.to_json() for run in group]
        for name, group in (
            ("fresh", runs.fresh),
            ("tight", runs.tight),
            ("loose", runs.loose),
            ("trainer", runs.trainer),
        )
    }
