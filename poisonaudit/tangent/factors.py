"""Ratios of sensitivities by which Daroczy turns the loss on training rows into one on test rows (eq. 5 to 7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused
from poisonaudit.tangent.chain import fitting
from poisonaudit.tangent.checks import check_model
from poisonaudit.tangent.expected_matrix import log_mean_matrix_norm
from poisonaudit.tangent.moments import empirical_moment, log_absolute_moment, theorem32
from poisonaudit.tangent.path_bounds import common_logarithm, theorem31
from poisonaudit.tangent.path_net import PathNet, path_net
from poisonaudit.tangent.printed import log_psi_as_printed
from poisonaudit.tangent.sensitivity import tangent_sensitivity
from poisonaudit.tangent.soft_gates import soft_tangent_sensitivity

BASELINE = "test_equals_train"
# Name -> what its factor is. Those "as printed" keep the formula of the paper, errors included.
EQUATIONS: dict[str, str] = {
    BASELINE: "1",
    "eq5": "eq. 5: theorem 3.1 one step earlier over now",
    "eq5_as_printed": "eq. 5 as printed: squared product of the largest weights one step earlier over now",
    "eq5_log": "eq. 5 with the logarithm of theorem 3.1 in its place",
    "eq6": "eq. 6: E T^(2q) of normal T, test over training",
    "eq6_as_printed": "eq. 6 as printed: psi*, the square of E |T|^(k-1), test over training",
    "eq7": "eq. 7: mean of |S|_F^2 under soft gates, test over training",
    "eq7_own_patterns": "eq. 7 with each row's own pattern: mean of |S(x)|_F^2, test over training",
    "eq7_as_printed": "eq. 7 as printed, with a norm around it: |mean of S|_F under soft gates, test over training",
}


@dataclass(frozen=True, eq=False)
class Factor:
    """One ratio, and how single rows move it.

    Attributes:
        log: its natural logarithm; None where it is 0 / 0, as of a net without active units.
        train: (n,) what every training row adds to the logarithm, to first order, with mean 0.
        test: (m,) the same for test rows.
    """

    log: float | None
    train: Tensor
    test: Tensor

    @property
    def value(self) -> float | None:
        """The ratio."""
        return None if self.log is None else math.exp(min(self.log, 700.0))


def sensitivity_factors(
    model: nn.Module, x_train: Tensor, x_test: Tensor, previous: nn.Module | None = None
) -> dict[str, Factor]:
    """The ratios of eq. 5, 6 and 7, corrected and as printed. None of them looks at a label.

    Printed eq. 5 takes the ratio of theorem 3.1 and then drops `1 / min_i w_max_i`, which changes while training; eq. 6
    takes `(E |T|^(k-1))^2` where the proof needs `E T^(2q)`; eq. 7 divides two matrices.

    Errors: as `tangent_bounds` and `soft_tangent_sensitivity`; PA150 also for a `previous` of other widths.

    Args:
        model: Sequential of Linear and ReLU or LeakyReLU, in eval mode.
        x_train: training inputs (n, ...).
        x_test: test inputs (m, ...).
        previous: the same net one step (epoch) earlier; without it eq. 5 is left out.

    Returns:
        Name of `EQUATIONS` -> factor.
    """
    now = path_net(model, x_train)
    check_model(model, x_test)
    fitting(now.chain, x_test)
    none = _Pair(x_train, x_test)
    found = {BASELINE: none.factor(0.0)}
    if previous is not None:
        found |= {name: none.factor(log) for name, log in _through_time(path_net(previous, x_train), now).items()}
    found |= _by_counts(now, x_train, x_test)
    for name, measure in (("eq7", soft_tangent_sensitivity), ("eq7_own_patterns", tangent_sensitivity)):
        found[name] = none.ratio([_mean(measure(model, x).double()) for x in (x_train, x_test)])
    found["eq7_as_printed"] = none.ratio([log_mean_matrix_norm(now.chain, x) for x in (x_train, x_test)])
    return {name: found[name] for name in EQUATIONS if name in found}


@dataclass(frozen=True)
class _Pair:
    """Training and test rows, for factors that may not depend on single rows."""

    x_train: Tensor
    x_test: Tensor

    def factor(self, log: float | None) -> Factor:
        zeros = [torch.zeros(len(x), dtype=torch.float64, device=x.device) for x in (self.x_train, self.x_test)]
        return Factor(log, *zeros)

    def ratio(self, both: list[tuple[float, Tensor]]) -> Factor:
        """Test over training, from logarithms and influences of (training, test)."""
        (below, train), (above, test) = both
        if not (math.isfinite(below) and math.isfinite(above)):
            return self.factor(None)
        return Factor(above - below, train, test)


def _through_time(before: PathNet, now: PathNet) -> dict[str, float | None]:
    """Logarithms of eq. 5 in its three forms."""
    if (before.inputs, before.hidden, before.outputs) != (now.inputs, now.hidden, now.outputs):
        raise InputRefused("PA150", "the earlier net has other widths. Pass the same net, one epoch earlier.")
    earlier, later = (common_logarithm(theorem31(net)) for net in (before, now))
    products = [2.0 * sum(map(common_logarithm, net.largest)) for net in (before, now)]
    quotient = earlier / later if later > 0.0 else 0.0
    return {
        "eq5": _times_ten(earlier - later),
        "eq5_as_printed": _times_ten(products[0] - products[1]),
        "eq5_log": math.log(quotient) if 0.0 < quotient < math.inf else None,
    }


def _times_ten(common: float) -> float | None:
    return common * math.log(10.0) if math.isfinite(common) else None


def _by_counts(net: PathNet, x_train: Tensor, x_test: Tensor) -> dict[str, Factor]:
    """Eq. 6: moments of a normal distribution of the mean and deviation that the active units have."""
    pair = _Pair(x_train, x_test)
    totals = [net.active(x).sum(1).double() for x in (x_train, x_test)]
    counted = [int(total) for total in totals[0].tolist()]
    _, order = theorem32(net, lambda power: empirical_moment(counted, power))
    forms: dict[str, Callable[[float, float], float]] = {
        "eq6": lambda mean, deviation: log_absolute_moment(2 * order, mean, deviation),
        "eq6_as_printed": lambda mean, deviation: log_psi_as_printed(net.depth, mean, deviation),
    }
    return {name: pair.ratio([_of_normal(form, total) for total in totals]) for name, form in forms.items()}


def _of_normal(form: Callable[[float, float], float], totals: Tensor) -> tuple[float, Tensor]:
    """A function of mean and deviation, and what each row adds to it by way of both."""
    mean = float(totals.mean())
    away = totals - mean
    variance = float(away.square().mean())
    deviation = variance**0.5
    value = form(mean, deviation)
    if deviation == 0.0 or not math.isfinite(value):
        return value, torch.zeros_like(totals)
    step = 1e-4 * deviation
    by_mean = (form(mean + step, deviation) - form(mean - step, deviation)) / (2.0 * step)
    by_deviation = (form(mean, deviation + step) - form(mean, deviation - step)) / (2.0 * step)
    return value, by_mean * away + by_deviation * (away.square() - variance) / (2.0 * deviation)


def _mean(values: Tensor) -> tuple[float, Tensor]:
    """Logarithm of a mean, and what each row adds to it."""
    mean = float(values.mean())
    if not 0.0 < mean < math.inf:
        return -math.inf, torch.zeros_like(values)
    return math.log(mean), values / mean - 1.0
