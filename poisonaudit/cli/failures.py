"""Any exception as one line and an exit code."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from types import FrameType

import click

from poisonaudit.errors import (
    EXIT_INTERRUPTED,
    EXIT_NUMERICAL,
    EXIT_STORAGE,
    EXIT_USAGE,
    PoisonAuditError,
)

_MOST = 600
# Signals of this process, see `note_interrupts`.
_interrupts: list[int] = []


class Failure(Exception):
    """An error that is already described: `(line, exit code)`."""

    def __init__(self, described: tuple[str, int]) -> None:
        super().__init__(described[0])
        self.described = described


def describe(error: BaseException) -> tuple[str, int]:
    """The line to print and the exit code for an exception.

    Args:
        error: what came up.

    Returns:
        `(line, exit code)`; the line is empty where nothing need be said.
    """
    if isinstance(error, Failure):
        return error.described
    if isinstance(error, click.exceptions.Exit):
        return "", error.exit_code
    chain = list(_chain(error))
    if any(isinstance(each, KeyboardInterrupt | click.Abort) for each in chain) or _interrupted_import(error):
        hints = [note for each in reversed(chain) for note in getattr(each, "__notes__", ())]
        return one_line("interrupted. " + (hints[-1] if hints else "Nothing was left half-written.")), EXIT_INTERRUPTED
    if isinstance(error, PoisonAuditError):
        return one_line(str(error)), error.exit_code
    if isinstance(error, click.NoSuchOption):
        return _no_such_option(error), EXIT_USAGE
    if isinstance(error, click.ClickException):
        return one_line(f"PA390 {error.format_message()}{_see_help(error)}"), EXIT_USAGE
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return one_line("PA490 out of memory. Use a smaller --limit or --rows, or a machine with more."), EXIT_NUMERICAL
    if isinstance(error, OSError):
        return _storage(error), EXIT_STORAGE
    fact = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return one_line(
        f"PA900 {fact[:_MOST]} - this is a bug in poisonaudit; run with --debug to see where."
    ), EXIT_NUMERICAL


def note_interrupts() -> None:
    """Note each Ctrl-C from now on, where it still raises KeyboardInterrupt: C code in an import may lose that."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note)


def _note(number: int, frame: FrameType | None) -> None:
    _interrupts.append(number)
    signal.default_int_handler(number, frame)


def _interrupted_import(error: BaseException) -> bool:
    """Whether an import failed after a Ctrl-C; others that failed later, after one that was caught, are told."""
    return bool(_interrupts) and isinstance(error, ImportError | SystemError)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that it was raised from or while handling."""
    open_ends, seen = [error], set()
    while open_ends:
        each = open_ends.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            open_ends += [other for other in (each.__context__, each.__cause__) if other is not None]


def one_line(text: str) -> str:
    """Text without line breaks and without characters that could steer a terminal."""
    joined = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in joined)


def _no_such_option(error: click.NoSuchOption) -> str:
    near = f" Did you mean {' or '.join(sorted(error.possibilities))}?" if error.possibilities else ""
    known = f" Known: {', '.join(_options(error.ctx))}." if error.ctx is not None else ""
    return one_line(f"PA390 there is no option {error.option_name}.{near}{known}")


def _options(context: click.Context) -> Iterator[str]:
    for parameter in context.command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            yield parameter.opts[0]


def _see_help(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f" See {context.command_path} --help." if context is not None else ""


def _storage(error: OSError) -> str:
    where = f" {error.filename}" if error.filename is not None else ""
    reason = error.strerror or str(error) or type(error).__name__
    advice = {
        errno.ENOSPC: "Free some space or pass another --out.",
        errno.EACCES: "Check the permissions or pass another --out.",
        errno.EROFS: "Pass an --out that can be written.",
        errno.ENOENT: "Check the path.",
    }.get(error.errno or 0, "Check the path and the disk.")
    return one_line(f"PA599 reading or writing{where} failed: {reason}. {advice}")
