"""Standard error and confidence interval of a mean over groups that were drawn independently."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Draws of a group before its fourth moment is worth anything.
_FEWEST_FOR_TAILS = 8
# exp of more overflows.
_LARGEST_EXPONENT = 700.0


def mean_interval(draws: Sequence[Tensor], weights: Sequence[float], level: float) -> tuple[float, tuple[float, float]]:
    """Standard error and interval of `sum_c weights_c mean(draws_c)` for draws that are never negative.

    The interval is `m exp(-+ t se / m)`, which is right of `m -+ t se` as the distribution of such means is. t has
    Satterthwaite's degrees of freedom, with the kurtosis of the draws in the variance of each variance.

    Args:
        draws: per group (n_c,), n_c at least 2, independent of one another and of other groups.
        weights: of the groups.
        level: of the interval, between 0 and 1.

    Returns:
        `(standard error, (lower end, upper end))`; both ends are the mean where nothing varies.
    """
    from scipy.stats import t

    mean = sum(weight * float(part.mean()) for part, weight in zip(draws, weights, strict=True))
    shares = [weight**2 * float(part.var()) / len(part) for part, weight in zip(draws, weights, strict=True)]
    variance = math.fsum(shares)
    if mean <= 0 or variance <= 0:
        return variance**0.5, (mean, mean)
    # Squares of estimated variances are themselves too large by 1 + doubt.
    doubts = [_doubt(part) for part in draws]
    freedom = 2 * variance**2 / math.fsum(s**2 * doubt / (1 + doubt) for s, doubt in zip(shares, doubts, strict=True))
    width = float(t.ppf(0.5 + level / 2, max(freedom, 1.0))) * variance**0.5 / mean
    return variance**0.5, (mean * math.exp(-width), mean * math.exp(min(width, _LARGEST_EXPONENT)))


def _doubt(draws: Tensor) -> float:
    """Variance of the variance of draws, relative to its square: larger where they have heavy tails."""
    count = len(draws)
    centred = draws - draws.mean()
    square = float(centred.square().mean())
    excess = 0.0
    if count >= _FEWEST_FOR_TAILS and square > 0:
        excess = max(float(centred.div(square**0.5).pow(4).mean()) - 3.0, 0.0)
    return excess / count + 2 / (count - 1)


def row_error(values: Tensor, errors: Tensor, variance: float) -> float:
    """Standard error of a mean that rows, seen as a sample, bring to it: their spread less that of the estimates.

    With estimates `v_b` of variance `e_b^2` whose mean has `variance`, the sample variance of the v_b is on average
    that of the rows plus `n / (n - 1) (mean e_b^2 - variance)`, however the estimates are correlated.

    Args:
        values: (n,) estimates.
        errors: (n,) their standard errors.
        variance: of the mean of the estimates.

    Returns:
        The error; 0 for one row.
    """
    count = len(values)
    if count < 2:
        return 0.0
    noise = (float(errors.square().mean()) - variance) * count / (count - 1)
    return (max(float(torch.var(values)) - noise, 0.0) / count) ** 0.5
