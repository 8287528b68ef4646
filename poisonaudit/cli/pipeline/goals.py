"""From a recipe's words to an objective and a budget for one trained victim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poisonaudit.attack import Budget, FlipPrediction, TargetWeights
from poisonaudit.attack.objectives import weights_from_label_flips
from poisonaudit.cli.console import Reporter
from poisonaudit.cli.pipeline.victim import Victim
from poisonaudit.config.schema import BudgetConfig, FlipConfig, LabelFlips, TargetWeightsConfig
from poisonaudit.errors import UsageError
from poisonaudit.models import load_weights
from poisonaudit.registry import unknown_name

Objective = TargetWeights | FlipPrediction


def make_budget(config: BudgetConfig, victim: Victim) -> Budget:
    """The budget, with row ids turned into positions, columns into numbers and `box: data` into the data's bounds."""
    box: tuple[Any, Any] | None = None
    if config.box == "data":
        box = victim.data.box
    elif config.box != "none":
        box = (float(config.box[0]), float(config.box[1]))
    choice = positions_of(config.choice, victim) if isinstance(config.choice, tuple) else config.choice
    return Budget(
        rows=config.rows,
        share=config.share,
        radius=config.radius,
        norm=config.norm,
        box=box,
        choice=choice,
        entries=config.entries,
        immutable=columns_of(config.immutable, victim) or None,
        spacing={column: unit_step(column, victim) for column in columns_of(config.integer, victim)} or None,
        scale=_scale(config.scale, victim),
    )


def columns_of(names: Sequence[int | str], victim: Victim) -> list[int]:
    """Columns of a table, or channels of pictures, by number or by name.

    Args:
        names: numbers or, for tables, names of columns.
        victim: gives them.

    Returns:
        Numbers along the first axis of a row.

    Raises:
        UsageError: PA379, there is no such column or channel.
    """
    count = victim.data.input_shape[0]
    known = victim.data.feature_names if len(victim.data.input_shape) == 1 else ()
    found = []
    for name in names:
        if isinstance(name, str) and name not in known:
            raise unknown_name(name, known, "column", code="PA379")
        number = known.index(name) if isinstance(name, str) else name
        if not 0 <= number < count:
            raise UsageError("PA379", f"column {number} is named, a row has 0..{count - 1}. Name one of those.")
        found.append(number)
    return found


def unit_step(column: int, victim: Victim) -> float:
    """What a step of 1 in the source's own unit is in the problem's unit: 1 over what the loader divided by."""
    done = victim.data.preprocessing
    deviation = done.get("deviation")
    if deviation is not None:
        return 1.0 / float(deviation[column])
    return 1.0 / float(done.get("divide_by", 1.0))


def _scale(scale: Mapping[str, float], victim: Victim) -> list[float] | None:
    if not scale:
        return None
    units = [1.0] * victim.data.input_shape[0]
    for name, unit in scale.items():
        (column,) = columns_of([int(name) if name.isdigit() else name], victim)
        units[column] = unit
    return units


def check_flip(config: FlipConfig, victim: Victim) -> None:
    """The test row and the class that a recipe names exist."""
    _refuse_regression(victim, "a prediction")
    if isinstance(config.test_row, int):
        _test_position(config.test_row, victim)
    if config.label != "runner_up":
        class_number(config.label, victim)


def flip_objective(config: FlipConfig, victim: Victim) -> tuple[FlipPrediction, dict[str, Any]]:
    """The test row to flip and the class wanted for it.

    Args:
        config: row and class, by id and name or by rule.
        victim: at its clean solution.

    Returns:
        The objective, and what it settled on: row id, true class, wanted class.

    Raises:
        UsageError: PA354, no such test row or nothing to flip.
    """
    x, y = victim.test
    _refuse_regression(victim, "a prediction")
    with torch.no_grad():
        logits = victim.problem.outputs(x=x)
    if isinstance(config.test_row, int):
        position = _test_position(config.test_row, victim)
    else:
        position = _by_margin(logits, y, config.test_row)
    row, clean = logits[position], int(logits[position].argmax())
    if config.label == "runner_up":
        others = row.clone()
        others[clean] = -torch.inf
        wanted = int(others.argmax())
    else:
        wanted = class_number(config.label, victim)
    if wanted == clean:
        raise UsageError(
            "PA354", f"the clean model already predicts class {wanted} for that test row. Name another row or label."
        )
    facts = {
        "test_row": int(victim.data.test_ids[position]),
        "true_label": int(y[position]),
        "clean_prediction": clean,
        "wanted": wanted,
    }
    return FlipPrediction(x[position], wanted), facts


def target_weights(
    config: TargetWeightsConfig, victim: Victim, seed: int, tolerance: float, report: Reporter
) -> Tensor:
    """The weights to be reached: read from a file, or those that training with flipped labels reaches.

    Args:
        config: the source.
        victim: at its clean solution.
        seed: draws the rows whose labels are flipped.
        tolerance: relative gradient of that training.
        report: told what is going on.

    Returns:
        Flat weights (p,).
    """
    flips = config.source.label_flips
    if flips is None:
        module = victim.problem.module()
        load_weights(module, Path(str(config.source.file)))
        return flat(victim, dict(module.named_parameters()))
    rows, label = flipped_rows(flips, victim, seed)
    report.stage("training on flipped labels for the target weights")
    return weights_from_label_flips(
        victim.problem, (rows, label), seed, tolerance=max(tolerance, 1e-8), progress=report
    )


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
    _refuse_regression(victim, "labels")
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


def positions_of(ids: Sequence[int], victim: Victim) -> list[int]:
    """Positions of training rows given by id.

    Args:
        ids: row ids in the source's own order.
        victim: gives the rows.

    Returns:
        Positions in the problem's rows.

    Raises:
        UsageError: PA356, an id is not among the training rows.
    """
    place = {identity: position for position, identity in enumerate(victim.data.train_ids.tolist())}
    absent = [identity for identity in ids if identity not in place]
    if absent:
        some = ", ".join(map(str, list(place)[:5]))
        raise UsageError(
            "PA356", f"rows {absent[:5]} are not training rows of this split. Training rows are {some}, ..."
        )
    return [place[identity] for identity in ids]


def class_number(label: int | str, victim: Victim) -> int:
    """A class by number or by name.

    Args:
        label: number or name.
        victim: gives the classes.

    Returns:
        The class number.

    Raises:
        UsageError: PA357, there is no such class.
    """
    names = list(victim.data.classes or ())
    if isinstance(label, str):
        if label not in names:
            raise unknown_name(label, names, "class", code="PA357")
        return names.index(label)
    if not 0 <= label < len(names):
        raise UsageError("PA357", f"class {label} is not there: classes are 0..{len(names) - 1}. Name one of them.")
    return label


def flat(victim: Victim, state: dict[str, Tensor]) -> Tensor:
    """Named tensors as flat weights (p,) in the problem's order, dtype and device."""
    parts = [state[name].detach().reshape(-1) for name in victim.problem.names]
    return torch.cat(parts).to(victim.problem.weights)


def _test_position(identity: int, victim: Victim) -> int:
    ids = victim.data.test_ids.tolist()
    if identity not in ids:
        some = ", ".join(map(str, ids[:5]))
        raise UsageError("PA354", f"row {identity} is not a test row of this split. Test rows are {some}, ...")
    return int(ids.index(identity))


def _by_margin(logits: Tensor, y: Tensor, rule: str) -> int:
    """Position of the rightly classified test row with the lowest, or the (lower) median, margin."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    margin = own - others
    right = (margin > 0).nonzero().flatten()
    if not len(right):
        raise UsageError("PA354", "no test row is classified rightly, so none can be flipped. Train a better model.")
    order = right[margin[right].argsort(stable=True)]
    return int(order[0] if rule == "lowest_margin" else order[(len(order) - 1) // 2])


def _refuse_regression(victim: Victim, what: str) -> None:
    if victim.data.classes is None:
        raise UsageError(
            "PA358", f"{victim.data.spec} has no classes, so {what} cannot be flipped. Use target weights from a file."
        )
