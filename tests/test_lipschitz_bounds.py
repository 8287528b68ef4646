"""All bounds against enumeration, against their literal definitions, and on input that must be refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lipschitz_references import draw, enumerate_k, literal_subset_sums, norm_of
from torch import nn

import poisonaudit
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.lipschitz import UPPER_BOUNDS, lipschitz_bounds
from poisonaudit.lipschitz.dense_graph import graph_of
from poisonaudit.lipschitz.lower import attained_norms
from poisonaudit.lipschitz.network import read_network

TOLERANCE = 1 + 1e-10


SHAPES = [(3, 4), (4, 5, 3), (2, 6, 1), (3, 4, 3, 2), (5, 3, 4, 4), (2, 3, 3, 3, 2), (1, 2, 3, 3, 2, 2)]


def check_order(bounds, k):
    assert bounds.lower <= k * TOLERANCE
    assert bounds.exact == pytest.approx(k, rel=1e-12)
    assert k <= bounds.k6 * TOLERANCE
    assert bounds.k6 <= bounds.k5 * TOLERANCE
    assert bounds.k5 <= bounds.k4 * TOLERANCE
    assert bounds.k4 <= min(bounds.k1, bounds.k3) * TOLERANCE
    assert max(bounds.k1, bounds.k3) <= bounds.k_star * TOLERANCE
    assert k <= bounds.k2 * TOLERANCE
    assert k <= bounds.ellipsoid * TOLERANCE
    assert k <= bounds.certified
    assert bounds.best <= bounds.certified <= bounds.exact * (1 + 1e-11)
    assert bounds.certified_winner in UPPER_BOUNDS
    assert bounds.best == min(getattr(bounds, name) for name in UPPER_BOUNDS)
    assert bounds.best == getattr(bounds, bounds.winner)


@pytest.mark.parametrize("norm", ("linf", "l1"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bounds_hold_and_are_ordered_on_enumerated_nets(shape, norm):
    for seed, sparse in ((0, False), (1, True)):
        matrices = draw(shape, seed, sparse)
        bounds = lipschitz_bounds(matrices, norm)
        check_order(bounds, enumerate_k(matrices, norm))
        k1, k4 = literal_subset_sums(matrices, norm)
        assert bounds.k1 == pytest.approx(k1, rel=1e-12)
        assert bounds.k4 == pytest.approx(k4, rel=1e-12)
        assert bounds.norm == norm


@pytest.mark.soak
@pytest.mark.parametrize("norm", ("linf", "l1"))
def test_bounds_hold_on_many_enumerated_nets(norm):
    generator = torch.Generator().manual_seed(7)
    for seed in range(300):
        shape = torch.randint(1, 6, (seed % 4 + 2,), generator=generator).tolist()
        matrices = draw(shape, seed, sparse=seed % 3 == 0)
        k = enumerate_k(matrices, norm)
        if k > 0:
            check_order(lipschitz_bounds(matrices, norm), k)


def test_the_lower_bound_reaches_most_of_the_constant():
    ratios = []
    for seed in range(8):
        matrices = draw((4, 6, 5, 2), seed)
        ratios.append(lipschitz_bounds(matrices).lower / enumerate_k(matrices, "linf"))
    assert max(ratios) <= TOLERANCE
    assert sum(ratios) / len(ratios) > 0.85


def test_one_linear_layer_is_exact_everywhere():
    layer = nn.Linear(3, 2, dtype=torch.float64)
    for norm in ("linf", "l1"):
        bounds = lipschitz_bounds(layer, norm)
        exact = norm_of(layer.weight.detach(), norm)
        for name in (*UPPER_BOUNDS, "lower", "best", "certified"):
            assert getattr(bounds, name) == pytest.approx(exact, rel=1e-11), name
        assert bounds.hidden_layers == 0


def test_zero_and_dead_networks_have_bound_zero():
    dead = draw((3, 4, 4, 2))
    dead[0][:2] = 0.0  # neurons 0 and 1 hear nothing, and only they are listened to
    dead[1][:, 2:] = 0.0
    for matrices in ([torch.zeros(2, 3)], [torch.zeros(4, 3), torch.ones(2, 4)], dead):
        bounds = lipschitz_bounds(matrices)
        for name in (*UPPER_BOUNDS, "lower", "best", "certified"):
            if name in {"k_star", "k1"} and matrices is dead:  # these do not see the pattern
                assert getattr(bounds, name) >= 0.0
            else:
                assert getattr(bounds, name) == 0.0, name


def test_a_partly_dead_network_is_still_searched():
    matrices = draw((3, 4, 2))
    matrices[0][1] = 0.0  # always exactly on its kink, and constant: the other neurons still count
    bounds = lipschitz_bounds(matrices)
    check_order(bounds, enumerate_k(matrices, "linf"))
    assert bounds.lower > 0.5 * enumerate_k(matrices, "linf")


def smooth_net(activation, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 3))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    return model.double().eval()


@pytest.mark.parametrize("norm", ("linf", "l1"))
@pytest.mark.parametrize(("activation", "steepest"), [(nn.ReLU, 1.0), (nn.Tanh, 1.0), (nn.Sigmoid, 0.25)], ids=str)
def test_activations_use_their_own_slopes(activation, steepest, norm):
    model = smooth_net(activation)
    bounds = lipschitz_bounds(model, norm, x=torch.zeros(3, 1, 2, 3))
    matrices = [model[i].weight.detach() for i in (1, 3, 5)]
    check_order(bounds, enumerate_k(matrices, norm, high=steepest))
    product = math.prod(norm_of(matrix, norm) for matrix in matrices)
    assert bounds.k_star == pytest.approx(product * steepest**2, rel=1e-13)
    assert bounds.lower > 0.3 * enumerate_k(matrices, norm, high=steepest) * (1.0 if steepest == 1.0 else 0.1)


@pytest.mark.parametrize("activation", (nn.ReLU, nn.Tanh, nn.Sigmoid))
@pytest.mark.parametrize("norm", ("linf", "l1"))
def test_scores_are_norms_of_the_true_jacobian(activation, norm):
    model = smooth_net(activation, seed=4)
    graph = graph_of(read_network(model))
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = attained_norms(graph, norm, x)
    for point, value in zip(x, found, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda row: model(row[None])[0], point)
        assert float(value) == pytest.approx(norm_of(jacobian, norm), rel=1e-12)


def test_points_on_a_kink_do_not_count():
    # |x| written with two ReLUs, then halved on one side: gate (1, 1) at 0 would give 1.5, which no point attains.
    matrices = [torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, -0.5]])]
    graph = graph_of(read_network(matrices))
    values = attained_norms(graph, "linf", torch.tensor([[0.0], [1.0], [-1.0]], dtype=torch.float64))
    assert values.tolist()[0] == -1.0
    assert values[1:].tolist() == [1.0, 0.5]
    assert lipschitz_bounds(matrices, x=[[0.0]]).lower == 1.0
    assert lipschitz_bounds(matrices).k4 == 1.5


def test_modules_without_gaps_and_with_gaps_agree():
    a, b, c = (nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 2))
    relu = nn.ReLU()
    plain = nn.Sequential(a, relu, b, relu, c)  # one module used twice
    nested = nn.Sequential(nn.Flatten(), nn.Sequential(a, nn.ReLU()), nn.Identity(), nn.Sequential(b, nn.ReLU(), c))
    first, second = lipschitz_bounds(plain), lipschitz_bounds(nested)
    matrices = lipschitz_bounds([layer.weight.detach().numpy() for layer in (a, b, c)])
    for name in (*UPPER_BOUNDS, "certified"):
        assert getattr(first, name) == getattr(second, name) == getattr(matrices, name)
    assert first.hidden_layers == 2


def test_layers_that_follow_each_other_directly():
    a, b, c = draw((4, 5, 3, 2))
    layers = [nn.Linear(*matrix.T.shape, bias=False, dtype=torch.float64) for matrix in (a, b, c)]
    for layer, matrix in zip(layers, (a, b, c), strict=True):
        layer.weight.data.copy_(matrix)
    model = nn.Sequential(layers[0], layers[1], nn.ReLU(), layers[2], nn.Tanh())
    bounds = lipschitz_bounds(model)
    merged = lipschitz_bounds([b @ a, c])
    # The outer Tanh has slope 1 at 0: the same constant, an interval [0, 1] instead of the point 1.
    assert enumerate_k([b @ a, c], "linf") <= bounds.k5 * TOLERANCE
    assert bounds.k5 == pytest.approx(merged.k5, rel=0.5)
    linear = lipschitz_bounds(nn.Sequential(layers[0], layers[1]))
    assert linear.k5 == pytest.approx(norm_of(b @ a, "linf"), rel=1e-12)
    assert linear.certified >= linear.best
    leading = lipschitz_bounds(nn.Sequential(nn.ReLU(), layers[0]))
    assert leading.k3 == pytest.approx(norm_of(a, "linf"), rel=1e-12)
    assert leading.lower <= leading.k5 * TOLERANCE


def test_deep_networks_are_finite():
    for seed, width in ((0, 8), (1, 16)):
        matrices = [matrix / width**0.5 for matrix in draw((width,) * 62, seed)]
        bounds = lipschitz_bounds(matrices)
        assert bounds.hidden_layers == 60
        assert bounds.k4 is None
        for name in ("k_star", "k1", "k3", "k5", "ellipsoid", "certified"):
            assert math.isfinite(getattr(bounds, name))
        assert 0.0 < bounds.lower <= bounds.k6 <= bounds.k5 <= bounds.k1 <= bounds.k_star
        assert bounds.lower <= bounds.ellipsoid_tuned <= min(bounds.ellipsoid, bounds.certified)
        assert bounds.exact is None
        assert bounds.seconds["k5"] < 0.5  # 0.03 on the machine it was written on
        assert set(bounds.seconds) == {*UPPER_BOUNDS, "lower", "certified"}


@pytest.mark.parametrize("norm", ("linf", "l1"))
def test_layers_without_activation_do_not_count_for_k4(norm):
    pairs = [draw((3, 3, 3), seed) for seed in range(9)]
    layers = []
    for first, second in pairs:
        for matrix in (first, second):
            layers.append(nn.Linear(3, 3, bias=False, dtype=torch.float64))
            layers[-1].weight = nn.Parameter(matrix)
        layers.append(nn.ReLU())
    found = lipschitz_bounds(nn.Sequential(*layers[:-1]), norm)
    merged = lipschitz_bounds([second @ first for first, second in pairs], norm)
    # 17 hidden layers, 8 of them with slopes to choose.
    assert found.hidden_layers == 8
    assert found.k4 == pytest.approx(merged.k4, rel=1e-12)


def test_wide_layers_have_no_k2_and_deep_ones_no_k4():
    assert lipschitz_bounds(draw((2, 17, 1))).k2 is None
    assert lipschitz_bounds(draw((2, 16, 1))).k2 is not None
    assert lipschitz_bounds(draw((2,) * 14)).k4 is not None
    assert lipschitz_bounds(draw((2,) * 15)).k4 is None


def test_rows_may_share_one_ellipsoid(monkeypatch):
    matrices = draw((4, 5, 4, 3))
    monkeypatch.setattr("poisonaudit.lipschitz.ellipsoid.ROWWISE_WORK", 0.0)
    shared = lipschitz_bounds(matrices)
    assert shared.ellipsoid >= enumerate_k(matrices, "linf")
    monkeypatch.setattr("poisonaudit.lipschitz.ellipsoid.LARGEST_WORK", 0.0)
    assert lipschitz_bounds(matrices).ellipsoid is None


def test_public_name_and_repeatability():
    matrices = draw((5, 6, 4, 2))
    first = poisonaudit.lipschitz_bounds(matrices, seed=3)
    second = poisonaudit.lipschitz_bounds(matrices, seed=3)
    state = torch.get_rng_state()
    third = poisonaudit.lipschitz_bounds(matrices, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert (first.lower, first.best) == (second.lower, second.best)
    assert third.best == first.best


def test_data_points_are_looked_at():
    # A spike far from where random points fall: relu(x - 1000) is only seen at the data.
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (1.0, -1000.0, 5.0, 0.0), strict=True):
            parameter.fill_(value)
    assert lipschitz_bounds(model).lower == 0.0
    assert lipschitz_bounds(model, x=np.array([[2000.0]])).lower == 5.0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(1e-3, 1e3), layer=st.integers(0, 2))
def test_bounds_are_positively_homogeneous_in_each_layer(seed, factor, layer):
    matrices = draw((3, 4, 3, 2), seed)
    plain = lipschitz_bounds(matrices)
    matrices[layer] = factor * matrices[layer]
    scaled = lipschitz_bounds(matrices)
    for name in (*UPPER_BOUNDS, "certified", "lower"):
        assert getattr(scaled, name) == pytest.approx(factor * getattr(plain, name), rel=1e-9), name


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(5)), norm=st.sampled_from(("linf", "l1")))
def test_bounds_do_not_depend_on_the_order_of_neurons(seed, order, norm):
    matrices = draw((3, 5, 5, 2), seed)
    plain = lipschitz_bounds(matrices, norm)
    permuted = [matrices[0][order], matrices[1][:, order], matrices[2]]
    moved = lipschitz_bounds(permuted, norm)
    for name in (*UPPER_BOUNDS, "certified"):
        assert getattr(moved, name) == pytest.approx(getattr(plain, name), rel=1e-9), name


class OwnForward(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda module, inputs, output: 3 * output)
    return model


def test_a_forward_of_its_own_is_traced():
    model = OwnForward(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    plain = nn.Sequential(*model)
    for name in ("k3", "k4", "k5", "certified"):
        assert getattr(lipschitz_bounds(model), name) == pytest.approx(2 * getattr(lipschitz_bounds(plain), name))


def test_networks_without_an_input_shape_ask_for_it():
    for model in (nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten()), nn.Sequential(nn.ReLU())):
        with pytest.raises(UsageError, match="PA304 the shape of an input is not known"):
            lipschitz_bounds(model)
    assert lipschitz_bounds(nn.ReLU(), input_shape=(3,)).best == 1.0
    assert lipschitz_bounds(nn.ReLU(), x=torch.ones(2, 3)).lower == 1.0


REFUSED = {
    "Softmax": nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)),
    "Hardshrink": nn.Sequential(nn.Linear(2, 2), nn.Hardshrink(), nn.Linear(2, 1)),
    "layer 1.0 (BatchNorm1d)": nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2))),
    "hooks": hooked(),
    "no values yet": nn.Sequential(nn.Linear(2, 2, device="meta")),
    "mixes rows": nn.Sequential(nn.Flatten(0), nn.Linear(2, 2)),
    "takes 3 inputs": nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(3, 1)),
    "W_1 takes 2 inputs, W_0 gives 3": [torch.ones(3, 2), torch.ones(3, 2)],
    "W_0 holds NaN": [torch.tensor([[1.0, math.nan]])],
    "W_1 holds NaN or infinity": [torch.ones(1, 1), torch.tensor([[math.inf]])],
    "shape (2,)": [torch.ones(2)],
    "shape (0, 2)": [torch.ones(0, 2)],
    "complex": [torch.ones(1, 1, dtype=torch.complex128)],
    "not a matrix of numbers": [[[1.0, 2.0], [3.0]]],
    "W_0 is not": ["weights"],
    "got Tensor": torch.ones(2, 2),
    "got str": "model.pt",
    "there is nothing": [],
}


@pytest.mark.parametrize("text", REFUSED)
def test_networks_without_a_proof_are_refused_by_name(text):
    with pytest.raises(InputRefused) as caught:
        lipschitz_bounds(REFUSED[text])
    assert caught.value.code == "PA130"
    assert text.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(3), torch.zeros(0, 2), torch.zeros(4, 3), [[math.nan, 0.0]], [["a", "b"]], torch.zeros(2, 2) * 1j],
    ids=["one row", "no rows", "wrong width", "nan", "text", "complex"],
)
def test_points_that_do_not_fit_are_refused(x):
    with pytest.raises(InputRefused, match="PA230"):
        lipschitz_bounds([torch.ones(3, 2), torch.ones(1, 3)], x=x)


def test_unknown_norm_and_seed_are_usage_errors():
    with pytest.raises(UsageError, match="PA301 unknown norm 'l_inf'.*'linf'"):
        lipschitz_bounds([torch.ones(1, 1)], "l_inf")
    with pytest.raises(UsageError, match="PA303"):
        lipschitz_bounds([torch.ones(1, 1)], seed=0.5)


def test_python_numbers_are_read_in_full_precision():
    assert lipschitz_bounds([[[0.1]]]).k5 == 0.1
    assert lipschitz_bounds([[[1], [2], [-2]], [[1, 0.25, 0.25]]]).k5 == 1.5
