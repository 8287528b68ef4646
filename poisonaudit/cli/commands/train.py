"""`poisonaudit train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from poisonaudit.cli.console import print_json, reporting, table
from poisonaudit.cli.options import arguments, shared

_KEYS = ("model", "data", "loss", "decay", "tolerance", "max_gradients", "seed", "limit", "device")


@click.command("train")
@shared(
    "model",
    "data",
    "loss",
    "decay",
    "tolerance",
    "max-gradients",
    "seed",
    "limit",
    "device",
    "out",
    "config",
    "set",
    "json",
    "trust-code",
)
def command(
    config_file: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    trust_code: bool,
    **given: Any,
) -> None:
    """Train a reproducible victim, to a stated gradient tolerance, and store its recipe beside the weights.

    Decay defaults to 1e-3: without it the minimum of cross entropy on separable data lies at infinity.
    """
    from poisonaudit.config.catalogue import find_configuration
    from poisonaudit.config.load import load_config
    from poisonaudit.config.schema import TrainConfig

    files = [find_configuration(config_file)] if config_file else []
    config = load_config(TrainConfig, files, assignments, {key: given[key] for key in _KEYS})
    with reporting() as report:
        from poisonaudit.cli.pipeline.train import run_train

        trained = run_train(config, out, trust_code=trust_code, arguments=arguments(), report=report)
    recipe = trained.recipe
    if as_json:
        print_json({key: value for key, value in recipe.items() if key != "train_ids"} | {"run": str(trained.path)})
        return
    shown = (
        "rows",
        "parameters",
        "loss",
        "decay",
        "dtype",
        "relative_gradient",
        "converged",
        "train_accuracy",
        "test_accuracy",
    )
    click.echo(
        table([recipe["model"], ""], [[key.replace("_", " "), recipe[key]] for key in shown if recipe[key] is not None])
    )
    click.echo(f"run: {trained.path}")
