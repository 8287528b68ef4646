"""Certified bounds of how strongly a network can amplify a change of its input: everywhere, and around an input."""

from __future__ import annotations

from poisonaudit.lipschitz.bounds import UPPER_BOUNDS, LipschitzBounds, lipschitz_bounds
from poisonaudit.lipschitz.despres import square_model, square_network
from poisonaudit.lipschitz.exact import exact_constant, exact_work
from poisonaudit.lipschitz.local import CertifiedRadii, LocalBounds, certified_radii, local_lipschitz
from poisonaudit.lipschitz.regulariser import lipschitz_penalty

__all__ = [
    "UPPER_BOUNDS",
    "CertifiedRadii",
    "LipschitzBounds",
    "LocalBounds",
    "certified_radii",
    "exact_constant",
    "exact_work",
    "lipschitz_bounds",
    "local_lipschitz",
    "lipschitz_penalty",
    "square_model",
    "square_network",
]
