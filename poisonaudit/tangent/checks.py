"""What every function about tangents asks of its model and inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused, expect_kind
from poisonaudit.layers import changes_when_training, dense_layers
from poisonaudit.registry import unknown_name
from poisonaudit.row_by_row import PROBE_ROWS, why_not_row_by_row

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
        raise unknown_name(str(outputs), CONVENTIONS, "outputs convention")
    return outputs == "sum"


def check_model(model: nn.Module, x: Tensor) -> None:
    """Refuse what is not a fixed function of one dtype with rows to evaluate it on.

    Args:
        model: module.
        x: inputs (batch, ...).

    Raises:
        InputRefused: PA120 train-mode layers, PA121 mixed dtypes or devices, PA122 no parameters or empty ones, PA124
            NaN or infinite weights, PA127 no module or no dense tensor, PA129 rows mixed or drawn at random, PA210 NaN
            or infinite inputs, PA211 no rows.
    """
    expect_kind("model", model, nn.Module)
    expect_kind("x", x, Tensor)
    if x.layout != torch.strided:
        raise InputRefused("PA127", "x is sparse. Pass x.to_dense().")
    parameters = list(model.parameters())
    if not parameters:
        raise InputRefused(
            "PA122", "the model has no parameters, so it has no tangent sensitivity. Pass a trained net."
        )
    for name, value in model.named_parameters():
        if not value.numel():
            raise InputRefused(
                "PA122", f"{name} has shape {tuple(value.shape)}, no entry. Pass a net with units in every layer."
            )
    for name, layer in model.named_modules():
        if layer.training and changes_when_training(layer):
            raise InputRefused(
                "PA120",
                f"layer {name or type(layer).__name__} is in train mode, so the net is not a fixed function. "
                "Call model.eval() first.",
            )
    if x.dim() < 2 or x.numel() == 0:
        raise InputRefused(
            "PA211", f"inputs have shape {tuple(x.shape)}. Pass at least one row of at least one input, (batch, ...)."
        )
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
    # Linear layers with elementwise activations cannot mix rows.
    if dense_layers(model, flat=x.dim() == 2)[1] is not None:
        _refuse_mixed_rows(model, x.detach())


def _refuse_mixed_rows(model: nn.Module, x: Tensor) -> None:
    """Refuse what is no fixed function of single rows."""

    def call(rows: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(rows.clone())  # a copy, for the first layer may work in place
        return found

    few = x[:PROBE_ROWS]
    try:
        outputs = call(few)
        why = why_not_row_by_row(call, few, outputs) if isinstance(outputs, Tensor) else None
    except (RuntimeError, TypeError, ValueError, IndexError):
        return  # what differentiates the model says what it cannot take
    if why is not None:
        raise InputRefused(
            "PA129",
            f"the model's output for a row {why}, so there is no tangent of one row. Use layers that treat every row "
            "by itself and draw nothing at random.",
        )
