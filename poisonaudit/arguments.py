"""Numbers that callers pass, as Python, NumPy or torch have them."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any


def whole_number(value: Any) -> int | None:
    """A whole number as an int; None for all else, fractions and booleans included."""
    if _boolean(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def finite_number(value: Any) -> float | None:
    """A finite number as a float; None for all else, booleans included."""
    if _boolean(value) or not isinstance(value, Real):
        return None
    found = float(value)
    return found if math.isfinite(found) else None


def _boolean(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
