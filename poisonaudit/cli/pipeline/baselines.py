"""Other attacks beside the run's own: the same rows, budget and retraining, and the same controls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from poisonaudit.attack import Budget, Poison
from poisonaudit.attack.baselines import BASELINES, applicable, options_of, refuse_bad_options, run_baseline
from poisonaudit.attack.objectives import Objective
from poisonaudit.cli.pipeline.crafting import baseline_done, store_poison, stored_poison
from poisonaudit.cli.pipeline.defences import detected
from poisonaudit.cli.pipeline.exports import storable
from poisonaudit.cli.pipeline.stages import Procedures, Stages, staged_retraining
from poisonaudit.config.schema import AttackConfig
from poisonaudit.errors import InputRefused, NumericalFailure, UsageError
from poisonaudit.registry import lookup, unknown_name
from poisonaudit.results import finite

ALL = "all"


def check_baselines(config: AttackConfig) -> None:
    """Every baseline and every option of one exists, and no option has a value that it cannot have.

    Args:
        config: the recipe.

    Raises:
        UsageError: PA301, there is no such baseline or option; PA304 and PA367, an option has a value that no run can
            have.
    """
    for name, options in config.baselines.items():
        if name == ALL:
            known: dict[str, Any] = {}
        else:
            lookup(BASELINES, name, "baseline")
            known = options_of(name)
        for option in options:
            if option not in known:
                raise unknown_name(option, known, f"option of {name}")
        refuse_bad_options(name, **options)


def baseline_names(config: AttackConfig) -> list[str]:
    """The baselines that a recipe asks for, in the order of the table where it asks for all."""
    return list(BASELINES) if ALL in config.baselines else list(config.baselines)


def beside(
    config: AttackConfig, stages: Stages, objective: Objective, poison: Poison, procedures: Procedures
) -> dict[str, Any]:
    """Run, retrain and judge the baselines of a recipe.

    Args:
        config: the recipe.
        stages: where poisons and trainings are kept.
        objective: of the run.
        poison: of the run; its rows and budget are what each baseline gets.
        procedures: of retraining; the controls are shared.

    Returns:
        Name -> {"applicable", "reason", "retrained", "cost": {"seconds", "gradients", "products"}, "notes",
        "predicted", "detectors"}, plain data.
    """
    found: dict[str, Any] = {}
    for name in baseline_names(config):
        reason = applicable(name, stages.victim.problem, objective, poison.budget)
        made = None if reason else _crafted(name, config, stages, objective, poison)
        if made is None or isinstance(made, str):
            found[name] = {"applicable": False, "reason": reason or made}
            stages.report.note(f"baseline {name}: not applicable: {reason or made}")
            continue
        victim = stages.victim
        retrained = staged_retraining(
            stages, made.perturbation(victim.problem), objective, made.predicted, procedures, name
        )
        found[name] = {
            "applicable": True,
            "reason": "",
            "source": BASELINES[name].source,
            "predicted": made.predicted,
            "retrained": retrained.to_json(),
            "cost": {"seconds": made.seconds, "gradients": made.gradients, "products": made.products},
            "notes": list(made.notes),
            "detectors": detected(config, stages, made, retrained, name),
        }
    return finite(found)


def _crafted(name: str, config: AttackConfig, stages: Stages, objective: Objective, poison: Poison) -> Poison | str:
    """The poison of a baseline, kept or new; the reason where there is none."""
    folder, victim = stages.folder, stages.victim
    budget: Budget = poison.budget
    if baseline_done(folder, name):
        stages.report.note(f"baseline {name}: kept from before")
        return stored_poison(folder, victim, budget, objective, name)
    stages.report.stage(f"baseline {name}")
    try:
        made = run_baseline(
            name,
            victim.problem.without_cache(),
            objective,
            budget,
            poison.rows,
            config.seed,
            progress=stages.report,
            **config.baselines.get(name, {}),
        )
    except InputRefused as refused:
        # Some of what a method needs is told only by the rows chosen.
        if refused.code != "PA281":
            raise
        return refused.message.partition("not applicable: ")[2] or refused.message
    except (NumericalFailure, UsageError) as failed:
        # A rival that fails is no failure of the attack.
        return f"it failed: {failed.message}"
    for note in made.notes:
        stages.report.note(f"baseline {name}: {note}")
    made = storable(victim, made)
    store_poison(folder, victim, replace(made, weights=victim.problem.weights), config.name, name)
    return made
