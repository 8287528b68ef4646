"""The tuned ellipsoid: never below K, never above the closed form, and no better point near it."""

from __future__ import annotations

import math

import pytest
import torch
from lipschitz_references import draw, enumerate_k
from scipy.optimize import minimize
from torch import nn

from poisonaudit.lipschitz import lipschitz_bounds, tuning
from poisonaudit.lipschitz.ellipsoid import ellipsoid_of, proved_bound
from poisonaudit.lipschitz.local import local_lipschitz
from poisonaudit.lipschitz.network import chain_of, read_network
from poisonaudit.lipschitz.sign_coupled import entries_of
from poisonaudit.lipschitz.tuning import tuned


def both(matrices, norm):
    chain = chain_of(read_network(matrices), norm)
    plain = ellipsoid_of(chain, entries_of(chain).largest)
    return chain, plain, tuned(chain, plain)


@pytest.mark.parametrize("norm", ("linf", "l1", "l2"))
@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 4, 4, 2), (2, 6, 1), (2, 3, 3, 3, 2)], ids=str)
def test_it_lies_between_the_constant_and_the_closed_form(shape, norm):
    for seed in range(3):
        matrices = draw(shape, seed, sparse=seed == 2)
        k = enumerate_k(matrices, norm)
        chain, plain, found = both(matrices, norm)
        if k == 0:
            assert found is None
            continue
        proved = proved_bound(chain, found)
        assert k <= chain.unscaled(proved)
        assert k <= chain.unscaled(found.value) * (1 + 1e-10)
        assert found.value <= plain.value * (1 + 1e-12)
        assert found.value * (1 - 1e-13) <= proved <= found.value * (1 + 1e-7)


def test_a_row_that_descent_cannot_start_from_stays_as_it_was():
    # Neurons without any weight behind them: the start of the descent is infinite there.
    matrices = draw((4, 3, 3, 3, 2), 145, sparse=True)
    chain, plain, found = both(matrices, "l1")
    assert found.value <= plain.value * (1 + 1e-12)
    assert enumerate_k(matrices, "l1") <= chain.unscaled(proved_bound(chain, found))


@pytest.mark.soak
@pytest.mark.parametrize("norm", ("linf", "l1", "l2"))
def test_it_holds_on_many_enumerated_nets(norm):
    for seed in range(150):
        matrices = draw(((3, 4, 3, 2), (4, 3, 3, 3, 2), (2, 8, 2))[seed % 3], seed, sparse=seed % 5 == 0)
        chain, plain, found = both(matrices, norm)
        if found is None:
            assert enumerate_k(matrices, norm) == 0
            continue
        assert enumerate_k(matrices, norm) <= chain.unscaled(proved_bound(chain, found))
        assert found.value <= plain.value * (1 + 1e-12)


def one_hidden_layer(matrices, row):
    """The least bound of one row over d and T by another method: quasi-Newton steps on a dense formula."""
    first, last = (matrix.numpy() for matrix in matrices)
    first, last = torch.tensor(first), torch.tensor(last[row])

    def value(free):
        free = torch.tensor(free, dtype=torch.float64, requires_grad=True)
        d, spread = free[: first.shape[1]].exp(), free[first.shape[1] :].exp()
        gram = first @ torch.diag(1 / d) @ first.T
        # D = (I + Z) / 2, and sup over |Z| <= 1 of the form by the S-procedure: P' as one block elimination.
        inner = torch.diag(spread) - gram / 4
        if torch.linalg.eigvalsh(inner)[0] <= 0:
            return 1e6, 0 * free.detach().numpy()
        after = gram / 4 + gram @ torch.linalg.inv(inner) @ gram / 16 + torch.diag(spread)
        bound = 0.5 * ((last @ after @ last).log() + d.sum().log())
        (slope,) = torch.autograd.grad(bound, free)
        return float(bound.detach()), slope.numpy()

    spread = torch.linalg.matrix_norm(first, 2) ** 2
    start = torch.cat([torch.zeros(first.shape[1]), torch.full((first.shape[0],), float(spread.log()))])
    return math.exp(minimize(value, start.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 2000}).fun)


def test_one_hidden_layer_reaches_what_another_optimiser_finds():
    for seed in range(3):
        matrices = draw((3, 6, 2), seed)
        reference = max(one_hidden_layer(matrices, row) for row in range(2))
        chain, _, found = both(matrices, "linf")
        assert enumerate_k(matrices, "linf") <= chain.unscaled(found.value) <= reference * 1.005


@pytest.mark.parametrize("norm", ("linf", "l2"))
def test_no_nearby_multipliers_are_better(norm, monkeypatch):
    # The problem is convex in other variables, so that being lowest nearby is being lowest.
    matrices = draw((6, 8, 8, 8, 4), 1)
    quick = both(matrices, norm)[2].value
    monkeypatch.setattr(tuning, "STEPS", 1500)
    long = both(matrices, norm)[2].value
    assert quick == pytest.approx(long, rel=0.04)


def test_trained_networks_gain_much(digits_net):
    bounds = lipschitz_bounds(digits_net, "l2")
    assert bounds.lower <= bounds.ellipsoid_tuned <= 0.99 * bounds.ellipsoid
    assert bounds.winner == bounds.certified_winner == "ellipsoid_tuned"
    assert bounds.ellipsoid_tuned <= bounds.certified <= bounds.ellipsoid_tuned * (1 + 1e-7)
    assert lipschitz_bounds(digits_net, "l2", tune=False).ellipsoid_tuned == bounds.ellipsoid


def test_local_bounds_gain_too(digits_net):
    row = torch.full((1, 64), 0.4, dtype=torch.float64)
    plain, tuned_too = (local_lipschitz(digits_net, row, 0.1, tune=tune)[0] for tune in (False, True))
    assert tuned_too.lower <= tuned_too.upper <= plain.upper * (1 + 1e-12)
    assert tuned_too.upper < plain.upper or plain.winner != "ellipsoid"


@pytest.fixture(scope="module")
def digits_net():
    """A small net of 64 inputs whose weights have the low rank of trained ones."""
    generator = torch.Generator().manual_seed(0)
    modules = []
    for rows, columns in ((20, 64), (16, 20), (5, 16)):
        layer = nn.Linear(columns, rows, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(
                torch.randn(rows, 3, generator=generator, dtype=torch.float64)
                @ torch.randn(3, columns, generator=generator, dtype=torch.float64)
                + 0.2 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
            )
            layer.bias.normal_(generator=generator)
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1]).eval().requires_grad_(False)


def test_awkward_networks_stay_sound():
    matrices = draw((3, 4, 4, 2), 3)
    matrices[0][1] = 0.0
    matrices[1][:, 2] = 0.0
    matrices[0][3] *= 1e-200
    matrices[1][2] *= 1e-160
    for norm in ("linf", "l1", "l2"):
        chain, _, found = both(matrices, norm)
        assert enumerate_k(matrices, norm) <= chain.unscaled(proved_bound(chain, found))
    deep = [matrix * 0.1 for matrix in draw((4,) * 30)]
    chain, plain, found = both(deep, "linf")
    assert 0.0 < found.value <= plain.value


def test_where_there_is_nothing_to_tune(monkeypatch):
    for matrices in (draw((4, 5, 3)), draw((4, 3)), [torch.zeros(2, 3), torch.ones(2, 2)]):
        assert both(matrices, "linf")[2] is None or matrices[0].shape == (5, 4)
        bounds = lipschitz_bounds(matrices)
        assert bounds.ellipsoid_tuned == bounds.ellipsoid and "ellipsoid_tuned" not in bounds.seconds
    wide = draw((4, 12, 12, 3))
    bounds = lipschitz_bounds(wide)
    assert bounds.ellipsoid_tuned < bounds.ellipsoid
    monkeypatch.setattr(tuning, "LARGEST_WORK", 1e4)
    bounds = lipschitz_bounds(wide)
    assert bounds.ellipsoid_tuned == bounds.ellipsoid


def test_the_rest_of_the_rows_keep_their_bounds_where_work_runs_out(monkeypatch):
    matrices = draw((4, 12, 12, 6))
    chain, plain, full = both(matrices, "linf")
    work = tuning._STEP_COST * tuning.recursion_work(chain)
    monkeypatch.setattr(tuning, "LARGEST_WORK", work * (tuning.STEPS + 10))
    found = tuned(chain, plain)
    assert full.value <= found.value <= plain.value * (1 + 1e-12)
    assert proved_bound(chain, found) >= found.value * (1 - 1e-13)
