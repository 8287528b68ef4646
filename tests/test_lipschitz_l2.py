"""Bounds in the Euclidean norm: order, enumeration, and the cases that are exact."""

from __future__ import annotations

import math

import pytest
import torch
from lipschitz_references import draw, enumerate_k, literal_subset_sums, norm_of
from torch import nn

from poisonaudit.lipschitz import UPPER_BOUNDS, lipschitz_bounds

TOLERANCE = 1 + 1e-10
SHAPES = [(3, 4), (4, 5, 3), (2, 6, 1), (3, 4, 3, 2), (5, 3, 4, 4), (2, 3, 3, 3, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bounds_hold_and_are_ordered_on_enumerated_nets(shape):
    for seed, sparse in ((0, False), (1, True)):
        matrices = draw(shape, seed, sparse)
        bounds = lipschitz_bounds(matrices, "l2")
        k = enumerate_k(matrices, "l2")
        k1, k4 = literal_subset_sums(matrices, "l2")
        assert bounds.k1 == pytest.approx(k1, rel=1e-12)
        assert bounds.k4 == pytest.approx(k4, rel=1e-12)
        assert bounds.exact == pytest.approx(k, rel=1e-12)
        assert bounds.lower <= k * TOLERANCE
        assert bounds.k6 is None and bounds.norm == "l2"
        for name in UPPER_BOUNDS:
            assert name == "k6" or k <= getattr(bounds, name) * TOLERANCE, name
        assert bounds.k5 <= bounds.k4 * TOLERANCE <= bounds.k3 * TOLERANCE**2
        assert bounds.k1 <= bounds.k_star * TOLERANCE and bounds.k2 <= bounds.k_star * TOLERANCE
        assert k <= bounds.certified <= min(bounds.k5, bounds.ellipsoid) * (1 + 1e-8)
        assert bounds.certified_winner in {"k3", "k5", "k_star", "ellipsoid"}


def test_absolute_bounds_are_spectral_norms_of_entrywise_bounds():
    first, second, last = draw((4, 5, 3, 2), 3)
    bounds = lipschitz_bounds([first, second, last], "l2")
    assert bounds.k_star == pytest.approx(math.prod(norm_of(matrix, "l2") for matrix in (first, second, last)))
    assert bounds.k3 == pytest.approx(norm_of(last.abs() @ second.abs() @ first.abs(), "l2"), rel=1e-12)
    inner = 0.5 * ((second @ first).abs() * 0.5 + second.abs() @ first.abs() * 0.5)
    total = 0.25 * (last @ second @ first).abs() + 0.25 * (last @ second).abs() @ first.abs() + last.abs() @ inner
    assert bounds.k5 == pytest.approx(norm_of(total, "l2"), rel=1e-12)


def test_linear_networks_are_exact():
    layer = nn.Linear(3, 2, dtype=torch.float64)
    bounds = lipschitz_bounds(layer, "l2")
    exact = norm_of(layer.weight.detach(), "l2")
    for name in ("k_star", "k1", "k2", "ellipsoid", "exact", "lower", "best"):
        assert getattr(bounds, name) == pytest.approx(exact, rel=1e-12), name
    assert exact < bounds.certified <= exact * (1 + 1e-8)
    zero = lipschitz_bounds([torch.zeros(4, 3), torch.ones(2, 4)], "l2")
    assert zero.certified == zero.best == zero.lower == 0.0


def test_extreme_scales_neither_overflow_nor_vanish():
    matrices = draw((3, 4, 3), 1)
    plain = lipschitz_bounds(matrices, "l2")
    scaled = lipschitz_bounds([matrices[0] * 2.0**1000, matrices[1] * 2.0**-1000], "l2")
    for name in ("k_star", "k1", "k2", "k3", "k5", "ellipsoid", "exact", "certified"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-9), name


def test_what_is_too_large_is_none(monkeypatch):
    assert lipschitz_bounds(draw((2, 13, 1)), "l2").k2 is None
    assert lipschitz_bounds(draw((2, 12, 1)), "l2").k2 is not None
    assert lipschitz_bounds(draw((2,) * 15), "l2").k4 is None
    monkeypatch.setattr("poisonaudit.lipschitz.upper.K4_ENTRIES", 10)
    assert lipschitz_bounds(draw((3, 4, 4, 2)), "l2").k4 is None


def test_wide_nets_without_an_ellipsoid_fall_back_on_the_product(monkeypatch):
    monkeypatch.setattr("poisonaudit.lipschitz.ellipsoid.LARGEST_WORK", 0.0)
    bounds = lipschitz_bounds(draw((30, 30, 30, 30, 30)), "l2")
    assert bounds.ellipsoid is None and bounds.certified_winner == "k_star"
    assert bounds.k_star < bounds.certified <= bounds.k_star * (1 + 1e-8)


def test_deep_networks_are_finite():
    matrices = [matrix / 3.0 for matrix in draw((8,) * 42)]
    bounds = lipschitz_bounds(matrices, "l2")
    assert 0.0 < bounds.lower <= bounds.ellipsoid_tuned <= bounds.certified <= bounds.ellipsoid_tuned * (1 + 1e-7)
    assert bounds.certified_winner == "ellipsoid_tuned" and bounds.ellipsoid_tuned < bounds.ellipsoid
    assert bounds.k5 <= bounds.k3 * TOLERANCE and bounds.k1 <= bounds.k_star * TOLERANCE


def test_the_search_reaches_most_of_the_constant():
    ratios = [lipschitz_bounds(draw((4, 6, 5, 2), seed), "l2") for seed in range(5)]
    ratios = [bounds.lower / bounds.exact for bounds in ratios]
    assert max(ratios) <= TOLERANCE and sum(ratios) / len(ratios) > 0.8
