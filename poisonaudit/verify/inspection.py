"""Which training rows a defender should look at first, and how soon that finds the poisoned ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from poisonaudit.errors import PoisonAuditError, UntrustedNumber, UsageError
from poisonaudit.losses import class_labels
from poisonaudit.problem import Problem
from poisonaudit.registry import lookup
from poisonaudit.sensitivity import row_moduli, solver_for
from poisonaudit.sensitivity.curvature import assess_here
from poisonaudit.verify.detectors import nearest_neighbours
from poisonaudit.verify.detectors.judging import auroc, recall_after, row_mask

if TYPE_CHECKING:
    import pandas as pd

SHARES = (0.01, 0.05, 0.10)
COMBINED = "mean_rank"
_ROWS_AT_ONCE = 64
_DISTANCES_AT_ONCE = 20_000_000


@dataclass(frozen=True, eq=False)
class Ranking:
    """Training rows in the order in which to inspect them, found without knowing which are poisoned.

    Attributes:
        name: of the score.
        scores: (n,), higher first; NaN throughout where the score does not apply.
        note: what the reader should know.
        applicable: False where the score does not exist for this problem.
        reason: why not.
    """

    name: str
    scores: Tensor
    note: str = ""
    applicable: bool = True
    reason: str = ""

    @property
    def order(self) -> Tensor:
        """Positions (n,) of the rows, most suspicious first; equal scores in row order."""
        return self.scores.sort(descending=True, stable=True).indices


def modulus_ranking(problem: Problem, seed: int) -> Ranking:
    """`kappa_k = |H^+ B_k|_2`: how far the weights follow a change of the row (see `row_moduli`)."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UntrustedNumber)
        scores = row_moduli(problem, seed=seed)
    notes = [str(each.message) for each in said if issubclass(each.category, UntrustedNumber)]
    return Ranking("row_modulus", scores, "; ".join(notes))


def self_influence_ranking(problem: Problem, seed: int) -> Ranking:
    """`|H^+ g_i| / n`, g_i the gradient of row i's loss: first-order move of the weights when the row is left out."""
    solver = solver_for(problem)
    parts = []
    for rows in torch.arange(problem.rows, device=problem.device).split(_ROWS_AT_ONCE):
        parts.append(solver.inverse(_row_gradients(problem, rows).T.contiguous()).norm(dim=0))
    note = "; ".join(assess_here(problem, solver).reasons)
    return Ranking("self_influence", torch.cat(parts) / problem.rows, note and f"self-influence: {note}")


def loss_ranking(problem: Problem, seed: int) -> Ranking:
    """Training loss of the row, without decay."""
    with torch.no_grad():
        return Ranking("loss", problem.losses().detach())


def neighbour_ranking(problem: Problem, seed: int) -> Ranking:
    """Share of a row's nearest neighbours in feature space that carry another label (see `nearest_neighbours`)."""
    found = nearest_neighbours(problem, problem.weights, expected_share=0.5, seed=seed)
    return Ranking("neighbour_disagreement", found.scores, found.note, found.applicable, found.reason)


def distance_ranking(problem: Problem, seed: int) -> Ranking:
    """Euclidean distance of the inputs to the nearest other row of the same class; infinite for a class of one row."""
    labels = class_labels(problem.y)
    if labels is None:
        return _missing("same_class_distance", problem, "the targets are real numbers, rows have no class")
    flat = problem.x.flatten(1)
    scores = torch.full((problem.rows,), math.inf, dtype=problem.dtype, device=problem.device)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        for part in members.split(max(1, _DISTANCES_AT_ONCE // len(members))):
            # Not by products of the rows: the difference of large squares loses what tells near rows apart.
            distances = torch.cdist(flat[part], flat[members], compute_mode="donot_use_mm_for_euclid_dist")
            distances[part[:, None] == members[None, :]] = math.inf
            scores[part] = distances.amin(1)
    return Ranking("same_class_distance", scores)


RANKINGS: Mapping[str, Callable[[Problem, int], Ranking]] = {
    "row_modulus": modulus_ranking,
    "self_influence": self_influence_ranking,
    "loss": loss_ranking,
    "neighbour_disagreement": neighbour_ranking,
    "same_class_distance": distance_ranking,
}


def inspection_order(problem: Problem, names: Sequence[str] | None = None, *, seed: int = 0) -> dict[str, Ranking]:
    """Rank the training rows by how much they deserve a look.

    Args:
        problem: the rows as they are, poisoned or not, at the weights trained on them.
        names: of `RANKINGS`; None for all.
        seed: of scores that draw.

    Returns:
        Name -> ranking; with two or more that apply also "mean_rank", by the mean of their ranks.

    Raises:
        UsageError: PA301, an unknown ranking.
    """
    asked = {name: lookup(RANKINGS, name, "ranking") for name in (RANKINGS if names is None else names)}
    found = {}
    for name, rank in asked.items():
        try:
            found[name] = rank(problem, seed)
        except PoisonAuditError as trouble:
            found[name] = _missing(name, problem, str(trouble))
    usable = [ranking for ranking in found.values() if ranking.applicable]
    if len(usable) > 1:
        found[COMBINED] = _mean_rank(usable)
    return found


def evaluate_ranking(ranking: Ranking | Tensor, poisoned_rows: Tensor | Sequence[int]) -> dict[str, Any]:
    """How soon inspecting rows in this order finds the poisoned ones.

    Args:
        ranking: or its scores (n,), higher first.
        poisoned_rows: positions of the poisoned rows.

    Returns:
        Plain data: `applicable`, `reason`, `note`, `rows`, `poisoned`; `recall`: for "1%", "5%", "10%" and
        "as_many_as_poisoned" the rows `inspected` (rounded up), `recall` (expected over the order of ties), `random`
        (its expectation for rows in random order) and `random_95` (what random order stays at or below in 95 % of
        draws); `average_precision` (expected likewise) with `average_precision_random`; `auroc` with `auroc_p_value`
        (see `judge`).

    Raises:
        UsageError: PA363, a position is not among the rows.
    """
    given = ranking if isinstance(ranking, Ranking) else Ranking("scores", ranking)
    total = len(given.scores)
    poisoned = row_mask(poisoned_rows, total)
    count = int(poisoned.sum())
    facts: dict[str, Any] = {
        "applicable": given.applicable and 0 < count < total,
        "reason": given.reason,
        "note": given.note,
        "rows": total,
        "poisoned": count,
    }
    if not facts["applicable"]:
        if given.applicable:
            which = "no row is" if count == 0 else "all rows are"
            facts["reason"] = f"not applicable: {which} poisoned, there is nothing to find"
        return facts
    from scipy.stats import hypergeom

    scores = given.scores.double().cpu()
    if bool(scores.isnan().any()):
        raise UsageError("PA304", "scores hold NaN, which has no place in an order. Pass numbers.")
    depths = {f"{share:.0%}": math.ceil(share * total - 1e-9) for share in SHARES} | {"as_many_as_poisoned": count}
    area, p_value = auroc(scores, poisoned)
    return facts | {
        "recall": {
            name: {
                "inspected": inspected,
                "recall": recall_after(scores, poisoned, inspected),
                "random": inspected / total,
                "random_95": float(hypergeom.ppf(0.95, total, count, inspected)) / count,
            }
            for name, inspected in depths.items()
        },
        "average_precision": average_precision(scores, poisoned),
        "average_precision_random": random_average_precision(count, total),
        "auroc": area,
        "auroc_p_value": p_value,
    }


def average_precision(scores: Tensor, poisoned: Tensor) -> float:
    """Mean precision at the depths of the poisoned rows, expected over the order of ties, exact.

    Of t tied rows, of which q are poisoned, the j-th is poisoned with probability q/t, and each of the j - 1 tied ones
    before it then with (q - 1)/(t - 1).

    Args:
        scores: (n,), higher first, no NaN.
        poisoned: (n,) bool, at least one.

    Returns:
        The average precision in (0, 1].
    """
    _, block, tied = np.unique(-scores.double().cpu().numpy(), return_inverse=True, return_counts=True)
    hits = np.bincount(block, weights=poisoned.cpu().numpy())
    above, found = np.cumsum(tied) - tied, np.cumsum(hits) - hits
    # One entry for every depth, of the block of ties that it lies in.
    at, depth = np.repeat(np.arange(len(tied)), tied), np.arange(1, len(scores) + 1)
    others = (depth - 1 - above[at]) * ((hits - 1) / np.maximum(tied - 1, 1))[at]
    return float(((hits / tied)[at] * (found[at] + 1 + others) / depth).sum() / hits.sum())


def random_average_precision(poisoned: int, total: int) -> float:
    """Expected average precision of a random order, in which all rows are tied: `average_precision` of equal scores.

    It is `(H_n + (n - H_n) (r - 1) / (n - 1)) / n`, H_n the n-th harmonic number.

    Args:
        poisoned: r, at least 1.
        total: n, at least 2.

    Returns:
        The expectation.
    """
    return average_precision(torch.zeros(total), torch.arange(total) < poisoned)


def to_frame(rankings: Mapping[str, Ranking]) -> pd.DataFrame:
    """Scores and ranks (1 = look here first) of all rankings that apply, one line per training row."""
    import pandas as pd

    columns: dict[str, Any] = {}
    for name, ranking in rankings.items():
        if ranking.applicable:
            columns[name] = ranking.scores.double().cpu().numpy()
            columns[f"{name}_rank"] = _ranks(ranking.scores).cpu().numpy()
    return pd.DataFrame(columns)


def _row_gradients(problem: Problem, rows: Tensor) -> Tensor:
    """Gradient of each row's own loss in the weights, (k, p)."""

    def one_row(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return problem.losses(weights, x[None], y[None])[0]

    try:
        return vmap(grad(one_row), in_dims=(None, 0, 0))(problem.weights, problem.x[rows], problem.y[rows])
    except (RuntimeError, ValueError):
        # Layers that vmap does not know: row by row.
        alone = [grad(one_row)(problem.weights, problem.x[row], problem.y[row]) for row in rows]
        return torch.stack(alone)


def _ranks(scores: Tensor) -> Tensor:
    """Rank of each row, 1 for the highest score, ties sharing their mean."""
    from scipy.stats import rankdata

    return torch.as_tensor(rankdata(-scores.double().cpu().numpy())).to(scores)


def _mean_rank(rankings: Sequence[Ranking]) -> Ranking:
    ranks = torch.stack([_ranks(ranking.scores) for ranking in rankings]).mean(0)
    return Ranking(COMBINED, -ranks, f"minus the mean rank of {', '.join(ranking.name for ranking in rankings)}")


def _missing(name: str, problem: Problem, reason: str) -> Ranking:
    blank = torch.full((problem.rows,), torch.nan, dtype=problem.dtype, device=problem.device)
    return Ranking(name, blank, applicable=False, reason=f"not applicable: {reason}")
