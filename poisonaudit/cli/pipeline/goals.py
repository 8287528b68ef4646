"""What a recipe names, found in one victim: the budget, columns, rows, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from poisonaudit.attack import Budget
from poisonaudit.cli.pipeline.victim import Victim
from poisonaudit.config.schema import BudgetConfig
from poisonaudit.errors import UsageError, counted
from poisonaudit.registry import unknown_name


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
        row_class=None if config.row_class is None else class_number(config.row_class, victim),
        entries=config.entries,
        immutable=columns_of(config.immutable, victim) or None,
        spacing={column: unit_step(column, victim) for column in columns_of(config.integer, victim)} or None,
        scale=_scale(config.scale, victim),
    )


def budget_remarks(config: BudgetConfig, victim: Victim) -> tuple[str, ...]:
    """What to know about the budget before anything is trained, columns by their names.

    Args:
        config: the budget.
        victim: gives the columns.

    Returns:
        Sentences.

    Raises:
        UsageError: PA385, no entry of a row can move.
    """
    names = victim.data.feature_names if len(victim.data.input_shape) == 1 else ()
    return make_budget(config, victim).remarks(victim.problem.x, names or ())


def check_choice(config: BudgetConfig, objective: str, victim: Victim) -> None:
    """Rows of one class are asked for only where a class is named or wanted, and there are enough of them.

    Args:
        config: the budget.
        objective: kind of the objective.
        victim: gives the rows.

    Raises:
        UsageError: PA342, they are not.
    """
    if config.choice != "class":
        return
    refuse_regression(victim, "no class of rows can be chosen")
    if config.row_class is None:
        if objective != "flip":
            raise UsageError(
                "PA342", f"rows are to come from one class, and the objective {objective} wants none. Add row_class."
            )
        return
    label, count = class_number(config.row_class, victim), make_budget(config, victim).count(victim.problem.rows)
    there = int((victim.data.y_train == label).sum())
    if there < count:
        raise UsageError(
            "PA342", f"class {label} has {counted(there, 'training row')}, {count} are to be perturbed. Ask for fewer."
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


def test_positions_of(ids: Sequence[int], victim: Victim) -> list[int]:
    """Positions of test rows given by id.

    Args:
        ids: row ids in the source's own order.
        victim: gives the rows.

    Returns:
        Positions in the test rows.

    Raises:
        UsageError: PA354, an id is not among the test rows.
    """
    place = {identity: position for position, identity in enumerate(victim.data.test_ids.tolist())}
    for identity in ids:
        if identity not in place:
            some = ", ".join(map(str, list(place)[:5]))
            raise UsageError("PA354", f"row {identity} is not a test row of this split. Test rows are {some}, ...")
    return [place[identity] for identity in ids]


def class_number(label: int | str, victim: Victim) -> int:
    """A class by number or by name.

    Args:
        label: number or name.
        victim: gives the classes.

    Returns:
        The class number.

    Raises:
        UsageError: PA357, there is no such class; PA358, the data have no classes.
    """
    refuse_regression(victim, f"there is no class {label!r}")
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


def refuse_regression(victim: Victim, what: str) -> None:
    """Refuse what only classes have.

    Args:
        victim: gives the data.
        what: what cannot be done, as a clause.

    Raises:
        UsageError: PA358, the data have no classes.
    """
    if victim.data.classes is None:
        raise UsageError("PA358", f"{victim.data.spec} has no classes, so {what}. Use target weights from a file.")
