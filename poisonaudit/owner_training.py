"""Training by the model's owner: any procedure `(problem, seed)`, called, and its result read as flat weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused
from poisonaudit.problem import Problem
from poisonaudit.warm_up import in_statistics_of

# Returns flat weights (p,), a state dict or a module; see `weights_of`.
Trainer = Callable[[Problem, int], Any]

_PARALLEL = "module."
_SHOWN = 3


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed Python's, NumPy's and PyTorch's global generators, and restore all of them at the end.

    Args:
        seed: for all of them.
        device: whose generator is seeded beside the CPU's.

    Yields:
        Nothing.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed: it would also reseed the accelerators that are not forked here.
        torch.default_generator.manual_seed(seed)
        for each in devices:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def trained_weights(trainer: Trainer, problem: Problem, seed: int, who: str = "the trainer") -> Tensor:
    """Call a trainer on a copy of the problem, labels included, with the global generators seeded and put back.

    Args:
        trainer: (problem, seed) -> weights (p,), a state dict or a module.
        problem: to be trained.
        seed: handed on.
        who: the trainer is, for errors.

    Returns:
        Flat weights (p,) for the problem.

    Raises:
        InputRefused: PA125 and PA124, see `weights_of`.
    """
    given = problem.with_data(problem.x)
    given = given.at(given.weights)
    given.y = given.y.clone()
    with seeded(seed, problem.device), torch.enable_grad():
        result = trainer(given, seed)
    return weights_of(result, problem, who)


def gradients_of(trainer: Trainer) -> int:
    """Passes over all rows of one training, where the trainer tells (`.gradients`); else 0."""
    return int(getattr(trainer, "gradients", 0))


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
    if bad := int((~torch.isfinite(result)).sum()):
        raise InputRefused(
            "PA124",
            f"{bad} of {problem.size} weights that {who} returned are NaN or infinite. Lower its learning rate, or "
            "rescale the inputs.",
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
