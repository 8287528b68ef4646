"""Retraining as the judge: predicted beside retrained, with controls and intervals."""

from poisonaudit.attack.outcome import outcome
from poisonaudit.owner_training import Trainer
from poisonaudit.verify.cost import verified_cost
from poisonaudit.verify.cost_result import CostTrial, VerifiedCost, judge_trial
from poisonaudit.verify.hardening import (
    Hardened,
    HardeningComparison,
    compare_hardening,
    variant,
    variants,
)
from poisonaudit.verify.images import PairedSuccesses, paired_difference, success_over_images
from poisonaudit.verify.retrained import Control, Kind, Retrained, Retraining
from poisonaudit.verify.retraining import Training, drawable, fitted, retrain, retrainings, trained
from poisonaudit.verify.statistics import PairedTest, Rate, mean_and_error, paired_test, success_rate
from poisonaudit.verify.trainers import MinibatchTrainer, loose_trainer, sgd_trainer
from poisonaudit.verify.user_trainer import FileTrainer, load_trainer

__all__ = [
    "Control",
    "CostTrial",
    "FileTrainer",
    "Hardened",
    "HardeningComparison",
    "Kind",
    "MinibatchTrainer",
    "PairedSuccesses",
    "PairedTest",
    "Rate",
    "Retrained",
    "Retraining",
    "Trainer",
    "Training",
    "VerifiedCost",
    "compare_hardening",
    "drawable",
    "fitted",
    "judge_trial",
    "load_trainer",
    "loose_trainer",
    "mean_and_error",
    "outcome",
    "paired_difference",
    "paired_test",
    "retrain",
    "retrainings",
    "sgd_trainer",
    "success_over_images",
    "success_rate",
    "trained",
    "variant",
    "variants",
    "verified_cost",
]
