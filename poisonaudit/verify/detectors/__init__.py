"""Poison detectors: suspicion of every training row, and how well it finds the poisoned ones."""

from poisonaudit.verify.detectors.activation_clustering import activation_clustering
from poisonaudit.verify.detectors.detection import Detection, Detector
from poisonaudit.verify.detectors.features import penultimate_features
from poisonaudit.verify.detectors.judging import judge
from poisonaudit.verify.detectors.loss_filter import loss_filter
from poisonaudit.verify.detectors.nearest_neighbours import nearest_neighbours
from poisonaudit.verify.detectors.run import DETECTORS, default_share, detect, run_detectors
from poisonaudit.verify.detectors.spectral_signature import spectral_signature

__all__ = [
    "DETECTORS",
    "Detection",
    "Detector",
    "activation_clustering",
    "default_share",
    "detect",
    "judge",
    "loss_filter",
    "nearest_neighbours",
    "penultimate_features",
    "run_detectors",
    "spectral_signature",
]
