"""K_6 against its definition written out, and against K_5 and K."""

from __future__ import annotations

import itertools

import pytest
import torch
from lipschitz_references import draw, enumerate_k
from torch import nn

from poisonaudit.lipschitz import lipschitz_bounds
from poisonaudit.lipschitz.network import chain_of, read_network
from poisonaudit.lipschitz.sign_coupled import entries_of, sign_coupled_bound, sign_coupled_rows


def literal_parts(matrices, columns):
    """Centre and largest deviation of `J columns` for slopes in [0, 1], as sums over subsets of hidden layers."""
    hidden = len(matrices) - 1
    centre, around = None, 0.0
    for size in range(hidden + 1):
        for subset in itertools.combinations(range(1, hidden + 1), size):
            cuts = (0, *subset, hidden + 1)
            product = None
            for start, end in itertools.pairwise(cuts):
                block = columns if start == 0 else torch.eye(matrices[start].shape[1], dtype=torch.float64)
                for position in range(start, end):
                    block = (0.5 if position > start else 1.0) * (matrices[position] @ block)
                if subset:
                    block = block.abs()
                product = block if product is None else 0.5 * (block @ product)
            if subset:
                around = around + product
            else:
                centre = product
    return centre, around


def literal_k6(matrices):
    mid, rad = literal_parts(matrices, torch.eye(matrices[0].shape[1], dtype=torch.float64))
    best = 0.0
    for row in range(len(mid)):
        a, b = torch.zeros_like(mid[row]), 0.0
        for entry, (m, r) in enumerate(zip(mid[row].tolist(), rad[row].tolist(), strict=True)):
            if abs(m) >= r:
                a[entry] = 1.0 if m > 0 else -1.0 if m < 0 else 0.0
            else:
                a[entry] = m / r
                b += (r * r - m * m) / r
        centre, around = literal_parts(matrices, a[:, None])
        best = max(best, b + float(centre[row, 0] + around[row, 0]))
    return best


@pytest.mark.parametrize("norm", ("linf", "l1"))
@pytest.mark.parametrize("shape", [(3, 4, 2), (4, 3, 3, 2), (2, 3, 3, 3, 2), (6, 2, 5)], ids=str)
def test_the_bound_is_its_definition(shape, norm):
    for seed in range(3):
        matrices = draw(shape, seed)
        used = matrices if norm == "linf" else [matrix.T for matrix in reversed(matrices)]
        bounds = lipschitz_bounds(matrices, norm)
        assert bounds.k6 == pytest.approx(literal_k6(used), rel=1e-12)
        assert enumerate_k(matrices, norm) <= bounds.k6 * (1 + 1e-12)
        assert bounds.k6 <= bounds.k5


def test_coupling_signs_gains_something():
    gains = [b.k6 / b.k5 for b in (lipschitz_bounds(draw((8, 6, 3), seed)) for seed in range(10))]
    assert max(gains) <= 1.0 and min(gains) < 0.97


def test_known_signs_keep_the_whole_row_together():
    # Both entries are the same positive multiple of one neuron: K is attained, K_6 finds it.
    matrices = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]), torch.tensor([[1.0], [-1.0]])]
    bounds = lipschitz_bounds(matrices)
    assert bounds.k6 == bounds.exact == 9.0


def test_any_line_above_the_interval_is_sound():
    """Intervals that are too wide, as with rounding accounted for, only raise the bound."""
    for seed in range(5):
        matrices = draw((4, 4, 3, 2), seed)
        chain = chain_of(read_network(matrices), "linf")
        entries = entries_of(chain)
        plain = sign_coupled_bound(chain, entries)
        for factor in (1.0, 1.3, 3.0):
            rows = sign_coupled_rows(chain, entries.mid, factor * entries.rad)
            assert chain.unscaled(float(rows.max())) >= enumerate_k(matrices, "linf") * (1 - 1e-12)
            assert float(rows.max()) >= plain * (1 - 1e-12)


def test_an_entry_that_cannot_move_counts_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(1.0), nn.Linear(2, 2)).double()
    bounds = lipschitz_bounds(model)
    product = (model[2].weight @ model[0].weight).detach()
    assert bounds.k6 == pytest.approx(float(product.abs().sum(1).max()), rel=1e-14)
