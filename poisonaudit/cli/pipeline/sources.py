"""Target weights of a recipe for one victim: from flipped labels, a file, a direction, or training on other rows."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from poisonaudit.attack.objectives import weights_along, weights_from_fine_tuning, weights_from_label_flips
from poisonaudit.cli.console import Reporter
from poisonaudit.cli.pipeline.goals import class_number, flat, positions_of, refuse_regression
from poisonaudit.cli.pipeline.victim import Victim, on_device, targets
from poisonaudit.config.objectives import FineTune, LabelFlips, WeightSource
from poisonaudit.data import load_data
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.models import load_weights, wants_images

# A target need not be a tight minimum, so it is not trained more tightly than this.
_TIGHTEST = 1e-8


def check_source(source: WeightSource, victim: Victim, seed: int) -> None:
    """Refuse, before any training, what this victim cannot have: files, rows, classes or data that do not fit."""
    if source.label_flips is not None:
        flipped_rows(source.label_flips, victim, seed)
    elif source.fine_tune is not None:
        other_rows(source.fine_tune, victim)
    elif source.file is not None:
        read_weights(source.file, victim)


def source_weights(source: WeightSource, victim: Victim, seed: int, tolerance: float, report: Reporter) -> Tensor:
    """The target weights.

    Args:
        source: says which.
        victim: at its clean solution.
        seed: of what is drawn: the rows whose labels are flipped, a random direction.
        tolerance: relative gradient of trainings.
        report: told what is going on.

    Returns:
        Flat weights (p,).
    """
    problem, least = victim.problem, max(tolerance, _TIGHTEST)
    if source.label_flips is not None:
        rows, label = flipped_rows(source.label_flips, victim, seed)
        report.stage("training on flipped labels for the target weights")
        return weights_from_label_flips(problem, (rows, label), seed, tolerance=least, progress=report)
    if source.fine_tune is not None:
        x, y = other_rows(source.fine_tune, victim)
        report.stage(f"training on {len(x)} other rows for the target weights")
        return weights_from_fine_tuning(problem, x, y, seed, tolerance=least, progress=report)
    if source.direction is not None:
        report.stage(f"target weights along the {source.direction.along} direction")
        return weights_along(problem, source.direction.along, source.direction.length, seed)
    return read_weights(str(source.file), victim)


def read_weights(path: str, victim: Victim) -> Tensor:
    """Weights from a file, flat (p,); the model refuses those of another architecture."""
    module = victim.problem.module()
    try:
        load_weights(module, Path(path))
    except InputRefused as refused:
        # Other advice than for the victim's own weights: neither file nor model is an option here.
        fact = re.split(r"(?<=\.) (?=Pass --|Check the path in --)", refused.message)[0]
        advice = f"Name a file with weights of {victim.model}."
        raise InputRefused(refused.code, f"objective.source.file: {fact} {advice}") from None
    return flat(victim, dict(module.named_parameters()))


def flipped_rows(flips: LabelFlips, victim: Victim, seed: int) -> tuple[Tensor, int]:
    """Positions of the rows whose labels are flipped, and their new class.

    Args:
        flips: which labels to flip.
        victim: gives the rows.
        seed: draws them where only their number is given.

    Returns:
        `(positions, class)`.

    Raises:
        UsageError: PA355, there are fewer such rows than asked for.
    """
    refuse_regression(victim, "labels cannot be flipped")
    source, wanted = class_number(flips.source, victim), class_number(flips.target, victim)
    if flips.rows is not None:
        rows = torch.tensor(positions_of(flips.rows, victim))
        wrong = [int(victim.data.train_ids[row]) for row in rows if int(victim.data.y_train[row]) != source]
        if wrong:
            raise UsageError("PA355", f"rows {wrong[:5]} are not of class {source}. Name rows of that class.")
        return rows, wanted
    candidates = (victim.data.y_train == source).nonzero().flatten().cpu()
    count = flips.count or 0
    if count > len(candidates):
        raise UsageError(
            "PA355", f"{count} rows of class {source} are to be flipped, there are {len(candidates)}. Lower count."
        )
    generator = torch.Generator().manual_seed(seed)
    return candidates[torch.randperm(len(candidates), generator=generator)[:count]].sort().values, wanted


def other_rows(config: FineTune, victim: Victim) -> tuple[Tensor, Tensor]:
    """The rows that training goes on with, and their labels.

    Args:
        config: names them.
        victim: gives its own rows, and what others have to fit.

    Returns:
        `(x, y)` in the victim's type, on its device.

    Raises:
        UsageError: PA338, they do not fit the victim, or are all of its rows, or none.
    """
    problem, data = victim.problem, victim.data
    if config.data is not None:
        other = load_data(config.data, images=wants_images(victim.model))
        other = on_device(other.to(problem.dtype), problem.device)
        same = other.input_shape == data.input_shape and other.classes == data.classes and other.outputs == data.outputs
        if not same:
            raise _refused(
                f"{config.data} has rows {other.input_shape} and {other.outputs} outputs, {data.spec} has "
                f"{data.input_shape} and {data.outputs}, or classes of other names",
                "Name data with the same inputs and classes.",
            )
        return other.x_train, targets(other, other.y_train)
    if config.rows is not None:
        kept = torch.tensor(positions_of(config.rows, victim), device=problem.device)
    else:
        dropped = class_number(config.without_class or 0, victim)
        kept = (data.y_train != dropped).nonzero().flatten()
    if len(kept) in (0, problem.rows):
        which = "all" if len(kept) else "none"
        raise _refused(f"{which} of the training rows are named", "Name some of them, or a class that is among them.")
    return problem.x[kept], problem.y[kept]


def _refused(fact: str, advice: str) -> UsageError:
    return UsageError("PA338", f"objective.source.fine_tune: {fact}. {advice}")
