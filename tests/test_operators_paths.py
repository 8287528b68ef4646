"""The R-operator and double backward against dense float64 derivatives from torch.func, and when each is used."""

from __future__ import annotations

import pytest
import torch
from conftest import mlp
from test_sensitivity_reference import Residual, conv_net, settled
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacfwd, jacrev
from torch.nn import functional

from poisonaudit.errors import UsageError
from poisonaudit.operators import Linearisation, dense_hessian
from poisonaudit.operators.precision import full_precision
from poisonaudit.problem import Problem


class Functional(nn.Module):
    """The same kinds of layers written as functions, with a method or two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, groups=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.conv(x))
        shortcut = functional.pad(x[:, :2, ::2, ::2], (0, 0, 0, 0, 1, 1))
        x = functional.avg_pool2d(torch.tanh(self.grouped(x)), 2) + shortcut
        x = functional.silu(x).mean((2, 3))
        return self.head(x.view(x.size(0), -1)) * 0.5


class Shared(nn.Module):
    """One layer used twice, a residual sum of the two uses."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act, self.out = nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        once = self.act(self.inner(x))
        return self.out(once + self.act(self.inner(once)))


def activation(kind: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), kind, nn.Linear(6, 5, bias=False), kind, nn.Linear(5, 3))


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2, stride=1), nn.Flatten(),
        nn.BatchNorm1d(3 * 3 * 3), nn.Dropout(0.5), nn.Linear(27, 3),
    )  # fmt: skip


def dead() -> nn.Module:
    net = mlp([4, 5, 3], nn.ReLU)
    with torch.no_grad():
        net[0].bias.fill_(-100.0)
    return net


NETS = {
    "linear": lambda: nn.Linear(4, 3),
    "relu in place": lambda: activation(nn.ReLU(inplace=True)),
    "tanh": lambda: activation(nn.Tanh()),
    "gelu": lambda: activation(nn.GELU()),
    "gelu tanh": lambda: activation(nn.GELU(approximate="tanh")),
    "silu": lambda: activation(nn.SiLU()),
    "softplus": lambda: activation(nn.Softplus()),
    "leaky": lambda: activation(nn.LeakyReLU(0.2)),
    "cnn with batch norm": lambda: nn.Sequential(conv_net(), nn.Linear(10, 3)),
    "residual": lambda: nn.Sequential(Residual(), nn.Linear(10, 3)),
    "pooled": pooled,
    "functional": Functional,
    "shared": Shared,
    "dead": dead,
}
PICTURES = {"cnn with batch norm": 8, "residual": 8, "pooled": 6, "functional": 6}
LOSSES = {
    "cross_entropy": "cross_entropy",
    "half_squared": "half_squared",
    "callable": lambda outputs, y: outputs.cosh().log().sum(1) * (1.0 + 0.1 * y),
}


def build(name: str, loss: str = "cross_entropy", rows: int = 5) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = settled(NETS[name]())
        side = PICTURES.get(name)
        shape = (rows, 4) if side is None else (rows, 1, side, side)
        x = torch.randn(shape, dtype=torch.float64)
    return Problem(model, LOSSES[loss], x, torch.arange(rows) % 3, decay=0.05)


def dense(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """H (p, p), B (p, n d) and J (n c, p) by torch.func."""
    module, sizes = problem.module(), [shape.numel() for shape in problem.shapes]

    def outputs(weights: Tensor, x: Tensor) -> Tensor:
        parts = torch.split(weights, sizes)
        named = {name: part.view(shape) for name, part, shape in zip(problem.names, parts, problem.shapes, strict=True)}
        return functional_call(module, named, (x,))

    def objective(weights: Tensor, x: Tensor) -> Tensor:
        return (
            problem.loss_per_row(outputs(weights, x), problem.y).mean() + 0.5 * problem.decay * weights.square().sum()
        )

    w, x = problem.weights, problem.x
    mixed = jacfwd(jacrev(objective, argnums=0), argnums=1)(w, x)
    jacobian = jacrev(outputs)(w, x)
    return (
        hessian(objective)(w, x).detach(),
        mixed.reshape(problem.size, -1).detach(),
        jacobian.reshape(-1, problem.size).detach(),
    )


def close(found: Tensor, exact: Tensor) -> bool:
    return float((found - exact).norm()) <= 1e-10 * max(float(exact.norm()), 1e-3)


def draws(problem: Problem, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(problem.size, 3, generator=generator, dtype=torch.float64)
    return v, torch.randn(*problem.x.shape, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("path", ["fast", "general"])
@pytest.mark.parametrize("name", NETS)
def test_every_product_equals_the_dense_derivative(name: str, path: str) -> None:
    problem = build(name)
    second, mixed, jacobian = dense(problem)
    kept = Linearisation(problem, path=path)
    assert kept.path == ("r_operator" if path == "fast" else "double_backward")
    v, mu = draws(problem)
    flat = mu.reshape(-1, 3)
    assert close(kept.gradient, problem.gradient())
    assert close(kept.hessian(v), second @ v) and close(kept.hessian(v[:, 0]), second @ v[:, 0])
    assert close(kept.mixed(mu), mixed @ flat) and close(kept.mixed(mu[..., 1]), mixed @ flat[:, 1])
    assert close(kept.mixed_adjoint(v).reshape(-1, 3), mixed.T @ v)
    assert close(kept.mixed_adjoint(v[:, 2]).reshape(-1), mixed.T @ v[:, 2])
    both = kept.both_adjoint(v)
    assert close(both[0], second @ v) and close(both[1].reshape(-1, 3), mixed.T @ v)
    pushed = kept.push_forward(v)
    assert close(pushed.reshape(-1, 3), jacobian @ v)
    assert close(kept.pull_back(pushed), jacobian.T @ (jacobian @ v))
    assert close(kept.pull_back(pushed[..., 0]), jacobian.T @ (jacobian @ v[:, 0]))
    assert kept.products == 3 + 1 + 3 + 1 + 3 + 1 + 3 + 3 + 3 + 1
    assert close(dense_hessian(problem), second)


@pytest.mark.parametrize("path", ["fast", "general"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["tanh", "residual"])
def test_losses_and_gauss_newton(name: str, loss: str, path: str) -> None:
    problem = build(name, loss)
    second, mixed, jacobian = dense(problem)
    outputs = problem.outputs().detach()
    curvature = hessian(lambda o: problem.loss_per_row(o, problem.y).mean())(outputs).reshape(15, 15)
    exact = jacobian.T @ curvature @ jacobian + problem.decay * torch.eye(problem.size, dtype=torch.float64)
    kept, (v, mu) = Linearisation(problem, path=path), draws(problem)
    assert close(kept.hessian(v), second @ v) and close(kept.mixed(mu), mixed @ mu.reshape(-1, 3))
    assert close(kept.gauss_newton(v), exact @ v) and close(kept.gauss_newton(v[:, 0]), exact @ v[:, 0])


@pytest.mark.parametrize("path", ["fast", "general"])
@pytest.mark.parametrize("name", ["gelu", "residual", "pooled", "shared"])
def test_adjoint_identities(name: str, path: str) -> None:
    problem = build(name)
    kept, (v, mu) = Linearisation(problem, path=path), draws(problem)
    left, right, moved = v[:, 0], v[:, 1], mu[..., 0]

    def same(one: Tensor, other: Tensor, scale: Tensor) -> bool:
        return abs(float(one) - float(other)) <= 1e-12 * float(scale)

    image = kept.hessian(left)
    assert same(image @ right, left @ kept.hessian(right), image.norm() * right.norm())
    image = kept.mixed(moved)
    assert same(image @ left, (moved * kept.mixed_adjoint(left)).sum(), image.norm() * left.norm())
    pushed = kept.push_forward(left)
    weight = torch.randn_like(pushed)
    assert same((pushed * weight).sum(), left @ kept.pull_back(weight), pushed.norm() * weight.norm())


@pytest.mark.parametrize("name", ["tanh", "residual", "functional"])
def test_rows_and_chunks(name: str) -> None:
    problem = build(name, rows=9)
    whole, (v, mu) = Linearisation(problem), draws(problem)
    rows = torch.tensor([7, 2, 3])
    part = Linearisation(problem, rows)
    assert close(part.mixed(mu[rows]), whole.mixed(torch.zeros_like(mu).index_copy(0, rows, mu[rows])))
    assert close(part.mixed_adjoint(v), whole.mixed_adjoint(v)[rows])
    # A limit that holds three rows rebuilds; one that holds all passes but no whole product does not.
    for share, rebuilt in ((0.4, True), (0.8, False)):
        held = whole._held
        limit = held.total(0, 0) + int(share * 9 * (held.kept.row + held.product.row))
        chunked = Linearisation(problem, memory_limit=limit)
        assert ("rebuilt" in chunked.note) == rebuilt and chunked.memory_bytes <= limit < whole.memory_bytes
        assert close(chunked.hessian(v), whole.hessian(v)) and close(chunked.mixed(mu), whole.mixed(mu))
        assert close(chunked.mixed_adjoint(v), whole.mixed_adjoint(v))
        assert close(chunked.push_forward(v), whole.push_forward(v)) and close(chunked.gradient, whole.gradient)
    with pytest.raises(UsageError, match="PA307"):
        Linearisation(problem, memory_limit=10)


class Hooked(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 3))
        self[0].register_forward_hook(lambda module, inputs, output: 2 * output)


class Direct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


class Branching(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class Sneaky(nn.Module):
    """Traces well, but an in-place activation changes what the skip connection adds."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Linear(4, 4), nn.Linear(4, 3), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return self.two(torch.relu_(h) + h)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrised() -> nn.Module:
    layer = nn.Linear(4, 3)
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    return nn.Sequential(layer)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Hooked, "hooks"),
        (Direct, "outside a layer"),
        (lambda: Branching(nn.Linear(4, 3)), "cannot be traced"),
        (lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), "LayerNorm"),
        (parametrised, "Parametrized"),
        (Sneaky, "changes a tensor in place"),
    ],
)
def test_what_has_no_formula_falls_back_with_a_note(model: type[nn.Module], words: str) -> None:
    problem = Problem(
        model().double().eval(), "cross_entropy", torch.rand(6, 4, dtype=torch.float64) + 0.1, torch.arange(6) % 3, 0.01
    )
    kept, (v, _) = Linearisation(problem), draws(problem)
    assert kept.path == "double_backward" and words in kept.note
    assert close(kept.hessian(v), dense(problem)[0] @ v)
    with pytest.raises(UsageError, match="PA306"):
        Linearisation(problem, path="fast")


def test_batched_columns_of_the_general_path_equal_single_ones() -> None:
    problem = build("residual")
    kept = Linearisation(problem, path="general")
    v = torch.randn(problem.size, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for _ in range(2):  # the first block finds out which way is faster, the second takes it
        found = kept.hessian(v)
        assert close(found, torch.stack([kept.hessian(column) for column in v.T], dim=1))


def test_single_precision_keeps_its_type_and_the_users_switches() -> None:
    problem = build("residual")
    single = problem.to(torch.float32)
    kept, (v, _) = Linearisation(single), draws(problem)
    assert kept.path == "r_operator"
    found = kept.hessian(v.float())
    assert found.dtype == torch.float32
    exact = Linearisation(problem).hessian(v)
    assert float((found.double() - exact).norm() / exact.norm()) < 1e-5
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with full_precision(torch.float32):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        again = Linearisation(single).hessian(v.float())
        assert float((again - found).norm() / found.norm()) < 1e-6
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_an_unknown_path_is_refused() -> None:
    with pytest.raises(UsageError, match="PA301"):
        Linearisation(build("linear"), path="quick")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["fast", "general"])
def test_directions_of_another_shape_or_type_are_refused(path: str) -> None:
    x = torch.rand(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = Problem(mlp([5, 7, 3]), "cross_entropy", x, torch.arange(20) % 3)
    kept, p = Linearisation(problem, path=path), problem.size  # type: ignore[arg-type]
    weights = (kept.hessian, kept.mixed_adjoint, kept.both_adjoint, kept.gauss_newton, kept.push_forward)
    like = {"dtype": torch.float64}
    for product in weights:
        for bad in (
            torch.zeros(p + 3, **like),
            torch.zeros(p, 2, 2, **like),
            torch.zeros(p, 0, **like),
            torch.zeros(p),
        ):
            with pytest.raises(UsageError, match="PA308"):
                product(bad)
    for bad in (torch.zeros(40, 5, **like), torch.zeros(20, 5, 0, **like), torch.zeros(20, 5, 2, 1, **like)):
        with pytest.raises(UsageError, match="PA308"):
            kept.mixed(bad)
    with pytest.raises(UsageError, match="PA308"):
        kept.pull_back(torch.zeros(40, 3, **like))
    for rows in ([-1], [20], [1, 1], [], [0.5], [[1]]):
        with pytest.raises(UsageError, match="PA304"):
            Linearisation(problem, torch.tensor(rows), path=path)  # type: ignore[arg-type]
