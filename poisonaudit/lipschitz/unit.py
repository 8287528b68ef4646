"""The unit of float64 rounding, sums of it, and underflow."""

from __future__ import annotations

import math

UNIT = 2.0**-53
# More than a few operations can lose to underflow, 2^-1022 each.
TINY = 2.0**-1000


def gamma(count: int) -> float:
    """`gamma_k = k u / (1 - k u)`, rounded up: the relative error of k roundings; infinite where it says nothing."""
    if count * UNIT >= 0.5:
        return math.inf
    return count * UNIT / (1.0 - count * UNIT) * (1.0 + 8 * UNIT)
