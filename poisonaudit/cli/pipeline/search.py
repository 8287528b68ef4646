"""The search for the smallest verified budget in a run, and the same for variants of the victim; trial by trial."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from poisonaudit.attack import Poison
from poisonaudit.attack.objectives import Objective
from poisonaudit.cli.pipeline.crafting import crafting_options
from poisonaudit.cli.pipeline.goals import make_budget
from poisonaudit.cli.pipeline.objectives import check_objective, make_objective, states_success
from poisonaudit.cli.pipeline.stages import Stages
from poisonaudit.cli.pipeline.victim import Victim, unit_of
from poisonaudit.config.objectives import WithSource
from poisonaudit.config.schema import AttackConfig, SearchConfig
from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem
from poisonaudit.store import RunFolder
from poisonaudit.verify import (
    Control,
    CostTrial,
    Hardened,
    HardeningComparison,
    Retrained,
    Retraining,
    VerifiedCost,
    fitted,
    judge_trial,
    verified_cost,
)
from poisonaudit.verify.cost_search import checked_search
from poisonaudit.verify.hardening import decay_label, hardened, rows_label, variant

HARDENING = "hardening.csv"


def check_search(config: AttackConfig, victim: Victim) -> None:
    """Refuse, before any training, a search or a variant that this victim cannot have."""
    if config.search is None:
        return
    if not states_success(config.objective):
        raise UsageError(
            "PA345", f"the objective {config.objective.kind} does not say when it is reached. Give it success_at."
        )
    if config.craft.outer == "training":
        raise UsageError(
            "PA387",
            "search judges each trial by tight training, and craft.outer training crafts for the owner's own. Leave "
            "search out, or craft.outer.",
        )
    for label, _, each in [("", "", victim), *_variants(config, victim)]:
        search, budget, rows = config.search, make_budget(config.budget, victim), each.problem.rows
        try:
            budget.count(rows)
            checked_search(each.problem, budget, search.over, search.low, search.high, search.precision)
            if label:
                check_objective(config.objective, each, config.seed)
        except UsageError as refused:
            raise UsageError(refused.code, f"{label}: {refused.message}" if label else refused.message) from None


def searched(
    config: AttackConfig, stages: Stages, objective: Objective, poison: Poison, retrained: Retrained
) -> VerifiedCost:
    """The verified cost of the run's own victim; the run's own attack is one of the trials.

    Args:
        config: with a search.
        stages: where trials are kept.
        objective: of the run.
        poison: of the run.
        retrained: on it, with the controls that all trials share.

    Returns:
        The cost.
    """
    budget, search = poison.budget, _search(config)
    amount = budget.count(stages.victim.problem.rows) if search.over == "rows" else float(budget.radius)
    # Every trial is judged by tight training, so the run's own is as well.
    own = judge_trial(amount, poison, replace(retrained, trainer=()), _need(config))
    return _search_in("search", config, stages, stages.victim, objective, retrained.control, [own])


def hardening(config: AttackConfig, stages: Stages, objective: Objective, cost: VerifiedCost) -> list[dict[str, Any]]:
    """Train the variants, search the cost of each, and write `hardening.csv`; the run's own victim comes first.

    Args:
        config: with a search.
        stages: where trainings and trials are kept.
        objective: of the run; target weights are found anew for each variant.
        cost: of the run's own victim.

    Returns:
        One entry per variant, plain data; empty without `hardening` in the configuration.
    """
    if config.hardening is None:
        return []
    base, report = stages.victim, stages.report
    found: list[Hardened] = [hardened("as attacked", base.problem, cost, base.test)]
    for label, name, untrained in _variants(config, base):
        trained = _trained(name, label, untrained.problem, config.seed, config.training.tolerance, stages)
        if not trained.converged:
            report.warn(f"{label}: training stopped at relative gradient {trained.relative_gradient:.1e}")
        each = untrained.at(trained.weights)
        goal = _objective_of(name, config, stages, each, objective)
        control = _control(label, name, config, stages, each.problem)
        cost = _search_in(name, config, stages, each, goal, control, [])
        found.append(hardened(label, each.problem, cost, base.test))
    compared = HardeningComparison(tuple(found))
    stages.folder.write_text(HARDENING, compared.to_frame().to_csv(index=False))
    return compared.to_json()


def _search_in(
    place: str,
    config: AttackConfig,
    stages: Stages,
    victim: Victim,
    objective: Objective,
    control: Control,
    own: list[CostTrial],
) -> VerifiedCost:
    """One search whose trials are kept under `place`: `trial-NNN.json`, and beside it the poison."""
    folder, search = stages.folder, _search(config)
    stored = _stored_trials(folder, place)
    if stored:
        stages.report.note(f"{place}: {len(stored)} trials kept from before")

    def store(trial: CostTrial) -> None:
        names = (f"{place}/trial-{number:03d}" for number in itertools.count(1))
        name = next(name for name in names if not folder.exists(f"{name}.json"))
        if trial.poison is not None:
            ids = victim.data.train_ids[trial.poison.rows.cpu()]
            facts = {"recipe": config.name, "unit": unit_of(victim)}
            folder.write_tensors(f"{name}.safetensors", {"rows": ids, "delta": trial.poison.delta}, facts)
        # Last, because its presence says that the trial is complete.
        folder.write_json(f"{name}.json", {"schema": "poisonaudit/trial/1", **trial.to_json()})

    stages.report.stage(f"{place}: smallest {search.over} that retraining confirms")
    return verified_cost(
        victim.problem,
        objective,
        make_budget(config.budget, stages.victim),
        over=search.over,
        low=search.low,
        high=search.high,
        fresh=config.retrain.fresh,
        need=_need(config),
        precision=search.precision,
        crafting=crafting_options(config, None),
        seed=config.seed,
        tolerance=config.retrain.tolerance,
        control=control,
        unit="training rows" if search.over == "rows" else unit_of(victim),
        already=[*own, *stored],
        store=store,
        progress=stages.report,
    )


def _stored_trials(folder: RunFolder, place: str) -> list[CostTrial]:
    names = sorted(path.name for path in (folder.path / place).glob("trial-*.json"))
    return [CostTrial.from_json(folder.read_json(f"{place}/{name}")) for name in names]


def _variants(config: AttackConfig, victim: Victim) -> Iterator[tuple[str, str, Victim]]:
    """Label, file name and untrained victim of each variant; one that equals the victim itself is left out."""
    if config.hardening is None:
        return
    total = victim.problem.rows
    wanted: list[tuple[str, Problem]] = [
        (decay_label(decay), variant(victim.problem, decay=decay))
        for decay in dict.fromkeys(config.hardening.decays)
        if decay != victim.problem.decay
    ]
    for share in config.hardening.row_shares:
        count = max(1, int(share * total + 1e-9))
        wanted.append((rows_label(count), variant(victim.problem, rows=count)))
    for label, problem in dict(wanted).items():
        data, count = victim.data, problem.rows
        fewer = replace(
            data, x_train=data.x_train[:count], y_train=data.y_train[:count], train_ids=data.train_ids[:count]
        )
        yield label, f"hardening-{label.replace(' ', '-')}", replace(victim, problem=problem, data=fewer)


def _trained(name: str, label: str, problem: Problem, seed: int | None, tolerance: float, stages: Stages) -> Retraining:
    start = "warm" if seed is None else f"seed {seed}"
    return stages.training(
        name, f"{label}: clean training, {start}", seed, lambda: fitted(problem, tolerance, seed, stages.report)
    )


def _control(label: str, name: str, config: AttackConfig, stages: Stages, problem: Problem) -> Control:
    """Clean trainings of one variant, each stored; outcomes are added where they are judged."""
    tolerance = config.retrain.tolerance
    runs = [
        _trained(f"{name}-control-{'warm' if seed is None else seed}", label, problem, seed, tolerance, stages)
        for seed in (None, *range(config.seed + 1, config.seed + 1 + config.retrain.fresh))
    ]
    return Control(runs[0], tuple(runs[1:]))


def _objective_of(name: str, config: AttackConfig, stages: Stages, victim: Victim, objective: Objective) -> Objective:
    """The objective for a variant: the same rows and classes, but target weights, and regions about them, anew.

    They depend on the victim: where its training goes on other labels or rows, along which directions it is flat, and
    how far it has to go to weights from a file.

    Args:
        name: of the variant.
        config: the recipe.
        stages: where target weights are kept.
        victim: the variant at its clean solution.
        objective: of the run.

    Returns:
        The objective for the variant.
    """
    if not isinstance(config.objective, WithSource):
        return objective
    made, _ = make_objective(config, replace(stages, victim=victim), stages.report, f"{name}-target")
    return made


def _search(config: AttackConfig) -> SearchConfig:
    return config.search or SearchConfig()


def _need(config: AttackConfig) -> int:
    """Fresh runs that have to succeed: as configured, or most."""
    return _search(config).need or config.retrain.fresh // 2 + 1
