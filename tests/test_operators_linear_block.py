"""The largest Linear layer's block of H in closed form against one product a weight; where it must not be used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from poisonaudit import Problem
from poisonaudit.operators import dense_hessian, linearise
from poisonaudit.operators import linear_block as module
from poisonaudit.operators.linear_block import find_largest_linear, linear_block


class Beside(nn.Module):
    """Two branches, and a residual path around them."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.out = nn.Linear(6, 5), nn.Linear(6, 3, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.cat([self.wide(x).tanh(), self.narrow(x)], dim=1)
        return self.out(inner) + x[:, :3] * self.narrow(x)


class Hidden(nn.Module):
    """Uses its Linear layer's weights without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.inner.weight, self.inner.bias).tanh()


class Tokens(nn.Module):
    """Its first layer sees three lines a row."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        lines = x.repeat(1, 2).reshape(-1, 4)
        return self.out(self.inner(lines).tanh().reshape(len(x), 3, 9).mean(1))


class Doubled(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x) + super().forward(x.flip(1)).tanh()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 3),
    "linear without bias": lambda: nn.Linear(6, 3, bias=False),
    "tanh": lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
    "deep gelu": lambda: nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 3)),
    "relu": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
    "two heads": lambda: Beside(),
    "hidden": lambda: Hidden(),
    "tokens": lambda: Tokens(),
    "subclass": lambda: Doubled(6, 3),
    "after a convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    ),
}


def problem_of(name: str, loss: str) -> Problem:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    x = torch.randn(17, 6, dtype=torch.float64)
    y = torch.randint(3, (17,)) if loss == "cross_entropy" else torch.randn(17, 3, dtype=torch.float64)
    return Problem(model, loss, x, y, 0.01)


@pytest.mark.parametrize("loss", ["cross_entropy", "half_squared"])
@pytest.mark.parametrize("name", MODELS)
def test_the_matrix_is_that_of_products_and_of_autograd(name: str, loss: str) -> None:
    problem = problem_of(name, loss)
    matrix = dense_hessian(problem)
    products = linearise(problem).hessian(torch.eye(problem.size, dtype=torch.float64))
    torch.testing.assert_close(matrix, products, rtol=1e-10, atol=1e-12)
    exact = torch.autograd.functional.hessian(lambda w: problem.objective(w), problem.weights)
    torch.testing.assert_close(matrix, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "found"),
    [("linear", ""), ("tanh", "0"), ("two heads", "wide"), ("hidden", None), ("tokens", "out"), ("subclass", None),
     ("after a convolution", "4"), ("deep gelu", "0")],
)  # fmt: skip
def test_the_largest_layer_is_found(name: str, found: str | None) -> None:
    layer = find_largest_linear(problem_of(name, "cross_entropy"))
    assert (None if layer is None else layer.name) == found


def test_the_layer_takes_no_products_of_its_own() -> None:
    problem = problem_of("tanh", "cross_entropy")
    dense_hessian(problem)
    # 5 x (6 + 1) weights of 53 in closed form, for 5 passes; one product checks the whole.
    assert linearise(problem).products == 53 - 35 + 5 + 1


def test_rows_may_be_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of("tanh", "cross_entropy")
    layer = find_largest_linear(problem)
    assert layer is not None
    whole = linear_block(problem, layer)
    monkeypatch.setattr(module, "_ENTRIES", 5 * 7 * 4)
    torch.testing.assert_close(linear_block(problem, layer), whole, rtol=1e-12, atol=1e-14)


def test_a_block_that_products_contradict_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import poisonaudit.operators.dense as dense

    problem = problem_of("tanh", "cross_entropy")
    right = dense_hessian(problem)
    monkeypatch.setattr(dense, "linear_block", lambda p, layer: linear_block(p, layer) * 1.001)
    torch.testing.assert_close(dense_hessian(problem_of("tanh", "cross_entropy")), right, rtol=1e-10, atol=1e-12)


def test_the_module_and_its_hooks_stay_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(1)
    problem = Problem(model, "cross_entropy", torch.randn(9, 6, dtype=torch.float64), torch.randint(3, (9,)), 0.01)
    dense_hessian(problem)
    assert len(model[0]._forward_hooks) == 1
    assert all(parameter.requires_grad for parameter in model.parameters())
