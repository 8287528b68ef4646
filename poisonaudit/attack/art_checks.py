"""Checks of the parameters of the attack for ART; every refusal is a `ValueError`, as ART's own attacks raise it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from poisonaudit.attack.art_arrays import DTYPES, target_rows
from poisonaudit.attack.art_problem import refuse_classifier
from poisonaudit.attack.objectives import FlipPrediction, FlipPredictions, Objective
from poisonaudit.attack.perturbations import NormName
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name

NORMS: dict[Any, NormName] = {np.inf: "linf", "inf": "linf", 1: "l1", 2: "l2"}
_NUMBER = ((int, float, np.number), "a number")
_WHOLE = ((int, np.integer), "a whole number")
_SWITCH = ((bool,), "True or False")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "eps": _NUMBER,
    "percent_poison": _NUMBER,
    "decay": _NUMBER,
    "tolerance": _NUMBER,
    "steps": _WHOLE,
    "seed": _WHOLE,
    "fit_first": _SWITCH,
    "verbose": _SWITCH,
}


def check_parameters(attack: Any) -> None:
    """Refuse parameters that say nothing, or nothing this attack can do.

    Args:
        attack: a `SolutionSetPoisoningAttack`; names and values in the choice of rows are left to its `Budget`.

    Raises:
        UsageError: PA344, PA349, PA301, PA360, PA361, PA363, PA123 or PA367, see the attack.
        InputRefused: PA211, PA212, PA210, PA125 or PA124, the target does not fit the classifier.
    """
    refuse_classifier(attack.estimator)
    for name, (kinds, what) in _KINDS.items():
        value = getattr(attack, name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise refused(f"{name} is {value!r}", f"it must be {what}", f"Pass {what}.")
    if not 0.0 < attack.eps < math.inf:
        raise UsageError("PA360", f"eps is {attack.eps}; it must be finite and > 0. Pass e.g. 16/255.")
    if not 0.0 < attack.percent_poison <= 1.0:
        raise UsageError(
            "PA361",
            f"percent_poison is {attack.percent_poison}; it is a share and must lie in (0, 1]. Pass 0.05 for 5 %.",
        )
    if not 0.0 <= attack.decay < math.inf:
        raise UsageError("PA123", f"decay is {attack.decay}; it must be finite and >= 0. Pass decay=0 for none.")
    if not 0.0 < attack.tolerance < math.inf:
        raise refused(f"tolerance is {attack.tolerance}", "it must be finite and > 0", "Pass tolerance=1e-8.")
    if attack.steps < 1:
        raise UsageError("PA367", f"steps is {attack.steps}; at least one linearisation is needed. Pass steps=12.")
    if attack.seed < 0:
        raise refused(f"seed is {attack.seed}", "seeds are whole numbers >= 0", "Pass seed=0.")
    norm = attack.norm
    if isinstance(norm, bool) or not isinstance(norm, int | float | str | np.number) or norm not in NORMS:
        raise UsageError("PA301", f"unknown norm {norm!r}. Known: np.inf, 'inf', 1, 2.")
    if attack.dtype not in tuple(DTYPES):
        raise unknown_name(str(attack.dtype), DTYPES, "dtype")
    choice = attack.row_choice
    if not isinstance(choice, str) and (np.ndim(choice) != 1 or np.asarray(choice).dtype.kind not in "iub"):
        raise UsageError(
            "PA363", f"row_choice is {choice!r}; 'adjoint', 'random' or a 1-D list of positions is needed. Pass one."
        )
    _check_target(attack)


def refused(got: str, why: str, advice: str) -> UsageError:
    """The error for a parameter of the attack for ART, PA349."""
    return UsageError("PA349", f"{got}; {why}. {advice}")


def refuse_flipped(problem: Problem, objective: Objective) -> None:
    """Refuse to flip what the clean model predicts already.

    Args:
        problem: clean, at the weights that are attacked.
        objective: of the attack.

    Raises:
        UsageError: PA354, a target row has the wanted class already.
    """
    if isinstance(objective, FlipPrediction):
        rows, wanted = objective.x[None], torch.tensor([objective.label])
    elif isinstance(objective, FlipPredictions):
        rows, wanted = objective.x, torch.as_tensor(objective.labels)
    else:
        return
    with torch.no_grad():
        predicted = problem.outputs(x=rows).argmax(1).cpu()
    already = (predicted == wanted.cpu()).nonzero().flatten().tolist()
    if already:
        raise UsageError(
            "PA354",
            f"the clean model already predicts class {int(wanted[already[0]])} for row {already[0]} of x_target. "
            "Pass another row or y_target.",
        )


def _check_target(attack: Any) -> None:
    """Exactly one target, and it fits the classifier."""
    given = [name for name in ("x_target", "y_target", "target_weights") if getattr(attack, name) is not None]
    if given == ["x_target", "y_target"]:
        target_rows(attack.x_target, attack.y_target, tuple(attack.estimator.input_shape), attack.estimator.nb_classes)
        return
    if given != ["target_weights"]:
        raise refused(
            f"the target is given by {', '.join(given) or 'nothing'}",
            "either x_target with y_target or target_weights says where to push",
            "Pass x_target=row, y_target=wanted_class.",
        )
    target = np.asarray(attack.target_weights, dtype=np.float64)
    size = sum(value.numel() for value in attack.estimator.model.parameters())
    if target.shape != (size,):
        raise InputRefused(
            "PA125", f"target_weights are {target.shape}, the model has ({size},). Flatten in named_parameters() order."
        )
    if not np.isfinite(target).all():
        raise InputRefused("PA124", "target_weights hold NaN or infinite entries. Pass finite weights.")
