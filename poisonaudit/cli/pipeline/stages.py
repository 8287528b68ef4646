"""Trainings of an attack run, each stored as it finishes and read back when the run is resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from poisonaudit.attack.objectives import Objective
from poisonaudit.cli.console import Reporter
from poisonaudit.cli.pipeline.goals import flat
from poisonaudit.cli.pipeline.victim import Victim, tensors_of
from poisonaudit.config.schema import RetrainConfig
from poisonaudit.errors import PoisonAuditError, StorageError
from poisonaudit.problem import Problem
from poisonaudit.results import finite
from poisonaudit.store import RunFolder
from poisonaudit.verify import (
    Kind,
    Retrained,
    Retraining,
    Trainer,
    Training,
    drawable,
    fitted,
    loose_trainer,
    retrainings,
    trained,
)


@contextmanager
def as_stored(folder: RunFolder, name: str) -> Iterator[None]:
    """Whatever is amiss with what was read is damage to the file, told in one line.

    Args:
        folder: of the run.
        name: of the file.

    Yields:
        Nothing.

    Raises:
        StorageError: PA505, the file does not hold what a run stores there.
    """
    try:
        yield
    except PoisonAuditError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            "PA505",
            f"{folder.path / name} does not hold what a run stores there ({type(error).__name__}: {error}). Restore "
            "it, or run the command again in another folder.",
        ) from error


@dataclass(frozen=True)
class Stages:
    """Where trainings are kept.

    Attributes:
        folder: of the run.
        victim: whose architecture the weights belong to.
        report: told what is trained and what is read back.
        controls: another run on the same victim, seeds and tolerance, whose controls serve here too.
    """

    folder: RunFolder
    victim: Victim
    report: Reporter
    controls: RunFolder | None = None

    def training(
        self, name: str, text: str, seed: int | None, train: Callable[[], Retraining], procedure: str = ""
    ) -> Retraining:
        """The stored training `weights-NAME.safetensors`, or a new one, stored at once.

        Args:
            name: of the stage.
            text: what to tell the user; "" for nothing where it is kept.
            seed: of the fresh start; None for a warm one.
            train: does the work.
            procedure: what trains, stored with the weights: a control of another run must have been trained alike.

        Returns:
            The training, its outcome still empty.
        """
        file = f"weights-{name}.safetensors"
        if (
            self.controls is not None
            and name.startswith("control-")
            and self.controls.exists(file)
            and self.controls.read_metadata(file).get("procedure", "") == procedure
        ):
            self.folder.write_bytes(file, self.controls.file(file).read_bytes())
        if self.folder.exists(file):
            if text:
                self.report.note(f"{text}: kept from before")
            with as_stored(self.folder, file):
                known = self.folder.read_metadata(file)
                weights = flat(self.victim, self.folder.read_tensors(file))
                figure = known["relative_gradient"]
                return Retraining(
                    weights,
                    seed,
                    bool(known["converged"]),
                    float("inf") if figure is None else float(figure),
                    float(known["seconds"]),
                    {},
                    str(known["reason"]),
                )
        self.report.stage(text)
        done = train()
        facts = {key: getattr(done, key) for key in ("seed", "converged", "relative_gradient", "seconds", "reason")}
        facts["procedure"] = procedure
        self.folder.write_tensors(file, tensors_of(self.victim.problem.at(done.weights)), finite(facts))
        return done

    def weights(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Stored weights `weights-NAME.safetensors`, or new ones, stored at once."""
        file = f"weights-{name}.safetensors"
        if self.folder.exists(file):
            return flat(self.victim, self.folder.read_tensors(file))
        weights = make()
        self.folder.write_tensors(file, tensors_of(self.victim.problem.at(weights)), {"stage": name})
        return weights

    def result(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stored plain data `NAME.json`, or new ones, stored at once."""
        file = f"{name}.json"
        if not self.folder.exists(file):
            self.folder.write_json(file, {"schema": "poisonaudit/stage/1", "result": finite(make())})
        with as_stored(self.folder, file):
            return dict(self.folder.read_json(file)["result"])


@dataclass(frozen=True)
class Procedures:
    """How and from which seeds an attack run trains again.

    Attributes:
        tolerance: relative gradient of every tight training.
        plan: kind of training -> its fresh seeds; `seed` itself may have trained the clean model.
        trainers: kind of training -> what trains, where it is not `fit`.
    """

    tolerance: float
    plan: Mapping[Kind, Sequence[int]]
    trainers: Mapping[Kind, Trainer]

    def do(self, stages: Stages, training: Training, problem: Problem, rival: str = "") -> Retraining:
        """One training on a problem, taken from where it is kept or stored there at once.

        Args:
            stages: where trainings are kept.
            training: which.
            problem: what is trained.
            rival: whose poison it is on, where it is not the run's own; controls are shared.

        Returns:
            The training, its outcome still empty.
        """
        kind, seed = training.kind, training.seed
        name, text = stage_name(training), training.text
        if rival and training.poisoned:
            name, text = f"baseline-{rival}-{name}", f"{rival}: {text}"
        elif rival and stages.folder.exists(f"weights-{name}.safetensors"):
            # A control that the run's own attack has been judged by already.
            text = ""
        if kind == "tight":
            return stages.training(name, text, seed, lambda: fitted(problem, self.tolerance, seed, stages.report))
        assert seed is not None
        trainer = self.trainers[kind]
        return stages.training(
            name,
            text,
            seed,
            lambda: trained(trainer, problem, seed, self.tolerance),
            str(trainer),
        )


def make_procedures(config: RetrainConfig, seed: int, trainer: Trainer | None) -> Procedures:
    """The procedures of a recipe.

    Args:
        config: its `retrain`.
        seed: base of the fresh seeds.
        trainer: the user's own training, loaded.

    Returns:
        Tight, loose and own training, as far as asked for.
    """
    loose = config.fresh if config.loose is None else config.loose
    plan: dict[Kind, Sequence[int]] = {"tight": range(seed + 1, seed + 1 + config.fresh)}
    trainers: dict[Kind, Trainer] = {}
    if trainer is not None:
        plan["trainer"], trainers["trainer"] = plan["tight"], trainer
    if loose:
        plan["loose"] = range(seed + 1, seed + 1 + loose)
        trainers["loose"] = loose_trainer(config.loose_epochs)
    return Procedures(config.tolerance, plan, trainers)


def stage_name(training: Training) -> str:
    """What a training is called in the run: `weights-NAME.safetensors`."""
    if training.seed is None:
        return "warm" if training.poisoned else "control-warm"
    if training.kind == "tight":
        return f"fresh-{training.seed}" if training.poisoned else f"control-{training.seed}"
    name = f"{training.kind}-{training.seed}"
    return name if training.poisoned else f"control-{name}"


def try_trainer(stages: Stages, procedures: Procedures) -> None:
    """The first control by the user's own training: what is wrong with it shows before anything is crafted."""
    seeds = procedures.plan.get("trainer", ())
    if seeds:
        procedures.do(stages, Training("trainer", seeds[0], False), stages.victim.problem)


def staged_retraining(
    stages: Stages,
    perturbation: Tensor,
    objective: Objective,
    predicted: Mapping[str, Any],
    procedures: Procedures,
    rival: str = "",
) -> Retrained:
    """What `verify.retrain` does, with every training stored as it finishes.

    Args:
        stages: where trainings are kept.
        perturbation: like the training rows.
        objective: what outcomes are judged by.
        predicted: the poison's predicted outcome.
        procedures: how and from which seeds.
        rival: name of the baseline whose poison it is; "" for the run's own.

    Returns:
        All trainings with their outcomes.
    """
    clean, test = stages.victim.problem, stages.victim.test
    poisoned = clean.with_data(clean.x + perturbation)
    plan, notes = drawable(clean, procedures.plan)
    for note in () if rival else notes:
        stages.report.warn(note)

    def train(training: Training) -> Retraining:
        return procedures.do(stages, training, poisoned if training.poisoned else clean, rival)

    return retrainings(clean, plan, train, objective, predicted, test, notes)
