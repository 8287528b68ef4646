"""The public functions: check the input, then a closed form or the dense form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused
from poisonaudit.layers import CHANGES_WHEN_TRAINING
from poisonaudit.registry import unknown_name
from poisonaudit.tangent.chain import DenseChain, dense_chain
from poisonaudit.tangent.dense import dense_form
from poisonaudit.tangent.relu_form import relu_form
from poisonaudit.tangent.smooth_form import SMOOTH_LIMIT, smooth_entries, smooth_form

_CONVENTIONS = ("jacobian", "sum")


def tangent_sensitivity(model: nn.Module, x: Tensor, outputs: str = "jacobian") -> Tensor:
    """`|S(x)|_F^2`, `S(x) = d^2 f / d theta d x` over all parameters theta (Daroczy, definition 3.1).

    Fully connected nets (Sequential of Linear, elementwise activations, Flatten, Identity) use closed forms: with
    ReLU `sum_i |A_(i-1)|_F^2 |B_i|_F^2`, else one that carries first derivatives. Other eval-mode nets use exact
    second derivatives while a row has at most `dense.DENSE_LIMIT` of them.

    Errors: UsageError PA301 for another `outputs`; InputRefused PA120 train-mode layers, PA121 mixed dtypes
    or devices, PA122 no parameters, PA151 too large for the dense form, PA210 NaN or infinite inputs, PA211
    shapes.

    Args:
        model: module in eval mode, of one dtype.
        x: inputs (batch, ...) of the same dtype and device.
        outputs: "jacobian" sums `|S_c|^2` over the outputs c; "sum" takes f := sum of the outputs.

    Returns:
        (batch,), in the dtype and on the device of x. Unit: squared output per (parameter x input), summed.
    """
    _check(model, x, outputs)
    chain, summed = dense_chain(model, x), outputs == "sum"
    if chain is None or not (chain.rectified or smooth_entries(chain, summed=summed) <= SMOOTH_LIMIT):
        return dense_form(model, x, summed=summed)
    return _closed_form(_fitting(chain, x), x, summed).sum(1)


def tangent_sensitivity_by_layer(model: nn.Module, x: Tensor, outputs: str = "jacobian") -> Tensor:
    """What every layer of a fully connected net contributes to `tangent_sensitivity`.

    Errors: as `tangent_sensitivity`, and InputRefused PA150 for a net of another form.

    Args:
        model: Sequential of Linear and elementwise activations (Flatten, Identity).
        x: inputs (batch, ...).
        outputs: "jacobian" or "sum".

    Returns:
        (batch, k), Linear layers in the order they are applied, biases with their layer.
    """
    _check(model, x, outputs)
    chain = dense_chain(model, x)
    if chain is None:
        raise _not_of_this_form(model, x, "elementwise activations")
    return _closed_form(_fitting(chain, x), x, outputs == "sum")


def tangent_sensitivity_normalised(model: nn.Module, x: Tensor, outputs: str = "jacobian") -> Tensor:
    """`sum_i sum_(a,b) W_i[a,b]^2 |A_(i-1)[b,:]|^2 |B_i[:,a]|^2`, invariant under rescaling neurons.

    Multiplying what enters a hidden neuron (bias included) by s > 0 and what leaves it by 1/s keeps the
    function and this number; it changes `tangent_sensitivity`.

    Errors: as `tangent_sensitivity`, and InputRefused PA150 for a net of another form.

    Args:
        model: Sequential of Linear and ReLU (Flatten, Identity).
        x: inputs (batch, ...) of the model's dtype and device.
        outputs: "jacobian" or "sum".

    Returns:
        (batch,), in the dtype and on the device of x. Unit: squared output per squared input.
    """
    _check(model, x, outputs)
    chain = dense_chain(model, x)
    if chain is None or not chain.rectified:
        raise _not_of_this_form(model, x, "ReLU")
    return relu_form(_fitting(chain, x), x, summed=outputs == "sum", normalised=True).sum(1)


def _closed_form(chain: DenseChain, x: Tensor, summed: bool) -> Tensor:
    if chain.rectified:
        return relu_form(chain, x, summed=summed, normalised=False)
    return smooth_form(chain, x, summed=summed)


def _not_of_this_form(model: nn.Module, x: Tensor, activations: str) -> InputRefused:
    kinds = sorted({type(layer).__name__ for layer in model.modules() if not list(layer.children())})
    return InputRefused(
        "PA150",
        f"this form needs a Sequential of Linear and {activations}; the model has {', '.join(kinds)}, inputs "
        f"{tuple(x.shape)}. Use tangent_sensitivity, or a net of that kind.",
    )


def _fitting(chain: DenseChain, x: Tensor) -> DenseChain:
    width = x[0].numel()
    if width != chain.inputs:
        raise InputRefused(
            "PA211",
            f"a row has {width} entries, the first layer takes {chain.inputs}. Pass rows of {chain.inputs}.",
        )
    return chain


def _check(model: nn.Module, x: Tensor, outputs: str) -> None:
    if outputs not in _CONVENTIONS:
        raise unknown_name(outputs, _CONVENTIONS, "outputs convention")
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
