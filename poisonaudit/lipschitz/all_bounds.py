"""All upper bounds of one network, written out as matrices or as a graph, with the time each took."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from poisonaudit.errors import InputRefused
from poisonaudit.lipschitz.certified import certified_bound
from poisonaudit.lipschitz.ellipsoid import ellipsoid_of
from poisonaudit.lipschitz.enumeration import enumerated_constant
from poisonaudit.lipschitz.graph import Graph
from poisonaudit.lipschitz.graph_bounds import absolute_bound, product_of_norms, subset_columns, subset_norms
from poisonaudit.lipschitz.graph_rounding import certified_rows
from poisonaudit.lipschitz.network import Chain, DenseNetwork, chain_of
from poisonaudit.lipschitz.sign_coupled import entries_of, sign_coupled_bound
from poisonaudit.lipschitz.stages import staged
from poisonaudit.lipschitz.tuning import tuned
from poisonaudit.lipschitz.upper import (
    absolute_product_bound,
    norm_of_sum_bound,
    product_bound,
    subset_absolute_bound,
    subset_norm_bound,
)
from poisonaudit.lipschitz.virmaux import singular_split_bound

Value = TypeVar("Value")


@dataclass(frozen=True)
class Upper:
    """Upper bounds of one network.

    Attributes:
        upper: name -> bound in plain float64, None where it is not available.
        certified: with all rounding.
        certified_winner: its name.
        hidden: layers of activations.
        restarts: nodes where K_5 started anew to save work.
        seconds: name -> wall time.
    """

    upper: Mapping[str, float | None]
    certified: float
    certified_winner: str
    hidden: int
    restarts: tuple[str, ...]
    seconds: dict[str, float]


class _Clock:
    """Times what it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, compute: Callable[[], Value]) -> Value:
        started = time.perf_counter()
        value = compute()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        return value


def dense_bounds(network: DenseNetwork, norm: str, tune: bool = True) -> Upper:
    """Every bound, from matrices; with `tune` the ellipsoid's free numbers are tuned too."""
    timed, chain = _Clock(), chain_of(network, norm)
    scaled: dict[str, float | None] = {
        "k_star": timed("k_star", lambda: product_bound(chain)),
        "k1": timed("k1", lambda: subset_norm_bound(chain)),
        "k2": timed("k2", lambda: singular_split_bound(chain)),
        "k3": timed("k3", lambda: absolute_product_bound(chain)),
        "k4": timed("k4", lambda: subset_absolute_bound(chain)),
        "k6": None,
        "exact": timed("exact", lambda: enumerated_constant(chain)),
    }
    k5 = scaled["k5"] = timed("k5", lambda: norm_of_sum_bound(chain))
    entries = timed("k6", lambda: entries_of(chain))
    if chain.norm == "linf":
        # Their last digits are rounded apart.
        scaled["k6"] = min(k5, timed("k6", lambda: sign_coupled_bound(chain, entries)))
    ellipsoid = timed("ellipsoid", lambda: ellipsoid_of(chain, entries.largest))
    # Nothing is below K itself.
    better = None
    if tune and ellipsoid is not None and scaled["exact"] is None:
        better = timed("ellipsoid_tuned", functools.partial(tuned, chain, ellipsoid))
    scaled["ellipsoid"] = None if ellipsoid is None else ellipsoid.value
    scaled["ellipsoid_tuned"] = scaled["ellipsoid"] if better is None else better.value
    ellipsoids = {"ellipsoid": ellipsoid, "ellipsoid_tuned": better}
    winner, certified = timed("certified", lambda: certified_bound(chain, entries, scaled["exact"], ellipsoids))
    upper = {name: _unscaled(chain, value) for name, value in scaled.items()}
    layers = sum(not activation.changes_nothing for activation in network.activations)
    return Upper(upper, certified, winner, layers, (), timed.seconds)


def graph_bounds(graph: Graph, norm: str, work_limit: float) -> Upper:
    """K_*, K_1, K_3, K_4 and K_5, by passes.

    Args:
        graph: of the network.
        norm: "linf" or "l1".
        work_limit: multiplications of K_5's full form, and of K_4.

    Returns:
        The bounds. K_1 and K_4 are those of the stages that K_5 restarts in, multiplied.

    Raises:
        InputRefused: PA130, another norm, or a max pooling beside another path.
    """
    if norm == "l2":
        raise InputRefused(
            "PA130", "the network is no chain of small layers. In l_2 bounds need its matrices. Ask for 'linf' or 'l1'."
        )
    timed = _Clock()
    stages = timed("k5", lambda: staged(graph, norm, work_limit))
    rows, sound = timed("k5", lambda: certified_rows(stages))
    upper: dict[str, float | None] = {
        "k_star": timed("k_star", lambda: product_of_norms(stages)),
        "k1": timed("k1", lambda: subset_norms(stages)),
        "k3": timed("k3", lambda: absolute_bound(stages)),
        "k4": timed("k4", lambda: subset_columns(stages, work_limit)),
        "k5": float(rows.max()),
    }
    upper = {name: math.inf if value is not None and math.isnan(value) else value for name, value in upper.items()}
    return Upper(upper, float(sound.max()), "k5", len(graph.activations()), stages.restarts, timed.seconds)


def _unscaled(chain: Chain, value: float | None) -> float | None:
    """Undo the scaling. NaN counts as infinite; a path of nonzero weights means no bound is zero."""
    if value is None:
        return None
    if math.isnan(value):
        return math.inf
    return chain.unscaled(max(value, sys.float_info.min) if chain.connected else 0.0)
