"""Norm of the mean tangent sensitivity matrix under soft gates: what eq. 7 prints, with a norm put around it.

The mean of matrices lets rows cancel; `E |S|_F^2`, which the theorems are about, does not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poisonaudit.tangent.chain import DenseChain, triangle_of

# Rows whose pairwise products are formed; more would take gigabytes.
ROWS = 256


def log_mean_matrix_norm(chain: DenseChain, x: Tensor) -> tuple[float, Tensor]:
    """`log |S|_F` of `S = mean_x E S(A)`, every unit of row x on with probability `sigmoid(h)`, independently.

    `E S` of a row has blocks `E B_i (x) E A_(i-1)`, for the two use disjoint gates, so that the inner product of two
    rows is `sum_i <B_i, B_i'> <A_(i-1), A_(i-1)'>`.

    Args:
        chain: a net with at most one ReLU or LeakyReLU after each matrix.
        x: inputs (batch, ...); the first `ROWS` are used.

    Returns:
        The logarithm, minus infinity for 0; and what each row adds to it, to first order (batch,), 0 for rows not
        used.
    """
    rows = x[:ROWS].reshape(min(len(x), ROWS), -1)
    gates = _mean_slopes(chain, rows)
    weights = list(chain.weights)
    if chain.inputs > weights[0].shape[0]:
        # W_1 = R^T Q^T, and inner products do not see Q.
        weights[0] = triangle_of(weights[0]).T
    incoming = [rows.new_full((len(rows), len(rows)), chain.inputs)]
    product = weights[0].expand(len(rows), -1, -1)
    for layer, gate in enumerate(gates[:-1]):
        product = (weights[layer] @ product if layer else product) * gate.unsqueeze(2)
        incoming.append(_products(product))
    above = torch.eye(weights[-1].shape[0], dtype=rows.dtype, device=rows.device) * gates[-1].unsqueeze(1)
    total = _products(above) * incoming[-1]
    for layer in range(len(weights) - 1, 0, -1):
        above = (above @ weights[layer]) * gates[layer - 1].unsqueeze(1)
        total = total + _products(above) * incoming[layer - 1]
    shares = total.double().mean(1)
    square = float(shares.mean())
    influence = shares.new_zeros(len(x))
    if square <= 0.0:
        return -math.inf, influence
    influence[: len(rows)] = (shares / square - 1.0) * (len(x) / len(rows))
    return 0.5 * math.log(square), influence


def _products(blocks: Tensor) -> Tensor:
    """Inner products (batch, batch) of matrices (batch, a, b)."""
    flat = blocks.flatten(1)
    return flat @ flat.T


def _mean_slopes(chain: DenseChain, rows: Tensor) -> list[Tensor]:
    """Mean slopes (batch, n_i) of every layer."""
    found = []
    for group, before in zip(chain.activations, chain.preactivations(rows), strict=True):
        below = float(getattr(group[0], "negative_slope", 0.0)) if group else 1.0
        found.append(below + (1.0 - below) * torch.sigmoid(before))
    return found
