"""All upper bounds of the tangent sensitivity of one net, beside its exact mean."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from torch import Tensor, nn

from poisonaudit.tangent.checks import check_model
from poisonaudit.tangent.moments import empirical_moment, log_theorem32_if_normal, theorem32
from poisonaudit.tangent.path_bounds import (
    absolute_bound,
    common_logarithm,
    from_logarithm,
    path_bound,
    rounded_up,
    theorem31,
)
from poisonaudit.tangent.path_net import PathNet, path_net
from poisonaudit.tangent.printed import theorem31_as_printed, theorem31_loose_as_printed, theorem32_as_printed
from poisonaudit.tangent.sensitivity import tangent_sensitivity

if TYPE_CHECKING:
    import pandas

EVERY_INPUT = "every input"
THESE_ROWS = "the mean over these rows"
IF_NORMAL = "the mean, if the number of active units were normal"
NOTHING = "as printed, not a bound"
_TEN = math.log(10.0)


@dataclass(frozen=True)
class TangentBound:
    """One bound of the mean of `|S(x)|_F^2`.

    Attributes:
        name: path, path_active, absolute, theorem31, theorem32, theorem32_gaussian; as printed, with a name that says
            so.
        value: the number; infinite where float64 overflows.
        log10: its common logarithm, also there; minus infinity for 0.
        ratio: over the exact mean; None where that is 0 or infinite.
        holds: for what: every input, the mean over the rows given, or only under an assumption.
    """

    name: str
    value: float
    log10: float
    ratio: float | None
    holds: str


@dataclass(frozen=True)
class TangentBounds:
    """Bounds of the mean over rows of `|S(x)|_F^2`, jacobian convention, beside the exact mean.

    Always exact <= absolute <= path <= theorem31, and exact <= path_active <= path and theorem32.

    Attributes:
        exact: mean of `tangent_sensitivity` over the rows, in float64.
        standard_error: of that mean, for inputs like these rows; None for one row.
        rows: their number.
        absolute: adds up absolute path products, all units active; plain floating point, the others are rounded up.
        path: counts paths, each worth the largest weight of every other matrix.
        path_active: the same with the active units of every row.
        theorem31: Daroczy's theorem 3.1, the output layer counted in N_max.
        theorem32: the corrected theorem 3.2 with the empirical moment of the number of active units.
        theorem32_gaussian: the same with the moment of a normal distribution of equal mean and deviation.
        order: q of `theorem32`.
        active_mean: mean of the number T(x) of active units.
        active_deviation: its deviation over the rows.
        as_printed: the theorems as printed; not bounds.
    """

    exact: float
    standard_error: float | None
    rows: int
    absolute: TangentBound
    path: TangentBound
    path_active: TangentBound
    theorem31: TangentBound
    theorem32: TangentBound
    theorem32_gaussian: TangentBound
    order: int
    active_mean: float
    active_deviation: float
    as_printed: tuple[TangentBound, ...]

    @property
    def bounds(self) -> tuple[TangentBound, ...]:
        """All but the printed forms."""
        return (
            self.path_active,
            self.absolute,
            self.path,
            self.theorem31,
            self.theorem32,
            self.theorem32_gaussian,
        )

    def to_frame(self) -> pandas.DataFrame:
        """One row per bound, the printed forms last: bound, value, log10, ratio, holds."""
        import pandas

        names = {"name": "bound", "value": "value", "log10": "log10", "ratio": "ratio", "holds": "holds"}
        found = [*self.bounds, *self.as_printed]
        return pandas.DataFrame({told: [getattr(one, name) for one in found] for name, told in names.items()})


def tangent_bounds(model: nn.Module, x: Tensor) -> TangentBounds:
    """Bound the mean of `|S(x)|_F^2` over rows in six ways, beside its exact value.

    They hold for fully connected nets with ReLU, LeakyReLU, ReLU6, Hardtanh or Softshrink, with or without biases: a
    bias has no second derivative by the input there. Smooth activations, PReLU and other layers are refused by name.
    Largest weights and counts are carried as ratios of whole numbers, so that no product overflows or is rounded; the
    value is rounded up once.

    Errors: InputRefused PA120 train-mode layers, PA121 mixed dtypes or devices, PA122 no parameters, PA124 weights that
    are not finite, PA150 a net of another form, PA210 inputs that are not finite, PA211 shapes.

    Args:
        model: net of the kind above, in eval mode.
        x: inputs (batch, ...) of its dtype and device.

    Returns:
        The bounds. Units: squared output per (parameter x input), summed, as `tangent_sensitivity`.
    """
    check_model(model, x)
    # In single precision rounding would carry a mean past a bound that it attains.
    model, x = copy.deepcopy(model).double(), x.double()
    net = path_net(model, x)
    values = tangent_sensitivity(model, x)
    exact = float(values.mean())
    active = net.active(x)
    totals = active.sum(1)
    numbers = totals.double()
    mean = float(numbers.mean())
    deviation = float(numbers.std()) if len(numbers) > 1 else 0.0
    counted: list[int] = totals.tolist()
    empirical, order = theorem32(net, lambda power: empirical_moment(counted, power))

    def rational(name: str, bound: Fraction, holds: str) -> TangentBound:
        return _told(name, rounded_up(bound), common_logarithm(bound), exact, holds)

    def logarithmic(name: str, bound: float, holds: str) -> TangentBound:
        return _told(name, from_logarithm(bound), bound / _TEN, exact, holds)

    entries = net.outputs * net.weights * net.inputs
    path_weight = common_logarithm(net.path_weight) * _TEN
    gaussian = log_theorem32_if_normal(entries, net.depth, path_weight, mean, deviation)
    return TangentBounds(
        exact=exact,
        standard_error=float(values.std() / len(values) ** 0.5) if len(values) > 1 else None,
        rows=len(values),
        absolute=logarithmic("absolute", absolute_bound(net), EVERY_INPUT),
        path=rational("path", path_bound(net), EVERY_INPUT),
        path_active=rational("path_active", path_bound(net, active), THESE_ROWS),
        theorem31=rational("theorem31", theorem31(net), EVERY_INPUT),
        theorem32=rational("theorem32", empirical, THESE_ROWS),
        theorem32_gaussian=logarithmic("theorem32_gaussian", gaussian, IF_NORMAL),
        order=order,
        active_mean=mean,
        active_deviation=deviation,
        as_printed=_printed(net, mean, deviation, rational, logarithmic),
    )


def _printed(
    net: PathNet,
    mean: float,
    deviation: float,
    rational: Callable[[str, Fraction, str], TangentBound],
    logarithmic: Callable[[str, float, str], TangentBound],
) -> tuple[TangentBound, ...]:
    text, appendix = (theorem32_as_printed(net, mean, deviation, appendix=each) for each in (False, True))
    return (
        rational("theorem31_as_printed", theorem31_as_printed(net), NOTHING),
        rational("theorem31_loose_as_printed", theorem31_loose_as_printed(net), NOTHING),
        logarithmic("theorem32_text_as_printed", text, NOTHING),
        logarithmic("theorem32_appendix_as_printed", appendix, NOTHING),
    )


def _told(name: str, value: float, log10: float, exact: float, holds: str) -> TangentBound:
    ratio = None
    if 0.0 < exact < math.inf:
        ratio = value / exact if math.isfinite(value) else from_logarithm((log10 - math.log10(exact)) * _TEN)
    return TangentBound(name, value, log10, ratio, holds)
