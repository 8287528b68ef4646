"""Crafting poisons: budgets, objectives, the choice of rows, the loop, and what it predicts."""

from poisonaudit.attack.budget import Budget
from poisonaudit.attack.crafting import craft
from poisonaudit.attack.displacement import DisplacementModel, minimise_displacement
from poisonaudit.attack.objectives import (
    OBJECTIVES,
    FlipPrediction,
    Goal,
    Objective,
    TargetWeights,
    weights_from_label_flips,
)
from poisonaudit.attack.outcome import outcome
from poisonaudit.attack.perturbations import PerturbationSet
from poisonaudit.attack.poison import Poison
from poisonaudit.attack.prediction import predict
from poisonaudit.attack.rows import adjoint_gains, choose_rows

__all__ = [
    "OBJECTIVES",
    "Budget",
    "DisplacementModel",
    "FlipPrediction",
    "Goal",
    "Objective",
    "PerturbationSet",
    "Poison",
    "TargetWeights",
    "adjoint_gains",
    "choose_rows",
    "craft",
    "minimise_displacement",
    "outcome",
    "predict",
    "weights_from_label_flips",
]
