"""`file.py:function`: a function from the user's own code, run only when told that the code is trusted."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from poisonaudit.errors import InputRefused, PoisonAuditError, StorageError
from poisonaudit.spec import Spec
from poisonaudit.store import sha256_bytes


@dataclass(frozen=True)
class CodeFunction:
    """A function of a file that was run with the user's consent.

    Attributes:
        text: as the user named it.
        path: of the file.
        name: of the function.
        sha256: of exactly the bytes that were run.
        function: what the file calls by that name.
        options: of `?key=value`; whole numbers, decimals, true and false converted.
    """

    text: str
    path: Path
    name: str
    sha256: str
    function: Callable[..., Any]
    options: Mapping[str, Any]

    @property
    def sources(self) -> dict[str, str]:
        """File name -> sha256."""
        return {self.path.name: self.sha256}

    def call(self, *arguments: Any, **named: Any) -> Any:
        """Call the function; what goes wrong in it is one line with the kind of exception and where.

        Args:
            arguments: passed on.
            named: passed on.

        Returns:
            What it returns.

        Raises:
            InputRefused: PA131, it failed.
            StorageError: PA503, the disk is full.
            MemoryError: as it came, or PyTorch's own error: no fault of the file.
        """
        try:
            return self.function(*arguments, **named)
        except (Exception, SystemExit) as error:
            if _out_of_memory(error):
                raise
            raise _failed(self.path, self.name, error) from error


def names_code(spec: Spec) -> bool:
    """Does the name mean a Python file."""
    return spec.name.endswith(".py")


def load_function(spec: Spec, *, trust_code: bool, kind: str, option: str, returns: str) -> CodeFunction:
    """Run `file.py` and take a function from it; nothing isolates that code from this process.

    Args:
        spec: `path/to/file.py:function?key=value`.
        trust_code: the user's consent.
        kind: what the function is called in errors, e.g. "factory".
        option: of the command line, where the file is named, for errors.
        returns: what the function is to return, for errors.

    Returns:
        The function, not called yet.

    Raises:
        InputRefused: PA130 no consent, PA101 no such file, PA131 the code failed or has no such function.
        StorageError: PA503, the disk is full.
    """
    path = Path(spec.name).expanduser()
    if not trust_code:
        raise InputRefused(
            "PA130",
            f"{path.name} is code: it would run with all your rights, and nothing isolates it. "
            "Read it, then pass --trust-code.",
        )
    if not path.is_file():
        raise InputRefused("PA101", f"{path} is not a file. Check the path in {option}.")
    if not spec.argument.isidentifier():
        raise InputRefused(
            "PA131",
            f"{spec.text} names no {kind}. Write {path.name}:{kind.upper()}, a function that returns {returns}.",
        )
    options = {key: _value(text) for key, text in spec.options.items()}
    try:
        source = path.read_bytes()
        digest = sha256_bytes(source)
        function = getattr(_run(path, source, digest), spec.argument)
    except (Exception, SystemExit) as error:
        if _out_of_memory(error):
            raise
        raise _failed(path, spec.argument, error) from error
    if not callable(function):
        raise InputRefused(
            "PA131",
            f"{path.name}:{spec.argument} is a {type(function).__name__}, not a function. Name a function that "
            f"returns {returns}.",
        )
    return CodeFunction(spec.text, path, spec.argument, digest, function, options)


def _run(path: Path, source: bytes, digest: str) -> ModuleType:
    """Execute exactly the bytes whose digest is recorded, as a module that classes can refer back to."""
    module = ModuleType(f"poisonaudit_code_{digest[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _failed(path: Path, name: str, error: BaseException) -> PoisonAuditError:
    line = _line(path, error)
    where = "" if line is None else f" at line {line}"
    reason = " ".join(str(error).split())[:300]
    told = f"{path.name}:{name} failed{where}: {type(error).__name__}: {reason}."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError("PA503", f"{told} Free some space.")
    return InputRefused("PA131", f"{told} Mend the file.")


def _line(path: Path, error: BaseException) -> int | None:
    """The innermost line of the user's file that was being run; of a syntax error, where it is."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
