"""What an attack run set out to do, and on what machine: resuming it elsewhere or otherwise is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poisonaudit.config.load import check_config, plain
from poisonaudit.config.schema import AttackConfig
from poisonaudit.errors import UsageError
from poisonaudit.results import finite
from poisonaudit.store import RunFolder, environment

PLAN = "plan.json"
COMMAND = "command.json"
PLAN_SCHEMA = "poisonaudit/plan/1"
# What changes the last bits of a result; see `store.environment`.
_DECISIVE = ("poisonaudit", "torch", "threads", "device", "cuda", "processor", "platform", "deterministic")


def make_plan(config: AttackConfig, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The plan of a run: configuration, inputs, and the part of the environment that decides over bits."""
    known = environment()
    plan: dict[str, Any] = finite(
        {
            "schema": PLAN_SCHEMA,
            "config": plain(config),
            "inputs": dict(inputs),
            "environment": {key: known.get(key) for key in _DECISIVE},
        }
    )
    return plan


def check_plan(folder: RunFolder, plan: Mapping[str, Any]) -> None:
    """Store the plan of a new run; of a resumed one, refuse any difference.

    Args:
        folder: of the run.
        plan: what is asked for now.

    Raises:
        UsageError: PA386, configuration, inputs or environment differ.
    """
    if not folder.exists(PLAN):
        folder.write_json(PLAN, plan)
        return
    differences = list(_differences(folder.read_json(PLAN), plan))
    if differences:
        raise UsageError(
            "PA386",
            f"{folder.path} cannot be resumed: {'; '.join(differences[:3])}. Start a new run.",
        )


def first_words(folder: RunFolder, words: list[str] | None) -> list[str] | None:
    """The command line a run was begun with: `attack --resume --out RUN` alone would reproduce nothing.

    Args:
        folder: of the run.
        words: the command line now.

    Returns:
        The first one, kept in the run.
    """
    if folder.exists(COMMAND):
        kept = folder.read_json(COMMAND).get("words")
        return [str(word) for word in kept] if isinstance(kept, list) else words
    folder.write_json(COMMAND, {"words": words})
    return words


def planned_config(path: Path) -> AttackConfig:
    """The configuration that an interrupted run was begun with.

    Args:
        path: its folder.

    Returns:
        The configuration.

    Raises:
        UsageError: PA352, nothing was begun there.
    """
    folder = RunFolder(path=path, created="")
    if not folder.exists(PLAN):
        raise UsageError("PA352", f"{path} holds no {PLAN}, so there is nothing to resume. Name a recipe.")
    body = folder.read_json(PLAN)
    config = body.get("config") if isinstance(body, dict) else None
    return check_config(AttackConfig, config if isinstance(config, dict) else {}, str(path / PLAN))


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Leaves that differ, in words."""
    if isinstance(before, dict) and isinstance(now, Mapping):
        found = []
        for key in sorted({*before, *now}):
            found += _differences(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
        return found
    return [] if before == now else [f"{where} was {before!r}, is {now!r}"]


def planned_stages(config: AttackConfig) -> list[str]:
    """What a run will do, in order, in words."""
    if config.victim is not None:
        first = f"take the victim stored in {config.victim}"
    elif config.weights is not None:
        first = f"load {config.weights} and polish it to relative gradient {config.training.tolerance:g}"
    else:
        first = f"train {config.model} on {config.data} from seed {config.seed} to {config.training.tolerance:g}"
    budget, fresh = config.budget, config.retrain.fresh
    steps = [first]
    if config.objective.kind == "target_weights":
        source = config.objective.source
        steps.append("train on flipped labels for the target weights" if source.file is None else f"read {source.file}")
    else:
        steps.append(f"choose the test row to flip: {config.objective.test_row}, to {config.objective.label}")
    amount = f"{budget.share:.1%} of the" if budget.share is not None else str(budget.rows or len(budget.choice))
    steps.append(f"craft on {amount} rows, {budget.norm} radius {budget.radius:.4g}, up to {config.craft.steps} steps")
    steps.append("retrain warm on the poisoned rows, and polish the clean weights as its control")
    rows = "on poisoned and on clean rows"
    if config.retrain.trainer is not None:
        steps.append(f"retrain by {config.retrain.trainer} from {_seeds(config, fresh)} {rows} ({2 * fresh} trainings)")
    if fresh:
        steps.append(f"retrain from {_seeds(config, fresh)} {rows} ({2 * fresh} trainings)")
    loose = fresh if config.retrain.loose is None else config.retrain.loose
    if loose:
        how = f"loosely, {config.retrain.loose_epochs} epochs of Adam,"
        steps.append(f"retrain {how} from {_seeds(config, loose)} {rows} ({2 * loose} trainings)")
    steps += _planned_search(config)
    files = {"npz": "poisoned.npz", "folder": "poisoned/ (8-bit pictures)"}
    names = ["attack.json", "poison.safetensors", *(files[kind] for kind in dict.fromkeys(config.export))]
    return [*steps, f"write {', '.join(names)}, weights and report.html"]


def _planned_search(config: AttackConfig) -> list[str]:
    """The search for the verified cost, and the same for variants of the victim."""
    search, hardening = config.search, config.hardening
    if search is None:
        return []
    high = "the largest that is needed, by doubling" if search.high is None else f"{search.high:.4g}"
    low = "0" if search.low is None else f"{search.low:.4g}"
    need = search.need or config.retrain.fresh // 2 + 1
    steps = [
        f"search the smallest {search.over} between {low} and {high} at which {need} of {config.retrain.fresh} seeds "
        "succeed; each trial crafts and retrains, the controls are shared"
    ]
    if hardening is not None:
        variants = [f"decay {decay:g}" for decay in hardening.decays]
        variants += [f"{share:.1%} of the rows" for share in hardening.row_shares]
        steps.append(f"train, control and search again at {', '.join(variants)}; write hardening.csv")
    return steps


def _seeds(config: AttackConfig, count: int) -> str:
    return f"seeds {config.seed + 1} to {config.seed + count}"
