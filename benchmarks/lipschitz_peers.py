"""Upper bounds of ours beside those of others, on the same networks trained on digits, with the time each takes.

In l_2: eclipse-nn (ECLipsE and its closed form) and LipSDP-Neuron. In both norms: interval propagation of the Jacobian.
CLEVER is an estimate of how far an input may move, no bound: it stands beside certified radii and the distance at which
an attack succeeds. Every peer runs in a process of its own with a limit of processor time;
what is not installed or fails says why.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import io
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.journal import measured
from benchmarks.lipschitz_nets import SHAPES, trained
from benchmarks.lipsdp import bound_of, solve
from benchmarks.timing import write
from poisonaudit import lipschitz_bounds
from poisonaudit.lipschitz.dense_graph import graph_of
from poisonaudit.lipschitz.local import certified_radii
from poisonaudit.lipschitz.lower import attained_norm
from poisonaudit.lipschitz.network import read_network

NAME = "lipschitz_peers"
NORMS = ("linf", "l2")
BOUNDS = ("k_star", "k3", "k4", "k5", "k6", "ellipsoid", "ellipsoid_tuned", "certified")
REPEATS = 5
# Processor seconds of a peer; wall seconds of the solver within.
LIMIT, SOLVER_SECONDS = 240, 600.0
SEARCHES, SEARCH_WORK = 4, 2e10
DIGITS = 5
# CLEVER: batches and their rows for each wrong class, points drawn for a row, largest distance.
BATCHES, BATCH_ROWS, POOL, RADIUS = 20, 50, 5, 0.3
PACKAGES = ("eclipse-nn", "cvxpy", "scs", "adversarial-robustness-toolbox")


def clocked(job: Callable[[], Any], repeats: int) -> tuple[Any, dict[str, float]]:
    """What a job gives, and the least wall and processor seconds of some calls.

    Under a limit of processor time the system counts that in ticks of milliseconds: for short jobs read wall time.
    """
    walls, used = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        found = job()
        walls.append(time.perf_counter() - wall)
        used.append(time.process_time() - processor)
    return found, {"wall_seconds": min(walls), "processor_seconds": min(used)}


def ours(shape: str, norm: str) -> dict[str, Any]:
    """All bounds of ours; seconds are the least of several calls."""
    net = trained(shape)
    every = [lipschitz_bounds(net.model, norm, x=net.test_x) for _ in range(REPEATS)]
    graph = graph_of(read_network(net.model))
    found = [attained_norm(graph, norm, None, seed, search_work=SEARCH_WORK) for seed in range(1, SEARCHES)]
    lower = max(every[0].lower, *found)
    seconds = {name: min(each.seconds[name] for each in every) for name in every[0].seconds}
    bounds = {name: getattr(every[0], name) for name in BOUNDS}
    return {
        **bounds,
        "lower": lower,
        "certified_winner": every[0].certified_winner,
        "over_lower": {name: value / lower for name, value in bounds.items() if value is not None},
        "seconds_by_bound": seconds,
    }


def interval_jacobian(matrices: list[Tensor]) -> Tensor:
    """Bounds of the entries of the Jacobian by interval arithmetic, layer by layer, slopes in [0, 1]."""
    low = high = matrices[0]
    for weight in matrices[1:]:
        low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        plus, minus = weight.clamp_min(0.0), weight.clamp_max(0.0)
        low, high = plus @ low + minus @ high, plus @ high + minus @ low
    return torch.maximum(low.abs(), high.abs())


def interval(shape: str) -> dict[str, Any]:
    """Its norms: both grow with the entries."""
    matrices = trained(shape).matrices
    entries, seconds = clocked(lambda: interval_jacobian(matrices), REPEATS)
    return {
        "linf": float(entries.sum(1).max()),
        "l2": float(torch.linalg.matrix_norm(entries, 2)),
        **seconds,
    }


def eclipse(shape: str, method: str) -> dict[str, Any]:
    """eclipse-nn's bound in l_2, as it gives it: plain floating point, its own settings."""
    from eclipse_nn import LipConstEstimator

    estimator = LipConstEstimator(weights=trained(shape).matrices)
    repeats = REPEATS if method == "ECLipsE_Fast" else 1
    with contextlib.redirect_stdout(io.StringIO()) as said:
        value, seconds = clocked(lambda: float(estimator.estimate(method=method)), repeats)
    # It tells here where its programme failed and the closed form stands in.
    return {"l2": value, **seconds, "said": said.getvalue().strip()}


def lipsdp(shape: str) -> dict[str, Any]:
    """LipSDP-Neuron: what the solver ended at, and the bound that its multipliers prove."""
    matrices = trained(shape).matrices
    (ended, multipliers, status), seconds = clocked(lambda: solve(matrices, SOLVER_SECONDS), 1)
    return {
        "l2": bound_of(matrices, multipliers),
        "l2_by_the_solver": ended,
        "status": status,
        **seconds,
    }


def clever(shape: str) -> dict[str, Any]:
    """ART's CLEVER score of some digits in l_inf beside the certified radius and the radius of an attack."""
    import numpy as np
    from art.estimators.classification import PyTorchClassifier
    from art.metrics import clever_u

    net = trained(shape)
    right = torch.nonzero(net.model(net.test_x).argmax(1) == net.test_y)[:DIGITS, 0]
    rows, labels = net.test_x[right], net.test_y[right]
    begun = time.perf_counter()
    proved = certified_radii(net.model, rows, labels, largest=RADIUS)
    proved_seconds = (time.perf_counter() - begun) / len(rows)
    model = nn.Sequential(*(type(layer)() if isinstance(layer, nn.ReLU) else _single(layer) for layer in net.model))
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (64,), 10, device_type="cpu")
    np.random.seed(0)
    begun = time.perf_counter()
    scores = [
        float(
            clever_u(
                classifier, row.float().numpy(), BATCHES, BATCH_ROWS, RADIUS, np.inf, pool_factor=POOL, verbose=False
            )
        )
        for row in rows
    ]
    score_seconds = (time.perf_counter() - begun) / len(rows)
    return {
        "norm": "linf",
        "scores": scores,
        "certified_radii": proved.radii.tolist(),
        "attacked_radii": [
            attacked_radius(net.model, row, int(label)) for row, label in zip(rows, labels, strict=True)
        ],
        "seconds_a_digit": score_seconds,
        "certified_seconds_a_digit": proved_seconds,
    }


def _single(layer: nn.Module) -> nn.Linear:
    """A float32 copy: ART takes no other."""
    assert isinstance(layer, nn.Linear)
    copy = nn.Linear(layer.in_features, layer.out_features)
    copy.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
    return copy


def attacked_radius(model: nn.Module, row: Tensor, label: int, steps: int = 40, halvings: int = 10) -> float | None:
    """The least radius at which sign ascent on the margin of the best wrong class changes the prediction."""
    least, most = 0.0, RADIUS
    if not _falls(model, row, label, most, steps):
        return None
    for _ in range(halvings):
        middle = 0.5 * (least + most)
        least, most = (least, middle) if _falls(model, row, label, middle, steps) else (middle, most)
    return most


def _falls(model: nn.Module, row: Tensor, label: int, radius: float, steps: int) -> bool:
    """Whether an attack from the digit itself and from seven random points succeeds."""
    generator = torch.Generator().manual_seed(0)
    offsets = 2.0 * torch.rand(8, len(row), generator=generator, dtype=row.dtype) - 1.0
    offsets[0] = 0.0
    points = row + radius * offsets
    others = torch.arange(10) != label
    for step in range(steps + 1):
        points = points.detach().requires_grad_(True)
        logits = model(points)
        margins = logits[:, others].amax(1) - logits[:, label]
        if bool((margins > 0).any()):
            return True
        (gradient,) = torch.autograd.grad(margins.sum(), points)
        moved = points + 0.5 * radius * (1.0 - step / (steps + 1)) * gradient.sign()
        points = torch.minimum(torch.maximum(moved, row - radius), row + radius)
    return False


PEERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "interval_jacobian": interval,
    "eclipse_fast": functools.partial(eclipse, method="ECLipsE_Fast"),
    "clever": clever,
    "eclipse": functools.partial(eclipse, method="ECLipsE"),
    "lipsdp_neuron": lipsdp,
}


def in_process(peer: str, shape: str) -> dict[str, Any]:
    """A peer on a network, or why there is no result."""
    command = [sys.executable, "-m", "benchmarks.lipschitz_peers", peer, shape]
    done = subprocess.run(command, check=False, capture_output=True)
    told = {"peer": peer, "shape": shape}
    if done.returncode == -signal.SIGXCPU:
        return {**told, "no_result": f"not finished after {LIMIT} s of processor time"}
    if done.returncode:
        lines = done.stderr.decode().strip().splitlines()
        return {**told, "no_result": lines[-1][:300] if lines else f"exit {done.returncode}"}
    return {**told, **json.loads(done.stdout.decode().splitlines()[-1])}


def settings() -> dict[str, Any]:
    """What the figures depend on."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return {
        "limit_seconds": LIMIT,
        "solver_seconds": SOLVER_SECONDS,
        "searches": [SEARCHES, SEARCH_WORK],
        "clever": [BATCHES, BATCH_ROWS, POOL, RADIUS],
        "digits": DIGITS,
        "packages": installed,
    }


def run(skip: Sequence[str] = ()) -> None:
    """Measure what is missing, cheap peers first, and store after each; the file names what has not been run.

    Args:
        skip: pieces to leave out, such as "4x64, eclipse".
    """
    plan: dict[str, Callable[[], dict[str, Any]]] = {}
    for norm in NORMS:
        plan |= {f"{shape}, ours, {norm}": functools.partial(ours, shape, norm) for shape in SHAPES}
    for peer in PEERS:
        pieces = {f"{shape}, {peer}": functools.partial(in_process, peer, shape) for shape in SHAPES}
        plan |= {name: job for name, job in pieces.items() if name not in skip}
        cases = measured(NAME, plan, settings())
        not_run = [f"{shape}, {name}" for name in PEERS for shape in SHAPES if f"{shape}, {name}" not in plan]
        body = {
            "settings": settings(),
            "note": "CLEVER is an estimate, not a bound; plain float64 except `certified`; the machine was shared",
            "not_run": not_run,
            "networks": {shape: trained(shape).facts for shape in SHAPES},
            "cases": cases,
        }
        write(NAME, body)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
    print(json.dumps(PEERS[sys.argv[1]](sys.argv[2])))
