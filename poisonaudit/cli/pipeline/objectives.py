"""From a recipe's objective to the library's: checked before any training, made once the victim is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poisonaudit.attack.objectives import (
    Ball,
    FlipPrediction,
    FlipPredictions,
    GroupAccuracy,
    HalfSpace,
    MatchPredictions,
    Membership,
    Objective,
    TargetRegion,
    TargetWeights,
    ValidationLoss,
)
from poisonaudit.attack.objectives.base import margins
from poisonaudit.attack.objectives.target_weights import weights_of_layers
from poisonaudit.cli.console import Reporter
from poisonaudit.cli.pipeline.goals import class_number, refuse_regression, test_positions_of
from poisonaudit.cli.pipeline.sources import check_source, source_weights
from poisonaudit.cli.pipeline.stages import Stages
from poisonaudit.cli.pipeline.victim import Victim
from poisonaudit.config.objectives import (
    FlipConfig,
    FlipsConfig,
    GroupAccuracyConfig,
    MatchPredictionsConfig,
    ObjectiveConfig,
    TargetRegionConfig,
    TargetWeightsConfig,
    ValidationLossConfig,
    WithSource,
)
from poisonaudit.config.schema import AttackConfig
from poisonaudit.errors import UsageError

Facts = dict[str, Any]


def states_success(config: ObjectiveConfig) -> bool:
    """Whether the objective says when it is reached."""
    return getattr(config, "success_at", 1.0) is not None


def check_objective(config: ObjectiveConfig, victim: Victim, seed: int) -> None:
    """Rows, classes, layers and files of the objective exist in this victim.

    Args:
        config: of the recipe.
        victim: trained or not.
        seed: of the recipe.
    """
    if isinstance(config, WithSource):
        check_source(config.source, victim, seed)
        if isinstance(config, TargetWeightsConfig) and config.layers is not None:
            weights_of_layers(victim.problem, config.layers)
        if isinstance(config, MatchPredictionsConfig):
            if config.rows == "test":
                _refuse_few(victim, 1)
            if config.distance == "divergence" or config.success_at is not None:
                refuse_regression(victim, "predictions cannot agree or diverge")
    elif isinstance(config, ValidationLossConfig):
        _refuse_few(victim, config.count or 1)
    elif isinstance(config, GroupAccuracyConfig):
        refuse_regression(victim, "it has no accuracy")
        _group(config, victim)
    else:
        _check_flips(config, victim)


def make_objective(
    config: AttackConfig, stages: Stages, report: Reporter, name: str = "target"
) -> tuple[Objective, Facts]:
    """The objective of the recipe for this victim, and what it settled on.

    Args:
        config: the recipe.
        stages: with the victim at its clean solution; target weights are kept there.
        report: told what is going on.
        name: of the stage that keeps target weights.

    Returns:
        The objective, and facts to store with it: which test rows and classes the attacker chose.
    """
    goal, victim = config.objective, stages.victim
    if isinstance(goal, WithSource):
        target = stages.weights(
            name, lambda: source_weights(goal.source, victim, config.seed, config.training.tolerance, report)
        )
        return _with_target(goal, target, victim)
    if isinstance(goal, FlipConfig):
        return _flip(goal, victim)
    if isinstance(goal, FlipsConfig):
        return _flips(goal, victim, config.seed)
    x, y = victim.test
    if isinstance(goal, GroupAccuracyConfig):
        rows = _group(goal, victim)
        named = {} if goal.group_class is None else {"class_number": class_number(goal.group_class, victim)}
        return GroupAccuracy(x[rows], y[rows], goal.success_at, goal.temperature), {**named, **_told(rows, victim)}
    rows = torch.arange(len(x) if goal.count is None else goal.count, device=x.device)
    return ValidationLoss(x[rows], y[rows], goal.success_at), _told(rows, victim)


def _with_target(config: WithSource, target: Tensor, victim: Victim) -> tuple[Objective, Facts]:
    clean = victim.problem.weights
    facts: Facts = {"target_distance": float((target - clean).norm())}
    if isinstance(config, TargetWeightsConfig):
        return TargetWeights(target, config.success_at, config.layers), facts
    if isinstance(config, TargetRegionConfig):
        return TargetRegion(_region(config, target, clean)), facts
    if isinstance(config, MatchPredictionsConfig):
        x = None if config.rows == "train" else victim.test[0]
        facts["rows_matched"] = victim.problem.rows if x is None else len(x)
        return MatchPredictions(target, x, config.distance, config.success_at), facts
    return Membership(target, config.success_at), facts


def _region(config: TargetRegionConfig, target: Tensor, clean: Tensor) -> HalfSpace | Ball:
    """See `TargetRegionConfig` for both shapes."""
    offset = target - clean
    if config.shape == "ball":
        return Ball(target, config.share * float(offset.norm()))
    return HalfSpace(offset, float(offset.dot(clean)) + config.share * float(offset.dot(offset)))


def _flip(config: FlipConfig, victim: Victim) -> tuple[Objective, Facts]:
    """One test row and the class wanted for it."""
    x, y = victim.test
    logits = _logits(victim)
    if isinstance(config.test_row, int):
        (position,) = test_positions_of([config.test_row], victim)
    else:
        order = _by_margin(logits, y, torch.ones_like(y, dtype=torch.bool))
        position = int(order[0] if config.test_row == "lowest_margin" else order[(len(order) - 1) // 2])
    rows = torch.tensor([position], device=x.device)
    wanted = _wanted(config.label, logits[rows], victim)
    _refuse_flipped(logits[rows], wanted, rows, victim)
    facts = {
        "test_row": int(victim.data.test_ids[position]),
        "true_label": int(y[position]),
        "clean_prediction": int(logits[position].argmax()),
        "wanted": int(wanted),
    }
    return FlipPrediction(x[position], int(wanted), config.surrogate), facts


def _flips(config: FlipsConfig, victim: Victim, seed: int) -> tuple[Objective, Facts]:
    """Several test rows and the classes wanted for them."""
    x, y = victim.test
    logits = _logits(victim)
    if config.test_rows is not None:
        rows = torch.tensor(test_positions_of(config.test_rows, victim), device=x.device)
    else:
        fits = torch.ones_like(y, dtype=torch.bool)
        if isinstance(config.label, int) or config.label != "runner_up":
            assert not isinstance(config.label, tuple)
            fits = y != class_number(config.label, victim)
        rows = _chosen(_by_margin(logits, y, fits), config, seed)
    wanted = _wanted(config.label, logits[rows], victim)
    _refuse_flipped(logits[rows], wanted, rows, victim)
    facts = {
        **_told(rows, victim),
        "true_labels": y[rows].tolist(),
        "clean_predictions": logits[rows].argmax(1).tolist(),
        "wanted": wanted.tolist(),
    }
    return FlipPredictions(x[rows], wanted, config.surrogate, config.success_at), facts


def _chosen(order: Tensor, config: FlipsConfig, seed: int) -> Tensor:
    """The rows that `count` and `choose` name, from positions by rising margin."""
    count = config.count or 0
    if count > len(order):
        raise UsageError(
            "PA354", f"{count} test rows are to be flipped, {len(order)} can be. Lower count, or train a better model."
        )
    first = 0
    if config.choose == "random":
        drawn = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))[:count]
        return order[drawn.to(order.device)].sort().values
    if config.choose == "median_margin":
        first = (len(order) - count) // 2
    return order[first : first + count]


def _check_flips(config: FlipConfig | FlipsConfig, victim: Victim) -> None:
    refuse_regression(victim, "a prediction cannot be flipped")
    ids: Sequence[int]
    labels: Sequence[int | str]
    if isinstance(config, FlipConfig):
        _refuse_few(victim, 1)
        ids, labels = ((config.test_row,) if isinstance(config.test_row, int) else ()), (config.label,)
    else:
        _refuse_few(victim, config.count or 1)
        ids, labels = config.test_rows or (), config.label if isinstance(config.label, tuple) else (config.label,)
    test_positions_of(ids, victim)
    for label in labels:
        if label != "runner_up":
            class_number(label, victim)


def _group(config: GroupAccuracyConfig, victim: Victim) -> Tensor:
    """Positions of the test rows of the group."""
    if config.test_rows is not None:
        found = torch.tensor(test_positions_of(config.test_rows, victim), device=victim.problem.device)
    else:
        label = class_number(config.group_class if config.group_class is not None else "", victim)
        found = (victim.test[1] == label).nonzero().flatten()
    if not len(found):
        raise UsageError("PA354", f"there is no test row of class {config.group_class}. Name another class.")
    return found


def _logits(victim: Victim) -> Tensor:
    with torch.no_grad():
        return victim.problem.outputs(x=victim.test[0])


def _by_margin(logits: Tensor, y: Tensor, fits: Tensor) -> Tensor:
    """Positions of the rightly classified test rows that fit, by rising margin."""
    margin = margins(logits, y)
    right = ((margin > 0) & fits).nonzero().flatten()
    if not len(right):
        raise UsageError("PA354", "no test row is classified rightly, so none can be flipped. Train a better model.")
    return right[margin[right].argsort(stable=True)]


def _wanted(label: int | str | tuple[int | str, ...], logits: Tensor, victim: Victim) -> Tensor:
    """The class wanted for each row (m,)."""
    if label == "runner_up":
        return logits.scatter(1, logits.argmax(1)[:, None], -torch.inf).argmax(1)
    labels = label if isinstance(label, tuple) else (label,) * len(logits)
    return torch.tensor([class_number(each, victim) for each in labels], device=logits.device)


def _refuse_flipped(logits: Tensor, wanted: Tensor, rows: Tensor, victim: Victim) -> None:
    already = (logits.argmax(1) == wanted).nonzero().flatten()
    if len(already):
        first = int(already[0])
        raise UsageError(
            "PA354",
            f"the clean model already predicts class {int(wanted[first])} for test row "
            f"{int(victim.data.test_ids[int(rows[first])])}. Name another row or label.",
        )


def _refuse_few(victim: Victim, count: int) -> None:
    there = len(victim.data.x_test)
    if there < count:
        raise UsageError("PA354", f"{count} test rows are asked for, {victim.data.spec} has {there}. Ask for fewer.")


def _told(rows: Tensor, victim: Victim) -> Facts:
    """Ids of the test rows that the attacker chose."""
    return {"test_rows": victim.data.test_ids[rows.cpu()].tolist()}
