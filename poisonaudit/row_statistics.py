"""Statistics over the rows of a data set."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def median(values: Tensor) -> float:
    """The middle of the values, halfway between the two middle ones of an even number; torch's is the lower of them."""
    return float(np.median(values.double().numpy(force=True)))
