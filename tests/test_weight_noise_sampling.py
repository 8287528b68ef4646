"""Monte Carlo of weight noise: seeds, blocks, intervals that cover, and curves over the size of the noise."""

from __future__ import annotations

import copy
import importlib
import math

import numpy as np
import pytest
import torch
from noise_networks import drawn, mlp, rows, zoo
from torch import Tensor, nn

from poisonaudit.errors import UsageError
from poisonaudit.weight_noise import (
    CURVE_UNITS,
    RHOS,
    TOGETHER,
    joint_weight_noise,
    weight_noise,
    weight_noise_curve,
)
from poisonaudit.weight_noise.intervals import mean_of_roots, mean_share, root_of_mean, skewed_interval
from poisonaudit.weight_noise.network import read_network
from poisonaudit.weight_noise.noise import gaussian, noise_source
from poisonaudit.weight_noise.sampling import sample

NETS = zoo()
sampling = importlib.import_module("poisonaudit.weight_noise.sampling")


def samples(name: str, draws: int, seed: int, names: list[str] | None = None, rho: float = 0.3) -> sampling.Sample:
    model, x = NETS[name]
    network = read_network(model, x)
    chosen = list(network.names) if names is None else names
    return sample(network, noise_source(network.values, chosen, "frobenius", seed), chosen, [rho], draws)


# Seeds


@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "attention", "tied"])
def test_a_seed_means_the_same_noise_in_any_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = NETS[name]
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    whole = weight_noise(model, x, draws=9, seed=7)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    for patches in (
        {"sampling._SMALL": 0},
        {"sampling._SMALL": 2**30, "sampling._BLOCK": 2**30},
        {"sampling._SMALL": 2**30, "sampling._BLOCK": 1500},
        {"network._ENTRIES": 50},
    ):
        with monkeypatch.context() as patch:
            for key, value in patches.items():
                room, constant = key.split(".")
                patch.setattr(importlib.import_module(f"poisonaudit.weight_noise.{room}"), constant, value)
            other = weight_noise(model, x, draws=9, seed=7)
        difference = (whole.drop(columns="layer") - other.drop(columns="layer")).abs().to_numpy()
        assert np.nanmax(difference) < 1e-12 * float(np.nanmax(whole.drop(columns="layer").abs()))
    assert (weight_noise(model, x, draws=9, seed=8)["rms_sampled"] != whole["rms_sampled"]).all()


def test_streams_depend_on_seed_name_and_draw_alone() -> None:
    model, x = NETS["mlp"]
    network = read_network(model, x)
    every = noise_source(network.values, network.names, "frobenius", 3)
    alone = noise_source(network.values, network.names[1:2], "frobenius", 3)
    name = network.names[1]
    assert torch.equal(every.unit(name, 4), alone.unit(name, 4))
    single = noise_source({name: network.values[name].float()}, [name], "frobenius", 3)
    torch.testing.assert_close(single.unit(name, 4), every.unit(name, 4), rtol=1e-6, atol=0)
    assert single.added({name: single.unit(name, 4)}, 0.1)[name].dtype == torch.float32
    seen = {tuple(gaussian((3,), seed, stream, draw).tolist()) for seed in (0, 1) for stream in "ab" for draw in (0, 1)}
    assert len(seen) == 8
    short, long = samples("mlp", 5, 1), samples("mlp", 9, 1)
    torch.testing.assert_close(short.squares[0], long.squares[0, :5], rtol=1e-12, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_noise_on_another_device() -> None:
    for name in ("mlp", "conv", "residual"):
        model, x = NETS[name]
        here = weight_noise(model, x, draws=8, seed=2)
        there = weight_noise(copy.deepcopy(model).cuda(), x.cuda(), draws=8, seed=2)
        assert (here.drop(columns="layer") - there.drop(columns="layer")).abs().to_numpy().max() < 1e-9


# Exact values


def test_last_layer_is_exact_at_any_size() -> None:
    """Outputs are linear in the last matrix: E|dv|^2 = rho^2 |W|^2 |z|^2 / columns."""
    model, x = NETS["conv"]
    entering = nn.Sequential(*list(model)[:-1])(x).detach()
    weight = model[-1].weight.detach()
    for rho in (0.01, 2.0):
        exact = rho * float(weight.norm()) * entering.norm(dim=1) / weight.shape[1] ** 0.5
        drawn_squares = samples("conv", 3000, 1, ["7.weight"], rho).squares[0]
        error = drawn_squares.std(0) / 3000**0.5
        assert bool(((drawn_squares.mean(0) - exact.square()).abs() < 4 * error).all())
        frame = weight_noise(model, x, rho=rho, draws=4)
        assert frame["rms_formula"].iloc[-1] == pytest.approx(float(exact.mean()), rel=1e-10)


# Intervals


def covered(name: str, repeats: int, draws: int, rho: float, names: list[str] | None = None) -> dict[str, float]:
    """Shares of repeats whose 95 % interval holds the value of a run 100 times as long (with other noise)."""
    long = samples(name, 100 * draws, 1, names, rho)
    truths = {
        "rms": mean_of_roots(long.squares[0]).value,
        "root": root_of_mean(long.squares[0].mean(1)).value,
        "flips": math.nan if long.flips is None else mean_share(long.flips[0]).value,
    }
    held = dict.fromkeys(truths, 0)
    many = samples(name, repeats * draws, 2, names, rho)
    for repeat in range(repeats):
        part = slice(repeat * draws, (repeat + 1) * draws)
        squares = many.squares[0, part]
        found = {"rms": mean_of_roots(squares), "root": root_of_mean(squares.mean(1))}
        if many.flips is not None:
            found["flips"] = mean_share(many.flips[0, part])
        for key, interval in found.items():
            assert interval.low <= interval.value <= interval.high
            held[key] += interval.low <= truths[key] <= interval.high
    return {key: count / repeats for key, count in held.items()}


@pytest.mark.parametrize(("name", "names"), [("mlp", None), ("mlp", ["4.weight"]), ("conv 1d", None)])
def test_intervals_hold_the_value_of_a_run_100_times_as_long(name: str, names: list[str] | None) -> None:
    found = covered(name, repeats=100, draws=64, rho=0.3, names=names)
    # 95 % of 100 with three standard errors, the long run's own error within.
    assert all(share >= 0.88 for share in found.values()), found


@pytest.mark.soak
@pytest.mark.parametrize("rho", [0.1, 1.0])
@pytest.mark.parametrize("name", ["mlp", "conv", "residual"])
def test_intervals_cover_as_stated(name: str, rho: float) -> None:
    model, x = NETS[name]
    for names in (None, [read_network(model, x).names[0]]):
        found = covered(name, repeats=1000, draws=64, rho=rho, names=names)
        assert 0.925 <= found["rms"] <= 0.975 and 0.925 <= found["root"] <= 0.975, found
        assert found["flips"] >= 0.92, found


def test_skewed_interval_of_a_chi_square_with_one_degree() -> None:
    """Plain t covers 88.5 % there with 16 draws."""
    generator = torch.Generator().manual_seed(0)
    drawn_squares = torch.randn(2000, 16, generator=generator, dtype=torch.float64).square()
    held = 0
    for values in drawn_squares:
        low, high = skewed_interval(float(values.mean()), values - values.mean())
        held += low <= 1.0 <= high
    assert 0.925 <= held / 2000 <= 0.955
    symmetric = torch.tensor([-1.0, 1.0, -2.0, 2.0], dtype=torch.float64)
    low, high = skewed_interval(0.0, symmetric)
    assert low == pytest.approx(-high) and high == pytest.approx(3.1824463 * float(symmetric.std()) / 2, rel=1e-6)


def test_shares_without_any_event() -> None:
    none = mean_share(torch.zeros(64, dtype=torch.float64))
    assert (none.value, none.low) == (0.0, 0.0) and none.high == pytest.approx(1 - 0.025 ** (1 / 64))
    every = mean_share(torch.ones(64, dtype=torch.float64))
    assert every.high == 1.0 and every.low == pytest.approx(0.025 ** (1 / 64))
    constant = mean_share(torch.full((8,), 0.25, dtype=torch.float64))
    assert (constant.low, constant.high) == (0.25, 0.25)


# All at once, and curves


def test_flip_rate_of_one_row_is_the_exact_probability() -> None:
    """v = W x with two outputs: d = dv_2 - dv_1 is sqrt(2) |x| times one coordinate of the noise, on its sphere."""
    from scipy.special import betainc

    model = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0, 0], [0.4, 0, 0]]))
    x = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    radius = 1.5 * float(model.weight.detach().norm())
    t = 0.6 / (2**0.5 * radius)
    exact = 0.5 * betainc(2.5, 0.5, 1 - t * t)
    found = joint_weight_noise(model, x, rho=1.5, draws=2000)
    assert abs(found.flip_rate - exact) < 3.5 * found.flip_standard_error
    assert found.flip_interval[0] < exact < found.flip_interval[1]


def test_zero_outputs_are_flagged() -> None:
    model = mlp([3, 2], bias=False)
    x = torch.cat([torch.zeros(1, 3, dtype=torch.float64), rows(3, 3)])
    still = joint_weight_noise(model, x)
    assert still.zero_outputs == 1 and math.isfinite(still.rms)  # noise moves nothing there either
    # Multiples of 1/8, whose sums are exact in any order.
    shifted, x = mlp([3, 2]), (8 * x).round() / 8
    with torch.no_grad():
        shifted[0].weight.copy_((8 * shifted[0].weight).round() / 8)
        shifted[0].bias.copy_(-shifted[0].weight @ x[1])
    found = joint_weight_noise(shifted, x)
    elsewhere = joint_weight_noise(shifted, x[[0, 2, 3]])
    assert found.zero_outputs == 1 and math.isinf(found.rms) and math.isnan(found.standard_error)
    assert found.rms_elsewhere == pytest.approx(elsewhere.rms, rel=1e-12) and math.isfinite(found.median)
    assert math.isinf(weight_noise(shifted, x)["condition_relative"][0])
    assert weight_noise(shifted, x).attrs["zero_outputs"] == 1


def test_extended_columns() -> None:
    model, x = NETS["residual"]
    plain, more = weight_noise(model, x, draws=12), weight_noise(model, x, draws=12, extended=True)
    names = "layer condition_absolute condition_relative rms_formula rms_sampled standard_error flip_rate worst_case"
    assert list(plain.columns) == names.split() and list(more.columns)[:8] == names.split()
    assert plain.equals(more[plain.columns]) and set(more.attrs["units"]) == set(more.columns)
    assert (more["rms_low"] < more["rms_sampled"]).all() and (more["rms_sampled"] < more["rms_high"]).all()
    joint = joint_weight_noise(model, x, draws=12)
    assert more.attrs["joint"] == vars(joint) and joint.interval[0] < joint.rms < joint.interval[1]
    assert math.isnan(joint_weight_noise(model, x, draws=3, formula=False).rms_formula)


def test_curve_is_the_table_at_every_size() -> None:
    model, x = NETS["conv"]
    frame = weight_noise_curve(model, x, draws=6, seed=4)
    assert list(frame.columns) == list(CURVE_UNITS) and sorted(set(frame["rho"])) == list(RHOS)
    assert RHOS[0] == 0.001 and RHOS[-1] == 2.0
    for rho in (0.001, 2.0):
        at = frame[frame["rho"] == rho].set_index("layer")
        table = weight_noise(model, x, rho=rho, draws=6, seed=4, extended=True).set_index("layer")
        for column in ("rms_formula", "rms_sampled", "flip_rate", "worst_case", "rms_low", "relative_rms"):
            for layer in table.index:
                assert at.loc[layer, column] == pytest.approx(table.loc[layer, column], rel=1e-10)
        joint = joint_weight_noise(model, x, rho, 6, 4)
        assert at.loc[TOGETHER, "relative_rms"] == pytest.approx(joint.rms, rel=1e-10)
        assert at.loc[TOGETHER, "flip_rate"] == joint.flip_rate
    small = frame[frame["rho"] == 0.001]
    assert (small["rms_sampled"] < 2.5 * small["rms_formula"]).all()
    one = weight_noise_curve(model, x, [0.1], draws=3, layers=False)
    assert list(one["layer"]) == [TOGETHER]
    for bad in ([], [0.1, -1.0], [math.nan]):
        with pytest.raises(UsageError, match="PA321"):
            weight_noise_curve(model, x, bad)


def test_an_operation_without_a_batched_form_is_run_draw_by_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.detach().sum()) > 0 else 2.0 * x

    model, x = drawn(nn.Sequential(nn.Linear(3, 3), Branching(), nn.Linear(3, 2))), rows(1, 3)
    together = weight_noise(model, x, draws=6)
    monkeypatch.setattr(sampling, "_SMALL", 0)
    alone = weight_noise(model, x, draws=6)
    assert together.drop(columns="worst_case").equals(alone.drop(columns="worst_case"))
    assert "traced" in together.attrs["no_bound"]["0.weight"] and math.isnan(together["worst_case"][0])
