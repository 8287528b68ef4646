"""Products and seconds of the joint modulus and of all row moduli, with growth in rows and weights."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from benchmarks.timing import write
from poisonaudit.operators import linearise
from poisonaudit.problem import Problem
from poisonaudit.sensitivity import lipschitz_modulus, row_moduli

# (hidden units, rows): the last is the stated size, p close to 5,000 and 1,000 rows.
SIZES = [(13, 250), (26, 250), (26, 500), (26, 1_000), (66, 1_000)]


def problem(hidden: int, rows: int) -> Problem:
    """MLP 64-hidden-10 with tanh, decay, float64; random rows, which is all that products and solves depend on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10)).double()
    # Decay keeps H definite away from a minimum too, as it is at one.
    return Problem(model, "cross_entropy", torch.rand(rows, 64, dtype=torch.float64), torch.arange(rows) % 10, 1.0)


def measure(hidden: int, rows: int) -> dict[str, Any]:
    """Products and seconds of both, the Hessian's p products counted with the joint modulus that makes it."""
    at = problem(hidden, rows)
    begun = time.perf_counter()
    joint = lipschitz_modulus(at)
    middle = time.perf_counter()
    kept = linearise(at)
    before = kept.products
    each = row_moduli(at)
    end = time.perf_counter()
    return {
        "weights": at.size,
        "rows": rows,
        "joint_products": before,
        "joint_seconds": middle - begun,
        "joint_steps": joint.details["steps"],
        "rows_products": kept.products - before,
        "rows_products_alone": kept.products - before + at.size,
        "rows_seconds": end - middle,
        "largest_row_over_joint": float(each.max()) / joint.value,
        "bracket": [joint.lower, joint.upper],
    }


def run() -> None:
    """Measure and store."""
    measure(*SIZES[0])  # warm up
    write("moduli", {"unit": "products of the whole problem; seconds", "sizes": [measure(*size) for size in SIZES]})
