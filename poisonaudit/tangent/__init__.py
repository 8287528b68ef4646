"""Tangent sensitivity: how strongly the parameter gradients of a net react to its input."""

from poisonaudit.tangent.patterns import ActivationPatterns, Normality, activation_patterns, activation_signs
from poisonaudit.tangent.sensitivity import (
    tangent_sensitivity,
    tangent_sensitivity_by_layer,
    tangent_sensitivity_normalised,
)
from poisonaudit.tangent.soft_gates import pattern_log_probability, soft_tangent_sensitivity

__all__ = [
    "ActivationPatterns",
    "Normality",
    "activation_patterns",
    "activation_signs",
    "pattern_log_probability",
    "soft_tangent_sensitivity",
    "tangent_sensitivity",
    "tangent_sensitivity_by_layer",
    "tangent_sensitivity_normalised",
]
