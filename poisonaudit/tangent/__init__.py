"""Tangent sensitivity: how strongly the parameter gradients of a net react to its input."""

from poisonaudit.tangent.mean import TangentMean, largest_rows, tangent_mean
from poisonaudit.tangent.patterns import ActivationPatterns, Normality, activation_patterns, activation_signs
from poisonaudit.tangent.probes import ProbedSensitivity, tangent_sensitivity_probes
from poisonaudit.tangent.sensitivity import (
    tangent_sensitivity,
    tangent_sensitivity_by_layer,
    tangent_sensitivity_normalised,
)
from poisonaudit.tangent.soft_gates import pattern_log_probability, soft_tangent_sensitivity

__all__ = [
    "ActivationPatterns",
    "Normality",
    "ProbedSensitivity",
    "TangentMean",
    "activation_patterns",
    "activation_signs",
    "largest_rows",
    "pattern_log_probability",
    "soft_tangent_sensitivity",
    "tangent_mean",
    "tangent_sensitivity",
    "tangent_sensitivity_by_layer",
    "tangent_sensitivity_normalised",
    "tangent_sensitivity_probes",
]
