"""Monte Carlo at the real size of the noise: one forward pass a draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from poisonaudit.weight_noise.network import Network, entries_of
from poisonaudit.weight_noise.noise import Noise

# Outputs of all layers and rows below which a pass costs more in calls than in arithmetic, and draws go together:
# measured, 64-32-10 gains 1.6 times at 30 rows and loses 1.8 times at 450.
_SMALL = 2**13
# Entries of one block of draws: 32 MiB in float64.
_BLOCK = 2**22


@dataclass(frozen=True)
class Sample:
    """What the draws did.

    Attributes:
        squares: (sizes, draws, batch), `|dv|^2`, float64.
        flips: (sizes, draws), share of inputs whose class of the largest output changes; None without classes.
    """

    squares: Tensor
    flips: Tensor | None


def sample(network: Network, noise: Noise, names: Sequence[str], rhos: Sequence[float], draws: int) -> Sample:
    """Perturb the named parameters at once; the same directions at every size.

    Args:
        network: what to perturb.
        noise: where the noise comes from.
        names: parameters that are perturbed together, each by `|eta| = rho |W|`.
        rhos: noise norm per weight norm.
        draws: number of draws.

    Returns:
        Squared movements and flips.
    """
    clean = network.outputs.argmax(1)
    squares = network.outputs.new_zeros(len(rhos), draws, len(network.x), dtype=torch.float64)
    flips = torch.zeros_like(squares[..., 0]) if network.classes else None
    with torch.no_grad():
        for place, positions, outputs in _passes(network, noise, names, rhos, draws):
            squares[place, positions] = (outputs - network.outputs).double().square().sum(2)
            if flips is not None:
                flips[place, positions] = outputs.argmax(2).ne(clean).double().mean(1)
    return Sample(squares, flips)


def _passes(
    network: Network, noise: Noise, names: Sequence[str], rhos: Sequence[float], draws: int
) -> Iterator[tuple[int, slice, Tensor]]:
    """Position of the size, which draws, and their outputs (draws, batch, c)."""
    held = network.activations * len(network.x) + entries_of(network.values, names)
    block = max(1, _BLOCK // max(held, 1)) if _goes_together(network) else 1
    for start in range(0, draws, block):
        positions = slice(start, min(start + block, draws))
        units = [noise.units(names, draw) for draw in range(positions.start, positions.stop)]
        for place, rho in enumerate(rhos):
            moved = [noise.added(unit, rho) for unit in units]
            if len(moved) == 1:
                yield place, positions, _one(network, moved[0]).unsqueeze(0)
                continue
            yield place, positions, _together(network, moved)


def _together(network: Network, moved: list[dict[str, Tensor]]) -> Tensor:
    stacked = {name: torch.stack([each[name] for each in moved]) for name in moved[0]}
    try:
        return vmap(lambda values: network.at(values, network.x))(stacked)
    except (RuntimeError, NotImplementedError):  # an operation without a batched form
        return torch.stack([_one(network, each) for each in moved])


def _one(network: Network, moved: dict[str, Tensor]) -> Tensor:
    return torch.cat([network.at(moved, network.x[rows]) for rows in network.chunks()])


def _goes_together(network: Network) -> bool:
    """Whether draws are stacked: small passes of layers that are known to batch."""
    return network.batches and network.activations * len(network.x) <= _SMALL
