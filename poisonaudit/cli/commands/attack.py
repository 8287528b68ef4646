"""`poisonaudit attack`."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from poisonaudit.cli.console import print_json, reporting
from poisonaudit.cli.options import arguments, shared
from poisonaudit.errors import EXIT_THRESHOLD, PoisonAuditError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from poisonaudit.config.schema import AttackConfig

_KEYS = ("seed", "device", "limit", "fail_on")


@click.command("attack")
@click.argument("recipe", required=False, metavar="RECIPE|CONFIG")
@click.option("--resume", is_flag=True, help="Go on with the interrupted run in --out; finished stages are kept.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and the plan; train and write nothing.")
@click.option(
    "--trainer",
    metavar="FILE.py:train",
    help="Your own training, (problem, seed) -> weights, for the fresh seeds too; needs --trust-code.",
)
@shared("set", "out", "config", "seed", "device", "limit", "fail-on", "json", "trust-code")
def command(
    recipe: str | None,
    resume: bool,
    dry_run: bool,
    trainer: str | None,
    config_file: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    trust_code: bool,
    **given: Any,
) -> None:
    """Craft a poison, retrain on it, and report predicted against retrained.

    RECIPE is a name from `ls attacks`, a folder with a recipe.yaml, or a YAML file; --config lays another file over it.
    """
    options = {key: given[key] for key in _KEYS}
    # As an assignment: `retrain` has other keys, which stay. Quoted, for YAML to take any path as text.
    assignments += () if trainer is None else (f"retrain.trainer={json.dumps(trainer)}",)
    config = _resolve(recipe, config_file, assignments, options, out if resume else None)
    with reporting() as report:
        if dry_run:
            from poisonaudit.cli.pipeline.attack import rehearse

            with _in_words_of_recipes():
                found = rehearse(config, None if resume else out, trust_code=trust_code, report=report)
            _print_plan(config, found.notes, found.victim, as_json)
            return
        from poisonaudit.cli.pipeline.attack import run_attack

        with _in_words_of_recipes():
            attacked = run_attack(
                config, out, resume=resume, trust_code=trust_code, arguments=arguments(), report=report
            )
    if as_json:
        print_json(attacked.result.to_json())
    else:
        from poisonaudit.cli.tables import attack_text
        from poisonaudit.cli.training_table import trainings_text

        click.echo(attack_text(attacked.result))
        if trainings := trainings_text(attacked.result):
            click.echo(f"\n{trainings}")
        click.echo(f"\nreport: {attacked.path / 'report.html'}")
    if any(gate.outcome != "PASS" for gate in attacked.result.gates):
        click.get_current_context().exit(EXIT_THRESHOLD)


def _resolve(
    recipe: str | None,
    config_file: str | None,
    assignments: tuple[str, ...],
    options: dict[str, Any],
    interrupted: Path | None,
) -> AttackConfig:
    """The configuration: recipe, then --config, then --set, then options; of a resumed run, what it was begun with."""
    from poisonaudit.config.catalogue import find_configuration, find_recipe
    from poisonaudit.config.load import load_config
    from poisonaudit.config.schema import AttackConfig

    files = [find_recipe(recipe)] if recipe else []
    files += [find_configuration(config_file)] if config_file else []
    if files:
        return load_config(AttackConfig, files, assignments, options)
    if interrupted is None:
        raise UsageError("PA392", "no recipe is named. Pass a name from `poisonaudit ls attacks`, or a YAML file.")
    if assignments or any(value not in {None, ()} for value in options.values()):
        raise UsageError(
            "PA392", "a resumed run keeps its configuration. Leave --set and options out, or name the recipe."
        )
    from poisonaudit.cli.pipeline.folder import refuse_taken
    from poisonaudit.cli.pipeline.plan import planned_config

    refuse_taken(interrupted, resume=True)
    return planned_config(interrupted)


# Options that `train` and `audit` have, and that are keys of a recipe here.
_OPTIONS = re.compile(r"(?<!\S)--(model|data|weights|loss|decay)\b(?: (?!and |or |as )(?=\S))?")


@contextmanager
def _in_words_of_recipes() -> Iterator[None]:
    """Errors that advise to pass `--model`, which this command lacks, advise to `--set model=` instead."""
    try:
        yield
    except PoisonAuditError as error:
        told = _OPTIONS.sub(lambda m: f"--set {m[1]}=" if m[0].endswith(" ") else m[1], error.message)
        if told == error.message:
            raise
        raise type(error)(error.code, told) from error


def _print_plan(config: AttackConfig, remarks: Sequence[str], victim: Mapping[str, Any], as_json: bool) -> None:
    from poisonaudit.cli.pipeline.planned import planned_stages
    from poisonaudit.config.load import plain

    steps, body = planned_stages(config), plain(config)
    if config.victim is not None:
        # The recipe's own model is not used.
        body |= victim
    if as_json:
        print_json({"config": body, "plan": steps, "notes": list(remarks)})
        return
    import yaml

    click.echo(yaml.safe_dump(body, sort_keys=False, allow_unicode=True).rstrip())
    click.echo("\n# plan (nothing was trained or written)")
    for number, step in enumerate(steps, 1):
        click.echo(f"# {number}. {step}")
    for remark in remarks:
        click.echo(f"# note: {remark}")
