"""Spectral signatures: rows far out along the first singular direction of their class (ART's defence)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from poisonaudit.losses import class_labels
from poisonaudit.problem import Problem
from poisonaudit.verify.detectors.art_session import art_session, feature_classifier, what_art_said
from poisonaudit.verify.detectors.detection import Detection, checked_share, not_applicable
from poisonaudit.verify.detectors.features import penultimate_features, why_no_classes

NAME = "spectral_signature"
_ROUNDING = 1e-10


def spectral_signature(
    problem: Problem, weights: Tensor, *, expected_share: float, seed: int, centred: bool = True
) -> Detection:
    """`|<r_i - mean, v>|` with v the first right singular vector of the class's centred features (Tran et al., 2018).

    The paper's score is its square, which ranks alike. Flags are ART's: in every class the rows at or above the
    quantile `1 - expected_share`. ART 1.20.1 projects the features without subtracting the mean, so that rows on the
    mean's side of the class look suspicious; handing it centred features gives the paper's score. The quota holds in
    every class by itself: of a poison that sits in one class alone, more than that share goes unflagged.

    Args:
        problem: poisoned rows.
        weights: trained on them, (p,).
        expected_share: share of every class that is flagged; Tran et al. take 1.5 times the poisoned one.
        seed: not used: nothing is drawn.
        centred: as in the paper; False for ART's own scores.

    Returns:
        The detection; a class of equal features scores 0 and is not flagged.

    Raises:
        UsageError: PA304, a share outside (0, 1).
    """
    share = checked_share(expected_share)
    labels = class_labels(problem.y)
    if labels is None or why_no_classes(problem):
        return not_applicable(NAME, problem, why_no_classes(problem))
    found, where = penultimate_features(problem, weights)
    features, classes = found.double().cpu().numpy(), labels.cpu().numpy()
    names, classes = np.unique(classes, return_inverse=True)
    size = np.linalg.norm(features, axis=1).max()
    if centred:
        means = np.stack([features[classes == label].mean(0) for label in range(len(names))])
        features = features - means[classes]
    with art_session(seed):
        # ART checks its arguments with plain exceptions of every type: none of them may stop a run.
        try:
            from art.defences.detector.poison import SpectralSignatureDefense

            classifier = feature_classifier(features.shape[1], len(names))
            # The multiplier of ART's default, 1.5, is in the expected share already.
            defence = SpectralSignatureDefense(
                classifier, features, classes, expected_pp_poison=share, eps_multiplier=1.0
            )
            _, clean = defence.detect_poison()
            scores = np.zeros(problem.rows)
            for label in range(len(names)):
                rows = classes == label
                scores[rows] = SpectralSignatureDefense.spectral_signature_scores(features[rows])[:, 0]
        except Exception as trouble:
            return not_applicable(NAME, problem, what_art_said(trouble))
    # ART flags at or above a quantile, hence every row of a class whose scores are equal.
    flagged = (np.asarray(clean) == 0) & (scores > _ROUNDING * size)
    return Detection(
        NAME,
        torch.as_tensor(scores).to(problem.x),
        torch.as_tensor(flagged, device=problem.device),
        {"expected_share": share, "centred": centred},
        where,
    )
