"""`poisonaudit ls`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from poisonaudit.cli.console import print_json, table
from poisonaudit.cli.options import shared
from poisonaudit.registry import lookup, third_party


def _models() -> dict[str, str]:
    from poisonaudit.models import MODELS

    return _described(MODELS, "poisonaudit.models") | {
        "file.py:FACTORY": "A function of yours in a Python file; needs --trust-code."
    }


def _data() -> dict[str, str]:
    from poisonaudit.data import DATA

    return _described(DATA, "poisonaudit.data")


def _measures() -> dict[str, str]:
    from poisonaudit.audit import MEASURES

    return _described(MEASURES, "poisonaudit.measures")


def _attacks() -> dict[str, str]:
    from poisonaudit.config.catalogue import attack_recipes
    from poisonaudit.config.yaml_reader import read_yaml

    return {name: str(read_yaml(path).get("description", "")) for name, path in attack_recipes().items()}


def _reproductions() -> dict[str, str]:
    from poisonaudit.reproduce import REPRODUCTIONS

    return {name: _first_line(entry) for name, entry in REPRODUCTIONS.items()}


_KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "models": _models,
    "data": _data,
    "measures": _measures,
    "attacks": _attacks,
    "reproductions": _reproductions,
}


@click.command("ls")
@click.argument("kind", metavar="models|data|measures|attacks|reproductions")
@shared("json")
def command(kind: str, as_json: bool) -> None:
    """List what is there, with one line on each."""
    entries = lookup(_KINDS, kind, "kind of thing to list")()
    if as_json:
        print_json([{"name": name, "description": text} for name, text in entries.items()])
    elif entries:
        click.echo(table(["name", "description"], list(entries.items()), left=2))
    else:
        click.echo(f"There are no {kind} in this version.")


def _described(registry: Mapping[str, Any], group: str) -> dict[str, str]:
    """Name -> first line of what is known about it."""
    own = {name: _first_line(entry) for name, entry in sorted(registry.items())}
    return own | {name: f"from {point.value}" for name, point in sorted(third_party(group).items()) if name not in own}


def _first_line(entry: Any) -> str:
    text = getattr(entry, "__doc__", None) or ""
    return text.strip().splitlines()[0].replace("`", "") if text.strip() else ""
