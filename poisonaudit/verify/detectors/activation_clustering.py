"""Activation clustering: two clusters per class, the smaller one suspicious (ART's ActivationDefence)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from poisonaudit.losses import class_labels
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name
from poisonaudit.verify.detectors.art_session import art_session, feature_classifier, what_art_said
from poisonaudit.verify.detectors.detection import Detection, checked_share, not_applicable
from poisonaudit.verify.detectors.features import penultimate_features, why_no_classes

NAME = "activation_clustering"
ANALYSES = ("smaller", "relative-size")
_SMALL = 0.35
_DIMENSIONS = 10
_NARROW = 32


def activation_clustering(
    problem: Problem, weights: Tensor, *, expected_share: float, seed: int, analysis: str = "smaller"
) -> Detection:
    """Two k-means clusters of each class's penultimate activations after PCA to 10 dimensions (Chen et al., 2018).

    With `d_small` and `d_large` the distances of a row to the means of the smaller and of the larger cluster of its
    class, the score is the simplified silhouette `(d_large - d_small) / max(d_large, d_small)` in [-1, 1]: positive in
    the smaller cluster. Flagged is the whole smaller cluster of every class ("smaller", ART's default, which flags rows
    in clean data too), or only where it holds under 35 % of its class ("relative-size").

    Args:
        problem: poisoned rows.
        weights: trained on them, (p,).
        expected_share: not used: the method sets no quota.
        seed: of k-means and of PCA's solver.
        analysis: "smaller" or "relative-size".

    Returns:
        The detection; classes of under 10 rows, or of equal rows, are left out and the note says so.

    Raises:
        UsageError: PA301, an unknown analysis; PA304, a share outside (0, 1).
    """
    checked_share(expected_share)
    if analysis not in ANALYSES:
        raise unknown_name(analysis, ANALYSES, "analysis of clusters")
    labels = class_labels(problem.y)
    if labels is None or why_no_classes(problem):
        return not_applicable(NAME, problem, why_no_classes(problem))
    found, where = penultimate_features(problem, weights)
    features, classes = found.double().cpu().numpy(), labels.cpu().numpy()
    members = [np.flatnonzero(classes == label) for label in np.unique(classes)]
    usable = [rows for rows in members if _can_be_split(features[rows])]
    if not usable:
        return not_applicable(NAME, problem, f"no class has {_DIMENSIONS} rows that differ")
    with art_session(seed):
        # ART checks its arguments with plain exceptions of every type: none of them may stop a run.
        try:
            defence, clean = _run(features, usable)
        except Exception as trouble:
            return not_applicable(NAME, problem, what_art_said(trouble))
    flagged, scores = np.zeros(problem.rows, dtype=bool), np.zeros(problem.rows)
    order = np.concatenate(usable)
    flagged[order] = np.asarray(clean) == 0
    reduced_and_clusters = zip(defence.red_activations_by_class, defence.clusters_by_class, strict=True)
    for rows, (reduced, clusters) in zip(usable, reduced_and_clusters, strict=False):
        scores[rows] = _simplified_silhouette(reduced, clusters)
        # ART 1.20.1's own "relative-size" fails with numpy 2 where no cluster is small, and its "silhouette-scores"
        # gives the rows of the larger cluster whatever the memory held.
        if analysis == "relative-size" and flagged[rows].mean() >= _SMALL:
            flagged[rows] = False
    notes = [where]
    if features.shape[1] <= _NARROW:
        notes.append(f"{features.shape[1]} activations are few for this method")
    if len(usable) < len(members):
        notes.append(f"{len(members) - len(usable)} classes of under {_DIMENSIONS} rows, or of equal rows, left out")
    return Detection(
        NAME,
        torch.as_tensor(scores).to(problem.x),
        torch.as_tensor(flagged, device=problem.device),
        {"analysis": analysis, "clusters": 2, "dimensions": min(_DIMENSIONS, features.shape[1]), "seed": seed},
        "; ".join(notes),
    )


def _can_be_split(rows: Any) -> bool:
    return len(rows) >= _DIMENSIONS and len(np.unique(rows, axis=0)) > 1


def _run(features: Any, members: list[Any]) -> tuple[Any, list[int]]:
    """ART's defence after its run, and its verdict on the rows in the order of the classes."""
    from art.defences.detector.poison import ActivationDefence

    # ART wants two classes: a single one is given twice, and the second copy's verdicts are left behind.
    given = members if len(members) > 1 else [*members, *members]
    rows, labels = np.concatenate(given), np.repeat(np.arange(len(given)), [len(part) for part in given])
    classifier = feature_classifier(features.shape[1], len(given))
    defence = ActivationDefence(classifier, features[rows], labels)
    _, clean = defence.detect_poison(cluster_analysis="smaller", nb_clusters=2, nb_dims=_DIMENSIONS, reduce="PCA")
    return defence, clean[: sum(len(part) for part in members)]


def _simplified_silhouette(points: Any, clusters: Any) -> Any:
    """`(d_large - d_small) / max(d_large, d_small)` of each point, 0 where both are 0."""
    small = int(np.argmin(np.bincount(clusters, minlength=2)))
    distances = {
        side: np.linalg.norm(points - points[(clusters == small) == side].mean(0), axis=1) for side in (True, False)
    }
    longest = np.maximum(distances[True], distances[False])
    return (distances[False] - distances[True]) / np.where(longest > 0, longest, 1.0)
