"""How much memory a linearisation takes: counted on a few rows, scaled to all."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Of a problem's memory limit: one part in so many for passes over all rows, and for those over some rows only. The rest
# is for solves.
PASSES_SHARE, ROWS_SHARE = 2, 10
# Rows counted on: enough for what grows with the rows to outweigh what does not, few enough to cost little.
_LEAST, _MOST = 3, 96


@dataclass(frozen=True)
class Line:
    """Bytes that grow with the rows: `fixed + row * rows`."""

    fixed: int
    row: int

    def at(self, rows: int) -> int:
        """Bytes for so many rows."""
        return self.fixed + self.row * rows


@dataclass(frozen=True)
class Footprint:
    """Bytes of a linearisation.

    Attributes:
        kept: what the passes hold.
        building: on top of that while they are made.
        product: on top of it while one product H v and B^T u of one column is made.
    """

    kept: Line
    building: Line
    product: Line

    def total(self, kept: int, under_way: int) -> int:
        """Most bytes with `kept` rows held while `under_way` rows are built or in a product."""
        return self.kept.at(kept) + max(self.building.at(under_way), self.product.at(under_way))


class AllocationCounter(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on, and of those that are still there.

    Every storage counts once, however many tensors look into it. What a library takes for itself inside one operation
    is not seen.

    Attributes:
        live: bytes made under the counter and not yet freed.
        peak: the most of them at any time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then note what it made."""
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                # Not made here: it must not count when an in-place operation hands it back.
                self._note(value.untyped_storage(), 0)
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self._note(storage, storage.nbytes())
        return result

    def _note(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)


def footprint(build: Callable[[Tensor, Tensor], Any], size: int, x: Tensor, y: Tensor) -> Footprint:
    """Count what a part and a product take on some of the rows and on twice as many; draw the lines through both.

    Args:
        build: makes a part from inputs and labels.
        size: p.
        x: the rows' inputs.
        y: their labels.

    Returns:
        The lines.
    """
    few = min(max(_LEAST, len(x) // 8), _MOST)
    counts = []
    for rows in (few, 2 * few):
        index = torch.arange(rows, device=x.device) % len(x)
        inputs, labels = x[index], y[index]
        direction = torch.ones(1, size, dtype=x.dtype, device=x.device)
        with AllocationCounter() as counter:
            part = build(inputs, labels)
            kept, highest = counter.live, counter.peak
            counter.peak = counter.live
            part.second(direction, None, weights=True, inputs=True)
            counts.append((kept, highest - kept, counter.peak - kept))
        del part
    lines = []
    for low, high in zip(*counts, strict=True):
        row = max(1, (high - low) // few)
        lines.append(Line(max(0, low - few * row), row))
    kept_line, building, product = lines
    vector = size * x.element_size()
    # Outside the parts: the kept gradient; the sum over chunks and its copy as a column.
    return Footprint(
        Line(kept_line.fixed + vector, kept_line.row), building, Line(product.fixed + 2 * vector, product.row)
    )
