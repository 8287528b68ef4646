"""The stored retrainings of one attack, each set against the prediction and against its clean control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from poisonaudit.quantities import Quantity, flat_outcome
from poisonaudit.report.formats import figure, items_of, mapping_of
from poisonaudit.report.tally import Tally, reached, tally
from poisonaudit.results import AttackResult

Training = Literal["tight", "loose", "trainer"]
# How the retrained models were trained; predictions are about tight minima and judged on these alone.
TRAININGS: dict[Training, str] = {
    "tight": "To a tight minimum",
    "loose": "Loosely, as in practice",
    "trainer": "By the owner's own procedure",
}


@dataclass(frozen=True)
class Prediction:
    """What was predicted for an attack.

    Attributes:
        value: the primary number, None if not stored.
        reached: whether the goal was predicted to be reached.
        valid: whether the prediction passed its validity test.
        outcome: everything predicted.
    """

    value: float | None
    reached: bool | None
    valid: bool
    outcome: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One retraining on the poisoned data.

    Attributes:
        name: "warm start" or "fresh seed N".
        training: "tight", "loose" or "trainer", see `TRAININGS`.
        procedure: the stored name of the training procedure, "" if there is none.
        fresh: False for the warm start.
        value: the primary number, None if not stored.
        control: the same number from unpoisoned data on the same seed, None if not stored.
        control_reached: True if the control reaches the goal without any poison; None where it cannot or is not known.
        converged: None where not stated.
        reached: whether the attacker's goal was reached.
        ratio: effect over predicted effect, None where either is missing or the predicted one is zero.
        confirms: whether it agrees with the prediction; None if it cannot be counted.
        outcome: everything stored about it.
    """

    name: str
    training: Training
    procedure: str
    fresh: bool
    value: float | None
    control: float | None
    control_reached: bool | None
    converged: bool | None
    reached: bool | None
    ratio: float | None
    confirms: bool | None
    outcome: Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """The retrainings of one kind of training.

    Attributes:
        training: "tight", "loose" or "trainer".
        title: the same for a reader.
        procedures: stored names of the procedures, "" if none.
        trials: the retrainings.
        tally: their numbers in short.
        control: success rate of the clean control in words, "" where none is stored or none can succeed.
    """

    training: Training
    title: str
    procedures: str
    trials: tuple[Trial, ...]
    tally: Tally
    control: str


def groups_of(attack: AttackResult, quantity: Quantity, prediction: Prediction) -> tuple[Group, ...]:
    """The retrainings of an attack by training, tight ones first; kinds of training without any are left out."""
    retrained, control = mapping_of(attack.retrained), mapping_of(attack.control)
    summary = mapping_of(retrained.get("summary"))
    groups = []
    for training, title in TRAININGS.items():
        tight = training == "tight"
        entries, controls = _listed(retrained, training), _listed(control, training)
        told = mapping_of(summary.get(training)) or (summary if tight else {})
        warm = flat_outcome(retrained.get("warm")) if tight else {}
        clean_warm = flat_outcome(control.get("warm")) if tight else {}
        trials = [_trial("warm start", training, False, warm, clean_warm, quantity, prediction)] if warm else []
        trials += _fresh(training, entries, controls, quantity, prediction)
        if trials:
            # What a control's own number means is told by its stored success only, unless it counts by value.
            judged = quantity if quantity.control == "value" else replace(quantity, reached_at=None)
            clean = tally(judged, None, controls, {"success": told.get("control_success")})
            names = dict.fromkeys(trial.procedure for trial in trials if trial.procedure)
            groups.append(
                Group(
                    training,
                    title,
                    ", ".join(names),
                    tuple(trials),
                    tally(quantity, warm, entries, told),
                    "" if quantity.control == "never" else clean.rate,
                )
            )
    return tuple(groups)


def decisive(attack: AttackResult) -> Training:
    """The training by which `fresh` is judged: the owner's own where it was given, else the tight one."""
    retrained = mapping_of(attack.retrained)
    return "trainer" if "tight" in retrained and items_of(retrained.get("trainer")) else "tight"


def _listed(source: Mapping[str, Any], training: Training) -> list[Any]:
    """Stored fresh runs of one training: `fresh` repeats the tight ones or, beside `tight`, the decisive ones."""
    return items_of(source.get("fresh" if training == "tight" and "tight" not in source else training))


def _fresh(
    training: Training, entries: list[Any], controls: list[Any], quantity: Quantity, prediction: Prediction
) -> list[Trial]:
    by_seed = {flat_outcome(item).get("seed"): flat_outcome(item) for item in controls}
    trials = []
    for item in entries:
        outcome = flat_outcome(item)
        seed = outcome.get("seed")
        name = "fresh seed" if seed is None else f"fresh seed {seed}"
        trials.append(_trial(name, training, True, outcome, by_seed.get(seed, {}), quantity, prediction))
    return trials


def _trial(
    name: str,
    training: Training,
    fresh: bool,
    outcome: Mapping[str, Any],
    control: Mapping[str, Any],
    quantity: Quantity,
    prediction: Prediction,
) -> Trial:
    """One retraining set against the prediction."""
    value, predicted = figure(outcome, quantity.key), prediction.value
    got = reached(outcome, quantity)
    converged = outcome.get("converged") if isinstance(outcome.get("converged"), bool) else None
    control_reached = None
    if quantity.control == "value" or (quantity.control == "stored" and isinstance(control.get("success"), bool)):
        control_reached = reached(control, quantity)
    confirms: bool | None = None
    if converged is False or not prediction.valid or training != "tight":
        pass
    elif quantity.confirmed_by == "size" and value is not None and predicted is not None:
        confirms = None if control_reached else quantity.confirms(value, predicted)
    elif quantity.confirmed_by == "side" and got is not None and prediction.reached is not None and not control_reached:
        confirms = got == prediction.reached
    return Trial(
        name=name,
        training=training,
        procedure=str(outcome.get("training") or (outcome.get("reason") if training != "tight" else None) or ""),
        fresh=fresh,
        value=value,
        control=figure(control, quantity.key),
        control_reached=control_reached,
        converged=converged,
        reached=got,
        ratio=quantity.effect_ratio(outcome, prediction.outcome),
        confirms=confirms,
        outcome=outcome,
    )
