"""From names to a Problem: data, model, dtype and device, loss; all refusals before anything is written."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poisonaudit.cli.console import Reporter
from poisonaudit.data import DataSet, load_data
from poisonaudit.errors import UsageError
from poisonaudit.models import build_model, load_weights, model_sources, wants_images
from poisonaudit.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

# Largest number of weights for which commands work in float64.
FLOAT64_LIMIT = 20_000
# Up to here one thread is faster than several.
ONE_THREAD_LIMIT = 2_000


@dataclass(frozen=True)
class Victim:
    """A model with its data, ready to train, audit or attack.

    Attributes:
        problem: on the training rows, at the weights in question.
        data: in the problem's dtype, on its device.
        model: name as given.
        inputs: input name -> sha256.
        recipe: how it was trained, as far as known.
        warnings: what the user should know about it.
    """

    problem: Problem
    data: DataSet
    model: str
    inputs: Mapping[str, str]
    recipe: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """Test rows and their labels."""
        return self.data.x_test, targets(self.data, self.data.y_test)

    def at(self, weights: Tensor, **changes: Any) -> Victim:
        """The same victim at other weights."""
        return replace(self, problem=self.problem.at(weights), **changes)


def assemble(
    model: str,
    data: str,
    *,
    loss: str | None = None,
    decay: float = 0.0,
    limit: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
    weights: Path | None = None,
    trust_code: bool = False,
    report: Reporter,
) -> Victim:
    """Load data, build the model, load weights if given, and make the Problem.

    Args:
        model: architecture, as given.
        data: data, as given.
        loss: None for the default of the kind of data.
        decay: weight decay.
        limit: first N training rows of the split.
        seed: of the initial weights.
        device: where to compute.
        dtype: "float64" or "float32"; None for float64 up to 20,000 weights.
        weights: file to load; None keeps the initial weights.
        trust_code: whether `file.py:factory` may run.
        report: told what is loaded.

    Returns:
        The victim.

    Raises:
        UsageError: an unknown name or a device that is not there.
        InputRefused: data, model or weights are refused.
    """
    place = find_device(device)
    report.stage(f"loading {data}")
    rows = load_data(data, images=wants_images(model), limit=limit)
    for note in rows.notes:
        report.warn(note)
    module = build_model(
        model,
        input_shape=tuple(rows.input_shape),
        outputs=rows.outputs,
        seed=seed,
        dtype=torch.float64,
        trust_code=trust_code,
        image_shape=rows.image_shape,
    )
    inputs = dict(rows.sources)
    inputs.update({f"code:{name}": digest for name, digest in model_sources(module).items()})
    if weights is not None:
        loaded = load_weights(module, weights)
        inputs["weights"] = loaded.sha256
        for note in loaded.notes:
            report.note(f"{weights.name}: {note}")
    size = sum(value.numel() for value in module.parameters())
    kind = dtype or ("float64" if size <= FLOAT64_LIMIT else "float32")
    precision = torch.float32 if kind == "float32" else torch.float64
    rows = on_device(rows.to(precision), place)
    name = loss or default_loss(rows)
    settle_threads(size)
    problem = Problem(module.to(dtype=precision, device=place), name, rows.x_train, targets(rows, rows.y_train), decay)
    report.note(f"{model} on {rows.name}: p = {problem.size:,} weights, n = {problem.rows:,} rows, {name}, {kind}.")
    recipe = {"loss": name, "decay": decay, "limit": limit, "seed": seed, "dtype": kind}
    return Victim(problem, rows, model, inputs, recipe, tuple(rows.notes))


def settle_threads(size: int) -> None:
    """One thread for small problems, unless the user set the number.

    Their products are too short to share: two threads took two and a half times as long as one on the demo. It also
    makes results of different machines comparable bit for bit.
    """
    if size <= ONE_THREAD_LIMIT and not any(name in os.environ for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")):
        torch.set_num_threads(1)


def find_device(name: str) -> torch.device:
    """The torch device of a name.

    Args:
        name: cpu, cuda or cuda:N.

    Returns:
        The device.

    Raises:
        UsageError: PA350, there is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError("PA350", f"unknown device {name!r}. Use cpu, cuda or cuda:0.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError("PA350", f"device {name!r} is not there: {count} CUDA devices found. Use --device cpu.")
    elif device.type != "cpu":
        raise UsageError("PA350", f"device {name!r} is not supported. Use cpu or cuda.")
    return device


def on_device(rows: DataSet, device: torch.device) -> DataSet:
    """The same rows on a device."""
    moved = {name: getattr(rows, name).to(device) for name in ("x_train", "y_train", "x_test", "y_test")}
    return replace(rows, **moved, box=(rows.box[0].to(device), rows.box[1].to(device)))


def default_loss(rows: DataSet) -> str:
    """Cross entropy for classes, half squared for regression."""
    return "half_squared" if rows.classes is None else "cross_entropy"


def targets(rows: DataSet, y: Tensor) -> Tensor:
    """Labels as they are; a single regression target as one column, which is the shape of the outputs."""
    return y[:, None] if rows.classes is None and y.dim() == 1 else y


@torch.no_grad()
def quality(problem: Problem, x: Tensor, y: Tensor) -> float | None:
    """Share of rows classified rightly; None for regression or where there are no rows."""
    if y.is_floating_point() or not len(x):
        return None
    return float((problem.outputs(x=x).argmax(1) == y).to(torch.float64).mean())


def unit_of(victim: Victim) -> str:
    """What one unit of the radius is."""
    if "divide_by" in victim.data.preprocessing:
        return f"input units (pixel values / {victim.data.preprocessing['divide_by']})"
    if "deviation" in victim.data.preprocessing:
        return "standard deviations of each column over the training rows"
    return "input units"


def tensors_of(problem: Problem) -> dict[str, Tensor]:
    """The model's state at the problem's weights, buffers included, on the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in problem.module().state_dict().items()}
