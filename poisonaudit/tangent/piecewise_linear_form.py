"""Tangent sensitivity of a fully connected, piecewise linear net from its layer products, no second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from poisonaudit.tangent.chain import DenseChain, slopes, triangle_of

# Entries of the batched products held at once: 32 MiB in float64.
_ENTRIES = 2**22


def piecewise_linear_form(chain: DenseChain, x: Tensor, *, summed: bool, normalised: bool) -> Tensor:
    """Contribution of every layer to `|S(x)|_F^2`, shape (batch, k).

    With slopes `D_i`, `A_i = D_i W_i A_(i-1)` and `B_i = df/dh_i`, the derivative of output c by weight (a, b)
    of layer i and input l is `B_i[c, a] A_(i-1)[b, l]`, so layer i contributes `|A_(i-1)|_F^2 |B_i|_F^2`; a
    bias contributes 0. A slope of a PReLU that the units u share contributes
    `sum_(c,l) (sum_u C_i[c, u] P_i[u, l])^2` over those below 0, with `C_i = df/dz_i` and `P_i = dh_i/dx`.

    Args:
        chain: a net with `piecewise_linear` true.
        x: inputs (batch, ...).
        summed: differentiate the sum of the outputs instead of each output.
        normalised: weight the square of each entry by the square of its parameter.

    Returns:
        (batch, k) in the dtype of x, slopes with the layer in front of them.
    """
    widest = max(weight.shape[0] for weight in chain.weights)
    outputs = 1 if summed else chain.weights[-1].shape[0]
    first = _first_movement(chain)
    # Where slopes are trained, the movements of those layers are kept for the way back.
    held = 1 + sum(chain.trained_slopes(layer) is not None for layer in range(len(chain.weights)))
    chunk = max(1, _ENTRIES // (widest * max(len(first) * held, outputs)))
    flat = x.reshape(x.shape[0], -1)
    return torch.cat([_block(chain, first, rows, summed, normalised) for rows in flat.split(chunk)])


def _first_movement(chain: DenseChain) -> Tensor:
    """`W_1^T` (d, n_1), or a square matrix with the same Gram matrix `W_1 W_1^T` if d is larger than n_1.

    Only norms over the inputs enter, so cost and memory of what follows do not depend on the number of inputs.

    Args:
        chain: the net.

    Returns:
        (min(d, n_1), n_1).
    """
    weight = chain.weights[0]
    return triangle_of(weight) if chain.inputs > weight.shape[0] else weight.T


def _block(chain: DenseChain, first: Tensor, rows: Tensor, summed: bool, normalised: bool) -> Tensor:
    before = chain.preactivations(rows)
    gates = [slopes(group, values) for group, values in zip(chain.activations, before, strict=True)]
    incoming, movements = _incoming(chain, first, gates, rows)
    outgoing, above = _outgoing(chain, gates, rows, summed)
    terms = []
    for layer, weight in enumerate(chain.weights):
        if normalised:
            term = torch.einsum("na,ab,nb->n", outgoing[layer], weight.square(), incoming[layer])
        else:
            term = incoming[layer].sum(1) * outgoing[layer].sum(1)
        trained = chain.trained_slopes(layer)
        if trained is not None:
            below = (before[layer] <= 0).to(rows)
            term = term + _by_slope(trained, above[layer] * below.unsqueeze(1), movements[layer], normalised)
        terms.append(term)
    return torch.stack(terms, dim=1)


def _incoming(
    chain: DenseChain, first: Tensor, gates: list[Tensor], rows: Tensor
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """`|A_(i-1)[b, :]|^2` for i = 1..k, each (batch, n_(i-1)), and `P_i^T` of the layers with trained slopes."""
    squares, movements = [torch.ones_like(rows)], {}
    last = len(chain.weights) - 1
    movement = first.unsqueeze(0)
    for layer, gate in enumerate(gates):
        trained = chain.trained_slopes(layer) is not None
        if layer == last and not trained:
            break
        if layer:
            # Inputs in front, neurons behind: one product for the whole block.
            movement = movement @ chain.weights[layer].T
        if trained:
            movements[layer] = movement.expand(len(rows), -1, -1)
        if layer < last:
            movement = movement * gate.unsqueeze(1)
            squares.append(movement.square().sum(1))
    return squares, movements


def _outgoing(
    chain: DenseChain, gates: list[Tensor], rows: Tensor, summed: bool
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """`|B_i[:, a]|^2` for i = 1..k, each (batch, n_i), and `C_i` of the layers with trained slopes."""
    outputs = chain.weights[-1].shape[0]
    seed = torch.eye(outputs, dtype=rows.dtype, device=rows.device)
    product = (seed.sum(0, keepdim=True) if summed else seed).expand(len(rows), -1, -1)
    squares, above = [], {}
    for layer in range(len(chain.weights) - 1, -1, -1):
        if chain.trained_slopes(layer) is not None:
            above[layer] = product
        product = product * gates[layer].unsqueeze(1)
        squares.append(product.square().sum(1))
        if layer:
            product = product @ chain.weights[layer]
    return squares[::-1], above


def _by_slope(trained: Tensor, above: Tensor, movement: Tensor, normalised: bool) -> Tensor:
    """What the slopes themselves contribute, (batch,)."""
    weight = trained.square() if normalised else torch.ones_like(trained)
    if trained.numel() == 1:
        return weight * torch.einsum("ncu,nlu->ncl", above, movement).square().sum((1, 2))
    return (weight * above.square().sum(1) * movement.square().sum(1)).sum(1)
