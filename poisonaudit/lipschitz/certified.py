"""The smallest of the bounds of a chain that hold with all rounding accounted for."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

from poisonaudit.lipschitz.ellipsoid import Ellipsoid, proved_bound
from poisonaudit.lipschitz.network import Chain
from poisonaudit.lipschitz.rounding import certified_bounds
from poisonaudit.lipschitz.sign_coupled import Entries


def certified_bound(
    chain: Chain, entries: Entries, exact: float | None, ellipsoids: Mapping[str, Ellipsoid | None]
) -> tuple[str, float]:
    """The smallest sound bound, unscaled, and its name.

    Args:
        chain: of the network.
        entries: its entrywise bounds.
        exact: K by enumeration, scaled like the chain, if known.
        ellipsoids: name -> plain ellipsoid bound, proved only where it can win.

    Returns:
        Name and value.
    """
    if not chain.connected:
        return "k5", 0.0
    sound = certified_bounds(chain, entries, exact)
    present = {name: found for name, found in ellipsoids.items() if found is not None}
    for name, found in sorted(present.items(), key=lambda item: item[1].value):
        if found.value < min(sound.values()):
            sound[name] = proved_bound(chain, found)
    winner = min(sound, key=lambda name: sound[name])
    value = chain.unscaled(sound[winner])
    # Undoing the scaling is exact, except among subnormal numbers, where it rounds: step up there.
    return winner, math.nextafter(value, math.inf) if value < sys.float_info.min else value
