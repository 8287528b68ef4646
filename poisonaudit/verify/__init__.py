"""Retraining as the judge: predicted beside retrained, with controls and intervals."""

from poisonaudit.attack.outcome import outcome
from poisonaudit.verify.cost import verified_cost
from poisonaudit.verify.cost_result import CostTrial, VerifiedCost, judge_trial
from poisonaudit.verify.hardening import (
    Hardened,
    HardeningComparison,
    compare_hardening,
    variant,
    variants,
)
from poisonaudit.verify.retrained import Control, Retrained, Retraining
from poisonaudit.verify.retraining import retrain
from poisonaudit.verify.statistics import Rate, mean_and_error, success_rate

__all__ = [
    "Control",
    "CostTrial",
    "Hardened",
    "HardeningComparison",
    "Rate",
    "Retrained",
    "Retraining",
    "VerifiedCost",
    "compare_hardening",
    "judge_trial",
    "mean_and_error",
    "outcome",
    "retrain",
    "success_rate",
    "variant",
    "variants",
    "verified_cost",
]
