"""The smallest of the bounds of a chain that hold with all rounding accounted for."""

from __future__ import annotations

import math
import sys

from poisonaudit.lipschitz.ellipsoid import ellipsoid_bound
from poisonaudit.lipschitz.network import Chain
from poisonaudit.lipschitz.rounding import certified_bounds
from poisonaudit.lipschitz.sign_coupled import Entries


def certified_bound(
    chain: Chain, entries: Entries, exact: float | None = None, ellipsoid: float | None = None
) -> tuple[str, float]:
    """The smallest sound bound, unscaled, and its name.

    Args:
        chain: of the network.
        entries: its entrywise bounds.
        exact: K by enumeration, scaled like the chain, if known.
        ellipsoid: the plain ellipsoid bound, likewise. Proving it costs more than computing it, so it is proved only
            where it can win.

    Returns:
        Name and value.
    """
    if not chain.connected:
        return "k5", 0.0
    sound = certified_bounds(chain, entries, exact)
    if ellipsoid is not None and ellipsoid < min(sound.values()):
        proved = ellipsoid_bound(chain, entries.largest, sound=True)
        sound["ellipsoid"] = math.inf if proved is None or math.isnan(proved) else proved
    winner = min(sound, key=lambda name: sound[name])
    value = chain.unscaled(sound[winner])
    # Undoing the scaling is exact, except among subnormal numbers, where it rounds: step up there.
    return winner, math.nextafter(value, math.inf) if value < sys.float_info.min else value
