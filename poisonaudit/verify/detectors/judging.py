"""How well suspicion finds the rows that really are poisoned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poisonaudit.errors import UsageError
from poisonaudit.results import finite
from poisonaudit.verify.detectors.detection import Detection

_FIGURES = (
    "flagged",
    "true_positives",
    "precision",
    "recall",
    "false_positive_rate",
    "auroc",
    "auroc_p_value",
    "recall_at_poisoned",
)


def judge(detection: Detection, poisoned_rows: Tensor | Sequence[int]) -> dict[str, Any]:
    """Compare a detection with the truth.

    Args:
        detection: of all n rows.
        poisoned_rows: positions of the poisoned rows.

    Returns:
        Plain data. `applicable` and `reason`; `rows`, `poisoned`, `flagged`, `true_positives`; of the flags:
        `precision` (None where nothing is flagged), `recall`, `false_positive_rate`; of the scores: `auroc`,
        `auroc_p_value` (chance that as many rows picked at random score this high, Mann-Whitney, one-sided) and
        `recall_at_poisoned`, recall after inspecting as many rows as are poisoned (R-precision), with `base_rate`, its
        expectation at random. Figures that do not exist are None.

    Raises:
        UsageError: PA363, a position is not among the rows.
    """
    total = len(detection.scores)
    poisoned = row_mask(poisoned_rows, total).cpu()
    count = int(poisoned.sum())
    figures: dict[str, Any] = {
        "applicable": detection.applicable,
        "reason": detection.reason,
        "note": detection.note,
        "parameters": dict(detection.parameters),
        "rows": total,
        "poisoned": count,
        "base_rate": count / total,
    }
    figures.update(dict.fromkeys(_FIGURES))
    if not detection.applicable:
        return finite(figures)
    flagged = detection.flagged.cpu()
    hits, marked = int((flagged & poisoned).sum()), int(flagged.sum())
    figures["flagged"], figures["true_positives"] = marked, hits
    if count < total:
        figures["false_positive_rate"] = (marked - hits) / (total - count)
    if count in (0, total):
        which = "no row is" if count == 0 else "all rows are"
        figures.update(applicable=False, reason=f"not applicable: {which} poisoned, there is nothing to tell apart")
        return finite(figures)
    scores = detection.scores.double().cpu()
    figures["precision"] = hits / marked if marked else None
    figures["recall"] = hits / count
    figures["auroc"], figures["auroc_p_value"] = auroc(scores, poisoned)
    figures["recall_at_poisoned"] = recall_after(scores, poisoned, count)
    return finite(figures)


def row_mask(rows: Tensor | Sequence[int], total: int) -> Tensor:
    """True at the given positions.

    Args:
        rows: integer positions, (k,); none is allowed.
        total: number n of rows.

    Returns:
        (n,) bool.

    Raises:
        UsageError: PA363, a position is not among the rows, or a mask is given.
    """
    given = torch.as_tensor(rows)
    if given.dtype == torch.bool or (given.is_floating_point() and given.numel()):
        raise UsageError("PA363", f"poisoned rows are {given.dtype}. Give integer positions, (k,), not a mask.")
    positions = given.long().flatten()
    if positions.numel() and (int(positions.min()) < 0 or int(positions.max()) >= total):
        raise UsageError(
            "PA363",
            f"poisoned rows run from {int(positions.min())} to {int(positions.max())}, there are rows "
            f"0..{total - 1}. Give positions of training rows.",
        )
    mask = torch.zeros(total, dtype=torch.bool)
    mask[positions.cpu()] = True
    return mask


def auroc(scores: Tensor, poisoned: Tensor) -> tuple[float, float]:
    """Area under the ROC curve, and the one-sided Mann-Whitney p-value of its being above 1/2 by chance.

    Args:
        scores: (n,), higher is more suspicious; infinite ones rank highest.
        poisoned: (n,) bool, of both kinds.

    Returns:
        `(auroc, p_value)`.
    """
    from scipy.stats import mannwhitneyu, rankdata
    from sklearn.metrics import roc_auc_score

    # Ranks say the same and take infinite scores.
    ranks, truth = rankdata(scores.double().cpu().numpy()), poisoned.cpu().numpy()
    if ranks.min() == ranks.max():
        return 0.5, 1.0
    test = mannwhitneyu(ranks[truth], ranks[~truth], alternative="greater")
    return float(roc_auc_score(truth, ranks)), float(test.pvalue)


def recall_after(scores: Tensor, poisoned: Tensor, inspected: int) -> float:
    """Share of the poisoned rows among the `inspected` most suspicious ones, expected over the order of ties.

    Args:
        scores: (n,), higher first.
        poisoned: (n,) bool, at least one.
        inspected: how many rows are looked at, 1 to n.

    Returns:
        The recall in [0, 1].
    """
    cut = scores.sort(descending=True).values[inspected - 1]
    above, tied = scores > cut, scores == cut
    share_of_tied = (inspected - int(above.sum())) / int(tied.sum())
    return (int((above & poisoned).sum()) + share_of_tied * int((tied & poisoned).sum())) / int(poisoned.sum())
