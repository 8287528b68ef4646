"""How far one linear step may be trusted: the size at which its second-order remainder takes over."""

from __future__ import annotations

import math

from poisonaudit.validity import PHI_LIMIT


def trust_radius(phi: float, length: float) -> float:
    """Length of a perturbation, in the direction in which phi was measured, at which phi reaches 0.3.

    The remainder of one step, `R(x + t mu, w + t v0) - R(x, w)`, is of second order in t, the step of first; so phi
    grows in proportion to t while the third order is small. Where phi was measured far beyond the limit the result is
    an extrapolation downwards; measure again at the radius to check it.

    Args:
        phi: at the length given.
        length: `|mu|` there.

    Returns:
        The radius, in the units of mu; infinite where phi is 0.
    """
    return length * PHI_LIMIT / phi if phi > 0 else math.inf
