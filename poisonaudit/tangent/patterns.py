"""Activation patterns: which ReLU-like units are on, for which inputs, and how many patterns a data set meets."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused
from poisonaudit.tangent.checks import check_model
from poisonaudit.tangent.preactivations import Seen, preactivations

# Rows run at once, so that wide convolutional layers fit into memory.
_ROWS = 32
# scipy's test of D'Agostino and Pearson warns below this.
_FEWEST = 20
_TEST = "D'Agostino and Pearson"


@dataclass(frozen=True)
class Normality:
    """Is the number of active units normally distributed?

    Attributes:
        test: name of the test.
        statistic: its value, or None.
        p_value: probability of a value at least as large for normal totals, or None.
        reason: why there is no p value, else "".
    """

    test: str
    statistic: float | None
    p_value: float | None
    reason: str


@dataclass(frozen=True, eq=False)
class ActivationPatterns:
    """Signs of the pre-activations of every ReLU-like unit (ReLU, LeakyReLU, PReLU), counted.

    A unit is active where its input is above 0, the side whose slope automatic differentiation takes. Rows with one
    pattern lie in one activation region, on which a net without other bends is linear.

    Attributes:
        layers: names of the layers that hold units, in the order they ran.
        units: their number of units.
        active: (batch, layers) active units.
        total: (batch,) active units of all layers, Daroczy's T(x).
        distinct: number of distinct patterns met.
        region_of: (batch,) index of each row's region, counted in the order of the rows.
        mean: of the totals.
        deviation: of the totals, with n - 1; 0 for one row.
        normality: of the totals.
        others: names of other operators that bend (tanh, max pooling, ...), which the patterns do not hold.
    """

    layers: tuple[str, ...]
    units: tuple[int, ...]
    active: Tensor
    total: Tensor
    distinct: int
    region_of: Tensor
    mean: float
    deviation: float
    normality: Normality
    others: tuple[str, ...]

    @property
    def share(self) -> float:
        """Mean share of units that are active, 0 to 1."""
        return self.mean / sum(self.units)


def activation_patterns(model: nn.Module, x: Tensor) -> ActivationPatterns:
    """Count the active ReLU-like units of each row and the distinct activation patterns (Daroczy, section 3.1).

    Works for any eval-mode net, convolutional and residual ones too: the units are found while the net runs.

    Errors: InputRefused PA120 train-mode layers, PA121 mixed dtypes or devices, PA122 no parameters, PA124 NaN or
    infinite weights, PA127 no module or tensor, PA210 NaN or infinite inputs, PA211 shapes, PA153 units whose inputs
    do not come row by row, PA154 no ReLU-like unit.

    Args:
        model: module in eval mode, of one dtype.
        x: inputs (batch, ...) of the same dtype and device.

    Returns:
        The counts, integers on the device of x.
    """
    check_model(model, x)
    counts: list[Tensor] = []
    regions: list[int] = []
    found: dict[bytes, int] = {}
    for rows in x.split(_ROWS):
        seen = refuse_without_units(preactivations(model, rows))
        signs = [value > 0 for value in seen.values]
        counts.append(torch.stack([sign.sum(1) for sign in signs], dim=1))
        packed = np.packbits(torch.cat(signs, dim=1).cpu().numpy(), axis=1)
        regions += [found.setdefault(blake2b(row.tobytes(), digest_size=16).digest(), len(found)) for row in packed]
    active = torch.cat(counts)
    total = active.sum(1)
    numbers = total.double()
    return ActivationPatterns(
        layers=seen.names,
        units=tuple(value.shape[1] for value in seen.values),
        active=active,
        total=total,
        distinct=len(found),
        region_of=torch.tensor(regions, device=x.device),
        mean=float(numbers.mean()),
        deviation=float(numbers.std()) if len(numbers) > 1 else 0.0,
        normality=normality(numbers),
        others=seen.others,
    )


def activation_signs(model: nn.Module, x: Tensor) -> Tensor:
    """The patterns themselves: 1 where a ReLU-like unit is active, -1 elsewhere, (batch, units) as int8.

    Errors: as `activation_patterns`.

    Args:
        model: module in eval mode.
        x: inputs (batch, ...).

    Returns:
        Layers one after another in the order they ran; units of a layer in row-major order.
    """
    check_model(model, x)
    pieces = []
    for rows in x.split(_ROWS):
        seen = refuse_without_units(preactivations(model, rows))
        pieces.append(torch.cat([(value > 0).to(torch.int8) * 2 - 1 for value in seen.values], dim=1))
    return torch.cat(pieces)


def normality(totals: Tensor) -> Normality:
    """Test totals for a normal distribution by skewness and kurtosis (D'Agostino and Pearson).

    Totals are whole numbers, so a large enough sample rejects however bell-shaped they look.

    Args:
        totals: (n,).

    Returns:
        The test; without a p value for fewer than 20 rows or one value only, with the reason.
    """
    from scipy.stats import normaltest

    if len(totals) < _FEWEST:
        return Normality(_TEST, None, None, f"{len(totals)} rows; the test needs {_FEWEST}")
    if bool((totals == totals[0]).all()):
        return Normality(_TEST, None, None, "all rows have the same number of active units")
    statistic, p_value = normaltest(totals.double().cpu().numpy())
    return Normality(_TEST, float(statistic), float(p_value), "")


def refuse_without_units(seen: Seen) -> Seen:
    """The run, if it met ReLU-like units.

    Args:
        seen: the run.

    Returns:
        The same run.

    Raises:
        InputRefused: PA154, it met none.
    """
    if not seen.values:
        met = f"; it bends by {', '.join(seen.others)}" if seen.others else ""
        raise InputRefused(
            "PA154",
            f"the model runs no ReLU, LeakyReLU or PReLU, so it has no activation patterns{met}. "
            "Pass a net with such units.",
        )
    return seen
