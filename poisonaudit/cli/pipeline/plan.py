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
