"""What a configuration may say: one frozen dataclass per command, checked by pydantic, unknown keys refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from poisonaudit.arguments import MOST_DAMPING
from poisonaudit.config.fields import (
    RULES,
    Count,
    Label,
    NonNegative,
    Positive,
    Radius,
    RowIds,
    Seed,
    Share,
    Text,
    refuse_repeated,
)
from poisonaudit.config.objectives import ObjectiveConfig


@dataclass(frozen=True, kw_only=True, config=RULES)
class TrainConfig:
    """A victim to train; see `poisonaudit train`."""

    model: Text
    data: Text
    loss: Text | None = None
    decay: NonNegative = 1e-3
    tolerance: Positive = 1e-10
    max_gradients: Count | None = None
    seed: Seed = 0
    limit: Count | None = None
    device: Text = "cpu"


@dataclass(frozen=True, kw_only=True, config=RULES)
class AuditConfig:
    """One model to score: a training run, or model, weights and data; see `poisonaudit audit`."""

    run: Text | None = None
    model: Text | None = None
    weights: Text | None = None
    data: Text | None = None
    loss: Text | None = None
    decay: NonNegative | None = None
    tolerance: Positive = 1e-10
    measures: tuple[Text, ...] | None = None
    rows: Count | None = None
    polish: bool = False
    fail_on: tuple[Text, ...] = ()
    seed: Seed = 0
    limit: Count | None = None
    device: Text = "cpu"

    @model_validator(mode="after")
    def _needs_a_model(self) -> AuditConfig:
        if self.run is None:
            absent = [name for name in ("model", "weights", "data") if getattr(self, name) is None]
            if absent:
                raise ValueError(f"no training run is given and {_listed(absent)} missing; give RUN, or all three")
        return self


@dataclass(frozen=True, kw_only=True, config=RULES)
class CompareConfig:
    """Stored runs to put side by side; see `poisonaudit compare`."""

    runs: Annotated[tuple[Text, ...], Field(min_length=1)]
    fail_on: tuple[Text, ...] = ()
    measures: tuple[Text, ...] | None = None
    rows: Count | None = None
    seed: Seed = 0
    limit: Count | None = None
    device: Text = "cpu"


@dataclass(frozen=True, kw_only=True, config=RULES)
class Training:
    """How tightly the clean victim is trained."""

    tolerance: Positive = 1e-10


@dataclass(frozen=True, kw_only=True, config=RULES)
class BudgetConfig:
    """What the poisoner may change: how many rows, each by how much, inside which box."""

    rows: Count | None = None
    share: Share | None = None
    norm: Literal["linf", "l2", "l1", "l0"] = "linf"
    radius: Radius
    entries: Count | None = None
    box: Literal["data", "none"] | tuple[float, float] = "data"
    choice: Literal["adjoint", "kappa", "class", "random"] | RowIds = "adjoint"
    row_class: Label | None = None
    immutable: tuple[int | Text, ...] = ()
    integer: tuple[int | Text, ...] = ()
    scale: dict[Text, Positive] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_amount(self) -> BudgetConfig:
        named = isinstance(self.choice, tuple)
        if (self.rows is not None) + (self.share is not None) + named != 1:
            raise ValueError("give exactly one of rows (a count), share (of all rows) and choice (row ids)")
        if isinstance(self.choice, tuple):
            refuse_repeated(self.choice, "choice")
        if self.row_class is not None and self.choice != "class":
            raise ValueError("row_class goes with choice: class, and with no other")
        if isinstance(self.box, tuple) and not self.box[0] < self.box[1]:
            raise ValueError("box must be [lower, upper] with lower < upper")
        if (self.norm == "l0") != (self.entries is not None):
            raise ValueError("entries (how many entries of a row may move) goes with norm l0, and with no other")
        return self


@dataclass(frozen=True, kw_only=True, config=RULES)
class CraftConfig:
    """How the poison is worked on; see `poisonaudit.attack.craft`.

    `solutions` counts the trained solutions that are attacked together, `members` those sampled from the solution set
    beside each; `damping` is that of method pgd. `outer: training` trains each step by the owner's own procedure: the
    trainer that `retrain` names, else loosely.
    """

    steps: Annotated[int, Field(ge=1, le=1000)] = 12
    method: Literal["auto", "corner", "pgd", "apg", "adam", "lbfgsb"] = "auto"
    outer: Literal["retrain", "path", "training"] = "retrain"
    solutions: Annotated[int, Field(ge=1, le=1000)] = 1
    members: Annotated[int, Field(ge=0, le=1000)] = 0
    aggregate: Literal["mean", "worst"] = "mean"
    max_products: Count | None = None
    damping: Annotated[float, Field(ge=0, le=MOST_DAMPING)] | None = None


def _none_of(value: Any) -> Any:
    """`false` is short for 0."""
    return 0 if value is False else value


@dataclass(frozen=True, kw_only=True, config=RULES)
class RetrainConfig:
    """How the prediction is checked: one warm retraining, and others from new seeds, each with a control.

    `fresh` seeds are trained tightly, and by `trainer` (file.py:train) where one is named; `loose` seeds (default: as
    many; 0 or `false` for none) loosely, by `loose_epochs` of Adam.
    """

    fresh: Annotated[int, Field(ge=0, le=1000)] = 5
    # Beyond, what counts as tight training has hardly begun (see `verify.retraining.COARSEST`).
    tolerance: Annotated[float, Field(gt=0, le=1e-3, allow_inf_nan=False)] = 1e-10
    loose: Annotated[Annotated[int, Field(ge=0, le=1000)] | None, BeforeValidator(_none_of)] = None
    loose_epochs: Count = 40
    trainer: Text | None = None

    @model_validator(mode="after")
    def _trainer_needs_seeds(self) -> RetrainConfig:
        if self.trainer is not None and self.fresh == 0:
            raise ValueError("a trainer is named, but fresh is 0; give fresh: 5")
        return self


@dataclass(frozen=True, kw_only=True, config=RULES)
class SearchConfig:
    """The smallest budget that retraining confirms; `low`, `high` and `precision` as in `verify.verified_cost`."""

    over: Literal["radius", "rows"] = "radius"
    low: Radius | None = None
    high: Radius | None = None
    precision: Annotated[float, Field(ge=0, lt=1)] | None = None
    need: Count | None = None

    @model_validator(mode="after")
    def _ordered(self) -> SearchConfig:
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError("low must lie below high")
        if self.over == "rows" and any(end is not None and not end.is_integer() for end in (self.low, self.high)):
            raise ValueError("low and high count rows; give whole numbers")
        if self.over == "radius" and self.precision == 0:
            raise ValueError("precision must be > 0 for a radius")
        return self


@dataclass(frozen=True, kw_only=True, config=RULES)
class HardeningConfig:
    """Variants of the victim whose cost is searched too: other decays, and shares of the training rows."""

    decays: tuple[NonNegative, ...] = ()
    row_shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()

    @model_validator(mode="after")
    def _some(self) -> HardeningConfig:
        if not self.decays and not self.row_shares:
            raise ValueError("give decays, row_shares, or both")
        return self


def _named(value: Any) -> Any:
    """`all`, a name, a list of names and `{name: options}`, or one mapping of all: name -> options."""
    if isinstance(value, str):
        return {value: {}}
    if not isinstance(value, list):
        whole = {} if value is None or value is False else value
        return {key: options or {} for key, options in whole.items()} if isinstance(whole, dict) else whole
    found: dict[Any, Any] = {}
    for item in value:
        one = {item: {}} if isinstance(item, str) else item
        if not isinstance(one, dict) or found.keys() & one.keys():
            raise ValueError("give names, or {name: {option: value}}, each name once")
        found |= {name: options or {} for name, options in one.items()}
    return found


Baselines = Annotated[dict[Text, dict[Text, Any]], BeforeValidator(_named)]


@dataclass(frozen=True, kw_only=True, config=RULES)
class DetectorsConfig:
    """Poison detectors, run on the poisoned rows at the weights that warm retraining reached.

    `names`: all without it. `filter`: train again without the rows that each flags. `share`: of the rows that the
    defender expects to be poisoned; without it 1.5 times the truth.
    """

    names: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    filter: bool = False
    share: Annotated[float, Field(gt=0, lt=1)] | None = None


def _detectors(value: Any) -> Any:
    """`false`, `true`, `all` and a list of names are short for the whole."""
    if value is False:
        return None
    if value is True or value == "all":
        return {}
    if isinstance(value, list):
        return {"names": tuple(value)} if value else None
    if isinstance(value, dict) and isinstance(value.get("names"), list):
        return {**value, "names": tuple(value["names"])}
    return value


Detectors = Annotated[DetectorsConfig | None, BeforeValidator(_detectors)]


@dataclass(frozen=True, kw_only=True, config=RULES)
class AttackConfig:
    """One poisoning attack; see `attacks/` and `poisonaudit attack`."""

    name: Text = "attack"
    description: str = ""
    model: Text | None = None
    data: Text | None = None
    victim: Text | None = None
    weights: Text | None = None
    loss: Text | None = None
    decay: NonNegative | None = None
    seed: Seed = 0
    limit: Count | None = None
    device: Text = "cpu"
    training: Training = Field(default_factory=Training)
    objective: Annotated[ObjectiveConfig, Field(discriminator="kind")]
    budget: BudgetConfig
    craft: CraftConfig = Field(default_factory=CraftConfig)
    retrain: RetrainConfig = Field(default_factory=RetrainConfig)
    search: SearchConfig | None = None
    hardening: HardeningConfig | None = None
    baselines: Baselines = Field(default_factory=dict)
    detectors: Detectors = Field(default_factory=DetectorsConfig)
    inspection: bool = True
    export: tuple[Literal["npz", "folder"], ...] = ("npz",)
    fail_on: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _search_fits(self) -> AttackConfig:
        if self.hardening is not None and self.search is None:
            raise ValueError("hardening compares verified costs; add search, {over: radius} for example")
        if self.search is not None and not (self.search.need or 1) <= self.retrain.fresh:
            raise ValueError("search needs fresh retrainings; raise retrain.fresh, or lower search.need")
        if self.search is not None and self.search.over == "rows" and isinstance(self.budget.choice, tuple):
            raise ValueError("search over rows cannot go with budget.choice, which names the rows")
        return self

    @model_validator(mode="after")
    def _needs_a_victim(self) -> AttackConfig:
        if self.victim is None:
            absent = [name for name in ("model", "data") if getattr(self, name) is None]
            if absent:
                raise ValueError(f"{_listed(absent)} missing; give model and data, or victim (a training run)")
        elif self.weights is not None:
            raise ValueError("victim and weights exclude each other; a training run has its own weights")
        return self


def _listed(names: list[str]) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'}"
