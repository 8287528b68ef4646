"""The ellipsoid bound with its free numbers tuned: multipliers T and input weights d by descent on the bound itself.

Every d > 0 and every diagonal `T^-1 > K` prove a bound (ellipsoid.py); the closed forms there are a start. The bound is
a smooth function of log d and of log T^-1 relative to diag K. In the variables of semidefinite programs (LipSDP with
one multiplier a neuron, Fazlyab et al., 2019; for l_inf, Wang et al., 2022) the problem is convex, so that descent
tends to the bound of those programs without a solver for them. The minimum can lie at the edge of what is allowed,
where steps get short: a few percent may be left. How far it came does not matter for the proof: it takes any T and d.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.lipschitz.ellipsoid import (
    Block,
    Ellipsoid,
    Multiplier,
    Recursion,
    chosen,
    recursion_work,
    through_slopes,
)
from poisonaudit.lipschitz.network import Chain

STEPS = 80
# Multiplications, about 1e9 a second on one core. Fewer than the least steps are not worth beginning.
LARGEST_WORK = 2e10
_LEAST_STEPS = 20
# A step with its gradient costs about this many recursions.
_STEP_COST = 5.0
# Adam in the logarithms; the rate falls as a cosine, and by half for a row whose step is taken back.
_RATE, _MOMENTUM, _SQUARES, _TINY = 0.1, 0.9, 0.9, 1e-12
# A step that raises the logarithm of the bound by more than this is taken back.
_RISE = 0.05
_BLOCK_ENTRIES = 2**22
_LEAST_SPREAD = 1e-110


def tuned(chain: Chain, found: Ellipsoid) -> Ellipsoid | None:
    """Lower the ellipsoid bound by descent.

    The largest row is tuned first, then those that still exceed it; the rest keep what they have.

    Args:
        chain: the network.
        found: its `ellipsoid_of`.

    Returns:
        The bound; None where nothing is free, or where so few steps would take more than `LARGEST_WORK`.
    """
    if not 0.0 < found.value < math.inf or (chain.norm != "l2" and any(_shared(block) for block in found.blocks)):
        return None
    affordable = LARGEST_WORK / (_STEP_COST * max(recursion_work(chain), 1.0))
    rows = [_row(block, place) for block in found.blocks for place in range(len(block.weights))]
    rows.sort(key=_value, reverse=True)
    if not rows or affordable < _LEAST_STEPS:
        return None
    steps = min(STEPS, int(affordable))
    with torch.enable_grad():
        blocks = _lowered(chain, rows[:1], steps)
        top = _value(blocks[0])
        above = [row for row in rows[1:] if _value(row) > top]
        steps = min(STEPS, int((affordable - steps) / max(len(above), 1)))
        if steps >= _LEAST_STEPS:
            size = max(1, int(_BLOCK_ENTRIES / (chain.hidden * max(len(weight) for weight in chain.weights) ** 2)))
            for start in range(0, len(above), size):
                blocks += _lowered(chain, above[start : start + size], steps)
            above = []
    kept = above + [row for row in rows[1:] if _value(row) <= top]
    return Ellipsoid(max(_value(block) for block in blocks + kept), (*blocks, *kept))


def _shared(block: Block) -> bool:
    """Do several output rows share their weights, because a recursion for each is too dear?"""
    return len(block.weights) < len(block.last)


def _value(block: Block) -> float:
    return float(block.bounds.amin(0).max())


def _row(block: Block, place: int) -> Block:
    """One row of a block (in l_2, where rows are bounded together, all of it)."""
    only = slice(place, place + 1)
    recursions = tuple(
        Recursion(
            each.gram[only],
            each.power[only],
            tuple(spread[only] for spread in each.spreads),
            tuple(power[only] for power in each.powers),
        )
        for each in block.recursions
    )
    return Block(
        block.weights[only], block.last if _shared(block) else block.last[only], recursions, block.bounds[:, only]
    )


def _lowered(chain: Chain, rows: list[Block], steps: int) -> list[Block]:
    """The rows after descent; one that descent cannot start from, as where neurons are dead, stays as it was."""
    block = _descended(chain, rows, steps)
    found = [_row(block, place) for place in range(len(rows))]
    better = [_value(new) < _value(old) for new, old in zip(found, rows, strict=True)]
    if all(better):
        return [block]
    return [new if lower else old for new, old, lower in zip(found, rows, better, strict=True)]


def _descended(chain: Chain, rows: list[Block], steps: int) -> Block:
    """The rows as one block, each with the best weights and multipliers that Adam met, every row for itself."""
    starts = [chosen(row.recursions, row.bounds.argmin(0)) for row in rows]
    powers = [torch.cat(each) for each in zip(*(start.powers for start in starts), strict=True)]
    last, weights = torch.cat([row.last for row in rows]), torch.cat([row.weights for row in rows])
    spreads = [torch.cat(each) for each in zip(*(start.spreads for start in starts), strict=True)]
    recursion = _Recursion(chain, last, weights, powers)
    free = recursion.logarithms_of(spreads)
    best = list(free)
    lowest = torch.full((len(weights), 1), math.inf, dtype=torch.float64)
    rate, age = torch.full_like(lowest, _RATE), torch.zeros_like(lowest)
    mean, square = [torch.zeros_like(each) for each in free], [torch.zeros_like(each) for each in free]
    for step in range(steps):
        free = [each.requires_grad_() for each in free]
        value = recursion.bound(free)[0]
        gradient = torch.autograd.grad(value.sum(), free, materialize_grads=True)
        with torch.no_grad():
            reached = value.detach()[:, None]
            back = ~((reached <= lowest + _RISE) & torch.isfinite(reached))
            better = (reached < lowest) & ~back
            lowest = torch.where(better, reached, lowest)
            best = [torch.where(better, now, before) for now, before in zip(free, best, strict=True)]
            rate, age = torch.where(back, 0.5 * rate, rate), torch.where(back, 0.0, age) + 1.0
            cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
            for place, slope in enumerate(gradient):
                slope = torch.where(back, 0.0, slope)
                mean[place] = torch.where(back, 0.0, _MOMENTUM * mean[place] + (1.0 - _MOMENTUM) * slope)
                square[place] = torch.where(back, 0.0, _SQUARES * square[place] + (1.0 - _SQUARES) * slope.square())
                length = (mean[place] / (1.0 - _MOMENTUM**age)) / (
                    (square[place] / (1.0 - _SQUARES**age)).sqrt() + _TINY
                )
                moved = free[place] - cosine * rate * length
                free[place] = torch.where(back, best[place], moved).detach()
    with torch.no_grad():
        found = tuple(recursion.bound(best)[1])
    # The proof builds P anew: it reads T^-1 with its scale, and the weights.
    gram = torch.zeros(len(weights), 0, 0, dtype=torch.float64)
    kept = Recursion(gram, powers[-1], found, tuple(powers))
    return Block(recursion.weights(best).detach(), last, (kept,), lowest[:, 0].exp()[None])


@dataclass(frozen=True, eq=False)
class _Recursion:
    """The bound as a function of logarithms: of T^-1 / diag K per hidden layer, and in l_inf of the weights d.

    Relative to K the multipliers of a layer keep their meaning when those before it move.
    """

    chain: Chain
    last: Tensor
    plain_weights: Tensor
    powers: list[Tensor]

    def logarithms_of(self, spreads: list[Tensor]) -> list[Tensor]:
        """The point where T^-1 is `spreads` and d the plain weights."""
        # A layer without a moving neuron asks for none.
        ratios = [torch.ones_like(spread) for spread in spreads]

        def given(layer: int, k: Tensor, moving: Tensor) -> Tensor:
            ratios[layer] = spreads[layer].clamp_min(_LEAST_SPREAD) / _diagonal(k)
            return spreads[layer] * moving

        with torch.no_grad():
            self._through([functools.partial(given, layer) for layer in range(len(spreads))], self.plain_weights)
        free = [ratio.log() for ratio in ratios]
        return free if self.chain.norm == "l2" else [*free, self.plain_weights.log()]

    def weights(self, free: list[Tensor]) -> Tensor:
        """The input weights d."""
        return self.plain_weights if self.chain.norm == "l2" else free[-1].exp()

    def bound(self, free: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logarithm of every row's bound, infinite or NaN outside of what is allowed, and T^-1 of every layer."""

        def given(ratio: Tensor, k: Tensor, moving: Tensor) -> Tensor:
            return _diagonal(k) * ratio.exp() * moving

        multipliers = [functools.partial(given, ratio) for ratio in free[: self.chain.hidden]]
        weights, last = self.weights(free), self.last
        gram, spreads = self._through(multipliers, weights)
        shift = self.powers[-1] * math.log(2.0)
        if self.chain.norm != "l2":
            square = torch.einsum("bi,bij,bj->b", last, gram, last)
            return 0.5 * (square.log() + weights.sum(1).log()) + shift, spreads
        outer = last @ gram @ last.T
        if not bool(torch.isfinite(outer).all()):
            # The solver would raise.
            return outer.sum((1, 2)) * math.nan, spreads
        return 0.5 * torch.linalg.eigvalsh(outer)[:, -1].log() + shift, spreads

    def _through(self, multipliers: Sequence[Multiplier], weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        """P before the last weight in the scale of its layer, and the T^-1 met."""
        chain, first = self.chain, self.chain.weights[0]
        gram = (first * weights.reciprocal()[:, None, :]) @ first.T
        reached, spreads = torch.zeros_like(self.powers[0]), []
        for layer, (power, multiplier) in enumerate(zip(self.powers, multipliers, strict=True)):
            if layer:
                gram = chain.weights[layer] @ gram @ chain.weights[layer].T
            gram = gram * torch.exp2(2.0 * (reached - power))[:, None, None]
            reached = power
            gram, spread = through_slopes(gram, chain.centres[layer], chain.radii[layer], (multiplier,))
            spreads.append(spread)
        return gram, spreads


def _diagonal(k: Tensor) -> Tensor:
    # A dead neuron has zero there.
    return k.diagonal(dim1=1, dim2=2).clamp_min(_LEAST_SPREAD)
