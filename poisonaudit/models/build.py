"""From a model's name to a seeded module in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from poisonaudit.code_files import names_code
from poisonaudit.errors import InputRefused
from poisonaudit.models.factory import IMAGES_OPTION, SOURCES_ATTRIBUTE, from_file
from poisonaudit.models.foreign import timm_model, torchvision_model
from poisonaudit.models.lenet import lenet
from poisonaudit.models.mlp import linear, mlp
from poisonaudit.models.normalise import OPTION, normalised, parse_normalisation
from poisonaudit.models.resnet import RESNETS
from poisonaudit.registry import lookup
from poisonaudit.spec import Spec, parse_spec

Builder = Callable[[Spec, tuple[int, ...], int], nn.Module]

MODELS: dict[str, Builder] = {
    "lenet": lenet,
    "linear": linear,
    "mlp": mlp,
    **RESNETS,
    "timm": timm_model,
    "torchvision": torchvision_model,
}
GROUP = "poisonaudit.models"
NAME_ATTRIBUTE = "poisonaudit_name"

_TAKE_PICTURES = {"lenet", "timm", "torchvision", *RESNETS}


def build_model(
    spec: str,
    *,
    input_shape: tuple[int, ...],
    outputs: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    trust_code: bool = False,
    image_shape: tuple[int, ...] | None = None,
) -> nn.Module:
    """Build a model by name.

    Initial weights are drawn in PyTorch's default dtype from `seed` and then converted, so float32 and
    float64 models of one seed start at the same point; the global generator is left as it was.

    Args:
        spec: e.g. `mlp:64-32-10?activation=tanh`, `linear`, `resnet20`, `torchvision:resnet18`, `file.py:factory`;
            any of them with `?normalize=MEAN,STD`.
        input_shape: of one row of the data.
        outputs: number of classes or target columns of the data.
        seed: of the initial weights.
        dtype: of weights and buffers.
        trust_code: consent to run the file of `file.py:factory`.
        image_shape: (channels, height, width) of flat rows that are pictures; gives `?normalize=` its channels.

    Returns:
        The module, on the CPU, in eval mode.

    Raises:
        InputRefused: PA132, the model does not take such rows or gives another number of outputs.
    """
    parsed = parse_spec(spec)
    given_normalisation = parsed.options.get(OPTION)
    parsed = replace(parsed, options={key: value for key, value in parsed.options.items() if key != OPTION})
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also reseed the accelerators' generators, which are not forked here.
        torch.default_generator.manual_seed(seed)
        if names_code(parsed):
            model = from_file(parsed, input_shape, outputs, trust_code=trust_code)
        else:
            model = lookup(MODELS, parsed.name, "model", group=GROUP)(parsed, input_shape, outputs)
        if given_normalisation is not None:
            model = normalised(model, parse_normalisation(given_normalisation, input_shape, image_shape))
        model = model.to(dtype).eval()
        try:
            with torch.no_grad():
                given = tuple(model(torch.zeros(1, *input_shape, dtype=dtype)).shape)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputRefused(
                "PA132",
                f"{spec} does not take rows of shape {tuple(input_shape)}: {reason}. Pass a model that fits.",
            ) from error
    if given != (1, outputs):
        raise InputRefused(
            "PA132",
            f"{spec} gives outputs of shape {given} for one row, the data needs (1, {outputs}). "
            "Pass a model with that many outputs.",
        )
    setattr(model, NAME_ATTRIBUTE, spec)
    return model


def wants_images(spec: str) -> bool:
    """Does this model take rows as pictures (`load_data(..., images=True)`) instead of flat rows.

    `file.py:factory?images=true` does; a third party's builder does if it has a true attribute
    `wants_images`.

    Args:
        spec: a model's name.

    Returns:
        True for pictures.
    """
    parsed = parse_spec(spec)
    if names_code(parsed):
        return parsed.boolean(IMAGES_OPTION, False)
    builder = lookup(MODELS, parsed.name, "model", group=GROUP)
    return parsed.name in _TAKE_PICTURES or bool(getattr(builder, "wants_images", False))


def model_name(model: nn.Module) -> str:
    """The name `build_model` was given, or the class of a module built elsewhere."""
    return str(getattr(model, NAME_ATTRIBUTE, type(model).__name__))


def model_sources(model: nn.Module) -> Mapping[str, str]:
    """Code files the model was built from: file name -> sha256; empty for the built-in models."""
    return dict(getattr(model, SOURCES_ATTRIBUTE, {}))
