"""Weight noise: formula, Monte Carlo, conditions and worst case against exact values and finite differences."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from noise_networks import mlp, rows
from torch import Tensor, nn

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.weight_noise import joint_weight_noise, weight_conditions, weight_noise
from poisonaudit.weight_noise.intervals import mean_of_roots
from poisonaudit.weight_noise.noise import noise_source

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
        for index, layer in enumerate((0, 2, 4)):
            name, weight = f"{layer}.weight", model[layer].weight.detach()
            source = noise_source({name: weight}, [name], "frobenius", index)
            for draw in range(20):
                assert (moved(model, layer, rho * source.unit(name, draw), x) <= worst[index]).all()
            noise = rho * source.unit(name, 20)
            for _ in range(40):
                noise.requires_grad_(True)
                values = torch.func.functional_call(model, {name: weight + noise}, (x[:1],))
                (slope,) = torch.autograd.grad((values - model(x[:1])).square().sum(), noise)
                noise = noise.detach() + 0.3 * noise.detach().norm() * slope / slope.norm()
                noise = noise * rho * weight.norm() / noise.norm()
            assert (moved(model, layer, noise, x) <= worst[index] * (1 + 1e-12)).all()


def test_worst_case_is_attained_in_a_last_layer() -> None:
    model, x = mlp([4, 3, 2]), rows(1, 4)
    entering = model[:-1](x).detach()[0]
    noise = torch.outer(torch.tensor([0.6, 0.8], dtype=torch.float64), entering / entering.norm())
    noise *= 0.1 * model[-1].weight.detach().norm()
    assert float(moved(model, 2, noise, x)) == pytest.approx(
        0.1 * float(weight_conditions(model, x).worst[-1]), rel=1e-12
    )


def test_noise_has_the_stated_norm_and_is_isotropic() -> None:
    weight = mlp([3, 2])[0].weight.detach()
    source = noise_source({"w": weight}, ["w"], "frobenius", 0)
    drawn = torch.stack([source.added({"w": source.unit("w", draw)}, 0.1)["w"] - weight for draw in range(4000)])
    norms = drawn.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.1 * float(weight.norm())), rtol=1e-12, atol=0)
    second = torch.einsum("ni,nj->ij", drawn.flatten(1), drawn.flatten(1)) / 4000
    torch.testing.assert_close(second, torch.eye(6, dtype=torch.float64) * float(norms[0]) ** 2 / 6, rtol=0, atol=4e-4)


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
        found = mean_of_roots(squares)
        inside += abs(found.value - 1) < 2 * found.standard_error
    assert 175 <= inside <= 200


def test_refusals() -> None:
    model, x = mlp([4, 3, 2]), rows(2, 4)
    for settings in ({"rho": 0.0}, {"rho": math.nan}, {"draws": 1}, {"draws": 2.5}):
        with pytest.raises(UsageError, match="PA321"):
            weight_noise(model, x, **settings)
    for bad, code in (
        ((model, x.float()), "PA121"),
        ((model, rows(2, 5)), "PA211"),
        ((model, x / 0), "PA210"),
        ((nn.Sequential(nn.Identity()).eval(), x), "PA152"),
        ((nn.Sequential(model, nn.Dropout(0.5)), x), "PA120"),
    ):
        with pytest.raises(InputRefused) as caught:
            weight_noise(*bad)
        assert caught.value.code == code
