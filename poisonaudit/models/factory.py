"""`file.py:factory`: a model from the user's own code, run only when told that the code is trusted."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from poisonaudit.code_files import CodeFunction, load_function
from poisonaudit.errors import InputRefused
from poisonaudit.spec import Spec

SOURCES_ATTRIBUTE = "poisonaudit_sources"
IMAGES_OPTION = "images"


def from_file(spec: Spec, input_shape: tuple[int, ...], outputs: int, *, trust_code: bool) -> nn.Module:
    """Run `file.py` and call its factory; nothing isolates that code from this process.

    The factory gets the options as keyword arguments (whole numbers, decimals, true and false are converted),
    and `input_shape` and `outputs` where its signature names them. `?images=true` asks for rows as pictures
    and is not passed on.

    Args:
        spec: `path/to/file.py:factory?key=value`.
        input_shape: of one row.
        outputs: number of classes or target columns of the data.
        trust_code: the user's consent.

    Returns:
        The module, with the file's digest in its `poisonaudit_sources`.

    Raises:
        InputRefused: PA130 no consent, PA101 no such file, PA131 the code failed or gave no module.
    """
    code = load_function(spec, trust_code=trust_code, kind="factory", option="--model", returns="an nn.Module")
    model = code.call(**_arguments(code, input_shape, outputs))
    if not isinstance(model, nn.Module):
        raise InputRefused(
            "PA131",
            f"{code.path.name}:{code.name} returned {type(model).__name__}, not an nn.Module. Return the model.",
        )
    setattr(model, SOURCES_ATTRIBUTE, code.sources)
    return model


def _arguments(code: CodeFunction, input_shape: tuple[int, ...], outputs: int) -> dict[str, Any]:
    arguments = {key: value for key, value in code.options.items() if key != IMAGES_OPTION}
    try:
        named = set(inspect.signature(code.function).parameters)
    except (TypeError, ValueError):
        # Written in C: it can still be called with the options alone.
        named = set()
    for key, value in (("input_shape", tuple(input_shape)), ("outputs", outputs)):
        if key in named:
            arguments.setdefault(key, value)
    return arguments
