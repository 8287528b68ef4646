"""How outputs react to noise in the weights: condition numbers, formula, Monte Carlo and worst case."""

from poisonaudit.weight_noise.conditions import WeightConditions, weight_conditions
from poisonaudit.weight_noise.curve import CURVE_UNITS, RHOS, TOGETHER, weight_noise_curve
from poisonaudit.weight_noise.joint import JointNoise, first_order, joint_weight_noise
from poisonaudit.weight_noise.search import worst_case_search
from poisonaudit.weight_noise.table import weight_noise

__all__ = [
    "CURVE_UNITS",
    "RHOS",
    "TOGETHER",
    "JointNoise",
    "WeightConditions",
    "first_order",
    "joint_weight_noise",
    "weight_conditions",
    "weight_noise",
    "weight_noise_curve",
    "worst_case_search",
]
