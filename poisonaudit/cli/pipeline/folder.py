"""Run folders as the commands use them: refused early, removed again when left empty."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from poisonaudit.cli.pipeline.stored import CHECKS
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.store import RunFolder, sha256_file

Value = TypeVar("Value")


def refuse_taken(out: Path | None, *, resume: bool = False, resumable: bool = False) -> None:
    """Refuse an `--out` that cannot be used, before any work is done.

    Args:
        out: what the user gave.
        resume: whether a non-empty folder is meant.
        resumable: whether the command has `--resume`.

    Raises:
        UsageError: PA310, it is a file or a non-empty folder; PA312, no folder to resume; PA352, nothing to resume.
    """
    if out is None:
        if resume:
            raise UsageError("PA312", "--resume needs the folder to resume. Add --out RUN.")
        return
    if out.exists() and not out.is_dir():
        raise UsageError("PA310", f"{out} is a file, not a folder. Pass another --out.")
    if not resume and out.is_dir() and any(out.iterdir()):
        other = ", or --resume to go on with an interrupted run" if resumable else ""
        raise UsageError("PA310", f"{out} exists and is not empty. Pass another --out{other}.")
    if resume and not out.is_dir():
        raise UsageError("PA352", f"there is no run {out} to resume. Start it without --resume.")


@contextmanager
def run_folder(command: str, out: Path | None, *, resume: bool = False, hint: str = "") -> Iterator[RunFolder]:
    """Create the folder of a run; if the run ends early, leave nothing empty behind and say how to go on.

    Args:
        command: of the run.
        out: folder, None for a new one under `./poisonaudit-runs`.
        resume: continue in a folder that has files.
        hint: what to tell after an interrupt, with `{path}` for the folder.

    Yields:
        The run folder.
    """
    existed = out is not None and out.is_dir()
    folder = RunFolder.create(command, out, resume)
    try:
        yield folder
    except BaseException as error:
        # rmdir refuses a folder that holds anything, which is what is wanted.
        with suppress(OSError):
            if not existed:
                folder.path.rmdir()
            if out is None:
                folder.path.parent.rmdir()
        if isinstance(error, KeyboardInterrupt) and hint and folder.path.is_dir():
            error.add_note(hint.format(path=shlex.quote(str(folder.path))))
        raise


def open_run(path: Path) -> RunFolder:
    """Open a finished run for reading.

    Args:
        path: its folder.

    Returns:
        The run folder.

    Raises:
        UsageError: PA351, there is no such folder.
    """
    if not path.is_dir():
        raise UsageError("PA351", f"there is no run {path}. Check the path; runs are folders that poisonaudit wrote.")
    return RunFolder.open(path)


def read_result(folder: RunFolder, name: str, read: Callable[[dict[str, Any]], Value]) -> Value:
    """Read one JSON result of a run.

    Args:
        folder: the run.
        name: of the file; its stem is the schema's name.
        read: makes the result from the plain data.

    Returns:
        What `read` makes.

    Raises:
        InputRefused: PA220, it is not of the schema its name promises; PA221, entries are missing or of another type;
            PA222, it is not the file that the run's manifest recorded.
    """
    body: Any = folder.read_json(name)
    path, expected = folder.path / name, f"poisonaudit/{name.removesuffix('.json')}/1"
    schema = body.get("schema") if isinstance(body, dict) else None
    if schema != expected:
        raise InputRefused("PA220", f"{path} has schema {schema!r}, not {expected}. Run the command again.")
    try:
        CHECKS[name](body)
        result = read(dict(body))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fact = f"{type(error).__name__}: {error}" if type(error) is not ValueError else str(error)
        raise InputRefused("PA221", f"{path} is damaged: {fact}. Run the command again.") from None
    recorded = folder.manifest().get("files")
    digest = recorded.get(name) if isinstance(recorded, dict) else None
    if digest is not None and sha256_file(path) != digest:
        raise InputRefused(
            "PA222",
            f"{path} was changed after the run: it is not the file that {folder.path}/manifest.json recorded. "
            "Restore it, or run the command again.",
        )
    return result
