"""`audit`: score one model, stored or foreign."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from poisonaudit.audit import audit, bugs, select_measures
from poisonaudit.cli.console import Reporter
from poisonaudit.cli.pipeline.folder import open_run, read_result, refuse_taken, run_folder
from poisonaudit.cli.pipeline.gates import apply_gates, parse_gates
from poisonaudit.cli.pipeline.render import write_reports
from poisonaudit.cli.pipeline.train import RECIPE, WEIGHTS
from poisonaudit.cli.pipeline.victim import Victim, assemble, quality, targets
from poisonaudit.config.load import plain
from poisonaudit.config.schema import AuditConfig
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.results import AuditResult
from poisonaudit.store import environment, sha256_file
from poisonaudit.training import fit, relative_gradient

# Keys of a training recipe that an option may override, at a price.
_OVERRIDES = ("model", "data", "loss", "decay", "limit")
_OTHER_RUNS = ("audit.json", "attack.json", "comparison.json")
_LEFT_OUT = ("train_ids", "sources", "schema")


@dataclass(frozen=True)
class Audited:
    """What `run_audit` leaves: the folder and the result."""

    path: Path
    result: AuditResult


def run_audit(
    config: AuditConfig,
    out: Path | None = None,
    *,
    trust_code: bool = False,
    arguments: list[str] | None = None,
    report: Reporter,
) -> Audited:
    """Audit a training run or foreign weights, and store result and report.

    Args:
        config: what to audit.
        out: folder of the run.
        trust_code: whether `file.py:factory` may run.
        arguments: the command line, for the manifest.
        report: told what is going on.

    Returns:
        The folder and the result with its gates.
    """
    refuse_taken(out)
    gates = parse_gates(config.fail_on)
    select_measures(config.measures)
    victim = audited_victim(config, trust_code, report)
    with run_folder("audit", out) as folder:
        report.begin()
        if config.polish:
            victim = polished(victim, config.tolerance, report)
        report.stage(f"auditing {victim.model}")
        classes = victim.data.classes
        recipe = {
            **victim.recipe,
            "classes": None if classes is None else list(classes),
            "warnings": list(victim.warnings),
        }
        result = audit(
            victim.problem,
            measures=config.measures,
            test=victim.test,
            rows=config.rows,
            seed=config.seed,
            model=victim.model,
            data=victim.data.spec,
            inputs=victim.inputs,
            environment=environment(),
            recipe=recipe,
            classification=victim.data.classes is not None,
            box=victim.data.box,
            row_ids=victim.data.train_ids.tolist(),
            image_shape=victim.data.image_shape,
            feature_names=victim.data.feature_names,
            progress=report,
        )
        result = replace(result, gates=tuple(apply_gates(gates, [result])))
        for measure in bugs(result):
            report.warn(f"{measure.id} {measure.reason}; the other measures are kept")
        folder.write_json("audit.json", result.to_json())
        write_reports(folder, result, report, arguments)
        invocation = {"words": arguments or [], "config": plain(config)}
        folder.write_manifest("audit", invocation, victim.inputs, config.seed)
        return Audited(folder.path, result)


def audited_victim(config: AuditConfig, trust_code: bool, report: Reporter) -> Victim:
    """The model to audit, at its stored weights.

    Args:
        config: names a training run, or model, weights and data.
        trust_code: whether `file.py:factory` may run.
        report: told what is going on.

    Returns:
        The victim with everything known about its training.
    """
    given = {key: getattr(config, key) for key in _OVERRIDES if getattr(config, key) is not None}
    if config.run is not None:
        return stored_victim(
            Path(config.run),
            given,
            weights=None if config.weights is None else Path(config.weights),
            device=config.device,
            trust_code=trust_code,
            report=report,
        )
    decay, unknown = config.decay, []
    if decay is None:
        decay = 0.0
        unknown.append("the training's decay is unknown and taken as 0; pass --decay if there was one")
        report.warn(unknown[0])
    victim = assemble(
        str(config.model),
        str(config.data),
        loss=config.loss,
        decay=decay,
        limit=config.limit,
        seed=config.seed,
        device=config.device,
        weights=Path(str(config.weights)),
        trust_code=trust_code,
        report=report,
    )
    recipe = {**victim.recipe, "weights_sha256": victim.inputs["weights"], **accuracies(victim)}
    return replace(victim, recipe=recipe, warnings=(*victim.warnings, *unknown))


def stored_victim(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    weights: Path | None = None,
    device: str = "cpu",
    trust_code: bool = False,
    report: Reporter,
) -> Victim:
    """What a training run stored, with options laid over its recipe.

    Args:
        path: folder of the training run.
        given: options that replace keys of the recipe; each is warned of.
        weights: another weights file.
        device: where to compute.
        trust_code: whether `file.py:factory` may run.
        report: told of overrides.

    Returns:
        The victim at its stored weights.

    Raises:
        UsageError: PA368, the folder is a run of another command.
        InputRefused: PA190, the weights are not those the recipe names; PA290, the training rows are not; PA220, PA221
            or PA222, the recipe is of another schema, damaged, or changed after the run.
    """
    folder = open_run(path)
    if not folder.exists(RECIPE) and any(folder.exists(name) for name in _OTHER_RUNS):
        raise UsageError("PA368", f"{path} is no training run: it has no {RECIPE}. Give a folder that `train` wrote.")
    recipe: dict[str, Any] = read_result(folder, RECIPE, dict)
    changed = {key: value for key, value in (given or {}).items() if value != recipe.get(key)}
    warnings = [
        f"{key} {value!r} is used, {path} was trained with {recipe.get(key)!r}: its weights need not solve this problem"
        for key, value in changed.items()
    ]
    for text in warnings:
        report.warn(text)
    source = weights or path / WEIGHTS
    if weights is None and source.is_file() and sha256_file(source) != recipe.get("weights_sha256"):
        raise InputRefused("PA190", f"{source} is not the file that {path / RECIPE} was written with. Train again.")
    use = {key: changed.get(key, recipe.get(key)) for key in _OVERRIDES}
    victim = assemble(
        str(use["model"]),
        str(use["data"]),
        loss=use["loss"],
        decay=float(use["decay"] or 0.0),
        limit=use["limit"],
        seed=int(recipe.get("seed", 0)),
        device=device,
        dtype=str(recipe.get("dtype", "float64")),
        weights=source,
        trust_code=trust_code,
        report=report,
    )
    if not {"data", "limit"} & changed.keys() and victim.data.train_ids.tolist() != recipe.get("train_ids"):
        raise InputRefused(
            "PA290",
            f"{use['data']} no longer gives the training rows that {path} was trained on. Restore the data.",
        )
    kept = {key: value for key, value in recipe.items() if key not in _LEFT_OUT}
    merged = {**kept, **victim.recipe, "seed": recipe.get("seed"), "weights_sha256": victim.inputs["weights"]}
    if changed:
        merged |= {"model": victim.model, "data": victim.data.spec, **accuracies(victim)}
    return replace(victim, recipe=merged, warnings=(*victim.warnings, *warnings))


def polished(victim: Victim, tolerance: float, report: Reporter) -> Victim:
    """Fit on from the given weights and say how far that moved them."""
    report.stage(f"polishing {victim.model}")
    before = relative_gradient(victim.problem)
    reached = fit(victim.problem, tolerance, start="current", progress=report)
    start = victim.problem.weights
    moved = float((reached.problem.weights - start).norm())
    length = float(start.norm())
    facts = {
        "distance": moved,
        "relative_distance": moved / length if length else None,
        "relative_gradient_before": before,
        "relative_gradient": reached.relative_gradient,
        "converged": reached.converged,
    }
    share = f" ({moved / length:.2%} of |w|)" if length else ""
    report.note(
        f"polish moved the weights by {moved:.4g}{share}; relative gradient {before:.1e} before, "
        f"{reached.relative_gradient:.1e} after. The audit is of the polished point."
    )
    warnings = list(victim.warnings)
    if not reached.converged:
        warnings.append(f"polish stopped short: {reached.reason}")
        report.warn(warnings[-1])
    after = replace(victim, problem=reached.problem, warnings=tuple(warnings))
    return replace(after, recipe={**victim.recipe, "polished": facts, **accuracies(after)})


def accuracies(victim: Victim) -> dict[str, float | None]:
    """Train and test accuracy at the victim's weights."""
    problem, data = victim.problem, victim.data
    return {
        "train_accuracy": quality(problem, data.x_train, targets(data, data.y_train)),
        "test_accuracy": quality(problem, data.x_test, targets(data, data.y_test)),
    }
