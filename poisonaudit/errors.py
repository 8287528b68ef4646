"""Every error a user can cause, as one line: code, fact, reason, action."""

from __future__ import annotations

EXIT_OK = 0
EXIT_THRESHOLD = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_NUMERICAL = 4
EXIT_STORAGE = 5
EXIT_INTERRUPTED = 130


class PoisonAuditError(Exception):
    """An error whose message is complete: `PA110 fact, reason, action`.

    Args:
        code: `PA` and three digits; stable, so that scripts can match it.
        message: what was got, what was expected, what to do next, in one line.
    """

    exit_code = EXIT_NUMERICAL

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = " ".join(message.split())
        super().__init__(f"{code} {self.message}")


class UsageError(PoisonAuditError, ValueError):
    """A name, option or configuration is wrong (exit code 2, codes PA3xx)."""

    exit_code = EXIT_USAGE


class InputRefused(PoisonAuditError, ValueError):
    """A model, weights or data file is refused (exit code 3, codes PA1xx models, PA2xx data)."""

    exit_code = EXIT_REFUSED


class NumericalFailure(PoisonAuditError, ArithmeticError):
    """A number could not be computed to its stated accuracy (exit code 4, codes PA4xx)."""

    exit_code = EXIT_NUMERICAL


class StorageError(PoisonAuditError, OSError):
    """A file could not be read or written (exit code 5, codes PA5xx)."""

    exit_code = EXIT_STORAGE


class UntrustedNumber(UserWarning):
    """A number was returned bare, and the point it was computed at does not allow to trust it."""


def expect_kind(name: str, value: object, kind: type) -> None:
    """Refuse an input of the wrong class.

    Args:
        name: of the input.
        value: what was passed.
        kind: what is needed.

    Raises:
        InputRefused: PA127, it is something else.
    """
    if not isinstance(value, kind):
        raise InputRefused(
            "PA127", f"{name} is a {type(value).__name__}, a {kind.__name__} is needed. Convert it first."
        )


def counted(number: int, what: str) -> str:
    """`1 row`, `2 rows`: a count as messages tell it."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def wrong_type(function: str, argument: str, got: object, needed: str) -> UsageError:
    """The refusal of an argument of the wrong type, code PA314.

    Args:
        function: that was called.
        argument: its name.
        got: what was passed.
        needed: what is needed and how to get it, as a sentence.

    Returns:
        The error, to be raised.
    """
    kind, shown = type(got).__name__, repr(got)
    told = f" ({shown})" if got is not None and "\n" not in shown and len(shown) <= 40 else ""
    return UsageError("PA314", f"{function} got a {kind}{told} for {argument}. {needed}")
