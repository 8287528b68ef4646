"""Small-sample statistics: success rates with exact intervals, paired means with standard errors and exact tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from poisonaudit.errors import UsageError


@dataclass(frozen=True)
class Rate:
    """Successes among trials.

    Attributes:
        successes: k.
        trials: n.
        rate: k / n, None without trials.
        lower: lower end of the interval.
        upper: upper end of the interval.
        level: its confidence level.
    """

    successes: int
    trials: int
    rate: float | None
    lower: float
    upper: float
    level: float


@dataclass(frozen=True)
class PairedTest:
    """Do paired differences lie around 0.

    Attributes:
        method: "wilcoxon" (signed ranks), "sign", or "none" where no difference is left to test.
        pairs: differences that were given.
        nonzero: differences other than 0, which are the ones tested.
        p_value: two-sided.
        exact: whether it is the exact null distribution's.
        smallest: least p-value that this many nonzero differences can give: with 5 it is 0.0625, so that no outcome
            of 5 pairs is significant at .05.
    """

    method: str
    pairs: int
    nonzero: int
    p_value: float
    exact: bool
    smallest: float


# Up to here the exact distribution of the signed ranks is quick.
_EXACT_PAIRS = 200


def success_rate(successes: int, trials: int, level: float = 0.95) -> Rate:
    """Success rate with the Clopper-Pearson interval, which covers at least at its level for every n.

    Args:
        successes: k.
        trials: n; with n = 0 the interval is [0, 1].
        level: confidence level.

    Returns:
        The rate and its interval.

    Raises:
        UsageError: PA370, counts that do not fit.
    """
    if not 0 <= successes <= trials:
        raise UsageError("PA370", f"{successes} successes in {trials} trials do not fit. Count again.")
    if trials == 0:
        return Rate(0, 0, None, 0.0, 1.0, level)
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(level, method="exact")
    return Rate(successes, trials, successes / trials, float(interval.low), float(interval.high), level)


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and its standard error `s / sqrt(n)` (s with n - 1); None where too few values define them."""
    count = len(values)
    if count == 0:
        return None, None
    mean = math.fsum(values) / count
    if count == 1:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def paired_test(differences: Sequence[float]) -> PairedTest:
    """Two-sided test that paired differences are symmetric about 0.

    Wilcoxon's signed-rank test (1945) with its exact null distribution; where differences tie in size, which its ranks
    do not allow for, the exact sign test instead, which asks about the median only. Zeros are left out, as both tests
    define it.

    Args:
        differences: poisoned minus control, one per seed.

    Returns:
        The test; without any difference other than 0, p = 1.
    """
    from scipy.stats import binomtest, wilcoxon

    kept = [value for value in differences if value != 0.0]
    count = len(kept)
    if count == 0:
        return PairedTest("none", len(differences), 0, 1.0, True, 1.0)
    smallest = min(1.0, 2.0 ** (1 - count))
    if len({abs(value) for value in kept}) < count:
        p_value = float(binomtest(sum(value > 0 for value in kept), count).pvalue)
        return PairedTest("sign", len(differences), count, p_value, True, smallest)
    exact = count <= _EXACT_PAIRS
    p_value = float(wilcoxon(kept, method="exact" if exact else "asymptotic").pvalue)
    return PairedTest("wilcoxon", len(differences), count, p_value, exact, smallest)
