"""Products in float32 mean float32: TF32 and bfloat16 shortcuts are off inside, whatever the global switches say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Every place where torch may trade precision of float32 products and convolutions for speed.
_BACKENDS: Any = torch.backends
_PLACES: tuple[Any, ...] = (
    _BACKENDS.cuda.matmul,
    _BACKENDS.cudnn.conv,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.mkldnn.conv,
)
_FULL = "ieee"


@contextmanager
def full_precision(dtype: torch.dtype) -> Iterator[None]:
    """Compute float32 products at float32 precision, then give the user's settings back.

    Operators with reduced-precision products stall solves at a relative residual of about 1e-2.

    Args:
        dtype: of the operands; other types than float32 are not affected by the switches.

    Yields:
        Nothing.
    """
    if dtype != torch.float32:
        yield
        return
    before = [place.fp32_precision for place in _PLACES]
    changed = [(place, value) for place, value in zip(_PLACES, before, strict=True) if value not in (_FULL, "none")]
    # "none" inherits the process-wide default, which is full precision unless somebody set it.
    if _BACKENDS.fp32_precision not in (_FULL, "none"):
        changed = list(zip(_PLACES, before, strict=True))
    for place, _ in changed:
        place.fp32_precision = _FULL
    try:
        yield
    finally:
        for place, value in changed:
            place.fp32_precision = value
