"""`weight_noise`: one weight matrix perturbed at a time, formula beside Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from poisonaudit.row_statistics import median
from poisonaudit.weight_noise.bounds import alone, read_bounds
from poisonaudit.weight_noise.conditions import WeightConditions, conditions_of
from poisonaudit.weight_noise.intervals import NOTHING, mean_of_roots, mean_share
from poisonaudit.weight_noise.joint import ratio, summed_up
from poisonaudit.weight_noise.network import Network, Parameters, read_network
from poisonaudit.weight_noise.noise import Noise, Norm, checked_settings, noise_source
from poisonaudit.weight_noise.sampling import sample

if TYPE_CHECKING:
    import pandas as pd

UNITS = {
    "layer": "name of the weight matrix",
    "condition_absolute": "|dv| per |dW| (output units per weight unit)",
    "condition_relative": "none: (|dv| / |v|) per (|dW| / |W|)",
    "rms_formula": "|dv| in output units",
    "rms_sampled": "|dv| in output units",
    "standard_error": "|dv| in output units",
    "flip_rate": "share of predictions that change",
    "worst_case": "|dv| in output units",
}
EXTENDED_UNITS = {
    "rms_low": "|dv| in output units: 95 % interval of rms_sampled",
    "rms_high": "|dv| in output units: 95 % interval of rms_sampled",
    "flip_low": "95 % interval of flip_rate",
    "flip_high": "95 % interval of flip_rate",
    "formula_error": "|dv| in output units: standard error of rms_formula, 0 where it is exact",
    "relative_formula": "none: relative_rms to first order",
    "relative_rms": "none: root of the mean over inputs and draws of (|dv| / |v|)^2",
    "relative_error": "none: standard error of relative_rms",
    "relative_low": "95 % interval of relative_rms",
    "relative_high": "95 % interval of relative_rms",
    "relative_median": "none: median over the inputs of each one's root mean square of |dv| / |v|",
    "condition_median": "none: median over the inputs of the relative condition number",
}
NORMS = {
    "dv, v, z": "Euclidean",
    "dv/dW": "spectral (condition_absolute, condition_relative), Frobenius (rms_formula)",
    "W": "that of attrs['norm'] (noise size, condition_relative), spectral (the later matrices in worst_case)",
}


def weight_noise(
    model: nn.Module,
    x: Tensor,
    rho: float = 0.1,
    draws: int = 64,
    seed: int = 0,
    *,
    parameters: Parameters = "matrices",
    norm: Norm = "frobenius",
    probes: int | None = None,
    extended: bool = False,
) -> pd.DataFrame:
    """How the outputs v move when isotropic noise of `|eta| = rho |W_i|` is added to one weight matrix.

    With `J_i = dv/dW_i`, for a Linear layer `|J_i| = |dv/dh_i| |z_(i-1)|`, the columns are means over the inputs of:

    - `condition_absolute`: `|J_i|_2`;
    - `condition_relative`: the same times `|W_i| / |v|`; infinite where an input has v = 0;
    - `rms_formula`: `rho |J_i|_F |W_i|_F / sqrt(numel W_i)`, the root of the first-order expectation of `|dv|^2` (exact
      where nothing nonlinear follows);
    - `rms_sampled`: the root over the draws of the mean `|dv|^2` at the real rho: the same quantity sampled;
    - `standard_error` of `rms_sampled`; the draws are the independent units, for one noise matrix serves all
      inputs;
    - `flip_rate`: share of draws that change the class of the largest output; NaN where outputs name no class;
    - `worst_case`: bound on `|dv|` for any noise of this size, activations steeper than 1 included; NaN where none is
      known, with the reason in `attrs["no_bound"]`.

    `rms_*` and `worst_case` are |dv| in output units, not |dv| / |v| (see `attrs["units"]`); the audit's
    `weight_noise.rms` is relative and comes from `joint_weight_noise`.

    Errors: UsageError PA321 bad rho, draws, probes or seed, PA301 an unknown norm or parameter; InputRefused PA120
    train-mode Dropout or normalisation, PA121 mixed dtypes or devices, PA129 rows mixed or drawn at random, PA152 no
    weight matrix, PA210 NaN inputs or weights, PA211 shapes.

    Args:
        model: any network in eval mode that treats each row by itself; it is not modified.
        x: inputs (batch, ...), of the model's dtype and device.
        rho: noise norm per weight norm.
        draws: noise matrices per weight matrix.
        seed: of the noise.
        parameters: "matrices", parameters with two or more dimensions, kernels included, outside normalisation
            layers: biases and normalisation stay; "all", those too, each as a parameter of its own; or names.
        norm: of the matrices (a kernel as output channels by all else): "frobenius" or "spectral".
        probes: random directions for `rms_formula` instead of exact Jacobians; see `weight_conditions`.
        extended: add intervals and relative numbers as columns (`EXTENDED_UNITS`), and in `attrs["joint"]` all
            matrices at once.

    Returns:
        One row per weight matrix, in named_parameters() order; `attrs` holds units, norms, settings, the number of
        inputs, of those with v = 0, which parameters stayed, and how the formula was computed.
    """
    import pandas as pd

    rho, draws, seed = checked_settings(rho, draws, norm, seed, probes)
    network = read_network(model, x, parameters)
    noise = noise_source(network.values, network.names, norm, seed)
    conditions = conditions_of(network, norm, probes, seed)
    bounds, reasons = read_bounds(network), {}
    records = []
    for index, name in enumerate(network.names):
        worst, reason = alone(bounds, name, noise.sizes[name], rho, len(network.x))
        if reason:
            reasons[name] = reason
        drawn = sample_row(network, noise, name, rho, draws)
        records.append({**_formulas(conditions, index, rho), **drawn, "worst_case": float(worst.mean())})
    columns = [*UNITS, *EXTENDED_UNITS] if extended else list(UNITS)
    frame = pd.DataFrame.from_records(records)[columns]
    frame.attrs.update(
        units={**UNITS, **EXTENDED_UNITS} if extended else UNITS,
        norms=NORMS,
        norm=norm,
        rho=rho,
        draws=draws,
        seed=seed,
        inputs=len(network.x),
        zero_outputs=conditions.zero_outputs,
        unperturbed=list(network.left_out),
        formula=conditions.method,
        no_bound=reasons,
    )
    if extended:
        together = sample(network, noise, network.names, [rho], draws)
        frame.attrs["joint"] = vars(summed_up(network, together, 0, rho, conditions))
    return frame


def _formulas(conditions: WeightConditions, index: int, rho: float) -> dict[str, Any]:
    """What needs no draws, of one parameter."""
    size = conditions.outputs.double().square().sum(1)
    relative = ratio((rho * conditions.spread[index].double()).square(), size).mean().sqrt()
    return {
        "layer": conditions.names[index],
        "condition_absolute": float(conditions.absolute[index].double().mean()),
        "condition_relative": float(conditions.relative[index].double().mean()),
        "condition_median": median(conditions.relative[index]),
        "rms_formula": rho * float(conditions.spread[index].double().mean()),
        "relative_formula": float(relative),
        "formula_error": rho * float(conditions.spread_error[index]),
    }


def sample_row(network: Network, noise: Noise, name: str, rho: float, draws: int) -> Mapping[str, float]:
    """Monte Carlo of one parameter alone.

    Args:
        network: what is perturbed.
        noise: where the noise comes from.
        name: of the parameter.
        rho: noise norm per weight norm.
        draws: number of draws.

    Returns:
        The sampled columns.
    """
    drawn = sample(network, noise, [name], [rho], draws)
    moved = mean_of_roots(drawn.squares[0])
    flips = NOTHING if drawn.flips is None else mean_share(drawn.flips[0])
    relative = summed_up(network, drawn, 0, rho)
    return {
        "rms_sampled": moved.value,
        "standard_error": 0.0 if moved.value == 0 else moved.standard_error,
        "rms_low": moved.low,
        "rms_high": moved.high,
        "flip_rate": flips.value if drawn.flips is not None else math.nan,
        "flip_low": flips.low,
        "flip_high": flips.high,
        "relative_rms": relative.rms,
        "relative_error": relative.standard_error,
        "relative_low": relative.interval[0],
        "relative_high": relative.interval[1],
        "relative_median": relative.median,
    }
