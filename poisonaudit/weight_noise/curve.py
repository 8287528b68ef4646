"""`weight_noise_curve`: the same directions of noise at many sizes, one matrix at a time and all at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from poisonaudit.errors import UsageError
from poisonaudit.weight_noise.bounds import Bounds, read_bounds, together
from poisonaudit.weight_noise.conditions import conditions_of
from poisonaudit.weight_noise.intervals import NOTHING, mean_of_roots, mean_share
from poisonaudit.weight_noise.joint import summed_up
from poisonaudit.weight_noise.network import Network, Parameters, read_network
from poisonaudit.weight_noise.noise import Noise, Norm, checked_settings, noise_source
from poisonaudit.weight_noise.sampling import sample

if TYPE_CHECKING:
    import pandas as pd

# 0.1 % to 200 %.
RHOS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0)
# Row of all matrices at once; no parameter has this name, for names hold no blanks.
TOGETHER = "all at once"
CURVE_UNITS = {
    "layer": "name of the weight matrix, or 'all at once'",
    "rho": "noise norm per weight norm",
    "rms_formula": "|dv| in output units, first order",
    "rms_sampled": "|dv| in output units",
    "standard_error": "|dv| in output units",
    "rms_low": "|dv| in output units: 95 % interval of rms_sampled",
    "rms_high": "|dv| in output units: 95 % interval of rms_sampled",
    "relative_rms": "none: root of the mean over inputs and draws of (|dv| / |v|)^2",
    "relative_low": "95 % interval of relative_rms",
    "relative_high": "95 % interval of relative_rms",
    "flip_rate": "share of predictions that change",
    "flip_low": "95 % interval of flip_rate",
    "flip_high": "95 % interval of flip_rate",
    "worst_case": "|dv| in output units: upper bound",
}


def weight_noise_curve(
    model: nn.Module,
    x: Tensor,
    rhos: Sequence[float] = RHOS,
    draws: int = 64,
    seed: int = 0,
    *,
    parameters: Parameters = "matrices",
    norm: Norm = "frobenius",
    layers: bool = True,
    formula: bool = True,
) -> pd.DataFrame:
    """The columns of `weight_noise` against the size of the noise.

    All sizes share their directions of noise, so that a curve is smooth and differences along it are not noise. Errors:
    as `weight_noise`, and UsageError PA321 for no rhos.

    Args:
        model: any network in eval mode; it is not modified.
        x: inputs (batch, ...), of the model's dtype and device.
        rhos: noise norms per weight norm.
        draws: directions, for each matrix and for all at once.
        seed: of the noise.
        parameters: which are perturbed, as for `weight_noise`.
        norm: of the matrices: "frobenius" or "spectral".
        layers: whether each matrix gets a curve of its own beside that of all at once.
        formula: whether to compute `rms_formula` and `worst_case`, which need Jacobians and a trace.

    Returns:
        One row per curve and rho, "all at once" first; columns as `CURVE_UNITS`, which `attrs["units"]` holds too.
    """
    import pandas as pd

    sizes = _checked(rhos, draws, norm, seed)
    network = read_network(model, x, parameters)
    noise = noise_source(network.values, network.names, norm, seed)
    bounds = read_bounds(network) if formula else Bounds((), "not asked for")
    shape = (len(network.names), len(network.x))
    spread = conditions_of(network, norm).spread.double() if formula else torch.full(shape, torch.nan)
    groups = [(TOGETHER, network.names, spread.square().sum(0).sqrt())]
    if layers:
        groups += [(name, (name,), spread[index]) for index, name in enumerate(network.names)]
    records = []
    for label, names, first_order in groups:
        records += _curve(network, noise, bounds, label, names, first_order, sizes, draws)
    frame = pd.DataFrame.from_records(records, columns=list(CURVE_UNITS))
    frame.attrs.update(units=CURVE_UNITS, norm=norm, draws=draws, seed=seed, inputs=len(network.x))
    return frame


def _curve(
    network: Network,
    noise: Noise,
    bounds: Bounds,
    label: str,
    names: Sequence[str],
    first_order: Tensor,
    rhos: Sequence[float],
    draws: int,
) -> list[dict[str, Any]]:
    """The rows of one curve. first_order: (batch,), root mean square per rho."""
    drawn = sample(network, noise, names, rhos, draws)
    sizes = {name: noise.sizes[name] for name in names}
    records = []
    for place, rho in enumerate(rhos):
        moved = mean_of_roots(drawn.squares[place])
        flips = NOTHING if drawn.flips is None else mean_share(drawn.flips[place])
        relative = summed_up(network, drawn, place, rho)
        worst, _ = together(bounds, sizes, rho, len(network.x))
        records.append(
            {
                "layer": label,
                "rho": rho,
                "rms_formula": rho * float(first_order.mean()),
                "rms_sampled": moved.value,
                "standard_error": moved.standard_error,
                "rms_low": moved.low,
                "rms_high": moved.high,
                "relative_rms": relative.rms,
                "relative_low": relative.interval[0],
                "relative_high": relative.interval[1],
                "flip_rate": flips.value,
                "flip_low": flips.low,
                "flip_high": flips.high,
                "worst_case": float(worst.mean()),
            }
        )
    return records


def _checked(rhos: Sequence[float], draws: int, norm: str, seed: int) -> list[float]:
    if not isinstance(rhos, Iterable) or not list(rhos):
        raise UsageError("PA321", f"rhos is {rhos!r}; each is noise norm per weight norm. Give several, such as [0.1].")
    return [checked_settings(rho, draws, norm, seed)[0] for rho in rhos]
