"""Long measurements in pieces: finished ones are kept in a local file, so that a killed run goes on behind them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.timing import RESULTS


def measured(
    name: str, plan: Mapping[str, Callable[[], Mapping[str, Any]]], settings: Mapping[str, Any], part: str = ""
) -> list[dict[str, Any]]:
    """Run what is not in results/local/NAME*.jsonl yet, one line a piece, and return all.

    Args:
        name: of the benchmark.
        plan: key of a piece -> what measures it.
        settings: lines made with other settings are measured again.
        part: of the plan, where several processes share it: each writes NAME-PART.jsonl, and reads all.

    Returns:
        One record a piece, in the plan's order, with `piece` and `seconds`.
    """
    path = RESULTS / "local" / (f"{name}-{part}.jsonl" if part else f"{name}.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps(settings, sort_keys=True)
    kept: dict[str, dict[str, Any]] = {}
    others = path.parent.glob(f"{name}-*.jsonl")
    lines = [line for each in {path, *others} if each.exists() for line in each.read_text().splitlines()]
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            # The line that a kill cut off.
            continue
        if json.dumps(record["settings"], sort_keys=True) == wanted:
            kept[record["piece"]] = record["figures"]
    for key, measure in plan.items():
        if key in kept:
            continue
        begun = time.perf_counter()
        kept[key] = {"piece": key, **measure(), "seconds": time.perf_counter() - begun}
        with path.open("a") as file:
            # A new line first ends one that a kill cut off.
            file.write("\n" + json.dumps({"piece": key, "settings": settings, "figures": kept[key]}) + "\n")
        print(f"{name}: {key} ({kept[key]['seconds']:.0f} s)", file=sys.stderr, flush=True)
    return [kept[key] for key in plan]
