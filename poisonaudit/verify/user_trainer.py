"""The user's own training procedure, loaded from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from poisonaudit.code_files import CodeFunction, load_function, names_code
from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem
from poisonaudit.spec import parse_spec


@dataclass(frozen=True)
class FileTrainer:
    """`file.py:train`, ready to be called as a trainer `(problem, seed)`.

    Attributes:
        code: the function and the digest of its file.
    """

    code: CodeFunction

    @property
    def sources(self) -> dict[str, str]:
        """File name -> sha256."""
        return self.code.sources

    def __str__(self) -> str:
        """What trained, in words: file, function, options and the start of the file's digest."""
        options = "".join(f", {key}={value}" for key, value in self.code.options.items())
        return f"{self.code.path.name}:{self.code.name}{options} (sha256 {self.code.sha256[:12]})"

    def __call__(self, problem: Problem, seed: int) -> Any:
        """Call the user's function; see `CodeFunction.call` for what happens when it fails."""
        return self.code.call(problem, seed, **self.code.options)


def load_trainer(spec: str, trust_code: bool = False) -> FileTrainer:
    """Load the user's own training from `file.py:train`; nothing isolates that code from this process.

    `train(problem, seed)` gets a Problem (`problem.module()` is a copy of the model, `problem.x`, `problem.y`,
    `problem.decay`, `problem.loss_per_row`) and returns flat weights (p,) in named_parameters() order, a state dict, or
    the trained module. Python's, NumPy's and PyTorch's global generators are seeded with `seed` before each call.

    Args:
        spec: `path/to/file.py:train`, with `?key=value` for further keyword arguments.
        trust_code: consent to run the file.

    Returns:
        A trainer for `retrain`.

    Raises:
        UsageError: PA302, the name is empty or malformed; PA373, it names no Python file.
        InputRefused: PA130 no consent, PA101 no such file, PA131 the code failed or has no such function.
    """
    parsed = parse_spec(spec)
    if not names_code(parsed):
        raise UsageError("PA373", f"the trainer {spec!r} names no Python file. Write FILE.py:FUNCTION.")
    returns = "weights (p,), a state dict or a module"
    return FileTrainer(
        load_function(parsed, trust_code=trust_code, kind="trainer", option="--trainer", returns=returns)
    )
