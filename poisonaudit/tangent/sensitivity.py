"""The public functions: check the input, then a closed form or the dense form."""

from __future__ import annotations

from torch import Tensor, nn

from poisonaudit.tangent.chain import DenseChain, dense_chain, fitting, not_of_this_form
from poisonaudit.tangent.checks import check_convention, check_model
from poisonaudit.tangent.dense import dense_form
from poisonaudit.tangent.relu_form import relu_form
from poisonaudit.tangent.smooth_form import SMOOTH_LIMIT, smooth_entries, smooth_form


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
    summed = check_convention(outputs)
    check_model(model, x)
    chain = dense_chain(model, x)
    if (
        chain is None
        or any(chain.trained_slopes(i) is not None for i in range(len(chain.weights)))
        or not (chain.rectified or smooth_entries(chain, summed=summed) <= SMOOTH_LIMIT)
    ):
        return dense_form(model, x, summed=summed)
    return _closed_form(fitting(chain, x), x, summed).sum(1)


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
    summed = check_convention(outputs)
    check_model(model, x)
    chain = dense_chain(model, x)
    if chain is None:
        raise not_of_this_form(model, x, "elementwise activations", "Use tangent_sensitivity.")
    return _closed_form(fitting(chain, x), x, summed)


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
    summed = check_convention(outputs)
    check_model(model, x)
    chain = dense_chain(model, x)
    if chain is None or not chain.rectified:
        raise not_of_this_form(model, x, "ReLU", "Use tangent_sensitivity.")
    return relu_form(fitting(chain, x), x, summed=summed, normalised=True).sum(1)


def _closed_form(chain: DenseChain, x: Tensor, summed: bool) -> Tensor:
    if chain.rectified:
        return relu_form(chain, x, summed=summed, normalised=False)
    return smooth_form(chain, x, summed=summed)
