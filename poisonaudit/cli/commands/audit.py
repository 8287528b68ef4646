"""`poisonaudit audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from poisonaudit.cli.console import print_json, reporting
from poisonaudit.cli.options import arguments, listed, shared
from poisonaudit.errors import EXIT_NUMERICAL, EXIT_THRESHOLD

_KEYS = ("model", "weights", "data", "loss", "decay", "rows", "seed", "limit", "device", "polish", "fail_on")


@click.command("audit")
@click.argument("run", required=False)
@shared("model", "weights", "data", "loss", "decay", "measures", "rows")
@click.option(
    "--polish", is_flag=True, default=None, help="Fit on from the given weights first, and report the distance moved."
)
@shared("fail-on", "seed", "device", "limit", "out", "config", "set", "json", "trust-code")
def command(
    config_file: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    trust_code: bool,
    measures: str | None,
    **given: Any,
) -> None:
    """Score one model: what `train` stored in RUN, or --model, --weights and --data.

    An audit in which a measure failed by a bug is written like any other and ends with exit code 4, unless a --fail-on
    rule ended it with 1.
    """
    from poisonaudit.config.catalogue import find_configuration
    from poisonaudit.config.load import load_config
    from poisonaudit.config.schema import AuditConfig

    files = [find_configuration(config_file)] if config_file else []
    options = {key: given[key] for key in _KEYS} | {"run": given["run"], "measures": listed(measures)}
    config = load_config(AuditConfig, files, assignments, options)
    with reporting() as report:
        from poisonaudit.cli.pipeline.audit import run_audit

        audited = run_audit(config, out, trust_code=trust_code, arguments=arguments(), report=report)
    if as_json:
        print_json(audited.result.to_json())
    else:
        from poisonaudit.cli.tables import audit_text

        click.echo(audit_text(audited.result))
        click.echo(f"\nreport: {audited.path / 'report.html'}")
    if any(gate.outcome != "PASS" for gate in audited.result.gates):
        click.get_current_context().exit(EXIT_THRESHOLD)
    if any(measure.details.get("bug") for measure in audited.result.measures.values()):
        click.get_current_context().exit(EXIT_NUMERICAL)
