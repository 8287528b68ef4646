"""`demo`: three small models on the bundled digits, from training to one comparison that retraining confirms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poisonaudit.cli.console import Reporter
from poisonaudit.cli.pipeline.attack import run_attack
from poisonaudit.cli.pipeline.audit import run_audit
from poisonaudit.cli.pipeline.compare import Compared, joined, write_comparison
from poisonaudit.cli.pipeline.folder import refuse_taken, run_folder
from poisonaudit.cli.pipeline.train import run_train
from poisonaudit.config.catalogue import find_recipe
from poisonaudit.config.load import load_config
from poisonaudit.config.schema import AttackConfig, AuditConfig, TrainConfig
from poisonaudit.results import AttackResult, AuditResult, Comparison

# Name of the part -> model and decay: a convex model, a network, and the same network under ten times the decay.
MODELS = {
    "linear": ("linear", 1e-3),
    "tanh": ("mlp:64-12-10?activation=tanh", 1e-3),
    "tanh-decayed": ("mlp:64-12-10?activation=tanh", 1e-2),
}
# Name of the part -> recipe, and a smaller budget than its own: beyond it the path of a network's solutions often ends.
RECIPES = {
    "weights": ("target-weights-label-flips", ["budget.radius=16/255"]),
    "flip": ("flip-one-digit", ["budget.radius=12/255", "objective.test_row=lowest_margin"]),
}
HINT = "Finished parts are in {path}. Run the demo again with another --out."


@dataclass(frozen=True)
class Size:
    """How much the demo does.

    Attributes:
        rows: training rows.
        fresh: fresh seeds per attack.
        steps: most crafting steps.
        measures: measures of the audit, None for all that are quick enough.
    """

    rows: int
    fresh: int
    steps: int
    measures: tuple[str, ...] | None


FULL = Size(rows=400, fresh=2, steps=6, measures=None)
QUICK = Size(
    rows=150,
    fresh=1,
    steps=2,
    measures=("stationarity", "solution", "tangent.sensitivity", "lipschitz", "weight_noise"),
)


def run_demo(
    out: Path | None = None, *, quick: bool = False, arguments: list[str] | None = None, report: Reporter
) -> Compared:
    """Train, audit, poison and retrain three models; everything is kept under `out`, the comparison in it.

    Args:
        out: folder of the demo.
        quick: fewer rows, seeds and steps.
        arguments: the command line, for the manifest.
        report: told what is going on.

    Returns:
        The folder and the comparison.
    """
    refuse_taken(out)
    size = QUICK if quick else FULL
    with run_folder("demo", out, hint=HINT) as folder:
        report.begin()
        results: list[AuditResult | AttackResult | Comparison] = []
        inputs: dict[str, str] = {}
        for short, (model, decay) in MODELS.items():
            victim = TrainConfig(model=model, data="digits", decay=decay, limit=size.rows)
            trained = run_train(victim, folder.path / f"train-{short}", report=report)
            inputs |= trained.victim.inputs
            audited = AuditConfig(run=str(trained.path), measures=size.measures)
            results.append(run_audit(audited, folder.path / f"audit-{short}", report=report).result)
            controls = None
            for goal, (recipe, budget) in RECIPES.items():
                config = attack_config(recipe, trained.path, size, budget)
                place = folder.path / f"attack-{goal}-{short}"
                attacked = run_attack(config, place, controls=controls, report=report)
                results.append(attacked.result)
                controls = attacked.path
        final = joined(results, [], report)
        write_comparison(folder, final, report, arguments)
        folder.write_manifest("demo", {"words": arguments or [], "quick": quick}, inputs, 0)
        return Compared(folder.path, final)


def attack_config(recipe: str, victim: Path, size: Size, budget: Sequence[str] = ()) -> AttackConfig:
    """A recipe of the catalogue, turned on a trained model of the demo."""
    changes: dict[str, Any] = {"victim": str(victim)}
    assignments = [f"craft.steps={size.steps}", f"retrain.fresh={size.fresh}"]
    return load_config(AttackConfig, [find_recipe(recipe)], [*assignments, *budget], changes)
