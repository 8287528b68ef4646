"""The entry point: help without heavy imports, unknown names, one line and an exit code for every error."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import poisonaudit
from poisonaudit.cli.failures import describe, one_line
from poisonaudit.cli.main import COMMANDS, cli
from poisonaudit.errors import InputRefused, NumericalFailure, StorageError, UsageError

HEAVY = ("torch", "numpy", "pandas", "rich", "pydantic", "yaml", "sklearn", "scipy", "matplotlib", "art", "jinja2")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["audit", "--help"], ["demo", "--help"], ["adit"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    script = (
        "import sys\n"
        "from poisonaudit.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_help_lists_every_command_and_each_has_help() -> None:
    listed = CliRunner().invoke(cli, ["--help"])
    assert listed.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name}" in listed.stdout
        single = CliRunner().invoke(cli, [name, "--help"])
        assert single.exit_code == 0, single.output
        assert single.stdout.startswith("Usage: poisonaudit " + name)


def test_options_of_the_contract_are_there() -> None:
    wanted = {
        "demo": ["--out", "--quick"],
        "train": ["--model", "--data", "--loss", "--decay", "--tolerance", "--seed", "--out", "--limit"],
        "audit": ["--model", "--weights", "--data", "--loss", "--decay", "--measures", "--rows", "--polish"]
        + ["--fail-on", "--out", "--json", "--config", "--set", "--seed", "--device", "--limit", "--trust-code"],
        "attack": ["--set", "--out", "--resume", "--dry-run", "--config", "--seed", "--device", "--limit"],
        "compare": ["--out", "--fail-on", "--config", "--set", "--seed", "--device", "--limit"],
        "report": ["--format"],
    }
    for name, options in wanted.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        known = {text for parameter in command.params for text in parameter.opts}
        assert set(options) <= known, name


def test_version() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert result.stdout == f"poisonaudit {poisonaudit.__version__}\n"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["adit"], ["PA391", "Did you mean 'audit'", "Known: attack, audit"]),
        (["frobnicate", "x"], ["PA391 unknown command 'frobnicate'", "Known: attack, audit"]),
        (["audit", "--wieghts", "x"], ["PA390", "--weights"]),
        (["train", "--seed", "x"], ["PA390", "--seed"]),
        (["train", "--seed", "-1"], ["PA390", "--seed"]),
        (["audit", "a", "b"], ["PA390", "unexpected"]),
        (["report"], ["PA390", "RUN"]),
        (["ls"], ["PA390"]),
        (["ls", "modles"], ["PA301", "Did you mean 'models'"]),
        (["attack"], ["PA392", "no recipe"]),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(words: list[str], parts: list[str]) -> None:
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    for part in parts:
        assert part in result.stderr


def test_nothing_at_all_shows_the_help_and_exits_2() -> None:
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == 2
    assert "Commands:" in result.stdout


def interrupted(*notes: str) -> KeyboardInterrupt:
    error = KeyboardInterrupt()
    for note in notes:
        error.add_note(note)
    return error


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (UsageError("PA301", "x"), 2, "PA301 x"),
        (InputRefused("PA110", "x"), 3, "PA110 x"),
        (NumericalFailure("PA401", "x"), 4, "PA401 x"),
        (StorageError("PA503", "x"), 5, "PA503 x"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 5, "PA599 reading or writing f failed: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 5, "permissions"),
        (MemoryError(), 4, "PA490"),
        (RuntimeError("a\nb\x1b[31m"), 4, "PA900 RuntimeError: a b?[31m - this is a bug"),
        (RecursionError(), 4, "PA900 RecursionError - this is a bug"),
        (interrupted(), 130, "interrupted. Nothing was left half-written."),
        (interrupted("inner", "outer"), 130, "interrupted. outer"),
        (click.Abort(), 130, "interrupted."),
    ],
)
def test_every_error_is_one_line_with_its_exit_code(error: BaseException, code: int, part: str) -> None:
    line, found = describe(error)
    assert found == code
    assert part in line
    assert len(line.splitlines()) == 1


def raised(error: BaseException, cause: BaseException | None, context: BaseException | None) -> BaseException:
    error.__cause__, error.__context__ = cause, context
    return error


def test_an_interrupt_anywhere_in_the_chain_is_one() -> None:
    lost = ImportError("initialization failed")
    middle = raised(SystemError("returned a result with an exception set"), None, interrupted("go on with x"))
    for error in (
        raised(ImportError("initialization failed"), KeyboardInterrupt(), None),
        raised(lost, None, middle),
        raised(InputRefused("PA131", "x"), KeyboardInterrupt(), None),
    ):
        line, code = describe(error)
        assert code == 130 and line.startswith("interrupted.")
    assert describe(lost)[0] == "interrupted. go on with x"
    looped = RuntimeError("a")
    looped.__context__ = raised(RuntimeError("b"), looped, None)
    assert describe(looped)[1] == 4


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("kind", "code"), [("ImportError", 130), ("SystemError", 130), ("RuntimeError", 4)])
def test_an_import_that_loses_an_interrupt(kind: str, code: int) -> None:
    """C code may clear the KeyboardInterrupt and fail as if by itself; no other error is excused that way."""
    script = f"""
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with interrupts ignored
from poisonaudit.cli.commands import ls
from poisonaudit.cli.main import main
def broken(**_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        pass
    raise {kind}("initialization failed")
ls.command.callback = broken
main()
"""
    done = subprocess.run([sys.executable, "-c", script, "ls", "models"], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("interrupted." if code == 130 else "PA900")


def test_one_line_cannot_steer_a_terminal() -> None:
    assert one_line("a\tb\r\nc\x1b]0;x\x07\u202e") == "a b c?]0;x??"


def test_debug_shows_the_traceback() -> None:
    result = CliRunner().invoke(cli, ["--debug", "ls", "modles"])
    assert result.exit_code == 2 and "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("PA301 unknown")
    script = "from poisonaudit.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "ls", "modles", "--debug"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("no way"), 4), (InputRefused("PA110", "x"), 3), (KeyboardInterrupt(), 130)]
)
def test_debug_keeps_the_exit_code(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    from poisonaudit.cli.commands import ls

    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ls.command, "callback", broken)
    for words in (["ls", "models"], ["--debug", "ls", "models"]):
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == code
        assert ("Traceback" in result.stderr) == ("--debug" in words)
        assert result.stderr.splitlines()[-1] == describe(error)[0]


def test_closed_pipe_is_no_error() -> None:
    script = "from poisonaudit.cli.main import main; main()"
    done = subprocess.run(
        f"{sys.executable} -c '{script}' ls measures | true", shell=True, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert "PA" not in done.stderr
