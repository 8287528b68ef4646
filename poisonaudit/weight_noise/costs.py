"""How long weight noise takes, from counted operations: the same on every machine, so that runs can be repeated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from poisonaudit.weight_noise.jacobians import fits
from poisonaudit.weight_noise.network import Parameters, entries_of, read_network

# Operations a second of one idle core, measured on ResNet-20 in single precision; double precision takes twice as long.
_RATE = {torch.float32: 5e10, torch.float64: 2.5e10}
# Seconds of a pass that do not depend on its size, and per entry of noise.
_CALL, _ENTRY = 1e-3, 3e-8
# A backward pass for one output with its product of slopes and patches, in forward passes: measured 4 on ResNet-20.
_BACKWARD = 4.0


@dataclass(frozen=True)
class NoiseCosts:
    """Seconds, estimated.

    Attributes:
        draw: one draw of noise in all parameters, for one row.
        overhead: of a draw whatever the rows.
        jacobian: exact Jacobians of one row; infinite where they do not fit in memory.
    """

    draw: float
    overhead: float
    jacobian: float


def noise_costs(model: nn.Module, x: Tensor, parameters: Parameters = "matrices") -> NoiseCosts:
    """Count the operations of one row.

    Errors: InputRefused as `weight_noise`.

    Args:
        model: any network in eval mode.
        x: inputs.
        parameters: which are perturbed.

    Returns:
        Estimates.
    """
    network = read_network(model, x[:1], parameters)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.at({}, network.x)
    forward = counter.get_total_flops() / _RATE.get(network.outputs.dtype, 2.5e10)
    overhead = _CALL + _ENTRY * entries_of(network.values, network.names)
    outputs = network.outputs.shape[1]
    per_row = (1.0 + _BACKWARD * outputs) * forward + 1e-5 * outputs
    return NoiseCosts(forward, overhead, per_row if fits(network) else float("inf"))
