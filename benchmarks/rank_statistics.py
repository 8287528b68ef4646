"""Rank correlations of models: within data sets, controlled for a third figure, with bootstrap intervals.

Everything works on arrays (draws, models), so that the observed data are the case of one draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]

# Ranks of fewer models of a data set say nothing.
FEWEST = 4


@dataclass(frozen=True)
class Correlation:
    """A rank correlation over models.

    Attributes:
        value: in [-1, 1]; None where it is not defined (too few models, or a constant).
        low: end of the 95 % percentile interval of the bootstrap over models.
        high: the other end.
        models: how many it is over.
        p: of the permutation test within strata, two-sided; None where it was not asked for.
    """

    value: float | None
    low: float | None
    high: float | None
    models: int
    p: float | None = None


def standard_ranks(values: Array, groups: Sequence[NDArray[np.int64]]) -> Array:
    """Average ranks within each group of columns, centred and scaled there to mean 0 and variance 1.

    A group in which all are equal becomes zeros: it holds no order.

    Args:
        values: (draws, models).
        groups: positions of the columns of each group.

    Returns:
        (draws, models).
    """
    found = np.zeros_like(values, dtype=np.float64)
    for group in groups:
        ranks = rankdata(values[:, group], axis=1)
        centred = ranks - ranks.mean(1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(1, keepdims=True))
        found[:, group] = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)
    return found


def rank_correlations(x: Array, y: Array, groups: Sequence[NDArray[np.int64]], control: Array | None = None) -> Array:
    """Spearman's rho within groups, and its partial form.

    With standardised ranks the pooled product-moment correlation is `sum_g n_g rho_g / sum_g n_g`, Spearman's rho of
    each group weighted by its size; with one group it is Spearman's rho. The partial form is
    `(r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2))` of those.

    Args:
        x: (draws, models).
        y: (draws, models).
        groups: positions of the columns of each group.
        control: z (draws, models), or None.

    Returns:
        (draws,); NaN where it is not defined.
    """
    a, b = standard_ranks(x, groups), standard_ranks(y, groups)
    direct = _cosines(a, b)
    if control is None:
        return direct
    c = standard_ranks(control, groups)
    with_x, with_y = _cosines(a, c), _cosines(b, c)
    # A control that varies in no group takes nothing away.
    with_x, with_y = (np.where((c**2).sum(1) > 0, each, 0.0) for each in (with_x, with_y))
    left = (1 - with_x**2) * (1 - with_y**2)
    return np.divide(direct - with_x * with_y, np.sqrt(left), out=np.full_like(direct, np.nan), where=left > 1e-12)


def resamples(groups: Sequence[NDArray[np.int64]], draws: int, seed: int) -> NDArray[np.int64]:
    """Positions drawn with replacement within each group, which keep their groups' places, (draws, models)."""
    generator = np.random.default_rng(seed)
    drawn = np.empty((draws, sum(map(len, groups))), dtype=np.int64)
    for group in groups:
        drawn[:, group] = group[generator.integers(0, len(group), (draws, len(group)))]
    return drawn


def groups_of(strata: Sequence[str], *, together: bool = False) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Models whose stratum has at least `FEWEST` of them, and the groups among these.

    Args:
        strata: of each model.
        together: one group of all models instead.

    Returns:
        Positions that are kept, and groups of positions among the kept.
    """
    names = np.asarray(strata)
    if together:
        kept = np.arange(len(names))
        return kept, [kept] if len(kept) >= FEWEST else []
    wanted = [name for name in dict.fromkeys(strata) if (names == name).sum() >= FEWEST]
    kept = np.flatnonzero(np.isin(names, wanted))
    return kept, [np.flatnonzero(names[kept] == name) for name in wanted]


def correlation(
    x: Sequence[float],
    y: Sequence[float],
    strata: Sequence[str],
    *,
    together: bool = False,
    control: Sequence[float] | None = None,
    draws: int = 2_000,
    permutations: int = 0,
    seed: int = 0,
) -> Correlation:
    """One rank correlation with its interval, and the permutation test where asked for.

    Args:
        x: a score of each model; infinity ranks last.
        y: damage of each model.
        strata: data set of each model.
        together: over all models at once instead of within data sets.
        control: of the partial form.
        draws: of the bootstrap, which draws models within the groups.
        permutations: of y within data sets, 0 for no test; the smallest p is one over their number plus one.
        seed: of both.

    Returns:
        The correlation.
    """
    kept, groups = groups_of(strata, together=together)
    if not groups:
        return Correlation(None, None, None, len(kept))
    a, b, c = (None if each is None else np.asarray(each, dtype=np.float64)[kept][None] for each in (x, y, control))
    assert a is not None and b is not None
    value = float(rank_correlations(a, b, groups, c)[0])
    if not np.isfinite(value):
        return Correlation(None, None, None, len(kept))
    drawn = resamples(groups, draws, seed)
    low, high = interval(rank_correlations(a[0][drawn], b[0][drawn], groups, None if c is None else c[0][drawn]))
    p = None if not permutations else _permuted(a, b, groups, permutations, seed)
    return Correlation(value, low, high, len(kept), p)


def difference(
    first: Sequence[float],
    second: Sequence[float],
    y: Sequence[float],
    strata: Sequence[str],
    *,
    draws: int = 2_000,
    seed: int = 0,
) -> Correlation:
    """Correlation of the first score with y minus that of the second, within data sets, on the same resampled models.

    Args:
        first: a score of each model.
        second: another.
        y: damage of each model.
        strata: data set of each model.
        draws: of the bootstrap.
        seed: of the draws.

    Returns:
        The difference with its paired bootstrap interval.
    """
    kept, groups = groups_of(strata)
    if not groups:
        return Correlation(None, None, None, len(kept))
    a, b, c = (np.asarray(each, dtype=np.float64)[kept][None] for each in (first, second, y))
    value = float((rank_correlations(a, c, groups) - rank_correlations(b, c, groups))[0])
    if not np.isfinite(value):
        return Correlation(None, None, None, len(kept))
    drawn = resamples(groups, draws, seed)
    every = rank_correlations(a[0][drawn], c[0][drawn], groups) - rank_correlations(b[0][drawn], c[0][drawn], groups)
    return Correlation(value, *interval(every), len(kept))


def interval(draws: Array, level: float = 0.95) -> tuple[float | None, float | None]:
    """Percentiles of the finite draws; None where fewer than half are finite."""
    finite = draws[np.isfinite(draws)]
    if len(finite) < len(draws) / 2:
        return None, None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(values: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's step-down method (1979), in the given order."""
    p = np.asarray(values, dtype=np.float64)
    order = np.argsort(p)
    raised = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    found = np.empty_like(raised)
    found[order] = raised
    return found.tolist()


def _cosines(a: Array, b: Array) -> Array:
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.full(len(scale), np.nan), where=scale > 0)


def _permuted(a: Array, b: Array, groups: Sequence[NDArray[np.int64]], permutations: int, seed: int) -> float:
    """Share of permutations of b within groups whose correlation is as large in size, the observed one among them."""
    generator = np.random.default_rng(seed)
    ranks, others = standard_ranks(a, groups), standard_ranks(b, groups)
    shuffled = np.repeat(others, permutations, axis=0)
    for group in groups:
        shuffled[:, group] = generator.permuted(shuffled[:, group], axis=1)
    reached = np.abs(shuffled @ ranks[0]) >= abs(float(others[0] @ ranks[0])) - 1e-9
    return float((1 + reached.sum()) / (1 + permutations))
