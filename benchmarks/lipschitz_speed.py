"""How long the Lipschitz bounds take: by depth, on LeNet and ResNet-20, and in balls around digits.

Every network runs in a process of its own, whose peak memory is what the system counted for all of it, PyTorch
included. Processor time stands beside wall time: on a shared machine the two differ.
"""

from __future__ import annotations

import functools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.journal import measured
from benchmarks.lipschitz_nets import trained
from benchmarks.timing import write
from poisonaudit import lipschitz_bounds
from poisonaudit.lipschitz.local import local_lipschitz
from poisonaudit.lipschitz.network import chain_of, read_network
from poisonaudit.lipschitz.upper import norm_of_sum_bound, subset_absolute_bound
from poisonaudit.models import build_model

NAME = "lipschitz_speed"
DEPTHS = (2, 4, 6, 8, 10, 12, 20, 40, 60)
# K_4 sums 2^depth terms.
DEEPEST_K4 = 12
REPEATS, LOCAL_REPEATS = 7, 3
DIGITS = 30
EPSILONS = (0.01, 0.1)
PICTURES = {"lenet": (1, 28, 28), "resnet20": (3, 32, 32)}
NORMS = ("linf", "l1")
GOALS = {
    "K_5, 60 layers of 20, seconds": 0.2,
    "K_5, LeNet, seconds": 10.0,
    "all bounds, ResNet-20, seconds": 300.0,
    "ResNet-20, peak bytes": 2e9,
    "local bound, 4x64, seconds a digit": 0.05,
    "local bound, 4x64, processor seconds a digit": 0.05,
}


def deep_net(depth: int) -> list[Tensor]:
    """Width 20, entries N(0, 1/20)."""
    generator = torch.Generator().manual_seed(depth)
    return [torch.randn(20, 20, generator=generator, dtype=torch.float64) / 20**0.5 for _ in range(depth + 1)]


def picture_net(name: str) -> nn.Module:
    """A network with drawn weights and batch statistics: the time of a bound hardly depends on them."""
    model = build_model(name, input_shape=PICTURES[name], outputs=10)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.running_mean.shape
            module.running_mean.copy_(0.1 * torch.randn(size, generator=generator, dtype=torch.float64))
            module.running_var.copy_(0.5 + torch.rand(size, generator=generator, dtype=torch.float64))
    return model


def clocked(job: Callable[[], Any]) -> dict[str, float]:
    """Wall and processor seconds of one call."""
    wall, used = time.perf_counter(), time.process_time()
    job()
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - used}


def depth(layers: int) -> dict[str, Any]:
    """K_4 and K_5 of one deep net, in turn."""
    chain = chain_of(read_network(deep_net(layers)), "linf")
    jobs: dict[str, Callable[[], Any]] = {"k5": lambda: norm_of_sum_bound(chain)}
    if layers <= DEEPEST_K4:
        jobs["k4"] = lambda: subset_absolute_bound(chain)
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    for turn in range(REPEATS + 1):
        for name, job in jobs.items():
            found = clocked(job)
            if turn:
                seconds[name].append(found)
    bounds = lipschitz_bounds(deep_net(layers))
    names = ("k_star", "k1", "k3", "k4", "k5", "k6", "ellipsoid", "certified", "lower")
    return {
        "hidden_layers": layers,
        **{name: getattr(bounds, name) for name in names},
        **{f"{name}_seconds": statistics.median(each["wall"] for each in own) for name, own in seconds.items()},
        "repeats": seconds,
        "seconds_by_bound": dict(bounds.seconds),
    }


def pictures(name: str, norm: str) -> dict[str, Any]:
    """All bounds of a convolutional network, in this process."""
    model = picture_net(name)
    wall, used = time.perf_counter(), time.process_time()
    bounds = lipschitz_bounds(model, norm, input_shape=PICTURES[name])
    names = ("k_star", "k1", "k3", "k4", "k5", "certified", "lower")
    return {
        "network": name,
        "norm": norm,
        "wall_seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - used,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "restarts": list(bounds.restarts),
        "seconds_by_bound": dict(bounds.seconds),
        **{each: getattr(bounds, each) for each in names},
    }


def in_process(name: str, norm: str) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.lipschitz_speed", name, norm]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output.decode().splitlines()[-1])


def local(epsilon: float) -> dict[str, Any]:
    """Upper bounds around test digits, all in one call as users make it."""
    net = trained("4x64")
    rows = net.test_x[:DIGITS]
    every, whole = [], []
    for _ in range(LOCAL_REPEATS):
        whole.append(clocked(lambda: every.append(local_lipschitz(net.model, rows, epsilon, search_work=0))))
    seconds = [each.seconds for found in every for each in found]
    return {
        "network": "4x64",
        "epsilon": epsilon,
        "digits": len(rows),
        "wall_median": statistics.median(seconds),
        "wall_least": min(seconds),
        "wall_largest": max(seconds),
        "processor_mean": min(each["processor"] for each in whole) / len(rows),
        "repeats": [[each.seconds for each in found] for found in every],
    }


def goals(cases: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What was measured beside what was aimed at; None where it is not measured yet."""

    def largest(pieces: list[str], figure: Callable[[dict[str, Any]], float]) -> float | None:
        return max(figure(cases[each]) for each in pieces) if all(each in cases for each in pieces) else None

    digits = [f"digits, {epsilon}" for epsilon in EPSILONS]
    nets = {name: [f"{name}, {norm}" for norm in NORMS] for name in PICTURES}
    found = {
        "K_5, 60 layers of 20, seconds": largest(["depth 60"], lambda each: each["k5_seconds"]),
        "K_5, LeNet, seconds": largest(nets["lenet"], lambda each: each["seconds_by_bound"]["k5"]),
        "all bounds, ResNet-20, seconds": largest(nets["resnet20"], lambda each: each["wall_seconds"]),
        "ResNet-20, peak bytes": largest(nets["resnet20"], lambda each: each["peak_bytes"]),
        "local bound, 4x64, seconds a digit": largest(digits, lambda each: each["wall_median"]),
        "local bound, 4x64, processor seconds a digit": largest(digits, lambda each: each["processor_mean"]),
    }
    return {
        name: {"goal": GOALS[name], "measured": value, "met": None if value is None else value <= GOALS[name]}
        for name, value in found.items()
    }


def run() -> None:
    """Measure what is missing and store, first without what takes minutes."""
    plan: dict[str, Callable[[], Mapping[str, Any]]] = {}
    for layers in DEPTHS:
        plan[f"depth {layers}"] = functools.partial(depth, layers)
    for epsilon in EPSILONS:
        plan[f"digits, {epsilon}"] = functools.partial(local, epsilon)
    settings = {"repeats": REPEATS, "digits": DIGITS, "threads": torch.get_num_threads()}
    note = "two threads, nothing else running"
    for name in PICTURES:
        for norm in NORMS:
            plan[f"{name}, {norm}"] = functools.partial(in_process, name, norm)
        cases = {each["piece"]: each for each in measured(NAME, plan, settings)}
        write(NAME, {"settings": settings, "note": note, "goals": goals(cases), "cases": list(cases.values())})


if __name__ == "__main__":
    print(json.dumps(pictures(sys.argv[1], sys.argv[2])))
