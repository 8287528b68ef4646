"""Options that several commands share, each made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_SHARED: dict[str, Callable[[Any], Any]] = {
    "config": click.option(
        "--config", "config_file", metavar="FILE", help="YAML configuration: a file, or a name from configs/."
    ),
    "set": click.option(
        "--set",
        "assignments",
        metavar="KEY=VALUE",
        multiple=True,
        help="Change one key of the configuration; repeatable.",
    ),
    "seed": click.option(
        "--seed", type=click.IntRange(min=0), metavar="N", help="Seed of everything random; default 0."
    ),
    "device": click.option("--device", metavar="NAME", help="cpu (default), cuda, cuda:1."),
    "limit": click.option(
        "--limit", type=click.IntRange(min=1), metavar="N", help="Use the first N training rows of the split."
    ),
    "out": click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Folder of the run; default ./poisonaudit-runs/COMMAND-UTC-ID. A non-empty one is refused.",
    ),
    "json": click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    "fail-on": click.option(
        "--fail-on", metavar="RULE", multiple=True, help="ID<VALUE or ID>VALUE: exit 1 when crossed; repeatable."
    ),
    "trust-code": click.option(
        "--trust-code",
        is_flag=True,
        help="Run the code of file.py:factory and file.py:train. Nothing isolates it: only for code you wrote or read.",
    ),
    "model": click.option(
        "--model", metavar="M", help="Architecture, e.g. mlp:64-32-10?activation=tanh; see ls models."
    ),
    "weights": click.option("--weights", metavar="FILE", help="Weights: .safetensors or a .pt state dict."),
    "data": click.option("--data", metavar="D", help="Data, e.g. digits or npz:FILE; see ls data."),
    "loss": click.option(
        "--loss", metavar="L", help="cross_entropy (default for classes) or half_squared (default for regression)."
    ),
    "decay": click.option("--decay", type=float, metavar="X", help="Weight decay: (X/2)|w|^2 over all weights."),
    "tolerance": click.option(
        "--tolerance", type=float, metavar="T", help="Relative gradient to train to; default 1e-10."
    ),
    "max-gradients": click.option(
        "--max-gradients",
        type=click.IntRange(min=1),
        metavar="N",
        help="Begin no further round of training after N gradients; the result says where that fell short.",
    ),
    "measures": click.option(
        "--measures", metavar="LIST", help="Measures or groups, comma separated; see ls measures. Default: all."
    ),
    "rows": click.option("--rows", type=click.IntRange(min=1), metavar="N", help="Measure the first N training rows."),
}


_DEBUG = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")


def shared(*names: str) -> Callable[[Command], Command]:
    """Add the shared options `names`, and `--debug`, to a command."""

    def add(command: Command) -> Command:
        # Decorators apply from the inside out; reversed, the help lists them in the order given.
        for name in reversed(names):
            command = _SHARED[name](command)
        known = {option.name for option in getattr(command, "__click_params__", ())}
        return command if "debug" in known else _DEBUG(command)

    return add


def listed(text: str | None) -> list[str] | None:
    """Split a comma-separated option; None stays None."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def arguments() -> list[str]:
    """The words after `poisonaudit`, as typed; for the manifest."""
    context = click.get_current_context()
    words: list[str] = context.meta.get("poisonaudit.arguments", [])
    return list(words)
