"""The differentiable K_5: equal to the bound, gradients against finite differences, training that lowers it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.lipschitz import lipschitz_bounds, lipschitz_penalty
from poisonaudit.lipschitz.regulariser import Reduction


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for values in model.parameters():
            values.copy_(torch.randn(values.shape, generator=generator, dtype=torch.float64))
        for name, values in model.named_buffers():
            if "running_var" in name:
                values.copy_(0.2 + torch.rand(values.shape, generator=generator, dtype=torch.float64))
    return model


def relu_net(*widths: int, seed: int = 0) -> nn.Module:
    layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return randomised(nn.Sequential(*layers[:-1]), seed)


SHARED = nn.Linear(5, 5)
NETS: dict[str, nn.Module] = {
    "one layer": nn.Linear(4, 3),
    "two layers": nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)),
    "nested": nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Dropout(0.5)),
        nn.Sequential(nn.Linear(9, 5), nn.Sigmoid(), nn.Linear(5, 4, bias=False)),
    ),
    "slopes off zero": nn.Sequential(
        nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 7), nn.LeakyReLU(0.2), nn.Linear(7, 6), nn.SiLU(), nn.Linear(6, 3)
    ),
    "slopes that train": nn.Sequential(
        nn.Linear(5, 8), nn.PReLU(8), nn.Linear(8, 4), nn.PReLU(), nn.Linear(4, 3), nn.ELU(1.7)
    ),
    "normalised": nn.Sequential(
        nn.BatchNorm1d(6), nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.BatchNorm1d(7, affine=False),
        nn.Linear(7, 4), nn.ReLU(), nn.BatchNorm1d(4),
    ),
    "gaps": nn.Sequential(
        nn.ReLU(), nn.Linear(5, 6), nn.Identity(), nn.Linear(6, 5), nn.ReLU(), nn.Tanh(), nn.Linear(5, 4), nn.ReLU()
    ),
    "one module twice": nn.Sequential(SHARED, nn.ReLU(), SHARED, nn.ReLU(), nn.Linear(5, 2)),
    "parametrised": nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 6)), nn.ReLU(), nn.Linear(6, 3)),
}  # fmt: skip


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("name", NETS)
def test_largest_is_k5(name: str, norm: str) -> None:
    for seed in range(3):
        model = randomised(NETS[name], seed)
        assert lipschitz_penalty(model, norm).item() == pytest.approx(lipschitz_bounds(model, norm).k5, rel=1e-12)


def test_deep_nets_too() -> None:
    model = relu_net(10, *[12] * 14, 5)
    assert lipschitz_penalty(model).item() == pytest.approx(lipschitz_bounds(model).k5, rel=1e-12)


def one_by_one(model: nn.Sequential, norm: str) -> list[float]:
    """K_5 of every output (l_inf) or every input (l_1) alone, from `lipschitz_bounds` of cut networks."""
    matrices = [layer.weight.detach() for layer in model if isinstance(layer, nn.Linear)]
    if norm == "linf":
        return [lipschitz_bounds([*matrices[:-1], row[None]]).k5 for row in matrices[-1]]
    return [lipschitz_bounds([column[:, None], *matrices[1:]], "l1").k5 for column in matrices[0].T]


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_reductions_are_of_the_rows(norm: str) -> None:
    model = relu_net(5, 7, 6, 4)
    rows = torch.tensor(one_by_one(model, norm), dtype=torch.float64)
    assert lipschitz_penalty(model, norm).item() == pytest.approx(float(rows.max()), rel=1e-12)
    assert lipschitz_penalty(model, norm, "mean").item() == pytest.approx(float(rows.mean()), rel=1e-12)
    smooth = lipschitz_penalty(model, norm, "smooth").item()
    assert smooth == pytest.approx(float((rows**8).sum() ** 0.125), rel=1e-12)
    assert float(rows.max()) <= smooth <= len(rows) ** 0.125 * float(rows.max())


def test_margins_are_the_bounds_of_differences() -> None:
    model = relu_net(5, 7, 6, 4)
    *front, last = [layer.weight.detach() for layer in model if isinstance(layer, nn.Linear)]
    pairs = [last[y] - last[j] for y, j in itertools.combinations(range(4), 2)]
    rows = torch.tensor([lipschitz_bounds([*front, row[None]]).k5 for row in pairs], dtype=torch.float64)
    assert lipschitz_penalty(model, margins=True).item() == pytest.approx(float(rows.max()), rel=1e-12)
    assert lipschitz_penalty(model, reduction="mean", margins=True).item() == pytest.approx(float(rows.mean()))
    # In l_1 the largest entry: of each input alone.
    entries = [lipschitz_bounds([front[0][:, [i]], *front[1:], row[None]]).k5 for row in pairs for i in range(5)]
    assert lipschitz_penalty(model, "l1", margins=True).item() == pytest.approx(max(entries), rel=1e-12)
    # No lead shrinks faster.
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(2000, 5, generator=generator, dtype=torch.float64)
    step = 0.1 * torch.randn(2000, 5, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        moved = model(a + step) - model(a)
    leads = (moved[:, :, None] - moved[:, None]).abs().amax((1, 2))
    assert bool((leads <= float(rows.max()) * step.abs().amax(1)).all())


@pytest.mark.parametrize("name", ["two layers", "slopes that train", "normalised", "gaps", "one module twice"])
@pytest.mark.parametrize(
    ("norm", "reduction", "margins"),
    [("linf", "largest", False), ("l1", "smooth", False), ("linf", "mean", True), ("l1", "smooth", True)],
)
def test_gradients_are_those_of_finite_differences(name: str, norm: str, reduction: Reduction, margins: bool) -> None:
    model = randomised(NETS[name], 5)
    names = [name for name, _ in model.named_parameters()]

    def penalty(*values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(_Penalty(model, norm, reduction, margins), _under(given), ())

    values = tuple(parameter.detach().clone().requires_grad_() for parameter in model.parameters())
    assert torch.autograd.gradcheck(penalty, values)


class _Penalty(nn.Module):
    def __init__(self, model: nn.Module, norm: str, reduction: Reduction, margins: bool) -> None:
        super().__init__()
        self.model, self.norm, self.reduction, self.margins = model, norm, reduction, margins

    def forward(self) -> Tensor:
        return lipschitz_penalty(self.model, self.norm, self.reduction, margins=self.margins)


def _under(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": value for name, value in values.items()}


@pytest.mark.parametrize("reduction", ["largest", "mean", "smooth"])
@pytest.mark.parametrize("margins", [False, True])
def test_steps_on_it_lower_the_bound(reduction: Reduction, margins: bool) -> None:
    model = relu_net(6, 8, 7, 4)
    before = lipschitz_bounds(model).certified
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        lipschitz_penalty(model, reduction=reduction, margins=margins).backward()
        optimiser.step()
    assert lipschitz_bounds(model).certified < 0.7 * before


def test_single_precision_and_its_range() -> None:
    model = relu_net(5, 7, 4)
    exact = lipschitz_penalty(model, reduction="smooth").item()
    single = lipschitz_penalty(model.float(), reduction="smooth")
    assert single.dtype == torch.float32 and single.shape == () and single.item() == pytest.approx(exact, rel=1e-5)
    with torch.no_grad():
        for values in model.parameters():
            values *= 1e6
    large = lipschitz_penalty(model, reduction="smooth")
    large.backward()
    assert large.item() == pytest.approx(1e12 * exact, rel=1e-5)
    assert all(bool(torch.isfinite(v.grad).all()) for v in model.parameters() if v.grad is not None)


def test_a_network_that_is_zero_has_gradient_zero_or_more() -> None:
    model = relu_net(5, 7, 4)
    with torch.no_grad():
        for values in model.parameters():
            values.zero_()
    penalty = lipschitz_penalty(model, reduction="smooth")
    penalty.backward()
    assert penalty.item() == 0.0
    assert all(bool(torch.isfinite(v.grad).all()) for v in model.parameters() if v.grad is not None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_it_is_the_same() -> None:
    model = relu_net(5, 7, 6, 4)
    value = lipschitz_penalty(model).item()
    on_gpu = lipschitz_penalty(model.cuda())
    assert on_gpu.is_cuda and on_gpu.item() == pytest.approx(value, rel=1e-12)


class _Own(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


def _empty() -> nn.Module:
    model = nn.Linear(3, 1)
    model.weight = nn.Parameter(torch.zeros(0, 3))
    return model


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model[0].register_forward_hook(lambda module, given, found: found * 2)
    return model


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), ["layer 0 (Conv2d)"]),
        (nn.Sequential(nn.Linear(3, 3), nn.Softmax(1)), ["layer 1 (Softmax)"]),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), ["layer 1 (BatchNorm1d)", "train mode"]),
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2)), ["layer 1 (Dropout)", "model.eval()"]),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval(), ["statistics"]),
        (nn.Sequential(nn.Linear(3, 3), nn.CELU(-1.0)), ["layer 1 (CELU)", "without limit"]),
        (nn.Sequential(nn.Linear(3, 3), nn.Softplus(threshold=5)), ["layer 1 (Softplus)", "threshold"]),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 2)), ["layer 2 (Linear)", "5", "4"]),
        (nn.Sequential(nn.Linear(3, 4), nn.PReLU(3), nn.Linear(4, 2)), ["layer 1 (PReLU)", "3", "4"]),
        (nn.Sequential(nn.LazyLinear(4), nn.ReLU()), ["layer 0 (LazyLinear)"]),
        (_Own(nn.Linear(3, 3)), ["_Own"]),
        (_hooked(), ["hooks"]),
        (nn.ReLU(), ["no Linear layer"]),
        (_empty(), ["Linear weight", "no values"]),
    ],
)
def test_other_networks_are_refused_by_name(model: nn.Module, parts: list[str]) -> None:
    with pytest.raises(InputRefused, match="PA130") as caught:
        lipschitz_penalty(model)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_unknown_names_and_single_outputs_are_refused() -> None:
    model = relu_net(3, 4, 1)
    with pytest.raises(UsageError, match="PA301.*linf"):
        lipschitz_penalty(model, "l2")
    with pytest.raises(UsageError, match="PA301.*largest"):
        lipschitz_penalty(model, reduction="max")  # type: ignore[arg-type]
    with pytest.raises(InputRefused, match="one output"):
        lipschitz_penalty(model, margins=True)
