"""`?normalize=MEAN,STD`: normalisation as the network's first layer, so that perturbations stay in pixel units."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused, UsageError

OPTION = "normalize"
LAYER = "normalize"

# Means and deviations that published checkpoints were trained with.
PRESETS = {
    "mnist": "0.1307,0.3081",
    "cifar10": "0.4914:0.4822:0.4465,0.2470:0.2435:0.2616",
    "cifar100": "0.5071:0.4865:0.4409,0.2673:0.2564:0.2762",
    "imagenet": "0.485:0.456:0.406,0.229:0.224:0.225",
}


class Normalise(nn.Module):
    """`(x - mean) / deviation` per channel, without weights and without entries in the state dict."""

    # Read by the R-operator: an affine map of each channel by `mean` and `deviation`.
    channel_affine: ClassVar[bool] = True

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (n, c, ...) by channel, or (n, d) by one mean and deviation or one of each a column."""
        shape = (-1, *[1] * (x.dim() - 2))
        mean, deviation = self.get_buffer("mean"), self.get_buffer("deviation")
        return (x - mean.view(shape)) / deviation.view(shape)


def parse_normalisation(
    text: str, input_shape: tuple[int, ...], image_shape: tuple[int, ...] | None = None
) -> Normalise:
    """Read MEAN,STD: two numbers, two lists of one number a channel or column joined by ':', or a preset.

    Args:
        text: e.g. `0.5,0.25`, `0.49:0.48:0.45,0.25:0.24:0.26`, `cifar10`.
        input_shape: of one row.
        image_shape: (channels, height, width) of flat rows that are pictures, channels first.

    Returns:
        The layer, in float64.

    Raises:
        UsageError: PA327, the text is not of that form.
        InputRefused: PA132, the number of channels or columns differs from the data's.
    """
    parts = PRESETS.get(text, text).split(",")
    try:
        mean, deviation = ([float(number) for number in part.split(":")] for part in parts)
    except ValueError:
        mean, deviation = [], []
    good = len(mean) == len(deviation) > 0 and all(map(math.isfinite, mean + deviation)) and min(deviation) > 0
    if not good:
        raise UsageError(
            "PA327",
            f"?{OPTION}={text} is not MEAN,STD. Give two numbers, one list a channel joined by ':' each, with positive "
            f"deviations, or one of {', '.join(PRESETS)}.",
        )
    repeats = _repeats(text, len(mean), input_shape, image_shape)
    numbers = (torch.tensor(each, dtype=torch.float64).repeat_interleave(repeats) for each in (mean, deviation))
    return Normalise(*numbers)


def _repeats(text: str, count: int, input_shape: tuple[int, ...], image_shape: tuple[int, ...] | None) -> int:
    """How often each number stands in the layer: once a channel or column, once a pixel where rows are flattened."""
    given, first = f"?{OPTION}={text} has {count} channels", input_shape[0]
    if len(input_shape) > 1:
        if count in (1, first):
            return 1
        raise InputRefused("PA132", f"{given}, the rows {first}. Give one number or {first}.")
    if count in (1, first):
        return 1
    if image_shape is None:
        raise InputRefused(
            "PA132",
            f"{given}, the rows are {first} columns that are not known to be pictures. Give one number, or one a "
            "column; for channels take data of pictures.",
        )
    if count == image_shape[0] and math.prod(image_shape) == first:
        return first // count
    raise InputRefused(
        "PA132", f"{given}, the flattened pictures {image_shape[0]}. Give one number or {image_shape[0]}."
    )


def normalised(model: nn.Module, layer: Normalise) -> nn.Module:
    """The model behind the layer, its weights under their own names, so that checkpoints still fit.

    Args:
        model: any network of one input.
        layer: applied first.

    Returns:
        A Sequential with the layer in front, or the model with a forward that applies it.
    """
    if type(model) is nn.Sequential:
        return nn.Sequential(OrderedDict([(LAYER, layer), *model._modules.items()]))
    kind = type(model)

    def forward(self: Any, x: Tensor) -> Tensor:
        return kind.forward(self, self.get_submodule(LAYER)(x))

    model.add_module(LAYER, layer)
    model.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return model
