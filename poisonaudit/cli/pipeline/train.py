"""`train`: a reproducible victim, its weights and its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from poisonaudit.cli.console import Reporter
from poisonaudit.cli.pipeline.folder import refuse_taken, run_folder
from poisonaudit.cli.pipeline.victim import Victim, assemble, quality, targets, tensors_of
from poisonaudit.config.load import plain
from poisonaudit.config.schema import TrainConfig
from poisonaudit.models import save_weights
from poisonaudit.store import sha256_file
from poisonaudit.training import Fit, fit

TRAIN_SCHEMA = "poisonaudit/train/1"
WEIGHTS = "weights.safetensors"
RECIPE = "train.json"


@dataclass(frozen=True)
class Trained:
    """What `run_train` leaves.

    Attributes:
        path: the run's folder.
        victim: at the weights reached.
        recipe: `train.json`.
    """

    path: Path
    victim: Victim
    recipe: Mapping[str, Any]


def run_train(
    config: TrainConfig,
    out: Path | None = None,
    *,
    trust_code: bool = False,
    arguments: list[str] | None = None,
    report: Reporter,
) -> Trained:
    """Train a victim from fresh weights to the stated gradient tolerance and store it.

    Args:
        config: what to train.
        out: folder of the run.
        trust_code: whether `file.py:factory` may run.
        arguments: the command line, for the manifest.
        report: told what is going on.

    Returns:
        The trained victim and its folder.

    Raises:
        UsageError: a name, an option or the folder is wrong.
        InputRefused: data or model are refused.
    """
    refuse_taken(out)
    victim = assemble(
        config.model,
        config.data,
        loss=config.loss,
        decay=config.decay,
        limit=config.limit,
        seed=config.seed,
        device=config.device,
        trust_code=trust_code,
        report=report,
    )
    with run_folder("train", out) as folder:
        report.begin()
        reached = train(victim, config.tolerance, config.seed, report, config.max_gradients)
        # The problem itself: training may have found batch statistics.
        victim = replace(victim, problem=reached.problem)
        recipe = training_recipe(victim, reached, config.tolerance, config.seed)
        save_weights(folder.path / WEIGHTS, tensors_of(victim.problem), weights_metadata(victim))
        recipe["weights_sha256"] = sha256_file(folder.path / WEIGHTS)
        folder.write_json(RECIPE, recipe)
        invocation = {"words": arguments or [], "config": plain(config)}
        folder.write_manifest("train", invocation, victim.inputs, config.seed)
        return Trained(folder.path, victim, recipe)


def train(victim: Victim, tolerance: float, seed: int, report: Reporter, max_gradients: int | None = None) -> Fit:
    """Fit a victim from fresh weights; a fit that fell short is reported, not hidden."""
    report.stage(f"training {victim.model}")
    reached = fit(victim.problem, tolerance, seed, start="fresh", max_gradients=max_gradients, progress=report)
    if not reached.converged:
        report.warn(
            f"training stopped at relative gradient {reached.relative_gradient:.1e}, {tolerance:.1e} was asked for: "
            f"{reached.reason}. Numbers about the training solution are flagged above 1e-6."
        )
    return reached


def weights_metadata(victim: Victim) -> dict[str, str]:
    """What is written into the weights file: enough to know what it is, nothing that changes from run to run."""
    return {"schema": TRAIN_SCHEMA, "model": victim.model, "data": victim.data.spec}


def training_recipe(victim: Victim, reached: Fit, tolerance: float, seed: int) -> dict[str, Any]:
    """The body of `train.json`, but for the weights' sha256."""
    problem, data = victim.problem, victim.data
    return {
        "schema": TRAIN_SCHEMA,
        "model": victim.model,
        "data": data.spec,
        **victim.recipe,
        "seed": seed,
        "tolerance": tolerance,
        "preprocessing": dict(data.preprocessing),
        "classes": None if data.classes is None else list(data.classes),
        "rows": problem.rows,
        "parameters": problem.size,
        "train_ids": data.train_ids.tolist(),
        "relative_gradient": reached.relative_gradient,
        "converged": reached.converged,
        "reason": reached.reason,
        "method": "lbfgs",
        "steps": reached.steps,
        "gradients": reached.gradients,
        "train_accuracy": quality(problem, data.x_train, targets(data, data.y_train)),
        "test_accuracy": quality(problem, data.x_test, targets(data, data.y_test)),
        "train_loss": float(problem.losses().mean().detach()),
        "seconds": reached.seconds,
        "sources": dict(victim.inputs),
    }
