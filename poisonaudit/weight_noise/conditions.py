"""Condition numbers of the outputs in each weight matrix, the rms formula and the worst case, per input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from poisonaudit.weight_noise.bounds import bound_factors
from poisonaudit.weight_noise.intervals import mean_of_roots
from poisonaudit.weight_noise.jacobians import fits, grams
from poisonaudit.weight_noise.network import Network, Parameters, read_network
from poisonaudit.weight_noise.noise import Norm, checked_settings, isotropic_factor, size_of
from poisonaudit.weight_noise.probes import spectral_norms, squared_norms

# Random directions per parameter where exact Jacobians do not fit: a standard error of a few percent of one row.
PROBES = 64


@dataclass(frozen=True)
class WeightConditions:
    """Per perturbed parameter i and input, with `J_i = dv/dW_i` and v the outputs.

    For a Linear layer `|J_i| = |B_i| |z_(i-1)|` in either norm, with `B_i = dv/dh_i` and its input `z_(i-1)`.

    Attributes:
        names: parameters in named_parameters() order.
        absolute: (parameters, batch), `|J_i|_2`: largest |dv| per |dW_i|_F to first order. For a Linear layer applied
            once to a row it is the same per |dW_i|_2; for others a lower bound of that. Unit: output per weight.
        relative: (parameters, batch), `absolute |W_i| / |v|`, |W_i| in the norm `norm`. Unit: none. Infinite where
            v = 0 and the numerator is not, 0 where both are.
        spread: (parameters, batch), `|J_i|_F |W_i| s_i`: root mean square of |dv| per rho under isotropic noise, to
            first order; `s_i = 1 / sqrt(numel W_i)` in the Frobenius norm. Unit: output.
        worst: (parameters, batch), bound on |dv| per rho for every noise with `|eta| = rho |W_i|`, at any rho; NaN
            where no bound is known. Unit: output.
        outputs: (batch, c), v.
        spread_error: (parameters,), standard error of the mean over inputs of `spread`: 0 where it is exact.
        method: "exact", or "probes": squares of `spread` are then unbiased estimates.
        norm: of W_i, and of the noise behind `spread` and `worst`: "frobenius" or "spectral".
        reasons: by name why `worst` is not available.
        zero_outputs: number of inputs with v = 0.
    """

    names: tuple[str, ...]
    absolute: Tensor
    relative: Tensor
    spread: Tensor
    worst: Tensor
    outputs: Tensor
    spread_error: Tensor
    method: str = "exact"
    norm: str = "frobenius"
    reasons: Mapping[str, str] = field(default_factory=dict)
    zero_outputs: int = 0


def weight_conditions(
    model: nn.Module,
    x: Tensor,
    *,
    parameters: Parameters = "matrices",
    norm: Norm = "frobenius",
    probes: int | None = None,
    seed: int = 0,
) -> WeightConditions:
    """Condition numbers of every weight matrix at every input.

    Errors: InputRefused as `weight_noise`, UsageError PA321 for bad probes.

    Args:
        model: any network in eval mode that treats each row by itself.
        x: inputs (batch, ...).
        parameters: which are perturbed, as for `weight_noise`.
        norm: of the matrices.
        probes: random directions per parameter instead of exact Jacobians; None for exact ones where those of a row fit
            in 1 GiB, else 64. With probes `absolute` comes from Lanczos: dozens of passes per parameter and row.
        seed: of the probes.

    Returns:
        Tensors (parameters, batch), in the dtype and on the device of the outputs.
    """
    _, _, seed = checked_settings(1.0, 2, norm, seed, probes)
    return conditions_of(read_network(model, x, parameters), norm, probes, seed)


def conditions_of(
    network: Network, norm: Norm = "frobenius", probes: int | None = None, seed: int = 0
) -> WeightConditions:
    """The same from a network that was already read."""
    outputs = network.outputs
    sizes = {name: size_of(network.values[name], norm) for name in network.names}
    factors = torch.tensor(
        [sizes[name] * isotropic_factor(network.values[name], norm) for name in network.names], dtype=torch.float64
    ).to(outputs.device)
    error = torch.zeros_like(factors)
    if probes is None and fits(network):
        spectral, frobenius = _exact(network)
        method = "exact"
    else:
        squares = squared_norms(network, probes or PROBES, seed)
        frobenius = squares.mean(1).sqrt()
        found = [mean_of_roots(part).standard_error for part in squares]
        error = torch.tensor(found, dtype=torch.float64, device=outputs.device) * factors
        spectral = spectral_norms(network)
        method = "probes"
    lengths = outputs.double().norm(dim=1)
    reach = spectral * torch.tensor(list(sizes.values()), dtype=torch.float64, device=outputs.device).unsqueeze(1)
    relative = torch.where(reach > 0, reach / lengths, torch.zeros_like(reach))
    worst, reasons = bound_factors(network, sizes)
    return WeightConditions(
        names=network.names,
        absolute=spectral.to(outputs.dtype),
        relative=relative.to(outputs.dtype),
        spread=(frobenius * factors.unsqueeze(1)).to(outputs.dtype),
        worst=worst.to(outputs.dtype),
        outputs=outputs,
        spread_error=error,
        method=method,
        norm=norm,
        reasons=reasons,
        zero_outputs=int((lengths == 0).sum()),
    )


def _exact(network: Network) -> tuple[Tensor, Tensor]:
    """`|J_i|_2` and `|J_i|_F`, each (parameters, batch)."""
    spectral, frobenius = [], []
    for part in grams(network):
        spectral.append(torch.linalg.eigvalsh(part.values)[..., -1].clamp_min(0.0).sqrt())
        frobenius.append(part.values.diagonal(dim1=2, dim2=3).sum(2).sqrt())
    return torch.cat(spectral, dim=1), torch.cat(frobenius, dim=1)
