"""Numbers that callers pass, as Python, NumPy or torch have them."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

# Of a damping relative to the largest eigenvalue: far beyond it nothing is left of the matrix.
MOST_DAMPING = 1e6


def whole_number(value: Any) -> int | None:
    """A whole number as an int; None for all else, fractions and booleans included."""
    if _boolean(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def finite_number(value: Any) -> float | None:
    """A finite number, or a tensor or array of no dimension, as a float; None for all else, booleans included."""
    if getattr(value, "shape", None) == () and not isinstance(value, Real):
        value = value.item()
    if _boolean(value) or not isinstance(value, Real):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def damping_share(value: Any) -> float | None:
    """A damping relative to the largest eigenvalue, at most `MOST_DAMPING`, as a float; None for all else."""
    found = finite_number(value)
    return found if found is not None and 0.0 <= found <= MOST_DAMPING else None


def _boolean(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
