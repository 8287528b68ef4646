"""Crafting in a run: kept after every step, so that an interrupted one goes on; the finished poison as files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poisonaudit.attack import Budget, Poison, craft
from poisonaudit.attack.objectives import Objective
from poisonaudit.attack.progress import CraftState
from poisonaudit.cli.console import Reporter
from poisonaudit.cli.pipeline.exports import storable
from poisonaudit.cli.pipeline.goals import make_budget, positions_of
from poisonaudit.cli.pipeline.stages import Stages, as_stored
from poisonaudit.cli.pipeline.victim import Victim, unit_of
from poisonaudit.config.schema import AttackConfig
from poisonaudit.store import RunFolder
from poisonaudit.verify import Trainer, loose_trainer

POISON = "poison.safetensors"
CRAFTED = "craft.json"
_STATE, _STATE_FACTS = "crafting.safetensors", "crafting.json"
_FACTS = ("predicted", "history", "products", "gradients", "seconds", "notes", "method")


def crafting_options(config: AttackConfig, trainer: Trainer | None) -> dict[str, Any]:
    """The options of `craft` that a recipe names.

    Args:
        config: the recipe.
        trainer: the user's own training, loaded.

    Returns:
        Keywords; with `outer: training` the owner's procedure, which is loose training where none is named.
    """
    names = ("steps", "method", "outer", "solutions", "members", "aggregate", "max_products", "damping")
    options = {name: getattr(config.craft, name) for name in names}
    if config.craft.outer == "training":
        options |= {"outer": "retrain", "trainer": trainer or loose_trainer(config.retrain.loose_epochs)}
    return options


def crafted(
    config: AttackConfig, stages: Stages, objective: Objective, trainer: Trainer | None, report: Reporter
) -> Poison:
    """The stored poison, or a new one, stored at once.

    Args:
        config: the recipe.
        stages: where it is kept, and the victim.
        objective: of the run.
        trainer: the user's own training, loaded.
        report: told what is going on.

    Returns:
        The poison.
    """
    folder, victim = stages.folder, stages.victim
    budget = make_budget(config.budget, victim)
    if folder.exists(CRAFTED):
        report.note("poison: kept from before")
        return stored_poison(folder, victim, budget, objective)
    state = stored_state(folder)
    if state is not None:
        report.note(f"crafting: {state.step} of {config.craft.steps} steps kept from before")
    report.stage("crafting")
    poison = craft(
        victim.problem,
        objective,
        budget,
        config.seed,
        **crafting_options(config, trainer),
        test=victim.test,
        state=state,
        on_step=lambda reached: store_state(folder, reached),
        progress=report,
    )
    poison = storable(victim, poison)
    for note in poison.notes:
        report.note(f"crafting: {note}")
    stages.weights("crafted", lambda: poison.weights)
    store_poison(folder, victim, poison, config.name)
    for name in (_STATE_FACTS, _STATE):
        folder.file(name).unlink(missing_ok=True)
    return poison


def store_state(folder: RunFolder, state: CraftState) -> None:
    """Keep what crafting has reached; the JSON is last, and names the step that its tensors belong to."""
    folder.write_tensors(_STATE, state.tensors(), {"step": state.step})
    folder.write_json(_STATE_FACTS, {"schema": "poisonaudit/crafting/1", **state.plain()})


def stored_state(folder: RunFolder) -> CraftState | None:
    """What an interrupted crafting had reached, None where nothing is kept.

    A process that is killed between the two files leaves the tensors of one step more; points are only ever appended,
    so those that the JSON tells of are the first.

    Args:
        folder: of the run.

    Returns:
        The state, to be handed to `craft`.

    Raises:
        StorageError: PA505, a file does not hold what a run stores there.
    """
    if not (folder.exists(_STATE) and folder.exists(_STATE_FACTS)):
        return None
    with as_stored(folder, _STATE_FACTS):
        facts: dict[str, Any] = {key: value for key, value in folder.read_json(_STATE_FACTS).items() if key != "schema"}
        tensors, count = folder.read_tensors(_STATE), len(facts["values"])
        if len(tensors["deltas"]) < count:
            return None
        return CraftState.of({key: each if key == "rows" else each[:count] for key, each in tensors.items()}, facts)


def store_poison(folder: RunFolder, victim: Victim, poison: Poison, recipe: str, name: str = "") -> None:
    """Keep a finished poison: rows and changes, then what is known about it.

    Args:
        folder: of the run.
        victim: gives ids of rows.
        poison: to be kept.
        recipe: its name.
        name: of a baseline; "" for the run's own attack.
    """
    tensors, facts = _files(name)
    ids = victim.data.train_ids[poison.rows.cpu()]
    metadata = {"recipe": recipe, "unit": unit_of(victim), **({"method": name} if name else {})}
    folder.write_tensors(tensors, {"rows": ids, "delta": poison.delta}, metadata)
    # Last, because its presence says that the stage is complete.
    folder.write_json(facts, {"schema": "poisonaudit/craft/1", **{key: getattr(poison, key) for key in _FACTS}})


def stored_poison(folder: RunFolder, victim: Victim, budget: Budget, objective: Objective, name: str = "") -> Poison:
    """A poison of an interrupted run, of the run itself or of a baseline; baselines have the clean weights.

    Args:
        folder: of the run.
        victim: gives ids of rows.
        budget: of the run.
        objective: of the run.
        name: of a baseline; "" for the run's own attack.

    Returns:
        The poison.

    Raises:
        StorageError: PA505, a file does not hold what a run stores there.
    """
    tensors, facts_file = _files(name)
    with as_stored(folder, facts_file):
        facts: Mapping[str, Any] = folder.read_json(facts_file)
        stored, weights = folder.read_tensors(tensors), victim.problem.weights
        if not name:
            weights = Stages(folder, victim, Reporter()).weights("crafted", lambda: victim.problem.weights)
        rows = stored["rows"].new_tensor(positions_of(stored["rows"].tolist(), victim)).to(victim.problem.device)
        return Poison(
            rows=rows,
            delta=stored["delta"].to(victim.problem.x),
            predicted=dict(facts["predicted"]),
            history=tuple(dict(line) for line in facts["history"]),
            budget=budget,
            objective=objective,
            weights=weights,
            products=int(facts["products"]),
            seconds=float(facts["seconds"]),
            notes=tuple(facts["notes"]),
            method=str(facts.get("method", name or "solution_set")),
            gradients=int(facts.get("gradients", 0)),
        )


def baseline_done(folder: RunFolder, name: str) -> bool:
    """Whether the poison of a baseline is kept."""
    return folder.exists(_files(name)[1])


def _files(name: str) -> tuple[str, str]:
    return (f"baseline-{name}.safetensors", f"baseline-{name}.json") if name else (POISON, CRAFTED)
