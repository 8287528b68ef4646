"""Tangent sensitivity with soft gates: each unit is on with the probability its pre-activation gives it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused
from poisonaudit.tangent.chain import DenseChain, dense_chain, fitting, not_of_this_form
from poisonaudit.tangent.checks import check_convention, check_model
from poisonaudit.tangent.patterns import refuse_without_units
from poisonaudit.tangent.preactivations import preactivations

# Entries of the batched products held at once: 32 MiB in float64.
_ENTRIES = 2**22


def soft_tangent_sensitivity(
    model: nn.Module, x: Tensor, outputs: str = "jacobian", *, normalised: bool = False
) -> Tensor:
    """`E |S|_F^2` when the gates are independent and on with probability `sigmoid(h)` (Daroczy, eq. 4 and 7).

    The pre-activations h are those of the net itself at x. `A_(i-1)` and `B_i` use disjoint gates, so that
    `E |S|_F^2 = sum_i E|A_(i-1)|_F^2 E|B_i|_F^2`; with p the probabilities of a layer,
    `E[D G D] = p p^T o G + diag(p (1 - p) o diag G)` carries `E[A A^T]` forwards and `E[B^T B]` backwards. That is
    the sum over all activation patterns of their probability times their sensitivity, at the cost of one.

    Errors: UsageError PA301 for another `outputs`; InputRefused PA150 a net of another form, and as
    `tangent_sensitivity`.

    Args:
        model: Sequential of Linear and at most one ReLU or LeakyReLU after each (Flatten, Identity, Dropout).
        x: inputs (batch, ...) of the model's dtype and device.
        outputs: "jacobian" sums `|S_c|^2` over the outputs c; "sum" takes f := sum of the outputs.
        normalised: weight entry (a, b) of a matrix by its square, as `tangent_sensitivity_normalised` does.

    Returns:
        (batch,), in the dtype and on the device of x. Unit: that of `tangent_sensitivity`.
    """
    summed = check_convention(outputs)
    check_model(model, x)
    chain = dense_chain(model, x)
    if chain is None or not _one_kink_each(chain):
        raise not_of_this_form(
            model, x, "at most one ReLU or LeakyReLU after each", "Use tangent_sensitivity for other nets."
        )
    fitting(chain, x)
    widest = max(weight.shape[0] for weight in chain.weights)
    chunk = max(1, _ENTRIES // (2 * widest**2))
    rows = x.reshape(x.shape[0], -1).split(chunk)
    return torch.cat([_expected(chain, part, summed, normalised) for part in rows])


def pattern_log_probability(model: nn.Module, x: Tensor, patterns: Tensor) -> Tensor:
    """`log p(A | x) = sum_l log sigmoid(a_l h_l(x))` for patterns of 1 and -1 (Daroczy, eq. 4).

    Printed, both products run over `|a_l| = 1` and `|a_l| = -1`; they are meant over `a_l = 1` and `a_l = -1`.

    Errors: InputRefused PA212 other entries or another number of units, PA153 and PA154 as `activation_patterns`.

    Args:
        model: any eval-mode net with ReLU, LeakyReLU or PReLU units.
        x: inputs (batch, ...).
        patterns: (..., units) of 1 and -1, units ordered as `activation_signs` has them; (units,) is one pattern for
            all rows, (batch, units) one for each row, (m, 1, units) gives all rows the m patterns.

    Returns:
        Logarithms, in the shape that (..., units) and (batch, units) broadcast to, without the units.
    """
    check_model(model, x)
    values = torch.cat(refuse_without_units(preactivations(model, x)).values, dim=1)
    if patterns.dim() == 0 or patterns.shape[-1] != values.shape[1]:
        raise InputRefused(
            "PA212",
            f"patterns have shape {tuple(patterns.shape)}, the net has {values.shape[1]} units. Give an entry a unit.",
        )
    if patterns.dim() > 1 and patterns.shape[-2] not in (1, len(values)):
        raise InputRefused(
            "PA212",
            f"patterns have shape {tuple(patterns.shape)}, there are {len(values)} rows. Give one a row, or "
            "(m, 1, units) for m patterns at every row.",
        )
    if not bool((patterns.abs() == 1).all()):
        raise InputRefused("PA212", "patterns hold entries other than 1 and -1. Write 1 for active, -1 for inactive.")
    return nn.functional.logsigmoid(patterns.to(values) * values).sum(-1)


def _one_kink_each(chain: DenseChain) -> bool:
    return all(not group or type(group[0]) in (nn.ReLU, nn.LeakyReLU) for group in chain.activations) and all(
        len(group) <= 1 for group in chain.activations
    )


def _moments(chain: DenseChain, rows: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Mean and variance (batch, n_i) of the slopes of every layer."""
    means, variances = [], []
    for group, before in zip(chain.activations, chain.preactivations(rows), strict=True):
        if not group:
            means.append(torch.ones_like(before))
            variances.append(torch.zeros_like(before))
            continue
        below = float(getattr(group[0], "negative_slope", 0.0))
        probability = torch.sigmoid(before)
        means.append(below + (1 - below) * probability)
        variances.append((1 - below) ** 2 * probability * torch.sigmoid(-before))
    return means, variances


def _gated(product: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """`E[D G D]` for independent slopes D: off the diagonal the means multiply."""
    gated = product * mean.unsqueeze(2) * mean.unsqueeze(1)
    diagonal = product.diagonal(dim1=1, dim2=2) * variance
    return gated + torch.diag_embed(diagonal)


def _expected(chain: DenseChain, rows: Tensor, summed: bool, normalised: bool) -> Tensor:
    means, variances = _moments(chain, rows)
    # E |A_(i-1)[b, :]|^2 and E |B_i[:, a]|^2: the diagonals of what is carried.
    incoming = [torch.ones_like(rows)]
    first = chain.weights[0]
    product = (first @ first.T).expand(len(rows), -1, -1)
    for layer in range(len(chain.weights) - 1):
        if layer:
            product = chain.weights[layer] @ product @ chain.weights[layer].T
        product = _gated(product, means[layer], variances[layer])
        incoming.append(product.diagonal(dim1=1, dim2=2))
    size = chain.weights[-1].shape[0]
    start = torch.ones(size, size) if summed else torch.eye(size)
    product = start.to(rows).expand(len(rows), -1, -1)
    outgoing = []
    for layer in range(len(chain.weights) - 1, -1, -1):
        product = _gated(product, means[layer], variances[layer])
        outgoing.append(product.diagonal(dim1=1, dim2=2))
        if layer:
            product = chain.weights[layer].T @ product @ chain.weights[layer]
    total = torch.zeros_like(rows[:, 0])
    for weight, before, after in zip(chain.weights, incoming, reversed(outgoing), strict=True):
        if normalised:
            total = total + torch.einsum("na,ab,nb->n", after, weight.square(), before)
        else:
            total = total + before.sum(1) * after.sum(1)
    return total
