"""Products with H, B and J against one full-batch gradient ("G") of the same problem, on idle and on busy cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks.timing import interleave, ratios, write
from poisonaudit.models import build_model
from poisonaudit.operators import Linearisation, dense_hessian
from poisonaudit.problem import Problem

COLUMNS = 16
BUSY_PROCESSES = 2


def mlp(dtype: torch.dtype) -> Problem:
    """MLP 64-256-256-10 with ReLU, cross-entropy, 1,500 rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).to(dtype)
    return Problem(model, "cross_entropy", torch.rand(1500, 64, dtype=dtype), torch.arange(1500) % 10, 1e-3)


def resnet() -> Problem:
    """ResNet-20 in eval mode, 32 rows of 3 x 32 x 32, float32."""
    torch.manual_seed(0)
    model = build_model("resnet20", input_shape=(3, 32, 32), outputs=10, dtype=torch.float32).eval()
    return Problem(model, "cross_entropy", torch.rand(32, 3, 32, 32), torch.arange(32) % 10, 1e-3)


CASES: dict[str, tuple[Callable[[], Problem], int]] = {
    "mlp, float32": (lambda: mlp(torch.float32), 5),
    "mlp, float64": (lambda: mlp(torch.float64), 5),
    "resnet20, float32": (resnet, 2),
}


def measure(name: str, repeats: int = 15) -> dict[str, Any]:
    """Ratios and all repeats of one case."""
    build, inner = CASES[name]
    at = build()
    kept, general = Linearisation(at), Linearisation(at, path="general")
    part = Linearisation(at, torch.arange(5))
    v, mu = torch.randn_like(at.weights), torch.randn_like(at.x)
    block = torch.randn(at.size, COLUMNS, dtype=at.dtype)
    jobs: dict[str, Callable[[], Any]] = {
        "gradient": at.gradient,
        "H v": lambda: kept.hessian(v),
        "H v, double backward on a kept graph": lambda: general.hessian(v),
        "B^T u": lambda: kept.mixed_adjoint(v),
        "H u and B^T u": lambda: kept.both_adjoint(v),
        "B mu, all rows": lambda: kept.mixed(mu),
        "B mu, 5 rows": lambda: part.mixed(mu[:5]),
        "Gauss-Newton v": lambda: kept.gauss_newton(v),
    }
    if at.x.dim() == 2:
        jobs["H V, 16 columns, each"] = lambda: kept.hessian(block)
    seconds = interleave(jobs, repeats=repeats, inner=inner)
    if "H V, 16 columns, each" in seconds:
        seconds["H V, 16 columns, each"] = [time / COLUMNS for time in seconds["H V, 16 columns, each"]]
    return {"path": kept.path, "ratios": ratios(seconds, "gradient"), "seconds": seconds}


def dense() -> dict[str, Any]:
    """The whole Hessian of a small problem, in gradients."""
    at = mlp(torch.float64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    small = Problem(model, "cross_entropy", at.x[:400], at.y[:400], 1e-3)

    def afresh() -> None:
        small.cache.clear()
        dense_hessian(small)

    found = ratios(interleave({"gradient": small.gradient, "dense": afresh}, repeats=5), "gradient")["dense"]
    return {"weights": small.size, "rows": small.rows, "gradients": found, "gradients_per_column": found / small.size}


@contextmanager
def busy_cores() -> Iterator[None]:
    """Two other processes that multiply matrices all the time."""
    workers = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(BUSY_PROCESSES)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _burn() -> None:
    torch.set_num_threads(1)
    matrix = torch.rand(400, 400)
    while True:
        matrix = (matrix @ matrix).clamp(0, 1)


def run() -> None:
    """Measure and store."""
    idle = {name: measure(name) for name in CASES}
    with busy_cores():
        busy = {name: measure(name, repeats=7) for name in CASES if name.startswith("mlp")}
    write(
        "products",
        {
            "unit": "one full-batch gradient of the same problem, interleaved, medians",
            "idle": idle,
            "busy": busy,
            "dense_hessian": dense(),
        },
    )
