"""What a run stored is read only where its entries are of the types that the commands compute with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from poisonaudit.quantities import PAIRED, QUANTITIES, flat_outcome

# Entries of outcomes that are numbers; everything else in them is told as it is.
_FIGURES = {
    *PAIRED, *(quantity.key for quantity in QUANTITIES.values() if quantity.key != "success"), "displacement_norm",
    "cosine", "test_accuracy", "test_loss", "train_accuracy", "train_loss", "relative_gradient", "phi", "kernel_share",
}  # fmt: skip
_FLAGS = {"success", "converged", "valid"}
_COSTS = ("value", "lower", "upper", "predicted")
_VARIANT = ("rows", "kappa", "test_accuracy", "predicted", "value")


def check_training(body: Mapping[str, Any]) -> None:
    """The entries of `train.json` that an audit or an attack goes by.

    Args:
        body: as read.

    Raises:
        ValueError: an entry is missing or of another type.
    """
    for key in ("model", "data", "weights_sha256"):
        _must(isinstance(body.get(key), str), key, "a text", body.get(key))
    for key in ("loss", "dtype"):
        _must(body.get(key) is None or isinstance(body[key], str), key, "a text", body.get(key))
    decay = body.get("decay")
    _must(isinstance(decay, int | float) and _is_number(decay) and decay >= 0, "decay", "a number >= 0", decay)
    _must(_is_whole(body.get("seed")), "seed", "a whole number", body.get("seed"))
    _must(body.get("limit") is None or _is_whole(body["limit"]), "limit", "a whole number", body.get("limit"))
    ids = body.get("train_ids")
    _must(isinstance(ids, list) and all(map(_is_whole, ids)), "train_ids", "a list of whole numbers", ids)
    for key in ("train_accuracy", "test_accuracy", "relative_gradient"):
        _must_be_number(body, key, "")


def check_audit(body: Mapping[str, Any]) -> None:
    """The entries of `audit.json` that a comparison or a report computes with.

    Args:
        body: as read.

    Raises:
        ValueError: an entry is missing or of another type.
    """
    _check_common(body)
    measures = body.get("measures")
    _must(isinstance(measures, list), "measures", "a list", measures)
    for position, measure in enumerate(measures or ()):
        where = f"measures[{position}]"
        _must(isinstance(measure, dict), where, "a mapping", measure)
        for key in ("id", "unit", "kind", "direction"):
            _must(isinstance(measure.get(key), str), f"{where}.{key}", "a text", measure.get(key))
        _must(isinstance(measure.get("valid", True), bool), f"{where}.valid", "true or false", measure.get("valid"))
        _must(isinstance(measure.get("reason", ""), str), f"{where}.reason", "a text", measure.get("reason"))
        _must(isinstance(measure.get("details", {}), dict), f"{where}.details", "a mapping", measure.get("details"))
        for key in ("value", "seconds"):
            _must_be_number(measure, key, f"{where}.")


def check_attack(body: Mapping[str, Any]) -> None:
    """The entries of `attack.json` that a comparison or a report computes with; null ones count as not there.

    Args:
        body: as read.

    Raises:
        ValueError: an entry is missing or of another type.
    """
    _must(isinstance(body.get("name"), str), "name", "a text", body.get("name"))
    _check_common(body)
    for key in ("budget", "predicted", "retrained", "control", "detectors", "cost", "baselines", "inspection",
                "verified_cost"):  # fmt: skip
        _must(isinstance(body.get(key) or {}, dict), key, "a mapping", body.get(key))
    for key in ("rows", "history", "pictures", "hardening", "notes"):
        _must(isinstance(body.get(key) or [], list), key, "a list", body.get(key))
    _must(all(map(_is_whole, body.get("rows") or ())), "rows", "a list of whole numbers", body.get("rows"))
    _must_be_number(body.get("budget") or {}, "radius", "budget.")
    predicted = body.get("predicted") or {}
    _check_outcome(predicted, "predicted")
    for key in ("linear", "path"):
        _check_outcome(predicted.get(key), f"predicted.{key}")
    for side in ("retrained", "control"):
        _check_trainings(body.get(side), side)
    for name, rival in (body.get("baselines") or {}).items():
        _must(isinstance(rival, dict), f"baselines.{name}", "a mapping", rival)
        _check_trainings(rival.get("retrained"), f"baselines.{name}.retrained")
    for position, line in enumerate(body.get("history") or ()):
        _must(isinstance(line, dict), f"history[{position}]", "a mapping", line)
    for key in _COSTS:
        _must_be_number(body.get("verified_cost") or {}, key, "verified_cost.")
    for position, variant in enumerate(body.get("hardening") or ()):
        _must(isinstance(variant, dict), f"hardening[{position}]", "a mapping", variant)
        for key in _VARIANT:
            _must_be_number(variant, key, f"hardening[{position}].")


def check_comparison(body: Mapping[str, Any]) -> None:
    """The audits and attacks of `comparison.json`.

    Args:
        body: as read.

    Raises:
        ValueError: an entry is missing or of another type.
    """
    _check_gates(body)
    for key, check in (("audits", check_audit), ("attacks", check_attack)):
        entries = body.get(key)
        _must(isinstance(entries, list) and all(isinstance(each, dict) for each in entries), key, "a list", entries)
        for each in entries or ():
            check(each)


CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "train.json": check_training,
    "audit.json": check_audit,
    "attack.json": check_attack,
    "comparison.json": check_comparison,
}


def _check_common(body: Mapping[str, Any]) -> None:
    for key in ("model", "data"):
        _must(isinstance(body.get(key), str), key, "a text", body.get(key))
    for key in ("inputs", "environment", "recipe"):
        _must(isinstance(body.get(key) or {}, dict), key, "a mapping", body.get(key))
    _must(_is_whole(body.get("seed", 0)), "seed", "a whole number", body.get("seed"))
    _check_gates(body)


def _check_gates(body: Mapping[str, Any]) -> None:
    gates = body.get("gates") or []
    _must(isinstance(gates, list), "gates", "a list", gates)
    for position, gate in enumerate(gates):
        texts = isinstance(gate, dict) and all(isinstance(text, str) for text in gate.values())
        _must(texts, f"gates[{position}]", "a mapping of texts", gate)


def _check_trainings(side: Any, where: str) -> None:
    _must(side is None or isinstance(side, dict), where, "a mapping", side)
    for kind, stored in (side or {}).items():
        if kind == "warm":
            _check_outcome(stored, f"{where}.warm")
        elif kind in ("fresh", "tight", "loose", "trainer"):
            _must(stored is None or isinstance(stored, list), f"{where}.{kind}", "a list", stored)
            for position, each in enumerate(stored or ()):
                _check_outcome(each, f"{where}.{kind}[{position}]")


def _check_outcome(stored: Any, where: str) -> None:
    _must(stored is None or isinstance(stored, dict), where, "a mapping", stored)
    flat = flat_outcome(stored)
    for key in _FIGURES & flat.keys():
        _must_be_number(flat, key, f"{where}.")
    for key in _FLAGS & flat.keys():
        _must(flat[key] is None or isinstance(flat[key], bool), f"{where}.{key}", "true or false", flat[key])


def _must_be_number(body: Mapping[str, Any], key: str, where: str) -> None:
    value = body.get(key)
    _must(value is None or _is_number(value), f"{where}{key}", "a finite number", value)


def _must(fits: bool, where: str, expected: str, got: Any) -> None:
    if not fits:
        shown = repr(got)
        raise ValueError(f"{where} is {shown if len(shown) <= 40 else shown[:39] + '…'}, not {expected}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
