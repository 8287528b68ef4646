"""`lipschitz_bounds`: every bound of one dense network, side by side."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from poisonaudit.errors import UsageError
from poisonaudit.lipschitz.certified import certified_bound
from poisonaudit.lipschitz.ellipsoid import ellipsoid_bound
from poisonaudit.lipschitz.enumeration import exact_constant
from poisonaudit.lipschitz.lower import lower_bound, points_of
from poisonaudit.lipschitz.network import Chain, chain_of, read_network
from poisonaudit.lipschitz.sign_coupled import entries_of, sign_coupled_bound
from poisonaudit.lipschitz.upper import (
    absolute_product_bound,
    norm_of_sum_bound,
    product_bound,
    subset_absolute_bound,
    subset_norm_bound,
)
from poisonaudit.lipschitz.virmaux import singular_split_bound
from poisonaudit.registry import unknown_name

NORMS = ("linf", "l1", "l2")
# In this order ties go to the earlier name.
UPPER_BOUNDS = ("k5", "k6", "k4", "k3", "k1", "k_star", "k2", "ellipsoid", "exact")

Value = TypeVar("Value")


@dataclass(frozen=True)
class LipschitzBounds:
    """Bounds of the Lipschitz constant of a network, inputs and outputs both measured in `norm`.

    In l_inf and l_1, lower <= exact <= k6 <= k5 <= min(k3, k4), k4 <= k1 and k3 <= k_star; and if all neurons of a
    layer have the same slopes, k4 <= k3 and k1 <= k_star. In l_2 the bounds k3, k4 and k5 are spectral norms of
    entrywise bounds: the order with k1 and k_star is lost. Orders hold up to rounding, 1e-10 relative.

    Attributes:
        k_star: product of the layers' norms (K_*).
        k1: Combettes and Pesquet (K_1).
        k2: Virmaux and Scaman (K_2); None if a hidden layer is wider than 16 (in l_2: 12).
        k3: norm of the product of absolute matrices (K_3).
        k4: Després and Pintore (K_4); None beyond 12 hidden layers, and in l_2 where it would fill the memory.
        k5: norm of the sum (K_5), never above K_4.
        k6: K_5 with the signs of every output row coupled (K_6), never above K_5; None in l_2.
        ellipsoid: the l_2 route; None where its matrices are too large (a few thousand neurons a layer).
        exact: K itself, the largest norm over all choices of slopes, which all bounds above bound; None beyond 16
            neurons. The network may not reach it: its neurons choose their slopes together.
        lower: largest norm of the true Jacobian found at an input.
        best: the smallest of the upper bounds above, in plain float64 ("numerical").
        winner: the name of the bound that gave `best`.
        certified: a bound that holds with all float64 rounding accounted for: the smallest of those of K_3, K_5, K_6,
            the ellipsoid and, in l_inf and l_1, K, in l_2 K_*.
        certified_winner: the name of the bound that gave `certified`.
        norm: "linf", "l1" or "l2".
        hidden_layers: number of layers of activations.
        seconds: wall time per bound.
    """

    k_star: float
    k1: float
    k2: float | None
    k3: float
    k4: float | None
    k5: float
    k6: float | None
    ellipsoid: float | None
    exact: float | None
    lower: float
    best: float
    winner: str
    certified: float
    certified_winner: str
    norm: str
    hidden_layers: int
    seconds: Mapping[str, float]


def lipschitz_bounds(
    model_or_matrices: nn.Module | Sequence[Any], norm: str = "linf", x: Any = None, seed: int = 0
) -> LipschitzBounds:
    """Bound how strongly a dense network can amplify a change of its input, over all inputs.

    Args:
        model_or_matrices: nn.Sequential of Linear, elementwise activations (ReLU, LeakyReLU, PReLU, ELU, CELU, SELU,
            ReLU6, Hardtanh, Hardsigmoid, Hardswish, Tanh, Sigmoid, GELU, SiLU, Mish, Softplus, Softsign, LogSigmoid,
            Tanhshrink, Softshrink, Identity), Flatten, and BatchNorm1d and Dropout in eval mode; or one nn.Linear;
            or the matrices `[W_0, ..., W_l]` applied in that order, ReLU between them, zero biases.
        norm: "linf", "l1" or "l2": the norm of inputs and outputs.
        x: (n, ...) points where the lower bound looks first, in input units; None: random N(0, I) points.
        seed: of the search for the lower bound.

    Returns:
        All bounds. Upper bounds depend on the weights only; they bound `|f(a) - f(b)| / |a - b|` everywhere.
        A network they are not proved for is refused (InputRefused PA130), and so is an `x` that does not fit
        it (InputRefused PA230).

    Raises:
        InputRefused: PA130, the network is not one the bounds are proved for; PA230, `x` does not fit it.
        UsageError: PA301, unknown norm; PA303, the seed is not an integer.
    """
    if norm not in NORMS:
        raise UsageError("PA301", unknown_name(str(norm), NORMS, "norm").message)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UsageError("PA303", f"seed is {seed!r}. It starts a random generator. Pass an integer.")
    network = read_network(model_or_matrices)
    points = None if x is None else points_of(x, network.weights[0].shape[1])
    seconds: dict[str, float] = {}

    def timed(name: str, compute: Callable[[], Value]) -> Value:
        started = time.perf_counter()
        value = compute()
        seconds[name] = time.perf_counter() - started
        return value

    with torch.no_grad():
        chain = chain_of(network, norm)
        scaled: dict[str, float | None] = {
            "k_star": timed("k_star", lambda: product_bound(chain)),
            "k1": timed("k1", lambda: subset_norm_bound(chain)),
            "k2": timed("k2", lambda: singular_split_bound(chain)),
            "k3": timed("k3", lambda: absolute_product_bound(chain)),
            "k4": timed("k4", lambda: subset_absolute_bound(chain)),
            "k6": None,
            "exact": timed("exact", lambda: exact_constant(chain)),
        }
        k5 = scaled["k5"] = timed("k5", lambda: norm_of_sum_bound(chain))
        entries = timed("entries", lambda: entries_of(chain))
        if chain.norm == "linf":
            # Their last digits are rounded apart.
            scaled["k6"] = min(k5, timed("k6", lambda: sign_coupled_bound(chain, entries)))
        seconds["k6"] = seconds.pop("entries") + seconds.get("k6", 0.0)
        scaled["ellipsoid"] = timed("ellipsoid", lambda: ellipsoid_bound(chain, entries.largest))
        upper = {name: _unscaled(chain, value) for name, value in scaled.items()}
        certified_winner, certified = timed(
            "certified", lambda: certified_bound(chain, entries, scaled["exact"], scaled["ellipsoid"])
        )
    with torch.enable_grad():
        lower = timed("lower", lambda: lower_bound(network, norm, points, seed))
    present = {name: value for name in UPPER_BOUNDS if (value := upper[name]) is not None}
    winner = min(present, key=lambda name: present[name])
    return LipschitzBounds(
        k_star=present["k_star"],
        k1=present["k1"],
        k2=upper["k2"],
        k3=present["k3"],
        k4=upper["k4"],
        k5=present["k5"],
        k6=upper["k6"],
        ellipsoid=upper["ellipsoid"],
        exact=upper["exact"],
        lower=lower,
        best=present[winner],
        winner=winner,
        certified=certified,
        certified_winner=certified_winner,
        norm=norm,
        hidden_layers=chain.hidden,
        seconds=seconds,
    )


def _unscaled(chain: Chain, value: float | None) -> float | None:
    """Undo the scaling. NaN counts as infinite; a path of nonzero weights means no bound is zero."""
    if value is None:
        return None
    if math.isnan(value):
        return math.inf
    return chain.unscaled(max(value, sys.float_info.min) if chain.connected else 0.0)
