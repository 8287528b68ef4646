"""The user's own training procedure: loaded from a file, called, and its result read as flat weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from poisonaudit.code_files import CodeFunction, load_function, names_code
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.problem import Problem
from poisonaudit.spec import parse_spec
from poisonaudit.verify.seeding import seeded
from poisonaudit.verify.trainers import Trainer
from poisonaudit.warm_up import in_statistics_of

_PARALLEL = "module."
_SHOWN = 3


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


def trained_weights(trainer: Trainer, problem: Problem, seed: int) -> Tensor:
    """Call a trainer on a copy of the problem, with the global generators seeded and put back.

    Args:
        trainer: (problem, seed) -> weights (p,), a state dict or a module.
        problem: to be trained.
        seed: handed on.

    Returns:
        Flat weights (p,) for the problem.

    Raises:
        InputRefused: PA125 and PA124, see `weights_of`.
    """
    given = problem.with_data(problem.x)
    given = given.at(given.weights)
    with seeded(seed, problem.device), torch.enable_grad():
        result = trainer(given, seed)
    return weights_of(result, problem, str(trainer) if isinstance(trainer, FileTrainer) else "the trainer")


def weights_of(result: object, problem: Problem, who: str = "the trainer") -> Tensor:
    """Read what a trainer returned as flat weights of a problem.

    A state dict or module may bring batch statistics of its own: its weights are rewritten for the problem's, so that
    they stand for the same function (layers of batch normalisation without gain and shift keep the problem's).

    Args:
        result: flat weights (p,) in named_parameters() order, a state dict, or a module of the same architecture.
        problem: whose weights they are to be.
        who: returned it, for errors.

    Returns:
        Flat weights (p,), detached, on the problem's device.

    Raises:
        InputRefused: PA125, length, names, shapes, dtype or other buffers do not fit; PA124, NaN or infinite entries.
    """
    if isinstance(result, nn.Module):
        result = result.state_dict()
    if isinstance(result, Mapping):
        result = _from_state(result, problem, who)
    if not isinstance(result, Tensor):
        raise InputRefused(
            "PA125",
            f"{who} returned {type(result).__name__}, not weights. Return flat weights ({problem.size},), a state dict "
            "or the trained module.",
        )
    if result.shape != problem.weights.shape or result.dtype != problem.dtype:
        raise InputRefused(
            "PA125",
            f"{who} returned weights {_form(result)}, this problem has {_form(problem.weights)}. Flatten all of them "
            "in named_parameters() order, in the problem's dtype.",
        )
    return problem.at(result).weights


def _from_state(state: Mapping[Any, Any], problem: Problem, who: str) -> Tensor:
    """Flat weights from a state dict that fits the problem's model; buffers may be absent."""
    if state and all(str(name).startswith(_PARALLEL) for name in state):
        state = {str(name).removeprefix(_PARALLEL): value for name, value in state.items()}
    reference = problem.module()
    expected = reference.state_dict()
    missing = [name for name in problem.names if name not in state]
    unexpected = [str(name) for name in state if name not in expected]
    if missing or unexpected:
        facts = [f"lacks {_listed(missing)}"] * bool(missing) + [f"holds {_listed(unexpected)}"] * bool(unexpected)
        raise InputRefused(
            "PA125",
            f"the state dict that {who} returned {' and '.join(facts)}, unlike this model. Return the state dict of "
            "problem.module(), trained.",
        )
    for name, value in state.items():
        kept = expected[name]
        if not isinstance(value, Tensor) or (value.shape, value.dtype) != (kept.shape, kept.dtype):
            got = _form(value) if isinstance(value, Tensor) else type(value).__name__
            raise InputRefused(
                "PA125",
                f"{name} is {got} in what {who} returned, {_form(kept)} in this model. Train problem.module() in its "
                "own dtype.",
            )
    trained = problem.module()
    # Not strict: names were compared above, and a tied weight may be named once.
    trained.load_state_dict(state, strict=False)
    trained = in_statistics_of(reference, trained)
    for name, value in trained.named_buffers():
        if not torch.equal(value, reference.get_buffer(name)):
            raise InputRefused(
                "PA125",
                f"the buffer {name} in what {who} returned differs from the model's, and weights alone cannot carry "
                "it. Leave buffers as they are.",
            )
    return torch.cat([value.detach().reshape(-1) for value in trained.parameters()])


def _form(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:60] for name in names[:_SHOWN]) + more
