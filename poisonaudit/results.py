"""Every result as a frozen dataclass with one JSON form; readers of stored runs need nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

AUDIT_SCHEMA = "poisonaudit/audit/1"
ATTACK_SCHEMA = "poisonaudit/attack/1"
COMPARISON_SCHEMA = "poisonaudit/comparison/1"

_ATTACK_MAPPINGS = {
    "recipe", "budget", "predicted", "retrained", "control", "detectors", "cost", "inputs", "environment", "baselines",
    "inspection", "verified_cost",
}  # fmt: skip
_ATTACK_SEQUENCES = {"rows", "history", "pictures", "hardening", "notes"}

Kind = Literal["exact", "upper", "lower", "estimate", "statistic"]
Direction = Literal["lower_is_safer", "higher_is_safer", "neutral"]


@dataclass(frozen=True)
class Validity:
    """May this number be trusted, and if not, why not.

    Attributes:
        ok: True if no reason against it was found.
        reasons: one sentence per reason against.
        details: the figures the decision rests on (relative gradient, rank, phi, ...).
    """

    ok: bool
    reasons: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """One audited number.

    Attributes:
        id: dotted name of the contract, e.g. `solution.modulus`.
        value: the number; None where it is infinite, not applicable, skipped or failed (see `status`).
        unit: what the number counts, in words.
        kind: exact, upper bound, lower bound, estimate or statistic.
        direction: which way is safer.
        valid: False if the number must not be used, for `reason`.
        reason: why it is not valid, or a remark.
        details: everything behind the number. `infinite: true` stands for an infinite value; `status` is one of
            "measured", "not applicable", "skipped", "failed".
        seconds: wall time.
    """

    id: str
    value: float | None
    unit: str
    kind: Kind
    direction: Direction
    valid: bool = True
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def infinite(self) -> bool:
        """True if the measured value is infinite."""
        return bool(self.details.get("infinite", False))

    @property
    def status(self) -> str:
        """measured, not applicable, skipped or failed."""
        return str(self.details.get("status", "measured"))

    @property
    def number(self) -> float | None:
        """The value, with infinity where `details` says so."""
        return math.inf if self.infinite else self.value


@dataclass(frozen=True)
class GateOutcome:
    """What one `--fail-on` rule said.

    Attributes:
        rule: as the user wrote it.
        outcome: PASS, FAIL or INCONCLUSIVE.
        fact: one sentence with the number.
        subject: the model or run it was applied to.
    """

    rule: str
    outcome: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    fact: str
    subject: str = ""


@dataclass(frozen=True)
class AuditResult:
    """Scores of one model, `audit.json` in a run.

    Attributes:
        model: name as given.
        data: name as given.
        measures: id -> Measure, in the order they were run.
        inputs: input name -> sha256.
        environment: versions, threads, device, platform.
        seed: the seed used.
        recipe: how the model was trained, as far as known (loss, decay, split, dtype, accuracies, warnings, ...).
        gates: outcomes of `--fail-on`.
    """

    model: str
    data: str
    measures: Mapping[str, Measure]
    inputs: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    gates: Sequence[GateOutcome] = ()

    def to_frame(self) -> pd.DataFrame:
        """One row per measure: id, value, unit, kind, direction, valid, reason, seconds."""
        import pandas as pd

        columns = ["id", "value", "unit", "kind", "direction", "valid", "reason", "seconds"]
        records = [{**dataclasses.asdict(m), "value": m.number} for m in self.measures.values()]
        return pd.DataFrame.from_records(records, columns=columns)

    def to_json(self) -> dict[str, Any]:
        """The `poisonaudit/audit/1` form; holds no NaN or Infinity."""
        fields = {name: getattr(self, name) for name in ("model", "data", "inputs", "environment", "seed", "recipe")}
        body = {"schema": AUDIT_SCHEMA, **fields}
        body["measures"] = [measure_to_json(measure) for measure in self.measures.values()]
        body["gates"] = [dataclasses.asdict(gate) for gate in self.gates]
        return finite(body)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> AuditResult:
        """Read the stored form."""
        measures = {item["id"]: Measure(**item) for item in body["measures"]}
        gates = tuple(GateOutcome(**gate) for gate in body.get("gates", ()))
        known = {key: body[key] for key in ("inputs", "environment", "seed", "recipe") if key in body}
        return cls(model=body["model"], data=body["data"], measures=measures, gates=gates, **known)


@dataclass(frozen=True)
class AttackResult:
    """One crafted poison, predicted beside retrained, `attack.json` in a run.

    Attributes:
        name: of the recipe or configuration.
        model: name as given.
        data: name as given.
        recipe: the resolved configuration (objective, budget, training).
        budget: rows, share, norm, radius, unit, box, choice.
        rows: ids of the poisoned training rows in the data's own order.
        predicted: outcome of the linear or path prediction (see `verify.outcome`).
        retrained: {"warm": {...}, "fresh": [{"seed": ...}], "summary": {...}}.
        control: the same from unpoisoned data on the same seeds.
        history: one entry per crafting step.
        pictures: clean beside poisoned rows, for the report.
        detectors: name -> what a poison detector found: {"applicable", "reason", "precision", "recall",
            "false_positive_rate", "auroc", "flagged", "recall_at_poisoned", "filtered": {"warm", "fresh"}}.
        hardening: the verified cost for variants of the victim, one entry each (`verify.Hardened`).
        cost: seconds, products and gradients by stage.
        inputs: input name -> sha256.
        environment: versions, threads, device, platform.
        seed: the seed used.
        gates: outcomes of `--fail-on`.
        baselines: name -> another attack on the same rows, budget and retraining: {"applicable", "reason",
            "retrained" (as above), "cost": {"seconds", "gradients", "products"}, "notes"}.
        inspection: ranking name -> how early its order of rows to inspect meets the poisoned ones: {"recall_at":
            {share: recall}, "average_precision", "expected_average_precision" (of a random order)}.
        verified_cost: the smallest budget at which retraining confirmed success: {"over": "rows" or "radius",
            "value" (None where none was found), "unit", "lower" (largest shown not to succeed), "upper" (smallest
            shown to succeed), "predicted", "trials", "reason"}.
        notes: what else there is to know of the poison, in sentences (columns that cannot move, rows outside the box).
    """

    name: str
    model: str
    data: str
    recipe: Mapping[str, Any]
    budget: Mapping[str, Any]
    rows: Sequence[int]
    predicted: Mapping[str, Any]
    retrained: Mapping[str, Any]
    control: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = ()
    pictures: Sequence[Mapping[str, Any]] = ()
    detectors: Mapping[str, Any] = field(default_factory=dict)
    hardening: Sequence[Mapping[str, Any]] = ()
    cost: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    gates: Sequence[GateOutcome] = ()
    baselines: Mapping[str, Any] = field(default_factory=dict)
    inspection: Mapping[str, Any] = field(default_factory=dict)
    verified_cost: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """The `poisonaudit/attack/1` form; holds no NaN or Infinity."""
        body = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        body["gates"] = [dataclasses.asdict(gate) for gate in self.gates]
        return finite({"schema": ATTACK_SCHEMA, **body})

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> AttackResult:
        """Read the stored form; entries that are null or not there yet are empty."""
        gates = tuple(GateOutcome(**gate) for gate in body.get("gates") or ())
        known: dict[str, Any] = {}
        for item in dataclasses.fields(cls):
            if item.name == "gates" or item.name not in body:
                continue
            empty: Any = {} if item.name in _ATTACK_MAPPINGS else () if item.name in _ATTACK_SEQUENCES else None
            known[item.name] = empty if body[item.name] is None else body[item.name]
        return cls(**known, gates=gates)


@dataclass(frozen=True)
class Comparison:
    """Several audits and attacks side by side.

    Attributes:
        audits: worst model first.
        attacks: in the order of their models.
        gates: outcomes of `--fail-on` over all of them.
        environment: of the process that compared.
    """

    audits: Sequence[AuditResult]
    attacks: Sequence[AttackResult]
    gates: Sequence[GateOutcome] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row per measure id, one column per model; infinity where a value is infinite, NaN where there is none."""
        import pandas as pd

        columns = {
            name: {key: m.number for key, m in result.measures.items()}
            for name, result in zip(self.labels(), self.audits, strict=True)
        }
        return pd.DataFrame(columns, dtype=float).rename_axis("measure")

    def labels(self) -> list[str]:
        """A distinct name per audited model: where two share one, with what tells them apart (data, decay, seed)."""
        return distinct([audit.model for audit in self.audits], [qualifiers(audit) for audit in self.audits])

    def attack_labels(self) -> list[str]:
        """The name of each attack's model: that of the audited model it agrees with, else the model as given."""
        named = list(zip(self.labels(), self.audits, strict=True))

        def label(attack: AttackResult) -> str:
            # An attack's own seed is not its model's.
            facts = {key: told for key, told in qualifiers(attack).items() if key != "seed"}
            same = [
                name
                for name, audit in named
                if audit.model == attack.model
                and all(qualifiers(audit).get(key, told) == told for key, told in facts.items())
            ]
            return same[0] if len(same) == 1 else attack.model

        return [label(attack) for attack in self.attacks]

    def to_json(self) -> dict[str, Any]:
        """The `poisonaudit/comparison/1` form; holds no NaN or Infinity."""
        return finite(
            {
                "schema": COMPARISON_SCHEMA,
                "audits": [audit.to_json() for audit in self.audits],
                "attacks": [attack.to_json() for attack in self.attacks],
                "gates": [dataclasses.asdict(gate) for gate in self.gates],
                "environment": self.environment,
            }
        )

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Comparison:
        """Read the stored form."""
        return cls(
            audits=tuple(AuditResult.from_json(item) for item in body["audits"]),
            attacks=tuple(AttackResult.from_json(item) for item in body["attacks"]),
            gates=tuple(GateOutcome(**gate) for gate in body.get("gates", ())),
            environment=body.get("environment", {}),
        )


def qualifiers(result: AuditResult | AttackResult) -> dict[str, str]:
    """What can tell two models of one name apart, as short phrases."""
    told = {"data": f"on {result.data}"}
    for key in ("loss", "decay", "limit", "seed"):
        value = result.recipe.get(key)
        if value is not None:
            told[key] = f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
    return told


def distinct(names: Sequence[str], details: Sequence[Mapping[str, str]]) -> list[str]:
    """Make names distinct: add the first detail that differs among those of one name, then a running number."""
    told = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        same = [i for i, other in enumerate(names) if other == name]
        for key in details[same[0]]:
            if len({details[i].get(key) for i in same}) > 1:
                for i in same:
                    told[i] = f"{names[i]}, {details[i].get(key, key + ' unknown')}"
                break
    return [f"{n} #{told[: i + 1].count(n)}" if told.count(n) > 1 else n for i, n in enumerate(told)]


def measure_to_json(measure: Measure) -> dict[str, Any]:
    """A measure as plain data; infinity becomes `value: null` with `details.infinite`, NaN becomes invalid."""
    body = {item.name: getattr(measure, item.name) for item in dataclasses.fields(measure)}
    if measure.value is not None and math.isinf(measure.value):
        body.update(value=None, details={**measure.details, "infinite": True})
    elif measure.value is not None and math.isnan(measure.value):
        body.update(value=None, valid=False, reason=measure.reason or "the computation returned NaN")
    return finite(body)


def finite(value: Any) -> Any:
    """Plain JSON data: tensors and arrays become lists, NaN and infinity become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, Iterable):
        return [finite(item) for item in value]
    return str(value)
