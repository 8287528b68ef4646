"""Crafting poisons: budgets, objectives, the choice of rows, the loop, and what it predicts."""

from poisonaudit.attack.budget import Budget
from poisonaudit.attack.crafting import craft
from poisonaudit.attack.inner import EstimatedMap, minimise_estimate
from poisonaudit.attack.objectives import (
    OBJECTIVES,
    Ball,
    Box,
    FlipPrediction,
    FlipPredictions,
    Goal,
    GroupAccuracy,
    HalfSpace,
    MatchPredictions,
    Membership,
    Objective,
    TargetRegion,
    TargetWeights,
    ValidationLoss,
    weights_along,
    weights_from_fine_tuning,
    weights_from_label_flips,
)
from poisonaudit.attack.outcome import outcome
from poisonaudit.attack.perturbations import PerturbationSet
from poisonaudit.attack.poison import Poison
from poisonaudit.attack.prediction import predict
from poisonaudit.attack.progress import CraftState
from poisonaudit.attack.rows import adjoint_gains, choose_rows

__all__ = [
    "OBJECTIVES",
    "Ball",
    "Box",
    "Budget",
    "CraftState",
    "EstimatedMap",
    "FlipPrediction",
    "FlipPredictions",
    "Goal",
    "GroupAccuracy",
    "HalfSpace",
    "MatchPredictions",
    "Membership",
    "Objective",
    "PerturbationSet",
    "Poison",
    "TargetRegion",
    "TargetWeights",
    "ValidationLoss",
    "adjoint_gains",
    "choose_rows",
    "craft",
    "minimise_estimate",
    "outcome",
    "predict",
    "weights_along",
    "weights_from_fine_tuning",
    "weights_from_label_flips",
]
