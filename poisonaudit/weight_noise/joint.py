"""All weight matrices perturbed at once: the numbers an audit reports."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poisonaudit.row_statistics import median
from poisonaudit.weight_noise.conditions import WeightConditions, conditions_of
from poisonaudit.weight_noise.intervals import NOTHING, Interval, mean_share, root_of_mean
from poisonaudit.weight_noise.network import Network, Parameters, read_network
from poisonaudit.weight_noise.noise import Norm, checked_settings, noise_source
from poisonaudit.weight_noise.sampling import Sample, sample


@dataclass(frozen=True)
class JointNoise:
    """Noise in every weight matrix at once, `|eta_i| = rho |W_i|`, independent between matrices.

    Attributes:
        rms: root of the mean over inputs and draws of `(|dv| / |v|)^2`, sampled at the real rho. Unit: none. Infinite
            where an input has v = 0 and moves.
        standard_error: of `rms`; draws are the independent units.
        rms_formula: the same to first order, `sqrt(mean over inputs of sum_i e_i^2 / |v|^2)` with
            `e_i = rho |J_i|_F |W_i| s_i` (`WeightConditions.spread`); NaN where it was not asked for.
        flip_rate: share of draws and inputs whose class of the largest output changes; NaN without classes.
        flip_standard_error: of `flip_rate`.
        rho: noise norm per weight norm.
        draws: number of draws.
        inputs: number of inputs.
        interval: 95 % interval of `rms`; draws are the independent units.
        flip_interval: 95 % interval of `flip_rate`.
        median: median over the inputs of each one's root mean square of `|dv| / |v|`: not carried by few inputs with
            small v.
        zero_outputs: number of inputs with v = 0, for which a relative number says nothing.
        rms_elsewhere: `rms` over the other inputs; NaN if there are none.
    """

    rms: float
    standard_error: float
    rms_formula: float
    flip_rate: float
    flip_standard_error: float
    rho: float
    draws: int
    inputs: int
    interval: tuple[float, float] = (math.nan, math.nan)
    flip_interval: tuple[float, float] = (math.nan, math.nan)
    median: float = math.nan
    zero_outputs: int = 0
    rms_elsewhere: float = math.nan


def joint_weight_noise(
    model: nn.Module,
    x: Tensor,
    rho: float = 0.1,
    draws: int = 64,
    seed: int = 0,
    *,
    parameters: Parameters = "matrices",
    norm: Norm = "frobenius",
    formula: bool = True,
) -> JointNoise:
    """Perturb all weight matrices (not the biases) at once; one forward pass a draw.

    Errors: as `weight_noise`.

    Args:
        model: any network in eval mode; it is not modified.
        x: inputs (batch, ...), of the model's dtype and device.
        rho: noise norm per weight norm.
        draws: number of draws.
        seed: of the noise.
        parameters: which are perturbed, as for `weight_noise`.
        norm: of the matrices: "frobenius" or "spectral".
        formula: whether to compute `rms_formula`, which needs Jacobians.

    Returns:
        Relative movement and share of flipped predictions.
    """
    rho, draws, seed = checked_settings(rho, draws, norm, seed)
    network = read_network(model, x, parameters)
    conditions = conditions_of(network, norm) if formula else None
    drawn = sample(network, noise_source(network.values, network.names, norm, seed), network.names, [rho], draws)
    return summed_up(network, drawn, 0, rho, conditions)


def summed_up(
    network: Network, drawn: Sample, place: int, rho: float, conditions: WeightConditions | None = None
) -> JointNoise:
    """The numbers of one size of noise.

    Args:
        network: what was perturbed.
        drawn: what the draws did.
        place: of the size in it.
        rho: that size.
        conditions: of the same network; None for no formula.

    Returns:
        The numbers.
    """
    size = network.outputs.double().square().sum(1)
    squares = drawn.squares[place]
    relative = ratio(squares, size)
    moved = root_of_mean(relative.mean(1))
    flips = NOTHING if drawn.flips is None else mean_share(drawn.flips[place])
    rest = relative[:, size > 0]
    formula = math.nan if conditions is None else first_order(conditions, rho)
    return JointNoise(
        rms=moved.value,
        standard_error=moved.standard_error,
        rms_formula=formula,
        flip_rate=flips.value,
        flip_standard_error=flips.standard_error,
        rho=rho,
        draws=squares.shape[0],
        inputs=squares.shape[1],
        interval=_ends(moved),
        flip_interval=_ends(flips),
        median=median(relative.mean(0).sqrt()),
        zero_outputs=int((size == 0).sum()),
        rms_elsewhere=float(rest.mean().sqrt()) if rest.numel() else math.nan,
    )


def first_order(conditions: WeightConditions, rho: float) -> float:
    """The formula for all parameters at once, relative: root of the mean over inputs of `sum_i e_i^2 / |v|^2`."""
    size = conditions.outputs.double().square().sum(1)
    return float(ratio(rho**2 * conditions.spread.double().square().sum(0), size).mean().sqrt())


def ratio(movement: Tensor, size: Tensor) -> Tensor:
    """Movement per size, 0 where nothing moved (even if the size is 0)."""
    return torch.where(movement > 0, movement / size, torch.zeros_like(movement))


def _ends(found: Interval) -> tuple[float, float]:
    return found.low, found.high
