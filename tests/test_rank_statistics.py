"""Rank correlations against scipy, known partial correlations, and intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import permutation_test, rankdata, spearmanr

from benchmarks.rank_statistics import (
    correlation,
    difference,
    groups_of,
    holm,
    interval,
    rank_correlations,
    resamples,
    standard_ranks,
)

STRATA = ["a"] * 12 + ["b"] * 9 + ["c"] * 7


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    x, y, z = generator.normal(size=(3, len(STRATA)))
    return np.round(x + 0.5 * z, 1), x + y + z, z


def parts(values: np.ndarray) -> list[np.ndarray]:
    return [values[:12], values[12:21], values[21:]]


def test_one_group_is_spearman_with_ties_and_infinity(drawn) -> None:
    x, y, _ = drawn
    x[[2, 5]] = math.inf
    assert len(set(x)) < len(x)
    found = correlation(x, y, STRATA, together=True, draws=50)
    assert found.value == pytest.approx(spearmanr(rankdata(x), y).statistic, abs=1e-12)
    assert found.models == len(STRATA) and found.low < found.value < found.high


def test_within_groups_is_the_weighted_mean_of_spearman(drawn) -> None:
    x, y, _ = drawn
    # Large steps between data sets are what it must not see.
    shift = 100.0 * np.repeat([0, 1, 2], [12, 9, 7])
    each = [spearmanr(a, b).statistic for a, b in zip(parts(x), parts(y), strict=True)]
    expected = np.average(each, weights=[12, 9, 7])
    assert correlation(x + shift, y - shift, STRATA, draws=50).value == pytest.approx(expected, abs=1e-12)
    assert correlation(x + shift, y - shift, STRATA, draws=50, together=True).value < -0.7


def test_small_groups_are_left_out_and_constants_have_no_correlation(drawn) -> None:
    x, y, _ = drawn
    strata = [*STRATA[:12], *("b" if i < 3 else f"lone {i}" for i in range(16))]
    found = correlation(x, y, strata, draws=50)
    assert found.models == 12 and found.value == pytest.approx(spearmanr(x[:12], y[:12]).statistic, abs=1e-12)
    assert correlation(np.ones(28), y, STRATA, draws=50).value is None
    assert correlation(x[:3], y[:3], ["a"] * 3).value is None


def test_partial_correlation_is_that_of_the_residuals_of_ranks(drawn) -> None:
    """Regress the ranks of x and y on those of z; what is left correlates as the formula says."""
    x, y, z = drawn
    ranks = [rankdata(each) for each in (x, y, z)]
    design = np.column_stack([np.ones(len(z)), ranks[2]])
    left = [each - design @ np.linalg.lstsq(design, each, rcond=None)[0] for each in ranks[:2]]
    expected = np.corrcoef(*left)[0, 1]
    found = correlation(x, y, STRATA, together=True, control=z, draws=50)
    assert found.value == pytest.approx(expected, abs=1e-12)


def test_partial_correlation_of_a_chain_vanishes_and_of_a_constant_control_changes_nothing() -> None:
    """x -> z -> y: given z nothing is left. For normal variables the rank form is 0 up to the error of ranks."""
    generator = np.random.default_rng(0)
    z = generator.normal(size=4_000)
    x, y = z + generator.normal(size=4_000), z + generator.normal(size=4_000)
    strata = ["a"] * 4_000
    assert correlation(x, y, strata, draws=1).value == pytest.approx(6 / math.pi * math.asin(0.25), abs=0.04)
    assert abs(correlation(x, y, strata, control=z, draws=1).value) < 0.06
    alone, beside = (correlation(x, y, strata, control=c, draws=1).value for c in (None, np.ones(4_000)))
    assert alone == beside


def test_bootstrap_intervals_cover() -> None:
    """Bivariate normal, correlation .6, three groups of 20: Spearman's is 6/pi asin(.3) in each."""
    truth, covered, trials = 6 / math.pi * math.asin(0.3), 0, 200
    strata = ["a"] * 20 + ["b"] * 20 + ["c"] * 20
    generator = np.random.default_rng(7)
    for trial in range(trials):
        x, noise = generator.normal(size=(2, 60))
        found = correlation(x, 0.6 * x + 0.8 * noise, strata, draws=300, seed=trial)
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / trials <= 0.99


def test_resampled_models_stay_in_their_groups() -> None:
    _, groups = groups_of(STRATA)
    drawn = resamples(groups, 200, 1)
    assert drawn.shape == (200, 28)
    for group in groups:
        assert set(np.unique(drawn[:, group])) == set(group)
    assert not np.array_equal(drawn, resamples(groups, 200, 2))


def test_paired_difference_is_that_of_the_two_and_narrower_than_both(drawn) -> None:
    x, y, z = drawn
    near = x + 1e-3 * z
    found = difference(x, near, y, STRATA, draws=400)
    alone = [correlation(each, y, STRATA, draws=400) for each in (x, near)]
    assert found.value == pytest.approx(alone[0].value - alone[1].value, abs=1e-12)
    assert found.high - found.low < 0.3 * (alone[0].high - alone[0].low)


def test_permutation_p_is_that_of_scipy_and_small_where_there_is_an_order(drawn) -> None:
    x, y, _ = drawn
    expected = permutation_test(
        (x[:12],),
        lambda a: spearmanr(a, y[:12]).statistic,
        permutation_type="pairings",
        n_resamples=1_000,
        rng=np.random.default_rng(0),
    ).pvalue
    found = correlation(x[:12], y[:12], STRATA[:12], draws=10, permutations=20_000).p
    assert found == pytest.approx(expected, abs=0.03)
    assert correlation(y, y**3, STRATA, draws=10, permutations=999).p == pytest.approx(1e-3)


def test_permutation_p_of_noise_is_uniform() -> None:
    generator = np.random.default_rng(5)
    found = [
        correlation(*generator.normal(size=(2, 28)), STRATA, draws=1, permutations=199, seed=trial).p
        for trial in range(200)
    ]
    assert 0.01 <= np.mean(np.asarray(found) <= 0.05) <= 0.11 and 0.4 < np.mean(found) < 0.6


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([]) == []


def test_ranks_and_intervals_of_little() -> None:
    ranks = standard_ranks(np.array([[3.0, 1.0, 2.0, 2.0]]), [np.arange(4)])
    assert ranks.mean() == pytest.approx(0) and (ranks**2).mean() == pytest.approx(1) and ranks[0, 2] == ranks[0, 3]
    assert interval(np.array([np.nan, np.nan, 1.0])) == (None, None)
    assert np.isnan(rank_correlations(np.ones((1, 4)), np.ones((1, 4)), [np.arange(4)])[0])
