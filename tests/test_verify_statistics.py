"""Paired tests and rates over images against enumeration, binomial tails and scipy."""

from __future__ import annotations

import itertools
from math import comb

import pytest
from scipy.stats import binomtest, wilcoxon

from poisonaudit.errors import UsageError
from poisonaudit.verify import paired_difference, paired_test, success_over_images, success_rate


def enumerated(differences: list[float]) -> float:
    """Two-sided p of the signed-rank statistic over all signs, from its definition."""
    order = sorted(range(len(differences)), key=lambda i: abs(differences[i]))
    rank = {index: position + 1 for position, index in enumerate(order)}
    total = sum(rank.values())

    def extreme(signs: tuple[bool, ...]) -> int:
        plus = sum(rank[i] for i, positive in enumerate(signs) if positive)
        return min(plus, total - plus)

    seen = extreme(tuple(value > 0 for value in differences))
    every = list(itertools.product((False, True), repeat=len(differences)))
    return min(1.0, sum(extreme(signs) <= seen for signs in every) / len(every))


@pytest.mark.parametrize(
    "differences",
    [[0.3, 0.2, 0.5], [1.0, -0.5, 2.0, 3.0, 0.1], [0.1, -0.2, 0.4, -0.8, 1.6, 3.2, -6.4], [0.5, -1.5]],
)
def test_wilcoxon_is_the_exact_distribution(differences):
    found = paired_test(differences)
    assert found.method == "wilcoxon" and found.exact and found.nonzero == found.pairs == len(differences)
    assert found.p_value == pytest.approx(enumerated(differences))
    assert found.smallest == 2.0 ** (1 - len(differences)) <= found.p_value


def test_five_seeds_cannot_be_significant_and_six_can():
    assert paired_test([1.0, 2.0, 3.0, 4.0, 5.0]).p_value == 0.0625
    assert paired_test([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).p_value == 0.03125


def test_zeros_are_left_out_and_ties_go_to_the_sign_test():
    assert paired_test([0.0, 0.3, 0.0, 0.2, 0.5]).p_value == paired_test([0.3, 0.2, 0.5]).p_value
    none = paired_test([0.0, 0.0])
    assert (none.method, none.p_value, none.nonzero, none.pairs, none.smallest) == ("none", 1.0, 0, 2, 1.0)
    assert paired_test([]).p_value == 1.0
    tied = paired_test([1.0, 1.0, -1.0, 1.0, 2.0, 0.0])
    assert tied.method == "sign" and tied.exact
    assert tied.p_value == pytest.approx(2 * (comb(5, 0) + comb(5, 1)) / 2**5)


def test_many_pairs_use_the_asymptotic_form_and_say_so():
    values = [(-1) ** i * (i + 1) ** 1.5 for i in range(201)]
    many = paired_test(values)
    assert not many.exact and many.p_value == pytest.approx(wilcoxon(values, method="asymptotic").pvalue)


def test_an_image_counts_when_most_of_its_seeds_flip_it():
    outcomes = [[True, True, False], [True, False, False], [True, True, True], [False, False, False]]
    assert success_over_images(outcomes) == success_over_images(outcomes, need=2) == success_rate(2, 4)
    assert success_over_images(outcomes, need=1) == success_rate(3, 4)
    assert success_over_images(outcomes, need=3, level=0.9) == success_rate(1, 4, 0.9)
    assert success_over_images([[True, True, False, False], [True, True, True, False, False]]).successes == 1
    # All of n: the lower end is (alpha / 2)^(1 / n), over images, not over seeds.
    assert success_over_images([[True] * 3] * 6).lower == pytest.approx(0.025 ** (1 / 6))
    assert success_over_images([]).rate is None
    for bad, need in (([[True, True]], 3), ([[]], None), ([[True]], 0)):
        with pytest.raises(UsageError, match="PA374"):
            success_over_images(bad, need=need)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (9, 3), (3, 9), (5, 5), (0, 8)])
def test_mcnemar_is_the_binomial_tail_of_the_images_that_differ(only_a, only_b):
    a = [True] * only_a + [False] * only_b + [True, True, False]
    b = [False] * only_a + [True] * only_b + [True, True, False]
    found = paired_difference(a, b)
    assert (found.both, found.only_a, found.only_b, found.neither) == (2, only_a, only_b, 1)
    count, least = only_a + only_b, min(only_a, only_b)
    tail = sum(comb(count, i) for i in range(least + 1)) / 2**count
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    if count:
        assert found.p_value == pytest.approx(binomtest(only_a, count).pvalue)
    assert found.difference == pytest.approx((only_a - only_b) / (count + 3))


def test_pairs_must_be_pairs():
    with pytest.raises(UsageError, match="PA374"):
        paired_difference([True], [True, False])
    empty = paired_difference([], [])
    assert empty.difference is None and empty.p_value == 1.0
