"""Tangent sensitivity of a fully connected net with any elementwise activations, by carrying first derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poisonaudit.tangent.chain import DenseChain, activated, basis_of

# Entries of the batched products held at once: 32 MiB in float64.
_ENTRIES = 2**22
# Beyond this many entries (outputs x width x inputs) a single row would take gigabytes.
SMOOTH_LIMIT = 50_000_000


def smooth_entries(chain: DenseChain, *, summed: bool) -> int:
    """Entries of the largest tensor carried for one row: outputs x width x the smaller of inputs and first width."""
    outputs = 1 if summed else chain.weights[-1].shape[0]
    columns = min(chain.inputs, chain.weights[0].shape[0])
    return outputs * max(weight.shape[0] for weight in chain.weights) * columns


def smooth_form(chain: DenseChain, x: Tensor, *, summed: bool, normalised: bool) -> Tensor:
    """Contribution of every layer, weights, bias and slopes, to `|S(x)|_F^2`, shape (batch, k).

    The derivative of output c by weight (a, b) of layer i is `B_i[c, a] z_(i-1)[b]` with `B_i = df/dh_i`, so its
    derivative in the input is `B_i[c, a] A_(i-1)[b, :] + z_(i-1)[b] T_i[c, a, :]` with `A_i = dz_i/dx` and
    `T_i = dB_i/dx`; that of a bias is `T_i[c, a, :]`. From the output backwards, with `U_i = B_(i+1) W_(i+1)` and
    `P_i = dh_i/dx`: `B_i = U_i s'(h_i)` and `T_i = (dU_i/dx) s'(h_i) + U_i s''(h_i) P_i`. All of it but A_0 lies in
    the rows of W_1, so that with more inputs than neurons in the first layer an orthonormal basis of those rows
    replaces the inputs.

    Args:
        chain: the net.
        x: inputs (batch, ...).
        summed: differentiate the sum of the outputs instead of each output.
        normalised: weight the square of each entry by the square of its parameter.

    Returns:
        (batch, k) in the dtype of x.
    """
    flat = x.reshape(x.shape[0], -1)
    chunk = max(1, _ENTRIES // smooth_entries(chain, summed=summed))
    return torch.cat([_block(chain, rows, summed, normalised) for rows in flat.split(chunk)])


@dataclass
class _Forward:
    """What the way from the input to the output leaves behind, one entry a layer.

    Attributes:
        entering: `z_(i-1)` (n, b).
        entering_moves: `A_(i-1)` (n, b, r) in coordinates of the basis; None for the input itself.
        before: `h_i` (n, a).
        moves: `P_i` (n, a, r).
        slopes: `s'(h_i)`.
        bends: `s''(h_i)`.
    """

    entering: list[Tensor]
    entering_moves: list[Tensor | None]
    before: list[Tensor]
    moves: list[Tensor]
    slopes: list[Tensor]
    bends: list[Tensor]


def _forward(chain: DenseChain, rows: Tensor, basis: Tensor | None) -> _Forward:
    found = _Forward([], [], [], [], [], [])
    values, movement = rows, None
    for weight, bias, activation in zip(chain.weights, chain.biases, chain.activations, strict=True):
        found.entering.append(values)
        found.entering_moves.append(movement)
        if movement is None:
            first = weight if basis is None else weight @ basis
            found.moves.append(first.expand(len(rows), -1, -1))
        else:
            found.moves.append(weight @ movement)
        found.before.append(nn.functional.linear(values, weight, bias))
        values, slope, bend = _derivatives(activation, found.before[-1])
        found.slopes.append(slope)
        found.bends.append(bend)
        movement = found.moves[-1] * slope.unsqueeze(2)
    return found


def _block(chain: DenseChain, rows: Tensor, summed: bool, normalised: bool) -> Tensor:
    first = chain.weights[0]
    basis = basis_of(first) if chain.inputs > first.shape[0] else None
    seen = _forward(chain, rows, basis)
    identity = torch.eye(chain.weights[-1].shape[0], dtype=rows.dtype, device=rows.device)
    above = (identity.sum(0, keepdim=True) if summed else identity).expand(len(rows), -1, -1)
    above_moves = torch.zeros(1, dtype=rows.dtype, device=rows.device).expand(*above.shape, seen.moves[0].shape[2])
    terms = []
    for layer in range(len(chain.weights) - 1, -1, -1):
        slope, bend = seen.slopes[layer], seen.bends[layer]
        factor = above * slope.unsqueeze(1)
        factor_moves = (above * bend.unsqueeze(1)).unsqueeze(3) * seen.moves[layer].unsqueeze(1)
        factor_moves = factor_moves + above_moves * slope[:, None, :, None]
        term = _by_weights(chain, layer, seen, factor, factor_moves, basis, normalised)
        bias, trained = chain.biases[layer], chain.trained_slopes(layer)
        if bias is not None:
            spread = factor_moves.square().sum((1, 3))
            term = term + (spread @ bias.square() if normalised else spread.sum(1))
        if trained is not None:
            term = term + _by_slope(trained, seen, layer, above, above_moves, normalised)
        terms.append(term)
        if layer:
            above = factor @ chain.weights[layer]
            above_moves = torch.einsum("ncbl,ba->ncal", factor_moves, chain.weights[layer])
    return torch.stack(terms[::-1], dim=1)


def _by_weights(
    chain: DenseChain,
    layer: int,
    seen: _Forward,
    factor: Tensor,
    factor_moves: Tensor,
    basis: Tensor | None,
    normalised: bool,
) -> Tensor:
    """`sum v[a, b] |B[c, a] A[b, l] + z[b] T[c, a, l]|^2` without forming the product; v is W^2 or 1."""
    values, movement = seen.entering[layer], seen.entering_moves[layer]
    straight, bent = factor.square().sum(1), factor_moves.square().sum((1, 3))
    lengths = torch.ones_like(values) if movement is None else movement.square().sum(2)
    if normalised:
        weight = chain.weights[layer].square()
        scaled = weight * values.unsqueeze(1)
        total = torch.einsum("na,ab,nb->n", straight, weight, lengths)
        total = total + torch.einsum("na,ab,nb->n", bent, weight, values.square())
    else:
        scaled = values.unsqueeze(1)
        total = straight.sum(1) * lengths.sum(1) + bent.sum(1) * values.square().sum(1)
    if movement is not None:
        lever = scaled @ movement
    else:
        lever = scaled if basis is None else scaled @ basis
    cross = torch.einsum("ncal,nal->nca", factor_moves, lever.expand(-1, factor.shape[2], -1))
    return (total + 2 * (factor * cross).sum((1, 2))).clamp_min(0)


def _by_slope(
    trained: Tensor, seen: _Forward, layer: int, above: Tensor, above_moves: Tensor, normalised: bool
) -> Tensor:
    """What the slopes of a PReLU contribute: `df/ds = sum_u U[c, u] h[u]` over the units below 0 that share s."""
    below = (seen.before[layer] <= 0).to(above)
    moved = above.unsqueeze(3) * seen.moves[layer].unsqueeze(1) + above_moves * seen.before[layer][:, None, :, None]
    moved = moved * below[:, None, :, None]
    weight = trained.square() if normalised else torch.ones_like(trained)
    if trained.numel() == 1:
        return weight * moved.sum(2).square().sum((1, 2))
    return moved.square().sum((1, 3)) @ weight


def _derivatives(activation: tuple[nn.Module, ...], before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative of an elementwise activation."""
    if not activation:
        return before, torch.ones_like(before), torch.zeros_like(before)
    with torch.enable_grad():
        point = before.detach().requires_grad_(True)
        values = activated(activation, point.clone())
        (slope,) = torch.autograd.grad(values.sum(), point, create_graph=True)
        bend = torch.zeros_like(before)
        if slope.requires_grad:
            (found,) = torch.autograd.grad(slope.sum(), point, allow_unused=True)
            bend = bend if found is None else found
    return values.detach(), slope.detach(), bend
