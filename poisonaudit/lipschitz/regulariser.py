"""A penalty for training: the bound K_5 of a dense network as a tensor with gradients to the network's own parameters.

The numbers are K_5 of `upper.py`, in the model's precision and without the slack for rounding: to train with, not to
prove with. `lipschitz_bounds` certifies what came out.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused, UsageError, wrong_type
from poisonaudit.layers import SLOPES, leaves
from poisonaudit.lipschitz.network import Chain
from poisonaudit.lipschitz.pieces import ACCEPTED, known, layout_of
from poisonaudit.lipschitz.upper import row_bounds, signed_interval
from poisonaudit.registry import unknown_name

Slopes = tuple[Tensor, Tensor]
Reduction = Literal["largest", "mean", "smooth"]
NORMS = ("linf", "l1")
# The p of the smooth maximum: over ten rows at most 1.34 times the largest.
SMOOTHNESS = 8.0
_UNCHANGED = {nn.Flatten, nn.Identity, nn.Dropout}


def lipschitz_penalty(
    model: nn.Module, norm: str = "linf", reduction: Reduction = "largest", *, margins: bool = False
) -> Tensor:
    """K_5 of a dense network, differentiable: add a multiple of it to the loss.

    In l_inf, row k of `V_(l+1) 1` (see docs/lipschitz.md) bounds how strongly logit k can change; in l_1, a row for
    every input i bounds how strongly it is felt. `reduction` makes one number of them:

    - "largest": K_5 itself, which is `lipschitz_bounds(model, norm).k5`; gradients reach one row at a time.
    - "mean": every row counts; not a bound of the network.
    - "smooth": the p-norm of the rows with p = 8, a bound between K_5 and `rows^(1/8) K_5`.

    With `margins` the rows are those of all differences `e_y - e_j` of two logits. What a class's lead can lose
    within a radius is at most its row times the radius, and so this is the quantity that certified radii depend on.

    Args:
        model: nested nn.Sequential of Linear, Flatten, BatchNorm1d and Dropout in eval mode, and elementwise
            activations with known slopes, in any floating type and on any device.
        norm: "linf" or "l1", of inputs and outputs. A margin is one number, so its row in l_1 is its largest entry.
        reduction: "largest", "mean" or "smooth".
        margins: bound differences of two outputs instead of outputs.

    Returns:
        A scalar in the model's precision on its device, part of the graph of its parameters.

    Raises:
        InputRefused: PA124, weights are NaN; PA130, the network is not one the bound is proved for; the message names
            the layer.
        UsageError: PA301, unknown norm or reduction; PA314, no module, or margins that are neither True nor False.
    """
    if norm not in NORMS:
        raise UsageError("PA301", unknown_name(str(norm), NORMS, "norm").message)
    if reduction not in get_args(Reduction):
        raise UsageError("PA301", unknown_name(str(reduction), get_args(Reduction), "reduction").message)
    if not isinstance(model, nn.Module):
        raise wrong_type("lipschitz_penalty", "model", model, "Pass a torch.nn.Module.")
    if not isinstance(margins, bool):
        raise wrong_type("lipschitz_penalty", "margins", margins, "Pass True or False.")
    penalty = _penalty(model, norm, reduction, margins)
    if bool(penalty.isnan()):
        raise InputRefused(
            "PA124",
            "weights hold NaN, or the penalty is beyond their precision. Train the model again, or pass others.",
        )
    return penalty


def _penalty(model: nn.Module, norm: str, reduction: Reduction, margins: bool) -> Tensor:
    weights, slopes = _read(model)
    if margins:
        weights[-1] = _differences(weights[-1])
        if norm == "l1":
            through, around = signed_interval(_chain(weights, slopes))
            return _reduced((through.abs() + around).amax(1), reduction)
    if norm == "l1":
        weights, slopes = [weight.T for weight in reversed(weights)], slopes[::-1]
    return _reduced(row_bounds(_chain(weights, slopes)), reduction)


def _reduced(rows: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "largest":
        return rows.amax()
    if reduction == "mean":
        return rows.mean()
    # Eighth powers of the rows themselves would overflow single precision from 65,000 on.
    unit = rows.detach().amax().clamp_min(torch.finfo(rows.dtype).tiny)
    return unit * torch.linalg.vector_norm(rows / unit, SMOOTHNESS)


def _differences(weight: Tensor) -> Tensor:
    """Rows `w_y - w_j` for y < j; their bounds are those of the opposite differences as well."""
    first, second = torch.triu_indices(len(weight), len(weight), 1, device=weight.device)
    if not len(first):
        raise InputRefused("PA130", "the network has one output. Margins are between two. Pass margins=False.")
    return weight[first] - weight[second]


def _chain(weights: list[Tensor], slopes: list[Slopes]) -> Chain:
    """What K_5 takes, unscaled, in the graph of the parameters."""
    return Chain(
        weights=tuple(weights),
        lower=tuple(low for low, _ in slopes),
        upper=tuple(high for _, high in slopes),
        centres=tuple((low + high) / 2 for low, high in slopes),
        radii=tuple((high - low) / 2 for low, high in slopes),
        exponent=0,
        connected=True,
        norm="linf",
        roundings=(0,) * len(weights),
    )


def _read(model: nn.Module) -> tuple[list[Tensor], list[Slopes]]:
    """The l + 1 matrices and l pairs of slopes of `network.read_network`, as functions of the live parameters."""
    layers = [(leaf.module, *known(leaf)) for leaf in leaves(model, subclasses=True)]
    _refuse_weights(model)
    first = next((_weight(module, name) for module, kind, name in layers if kind is nn.Linear), None)
    if first is None:
        raise InputRefused("PA130", f"the network has no Linear layer. There is nothing to bound. Pass {ACCEPTED}.")
    width = first.shape[1]
    weights: list[Tensor] = []
    slopes: list[Slopes] = []
    since = first.new_ones(width)  # the last activation: a matrix, or a vector that stands for a diagonal one
    for module, kind, name in layers:
        if kind is nn.Linear:
            weight = _weight(module, name)
            _check(name, weight.shape[1], width)
            since = weight @ since if since.dim() == 2 else weight * since
            width = len(weight)
        elif kind is nn.BatchNorm1d:
            _check(name, module.num_features, width)
            scale = (module.running_var + module.eps).rsqrt()
            scale = scale if module.weight is None else module.weight * scale
            since = scale[:, None] * since if since.dim() == 2 else scale * since
        elif kind not in _UNCHANGED:
            weights.append(since if since.dim() == 2 else torch.diag(since))
            slopes.append(_slopes(module, kind, name, since.new_ones(width)))
            since = first.new_ones(width)
    weights.append(since if since.dim() == 2 else torch.diag(since))
    return weights, slopes


def _refuse_weights(model: nn.Module) -> None:
    """Weights that say nothing yet, or are no real numbers in full; their values are not looked at."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            raise InputRefused("PA130", f"{name} has no values yet. There is nothing to bound. Load or initialise it.")
        if value.is_complex():
            raise InputRefused("PA130", f"{name} is {value.dtype}. Real numbers were expected. Use a real network.")
        if (layout := layout_of(value)) is not None:
            raise InputRefused("PA130", f"{name} is a {layout} tensor. Weights are read in full. Use its to_dense().")


def _weight(module: nn.Linear, name: str) -> Tensor:
    weight = module.weight
    if not weight.numel():
        raise InputRefused("PA130", f"{name} weight has no values. There is nothing to bound. Pass {ACCEPTED}.")
    return weight


def _slopes(module: Any, kind: type[nn.Module], name: str, ones: Tensor) -> Slopes:
    """Least and largest slope of every neuron, like `ones`; a PReLU's follow its own weight."""
    if kind is nn.PReLU:
        if module.num_parameters != 1:
            _check(name, module.num_parameters, len(ones))
        return ones * module.weight.clamp_max(1.0), ones * module.weight.clamp_min(1.0)
    lower, upper = SLOPES[kind](module)
    if not (math.isfinite(lower) and math.isfinite(upper)):
        raise InputRefused("PA130", f"{name} has slopes without limit. No Lipschitz constant is finite. Replace it.")
    return lower * ones, upper * ones


def _check(name: str, takes: int, given: int) -> None:
    if takes != given:
        raise InputRefused("PA130", f"{name} takes {takes} numbers, the layer before it gives {given}. Make them fit.")
