"""K_6: K_5 with the signs of the entries of one output row coupled, in l_inf.

K_5 sums bounds of |J_ki| over the inputs i as if all of them were met by the same slopes. Let row k of the Jacobian
lie entrywise in mid -+ rad (the centre product, and what K_5 adds around it). Wherever `|J_i| <= a_i J_i + b_i` on that
interval,

    sum_i |J_i| <= sum_i b_i + sup_D (J a)_k,

and the last term is bounded by K_5's recursion run on the single column a, whose signed entries may cancel. The
tightest such line is a = sign(mid), b = 0 where the sign is known (|mid| >= rad), else the chord a = mid / rad,
b = (rad^2 - mid^2) / rad. With |a| <= 1 the column gives at most `mid a + rad |a|`, so `K_6 <= K_5`, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.lipschitz.network import Chain
from poisonaudit.lipschitz.upper import signed_interval


@dataclass(frozen=True)
class Entries:
    """Entrywise bounds of the Jacobian, scaled like the chain, (n_(l+1), n_0) each.

    Attributes:
        mid: the product through the centre slopes.
        rad: largest distance of the entry from `mid` over all slopes.
    """

    mid: Tensor
    rad: Tensor

    @property
    def largest(self) -> Tensor:
        """Bound of the absolute value of every entry."""
        return self.mid.abs() + self.rad


def entries_of(chain: Chain) -> Entries:
    """`|J - mid| <= rad`, entry by entry."""
    return Entries(*signed_interval(chain))


def sign_coupled_bound(chain: Chain, entries: Entries) -> float:
    """K_6 in l_inf and plain float64, scaled like the chain; row by row at most K_5.

    Args:
        chain: the network in l_inf form.
        entries: its `entries_of`.

    Returns:
        The bound.
    """
    rows = sign_coupled_rows(chain, entries.mid, entries.rad)
    return float(torch.minimum(rows, entries.largest.sum(1)).max())


def sign_coupled_rows(chain: Chain, mid: Tensor, rad: Tensor, margin: float = 0.0) -> Tensor:
    """The right-hand side of the module docstring for every output row, (n_(l+1),), scaled.

    Whatever the rounding of a, the line holds on mid -+ rad as long as b is large enough at both ends.

    Args:
        chain: the network in l_inf form.
        mid: (n_(l+1), n_0), middle of the intervals.
        rad: (n_(l+1), n_0), their half-widths, which may be too large.
        margin: relative room for the rounding of b.

    Returns:
        The sums; NaN where an entry is.
    """
    known = mid.abs() >= rad
    ratio = (mid / torch.where(rad > 0.0, rad, torch.ones_like(rad))).clamp(-1.0, 1.0)
    slope = torch.where(known, mid.sign(), ratio)
    offset = torch.maximum((1.0 - slope) * (mid + rad), (1.0 + slope) * (rad - mid))
    offset = torch.where(known, torch.zeros_like(offset), offset)
    centre, around = signed_interval(chain, slope.T)
    return offset.sum(1) * (1.0 + margin) + (centre + around).diagonal()
