"""Entry point: finds the command, and turns every error into one line and an exit code.

This module imports click and nothing heavier, so that `poisonaudit --help` is quick.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from typing import Any, NoReturn

import click

from poisonaudit import __version__
from poisonaudit.cli.failures import Failure, describe, note_interrupts
from poisonaudit.errors import EXIT_USAGE
from poisonaudit.registry import unknown_name

# name -> help, written here so that listing the commands imports none of them.
COMMANDS = {
    "demo": "Train three small models on bundled digits, audit, poison, retrain, compare.",
    "train": "Train a reproducible victim and store its recipe beside the weights.",
    "audit": "Score one model: how far could a poisoner push it?",
    "attack": "Craft a poison, retrain on it, report predicted against retrained.",
    "compare": "One report over several models or runs.",
    "report": "Render the report of a run again from its stored results.",
    "reproduce": "A table or figure of the source papers, beside the printed values.",
    "ls": "List models, data, measures, attacks or reproductions.",
    "validate": "Check a configuration without running it.",
    "verify": "Check that the files of a run are as its manifest recorded them.",
    "doctor": "Check that this machine is able.",
}


class LazyGroup(click.Group):
    """Commands by name, imported on use; errors leave as one line on stderr."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order they are listed."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"poisonaudit.cli.commands.{cmd_name}")
        found: click.Command = module.command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command asked for; an unknown name lists what there is."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise unknown_name(args[0], COMMANDS, "command", code="PA391")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the static texts."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, keeping the words as typed for the manifest."""
        ctx.meta["poisonaudit.arguments"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an interrupt keeps its hint on the way through click."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Failure(describe(interrupt)) from interrupt

    def main(  # type: ignore[override]  # always exits, unlike click's
        self, args: Any = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run, print at most one line of error on stderr, and leave with the contract's exit code.

        With `--debug` the traceback comes before that line; the exit code stays what it is.

        Raises:
            SystemExit: always.
        """
        words = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        try:
            code = super().main(words, prog_name="poisonaudit", **extra)
        except Exception as error:
            line, code = describe(error)
            if "--debug" in words and not isinstance(error, click.exceptions.Exit):
                traceback.print_exception(error)
            if line:
                click.echo(line, err=True)
        raise SystemExit(code if isinstance(code, int) else 0)


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="poisonaudit %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """How far could a data poisoner push a trained PyTorch model?

    Predict it, prove it by retraining, compare models. Results go to stdout, progress and messages to stderr.
    Exit codes: 0 ok, 1 a --fail-on threshold was crossed, 2 usage, 3 an input was refused, 4 a numerical failure,
    5 disk, 130 interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(EXIT_USAGE)


def main() -> NoReturn:
    """Console script `poisonaudit`."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
        # Libraries' deprecation notes mean nothing to the user of a command; ours do.
        if os.path.abspath(filename).startswith(package):
            click.echo(f"warning: {' '.join(str(message).split())}", err=True)

    note_interrupts()
    if "--debug" not in sys.argv:
        warnings.showwarning = show
    cli.main()
    raise SystemExit(0)


if __name__ == "__main__":
    main()
