"""`reproduce`: a table or figure of the source papers in a run folder; finished stages survive an interrupt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poisonaudit.cli.console import Reporter, table
from poisonaudit.cli.options import listed
from poisonaudit.cli.pipeline.folder import refuse_taken, run_folder
from poisonaudit.cli.pipeline.plan import PLAN, check_plan, first_words
from poisonaudit.cli.pipeline.render import command_line
from poisonaudit.cli.pipeline.victim import find_device
from poisonaudit.errors import UsageError
from poisonaudit.registry import lookup
from poisonaudit.reproduce import RANGES, REPRODUCTIONS, TAKEN, Bench, Reproduction, Settings, write_reproduction
from poisonaudit.results import finite
from poisonaudit.store import RunFolder, environment

PLAN_SCHEMA = "poisonaudit/reproduction-plan/1"
HINT = "What was finished is kept. Go on with: poisonaudit reproduce {name} --resume --out {{path}}"


@dataclass(frozen=True)
class Reproduced:
    """What `run_reproduction` leaves: the folder and the result."""

    path: Path
    result: Reproduction


def run_reproduction(
    name: str,
    given: Mapping[str, Any],
    out: Path | None = None,
    *,
    resume: bool = False,
    arguments: list[str] | None = None,
    report: Reporter,
) -> Reproduced:
    """Run one reproduction and store it.

    Args:
        name: of the reproduction.
        given: options by the names of `Settings`; None leaves a choice open.
        out: folder of the run.
        resume: go on with an interrupted run in `out`.
        arguments: the command line, for the manifest.
        report: told what is going on.

    Returns:
        The folder and the result.

    Raises:
        UsageError: PA301, an unknown name; PA398, options that this reproduction has no use for.
    """
    refuse_taken(out, resume=resume, resumable=True)
    work = lookup(REPRODUCTIONS, name, "reproduction")
    asked = {key: value for key, value in given.items() if value is not None}
    settings = _resumed(out, asked) if resume and out is not None else _checked(asked)
    find_device(settings.device)
    foreign = [key.replace("_", "-") for key in sorted(asked.keys() - TAKEN[name])]
    if foreign:
        raise UsageError("PA398", f"{name} has no use for what is given. Leave out --{', --'.join(foreign)}.")
    with run_folder("reproduce", out, resume=resume, hint=HINT.format(name=name)) as folder:
        known = {key: value for key, value in environment().items() if key != "packages"}
        plan = {"schema": PLAN_SCHEMA, "name": name, "settings": dataclasses.asdict(settings), "environment": known}
        check_plan(folder, finite(plan))
        words = first_words(folder, arguments)
        result = work(Bench(settings, _Spoken(report), folder))
        write_reproduction(folder, result, command_line(words))
        invocation = {"words": words or [], "settings": dataclasses.asdict(settings)}
        folder.write_manifest("reproduce", invocation, dict(result.inputs), settings.seed)
        for text in result.flags:
            report.warn(text)
        return Reproduced(folder.path, result)


class _Spoken:
    """A Reporter that holds its lines back until the first note: input that is refused gives one line and no more."""

    def __init__(self, report: Reporter) -> None:
        self._report = report

    def __call__(self, message: str, fraction: float | None = None) -> None:
        """Progress within a stage."""
        self._report(message, fraction)

    def stage(self, text: str) -> None:
        """A stage begins."""
        self._report.stage(text)

    def note(self, text: str) -> None:
        """A message that stays; by then everything given is accepted."""
        self._report.note(text)
        self._report.begin()

    def warn(self, text: str) -> None:
        """A warning that stays."""
        self._report.warn(text)


def reproduction_text(result: Reproduction) -> str:
    """The table for a terminal, with flags and notes under it."""
    rows = [[row.label, *(_shown(value, result.digits) for value in row.numbers)] for row in result.rows]
    lines = [result.title, "", table(["quantity", *result.columns.values()], rows), ""]
    lines += [f"flagged: {text}" for text in result.flags]
    return "\n".join([*lines, *(f"- {text}" for text in result.notes)])


def _shown(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}g}"


def _checked(asked: Mapping[str, Any]) -> Settings:
    """Settings in their ranges.

    Returns:
        The settings.

    Raises:
        UsageError: PA304, a number is out of range.
    """
    strengths = asked.get("strengths")
    settings = Settings(**asked) if strengths is None else Settings(**{**asked, "strengths": _strengths(strengths)})
    if settings.decay is not None and not 0.0 < settings.decay < float("inf"):
        raise UsageError(
            "PA304",
            f"decay is {settings.decay}. Give a number above 0: undecayed cross-entropy has its minimum at infinity.",
        )
    if settings.tolerance is not None and not 0.0 < settings.tolerance < 1.0:
        raise UsageError("PA304", f"tolerance is {settings.tolerance}. Give a relative gradient such as 1e-9.")
    for key, (least, most) in RANGES.items():
        value = getattr(settings, key)
        if value is not None and not least <= value <= most:
            raise UsageError("PA304", f"{key} is {value}. Give a whole number from {least:,} to {most:,}.")
    return settings


def _strengths(given: str | Sequence[float]) -> tuple[float, ...]:
    """Factors of penalties, from an option or from a stored plan."""
    parts = listed(given) if isinstance(given, str) else given
    try:
        found = tuple(float(part) for part in parts or ())
    except ValueError:
        found = ()
    if not found or len(set(found)) < len(found) or not all(0.0 < value < float("inf") for value in found):
        raise UsageError("PA304", f"strengths is {given!r}. Give different numbers above 0, such as 1e-3,1e-2.")
    return found


def _resumed(out: Path, asked: Mapping[str, Any]) -> Settings:
    """Settings of an interrupted run, with what is given now laid over; `check_plan` then refuses any difference."""
    folder = RunFolder(path=out, created="")
    if not folder.exists(PLAN):
        raise UsageError("PA352", f"{out} holds no {PLAN}, so there is nothing to resume. Start it without --resume.")
    body = folder.read_json(PLAN)
    kept = body.get("settings") if isinstance(body, dict) else None
    names = {item.name for item in dataclasses.fields(Settings)}
    known = {key: value for key, value in kept.items() if key in names} if isinstance(kept, dict) else {}
    return _checked({**known, **asked})
