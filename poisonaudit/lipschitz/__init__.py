"""Certified bounds of how strongly a network can amplify a change of its input (l_inf, l_1 and l_2)."""

from __future__ import annotations

from poisonaudit.lipschitz.bounds import UPPER_BOUNDS, LipschitzBounds, lipschitz_bounds
from poisonaudit.lipschitz.despres import square_model, square_network
from poisonaudit.lipschitz.exact import exact_constant, exact_work
from poisonaudit.lipschitz.regulariser import lipschitz_penalty

__all__ = [
    "UPPER_BOUNDS",
    "LipschitzBounds",
    "exact_constant",
    "exact_work",
    "lipschitz_bounds",
    "lipschitz_penalty",
    "square_model",
    "square_network",
]
