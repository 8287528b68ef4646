"""Retraining as the judge: predicted beside retrained, with controls and intervals."""

from poisonaudit.attack.outcome import outcome
from poisonaudit.verify.images import PairedSuccesses, paired_difference, success_over_images
from poisonaudit.verify.retrained import Control, Kind, Retrained, Retraining
from poisonaudit.verify.retraining import Training, drawable, retrain, retrainings, trained
from poisonaudit.verify.statistics import PairedTest, Rate, mean_and_error, paired_test, success_rate
from poisonaudit.verify.trainers import MinibatchTrainer, Trainer, loose_trainer, sgd_trainer
from poisonaudit.verify.user_trainer import FileTrainer, load_trainer

__all__ = [
    "Control",
    "FileTrainer",
    "Kind",
    "MinibatchTrainer",
    "PairedSuccesses",
    "PairedTest",
    "Rate",
    "Retrained",
    "Retraining",
    "Trainer",
    "Training",
    "drawable",
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
]
