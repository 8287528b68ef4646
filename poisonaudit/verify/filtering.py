"""Drop the rows that a detector flags, train again, and say what is left of the attack and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poisonaudit.attack.objectives import Objective
from poisonaudit.attack.outcome import TestRows, outcome
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.problem import Problem
from poisonaudit.results import finite
from poisonaudit.training import Progress
from poisonaudit.verify.detectors.detection import Detection
from poisonaudit.verify.effects import effect, effect_name
from poisonaudit.verify.retrained import Retrained, Retraining
from poisonaudit.verify.retraining import fitted
from poisonaudit.verify.statistics import mean_and_error, success_rate

if TYPE_CHECKING:
    from poisonaudit.attack.poison import Poison


@dataclass(frozen=True, eq=False)
class _Arm:
    """One training set, trained warm (seed None, first) and from every seed, in one order for all arms."""

    runs: tuple[Retraining, ...]
    rows: int


def retrain_filtered(
    problem: Problem,
    poison: Poison,
    detection: Detection,
    seeds: Sequence[int] = (1, 2, 3),
    tolerance: float = 1e-10,
    *,
    seed: int = 0,
    objective: Objective | None = None,
    test: TestRows | None = None,
    effect_wanted: str | None = None,
    retrained: Retrained | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on what a filter leaves, with controls that tell the attack's rest from the cost of fewer rows.

    Arms, each trained warm (from the clean weights, as in `retrain`) and from the same fresh seeds: `clean` (all rows,
    unpoisoned), `poisoned` (all rows), `filtered` (without the flagged rows), `random` (without as many rows drawn at
    random, another draw for every start), `clean_filtered` (unpoisoned, without the flagged rows). Effects count from
    the clean arm of the same start; what is `left` of the attack counts the filtered arm from `clean_filtered`, which
    has lost the same rows, so it is 0 once all poisoned rows are gone.

    Args:
        problem: clean, at the clean solution.
        poison: made for it.
        detection: of the poisoned problem's rows.
        seeds: of the fresh starts; none for warm only.
        tolerance: relative gradient of the fits.
        seed: of the rows dropped at random; each start adds 1.
        objective: what effects are judged by; default the poison's.
        test: (x, y) for accuracies; without it accuracy is that on all clean training rows.
        effect_wanted: a name as in `poisonaudit.verify.effects.effect_name`; None for the objective's own.
        retrained: of an earlier `retrain` with the same seeds, to save the clean and the poisoned arm.
        progress: called with a message and a fraction.

    Returns:
        Plain data: `applicable`, `reason`, `detector`, `flagged`, `rows_left`, `poisoned`, `poisoned_left`,
        `random_poisoned_left` (one number a start), `effect` (its name), `effects` (arm -> warm, mean and standard
        error over the fresh seeds), `left` (the same, with `share` of the poisoned arm's effect), `success` (arm ->
        rate with exact interval, None where undefined), `accuracy` and `accuracy_change` from the clean arm (arm ->
        the same), `not_converged` (arm -> number), `arms` (arm -> all runs).

    Raises:
        UsageError: PA371, seeds are not distinct; PA372, `retrained` is of other seeds; PA301, an unknown effect.
        InputRefused: PA211, poison or detection are of other rows.
    """
    seeds = [int(each) for each in seeds]
    if len(set(seeds)) < len(seeds):
        raise UsageError("PA371", f"seeds are {seeds}; they must be distinct. Pass (1, 2, 3).")
    if retrained is not None and [run.seed for run in retrained.control.fresh] != seeds:
        raise UsageError(
            "PA372",
            f"the retraining was made from seeds {[run.seed for run in retrained.control.fresh]}, this run asks for "
            f"{seeds}. Pass the same seeds, or leave it out.",
        )
    poisoned = poison.poisoned(problem)
    if len(detection.flagged) != problem.rows:
        raise InputRefused(
            "PA211", f"the detection is of {len(detection.flagged)} rows, the problem has {problem.rows}. Detect again."
        )
    facts = _facts(problem, poison, detection)
    if facts["reason"]:
        return finite(facts)
    kept = (~detection.flagged.to(problem.device)).nonzero().flatten()
    draws = [_draw(problem, len(kept), seed + start) for start in range(1 + len(seeds))]
    rows = poison.rows.to(problem.device)
    facts["random_poisoned_left"] = [int(torch.isin(rows, chosen).sum()) for chosen in draws]
    problems = {
        "clean": [problem] * len(draws),
        "poisoned": [poisoned] * len(draws),
        "filtered": [on_rows(poisoned, kept)] * len(draws),
        "random": [on_rows(poisoned, chosen) for chosen in draws],
        "clean_filtered": [on_rows(problem, kept)] * len(draws),
    }
    arms = _given_arms(problem, retrained)
    missing = [name for name in problems if name not in arms]
    for index, name in enumerate(missing):
        if progress is not None:
            progress(f"retraining: {name}", index / len(missing))
        arms[name] = _train(problems[name], seeds, tolerance)
    aim = poison.objective if objective is None else objective
    return finite({**facts, **_Judge(problem, aim, test, effect_wanted, arms).verdict()})


def on_rows(problem: Problem, kept: Tensor) -> Problem:
    """The problem on some of its rows; loss and decay stay, the mean is over the rows that are left.

    Args:
        problem: any.
        kept: positions (k,), at least one.

    Returns:
        A new Problem at the same weights.
    """
    return Problem(
        problem.module(),
        problem.loss,
        problem.x[kept],
        problem.y[kept],
        problem.decay,
        memory_limit=problem.memory_limit,
    )


def _facts(problem: Problem, poison: Poison, detection: Detection) -> dict[str, Any]:
    """What can be said before any training, with the reason why none is needed."""
    flagged = detection.flagged.to(problem.device)
    dropped = int(flagged.sum())
    reason = detection.reason
    if detection.applicable and dropped == 0:
        reason = "not applicable: the detector flags no row, so nothing is dropped"
    elif detection.applicable and dropped == problem.rows:
        reason = "not applicable: the detector flags every row, so nothing is left to train on"
    return {
        "applicable": not reason,
        "reason": reason,
        "detector": detection.name,
        "flagged": dropped,
        "rows_left": problem.rows - dropped,
        "poisoned": len(poison.rows),
        "poisoned_left": int((~flagged[poison.rows.to(problem.device)]).sum()),
    }


def _given_arms(problem: Problem, retrained: Retrained | None) -> dict[str, _Arm]:
    if retrained is None:
        return {}
    control = retrained.control
    return {
        "clean": _Arm((control.warm, *control.fresh), problem.rows),
        "poisoned": _Arm((retrained.warm, *retrained.fresh), problem.rows),
    }


def _draw(problem: Problem, count: int, seed: int) -> Tensor:
    """Positions (count,) of rows drawn at random, ascending."""
    chosen = torch.randperm(problem.rows, generator=torch.Generator().manual_seed(seed))[:count]
    return chosen.sort().values.to(problem.device)


def _train(problems: Sequence[Problem], seeds: Sequence[int], tolerance: float) -> _Arm:
    """Warm on the first problem, then fresh from each seed on the next one."""
    runs = [fitted(each, tolerance, seed) for each, seed in zip(problems, (None, *seeds), strict=True)]
    return _Arm(tuple(runs), problems[0].rows)


class _Judge:
    """Outcomes of all arms, each run beside the clean run of the same start."""

    def __init__(
        self,
        problem: Problem,
        objective: Objective,
        test: TestRows | None,
        wanted: str | None,
        arms: Mapping[str, _Arm],
    ) -> None:
        self.arms = arms
        self.outcomes = {
            name: [
                outcome(problem, run.weights, objective, test, reference=base.weights)
                for run, base in zip(arm.runs, arms["clean"].runs, strict=True)
            ]
            for name, arm in arms.items()
        }
        self.rest = [
            outcome(problem, run.weights, objective, test, reference=base.weights)
            for run, base in zip(arms["filtered"].runs, arms["clean_filtered"].runs, strict=True)
        ]
        self.effect = effect_name(self.outcomes["poisoned"][0], wanted)
        self.accuracy = "train_accuracy" if test is None else "test_accuracy"

    def verdict(self) -> dict[str, Any]:
        effects = {
            name: _summary([effect(each, self.effect) for each in found]) for name, found in self.outcomes.items()
        }
        left = _summary([effect(each, self.effect) for each in self.rest])
        whole, rest = (each["warm"] if each["mean"] is None else each["mean"] for each in (effects["poisoned"], left))
        return {
            "effect": self.effect,
            "effects": effects,
            "left": {**left, "share": rest / whole if whole > 0 else None},
            "success": {name: _rate(found[1:]) for name, found in self.outcomes.items()},
            "accuracy_of": "test rows" if self.accuracy == "test_accuracy" else "clean training rows",
            "accuracy": {name: self._accuracies(found) for name, found in self.outcomes.items()},
            "accuracy_change": {
                name: self._accuracies(found, self.outcomes["clean"])
                for name, found in self.outcomes.items()
                if name != "clean"
            },
            "not_converged": {name: sum(not run.converged for run in arm.runs) for name, arm in self.arms.items()},
            "arms": {
                name: {
                    "rows": arm.rows,
                    "runs": [
                        {**run.to_json(), **figures} for run, figures in zip(arm.runs, self.outcomes[name], strict=True)
                    ],
                }
                for name, arm in self.arms.items()
            },
        }

    def _accuracies(
        self, found: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Any] | None:
        values = [each[self.accuracy] for each in found]
        if any(value is None for value in values):
            return None
        if base is not None:
            values = [value - other[self.accuracy] for value, other in zip(values, base, strict=True)]
        return _summary(values)


def _summary(values: Sequence[float]) -> dict[str, Any]:
    """The warm value, and mean and standard error of the fresh ones."""
    fresh = [value for value in values[1:] if math.isfinite(value)]
    mean, error = mean_and_error(fresh)
    return {"warm": values[0], "mean": mean, "standard_error": error}


def _rate(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    reached = [each.get("success") for each in figures]
    if not reached or any(each is None for each in reached):
        return None
    return asdict(success_rate(sum(map(bool, reached)), len(reached)))
