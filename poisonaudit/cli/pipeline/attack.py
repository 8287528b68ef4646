"""`attack`: craft a poison, retrain on it, store predicted beside retrained; every stage can be resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from poisonaudit.attack import Poison
from poisonaudit.cli.console import Reporter
from poisonaudit.cli.pipeline.audit import accuracies, polished, stored_victim
from poisonaudit.cli.pipeline.baselines import beside, check_baselines
from poisonaudit.cli.pipeline.crafting import crafted
from poisonaudit.cli.pipeline.defences import check_detectors, detected, inspected
from poisonaudit.cli.pipeline.exports import pictures, write_exports
from poisonaudit.cli.pipeline.folder import refuse_taken, run_folder
from poisonaudit.cli.pipeline.gates import apply_gates, parse_gates
from poisonaudit.cli.pipeline.goals import budget_remarks, check_choice, make_budget
from poisonaudit.cli.pipeline.objectives import check_objective, make_objective
from poisonaudit.cli.pipeline.plan import check_plan, first_words, make_plan
from poisonaudit.cli.pipeline.render import write_reports
from poisonaudit.cli.pipeline.search import check_search, hardening, searched
from poisonaudit.cli.pipeline.stages import Stages, make_procedures, staged_retraining, try_trainer
from poisonaudit.cli.pipeline.train import weights_metadata
from poisonaudit.cli.pipeline.victim import Victim, assemble, tensors_of, unit_of
from poisonaudit.config.load import plain
from poisonaudit.config.schema import AttackConfig, Training
from poisonaudit.data import refuse_folder_export
from poisonaudit.errors import UsageError
from poisonaudit.results import AttackResult, finite
from poisonaudit.store import RunFolder, environment, sha256_bytes, tensors_to_bytes
from poisonaudit.training import with_statistics
from poisonaudit.verify import FileTrainer, fitted, load_trainer

HINT = "What was finished is kept. Go on with: poisonaudit attack --resume --out {path}"


@dataclass(frozen=True)
class Attacked:
    """What `run_attack` leaves: the folder and the result."""

    path: Path
    result: AttackResult


def run_attack(
    config: AttackConfig,
    out: Path | None = None,
    *,
    resume: bool = False,
    trust_code: bool = False,
    arguments: list[str] | None = None,
    controls: Path | None = None,
    report: Reporter,
) -> Attacked:
    """Run one attack end to end.

    Args:
        config: the resolved recipe.
        out: folder of the run.
        resume: go on with an interrupted run in `out`.
        trust_code: whether `file.py:factory` and `file.py:train` may run.
        arguments: the command line, for the manifest.
        controls: folder of a finished attack on the same victim with the same seeds, whose controls are taken over.
        report: told what is going on.

    Returns:
        The folder and the result.
    """
    refuse_taken(out, resume=resume, resumable=True)
    gates = parse_gates(config.fail_on)
    victim = load_victim(config, trust_code, report)
    trainer = own_trainer(config, trust_code)
    if trainer is not None:
        named = {f"trainer:{name}": digest for name, digest in trainer.sources.items()}
        victim = replace(victim, inputs={**victim.inputs, **named})
    procedures = make_procedures(config.retrain, config.seed, trainer)
    remarks = check_fit(config, victim)
    with run_folder("attack", out, resume=resume, hint=HINT) as folder:
        check_plan(folder, make_plan(config, victim.inputs))
        arguments = first_words(folder, arguments)
        report.begin()
        if config.victim is None:
            # Found again on resuming: the seed and the rows say what they are.
            victim = replace(victim, problem=with_statistics(victim.problem, config.seed, report))
        stages = Stages(folder, victim, report, None if controls is None else RunFolder.open(controls))
        victim = clean_victim(config, stages, report)
        stages = replace(stages, victim=victim)
        objective, facts = make_objective(config, stages, report)
        try_trainer(stages, procedures)
        poison = crafted(config, stages, objective, trainer, report)
        retrained = staged_retraining(
            stages, poison.perturbation(victim.problem), objective, poison.predicted, procedures
        )
        write_exports(config.export, folder, victim, poison, report)
        others = beside(config, stages, objective, poison, procedures)
        detectors = detected(config, stages, poison, retrained)
        inspection = inspected(config, stages, poison, retrained)
        cost = None if config.search is None else searched(config, stages, objective, poison, retrained)
        variants = [] if cost is None else hardening(config, stages, objective, cost)
        result = AttackResult(
            name=config.name,
            model=victim.model,
            data=victim.data.spec,
            recipe=attack_recipe(config, victim, facts),
            budget=attack_budget(config, victim, poison),
            rows=[int(victim.data.train_ids[row]) for row in poison.rows],
            predicted=finite(poison.predicted),
            retrained=finite(retrained.to_json()),
            control=finite(retrained.control.to_json()),
            history=finite(poison.history),
            pictures=pictures(victim, poison),
            verified_cost={} if cost is None else finite(cost.to_json()),
            hardening=finite(variants),
            baselines=others,
            detectors=finite(detectors),
            inspection=finite(inspection),
            cost={
                "crafting_seconds": poison.seconds,
                "crafting_products": poison.products,
                "crafting_gradients": poison.gradients,
                **retraining_cost(retrained),
                **({} if cost is None else {"search_seconds": cost.seconds}),
            },
            inputs=victim.inputs,
            environment=environment(),
            seed=config.seed,
            notes=poison_notes(poison, remarks, victim),
        )
        result = replace(result, gates=tuple(apply_gates(gates, [result])))
        folder.write_json("attack.json", result.to_json())
        write_reports(folder, result, report, arguments)
        invocation = {"words": arguments or [], "config": plain(config)}
        folder.write_manifest("attack", invocation, victim.inputs, config.seed)
        return Attacked(folder.path, result)


@dataclass(frozen=True)
class Rehearsed:
    """What `rehearse` found.

    Attributes:
        notes: what to know before the run, in sentences.
        victim: model, data, limit, loss and decay of what is attacked, whatever the recipe says of its own.
    """

    notes: tuple[str, ...]
    victim: Mapping[str, Any]


def rehearse(config: AttackConfig, out: Path | None = None, *, trust_code: bool, report: Reporter) -> Rehearsed:
    """Check all that can be checked without training: names, data, model, rows, classes, rules, a taken folder.

    Args:
        config: the resolved recipe.
        out: folder of the run.
        trust_code: whether `file.py:factory` and `file.py:train` may run.
        report: told what is going on.

    Returns:
        What to know before the run, and what would be attacked.
    """
    refuse_taken(out, resumable=True)
    parse_gates(config.fail_on)
    victim = load_victim(config, trust_code, report)
    own_trainer(config, trust_code)
    training = {key: victim.recipe.get(key) for key in ("limit", "loss", "decay")}
    return Rehearsed(check_fit(config, victim), {"model": victim.model, "data": victim.data.spec, **training})


def poison_notes(poison: Poison, remarks: Sequence[str], victim: Victim) -> tuple[str, ...]:
    """What is to be known of the poison; of its budget with the columns by name, where they have names."""
    unnamed = poison.budget.remarks(victim.problem.x)
    return (*remarks, *(note for note in poison.notes if note not in unnamed))


def own_trainer(config: AttackConfig, trust_code: bool) -> FileTrainer | None:
    """The user's own training that the recipe names, loaded; None where it names none."""
    return None if config.retrain.trainer is None else load_trainer(config.retrain.trainer, trust_code)


def check_fit(config: AttackConfig, victim: Victim) -> tuple[str, ...]:
    """Rows, classes and budget of the recipe exist in this victim; what needs a trained model is checked later.

    Args:
        config: the resolved recipe.
        victim: before any training.

    Returns:
        Remarks on the budget.
    """
    make_budget(config.budget, victim).count(victim.problem.rows)
    remarks = budget_remarks(config.budget, victim)
    if config.craft.method == "lbfgsb" and config.budget.norm != "linf":
        raise UsageError(
            "PA378", f"craft.method lbfgsb needs budget.norm linf, got {config.budget.norm}. Use auto, apg or adam."
        )
    if "folder" in config.export:
        refuse_folder_export(victim.data)
    check_objective(config.objective, victim, config.seed)
    check_choice(config.budget, config.objective.kind, victim)
    check_search(config, victim)
    check_baselines(config)
    check_detectors(config)
    return remarks


def load_victim(config: AttackConfig, trust_code: bool, report: Reporter) -> Victim:
    """The victim before any training: stored by `train`, foreign weights, or a model with fresh weights."""
    if config.victim is not None:
        if unused := _unused(config):
            report.note(f"{config.victim} is attacked as it was trained; not used: {', '.join(unused)}.")
        return stored_victim(Path(config.victim), device=config.device, trust_code=trust_code, report=report)
    if config.decay is None:
        report.warn("the recipe names no decay; 0 is used")
    return assemble(
        str(config.model),
        str(config.data),
        loss=config.loss,
        decay=config.decay or 0.0,
        limit=config.limit,
        seed=config.seed,
        device=config.device,
        weights=None if config.weights is None else Path(config.weights),
        trust_code=trust_code,
        report=report,
    )


def _unused(config: AttackConfig) -> list[str]:
    """Keys of a recipe that say how a victim is trained, with their values, where a stored one is attacked."""
    named = {name: getattr(config, name) for name in ("model", "data", "loss", "decay", "limit")}
    unused = [f"{name}={value}" for name, value in named.items() if value is not None]
    return unused + [f"training.tolerance={config.training.tolerance:g}"] * (config.training != Training())


def clean_victim(config: AttackConfig, stages: Stages, report: Reporter) -> Victim:
    """The victim at its clean solution: trained, polished, or as stored."""
    victim = stages.victim
    if config.weights is not None:
        weights = stages.weights("clean", lambda: polished(victim, config.training.tolerance, report).problem.weights)
    elif config.victim is not None:
        weights = stages.weights("clean", lambda: victim.problem.weights)
    else:
        trained = stages.training(
            "clean",
            f"training {victim.model}",
            config.seed,
            lambda: fitted(victim.problem, config.training.tolerance, config.seed, report),
        )
        weights = trained.weights
        facts = {
            "converged": trained.converged,
            "relative_gradient": trained.relative_gradient,
            "reason": trained.reason,
            "tolerance": config.training.tolerance,
        }
        victim = replace(victim, recipe={**victim.recipe, **facts})
        if not trained.converged:
            report.warn(
                f"the clean training stopped at relative gradient {trained.relative_gradient:.1e}: {trained.reason}"
            )
    at = victim.at(weights)
    known = {**at.recipe, **accuracies(at), "weights_sha256": weights_digest(at)}
    return replace(at, recipe=known)


def attack_budget(config: AttackConfig, victim: Victim, poison: Poison) -> dict[str, Any]:
    """The budget as configured, with the numbers that were used where the configuration only names them."""
    used = poison.budget.describe()
    # `box: data` and `integer: [column]` mean other numbers for other data.
    return {**used, **plain(config.budget), "box": used["box"], "unit": unit_of(victim), "rows": len(poison.rows)}


def weights_digest(victim: Victim) -> str:
    """The sha256 that `train` gives a file with these weights, by which audits and attacks of one model are joined."""
    return sha256_bytes(tensors_to_bytes(tensors_of(victim.problem), weights_metadata(victim)))


def attack_recipe(config: AttackConfig, victim: Victim, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as resolved, and what is known about the victim's training."""
    body = plain(config)
    known = {key: value for key, value in victim.recipe.items() if key not in {"classes", "warnings"}}
    body["victim"] = {"run": config.victim, "model": victim.model, "data": victim.data.spec, **known}
    body["objective"] = {**body["objective"], **facts}
    body["classes"] = None if victim.data.classes is None else list(victim.data.classes)
    for key in ("loss", "decay", "limit", "dtype"):
        body[key] = victim.recipe.get(key)
    return body | {"model": victim.model, "data": victim.data.spec}


def retraining_cost(retrained: Any) -> dict[str, float]:
    """Seconds spent on retraining and on controls."""
    sides = {"retraining_seconds": retrained, "control_seconds": retrained.control}
    return {
        name: sum(run.seconds for run in (side.warm, *side.tight, *side.loose, *side.trainer))
        for name, side in sides.items()
    }
