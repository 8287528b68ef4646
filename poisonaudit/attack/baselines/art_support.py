"""What the wrapped attacks of the Adversarial Robustness Toolbox share: targets, a feature layer, and the way back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.utils.data
from torch import Tensor, nn

from poisonaudit.art_estimator import art_session, silent
from poisonaudit.attack.baselines.base import Start, refused
from poisonaudit.attack.budget import Budget
from poisonaudit.attack.objectives import FlipPrediction, FlipPredictions, Objective
from poisonaudit.losses import class_labels
from poisonaudit.problem import Problem

# Beyond the budget by this share of the radius is more than the rounding of float32.
_ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Targets:
    """Test rows and the classes wanted for them.

    Attributes:
        x: (m, ...).
        labels: (m,).
        classes: number of classes.
    """

    x: Tensor
    labels: Tensor
    classes: int


def targets_of(problem: Problem, objective: Objective) -> Targets | None:
    """The rows to flip; None where the objective is no flip."""
    if isinstance(objective, FlipPrediction):
        one = objective.bind(problem)
        rows, labels = one.row, one.label
    elif isinstance(objective, FlipPredictions):
        several = objective.bind(problem)
        rows, labels = several.rows, several.labels
    else:
        return None
    with torch.no_grad():
        classes = problem.outputs(x=rows[:1]).shape[1]
    return Targets(rows, labels, classes)


def no_flip(problem: Problem, objective: Objective) -> str:
    """Why ART has nothing to aim at, "" where it has."""
    if targets_of(problem, objective) is None:
        return f"ART's attack flips predictions, the objective is {objective.kind!r}"
    if class_labels(problem.y) is None:
        return "ART's attack is about classes, the training targets are none"
    return ""


def no_plain_radius(budget: Budget) -> str:
    """Why ART's one number epsilon cannot say the budget, "" where it can."""
    if budget.norm != "linf":
        return f"ART bounds every entry by itself, the budget's norm is {budget.norm!r}"
    if budget.scale is not None:
        return "ART has one epsilon for all entries, the budget has a scale"
    return ""


def no_features(problem: Problem) -> str:
    """Why there is no hidden layer whose features can be matched, "" where there is one."""
    found = split_at_features(problem)
    return found if isinstance(found, str) else ""


def split_at_features(problem: Problem) -> nn.Sequential | str:
    """The model as `features` and `head` in float32: head is the last Linear, features what goes into it.

    Args:
        problem: gives the model.

    Returns:
        The two parts, or why the model does not come apart like that.
    """
    model, x = problem.module().float().cpu(), problem.x[:2].float().cpu()
    order: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, _inputs, _outputs: order.append(module))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        whole = model(x)
    for hook in hooks:
        hook.remove()
    if not order:
        return "the model has no Linear layer, so there is no feature layer in front of one"
    head = order[-1]
    if head is model:
        return "the model is one Linear layer: it has no hidden layer whose features could be matched"
    _replace(model, head, nn.Identity())
    with torch.no_grad():
        features = model(x)
        fits = features.dim() == 2 and torch.allclose(head(features), whole, rtol=1e-4, atol=1e-5)
    if not fits:
        return "the model goes on after its last Linear layer, so its features cannot be told apart"
    if features.shape[1] == x[0].numel() and torch.equal(features, x.flatten(1)):
        return "the model is one Linear layer: it has no hidden layer whose features could be matched"
    both = nn.Sequential()
    both.add_module("features", model)
    both.add_module("head", head)
    return both.eval()


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in model.modules():
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new


def hull(problem: Problem, budget: Budget) -> tuple[float, float]:
    """One pair of limits that holds the box and the training rows; ART cuts all entries at the same two numbers."""
    if budget.box is None:
        return -math.inf, math.inf
    lower, upper = (torch.as_tensor(end, dtype=torch.float64) for end in budget.box)
    return min(float(lower.min()), float(problem.x.min())), max(float(upper.max()), float(problem.x.max()))


def as_numpy(x: Tensor) -> Any:
    """Rows in ART's float32 on the host."""
    return x.detach().float().cpu().numpy()


def admissible(start: Start, found: Any) -> tuple[Tensor, list[str]]:
    """The perturbation that ART found, moved into the budget, and what to tell about that.

    Args:
        start: of the run.
        found: poisoned rows (k, ...) in float32.

    Returns:
        Perturbation (k, ...) and notes.
    """
    # The difference is taken in float32, so that what ART left alone stays exactly zero.
    delta = torch.as_tensor(found - as_numpy(start.x)).to(start.x)
    beyond = start.allowed.violation(delta)
    admitted = start.allowed.project(delta)
    if beyond <= _ROUNDING * start.allowed.radius:
        return admitted, []
    share = float((admitted - delta).norm() / delta.norm())
    return admitted, [
        f"ART's result left the budget by {beyond:.3g}; its nearest admissible point was taken, which changed it by "
        f"{share:.0%} of its norm"
    ]


def other_classes(start: Start, wanted: Tensor) -> tuple[Tensor, list[str]]:
    """Which rows are of a wanted class (k,), and a note on those that are not."""
    classes = class_labels(start.problem.y)
    assert classes is not None
    ours = classes[start.rows]
    fits = (ours[:, None] == wanted.to(ours.device)[None, :]).any(1)
    missing = int((~fits).sum())
    if not missing:
        return fits, []
    return fits, [f"{missing} of {len(fits)} rows are not of the wanted class, as the method takes them to be"]


@contextlib.contextmanager
def without_workers() -> Iterator[None]:
    """Load batches in this process; ART starts a worker process at every step, which takes dozens of times as long."""
    loader = torch.utils.data.DataLoader

    def here(*arguments: Any, **options: Any) -> Any:
        return loader(*arguments, **{**options, "num_workers": 0})

    with mock.patch.object(torch.utils.data, "DataLoader", here):
        yield


def run_art(start: Start, seed: int, work: Callable[[], Any]) -> Any:
    """`work()`, seeded and silent; ART's exceptions are of every type and become one refusal."""
    try:
        with art_session(seed), silent(), torch.enable_grad():
            return work()
    except Exception as trouble:
        said = " ".join(f"{type(trouble).__name__}: {trouble}".split())
        raise refused(start.name, f"ART could not run it ({said})") from trouble
