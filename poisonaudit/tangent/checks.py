"""What every function about tangents asks of its model and inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused, expect_kind
from poisonaudit.layers import CHANGES_WHEN_TRAINING
from poisonaudit.registry import unknown_name

CONVENTIONS = ("jacobian", "sum")


def check_convention(outputs: str) -> bool:
    """Whether the outputs are summed first.

    Args:
        outputs: name of the convention.

    Returns:
        True for "sum".

    Raises:
        UsageError: PA301, not "jacobian" or "sum".
    """
    if outputs not in CONVENTIONS:
        raise unknown_name(outputs, CONVENTIONS, "outputs convention")
    return outputs == "sum"


def check_model(model: nn.Module, x: Tensor) -> None:
    """Refuse what is not a fixed function of one dtype with rows to evaluate it on.

    Args:
        model: module.
        x: inputs (batch, ...).

    Raises:
        InputRefused: PA120 train-mode layers, PA121 mixed dtypes or devices, PA122 no parameters, PA124 NaN or infinite
            weights, PA127 no module or no tensor, PA210 NaN or infinite inputs, PA211 no rows.
    """
    expect_kind("model", model, nn.Module)
    expect_kind("x", x, Tensor)
    parameters = list(model.parameters())
    if not parameters:
        raise InputRefused(
            "PA122", "the model has no parameters, so it has no tangent sensitivity. Pass a trained net."
        )
    for name, layer in model.named_modules():
        if layer.training and isinstance(layer, CHANGES_WHEN_TRAINING):
            raise InputRefused(
                "PA120",
                f"layer {name or type(layer).__name__} is in train mode, so the net is not a fixed function. "
                "Call model.eval() first.",
            )
    if x.dim() < 2 or x.shape[0] == 0:
        raise InputRefused("PA211", f"inputs have shape {tuple(x.shape)}. Pass at least one row, (batch, ...).")
    for value in parameters:
        if value.dtype != x.dtype or value.device != x.device:
            raise InputRefused(
                "PA121",
                f"the model is {value.dtype} on {value.device}, the inputs {x.dtype} on {x.device}. "
                "Convert both to one dtype and device, float64 for audits.",
            )
    if not bool(torch.isfinite(x).all()):
        raise InputRefused("PA210", "inputs hold NaN or infinite entries. Remove or impute those rows.")
    # Buffers may hold infinity on purpose, as masks of attention do.
    broken = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
    broken += [name for name, value in model.named_buffers() if bool(torch.isnan(value).any())]
    if broken:
        raise InputRefused(
            "PA124", f"{broken[0]} holds NaN or infinite entries. Train the model again, or pass others."
        )
