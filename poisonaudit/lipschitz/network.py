"""Read a dense network (a module or a list of matrices) into the one form the bounds work on.

A network is `W_l s_l( ... s_1(W_0 x + b_0) ... ) + b_l` with elementwise s_r of known slope interval.
Missing pieces are filled in with exact ones: an identity activation between two Linear layers, an identity
matrix between two activations or outside the first or last one. Weights are converted exactly to float64 on
the CPU; batch normalisation in eval mode scales the rows or columns of its neighbour. The bounds carry them
as `scaled matrix * 2^exponent`, scaled so that matrix and slopes together have an l_inf norm below one: no
product can overflow.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused
from poisonaudit.layers import leaves
from poisonaudit.lipschitz.activations import Activation, activation_of
from poisonaudit.lipschitz.pieces import ACCEPTED, SCALE_ROUNDINGS, Linear, Piece, Scale, matrix_of, piece_of

# A product of two nonzero numbers below this may have lost digits to underflow.
SAFE_PRODUCT = 1e-290


@dataclass(frozen=True)
class DenseNetwork:
    """A dense network with l hidden layers.

    Attributes:
        weights: l + 1 matrices, (n_(r+1), n_r), float64, as given, or with a batch normalisation folded in.
        biases: l + 1 vectors, (n_(r+1),), float64.
        activations: l activations.
        roundings: l + 1 counts: every entry of the weight has been rounded at most that often.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activations: tuple[Activation, ...]
    roundings: tuple[int, ...]


@dataclass(frozen=True)
class Chain:
    """What the upper bounds see: `W_l D_l W_(l-1) ... D_1 W_0` with slopes D_r between lower_r and upper_r.

    Attributes:
        weights: l + 1 scaled matrices; their induced l_inf norm times the steepest slope before them is at most 1.
        lower: l vectors (n_r,), the least slope of every neuron.
        upper: l vectors (n_r,), the largest slope.
        centres: l vectors (n_r,), the middle of the interval up to rounding.
        radii: l vectors (n_r,): the interval lies in [centre - radius, centre + radius], in exact arithmetic.
        exponent: the true product is the scaled one times 2^exponent.
        connected: does any path of nonzero weights lead from an input to an output?
        norm: "linf" or "l2", the induced norm that is bounded.
        roundings: of the entries of each weight, as in DenseNetwork.
    """

    weights: tuple[Tensor, ...]
    lower: tuple[Tensor, ...]
    upper: tuple[Tensor, ...]
    centres: tuple[Tensor, ...]
    radii: tuple[Tensor, ...]
    exponent: int
    connected: bool
    norm: str
    roundings: tuple[int, ...]

    @property
    def hidden(self) -> int:
        """Number l of hidden layers."""
        return len(self.centres)

    @property
    def steepest(self) -> tuple[Tensor, ...]:
        """At least |centre| + radius of every neuron, l vectors; exact where float64 holds the sum."""
        return tuple(_sum_up(centre.abs(), radius) for centre, radius in zip(self.centres, self.radii, strict=True))

    def unscaled(self, value: float) -> float:
        """`value * 2^exponent`, infinite where it overflows."""
        try:
            return math.ldexp(value, self.exponent)
        except OverflowError:
            return math.inf

    def unscaled_up(self, value: float) -> float:
        """At least `value * 2^exponent`: exact, except among subnormal numbers, where it is rounded up."""
        result = self.unscaled(value)
        return math.nextafter(result, math.inf) if result < sys.float_info.min else result


def read_network(model_or_matrices: nn.Module | Sequence[Any]) -> DenseNetwork:
    """Read a module, or matrices `[W_0, ..., W_l]` (zero biases, ReLU between them).

    Args:
        model_or_matrices: nn.Sequential (nested ones too) or nn.Linear; or a sequence of 2-D tensors, arrays
            or lists.

    Returns:
        The network in float64 on the CPU.

    Raises:
        InputRefused: PA130, something in it is not a layer these bounds are proved for; the message names it.
    """
    if isinstance(model_or_matrices, nn.Module):
        return _from_pieces([piece_of(leaf) for leaf in leaves(model_or_matrices, subclasses=True)])
    if isinstance(model_or_matrices, (str, bytes, Tensor)) or not isinstance(model_or_matrices, Sequence):
        what = type(model_or_matrices).__name__
        raise InputRefused("PA130", f"got {what}. Bounds need a network. Pass {ACCEPTED}, or a list of matrices.")
    pieces: list[Piece | None] = []
    for position, matrix in enumerate(model_or_matrices):
        weight = matrix_of(matrix, f"W_{position}")
        pieces += [activation_of(nn.ReLU(), nn.ReLU)] if position else []
        pieces.append(Linear(f"W_{position}", weight, torch.zeros(weight.shape[0], dtype=torch.float64)))
    return _from_pieces(pieces)


def chain_of(network: DenseNetwork, norm: str, intervals: Sequence[tuple[Tensor, Tensor]] | None = None) -> Chain:
    """The scaled chain whose bounds are those of `network` in `norm`; l_1 is l_inf of the transposed product.

    Args:
        network: with l hidden layers.
        norm: "linf", "l1" or "l2".
        intervals: l pairs (lower, upper) of slopes (n_r,), where they are narrower than those of all inputs.

    Returns:
        The chain.
    """
    step = -1 if norm == "l1" else 1
    weights = [weight.T if norm == "l1" else weight for weight in network.weights[::step]]
    widths = [weight.shape[0] for weight in weights[:-1]]
    if intervals is None:
        slopes = [activation.ends((n,)) for activation, n in zip(network.activations[::step], widths, strict=True)]
    else:
        slopes = list(intervals[::step])
    balls = [_ball(lower, upper) for lower, upper in slopes]
    steepest = [1.0, *(float((centre.abs() + radius).max()) for centre, radius in balls)]
    matrices, exponent = [], 0
    for weight, slope in zip(weights, steepest, strict=True):
        matrix, power = scaled(weight, max(1.0, slope))
        matrices.append(matrix.contiguous())
        exponent += power
    # Asked of the weights as given: scaling may lose an entry 10^300 times smaller than its neighbours.
    reached = torch.ones(weights[0].shape[1], dtype=torch.bool)
    for weight in weights:
        reached = ((weight != 0.0) & reached).any(1)
    return Chain(
        weights=tuple(matrices),
        lower=tuple(lower for lower, _ in slopes),
        upper=tuple(upper for _, upper in slopes),
        centres=tuple(centre for centre, _ in balls),
        radii=tuple(radius for _, radius in balls),
        exponent=exponent,
        connected=bool(reached.any()),
        norm="l2" if norm == "l2" else "linf",
        roundings=network.roundings[::step],
    )


def _ball(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and radius of each interval, the radius rounded up so that both ends lie inside."""
    found: dict[tuple[float, float], tuple[float, float]] = {}
    ends = list(zip(lower.tolist(), upper.tolist(), strict=True))
    for low, high in set(ends):
        centre = low / 2 + high / 2
        exact = max(Fraction(high) - Fraction(centre), Fraction(centre) - Fraction(low))
        radius = float(exact)
        found[low, high] = (centre, radius if Fraction(radius) >= exact else math.nextafter(radius, math.inf))
    pairs = torch.tensor([found[end] for end in ends], dtype=torch.float64)
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


def _sum_up(a: Tensor, b: Tensor) -> Tensor:
    """At least a + b >= 0; equal to it where float64 holds it (Knuth's error-free sum tells)."""
    total = a + b
    shadow = total - a
    error = (a - (total - shadow)) + (b - shadow)
    return torch.where(error > 0.0, torch.nextafter(total, torch.full_like(total, math.inf)), total)


def _from_pieces(pieces: list[Piece | None]) -> DenseNetwork:
    """Alternate affine maps and activations, filling gaps with identities, and check that the shapes fit."""
    kept = [piece for piece in pieces if piece and not (isinstance(piece, Activation) and piece.changes_nothing)]
    linears = [piece for piece in kept if isinstance(piece, Linear)]
    if not linears:
        raise InputRefused("PA130", f"the network has no Linear layer. There is nothing to bound. Pass {ACCEPTED}.")
    rows = _Rows(linears[0].weight.shape[1])
    for piece in kept:
        if isinstance(piece, Linear):
            rows.add_linear(piece)
        elif isinstance(piece, Scale):
            rows.add_scale(piece)
        else:
            rows.add_activation(piece)
    rows.close()
    return DenseNetwork(tuple(rows.weights), tuple(rows.biases), tuple(rows.activations), tuple(rows.roundings))


class _Rows:
    """The lists of a DenseNetwork while it is being read."""

    def __init__(self, width: int) -> None:
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        self.activations: list[Activation] = []
        self.roundings: list[int] = []
        self.width, self.before = width, "the input"
        self.diagonal = False  # is the last weight the diagonal of a batch normalisation?

    def add_linear(self, piece: Linear) -> None:
        self._check(piece.name, piece.weight.shape[1], "columns")
        if self.diagonal:
            scale, shift = self.weights[-1].diagonal(), self.biases[-1]
            folded = piece.weight * scale
            if _safe(folded, piece.weight, scale):
                self.weights[-1], self.biases[-1] = folded, piece.weight @ shift + piece.bias
                self.roundings[-1] += 1
                self._now(piece)
                return
        self._append(piece.weight, piece.bias)
        self._now(piece)

    def add_scale(self, piece: Scale) -> None:
        self._check(piece.name, len(piece.scale), "entries")
        if len(self.weights) > len(self.activations):
            folded = piece.scale[:, None] * self.weights[-1]
            if _safe(folded, piece.scale[:, None], self.weights[-1]):
                self.weights[-1] = folded
                self.biases[-1] = piece.scale * self.biases[-1] + piece.shift
                self.roundings[-1] += SCALE_ROUNDINGS + 1
                return
        self._append(torch.diag(piece.scale), piece.shift, SCALE_ROUNDINGS)
        self.diagonal = True

    def add_activation(self, piece: Activation) -> None:
        self.close()
        if piece.kind is nn.PReLU:
            self._check_channels(piece)
        self.activations.append(piece)
        self.diagonal = False

    def close(self) -> None:
        """Stand on a matrix: an identity where there is none."""
        if len(self.weights) == len(self.activations):
            self._append(torch.eye(self.width, dtype=torch.float64), torch.zeros(self.width, dtype=torch.float64))

    def _append(self, weight: Tensor, bias: Tensor, roundings: int = 0) -> None:
        if len(self.weights) > len(self.activations):
            self.activations.append(activation_of(nn.Identity(), nn.Identity))
        self.weights.append(weight)
        self.biases.append(bias)
        self.roundings.append(roundings)
        self.diagonal = False

    def _now(self, piece: Linear) -> None:
        self.width, self.before, self.diagonal = piece.weight.shape[0], piece.name, False

    def _check(self, name: str, takes: int, what: str) -> None:
        if takes != self.width:
            raise InputRefused(
                "PA130",
                f"{name} takes {takes} inputs, {self.before} gives {self.width}. "
                f"Layers apply in the order given. Give each as many {what} as the one before has rows.",
            )

    def _check_channels(self, piece: Activation) -> None:
        count = sum(values.numel() for values in piece.module.parameters())
        if count not in {1, self.width}:
            raise InputRefused(
                "PA130",
                f"PReLU has {count} slopes, {self.before} gives {self.width} neurons. "
                "Give it one slope, or one for every neuron.",
            )


def _safe(product: Tensor, left: Tensor, right: Tensor) -> bool:
    """Whether no entry of an entrywise product overflowed or came near underflow."""
    zero = (left == 0.0) | (right == 0.0)
    return bool(((torch.isfinite(product) & (product.abs() >= SAFE_PRODUCT)) | zero).all())


def scaled(weight: Tensor, steepest: float = 1.0) -> tuple[Tensor, int]:
    """`(matrix, power)` with `weight = matrix * 2^power` and an l_inf norm of `matrix * steepest` of at most 1."""
    largest = float(weight.abs().max())
    if largest == 0.0:
        return weight, 0
    power = math.frexp(largest)[1]
    # Entries are now at most 1 and their row sums at most the number of columns, so the second step cannot
    # overflow.
    matrix = _times_power(weight, -power)
    extra = max(0, math.frexp(float(matrix.abs().sum(1).max()) * (1.0 + 1e-9))[1])
    # A power of two at least as large; slopes that are a power of two take no more than they need.
    extra += math.frexp(math.nextafter(steepest, 0.0))[1]
    return _times_power(matrix, -extra), power + extra


def _times_power(matrix: Tensor, power: int) -> Tensor:
    """`matrix * 2^power` in steps that stay inside the range of float64."""
    half = power // 2
    return matrix * math.ldexp(1.0, half) * math.ldexp(1.0, power - half)
