"""Max pooling as a cascade of dense ReLU layers.

Pairs of a window's entries are joined level by level: `max(a, b) = relu(b - a) + relu(a) - relu(-a)`, and with a >= 0
(behind a ReLU) without its last term. Every unit is a ReLU, so that the network stays a chain the bounds of the
literature are defined for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from poisonaudit.lipschitz.activations import Activation, activation_of
from poisonaudit.lipschitz.functions import Unknown
from poisonaudit.lipschitz.graph import Window
from poisonaudit.lipschitz.linear_maps import LinearMap, Shape, composed
from poisonaudit.lipschitz.rearrangement import AxisMatrix, Rearrangement


@dataclass(frozen=True, eq=False)
class Level:
    """A linear map, and the ReLU after it (None at the end).

    Attributes:
        number: from 1.
        before: the map.
        activation: or None.
    """

    number: int
    before: LinearMap
    activation: Activation | None


def pooling_levels(window: Window, shape: Shape, positive: bool) -> Iterator[Level]:
    """The levels of one max pooling.

    Args:
        window: of the pooling.
        shape: of a row before it.
        positive: entries are known not to be negative.

    Yields:
        Levels in order; the last has no activation.

    Raises:
        Unknown: padding beside entries that may be negative.
    """
    if not positive and (any(window.padding) or window.ceil):
        raise Unknown("pads by 0 in its explicit form, but its entries may be negative")
    # Behind a ReLU padding by 0 changes no maximum.
    before: LinearMap = Rearrangement(lambda rows: window.patches(rows, 0.0), shape)
    entries = before.shape_out[1]
    number = 0
    while entries > 1:
        number += 1
        differences, sums = _pairs(entries, positive)
        yield Level(
            number, composed(before, AxisMatrix(differences, before.shape_out)), activation_of(nn.ReLU(), nn.ReLU)
        )
        units = (before.shape_out[0], differences.shape[0], *before.shape_out[2:])
        before, entries = AxisMatrix(sums, units), sums.shape[0]
    yield Level(number + 1, composed(before, Rearrangement(lambda rows: rows[:, :, 0], before.shape_out)), None)


def _pairs(entries: int, positive: bool) -> tuple[Tensor, Tensor]:
    """(units, entries) before the ReLU, and (entries after, units) behind it."""
    differences, sums = [], []
    for first in range(0, entries, 2):
        a = functional.one_hot(torch.tensor(first), entries).double()
        parts = [(a, 1.0)] if positive else [(a, 1.0), (-a, -1.0)]
        if first + 1 < entries:
            b = functional.one_hot(torch.tensor(first + 1), entries).double()
            parts.insert(0, (b - a, 1.0))
        differences += [part for part, _ in parts]
        sums.append([sign for _, sign in parts])
    joined = torch.zeros(len(sums), len(differences), dtype=torch.float64)
    place = 0
    for row, signs in enumerate(sums):
        joined[row, place : place + len(signs)] = torch.tensor(signs, dtype=torch.float64)
        place += len(signs)
    return torch.stack(differences), joined
