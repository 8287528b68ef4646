"""Interleaved timing and result files that hold every repeat."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def interleave(jobs: Mapping[str, Callable[[], Any]], repeats: int = 15, inner: int = 1) -> dict[str, list[float]]:
    """Run all jobs in turn, `repeats` times round, after one round of warming up.

    Args:
        jobs: name -> what to run.
        repeats: rounds.
        inner: calls per measurement.

    Returns:
        Seconds per call, every repeat kept.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            begun = time.perf_counter()
            for _ in range(inner):
                job()
            if turn:
                seconds[name].append((time.perf_counter() - begun) / inner)
    return seconds


def ratios(seconds: Mapping[str, list[float]], unit: str) -> dict[str, float]:
    """Median over repeats of each job's time divided by the unit's time of the same round."""
    return {
        name: statistics.median(own / one for own, one in zip(times, seconds[unit], strict=True))
        for name, times in seconds.items()
    }


def write(name: str, body: Mapping[str, Any]) -> Path:
    """Store one benchmark with command, versions, machine and date.

    Args:
        name: of the benchmark; the file is results/NAME.json.
        body: its figures.

    Returns:
        The file.
    """
    import torch

    record = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": f"python -m benchmarks {name}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, **_peers()},
        "machine": {"processor": _processor(), "threads": torch.get_num_threads(), "system": platform.system()},
        **body,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{name}: {path.relative_to(RESULTS.parent)}", file=sys.stderr)
    return path


def _peers() -> dict[str, str]:
    """Versions of the libraries compared with, where they are installed."""
    found = {}
    for name in ("curvlinops-for-pytorch", "pyDVL", "eclipse-nn", "cvxpy", "scs", "adversarial-robustness-toolbox"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _processor() -> str:
    """The processor's model name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]} x {len(models)}" if models else platform.machine()
