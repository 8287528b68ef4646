"""Estimated test loss: every ratio against its definition, the baseline, and standard errors against redrawn rows."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from scipy.special import gamma, hyp1f1
from torch import Tensor, nn

from poisonaudit.errors import InputRefused
from poisonaudit.tangent import (
    estimate_test_loss,
    sensitivity_factors,
    soft_tangent_sensitivity,
    tangent_bounds,
    tangent_sensitivity,
)
from poisonaudit.tangent import expected_matrix as expected_matrix_file
from poisonaudit.tangent.chain import dense_chain
from poisonaudit.tangent.expected_matrix import log_mean_matrix_norm
from poisonaudit.tangent.factors import BASELINE, EQUATIONS


def mlp(widths: list[int], seed: int = 0, scale: float = 1.0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    net = nn.Sequential(*layers[:-1]).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(scale * drawn / value.shape[-1] ** 0.5)
    return net


def rows(count: int, width: int, seed: int = 1, shift: float = 0.0) -> Tensor:
    return shift + torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equation_5_drops_what_changes_in_print() -> None:
    """Theorem 3.1 leaves out the smallest layer; the printed quotient does not."""
    before = mlp([4, 6, 5, 3])
    largest = [float(layer.weight.detach().abs().max()) for layer in before if isinstance(layer, nn.Linear)]
    assert min(largest) == largest[0]
    now = copy.deepcopy(before)
    with torch.no_grad():
        now[0].weight.mul_(0.5)
        now[4].weight.mul_(1.25)
    x, other = rows(20, 4), rows(30, 4, 2)
    found = sensitivity_factors(now, x, other, before)
    assert found["eq5"].value == pytest.approx(1 / 1.25**2, rel=1e-12)
    assert found["eq5_as_printed"].value == pytest.approx(1 / (0.5 * 1.25) ** 2, rel=1e-12)
    logs = [tangent_bounds(model, x).theorem31.log10 for model in (before, now)]
    assert found["eq5_log"].value == pytest.approx(logs[0] / logs[1], rel=1e-12)
    # Nothing drawn enters: a row more or less changes nothing.
    assert not found["eq5"].train.any() and not found["eq5"].test.any()
    assert "eq5" not in sensitivity_factors(now, x, other)
    assert list(found) == list(EQUATIONS)


def test_equation_6_is_a_quotient_of_moments() -> None:
    model, x, other = mlp([4, 6, 5, 3]), rows(40, 4), rows(60, 4, 2, shift=0.5)
    found = sensitivity_factors(model, x, other)
    bounds = [tangent_bounds(model, each) for each in (x, other)]
    k, order = 3, bounds[0].order

    def psi(mean: float, deviation: float, power: int) -> float:
        value = hyp1f1(-power / 2, 0.5, -((mean / deviation) ** 2) / 2)
        return deviation**power * 2 ** (power / 2) * float(gamma((power + 1) / 2)) * float(value)

    own = [(each.active_mean, each.active_deviation * math.sqrt(1 - 1 / each.rows)) for each in bounds]
    for name, power, square in (("eq6", 2 * order, 1), ("eq6_as_printed", k - 1, 2)):
        expected = (psi(*own[1], power) / psi(*own[0], power)) ** square
        assert found[name].value == pytest.approx(expected, rel=1e-10), name


def test_equation_7_is_a_quotient_of_means() -> None:
    model, x, other = mlp([4, 6, 5, 3]), rows(40, 4), rows(60, 4, 2, shift=0.5)
    found = sensitivity_factors(model, x, other)
    for name, measure in (("eq7", soft_tangent_sensitivity), ("eq7_own_patterns", tangent_sensitivity)):
        expected = float(measure(model, other).mean() / measure(model, x).mean())
        assert found[name].value == pytest.approx(expected, rel=1e-12)


def enumerated_mean_matrix(model: nn.Sequential, x: Tensor) -> Tensor:
    """The mean over rows and over all patterns of the full matrix S, output by output, with its probabilities."""
    weights = [layer.weight.detach() for layer in model if isinstance(layer, nn.Linear)]
    chain = dense_chain(model, x)
    assert chain is not None
    before = torch.cat(chain.preactivations(x)[:-1], dim=1)
    sizes = [weight.shape[0] for weight in weights[:-1]]
    mean = torch.zeros(())
    for signs in itertools.product((0.0, 1.0), repeat=sum(sizes)):
        gates = torch.tensor(signs).double()
        probability = torch.where(gates > 0, torch.sigmoid(before), torch.sigmoid(-before)).prod(1).mean()
        parts = [torch.diag(part) for part in gates.split(sizes)] + [torch.eye(weights[-1].shape[0]).double()]
        incoming = [torch.eye(x.shape[1]).double()]
        for weight, gate in zip(weights[:-1], parts, strict=False):
            incoming.append(gate @ weight @ incoming[-1])
        outgoing = [parts[-1]]
        for weight, gate in zip(reversed(weights[1:]), reversed(parts[:-1]), strict=True):
            outgoing.insert(0, outgoing[0] @ weight @ gate)
        blocks = [torch.einsum("ca,bl->cabl", b, a).flatten() for a, b in zip(incoming, outgoing, strict=True)]
        mean = mean + probability * torch.cat(blocks)
    return mean


@pytest.mark.parametrize("widths", [[3, 4, 2, 2], [6, 3, 3, 2], [5, 4, 1]], ids=str)
def test_the_norm_of_the_mean_matrix_is_that_of_the_enumerated_one(widths: list[int]) -> None:
    model, x = mlp(widths, 3), rows(7, widths[0])
    chain = dense_chain(model, x)
    assert chain is not None
    found, influence = log_mean_matrix_norm(chain, x)
    assert math.exp(found) == pytest.approx(float(enumerated_mean_matrix(model, x).norm()), rel=1e-12)
    assert float(influence.mean()) == pytest.approx(0.0, abs=1e-12)
    # The mean of the squared norms is never less: rows and patterns cancel in the mean matrix.
    assert 2 * found < math.log(float(soft_tangent_sensitivity(model, x).mean()))


def test_what_a_row_adds_is_what_repeating_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, other = mlp([4, 6, 5, 3]), rows(200, 4), rows(150, 4, 2)
    base = sensitivity_factors(model, x, other)
    more = sensitivity_factors(model, x, torch.cat([other, other[7:8]]))
    names = [name for name in base if name != BASELINE]
    for name in names:
        before, after = base[name], more[name]
        assert before.log is not None and after.log is not None
        expected = float(before.test[7]) / (len(other) + 1)
        assert after.log - before.log == pytest.approx(expected, rel=0.1, abs=2e-5), name
    monkeypatch.setattr(expected_matrix_file, "ROWS", 50)
    part = sensitivity_factors(model, x, other)["eq7_as_printed"].test
    assert bool((part[50:] == 0).all()) and float(part.mean()) == pytest.approx(0.0, abs=1e-12)


def test_equal_rows_give_equal_losses() -> None:
    model, x = mlp([4, 6, 5, 3]), rows(50, 4)
    y = torch.arange(50) % 3
    found = estimate_test_loss(model, (x, y), x, y)
    assert found.estimates[0].name == BASELINE == found.baseline.name
    for each in found.estimates:
        assert each.factor == pytest.approx(1.0, rel=1e-12) and each.loss_error == pytest.approx(0.0, abs=1e-12)
    assert found.test == found.train
    outputs = model(x).detach()
    assert found.train.loss == pytest.approx(float(nn.functional.cross_entropy(outputs, y)), rel=1e-12)
    assert found.train.accuracy == pytest.approx(float((outputs.argmax(1) == y).double().mean()))
    assert found["eq7"].accuracy_as_printed == pytest.approx(found.train.accuracy)
    frame = found.to_frame()
    assert list(frame["name"]) == [name for name in EQUATIONS if "eq5" not in name]


def test_errors_are_estimates_minus_measured() -> None:
    model, x, other = mlp([4, 6, 5, 3], scale=2.0), rows(50, 4), rows(70, 4, 3, shift=0.8)
    y, labels = torch.arange(50) % 3, torch.arange(70) % 3
    found = estimate_test_loss(model, (x, y), other, labels)
    assert found.test is not None
    for each in found.estimates:
        assert each.factor is not None and each.loss is not None and each.accuracy is not None
        assert each.loss == pytest.approx(each.factor * found.train.loss)
        assert each.accuracy == pytest.approx(1 - each.factor * (1 - found.train.accuracy))
        assert each.loss_error == pytest.approx(each.loss - found.test.loss)
        assert each.accuracy_error == pytest.approx(each.accuracy - found.test.accuracy)
    assert found["eq7"].factor != pytest.approx(1.0, rel=1e-3)
    blind = estimate_test_loss(model, (x, y), other)
    assert blind.test is None and all(each.loss_error is None for each in blind.estimates)
    assert [each.loss for each in blind.estimates] == [each.loss for each in found.estimates]


def test_standard_errors_are_the_spread_over_redrawn_rows() -> None:
    model, count, trials = mlp([3, 8, 6, 3], 5, scale=1.5), 120, 150
    everything = rows(2 * count * trials, 3, 9)
    labels = (everything[:, 0] > 0).long() + (everything[:, 1] > 0).long()
    estimates: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {}
    for x, y in zip(everything.split(2 * count), labels.split(2 * count), strict=True):
        found = estimate_test_loss(model, (x[:count], y[:count]), x[count:])
        for each in found.estimates:
            assert each.loss is not None and each.loss_standard_error is not None
            estimates.setdefault(each.name, []).append(each.loss)
            errors.setdefault(each.name, []).append(each.loss_standard_error)
    for name, values in estimates.items():
        spread = float(torch.tensor(values).std())
        told = float(torch.tensor(errors[name]).square().mean().sqrt())
        # The deviation over 150 trials is known to 6 % (one standard error).
        assert told == pytest.approx(spread, rel=0.2), name


def test_a_dead_net_has_no_factors() -> None:
    model, x = mlp([4, 6, 5, 3]), rows(10, 4)
    with torch.no_grad():
        model[2].bias.fill_(-1e6)
        model[0].bias.fill_(-1e6)
    found = estimate_test_loss(model, (x, torch.zeros(10, dtype=torch.long)), rows(12, 4, 2))
    assert found["eq7_own_patterns"].factor is None and found["eq7_own_patterns"].loss is None
    assert found["eq6"].factor is None and found.baseline.factor == 1.0


def test_refusals() -> None:
    model, x = mlp([4, 6, 3]), rows(10, 4)
    for labels in (torch.full((10,), 3), torch.zeros(9, dtype=torch.long), torch.zeros(10)):
        with pytest.raises(InputRefused, match="PA212"):
            estimate_test_loss(model, (x, labels), x)
    with pytest.raises(InputRefused, match="PA150.*earlier net"):
        sensitivity_factors(model, x, x, mlp([4, 5, 3]))
    tanh = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double().eval()
    with pytest.raises(InputRefused, match="PA150.*Tanh"):
        sensitivity_factors(tanh, x, x)
