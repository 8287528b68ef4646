"""Recognise a fully connected net with elementwise activations, for which tangent sensitivity has a closed form."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from poisonaudit.layers import dense_layers


@dataclass(frozen=True)
class DenseChain:
    """`h_i = W_i z_(i-1) + b_i`, `z_i = s_i(h_i)` with s_i applied entry by entry.

    Attributes:
        weights: W_1 .. W_k, each (n_i, n_(i-1)).
        biases: b_1 .. b_k or None.
        activations: modules whose composition is s_i, possibly none.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    activations: tuple[tuple[nn.Module, ...], ...]

    @property
    def inputs(self) -> int:
        """Number of input variables d."""
        return self.weights[0].shape[1]

    @property
    def rectified(self) -> bool:
        """Whether every activation is a ReLU, so that no second derivative of an activation enters."""
        return all(type(layer) is nn.ReLU for layers in self.activations for layer in layers)


def dense_chain(model: nn.Module, x: Tensor) -> DenseChain | None:
    """The net as a chain, or None if it is not Linear layers and elementwise activations one after another.

    Args:
        model: any module.
        x: inputs; their number of dimensions decides whether a Flatten is needed first.

    Returns:
        The chain. Flatten, Identity and eval-mode Dropout are passed over. None for anything else: an activation
        before the first Linear, shared weights, hooks, parametrised layers, inputs that are not (batch, d) at a
        Linear.
    """
    layers, unfit = dense_layers(model, flat=x.dim() == 2)
    if unfit is not None:
        return None
    weights = tuple(leaf.module.weight.detach() for leaf, _ in layers)
    biases = tuple(None if leaf.module.bias is None else leaf.module.bias.detach() for leaf, _ in layers)
    # A tied weight adds its two derivatives before they are squared; the closed forms add the squares.
    owned = {value.data_ptr() for value in [*weights, *(bias for bias in biases if bias is not None)]}
    count = len(weights) + sum(bias is not None for bias in biases)
    # The closed forms know the derivatives by weights and biases, not those by the slopes of a PReLU.
    trained = any(True for layers_after in layers for layer in layers_after[1] for _ in layer.parameters())
    if not weights or len(owned) < count or trained:
        return None
    return DenseChain(weights, biases, tuple(activations for _, activations in layers))
