"""One attack read as a finding: what was predicted, what retraining showed, and whether the two agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from poisonaudit.quantities import TOLERANCE, Quantity, quantity_of
from poisonaudit.report.formats import figure, items_of, mapping_of, number
from poisonaudit.report.tally import reached, span
from poisonaudit.report.trials import Group, Prediction, Trial, decisive, groups_of
from poisonaudit.results import AttackResult

Standing = Literal["confirmed", "partly confirmed", "not confirmed", "not predicted", "not retrained", "not judged"]

RULE = (
    "Where an attack is predicted by how far it gets (movement, distance left, loss, accuracy), a retraining confirms "
    f"it if its effect ends within {100 * TOLERANCE:.0f} % of the predicted one. Predicted flips (or their absence) "
    "are confirmed if the retrained model ends on the same side of success. Shown but not counted: trainings that did "
    "not converge, loose trainings and the owner's own procedure, attacks without a valid prediction, and successes "
    "that the clean control shows as well."
)
GOAL_RULE = (
    "The goal of an attack is the one stored with it. Where none is: for a flip the wanted label, for several flips "
    "all of them, for a region to be inside, for target weights and wanted predictions half of the way; a rise of the "
    "loss or a drop of a group's accuracy then has no goal and is not judged."
)


@dataclass(frozen=True)
class Finding:
    """One attack, judged.

    Attributes:
        attack: the stored result.
        label: a distinct name for the report.
        quantity: what this kind of attack is measured by.
        predicted: the predicted primary number.
        predicted_reached: whether the goal was predicted to be reached.
        valid: whether the prediction passed its validity test.
        reasons: why it did not.
        groups: the retrainings by training, tight ones first.
        standing: whether retraining to tight minima confirmed it.
        sentence: the same in plain words.
        model: the attacked model, under the name it has in the whole report.
    """

    attack: AttackResult
    label: str
    quantity: Quantity
    predicted: float | None
    predicted_reached: bool | None
    valid: bool
    reasons: Sequence[str]
    groups: Sequence[Group]
    standing: Standing
    sentence: str
    model: str

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Retrainings to a tight minimum, the ones the prediction is about: warm start first, then fresh seeds."""
        return tight_trials(self.groups)

    @property
    def decisive(self) -> tuple[Trial, ...]:
        """Retrainings that success and movement are counted on: by the owner's own procedure where it was given."""
        training = decisive(self.attack)
        return next((group.trials for group in self.groups if group.training == training), ())

    @property
    def left_out(self) -> tuple[str, ...]:
        """What was not trained, and why."""
        summary = mapping_of(mapping_of(self.attack.retrained).get("summary"))
        return tuple(str(note) for note in items_of(summary.get("notes")) if note is not None)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What there is to know of the poison, of the prediction's validity, and of the retrainings."""
        summary = mapping_of(mapping_of(self.attack.retrained).get("summary"))
        predicted = items_of(mapping_of(self.attack.predicted).get("notes"))
        told = [*(f"poison: {note}" for note in items_of(self.attack.notes) if note)]
        told += [*(f"prediction: {note}" for note in predicted if note), *items_of(summary.get("remarks"))]
        return tuple(f"{str(text)[:1].upper()}{str(text)[1:]}." for text in told if text)

    @property
    def counted(self) -> list[Trial]:
        """Retrainings that confirm or contradict the prediction."""
        return [trial for trial in self.trials if trial.confirms is not None]

    @property
    def judged(self) -> list[Trial]:
        """Retrainings of which it is known whether they reached the attacker's goal."""
        return [trial for trial in self.trials if trial.reached is not None]

    @property
    def caution(self) -> str:
        """A sentence where controls reach the goal without any poison, else empty."""
        clean = [trial for trial in self.trials if trial.control_reached is not None]
        hits = sum(bool(trial.control_reached) for trial in clean)
        if not hits:
            return ""
        return (
            f"{hits} of {len(clean)} control trainings on clean data show the attacker's goal as well: "
            "there the poison is not the cause."
        )

    @property
    def loosened(self) -> str:
        """A sentence where other trainings follow the poison less than tight ones do, else empty."""
        tight = next((group for group in self.groups if group.training == "tight"), None)
        if tight is None:
            return ""
        others = [group for group in self.groups if group.training != "tight"]
        return " ".join(text for group in others if (text := _weaker(self.quantity, group, tight)))


def finding(attack: AttackResult, label: str | None = None, model: str | None = None) -> Finding:
    """Judge one stored attack by `RULE`; missing and null entries are allowed anywhere."""
    quantity = quantity_of(attack.recipe, attack.predicted, attack.retrained)
    outcome = mapping_of(attack.predicted)
    predicted, predicted_reached = figure(outcome, quantity.key), reached(outcome, quantity)
    reasons = [str(reason) for reason in items_of(outcome.get("reasons"))]
    stated = predicted is not None or (quantity.confirmed_by == "side" and predicted_reached is not None)
    valid = stated and outcome.get("valid") is not False
    groups = groups_of(attack, quantity, Prediction(predicted, predicted_reached, valid, outcome))
    trials = tight_trials(groups)
    standing = judge(valid, trials)
    sentence = explain(standing, quantity, predicted, outcome, reasons, trials)
    name = attack.name if label is None else label
    shown = attack.model if model is None else model
    return Finding(
        attack, name, quantity, predicted, predicted_reached, valid, reasons, groups, standing, sentence, shown
    )


def tight_trials(groups: Sequence[Group]) -> tuple[Trial, ...]:
    """The retrainings to a tight minimum."""
    return next((group.trials for group in groups if group.training == "tight"), ())


def judge(valid: bool, trials: Sequence[Trial]) -> Standing:
    """The standing of a prediction by `RULE`."""
    if not any(trial.value is not None or trial.reached is not None for trial in trials):
        return "not retrained"
    if not valid:
        return "not predicted"
    votes = [trial.confirms for trial in trials if trial.confirms is not None]
    if not votes:
        return "not judged"
    if all(votes):
        return "confirmed"
    return "partly confirmed" if any(votes) else "not confirmed"


def explain(
    standing: Standing,
    quantity: Quantity,
    predicted: float | None,
    outcome: Mapping[str, Any],
    reasons: Sequence[str],
    trials: Sequence[Trial],
) -> str:
    """The standing and its numbers as plain sentences."""
    votes = [trial.confirms for trial in trials if trial.confirms is not None]
    counted = [trial.value for trial in trials if trial.confirms is not None]
    observed = span(counted or [trial.value for trial in trials])
    word = quantity.word
    if standing == "not retrained":
        return f"Not retrained: the predicted {word} of {number(predicted)} has no retrained counterpart."
    if standing == "not predicted":
        because = "; ".join(reason.rstrip(".") for reason in reasons)
        phi = figure(outcome, "phi")
        if not because:
            because = f"phi is {number(phi)}" if phi is not None else "the stored result gives no valid prediction"
        return f"Not predicted because {because}. Retraining gave for the {word}: {observed}."
    if standing == "not judged":
        return (
            f"Not judged: none of {len(trials)} retrainings can be counted against the predicted {word} of "
            f"{number(predicted)}. Retraining gave {observed}."
        )
    agree = f"{sum(votes)} of {len(votes)} counted retrainings agree with the prediction"
    uncounted = ", ".join(f"{trial.name} ({number(trial.value, 3)})" for trial in trials if trial.confirms is None)
    tail = f" Not counted: {uncounted}." if uncounted else ""
    head = {"confirmed": "Confirmed", "partly confirmed": "Partly confirmed"}.get(standing, "Not confirmed")
    return f"{head}: {agree}. Predicted {word} {number(predicted)}, retrained {observed}.{tail}"


def _weaker(quantity: Quantity, group: Group, tight: Group) -> str:
    """A sentence if the fresh seeds of a group follow the poison less than those of the tight one."""
    who = {"loose": "Loosely trained models", "trainer": "Models trained by the owner's procedure"}[group.training]
    moral = "the numbers from tight minima overstate what the poison does there."
    here, there = group.tally, tight.tally
    if here.share is not None and there.share is not None and (here.share != there.share):
        told = f"{here.wins} of {here.judged} fresh seeds against {there.wins} of {there.judged}"
        return f"{who} reach the attacker's goal less often: {told}; {moral}" if here.share < there.share else ""
    less, more = quantity.effect(here.mean), quantity.effect(there.mean)
    # Success rates that are equal leave nothing to say of a flip, but a movement may still be much smaller.
    if quantity.confirmed_by == "side" or less is None or more is None or less >= (1 - TOLERANCE) * more:
        return ""
    told = f"mean {quantity.word} {number(here.mean, 3)} against {number(there.mean, 3)}"
    return f"{who} follow the poison less: {told}; {moral}"
