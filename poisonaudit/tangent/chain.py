"""Recognise a fully connected net with elementwise activations, for which tangent sensitivity has a closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused
from poisonaudit.layers import dense_layers


class ExactHardsigmoid(nn.Module):
    """`relu6(h + 3) / 6`: torch's own operator has its slope in single precision and no second derivative."""

    def forward(self, values: Tensor) -> Tensor:
        """Apply to every entry."""
        return nn.functional.relu6(values + 3) / 6


# Linear on each of finitely many intervals, so that no second derivative of theirs enters.
PIECEWISE_LINEAR = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.Hardtanh, ExactHardsigmoid, nn.Softshrink)
# Of these, f(s x) = s f(x) for s > 0: rescaling a neuron can be undone behind it.
HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU)


def triangle_of(weight: Tensor) -> Tensor:
    """R (n, n) of `W^T = Q R`, W (n, d) with n < d, without Q."""
    return torch.linalg.qr(_at_least_single(weight).T, mode="r").R.to(weight)


def basis_of(weight: Tensor) -> Tensor:
    """Q (d, n) of `W^T = Q R`, with orthonormal columns."""
    return torch.linalg.qr(_at_least_single(weight).T).Q.to(weight)


def _at_least_single(weight: Tensor) -> Tensor:
    """There is no such decomposition in half precision."""
    return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()


@dataclass(frozen=True)
class DenseChain:
    """`h_i = W_i z_(i-1) + b_i`, `z_i = s_i(h_i)` with s_i applied entry by entry.

    Attributes:
        weights: W_1 .. W_k, each (n_i, n_(i-1)).
        biases: b_1 .. b_k or None.
        activations: modules whose composition is s_i, possibly none.
        names: of the Linear layers, as in named_modules().
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    activations: tuple[tuple[nn.Module, ...], ...]
    names: tuple[str, ...] = ()

    @property
    def inputs(self) -> int:
        """Number of input variables d."""
        return self.weights[0].shape[1]

    @property
    def rectified(self) -> bool:
        """Whether every activation is a ReLU."""
        return all(type(layer) is nn.ReLU for layers in self.activations for layer in layers)

    @property
    def piecewise_linear(self) -> bool:
        """Whether no second derivative of an activation enters."""
        return all(type(layer) in PIECEWISE_LINEAR for layers in self.activations for layer in layers)

    @property
    def homogeneous(self) -> bool:
        """Whether every neuron can be rescaled by s > 0 without changing the function."""
        return all(type(layer) in HOMOGENEOUS for layers in self.activations for layer in layers)

    def trained_slopes(self, layer: int) -> Tensor | None:
        """The slopes below 0 of a PReLU, (1,) or (n_i,), which are parameters too; None for other activations."""
        activation = self.activations[layer]
        return activation[0].weight.detach() if activation and type(activation[0]) is nn.PReLU else None

    def preactivations(self, rows: Tensor) -> list[Tensor]:
        """`h_1 .. h_k` of rows (batch, d), each (batch, n_i)."""
        found, values = [], rows
        with torch.no_grad():
            for weight, bias, activation in zip(self.weights, self.biases, self.activations, strict=True):
                found.append(nn.functional.linear(values, weight, bias))
                values = activated(activation, found[-1])
        return found


def activated(activation: tuple[nn.Module, ...], values: Tensor) -> Tensor:
    """The activations one after another."""
    for layer in activation:
        values = layer(values)
    return values


def slopes(activation: tuple[nn.Module, ...], before: Tensor) -> Tensor:
    """Derivative of an elementwise activation, as automatic differentiation has it at kinks."""
    if not activation:
        return torch.ones_like(before)
    if all(type(layer) is nn.ReLU for layer in activation):
        return (before > 0).to(before.dtype)
    with torch.enable_grad():
        point = before.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(activated(activation, point).sum(), point)
    return slope


def dense_chain(model: nn.Module, x: Tensor) -> DenseChain | None:
    """The net as a chain, or None if it is not Linear layers and elementwise activations one after another.

    Args:
        model: any module.
        x: inputs; their number of dimensions decides whether a Flatten is needed first.

    Returns:
        The chain. Flatten, Identity and eval-mode Dropout are passed over. None for anything else: an activation
        before the first Linear, shared weights, hooks, parametrised layers, inputs that are not (batch, d) at a
        Linear, a PReLU joined with another activation.
    """
    layers, unfit = dense_layers(model, flat=x.dim() == 2)
    if unfit is not None or not layers:
        return None
    weights = tuple(leaf.module.weight.detach() for leaf, _ in layers)
    biases = tuple(None if leaf.module.bias is None else leaf.module.bias.detach() for leaf, _ in layers)
    activations = tuple(
        tuple(ExactHardsigmoid() if type(layer) is nn.Hardsigmoid else layer for layer in group) for _, group in layers
    )
    trained = [value for group in activations for layer in group for value in layer.parameters()]
    # A tied weight adds its two derivatives before they are squared; the closed forms add the squares.
    values = [*weights, *(bias for bias in biases if bias is not None), *trained]
    if len({value.data_ptr() for value in values}) < len(values):
        return None
    joined = any(type(layer) is nn.PReLU for group in activations if len(group) > 1 for layer in group)
    return None if joined else DenseChain(weights, biases, activations, tuple(leaf.name for leaf, _ in layers))


def fitting(chain: DenseChain, x: Tensor) -> DenseChain:
    """The chain, if rows of x are as wide as it takes.

    Args:
        chain: the net.
        x: inputs (batch, ...).

    Returns:
        The same chain.

    Raises:
        InputRefused: PA211, they are not.
    """
    width = x[0].numel()
    if width != chain.inputs:
        raise InputRefused(
            "PA211",
            f"a row has {width} entries, the first layer takes {chain.inputs}. Pass rows of {chain.inputs}.",
        )
    return chain


def not_of_this_form(model: nn.Module, x: Tensor, activations: str, instead: str) -> InputRefused:
    """The refusal of a net that is no chain of the kind needed, to be raised."""
    kinds = sorted({type(layer).__name__ for layer in model.modules() if not list(layer.children())})
    return InputRefused(
        "PA150",
        f"this form needs a Sequential of Linear and {activations}; the model has {', '.join(kinds)}, inputs "
        f"{tuple(x.shape)}. {instead}",
    )
