"""The memory model against what the allocator handed out and against the growth of the process."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.timing import write
from poisonaudit.models import build_model
from poisonaudit.operators import linearise
from poisonaudit.problem import Problem
from poisonaudit.sensitivity.curvature import solver_for
from poisonaudit.solvers.memory import solve_bytes

# Architecture, rows, solver, bytes allowed.
CASES: list[tuple[str, int, str, int | None]] = [
    ("mlp", 1_500, "lanczos", None),
    ("mlp", 1_500, "minres", None),
    ("mlp", 12_000, "lanczos", None),
    ("mlp", 12_000, "lanczos", 200_000_000),
    ("resnet20", 32, "lanczos", None),
    ("resnet20", 64, "lanczos", 600_000_000),
    ("resnet20", 64, "minres", None),
]


def problem(architecture: str, rows: int, limit: int | None) -> Problem:
    """Random rows: memory does not depend on what is in them."""
    torch.manual_seed(0)
    if architecture == "resnet20":
        model: nn.Module = build_model("resnet20", input_shape=(3, 32, 32), outputs=10, dtype=torch.float32).eval()
        x = torch.rand(rows, 3, 32, 32)
    else:
        model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
        x = torch.rand(rows, 64)
    return Problem(model, "cross_entropy", x, torch.arange(rows) % 10, 1e-3, memory_limit=limit)


def solve(at: Problem, method: str) -> Any:
    """A damped solve at this point."""
    solver = solver_for(at, method=method, damping=0.5, accuracy=1e-5)
    solver.solve(torch.randn(at.size, generator=torch.Generator().manual_seed(1)))
    return solver


def allocated(job: Callable[[], Any]) -> tuple[int, Any]:
    """Most bytes that PyTorch's allocator had handed out to `job` at once, and what the job gave."""
    gc.collect()
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        kept = job()
    live = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak, kept


def resident() -> tuple[int, int]:
    """Present and highest resident bytes of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def measure(index: int, profiled: bool) -> dict[str, Any]:
    """One case in this process: model, and one of both measurements."""
    architecture, rows, method, limit = CASES[index]
    # Code paths, threads and caches of the libraries come in before the count begins.
    solve(problem(architecture, 8, None), method)
    at = problem(architecture, rows, limit)
    # The highest value so far is forgotten: importing takes more than what is measured here.
    Path("/proc/self/clear_refs").write_text("5")
    before, _ = resident()
    if profiled:
        peak, solver = allocated(lambda: solve(at, method))
    else:
        solver = solve(at, method)
        peak = resident()[1] - before
    vectors = 0
    if method == "lanczos":
        vectors = solver._most_vectors if limit is not None else solver._space().count
    stated = linearise(at).memory_bytes + solve_bytes(method, at.size, vectors=vectors, reserved=limit is not None)
    return {"weights": at.size, "stated": stated, "peak": peak, "products": solver.products}


def run() -> None:
    """Measure each case in processes of its own, and store."""
    found = []
    for index, (architecture, rows, method, limit) in enumerate(CASES):
        parts = []
        for profiled in (True, False):
            command = [sys.executable, "-m", "benchmarks.memory", str(index), str(int(profiled))]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
            parts.append(json.loads(output.decode().splitlines()[-1]))
        allocated, grown = parts
        found.append(
            {
                "architecture": architecture,
                "weights": allocated["weights"],
                "rows": rows,
                "method": method,
                "limit_bytes": limit,
                "products": allocated["products"],
                "stated_bytes": allocated["stated"],
                "allocated_bytes": allocated["peak"],
                "resident_growth_bytes": grown["peak"],
                "stated_over_allocated": allocated["stated"] / allocated["peak"],
                "stated_over_resident": grown["stated"] / grown["peak"],
            }
        )
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    write("memory", {"unit": "bytes; passes of the linearisation and a damped solve", "cases": found})


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), sys.argv[2] == "1")))
