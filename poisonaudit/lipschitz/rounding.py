"""Turn float64 bounds into numbers that are never below the exact ones.

Exact means: real arithmetic on the float64 values of the weights and of the ends of the slope intervals. Let u =
2^-53 and `gamma_m = m u / (1 - m u)`. Every slope in its interval lies within radius of centre in exact arithmetic, and
`steepest >= |centre| + radius`, so the exact K_5 of the stored centres and radii bounds the Lipschitz constant.

Relative part. Expand K_5, or any entry of `C_(j,i)`, of the entrywise radius, of the Jacobian at one choice of slopes,
into paths: products of one entry of every weight with a centre, a radius or a slope between. |.| is 1-Lipschitz, so
computing such an entry with at most m roundings along a path moves it by at most gamma_m times the same sum with every
sign positive, and that sum is at most the same entry of the absolute product `T = |W_l| s_l ... s_1 |W_0|`, s the
steepest slopes, whose largest row sum is K_3. A path meets

- a dot product per layer in the signed blocks (F = sum of fan-ins), and the same in the vectors: 2 F;
- at most l + 1 additions at each of l + 1 nodes: (l + 1)^2;
- a centre, a radius or an end of a slope interval at each hidden node, one rounding each (none if it is a power of
  two), in the blocks or in the vectors: 2 l is enough;
- R roundings made before, where a batch normalisation was folded into a weight (see network.py).

So m <= 2 F + (l + 1)^2 + 2 l + R. With N = 4 (F + G + (l + 1)^2 + l + R + 10) >= 2 m + 40, G = sum over nodes j of the
widths of all nodes before j, the slack `g = gamma_N` is at least `2 gamma_m`, and it covers the rounding of T and K_3
(`gamma_m / (1 - gamma_m) <= gamma_(2 m)`) and, as a factor 1 + g, sums over at most G entries and the last few
operations. The order of summation and fused multiply-add do not matter; fast matrix products (Strassen) are not used in
float64.

Underflow. The chain is scaled so that every weight times the slopes before it has an l_inf norm of at most 1. A
multiplication, or a flushed subnormal, then adds at most 2^-1022 in absolute value: at most 6 F of them in an entry of
a signed block, and at most 10 F G <= N^2 in V_(l+1), since a vector's errors are passed on with total weight at most 1.
They are added outright. Subnormal weights themselves need the default floating-point mode
(torch.set_flush_denormal off). A network whose sparsity pattern lets nothing through has bound 0 exactly.

K_3: `(K_3 + underflow)(1 + g)`. K_5: `(K_5 + g K_3 + underflow)(1 + g)`. K by enumeration: as K_5, for the Jacobian of
the best choice of slopes is one of those the expansion covers.

K_6. The intervals mid -+ rad are widened by 2 g T + 2 underflow, so that they hold every exact Jacobian; the offsets b
are taken from the widened ends, which makes the line `|J| <= a J + b` true for the float64 value of a, whatever its own
rounding. With |a| <= 1 the recursion on the column a is off by at most g times the row sum of T. Each row takes the
smaller of this and its certified K_5; the largest row counts.

l_2. The spectral norm of a non-negative matrix grows with its entries: T and |mid| + rad are raised entrywise as above,
and the largest eigenvalue of their Gram matrix is bounded by domination.py; so are the norms whose product is K_*.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.lipschitz.domination import spectral_norm_above
from poisonaudit.lipschitz.network import Chain
from poisonaudit.lipschitz.sign_coupled import Entries, sign_coupled_rows
from poisonaudit.lipschitz.unit import UNIT
from poisonaudit.lipschitz.upper import absolute_product

_SAFE_PRODUCT = 1e-250


@dataclass(frozen=True)
class Slack:
    """How far float64 may be off.

    Attributes:
        relative: g, relative to the same quantity with every sign positive.
        underflow: an absolute amount, at the scale of the chain.
    """

    relative: float
    underflow: float

    def raised(self, value: Tensor, absolute: Tensor) -> Tensor:
        """At least the exact value of an entry or a row sum with `absolute` its counterpart from T."""
        return (value + self.relative * absolute + self.underflow) * (1.0 + self.relative)


def slack_of(chain: Chain) -> Slack | None:
    """The slack of a chain; None if it is so large that the analysis says nothing."""
    share = operation_count(chain) * UNIT
    if share >= 0.5:
        return None
    return Slack(share / (1.0 - share), sys.float_info.min * float(operation_count(chain)) ** 2)


def operation_count(chain: Chain) -> int:
    """N = 4 (F + G + (l + 1)^2 + l + R + 10), at least twice the roundings that meet in one entry (see above)."""
    fan_ins = [weight.shape[1] for weight in chain.weights]
    before = sum(sum(fan_ins[:node]) for node in range(1, len(fan_ins) + 1))
    return 4 * (sum(fan_ins) + before + len(fan_ins) ** 2 + chain.hidden + sum(chain.roundings) + 10)


def certified_bounds(chain: Chain, entries: Entries, exact: float | None) -> dict[str, float]:
    """The bounds that hold with all float64 rounding accounted for, scaled like the chain.

    Args:
        chain: a connected network.
        entries: its entrywise bounds.
        exact: K by enumeration, if known.

    Returns:
        "k5", "k3", in l_inf "k6" and "exact" (if given), in l_2 "k_star": numbers at least the Lipschitz constant.
        Infinite where something overflowed or was NaN.
    """
    slack = slack_of(chain)
    if slack is None:
        return {"k5": math.inf, "k3": math.inf}
    absolute = absolute_product(chain)
    if chain.norm == "l2":
        factors = [spectral_norm_above(*pair) for pair in zip(chain.weights, chain.roundings, strict=True)]
        product = math.prod([*factors, *(float(slopes.max()) for slopes in chain.steepest)]) * (1.0 + slack.relative)
        return {
            "k5": spectral_norm_above(slack.raised(entries.largest, absolute)),
            "k3": spectral_norm_above(slack.raised(absolute, absolute)),
            # Small enough for an underflow on the way: no bound.
            "k_star": product if product > _SAFE_PRODUCT else math.inf,
        }
    sums = absolute.sum(1)
    k5_rows = slack.raised(entries.largest.sum(1), sums)
    widened = entries.rad + 2.0 * slack.relative * (absolute + slack.underflow) + 2.0 * slack.underflow
    k6_rows = slack.raised(sign_coupled_rows(chain, entries.mid, widened, margin=slack.relative), sums)
    # A NaN is never a bound.
    k5_rows, k6_rows = (rows.nan_to_num(nan=math.inf, posinf=math.inf) for rows in (k5_rows, k6_rows))
    found = {
        "k5": k5_rows.max(),
        "k6": torch.minimum(k5_rows, k6_rows).max(),
        "k3": slack.raised(sums, torch.zeros_like(sums)).nan_to_num(nan=math.inf).max(),
    }
    if exact is not None:
        found["exact"] = slack.raised(torch.tensor(exact, dtype=torch.float64), sums.max())
    return {name: float(value.nan_to_num(nan=math.inf)) for name, value in found.items()}
