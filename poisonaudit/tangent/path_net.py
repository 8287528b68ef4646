"""What the path bounds read of a net: widths, largest weights, slopes, and the active units of every row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused
from poisonaudit.layers import steepest
from poisonaudit.tangent.chain import DenseChain, dense_chain, fitting, slopes
from poisonaudit.tangent.checks import check_model

# A bias then has no second derivative by the input, and a weight only that of its paths. A PReLU has slopes that are
# parameters of their own; Hardsigmoid's 1/6 is rounded differently in every dtype.
BOUNDED = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh, nn.Softshrink)


@dataclass(frozen=True)
class PathNet:
    """A fully connected net with piecewise-linear activations, as its path bounds see it.

    Attributes:
        chain: the layers.
        inputs: d_in.
        hidden: n_1 .. n_(k-1), widths of the hidden layers.
        outputs: d_out.
        largest: w_max_1 .. w_max_k, the largest absolute weight of every matrix, exactly.
        steepest: product over all activations of their largest absolute slope; 1 for ReLU.
    """

    chain: DenseChain
    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    largest: tuple[Fraction, ...]
    steepest: Fraction

    @property
    def depth(self) -> int:
        """K, the number of weight matrices."""
        return len(self.largest)

    @property
    def weights(self) -> int:
        """Number of weights; biases are left out, for they contribute 0."""
        return sum(weight.numel() for weight in self.chain.weights)

    def without(self, layer: int) -> Fraction:
        """Product of the largest weights of all matrices but one, times the slopes every path crosses."""
        others = self.largest[:layer] + self.largest[layer + 1 :]
        return math.prod(others, start=self.steepest)

    @property
    def path_weight(self) -> Fraction:
        """`M = prod_i w_max_i / min_i w_max_i`, times the slopes: no path with one weight left out has more."""
        return max(self.without(layer) for layer in range(self.depth))

    def active(self, x: Tensor) -> Tensor:
        """Units with a slope other than 0, (batch, k - 1): of a ReLU those above 0, of a leaky ReLU all."""
        rows = x.reshape(x.shape[0], -1)
        before = self.chain.preactivations(rows)[:-1]
        pairs = zip(self.chain.activations, before, strict=False)
        counts = [(slopes(activation, values) != 0).sum(1) for activation, values in pairs]
        return torch.stack(counts, dim=1) if counts else torch.zeros(len(rows), 0, dtype=torch.long)


def path_net(model: nn.Module, x: Tensor) -> PathNet:
    """Read a net for its path bounds.

    Args:
        model: Sequential of Linear and ReLU, LeakyReLU, ReLU6, Hardtanh or Softshrink (Flatten, Identity, Dropout), in
            eval mode; biases allowed.
        x: inputs (batch, ...).

    Returns:
        The net.

    Raises:
        InputRefused: PA150, another layer, named; PA124, weights are NaN or infinite; PA120, PA121, PA122, PA210 and
            PA211 as `tangent_sensitivity`.
    """
    check_model(model, x)
    chain = dense_chain(model, x)
    if chain is None:
        kinds = sorted({type(layer).__name__ for layer in model.modules() if not list(layer.children())})
        raise _refused(f"the model has {', '.join(kinds)} for inputs {tuple(x.shape)}, or shares weights among layers")
    activations = [layer for group in chain.activations for layer in group]
    for layer in activations:
        if type(layer) not in BOUNDED:
            raise _refused(f"the model has {type(layer).__name__}")
    fitting(chain, x)
    largest = [float(weight.abs().max()) for weight in chain.weights]
    factor = [steepest(layer) for layer in activations]
    if not all(map(math.isfinite, [*largest, *factor])):
        raise InputRefused("PA124", "weights hold NaN or infinite entries. Train the model again, or pass others.")
    widths = [weight.shape[0] for weight in chain.weights]
    return PathNet(
        chain=chain,
        inputs=chain.inputs,
        hidden=tuple(widths[:-1]),
        outputs=widths[-1],
        largest=tuple(map(Fraction, largest)),
        steepest=math.prod(map(Fraction, factor), start=Fraction(1)),
    )


def _refused(found: str) -> InputRefused:
    return InputRefused(
        "PA150",
        "path bounds need a Sequential of Linear and piecewise-linear activations without parameters (ReLU, LeakyReLU, "
        f"ReLU6, Hardtanh, Softshrink); {found}. Use tangent_sensitivity, which needs no bound, or a net of that kind.",
    )
