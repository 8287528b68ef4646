"""`python -m benchmarks [NAME ...]` runs all benchmarks, or those named."""

from __future__ import annotations

import functools
import sys

from benchmarks import (
    attack_art_setting,
    attack_convex,
    attack_cost,
    attack_flag,
    attack_flips,
    attack_training,
    attack_victims,
    lipschitz_peers,
    lipschitz_speed,
    lipschitz_tightness,
    memory,
    moduli,
    predictive_validity,
    products,
    solves,
    tangent,
    validity_flag,
)

_MODULES = (
    products,
    solves,
    moduli,
    memory,
    validity_flag,
    lipschitz_peers,
    lipschitz_speed,
    lipschitz_tightness,
    tangent,
    attack_victims,
    attack_flips,
    attack_training,
    attack_convex,
    attack_cost,
    attack_flag,
    attack_art_setting,
    predictive_validity,
)
ALL = {module.__name__.rpartition(".")[2]: module.run for module in _MODULES}
ALL["attack_flips_runner_up"] = functools.partial(attack_flips.run, "runner_up")


def main(names: list[str]) -> int:
    """Run the named benchmarks; all of them without a name."""
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"unknown benchmark {unknown[0]!r}. Known: {', '.join(ALL)}.", file=sys.stderr)
        return 2
    for name in names or ALL:
        ALL[name]()
    return 0


sys.exit(main(sys.argv[1:]))
