"""Problem: its objective, its refusals, and that nothing is modified in place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import mlp
from torch import nn
from torch.nn.utils import parameters_to_vector

import poisonaudit
from poisonaudit import Problem
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.operators import linearise

X = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def model() -> nn.Sequential:
    return mlp([4, 5, 3])


def test_objective_is_mean_loss_plus_decay_over_all_entries() -> None:
    net = model()
    problem = Problem(net, "cross_entropy", X, Y, decay=0.2)
    weights = parameters_to_vector(net.parameters())
    expected = nn.functional.cross_entropy(net(X), Y) + 0.1 * weights.square().sum()
    assert float(problem.objective()) == pytest.approx(expected.item(), abs=1e-14)
    assert torch.equal(problem.weights, weights.detach())
    expected.backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in net.parameters() if p.grad is not None])
    assert torch.allclose(problem.gradient(), gradient, atol=1e-14)


def test_half_squared_sums_outputs_and_one_hots_labels() -> None:
    net = model()
    target = torch.nn.functional.one_hot(Y, 3).double()
    labelled = Problem(net, "half_squared", X, Y)
    assert float(labelled.objective()) == pytest.approx((0.5 * (net(X) - target).square().sum() / 6).item(), abs=1e-14)
    assert torch.equal(labelled.objective(), Problem(net, "half_squared", X, target).objective())


def test_nothing_is_modified_in_place() -> None:
    net = model().train()  # no dropout or batch norm: the mode does not matter
    before = {name: value.clone() for name, value in net.state_dict().items()}
    problem = Problem(net, "cross_entropy", X, Y)
    moved = problem.at(problem.weights + 1).with_data(X + 1)
    moved.gradient()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert torch.equal(problem.x, X) and torch.equal(moved.x, X + 1)
    assert torch.equal(moved.weights, problem.weights + 1)
    with torch.no_grad():
        net[0].weight.zero_()
    assert torch.equal(problem.at(problem.weights).objective(), Problem(model(), "cross_entropy", X, Y).objective())
    assert torch.equal(parameters_to_vector(moved.module().parameters()), moved.weights)


def trained_with(layer: nn.Module) -> Callable[[], Problem]:
    return lambda: Problem(nn.Sequential(nn.Linear(4, 3).double(), layer.double()), "cross_entropy", X, Y)


class Centred(nn.Module):
    """Every row is seen against the mean of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.layer(x)
        return hidden - hidden.mean(0, keepdim=True)


class Drawing(nn.Module):
    """Draws noise in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.dropout(self.layer(x), 0.5, True)


class Logarithm(nn.Module):
    """Of negative numbers too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()


def used_twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(4, 3)).double()


def partly_frozen() -> nn.Module:
    found = model()
    found[0].requires_grad_(False)
    return found


def without_statistics() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double().eval()


BAD = {
    "rows seen against each other": (lambda: Problem(Centred(), "cross_entropy", X, Y), "PA129"),
    "batch norm without statistics": (lambda: Problem(without_statistics(), "cross_entropy", X, Y), "PA129"),
    "outputs that are no numbers": (
        lambda: Problem(nn.Sequential(model(), Logarithm()), "cross_entropy", X, Y),
        "PA210",
    ),
    "noise in eval mode": (lambda: Problem(Drawing(), "cross_entropy", X, Y), "PA129"),
    "a module used twice": (lambda: Problem(used_twice(), "cross_entropy", X, Y), "PA129"),
    "some parameters frozen": (lambda: Problem(partly_frozen(), "cross_entropy", X, Y), "PA129"),
    "a memory limit that is no number": (lambda: Problem(model(), "cross_entropy", X, Y, memory_limit="1GB"), "PA123"),  # type: ignore[arg-type]
    "a memory limit that is NaN": (lambda: Problem(model(), "cross_entropy", X, Y, memory_limit=float("nan")), "PA123"),  # type: ignore[arg-type]
    "dropout in train mode": (trained_with(nn.Dropout()), "PA120"),
    "batch norm in train mode": (trained_with(nn.BatchNorm1d(3)), "PA120"),
    "mixed dtypes": (lambda: Problem(model(), "cross_entropy", X.float(), Y), "PA121"),
    "integer inputs": (lambda: Problem(model(), "cross_entropy", (X * 9).long(), Y), "PA121"),
    "no parameters": (lambda: Problem(nn.Flatten(), "cross_entropy", X, Y), "PA122"),
    "negative decay": (lambda: Problem(model(), "cross_entropy", X, Y, decay=-1.0), "PA123"),
    "NaN decay": (lambda: Problem(model(), "cross_entropy", X, Y, decay=float("nan")), "PA123"),
    "NaN input": (lambda: Problem(model(), "cross_entropy", X * float("nan"), Y), "PA210"),
    "too few labels": (lambda: Problem(model(), "cross_entropy", X, Y[:3]), "PA211"),
    "float labels": (lambda: Problem(model(), "cross_entropy", X, Y.double()), "PA211"),
    "label out of range": (lambda: Problem(model(), "cross_entropy", X, Y + 1), "PA212"),
    "label out of range, squared": (lambda: Problem(model(), "half_squared", X, Y - 1), "PA212"),
    "targets of another shape": (lambda: Problem(model(), "half_squared", X, X), "PA211"),
    "loss of another shape": (lambda: Problem(model(), lambda o, y: o.sum(), X, Y), "PA211"),
    "weights of another shape": (lambda: Problem(model(), "cross_entropy", X, Y).at(torch.zeros(3)), "PA125"),
    "data of another shape": (lambda: Problem(model(), "cross_entropy", X, Y).with_data(X[:2]), "PA211"),
    "data of another dtype": (lambda: Problem(model(), "cross_entropy", X, Y).with_data(X.float()), "PA121"),
    "no rows": (lambda: Problem(model(), "cross_entropy", X[:0], Y[:0]), "PA211"),
}


@pytest.mark.parametrize("name", BAD)
def test_refusals_are_one_line_with_a_code(name: str) -> None:
    build, code = BAD[name]
    with pytest.raises(InputRefused) as caught:
        build()
    text = str(caught.value)
    assert text.startswith(code + " ") and "\n" not in text and text.endswith(".")


def test_unknown_loss_suggests_the_near_one() -> None:
    with pytest.raises(UsageError, match="PA301.*Did you mean 'cross_entropy'"):
        Problem(model(), "crossentropy", X, Y)


def test_public_names_are_functions_whatever_was_imported_first() -> None:
    import importlib

    importlib.import_module("poisonaudit.audit")
    importlib.import_module("poisonaudit.weight_noise")
    assert callable(poisonaudit.audit) and callable(poisonaudit.weight_noise)
    assert set(poisonaudit.__all__) <= set(dir(poisonaudit))
    with pytest.raises(AttributeError):
        _ = poisonaudit.nothing_of_that_name


def test_all_parameters_frozen_is_a_model_made_ready_for_use() -> None:
    frozen = Problem(model().requires_grad_(False), "cross_entropy", X, Y)
    assert torch.equal(frozen.weights, Problem(model(), "cross_entropy", X, Y).weights)


def test_attention_is_differentiated_twice() -> None:
    """The fused kernels have no second derivative; the sum of the textbook formula has."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
            self.head = nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.layer(x).flatten(1))
            return out

    torch.manual_seed(0)
    x = torch.rand(6, 3, 4, dtype=torch.float64)
    problem = Problem(Encoder().double().eval(), "cross_entropy", x, Y, decay=1e-1)
    kept, v = linearise(problem), torch.randn(problem.size, dtype=torch.float64)
    step = 1e-6
    change = (problem.gradient(problem.weights + step * v) - problem.gradient(problem.weights - step * v)) / (2 * step)
    assert torch.allclose(kept.hessian(v), change, rtol=1e-4, atol=1e-6)
