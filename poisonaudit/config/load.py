"""From files, names, `--set` and options to a checked configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from poisonaudit.config.objectives import KINDS
from poisonaudit.config.overrides import apply_overrides, merge, split_assignment
from poisonaudit.config.yaml_reader import parse_value, read_yaml
from poisonaudit.errors import UsageError
from poisonaudit.registry import unknown_name

Config = TypeVar("Config")

# Building one takes milliseconds, and every check needs it.
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def load_config(
    kind: type[Config],
    files: Iterable[Path] = (),
    assignments: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Config:
    """Lay files, then `--set`, then explicit options over each other, and check the result.

    Args:
        kind: the configuration's dataclass, from `config.schema`.
        files: YAML files, the later over the earlier.
        assignments: `a.b=value`, as given to `--set`.
        options: command-line options; None and empty tuples count as not given.

    Returns:
        A `kind`.

    Raises:
        UsageError: PA380-PA384, with file and line, or key and near match.
    """
    body: dict[str, Any] = {}
    names = []
    for path in files:
        body = merge(body, read_yaml(path))
        names.append(str(path))
    assignments = list(assignments)
    body = apply_overrides(body, assignments)
    given = {key: value for key, value in (options or {}).items() if value is not None and value != ()}
    assigned = [each for each in assignments if split_assignment(each)[0][0] not in given]
    return check_config(kind, {**body, **given}, " + ".join(names) or "the command line", assigned)


def check_config(kind: type[Config], body: Mapping[str, Any], name: str, assignments: Sequence[str] = ()) -> Config:
    """Check plain data against a configuration's dataclass.

    Args:
        kind: the dataclass.
        body: plain data.
        name: where it came from, for errors.
        assignments: `a.b=value` that is in it already, for errors.

    Returns:
        A `kind`.

    Raises:
        UsageError: PA383, a key is unknown, missing or of the wrong form.
    """
    adapter = _adapter(kind)
    try:
        text = json.dumps(body, allow_nan=False)
    except (TypeError, ValueError) as error:
        unbounded = [key for key, value in body.items() if isinstance(value, float) and not math.isfinite(value)]
        if unbounded:
            raise UsageError(
                "PA383", f"{name}: {unbounded[0]} is {body[unbounded[0]]}. Give a finite number."
            ) from None
        raise UsageError("PA383", f"{name}: {error}. Use text, numbers, booleans, lists and mappings only.") from None
    try:
        checked: Config = adapter.validate_json(text)
        return checked
    except ValidationError as error:
        raise _as_usage_error(error, adapter, name, assignments) from None


def plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON data, in the words of the YAML file; `check_config` reads it back."""
    body: dict[str, Any] = _adapter(type(config)).dump_python(config, mode="json", by_alias=True)
    return body


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _as_usage_error(
    error: ValidationError, adapter: TypeAdapter[Any], name: str, assignments: Sequence[str]
) -> UsageError:
    """The most telling problem as one line: unknown keys first, then missing ones, then wrong values."""
    order = {"unexpected_keyword_argument": 0, "missing": 1, "missing_argument": 1}
    problems = sorted(error.errors(), key=lambda item: order.get(item["type"], 2))
    first = problems[0]
    kind = first["type"]
    more = f" ({len(problems)} problems; this is the first)" if len(problems) > 1 and kind not in _UNION else ""
    path = [str(part) for part in _yaml_path(first["loc"])]
    where = ".".join(path)
    name = _assigned(path, assignments) or name
    if kind == "unexpected_keyword_argument":
        known = _known_keys(adapter.json_schema(), first["loc"])
        inner = unknown_name(str(first["loc"][-1]), known, "key", code="PA383")
        group = ".".join(str(part) for part in _yaml_path(first["loc"][:-1]))
        place = f"{name}: in {group}, " if group else f"{name}: "
        return UsageError("PA383", place + inner.message + more)
    if order.get(kind) == 1:
        return UsageError("PA383", f"{name}: {where} is missing. Add it.{more}")
    if kind == "union_tag_invalid":
        context = first["ctx"]
        expected = [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]
        inner = unknown_name(str(context["tag"]), expected, "kind", code="PA383")
        return UsageError("PA383", f"{name}: {where}.kind: {inner.message}{more}")
    said = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict) else f", got {_shown(first['input'])}"
    quoted = kind in {"int_type", "float_type"} and isinstance(first["input"], str)
    quoted = quoted and not isinstance(parse_value(first["input"]), str)
    advice = "Write it without quotes." if quoted else "Correct it."
    subject = f"{where}: " if where else ""
    return UsageError("PA383", f"{name}: {subject}{said[:1].lower()}{said[1:]}{got}. {advice}{more}")


def _assigned(path: Sequence[str], assignments: Sequence[str]) -> str | None:
    """The last `--set` that gave the value at a path, or a group that it lies in; None where a file did."""
    for assignment in reversed(assignments):
        keys, _ = split_assignment(assignment)
        if keys == list(path[: len(keys)]):
            return f"--set {assignment if len(assignment) <= _SHOWN else assignment[:_SHOWN] + '...'}"
    return None


def _shown(value: Any) -> str:
    """A value as YAML would have it: text in quotes, all else without."""
    return repr(value[:_SHOWN]) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)[:_SHOWN]


_SHOWN = 60
_UNION = {"int_type", "string_type", "literal_error", "tuple_type", "float_type"}


def _yaml_path(location: tuple[int | str, ...]) -> list[int | str]:
    """The location without the tags that pydantic adds for unions."""
    return [
        part
        for index, part in enumerate(location)
        if not (index and part in KINDS and location[index - 1] == "objective")
        and not (isinstance(part, str) and ("[" in part or (index and part in {"int", "str", "float", "tuple"})))
    ]


def _known_keys(schema: dict[str, Any], location: tuple[int | str, ...]) -> list[str]:
    """Keys allowed where an unknown one was found, from the JSON schema."""
    definitions = schema.get("$defs", {})

    def resolved(node: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in node:
            node = definitions[node["$ref"].rsplit("/", 1)[-1]]
        for option in node.get("anyOf", ()):
            if "$ref" in option:
                return resolved(option)
        return node

    node = resolved(schema)
    for part in location[:-1]:
        mapping = node.get("discriminator", {}).get("mapping", {})
        if part in mapping:
            node = resolved({"$ref": mapping[part]})
        elif part in node.get("properties", {}):
            node = resolved(node["properties"][part])
    return sorted(node.get("properties", {}))
