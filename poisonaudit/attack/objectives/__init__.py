"""What a poisoner may want, one objective per file."""

from poisonaudit.attack.objectives.base import Goal, Objective, SurrogateGoal
from poisonaudit.attack.objectives.flip_prediction import FlipGoal, FlipPrediction, FlipPredictions, FlipsGoal
from poisonaudit.attack.objectives.group_accuracy import GroupAccuracy, GroupGoal
from poisonaudit.attack.objectives.match_predictions import MatchGoal, MatchPredictions
from poisonaudit.attack.objectives.membership import Membership, MembershipGoal
from poisonaudit.attack.objectives.target_region import Ball, Box, HalfSpace, RegionGoal, TargetRegion
from poisonaudit.attack.objectives.target_weights import TargetGoal, TargetWeights
from poisonaudit.attack.objectives.targets import weights_along, weights_from_fine_tuning, weights_from_label_flips
from poisonaudit.attack.objectives.validation_loss import LossGoal, ValidationLoss

OBJECTIVES: dict[str, type[Objective]] = {
    each.kind: each
    for each in (
        TargetWeights,
        TargetRegion,
        MatchPredictions,
        FlipPrediction,
        FlipPredictions,
        ValidationLoss,
        GroupAccuracy,
        Membership,
    )
}

__all__ = [
    "OBJECTIVES",
    "Ball",
    "Box",
    "FlipGoal",
    "FlipPrediction",
    "FlipPredictions",
    "FlipsGoal",
    "Goal",
    "GroupAccuracy",
    "GroupGoal",
    "HalfSpace",
    "LossGoal",
    "MatchGoal",
    "MatchPredictions",
    "Membership",
    "MembershipGoal",
    "Objective",
    "RegionGoal",
    "SurrogateGoal",
    "TargetGoal",
    "TargetRegion",
    "TargetWeights",
    "ValidationLoss",
    "weights_along",
    "weights_from_fine_tuning",
    "weights_from_label_flips",
]
