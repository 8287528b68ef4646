"""What detectors look at: the classes of the rows and the activations before the last weight matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from poisonaudit.losses import class_labels
from poisonaudit.problem import Problem

_ROWS_AT_ONCE = 1024


def why_no_classes(problem: Problem) -> str:
    """Why a detector that compares classes has nothing to compare here, or "" where it has."""
    labels = class_labels(problem.y)
    if labels is None:
        return "the targets are real numbers, the detector compares classes"
    if labels.unique().numel() < 2:
        return "all rows are of one class, the detector compares classes"
    return ""


def penultimate_features(problem: Problem, weights: Tensor) -> tuple[Tensor, str]:
    """Activations that the last weight matrix is applied to, the feature space of the poisoning literature.

    The last weight matrix is the last one that a forward pass meets; of a linear model the features are its inputs.

    Args:
        problem: gives model and rows.
        weights: (p,), where the model is evaluated.

    Returns:
        Features (n, f) in the problem's type, and a note on where they were taken.
    """
    model = problem.at(weights).module()
    name, kept = _last_matrix(model, problem.x[:1]), []
    with torch.no_grad():
        if name is None:
            parts = [model(rows).flatten(1) for rows in problem.x.split(_ROWS_AT_ONCE)]
            return torch.cat(parts), "features are the outputs: no module of its own holds a weight matrix"

        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            kept.append(inputs[0].detach().flatten(1))

        handle = model.get_submodule(name).register_forward_pre_hook(keep)
        for rows in problem.x.split(_ROWS_AT_ONCE):
            model(rows)
        handle.remove()
    return torch.cat(kept), "features are the inputs of " + (f"layer {name}" if name else "the only layer")


def _last_matrix(model: nn.Module, row: Tensor) -> str | None:
    """Name of the module with one weight matrix and no children that a forward pass of one row meets last."""
    met: list[str] = []
    handles = [
        module.register_forward_pre_hook(_noting(met, name))
        for name, module in model.named_modules()
        if not list(module.children()) and sum(value.dim() >= 2 for value in module.parameters()) == 1
    ]
    with torch.no_grad():
        model(row)
    for handle in handles:
        handle.remove()
    return met[-1] if met else None


def _noting(met: list[str], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that notes the module's name where its input has one line for the one row."""

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        first = inputs[0] if inputs else None
        if isinstance(first, Tensor) and first.is_floating_point() and first.dim() >= 2 and len(first) == 1:
            met.append(name)

    return note
