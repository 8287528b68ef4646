"""Means over draws of noise with 95 % intervals: draws are the independent units, the inputs of one draw are not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate.

    Attributes:
        value: of all draws.
        standard_error: of `value`.
        low: lower end of the 95 % interval.
        high: upper end.
    """

    value: float
    standard_error: float
    low: float
    high: float


NOTHING = Interval(math.nan, math.nan, math.nan, math.nan)


def mean_of_roots(squares: Tensor) -> Interval:
    """Mean over inputs of the root over draws of the mean square.

    Args:
        squares: (draws, batch), values squared; draws are independent, inputs of one draw are not.

    Returns:
        `mean_x sqrt(mean_draws squares)`; infinite, without an interval, where a draw is. The error linearises
        the root at the sample mean. The interval is that of its
        square, `skewed_interval`, with the root taken.
    """
    mean = squares.mean(0)
    root = mean.sqrt()
    # An input that no draw moves has derivative 0/0: it contributes nothing to either number.
    influence = torch.where(root > 0, (squares - mean) / (2 * root), torch.zeros_like(squares)).mean(1)
    return _root(float(root.mean()), influence)


def root_of_mean(per_draw: Tensor) -> Interval:
    """Root of the mean over draws.

    Args:
        per_draw: (draws,), at least 0.

    Returns:
        The root; its interval is that of the mean with the root taken.
    """
    mean = per_draw.mean()
    root = float(mean.sqrt())
    influence = (per_draw - mean) / (2 * root) if root > 0 else torch.zeros_like(per_draw)
    return _root(root, influence)


def mean_share(per_draw: Tensor) -> Interval:
    """Mean of a share of inputs over the draws.

    Args:
        per_draw: (draws,), each in [0, 1].

    Returns:
        The mean with `skewed_interval`, cut to [0, 1]. Where all draws are 0 (or all 1) their spread says nothing: the
        interval then is Clopper and Pearson's for as many draws without (or with) an event. It holds because a share X
        has P(X = 0) <= 1 - E X.
    """
    value = float(per_draw.mean())
    if value in (0.0, 1.0):
        reach = 1.0 - ((1.0 - LEVEL) / 2.0) ** (1.0 / len(per_draw))
        return Interval(value, 0.0, 0.0 if value == 0.0 else 1.0 - reach, reach if value == 0.0 else 1.0)
    low, high = skewed_interval(value, per_draw - value)
    return Interval(value, _error(per_draw - value), max(low, 0.0), min(high, 1.0))


def skewed_interval(value: float, influence: Tensor) -> tuple[float, float]:
    """95 % interval of a mean of skewed values: Student's t after Hall's cubic transformation.

    Squared movements are weighted sums of few squares, and skewed. With W = (mean - mu) / s, the sample skewness g and
    n draws, `sqrt(n) (W + g W^2 / 3 + g^2 W^3 / 27 + g / (6 n))` has its skewness removed to first order; it is
    monotone and solved for mu in closed form (P. Hall, On the removal of skewness by transformation, 1992). For squares
    of one normal variable it covers 94.0 % with 16 draws and 94.8 % with 64; plain t covers 88.5 and 92.4 %.

    Args:
        value: the mean.
        influence: (draws,), the values minus their mean.

    Returns:
        Lower and upper end.
    """
    draws = len(influence)
    deviation = float(influence.std())
    if deviation == 0.0:
        return value, value
    skewness = float((influence / deviation).pow(3).mean())
    reach = quantile_of_t(draws) / math.sqrt(draws)

    def shifted(end: float) -> float:
        if abs(skewness) < 1e-9:
            return end
        return 3.0 / skewness * (math.cbrt(1.0 + skewness * (end - skewness / (6.0 * draws))) - 1.0)

    return value - deviation * shifted(reach), value - deviation * shifted(-reach)


def quantile_of_t(draws: int) -> float:
    """Student's t with `draws - 1` degrees of freedom at 97.5 %."""
    from scipy.special import stdtrit

    return float(stdtrit(draws - 1, 0.5 + LEVEL / 2.0))


def _root(value: float, influence: Tensor) -> Interval:
    """An estimate of a root whose square is the better behaved one. influence: of the root, (draws,)."""
    if not math.isfinite(value):
        return Interval(value, math.nan, math.nan, math.nan)
    low, high = skewed_interval(value**2, 2.0 * value * influence)
    return Interval(value, _error(influence), math.sqrt(max(low, 0.0)), math.sqrt(max(high, 0.0)))


def _error(influence: Tensor) -> float:
    return float(influence.std() / len(influence) ** 0.5)
