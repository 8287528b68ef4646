"""Weight noise: formula, Monte Carlo, conditions and worst case against exact values and finite differences."""

from __future__ import annotations

import copy
import importlib
import math

import pytest
import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.weight_noise import joint_weight_noise, weight_conditions, weight_noise
from poisonaudit.weight_noise.chain import _STEEPEST, forward, read_chain
from poisonaudit.weight_noise.noise import noise_for
from poisonaudit.weight_noise.table import root_mean_square

ACTIVATIONS = [
    nn.ReLU(),
    nn.Tanh(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.Sigmoid(),
    nn.ELU(1.5),
    nn.LeakyReLU(-1.2),
]


def mlp(widths: list[int], activation: nn.Module | None = None, seed: int = 0) -> nn.Sequential:
    activation = nn.Tanh() if activation is None else activation
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after, dtype=torch.float64), copy.deepcopy(activation)]
    net = nn.Sequential(*layers[:-1]).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64) / value.shape[-1] ** 0.5)
    return net


def rows(count: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(model: nn.Module, layer: int, noise: Tensor, x: Tensor) -> Tensor:
    """|dv| per input with noise added to a copy of one weight matrix."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[layer].weight.add_(noise)
        return (other(x) - model(x)).norm(dim=1)


def exact_last_layer(model: nn.Sequential, x: Tensor, rho: float) -> Tensor:
    """E|eta z|^2 over the sphere |eta|_F = rho |W|_F is |z|^2 rho^2 |W|_F^2 / (columns of W), per input."""
    with torch.no_grad():
        entering, weight = model[:-1](x), model[-1].weight
        return entering.norm(dim=1) * rho * weight.norm() / weight.shape[1] ** 0.5


def test_formula_is_exact_in_the_last_layer_at_any_rho() -> None:
    model, x = mlp([5, 4, 3]), rows(6, 5)
    for rho in (0.1, 3.0):
        frame = weight_noise(model, x, rho=rho, draws=3000, seed=3)
        last = frame.iloc[-1]
        assert last["rms_formula"] == pytest.approx(float(exact_last_layer(model, x, rho).mean()), rel=1e-12)
        assert abs(last["rms_sampled"] - last["rms_formula"]) < 3 * last["standard_error"]
        assert last["standard_error"] < 0.02 * last["rms_formula"]


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU(), nn.GELU()], ids=lambda a: type(a).__name__)
def test_inner_layers_agree_to_first_order(activation: nn.Module) -> None:
    frame = weight_noise(mlp([6, 5, 4, 3], activation), rows(5, 6), rho=1e-4, draws=2000, seed=1)
    error = (frame["rms_sampled"] - frame["rms_formula"]).abs()
    assert (error < 3 * frame["standard_error"] + 1e-3 * frame["rms_formula"]).all()
    assert list(frame["layer"]) == ["0.weight", "2.weight", "4.weight"]


def test_formula_is_the_expectation_of_the_linearised_outputs_over_the_sphere() -> None:
    """E|dv|^2 = rho^2 |W|^2 / numel * sum over a basis of |J e|^2, with J by finite differences."""
    model, x, rho = mlp([3, 4, 2]), rows(2, 3), 0.2
    formula = rho * weight_conditions(model, x).spread
    for index, layer in enumerate((0, 2)):
        weight = model[layer].weight
        total = torch.zeros(2, dtype=torch.float64)
        for position in range(weight.numel()):
            unit = torch.zeros(weight.numel(), dtype=torch.float64)
            unit[position] = 1e-6
            total += (moved(model, layer, unit.view_as(weight), x) / 1e-6).square()
        expected = (rho**2 * weight.detach().square().sum() / weight.numel() * total).sqrt()
        torch.testing.assert_close(formula[index], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_conditions_are_the_largest_slopes_by_finite_differences(activation: nn.Module) -> None:
    model, x, step = mlp([4, 5, 3], activation, seed=2), rows(3, 4, seed=5), 1e-6
    conditions = weight_conditions(model, x)
    norm = model(x).detach().norm(dim=1)
    for index, layer in enumerate((0, 2)):
        weight = model[layer].weight.detach()
        for row in range(3):
            point = x[row : row + 1]
            jacobian = torch.autograd.functional.jacobian(
                lambda w, at=point, where=layer: torch.func.functional_call(model, {f"{where}.weight": w}, (at,))[0],
                weight,
            ).reshape(3, -1)
            steepest = torch.linalg.svd(jacobian).Vh[0].view_as(weight)
            slope = float(moved(model, layer, step * steepest, point)) / step
            assert float(conditions.absolute[index, row]) == pytest.approx(slope, rel=1e-4)
            relative = slope * float(weight.norm()) / float(norm[row])
            assert float(conditions.relative[index, row]) == pytest.approx(relative, rel=1e-4)
            for seed in range(5):
                other = rows(1, weight.numel(), seed=seed).view_as(weight)
                other = step * other / other.norm()
                assert float(moved(model, layer, other, point)) / step <= slope * (1 + 1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_worst_case_is_never_exceeded_even_by_noise_chosen_against_it(activation: nn.Module) -> None:
    for rho in (0.1, 2.0):
        model, x = mlp([4, 6, 5, 3], activation, seed=3), rows(4, 4, seed=2)
        frame = weight_noise(model, x, rho=rho, draws=50)
        assert (frame["worst_case"] >= frame["rms_sampled"]).all()
        worst = rho * weight_conditions(model, x).worst
        for index, step in enumerate(read_chain(model, x)[0]):
            layer = int(step.name.split(".")[0])
            generator = torch.Generator().manual_seed(index)
            for _ in range(20):
                assert (moved(model, layer, noise_for(step, rho, generator), x) <= worst[index]).all()
            noise = noise_for(step, rho, generator)
            for _ in range(40):
                noise.requires_grad_(True)
                values = torch.func.functional_call(model, {step.name: step.weight + noise}, (x[:1],))
                (slope,) = torch.autograd.grad((values - model(x[:1])).square().sum(), noise)
                noise = noise.detach() + 0.3 * noise.detach().norm() * slope / slope.norm()
                noise = noise * rho * step.weight.norm() / noise.norm()
            assert (moved(model, layer, noise, x) <= worst[index] * (1 + 1e-12)).all()


def test_worst_case_is_attained_in_a_last_layer() -> None:
    model, x = mlp([4, 3, 2]), rows(1, 4)
    entering = model[:-1](x).detach()[0]
    noise = torch.outer(torch.tensor([0.6, 0.8], dtype=torch.float64), entering / entering.norm())
    noise *= 0.1 * model[-1].weight.detach().norm()
    assert float(moved(model, 2, noise, x)) == pytest.approx(
        0.1 * float(weight_conditions(model, x).worst[-1]), rel=1e-12
    )


@pytest.mark.parametrize("kind", list(_STEEPEST), ids=lambda kind: kind.__name__)
def test_steepest_slopes_bound_every_slope(kind: type[nn.Module]) -> None:
    layer = kind().double().eval()
    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(layer(grid).sum(), grid)
    # torch 2.15 differentiates Hardsigmoid with 1/6 in float32.
    room = 1e-8 if kind is nn.Hardsigmoid else 0.0
    assert float(slopes.abs().max()) - room <= _STEEPEST[kind](layer) <= 1.01 * float(slopes.abs().max()) + 1e-3


def test_the_chain_computes_what_the_model_computes() -> None:
    shared = nn.GELU()
    a, b, c = mlp([6, 5]), mlp([5, 5], seed=1), mlp([5, 2], seed=2)
    model = nn.Sequential(
        nn.Flatten(), nn.Identity(), a, shared, b, shared, nn.Tanh(), nn.Dropout(0.5), c, shared
    ).eval()
    x = rows(4, 2, 3)
    steps, flat = read_chain(model, x)
    assert [step.name for step in steps] == ["2.0.weight", "4.0.weight", "8.0.weight"]
    torch.testing.assert_close(forward(steps, flat)[2], model(x), rtol=1e-14, atol=1e-15)


def test_noise_has_the_stated_norm_and_is_isotropic() -> None:
    model, x = mlp([3, 2]), rows(1, 3)
    step = read_chain(model, x)[0][0]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([noise_for(step, 0.1, generator) for _ in range(4000)])
    norms = drawn.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.1 * float(step.weight.norm())), rtol=1e-12, atol=0)
    second = torch.einsum("ni,nj->ij", drawn.flatten(1), drawn.flatten(1)) / 4000
    torch.testing.assert_close(second, torch.eye(6, dtype=torch.float64) * float(norms[0]) ** 2 / 6, rtol=0, atol=4e-4)


def test_seeds_repeat_blocks_do_not_matter_and_the_model_is_untouched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = mlp([5, 4, 3], nn.ReLU(inplace=True)), rows(6, 5)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [value.requires_grad for value in model.parameters()]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = weight_noise(model, x, seed=7)
    assert torch.equal(before, torch.get_rng_state())
    monkeypatch.setattr(importlib.import_module("poisonaudit.weight_noise.noise"), "_ENTRIES", 100)
    monkeypatch.setattr(importlib.import_module("poisonaudit.weight_noise.conditions"), "_ENTRIES", 15)
    second = weight_noise(model, x, seed=7)
    assert first.drop(columns="layer").sub(second.drop(columns="layer")).abs().to_numpy().max() < 1e-14
    assert (weight_noise(model, x, seed=8)["rms_sampled"] != first["rms_sampled"]).all()
    assert joint_weight_noise(model, x, seed=7) == joint_weight_noise(model, x, seed=7)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [value.requires_grad for value in model.parameters()] == flags
    assert first.attrs["rho"] == 0.1 and first.attrs["units"]["rms_formula"] == "|dv| in output units"


def test_columns_of_the_contract_and_flips() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False, dtype=torch.float64)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64))
    x = torch.tensor([[[1.0, 0], [0, 0]]], dtype=torch.float64)
    frame = weight_noise(model, x, rho=1.0, draws=4000, seed=0)
    names = "layer condition_absolute condition_relative rms_formula rms_sampled standard_error flip_rate worst_case"
    assert list(frame.columns) == names.split() and list(frame["layer"]) == ["1.weight"]
    # v = (1, 0), dv = (a, b), a and b two coordinates of a unit vector in R^8: a flip is 1 + a < b.
    # (b - a) / sqrt 2 is one coordinate t of a unit vector, so P(flip) = P(t > 1/sqrt 2) = I_(1/2)(7/2, 1/2) / 2.
    from scipy.special import betainc

    share = 0.5 * betainc(3.5, 0.5, 0.5)
    assert frame["flip_rate"][0] == pytest.approx(share, abs=4 * math.sqrt(share / 4000))
    assert math.isnan(weight_noise(mlp([3, 1]), rows(2, 3))["flip_rate"][0])


def test_all_matrices_at_once() -> None:
    model, x = mlp([6, 5, 3]), rows(8, 6)
    small = joint_weight_noise(model, x, rho=1e-4, draws=2000, seed=2)
    assert abs(small.rms - small.rms_formula) < 3 * small.standard_error + 1e-3 * small.rms_formula
    with torch.no_grad():
        size = model(x).norm(dim=1)
    expected = ((1e-4 * weight_conditions(model, x).spread).square().sum(0) / size**2).mean().sqrt()
    assert small.rms_formula == pytest.approx(float(expected), rel=1e-12)
    one = mlp([4, 3])
    linear = joint_weight_noise(one, x[:, :4], rho=0.5, draws=3000)
    assert abs(linear.rms - linear.rms_formula) < 3 * linear.standard_error
    assert 0 < linear.flip_rate < 1 and 0 < linear.flip_standard_error < 0.02


def test_zero_outputs_and_zero_weights() -> None:
    model = mlp([3, 2])
    with torch.no_grad():
        model[0].bias.zero_()
    zero = torch.zeros(1, 3, dtype=torch.float64)
    assert float(weight_conditions(model, zero).relative) == 0.0
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1, 0], [1, -1, 0]]))
    assert math.isinf(float(weight_conditions(model, torch.ones_like(zero)).relative))
    assert math.isinf(joint_weight_noise(model, torch.ones_like(zero)).rms)
    with torch.no_grad():
        model[0].weight.zero_()
    frame = weight_noise(model, rows(2, 3))
    assert frame[["rms_formula", "rms_sampled", "standard_error", "worst_case", "flip_rate"]].to_numpy().sum() == 0


def test_standard_error_covers_the_truth() -> None:
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(200):
        squares = torch.randn(100, 1, generator=generator, dtype=torch.float64).square() * torch.ones(1, 3)
        rms, error = root_mean_square(squares)
        inside += abs(rms - 1) < 2 * error
    assert 175 <= inside <= 200


def test_refusals() -> None:
    model, x = mlp([4, 3, 2]), rows(2, 4)
    for settings in ({"rho": 0.0}, {"rho": math.nan}, {"draws": 1}, {"draws": 2.5}):
        with pytest.raises(UsageError, match="PA321"):
            weight_noise(model, x, **settings)
    shared = nn.Linear(4, 4, dtype=torch.float64)
    for bad, code in (
        ((model, x.float()), "PA121"),
        ((model, rows(2, 5)), "PA211"),
        ((model, x / 0), "PA210"),
        ((nn.Sequential(model, nn.Softmax(1)).eval(), x), "PA152"),
        ((nn.Sequential(nn.ReLU(), model).eval(), x), "PA152"),
        ((nn.Sequential(shared, nn.ReLU(), shared).eval(), x), "PA152"),
        ((nn.Sequential(nn.Identity()).eval(), x), "PA152"),
        ((nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten()).double().eval(), rows(2, 1, 3, 3)), "PA152"),
        ((nn.Sequential(model, nn.PReLU(2)).double().eval(), x), "PA152"),
        ((nn.Sequential(model, nn.Dropout(0.5)), x), "PA120"),
    ):
        with pytest.raises(InputRefused) as caught:
            weight_noise(*bad)
        assert caught.value.code == code
