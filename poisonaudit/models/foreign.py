"""Architectures of torchvision and timm by name, always without their pretrained weights: nothing is downloaded."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.registry import unknown_name
from poisonaudit.spec import Spec


def torchvision_model(spec: Spec, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """`torchvision:NAME`: a classification network of torchvision. ?num_classes=N.

    Args:
        spec: argument is the network's name, e.g. `torchvision:resnet18`.
        input_shape: `(channels, height, width)`; torchvision's networks take three channels.
        outputs: number of classes, unless ?num_classes says otherwise.

    Returns:
        The network with fresh weights, without auxiliary outputs.

    Raises:
        UsageError: PA301, torchvision has no such classification network; PA325, no name.
        InputRefused: PA132, the rows are not pictures.
    """
    from torchvision import models

    spec.allow("num_classes")
    _check(spec, input_shape)
    known = models.list_models(module=models)
    if spec.argument not in known:
        raise unknown_name(spec.argument, known, "torchvision model")
    options: dict[str, Any] = {"weights": None, "num_classes": spec.integer("num_classes", outputs)}
    if spec.argument in ("googlenet", "inception_v3"):
        # One output a row; the constructor's own initialisation, said aloud so that it does not warn.
        options |= {"aux_logits": False, "init_weights": True}
    if spec.argument.startswith("vit_"):
        # The one family that fixes the size of its pictures; 224 without this.
        options["image_size"] = input_shape[1]
    return models.get_model(spec.argument, **options)


def timm_model(spec: Spec, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """`timm:NAME`: a network of the timm library (extra `timm`). ?num_classes=N.

    Args:
        spec: argument is the network's name, e.g. `timm:resnet10t`.
        input_shape: `(channels, height, width)`; timm adapts its first layer to the channels.
        outputs: number of classes, unless ?num_classes says otherwise.

    Returns:
        The network with fresh weights.

    Raises:
        UsageError: PA301, timm has no such network; PA325, no name; PA326, timm is not installed.
        InputRefused: PA132, the rows are not pictures.
    """
    spec.allow("num_classes")
    _check(spec, input_shape)
    # timm looks for weights on a hub; we never ask for any, and say so to the library too.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import timm
    except ImportError:
        raise UsageError("PA326", f"{spec.text} needs timm. Run pip install 'poisonaudit[timm]'.") from None
    if spec.argument not in timm.list_models():
        raise unknown_name(spec.argument, timm.list_models(), "timm model")
    options: dict[str, Any] = {"in_chans": input_shape[0], "num_classes": spec.integer("num_classes", outputs)}
    try:
        return timm.create_model(spec.argument, pretrained=False, img_size=input_shape[1], **options)
    except TypeError:
        # Convolutional networks take any size and have no such argument.
        return timm.create_model(spec.argument, pretrained=False, **options)


def _check(spec: Spec, input_shape: tuple[int, ...]) -> None:
    if not spec.argument:
        raise UsageError("PA325", f"{spec.text} names no network. Write {spec.name}:NAME, e.g. {spec.name}:resnet18.")
    if len(input_shape) != 3:
        raise InputRefused(
            "PA132",
            f"{spec.text} takes pictures (channels, height, width), the rows have shape {tuple(input_shape)}. "
            "Pass picture data.",
        )
