"""`--set a.b=value` on top of a configuration."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from poisonaudit.config.yaml_reader import parse_value
from poisonaudit.errors import UsageError


def apply_overrides(body: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return a copy of `body` with `a.b=value` assignments applied in order; values are read as YAML.

    Args:
        body: the configuration so far; not modified.
        assignments: what the user gave to `--set`.

    Returns:
        The new configuration.

    Raises:
        UsageError: PA384, an assignment has no `=` or no key, or goes through a value that is not a mapping.
    """
    result = copy.deepcopy(dict(body))
    for assignment in assignments:
        keys, text = split_assignment(assignment)
        _assign(result, keys, parse_value(text), assignment)
    return result


def split_assignment(assignment: str) -> tuple[list[str], str]:
    """The keys and the text of `a.b=value`.

    Args:
        assignment: as given to `--set`.

    Returns:
        Keys from the outermost on, and what comes after the first `=`.

    Raises:
        UsageError: PA384, there is no `=` or no key.
    """
    path, mark, text = assignment.partition("=")
    keys = [part.strip() for part in path.split(".")]
    if not mark or not all(keys):
        raise UsageError("PA384", f"--set {assignment!r} is not key=value. Write --set budget.rows=10.")
    return keys, text


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `top` over `base`: mappings merge key by key, everything else is replaced."""
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        result[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return copy.deepcopy(result)


def _assign(body: dict[str, Any], keys: list[str], value: Any, assignment: str) -> None:
    for depth, key in enumerate(keys[:-1]):
        inner = body.get(key)
        if inner is None:
            inner = body[key] = {}
        if not isinstance(inner, dict):
            where = ".".join(keys[: depth + 1])
            raise UsageError("PA384", f"--set {assignment!r}: {where} is {inner!r}, not a group of keys. Set it whole.")
        body = inner
    body[keys[-1]] = value
