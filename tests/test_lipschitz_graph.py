"""Bounds of graphs: against enumeration of all slopes, against matrices, and with every way of sharing work."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from lipschitz_references import exact_k5
from torch import nn
from torch.nn import functional

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.lipschitz import graph_bounds, lipschitz_bounds, pushing
from poisonaudit.lipschitz.all_bounds import dense_bounds
from poisonaudit.lipschitz.all_bounds import graph_bounds as graph_bounds_of
from poisonaudit.lipschitz.dense_graph import network_of
from poisonaudit.lipschitz.graph import global_slopes
from poisonaudit.lipschitz.graph_rounding import certified_rows
from poisonaudit.lipschitz.jacobians import induced_norms, jacobian_rows
from poisonaudit.lipschitz.lower import attained_norm, attained_norms
from poisonaudit.lipschitz.pushing import centre_images, pushing_plan, row_bounds
from poisonaudit.lipschitz.reading import read_graph
from poisonaudit.lipschitz.stages import split_at, staged, summed_bound
from poisonaudit.models import build_model

TOLERANCE = 1 + 1e-10


class Dense(nn.Module):
    shape = (3,)
    chain = True

    def __init__(self, activation=nn.ReLU):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 4), activation(), nn.BatchNorm1d(4), nn.Linear(4, 3), activation(), nn.Linear(3, 2)
        )

    def forward(self, x):
        return self.net(x)


class Conv(nn.Module):
    shape = (2, 4, 4)
    chain = True

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 2, 2, stride=2, groups=2)
        self.norm = nn.BatchNorm2d(2)
        self.second = nn.Conv2d(2, 2, 2, padding=1, dilation=2)
        self.last = nn.Linear(2, 2)

    def forward(self, x):
        hidden = functional.relu(self.norm(self.first(x)))
        hidden = functional.leaky_relu(self.second(hidden), 0.1)
        return self.last(functional.adaptive_avg_pool2d(hidden, 1).flatten(1))


class Residual(nn.Module):
    shape = (1, 3, 3)
    chain = False

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 1, 2)
        self.inner = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        hidden = torch.relu(self.first(x * 0.5 - 0.1))
        hidden = torch.relu(hidden + self.inner(torch.tanh(hidden)))
        return self.last(hidden.view(hidden.size(0), -1)) / 2


class Joined(nn.Module):
    shape = (4,)
    chain = False

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(10, 2)

    def forward(self, x):
        return self.last(torch.cat([torch.relu(self.first(x)), nn.functional.silu(self.second(x)), x], dim=1))


class Pooled(nn.Module):
    shape = (1, 4, 4)
    chain = True

    def __init__(self, explicit=False):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 1, 2, padding=0), nn.Linear(4, 2)
        self.pool = nn.MaxPool2d(2, stride=1)

    def forward(self, x):
        return self.last(self.pool(torch.relu(self.first(x))).flatten(1))


NETS = {
    "dense": Dense,
    "dense with tanh": lambda: Dense(nn.Tanh),
    "dense with GELU": lambda: Dense(nn.GELU),
    "dense with hardtanh": lambda: Dense(nn.Hardtanh),
    "convolutions": Conv,
    "residual": Residual,
    "concatenation": Joined,
    "max pooling": Pooled,
}


def made(name, seed):
    torch.manual_seed(seed)
    model = NETS[name]()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.normal_(part.running_mean)
            nn.init.normal_(part.weight)
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.normal_(part.weight)
    return model.double().eval()


def enumerated(graph, norm):
    """K: the largest norm over slopes at the ends of their intervals and over all selections of max pooling."""
    places = graph.activations()
    sizes = [graph.nodes[place].size for place in places]
    gates = torch.tensor(list(itertools.product((0.0, 1.0), repeat=sum(sizes))), dtype=torch.float64)
    slopes = {}
    for place, part in zip(places, gates.split(sizes, 1), strict=True):
        lower, upper = graph.nodes[place].activation.ends(graph.nodes[place].shape)
        slopes[place] = lower + (upper - lower) * part.reshape(-1, *graph.nodes[place].shape)
    windows = [place for place, node in enumerate(graph.nodes) if node.window is not None]
    best = 0.0
    for chosen in selections(graph, windows):
        many = {place: where.expand(len(gates), *where.shape[1:]) for place, where in chosen.items()}
        best = max(best, float(induced_norms(jacobian_rows(graph, slopes, many, len(gates)), norm).max()))
    return best


def selections(graph, windows):
    """Every choice of one entry per window."""
    if not windows:
        yield {}
        return
    (place,) = windows
    node = graph.nodes[place]
    numbers = torch.arange(math.prod(node.shape[1:])).reshape(1, 1, *node.shape[1:]).double()
    options = node.window.patches(numbers, -1.0)[0, 0].long()
    out = options.shape[1:]
    for picks in itertools.product(range(options.shape[0]), repeat=math.prod(out)):
        where = options.flatten(1)[torch.tensor(picks), torch.arange(len(picks))]
        yield {place: where.reshape(1, 1, *out)}


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("name", NETS)
def test_bounds_hold_and_are_ordered_on_enumerated_nets(name, norm):
    for seed in range(3):
        check(made(name, seed), norm)


@pytest.mark.soak
@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("name", NETS)
def test_bounds_hold_on_many_enumerated_nets(name, norm):
    for seed in range(130):
        check(made(name, 1000 + seed), norm)


def check(model, norm):
    graph = read_graph(model, model.shape)
    k = enumerated(graph, norm)
    stages = staged(graph, norm, 1e12)
    rows, sound = certified_rows(stages)
    k5, certified = float(rows.max()), float(sound.max())
    k1, k3, k4 = (
        graph_bounds.subset_norms(stages),
        graph_bounds.absolute_bound(stages),
        graph_bounds.subset_columns(stages),
    )
    lower = attained_norm(graph, norm, None, 0, search_work=1e5)
    # Dead where the few points of this search lie, some nets show nothing.
    assert 0 <= lower <= k * TOLERANCE
    assert k <= certified
    assert k <= k5 * TOLERANCE
    assert k5 <= certified <= k5 * (1 + 1e-10)
    assert k5 <= min(k4, k3) * TOLERANCE
    assert k4 <= k1 * TOLERANCE
    assert k1 <= graph_bounds.product_of_norms(stages) * TOLERANCE
    if model.chain:
        assert k4 <= k3 * TOLERANCE
    for cut in graph.cuts():
        if graph.nodes[cut].window is None and not any(node.window for node in graph.nodes):
            restarted = summed_bound(split_at(graph, global_slopes(graph), [cut], norm))
            assert k5 <= float(restarted.max()) * TOLERANCE


@pytest.mark.parametrize("name", NETS)
def test_the_graph_computes_what_the_model_does(name):
    model = made(name, 5)
    x = torch.randn(6, *model.shape, dtype=torch.float64)
    graph = read_graph(model, model.shape)
    assert torch.allclose(graph.values(x)[-1], model(x), rtol=1e-12, atol=1e-12)
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda row: model(row[None])[0], row) for row in x])
    wanted = induced_norms(jacobians, "linf")
    found = attained_norms(graph, "linf", x)
    assert torch.allclose(found, wanted, rtol=1e-10)


@pytest.mark.parametrize("spec", ["lenet", "resnet20", "mlp:64-32-10?activation=gelu"])
def test_models_of_the_catalogue_are_read(spec):
    shape = (1, 8, 8) if spec != "lenet" else (1, 28, 28)
    model = build_model(spec, input_shape=shape, outputs=10).double().eval()
    x = torch.rand(2, *shape, dtype=torch.float64)
    assert torch.allclose(read_graph(model, shape).values(x)[-1], model(x), rtol=1e-9, atol=1e-12)


def test_torchvision_models_are_read():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(weights=None, num_classes=3).double().eval()
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    graph = read_graph(model, (3, 32, 32))
    assert torch.allclose(graph.values(x)[-1], model(x), rtol=1e-9, atol=1e-12)
    assert any(node.window is not None for node in graph.nodes)


def literal_rows(graph, slopes, weights):
    """Row bounds with every column on its own, written down from the definition."""
    totals = {place: torch.zeros(graph.nodes[place].size) for place in [*graph.activations(), graph.output]}
    totals = {place: value.double() for place, value in totals.items()}
    for source in [0, *graph.activations()]:
        shape = graph.nodes[source].shape
        scale = weights if source == 0 else slopes.radius[source].expand(shape) * totals[source].reshape(shape)
        columns = torch.diag(scale.reshape(-1)).reshape(-1, *shape)
        for place, images in centre_images(graph, slopes, source, columns):
            totals[place] = totals[place] + images.abs().flatten(1).sum(0)
    return totals


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.third = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Linear(36, 3)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        hidden = torch.relu(hidden + self.second(torch.tanh(hidden)))
        return self.last(self.pool(torch.relu(self.third(hidden))).flatten(1))


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("rows_kept", [0, 2**26])
@pytest.mark.parametrize("chunk", [2**8, 2**24])
def test_sharing_passes_and_reading_backwards_change_nothing(backwards, rows_kept, chunk, monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setattr(pushing, "ROWS_ENTRIES", rows_kept)
    monkeypatch.setattr(pushing, "CHUNK_ENTRIES", chunk)
    graph = read_graph(Pictures().eval(), (2, 12, 12))
    graph = graph.reversed() if backwards else graph
    slopes = global_slopes(graph)
    weights = torch.rand(graph.nodes[0].shape, dtype=torch.float64)
    weights[(0,) * weights.dim()] = 0.0
    found, wanted = row_bounds(graph, slopes, weights), literal_rows(graph, slopes, weights)
    for place, value in wanted.items():
        assert torch.allclose(found[place].reshape(-1), value, rtol=1e-12)
    plan = pushing_plan(graph)
    if not rows_kept:
        assert not plan.pulled
    elif not backwards:
        assert plan.pulled
        # 5 x 5 colours at the distance of two convolutions instead of 144 positions.
        assert any(plan.spacing.values()) and plan.work.columns < sum(graph.nodes[p].size for p in (0, 1, 2, 4))


def test_a_limit_of_work_brings_restarts_and_looser_bounds():
    torch.manual_seed(0)
    model = build_model("resnet20", input_shape=(1, 8, 8), outputs=4).eval()
    graph = read_graph(model, (1, 8, 8))
    full = staged(graph, "linf", 1e12)
    assert full.restarts == () and len(full.graphs) == 1
    bounds, works, restarts = [float(summed_bound(full).max())], [full.work], [0]
    cheapest = staged(graph, "linf", 1.0)
    for limit in ((full.work * cheapest.work) ** 0.5, cheapest.work):
        stages = staged(graph, "linf", limit)
        assert stages.work <= limit
        bounds.append(float(summed_bound(stages).max()))
        works.append(stages.work)
        restarts.append(len(stages.restarts))
    assert restarts[0] < restarts[1] < restarts[2]
    assert bounds[0] < bounds[1] < bounds[2]
    assert works[-1] == cheapest.work


def test_max_pooling_implicitly_and_explicitly():
    torch.manual_seed(2)

    layers = (
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip
    model = nn.Sequential(*layers).double().eval()
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    found = {}
    for explicit in (False, True):
        graph = read_graph(model, (1, 8, 8), explicit_pooling=explicit)
        assert torch.allclose(graph.values(x)[-1], model(x), rtol=1e-12, atol=1e-12)
        for norm in ("linf", "l1"):
            stages = staged(graph, norm, 1e12)
            found[explicit, norm] = float(summed_bound(stages).max())
            assert attained_norm(graph, norm, x, 0, search_work=1e6) <= found[explicit, norm]
    assert found[True, "linf"] > 3 * found[False, "linf"]


def test_explicit_pooling_of_entries_of_either_sign():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(2, 2)).double().eval()
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    graph = read_graph(model, (1, 4, 4), explicit_pooling=True)
    assert torch.allclose(graph.values(x)[-1], model(x), rtol=1e-12, atol=1e-12)
    padded = nn.Sequential(nn.Conv2d(1, 2, 2), nn.MaxPool2d(3, padding=1), nn.Flatten(), nn.Linear(2, 2)).eval()
    with pytest.raises(InputRefused, match=r"PA130 max pooling 1 pads .*negative"):
        read_graph(padded, (1, 4, 4), explicit_pooling=True)


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


class Squared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x * x)


class BesidePool(nn.Module):
    def forward(self, x):
        return (functional.max_pool2d(x, 3, 1, 1) + x).flatten(1)


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 2))

    def forward(self, x):
        return self.weight * 2


def nan_weights():
    model = nn.Sequential(nn.Linear(4, 2))
    nn.init.constant_(model[0].weight, math.nan)
    return model


def hooked():
    model = nn.Sequential(nn.Conv2d(1, 1, 2), nn.Flatten())
    model[0].register_forward_hook(lambda module, inputs, output: 3 * output)
    return model


REFUSED = {
    "layer 1 (Softmax)": (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), (4,)),
    "layer 0 (BatchNorm2d) is in train mode": (nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()).train(), (1, 2, 2)),
    "cannot be traced": (Branching(), (4,)),
    "more than one input": (TwoInputs(), (4,)),
    "mul of several tensors": (Squared(), (4,)),
    "holds NaN": (nan_weights(), (4,)),
    "has hooks": (hooked(), (1, 2, 2)),
    "takes 4 inputs, gets rows of shape (3,)": (nn.Sequential(nn.Linear(4, 2)), (3,)),
    "pads by 'reflect'": (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")), (1, 4, 4)),
    "output is not one tensor that depends on the input": (Constant(), (4,)),
    "layer 0 (LayerNorm) has no proved bound": (nn.Sequential(nn.LayerNorm(4)), (4,)),
    "layer 0 (LSTM)": (nn.Sequential(nn.LSTM(4, 2)), (4,)),
    "no values yet": (nn.Sequential(nn.LazyLinear(2)), (4,)),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_no_bound_is_proved_for_is_refused_by_name(text):
    model, shape = REFUSED[text]
    with pytest.raises(InputRefused) as caught:
        read_graph(model if "train" in text else model.eval(), shape)
    assert caught.value.code == "PA130"
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_max_pooling_beside_a_path_is_refused_as_a_selection():
    graph = read_graph(BesidePool().eval(), (1, 4, 4))
    with pytest.raises(InputRefused, match="path beside it"):
        staged(graph, "linf", 1e9)


def plain_net(seed):
    """Convolutions, a skip-free chain without normalisation: its matrices are its weights, unrounded."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.LeakyReLU(0.25), nn.Conv2d(2, 2, 2, padding=1, stride=2), nn.LeakyReLU(0.25),
        nn.Flatten(), nn.Linear(8, 3), nn.LeakyReLU(0.25), nn.Linear(3, 2),
    )  # fmt: skip
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.normal_(part.weight)
    return model.double().eval()


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_certified_bounds_of_graphs_are_never_below_exact_rational_ones(norm):
    below = 0
    for seed in range(12):
        graph = read_graph(plain_net(seed), (1, 3, 3))
        exact = exact_k5(network_of(graph).weights, norm, low=0.25)
        rows, sound = certified_rows(staged(graph, norm, 1e12))
        assert Fraction(float(sound.max())) >= exact
        assert float(sound.max()) <= float(exact) * (1 + 1e-11)
        below += Fraction(float(rows.max())) < exact
    assert below > 0


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_the_graph_form_equals_the_dense_form(norm):
    for seed in range(4):
        for model, shape in ((plain_net(seed), (1, 3, 3)), (made("convolutions", seed), Conv.shape)):
            graph = read_graph(model, shape)
            dense, passes = dense_bounds(network_of(graph), norm), graph_bounds_of(graph, norm, 1e12)
            assert passes.upper["k5"] == pytest.approx(dense.upper["k5"], rel=1e-12)
            if model.__class__ is nn.Sequential:
                for name in ("k_star", "k1", "k3", "k4"):
                    assert passes.upper[name] == pytest.approx(dense.upper[name], rel=1e-12), name
            assert passes.certified >= dense.upper["k6"]


def test_small_chains_get_every_bound_and_large_graphs_those_by_passes():
    small = lipschitz_bounds(plain_net(0), x=torch.zeros(1, 1, 3, 3))
    assert small.k6 is not None and small.ellipsoid is not None and small.exact is None and small.restarts == ()
    for norm in ("linf", "l1", "l2"):
        found = lipschitz_bounds(plain_net(0), norm, input_shape=(1, 3, 3))
        assert 0 < found.lower <= found.certified
    residual = made("residual", 1)
    found = lipschitz_bounds(residual, input_shape=residual.shape)
    assert (found.k6, found.ellipsoid, found.exact, found.k2) == (None, None, None, None)
    assert found.lower <= found.k5 <= found.certified
    assert found.certified_winner == "k5" and found.hidden_layers == 3
    with pytest.raises(InputRefused, match="In l_2 bounds need its matrices"):
        lipschitz_bounds(residual, "l2", input_shape=residual.shape)
    with pytest.raises(UsageError, match="PA301 unknown form of max pooling"):
        lipschitz_bounds(residual, input_shape=residual.shape, max_pool="both")
    with pytest.raises(UsageError, match="PA304 work_limit"):
        lipschitz_bounds(residual, input_shape=residual.shape, work_limit=0)
