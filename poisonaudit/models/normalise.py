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
        """Normalise (n, c, ...) by channel, or (n, d) by one mean and deviation."""
        shape = (-1, *[1] * (x.dim() - 2))
        mean, deviation = self.get_buffer("mean"), self.get_buffer("deviation")
        return (x - mean.view(shape)) / deviation.view(shape)


def parse_normalisation(text: str, input_shape: tuple[int, ...]) -> Normalise:
    """Read MEAN,STD: two numbers, two lists of one number a channel joined by ':', or a preset.

    Args:
        text: e.g. `0.5,0.25`, `0.49:0.48:0.45,0.25:0.24:0.26`, `cifar10`.
        input_shape: of one row.

    Returns:
        The layer, in float64.

    Raises:
        UsageError: PA327, the text is not of that form.
        InputRefused: PA132, the number of channels differs from the data's.
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
    channels = input_shape[0] if len(input_shape) == 3 else 1
    if len(mean) not in (1, channels):
        raise InputRefused(
            "PA132", f"?{OPTION}={text} has {len(mean)} channels, the rows {channels}. Give one number or {channels}."
        )
    return Normalise(torch.tensor(mean, dtype=torch.float64), torch.tensor(deviation, dtype=torch.float64))


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
