"""Activation patterns counted by hand, soft gates by enumeration of all patterns, and what has neither."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.tangent import (
    activation_patterns,
    activation_signs,
    pattern_log_probability,
    soft_tangent_sensitivity,
    tangent_sensitivity,
    tangent_sensitivity_normalised,
)
from poisonaudit.tangent.patterns import normality
from poisonaudit.tangent.preactivations import preactivations


def chain(widths: list[int], slope: float = 0.0, bias: bool = True, last: bool = False, seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after, bias=bias), nn.LeakyReLU(slope) if slope else nn.ReLU()]
    net = nn.Sequential(*(layers if last else layers[:-1])).double().eval()
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return net


def rows(count: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Functional(nn.Module):
    """ReLU as a function and in place, and a smooth unit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 2), nn.Linear(8, 4)
        self.unit = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)).flatten(1)
        x = self.unit(self.second(x))
        return torch.tanh(x)


def test_patterns_of_a_chain_by_hand() -> None:
    net, x = chain([4, 3, 5, 2]), rows(200, 4)
    first = net[0](x)
    second = net[2](first.relu())
    signs = torch.cat([first > 0, second > 0], dim=1)
    found = activation_patterns(net, x)
    assert found.layers == ("1", "3") and found.units == (3, 5)
    assert torch.equal(found.active, torch.stack([(first > 0).sum(1), (second > 0).sum(1)], dim=1))
    assert torch.equal(found.total, signs.sum(1))
    distinct = torch.unique(signs, dim=0)
    assert found.distinct == len(distinct) == int(found.region_of.max()) + 1
    for region in range(found.distinct):
        assert len(torch.unique(signs[found.region_of == region], dim=0)) == 1
    assert torch.equal(found.region_of.unique(), torch.arange(found.distinct)) and int(found.region_of[0]) == 0
    assert found.mean == pytest.approx(float(signs.double().sum(1).mean()))
    assert found.deviation == pytest.approx(float(signs.double().sum(1).std()))
    assert found.share == pytest.approx(float(signs.double().mean()))
    assert torch.equal(activation_signs(net, x), signs.to(torch.int8) * 2 - 1)
    assert found.others == ()


def test_rows_of_one_region_share_their_sensitivity() -> None:
    net, x = chain([2, 4, 3, 2]), rows(300, 2)
    found, values = activation_patterns(net, x), tangent_sensitivity(net, x)
    assert 3 < found.distinct < 100
    for region in range(found.distinct):
        inside = values[found.region_of == region]
        torch.testing.assert_close(inside, inside[:1].expand_as(inside), rtol=1e-12, atol=1e-12)


def test_a_net_of_functions_in_place_and_in_other_forms() -> None:
    net, x = Functional().double().eval(), rows(40, 1, 3, 3)
    first = net.first(x).flatten(1)
    second = net.second(first.relu())
    found = activation_patterns(net, x)
    assert found.layers == ("relu", "unit") and found.units == (8, 4)
    assert torch.equal(found.active[:, 0], (first > 0).sum(1)) and torch.equal(found.active[:, 1], (second > 0).sum(1))
    assert found.others == ("tanh",)
    assert not net._forward_hooks and not net.first._forward_pre_hooks
    twice = nn.Sequential(nn.Linear(9, 4), unit := nn.PReLU(), nn.Linear(4, 4), unit, nn.MaxPool1d(2)).double().eval()
    seen = preactivations(twice, rows(3, 9))
    assert seen.names == ("1", "1") or seen.names == ("1", "3")
    assert seen.homogeneous and len(seen.others) == 1


@pytest.mark.parametrize(
    ("layer", "homogeneous"),
    [(nn.Tanh(), False), (nn.ReLU6(), False), (nn.Softmax(1), False), (nn.LayerNorm(6), False), (nn.ReLU(), True)],
    ids=["tanh", "relu6", "softmax", "layer norm", "relu"],
)
def test_what_keeps_its_form_under_rescaling(layer: nn.Module, homogeneous: bool) -> None:
    net = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 6), layer, nn.Linear(6, 2)).double().eval()
    assert preactivations(net, rows(3, 6)).homogeneous == homogeneous


def test_products_of_two_values_are_no_linear_layers() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * x * 2.0

    assert preactivations(Gated(), rows(3, 3)).others == ("mul",)


def test_normality_of_the_totals() -> None:
    bell = torch.round(50 + 10 * torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert normality(bell).p_value > 0.01 and normality(bell).reason == ""
    skewed = torch.round(bell.abs() ** 3 / 1000)
    assert normality(skewed).p_value < 1e-6
    few, same = normality(bell[:19]), normality(torch.full((30,), 4.0))
    assert few.p_value is None and few.reason == "19 rows; the test needs 20" and same.p_value is None
    alone = activation_patterns(chain([4, 3, 2]), rows(1, 4))
    assert alone.distinct == 1 and alone.deviation == 0.0 and alone.normality.statistic is None


def enumerated(net: nn.Sequential, x: Tensor, slope: float, summed: bool, normalised: bool) -> Tensor:
    """Sum over all patterns of probability times sensitivity with those gates, each by explicit products."""
    weights = [layer.weight.detach() for layer in net if isinstance(layer, nn.Linear)]
    sizes = [len(weight) for weight in weights]
    gated = sizes if isinstance(net[-1], nn.ReLU | nn.LeakyReLU) else sizes[:-1]
    before = torch.cat(preactivations(net, x).values, dim=1)
    total = torch.zeros(len(x), dtype=torch.float64)
    for signs in itertools.product((1.0, -1.0), repeat=sum(gated)):
        pattern = torch.tensor(signs, dtype=torch.float64)
        chance = torch.where(pattern > 0, torch.sigmoid(before), 1 - torch.sigmoid(before)).prod(1)
        parts = [slope + (1 - slope) * (part > 0).double() for part in pattern.split(gated)]
        gates = parts + [torch.ones(sizes[-1], dtype=torch.float64)] * (len(sizes) - len(gated))
        forwards = [torch.eye(weights[0].shape[1], dtype=torch.float64)]
        for weight, gate in zip(weights[:-1], gates, strict=False):
            forwards.append(gate[:, None] * (weight @ forwards[-1]))
        backwards = [torch.eye(sizes[-1], dtype=torch.float64) * gates[-1]]
        for weight, gate in zip(weights[:0:-1], gates[-2::-1], strict=True):
            backwards.insert(0, (backwards[0] @ weight) * gate)
        value = 0.0
        for weight, forward, backward in zip(weights, forwards, backwards, strict=True):
            column = backward.sum(0).square() if summed else backward.square().sum(0)
            scale = weight.square() if normalised else torch.ones_like(weight)
            value += float(column @ scale @ forward.square().sum(1))
        total += chance * value
    return total


@pytest.mark.parametrize("normalised", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("outputs", ["jacobian", "sum"])
@pytest.mark.parametrize(
    ("widths", "slope", "last"),
    [([3, 4, 2], 0.0, False), ([2, 3, 3, 2], 0.0, False), ([5, 2, 2, 2, 3], 0.2, False), ([3, 3, 2], 0.3, True)],
    ids=["one", "two", "three leaky", "gated outputs"],
)
def test_soft_gates_equal_the_sum_over_all_patterns(
    widths: list[int], slope: float, last: bool, outputs: str, normalised: bool
) -> None:
    net, x = chain(widths, slope, last=last, seed=len(widths)), rows(3, widths[0])
    found = soft_tangent_sensitivity(net, x, outputs, normalised=normalised)
    expected = enumerated(net, x, slope, outputs == "sum", normalised)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_soft_gates_of_a_saturated_net_are_hard(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = chain([4, 5, 3, 2], bias=False), rows(6, 4)
    with torch.no_grad():
        net[0].weight.mul_(1e5)
    for normalised, hard in ((False, tangent_sensitivity), (True, tangent_sensitivity_normalised)):
        soft = soft_tangent_sensitivity(net, x, normalised=normalised)
        torch.testing.assert_close(soft, hard(net, x), rtol=1e-6, atol=0)
    monkeypatch.setattr("poisonaudit.tangent.soft_gates._ENTRIES", 60)
    torch.testing.assert_close(soft_tangent_sensitivity(net, x, normalised=True), soft, rtol=1e-13, atol=0)


def test_pattern_probabilities() -> None:
    net, x = chain([3, 2, 3, 2]), rows(4, 3)
    patterns = torch.tensor(list(itertools.product((1, -1), repeat=5)))
    logs = pattern_log_probability(net, x, patterns[:, None])
    assert logs.shape == (32, 4)
    torch.testing.assert_close(logs.exp().sum(0), torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0)
    before = torch.cat(preactivations(net, x).values, dim=1)
    for row in range(4):
        for pattern in (0, 11, 31):
            on = patterns[pattern] == 1
            chance = torch.sigmoid(before[row][on]).prod() * (1 - torch.sigmoid(before[row][~on])).prod()
            assert float(logs[pattern, row].exp()) == pytest.approx(float(chance), rel=1e-12)
    own = pattern_log_probability(net, x, activation_signs(net, x))
    torch.testing.assert_close(own, logs.max(0).values)  # its own pattern is the likeliest
    assert pattern_log_probability(net, 1e6 * x, patterns[0]).isfinite().all()


def test_refusals() -> None:
    net, x = chain([3, 2, 3, 2]), rows(4, 3)
    for patterns in (torch.ones(4), torch.ones(()), torch.zeros(5)):
        with pytest.raises(InputRefused, match="PA212"):
            pattern_log_probability(net, x, patterns)
    tanh = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).double().eval()
    for function in (activation_patterns, activation_signs):
        with pytest.raises(InputRefused, match="PA154.*tanh"):
            function(tanh, x)
    for other in (tanh, nn.Sequential(nn.Linear(3, 2), nn.PReLU(), nn.Linear(2, 2)).double().eval()):
        with pytest.raises(InputRefused, match="PA150.*ReLU or LeakyReLU"):
            soft_tangent_sensitivity(other, x)
    with pytest.raises(UsageError, match="PA301"):
        soft_tangent_sensitivity(net, x, "all")
    with pytest.raises(InputRefused, match="PA211"):
        activation_patterns(net, rows(4, 2))
    with pytest.raises(InputRefused, match="PA211"):
        soft_tangent_sensitivity(net, rows(4, 2))

    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.layer(x).T).T

    with pytest.raises(InputRefused, match="PA153"):
        activation_patterns(Crossed().eval(), x)
