"""How much memory a linearisation takes: counted on a few rows, scaled to all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_PROBE = (2, 6)
# Intermediate tensors of a product that live at once, as a share of what the passes keep.
_TEMPORARIES = 0.5


@dataclass(frozen=True)
class Footprint:
    """Bytes of a linearisation: `fixed + kept_row * rows`, and `product_row` for each row of a product under way.

    Attributes:
        fixed: independent of the rows (weights held by the passes).
        kept_row: what the kept passes hold for one row.
        product_row: temporaries of one product for one row.
    """

    fixed: int
    kept_row: int
    product_row: int

    def total(self, kept: int, under_way: int) -> int:
        """Bytes with `kept` rows held and a product over `under_way` rows running."""
        return self.fixed + self.kept_row * kept + self.product_row * under_way


def footprint(build: Callable[[Tensor, Tensor], Any], x: Tensor, y: Tensor) -> Footprint:
    """Measure what a part keeps on two and on six rows, and draw the line through both.

    Every storage counts once, however many tensors look into it. Saved tensors of an autograd graph are seen through
    hooks while the graph is built.

    Args:
        build: makes a part from inputs and labels.
        x: the rows' inputs.
        y: their labels.

    Returns:
        The line.
    """
    sizes = []
    for count in _PROBE:
        index = torch.arange(count, device=x.device) % len(x)
        sizes.append(_held(build, x[index], y[index]))
    row = max(1, (sizes[1] - sizes[0]) // (_PROBE[1] - _PROBE[0]))
    return Footprint(max(0, sizes[0] - _PROBE[0] * row), row, int(_TEMPORARIES * row))


def _held(build: Callable[[Tensor, Tensor], Any], x: Tensor, y: Tensor) -> int:
    seen: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return value

    alive: list[Tensor] = []

    def pack(value: Tensor) -> Tensor:
        # Kept alive so that no address is used twice while counting.
        alive.append(value)
        return note(value)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        part = build(x, y)
    for value in _tensors(part, set()):
        note(value)
    return sum(seen.values())


def _tensors(thing: Any, visited: set[int]) -> Iterator[Tensor]:
    """Tensors reachable through attributes and containers of our own objects."""
    if id(thing) in visited:
        return
    visited.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, list | tuple):
        for item in thing:
            yield from _tensors(item, visited)
    elif isinstance(thing, dict):
        for item in thing.values():
            yield from _tensors(item, visited)
    elif type(thing).__module__.startswith("poisonaudit.operators") and not isinstance(thing, nn.Module):
        yield from _tensors(vars(thing), visited)
