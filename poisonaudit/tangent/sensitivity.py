"""The exact functions: check the input, then a closed form or the dense form."""

from __future__ import annotations

from torch import Tensor, nn

from poisonaudit.tangent.chain import DenseChain, dense_chain, fitting, not_of_this_form
from poisonaudit.tangent.checks import check_convention, check_model
from poisonaudit.tangent.dense import dense_form
from poisonaudit.tangent.piecewise_linear_form import piecewise_linear_form
from poisonaudit.tangent.smooth_form import SMOOTH_LIMIT, smooth_entries, smooth_form


def tangent_sensitivity(model: nn.Module, x: Tensor, outputs: str = "jacobian") -> Tensor:
    """`|S(x)|_F^2`, `S(x) = d^2 f / d theta d x` over all parameters theta (Daroczy, definition 3.1), exactly.

    Fully connected nets (Sequential of Linear, elementwise activations, Flatten, Identity) use closed forms: with
    piecewise linear activations `sum_i |A_(i-1)|_F^2 |B_i|_F^2`, else one that carries first derivatives. Other
    eval-mode nets use exact second derivatives while a row has at most `dense.DENSE_LIMIT` of them; beyond that,
    `tangent_sensitivity_probes` estimates.

    Errors: UsageError PA301 for another `outputs`; InputRefused PA120 train-mode layers, PA121 mixed dtypes
    or devices, PA122 no parameters, PA124 NaN or infinite weights, PA127 no module or tensor,
    PA151 too large for the dense form, PA210 NaN or infinite inputs, PA211 shapes.

    Args:
        model: module in eval mode, of one dtype.
        x: inputs (batch, ...) of the same dtype and device.
        outputs: "jacobian" sums `|S_c|^2` over the outputs c; "sum" takes f := sum of the outputs.

    Returns:
        (batch,), in the dtype and on the device of x. Unit: squared output per (parameter x input), summed.
    """
    return _exact(model, x, outputs, normalised=False)


def tangent_sensitivity_normalised(model: nn.Module, x: Tensor, outputs: str = "jacobian") -> Tensor:
    """`sum_j theta_j^2 |d^2 f / d theta_j d x|^2`, each parameter's part weighted by its square, exactly.

    For fully connected nets `sum_i sum_(a,b) W_i[a,b]^2 |A_(i-1)[b,:]|^2 |B_i[:,a]|^2`. Multiplying what enters a
    hidden neuron or channel (bias included) by s > 0 and what leaves it by 1/s keeps the function if its activation
    has a(s h) = s a(h): ReLU, LeakyReLU, PReLU, none at all, max or average pooling. It then keeps this number too,
    while it changes `tangent_sensitivity`. With other activations (tanh, GELU, ReLU6, ...) no such rescaling keeps
    the function, and the number is what the formula says.

    Errors: as `tangent_sensitivity`.

    Args:
        model: module in eval mode, of one dtype.
        x: inputs (batch, ...) of the same dtype and device.
        outputs: "jacobian" or "sum".

    Returns:
        (batch,), in the dtype and on the device of x. Unit: squared output per squared input.
    """
    return _exact(model, x, outputs, normalised=True)


def tangent_sensitivity_by_layer(
    model: nn.Module, x: Tensor, outputs: str = "jacobian", *, normalised: bool = False
) -> Tensor:
    """What every layer of a fully connected net contributes to `tangent_sensitivity`.

    Errors: as `tangent_sensitivity`, and InputRefused PA150 for a net of another form.

    Args:
        model: Sequential of Linear and elementwise activations (Flatten, Identity).
        x: inputs (batch, ...).
        outputs: "jacobian" or "sum".
        normalised: take `tangent_sensitivity_normalised` apart instead.

    Returns:
        (batch, k), Linear layers in the order they are applied, biases and trained slopes with their layer.
    """
    summed = check_convention(outputs)
    check_model(model, x)
    chain = dense_chain(model, x)
    if chain is None:
        raise not_of_this_form(model, x, "elementwise activations", "Use tangent_sensitivity, or a net of that kind.")
    return closed_form(fitting(chain, x), x, summed=summed, normalised=normalised)


def has_closed_form(chain: DenseChain | None, *, summed: bool) -> bool:
    """Whether a net read as a chain is within reach of `closed_form`."""
    return chain is not None and (chain.piecewise_linear or smooth_entries(chain, summed=summed) <= SMOOTH_LIMIT)


def closed_form(chain: DenseChain, x: Tensor, *, summed: bool, normalised: bool) -> Tensor:
    """Contribution of every layer to `|S(x)|_F^2`, (batch, k), of a chain with `has_closed_form`."""
    form = piecewise_linear_form if chain.piecewise_linear else smooth_form
    return form(chain, x, summed=summed, normalised=normalised)


def _exact(model: nn.Module, x: Tensor, outputs: str, *, normalised: bool) -> Tensor:
    summed = check_convention(outputs)
    check_model(model, x)
    chain = dense_chain(model, x)
    if chain is not None and has_closed_form(chain, summed=summed):
        return closed_form(fitting(chain, x), x, summed=summed, normalised=normalised).sum(1)
    return dense_form(model, x, summed=summed, normalised=normalised)
