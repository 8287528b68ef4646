"""Tangent sensitivity: how strongly the parameter gradients of a net react to its input."""

from poisonaudit.tangent.bounds import TangentBound, TangentBounds, tangent_bounds
from poisonaudit.tangent.estimated_loss import Estimate, EstimatedLoss, estimate_test_loss
from poisonaudit.tangent.factors import Factor, sensitivity_factors
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
    "Estimate",
    "EstimatedLoss",
    "Factor",
    "Normality",
    "ProbedSensitivity",
    "TangentBound",
    "TangentBounds",
    "TangentMean",
    "activation_patterns",
    "activation_signs",
    "estimate_test_loss",
    "largest_rows",
    "pattern_log_probability",
    "sensitivity_factors",
    "soft_tangent_sensitivity",
    "tangent_bounds",
    "tangent_mean",
    "tangent_sensitivity",
    "tangent_sensitivity_by_layer",
    "tangent_sensitivity_normalised",
    "tangent_sensitivity_probes",
]
