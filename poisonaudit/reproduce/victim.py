"""The trained network a reproduction starts from: loaded or trained here, in a minimum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poisonaudit.data import DataSet, load_data
from poisonaudit.errors import UsageError
from poisonaudit.models import build_model, load_weights, wants_images
from poisonaudit.problem import Problem
from poisonaudit.reproduce.bench import Bench, Settings
from poisonaudit.training import finest_tolerance, fit, relative_gradient

SMOOTH = "lenet"
DIGITS = "digits?size=32"
ROWS, ROWS_OF_DIGITS, ROWS_IF_QUICK = 1000, 100, 40
# Five times what other commands allow: single precision cannot tell the retrained change from its rounding.
FLOAT64_LIMIT = 100_000
# What pre-trained ResNets have; and on few digits the least at which minima are far from degenerate.
DECAY, DECAY_OF_DIGITS = 5e-4, 5e-3
GRADIENTS, GRADIENTS_IF_QUICK = 20_000, 4_000


@dataclass(frozen=True)
class Victim:
    """A problem at the solution called "original" in the tables.

    Attributes:
        problem: at the weights of the minimum; batch normalisation frozen.
        test: test rows and labels.
        settings: resolved, plain data.
        facts: how it was trained and how stationary it is, plain data.
        inputs: input name -> sha256.
        tolerance: relative gradient that trainings aim for.
        max_gradients: gradients one training may spend.
    """

    problem: Problem
    test: tuple[Tensor, Tensor]
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    inputs: Mapping[str, str]
    tolerance: float
    max_gradients: int


def resolve(settings: Settings) -> dict[str, Any]:
    """Names and numbers that the settings leave open, chosen.

    Returns:
        Plain data: data, model, limit, decay, seed, max_gradients.

    Raises:
        UsageError: PA396, both a root and another data set are named.
    """
    if settings.root is not None and settings.data is not None:
        raise UsageError("PA396", "--root and --data both name the data. Pass one of them.")
    real = settings.root is not None
    rows = ROWS if real else ROWS_OF_DIGITS
    return {
        "data": f"cifar10:{settings.root}" if real else settings.data or DIGITS,
        "model": settings.model or ("resnet56" if real else SMOOTH),
        "limit": settings.limit or (ROWS_IF_QUICK if settings.quick else rows),
        "decay": (DECAY if real else DECAY_OF_DIGITS) if settings.decay is None else settings.decay,
        "seed": settings.seed,
        "device": settings.device,
        "max_gradients": settings.max_gradients or (GRADIENTS_IF_QUICK if settings.quick else GRADIENTS),
        "quick": settings.quick,
    }


def make_victim(bench: Bench) -> Victim:
    """Load data and model, load or train weights, and go on to a minimum of the decayed mean cross-entropy.

    Args:
        bench: says on what.

    Returns:
        The victim.

    Raises:
        UsageError: PA397, the data have no classes.
    """
    asked = bench.settings
    chosen = resolve(asked)
    model, data, decay = str(chosen["model"]), str(chosen["data"]), float(chosen["decay"])
    bench.voice.stage(f"loading {data}")
    rows = load_data(data, images=wants_images(model), limit=chosen["limit"])
    if rows.classes is None:
        raise UsageError("PA397", f"{data} has no classes, and the paper's loss is cross-entropy. Pass other --data.")
    module = build_model(model, input_shape=tuple(rows.input_shape), outputs=rows.outputs, seed=asked.seed)
    size = sum(value.numel() for value in module.parameters())
    dtype = torch.float64 if size <= FLOAT64_LIMIT else torch.float32
    module, rows = module.to(dtype=dtype, device=asked.device), rows.to(dtype)
    x, y = rows.x_train.to(asked.device), rows.y_train.to(asked.device)
    inputs = dict(rows.sources)
    if asked.weights is not None:
        inputs["weights"] = load_weights(module, Path(asked.weights)).sha256
    tolerance = asked.tolerance or max(1e-9, finest_tolerance(dtype))
    chosen |= {"parameters": size, "rows": len(x), "dtype": str(dtype).removeprefix("torch."), "tolerance": tolerance}
    bench.voice.note(f"{model} on {data}: p = {size:,} weights, n = {len(x):,} rows, cross_entropy, {chosen['dtype']}.")

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        start = Problem(module.eval(), "cross_entropy", x, y, decay)
        max_gradients = int(chosen["max_gradients"])
        reached = fit(start, tolerance, asked.seed, max_gradients=max_gradients, progress=bench.voice)
        facts = {
            "trained_here": asked.weights is None,
            "relative_gradient_before": relative_gradient(start),
            "moved_by_polish": float((reached.problem.weights - start.weights).norm() / start.weights.norm()),
            "relative_gradient": reached.relative_gradient,
            "converged": reached.converged,
            "reason": reached.reason,
            "gradients": reached.gradients,
        }
        return dict(reached.problem.module().state_dict()), facts

    state, facts = bench.kept("original", f"training {model} to a minimum", make)
    module.load_state_dict({name: value.to(asked.device) for name, value in state.items()})
    problem = Problem(module.eval(), "cross_entropy", x, y, decay)
    return Victim(
        problem=problem,
        test=(rows.x_test.to(asked.device), rows.y_test.to(asked.device)),
        settings=chosen,
        facts=dict(facts) | _quality(problem, rows),
        inputs=inputs,
        tolerance=tolerance,
        max_gradients=int(chosen["max_gradients"]),
    )


@torch.no_grad()
def _quality(problem: Problem, rows: DataSet) -> dict[str, float]:
    """Loss and accuracy at the original solution."""
    outputs = problem.outputs()
    test = problem.outputs(x=rows.x_test[:500].to(problem.x))
    labels = rows.y_test[:500].to(test.device)
    return {
        "loss": float(problem.losses().mean()),
        "train_accuracy": float((outputs.argmax(1) == problem.y).double().mean()),
        "test_accuracy": float((test.argmax(1) == labels).double().mean()),
    }
