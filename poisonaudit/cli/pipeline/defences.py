"""What a defender would see of a poison: detectors, what filtering leaves, and which rows to inspect first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from poisonaudit.attack import Poison
from poisonaudit.cli.pipeline.stages import Stages
from poisonaudit.config.schema import AttackConfig, DetectorsConfig
from poisonaudit.errors import PoisonAuditError
from poisonaudit.problem import Problem
from poisonaudit.registry import lookup
from poisonaudit.verify import Retrained
from poisonaudit.verify.detectors import DETECTORS, default_share, detect, run_detectors
from poisonaudit.verify.filtering import retrain_filtered
from poisonaudit.verify.inspection import COMBINED, RANKINGS, evaluate_ranking, inspection_order

# Rankings that solve with H for every row, and how far that takes seconds: weights, and solves in floating operations.
_COSTLY = ("row_modulus", "self_influence")
_MOST_WEIGHTS = 5_000
_MOST_OPERATIONS = 1e12


def check_detectors(config: AttackConfig) -> None:
    """Every detector named exists.

    Args:
        config: the recipe.

    Raises:
        UsageError: PA301, there is no such detector.
    """
    for name in () if config.detectors is None else config.detectors.names or ():
        lookup(DETECTORS, name, "detector")


def detected(
    config: AttackConfig, stages: Stages, poison: Poison, retrained: Retrained, name: str = ""
) -> dict[str, Any]:
    """What detectors find at the weights that warm retraining reached, and what is left after filtering.

    Args:
        config: the recipe.
        stages: where results are kept.
        poison: what is looked for.
        retrained: on it.
        name: of the baseline whose poison it is; "" for the run's own attack.

    Returns:
        Detector -> figures, with `filtered` where that was asked for; empty where none was; plain data.
    """
    wanted = config.detectors
    if wanted is None:
        return {}
    prefix = f"baseline-{name}-" if name else ""
    of = f" of {name}" if name else ""
    clean = stages.victim.problem
    poisoned, warm = poison.poisoned(clean), retrained.warm.weights
    unpoisoned = (clean, retrained.control.warm.weights)

    def look() -> dict[str, Any]:
        stages.report.stage(f"detectors: looking for the poison{of}")
        told: dict[str, Any] = {}
        for each in wanted.names or DETECTORS:
            try:
                told |= run_detectors(
                    poisoned, warm, poison.rows, [each], wanted.share, config.seed, unpoisoned=unpoisoned
                )
            except PoisonAuditError as trouble:
                # They run unasked: one that cannot be run must not cost the attack.
                told[each] = {"applicable": False, "reason": f"not applicable: {trouble.message}"}
        return told

    found = stages.result(f"{prefix}detectors", look)
    if wanted.filter:
        for each in found:
            if found[each]["applicable"]:
                left = _filtered(each, config, stages, poison, retrained, prefix)
                found[each] = {**found[each], "filtered": left}
    return found


def inspected(config: AttackConfig, stages: Stages, poison: Poison, retrained: Retrained) -> dict[str, Any]:
    """How soon each order of inspection meets the poisoned rows.

    Args:
        config: the recipe.
        stages: where results are kept.
        poison: what is looked for.
        retrained: on it.

    Returns:
        Ranking -> the figures of `evaluate_ranking`; empty where inspection is turned off; plain data.
    """
    if not config.inspection:
        return {}
    problem = poison.poisoned(stages.victim.problem).at(retrained.warm.weights)
    reason = _too_costly(problem)
    names = [name for name in RANKINGS if not (reason and name in _COSTLY)]

    def rank() -> dict[str, Any]:
        stages.report.stage("inspection: ranking the rows")
        if reason:
            stages.report.note(f"inspection: {' and '.join(_COSTLY)} are left out: {reason}")
        orders = inspection_order(problem, names, seed=config.seed)
        found = {name: evaluate_ranking(order, poison.rows) for name, order in orders.items() if name != COMBINED}
        left_out = {"applicable": False, "reason": f"not applicable: left out, {reason}", "note": ""}
        found |= {name: left_out for name in _COSTLY if reason}
        if COMBINED in orders:
            found[COMBINED] = evaluate_ranking(orders[COMBINED], poison.rows)
        return found

    return stages.result("inspection", rank)


def _filtered(
    detector: str, config: AttackConfig, stages: Stages, poison: Poison, retrained: Retrained, prefix: str
) -> dict[str, Any]:
    """What training without the flagged rows gives, by `fit`, from the seeds of the tight retrainings."""
    wanted: DetectorsConfig = config.detectors or DetectorsConfig()
    clean = stages.victim.problem
    share = wanted.share or default_share(len(poison.rows), clean.rows)
    tight = replace(retrained, trainer=(), control=replace(retrained.control, trainer=()))

    def train() -> dict[str, Any]:
        stages.report.stage(f"training without what {detector} flags")
        found = detect(
            poison.poisoned(clean), retrained.warm.weights, [detector], expected_share=share, seed=config.seed
        )
        return retrain_filtered(
            clean,
            poison,
            found[detector],
            [run.seed for run in tight.tight if run.seed is not None],
            config.retrain.tolerance,
            seed=config.seed,
            test=stages.victim.test if len(stages.victim.data.x_test) else None,
            retrained=tight,
            progress=stages.report,
        )

    return stages.result(f"{prefix}filtered-{detector}", train)


def _too_costly(problem: Problem) -> str:
    """Why rankings that solve with H for every row would take minutes, "" where they take seconds."""
    size, entries = problem.size, problem.x.numel()
    if size > _MOST_WEIGHTS:
        return f"{size:,} weights are more than {_MOST_WEIGHTS:,}, and they solve with H for every row"
    if float(entries) * size * size > _MOST_OPERATIONS:
        return f"{problem.rows:,} rows and {size:,} weights would take minutes"
    return ""
