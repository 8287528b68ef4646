"""What a recipe may ask for: one dataclass per kind of objective, and where target weights come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from poisonaudit.config.fields import RULES, Count, Label, Positive, RowIds, Share, Text, refuse_repeated

Surrogate = Literal["margin", "cross_entropy"]


@dataclass(frozen=True, kw_only=True, config=RULES)
class LabelFlips:
    """Rows of class `from` are labelled `to`, and the weights training then reaches are the target."""

    source: Label = Field(alias="from")
    target: Label = Field(alias="to")
    count: Count | None = None
    rows: RowIds | None = None

    @model_validator(mode="after")
    def _one_choice(self) -> LabelFlips:
        if (self.count is None) == (self.rows is None):
            raise ValueError("give either count (how many rows) or rows (their ids)")
        if self.source == self.target:
            raise ValueError("from and to are the same class")
        return self


@dataclass(frozen=True, kw_only=True, config=RULES)
class DirectionConfig:
    """Weights at `length |wbar|` from the clean ones along a direction of weight space, see `weights_along`."""

    along: Literal["random", "flattest", "steepest"]
    length: Positive = 0.1


@dataclass(frozen=True, kw_only=True, config=RULES)
class FineTune:
    """Training goes on from the clean weights on other rows, and where it ends is the target.

    The other rows are exactly one of: `data` (the training rows of another data set with the same inputs and classes),
    `rows` (only these of the victim's own training rows, by id), `without_class` (all of them but this class).
    """

    data: Text | None = None
    rows: RowIds | None = None
    without_class: Label | None = None

    @model_validator(mode="after")
    def _one_choice(self) -> FineTune:
        if sum(each is not None for each in (self.data, self.rows, self.without_class)) != 1:
            raise ValueError("give exactly one of data (another data set), rows (ids) and without_class")
        refuse_repeated(self.rows, "rows")
        return self


@dataclass(frozen=True, kw_only=True, config=RULES)
class WeightSource:
    """Where target weights come from: exactly one of `label_flips`, `file`, `direction` and `fine_tune`."""

    label_flips: LabelFlips | None = None
    file: Text | None = None
    direction: DirectionConfig | None = None
    fine_tune: FineTune | None = None

    @model_validator(mode="after")
    def _one_source(self) -> WeightSource:
        given = (self.label_flips, self.file, self.direction, self.fine_tune)
        if sum(each is not None for each in given) != 1:
            raise ValueError("give exactly one of label_flips, file, direction and fine_tune")
        return self


@dataclass(frozen=True, kw_only=True, config=RULES)
class TargetWeightsConfig:
    """Move the weights that training reaches toward target weights; with `layers` only those parameters count."""

    kind: Literal["target_weights"]
    source: WeightSource
    success_at: Positive | None = 0.5
    layers: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None


@dataclass(frozen=True, kw_only=True, config=RULES)
class TargetRegionConfig:
    """Push training into a region given by target weights w_t, with v = w_t - wbar.

    `half_space`: `{w : <v, w - wbar> >= share |v|^2}`, so `share` of the way to w_t or further, wherever beside it.
    `ball`: `{w : |w - w_t| <= share |v|}`, so no further from w_t than `share` of the clean distance; `share` is then
    below 1, for the clean weights lie in the ball otherwise.
    """

    kind: Literal["target_region"]
    source: WeightSource
    shape: Literal["half_space", "ball"] = "half_space"
    share: Positive = 0.5

    @model_validator(mode="after")
    def _to_be_reached(self) -> TargetRegionConfig:
        if self.shape == "ball" and self.share >= 1.0:
            raise ValueError(f"share is {self.share:g}, so the clean weights lie in the ball; give a share below 1")
        return self


@dataclass(frozen=True, kw_only=True, config=RULES)
class MatchPredictionsConfig:
    """Make the model answer on training or test rows as the target weights would."""

    kind: Literal["match_predictions"]
    source: WeightSource
    rows: Literal["train", "test"] = "train"
    distance: Literal["outputs", "divergence"] = "outputs"
    success_at: Share | None = None


@dataclass(frozen=True, kw_only=True, config=RULES)
class MembershipConfig:
    """Make the target weights a stationary point of the poisoned training, which training need not go to."""

    kind: Literal["membership"]
    source: WeightSource
    success_at: Positive | None = 0.5


@dataclass(frozen=True, kw_only=True, config=RULES)
class FlipConfig:
    """Make training misjudge one chosen test row."""

    kind: Literal["flip"]
    test_row: int | Literal["lowest_margin", "median_margin"] = "lowest_margin"
    label: int | Text = "runner_up"
    surrogate: Surrogate = "margin"


@dataclass(frozen=True, kw_only=True, config=RULES)
class FlipsConfig:
    """Make training misjudge several test rows by one poison.

    The rows are `test_rows` (ids), or `count` of those that the clean model judges rightly: those of lowest margin,
    those about the median margin, or drawn by the recipe's seed. `label`: runner_up, one class for all, or a list with
    one class for each of `test_rows`.
    """

    kind: Literal["flips"]
    test_rows: RowIds | None = None
    count: Count | None = None
    choose: Literal["lowest_margin", "median_margin", "random"] = "lowest_margin"
    label: int | Text | tuple[int | Text, ...] = "runner_up"
    success_at: Share = 1.0
    surrogate: Surrogate = "margin"

    @model_validator(mode="after")
    def _rows_and_labels_fit(self) -> FlipsConfig:
        if (self.test_rows is None) == (self.count is None):
            raise ValueError("give either test_rows (ids) or count (how many)")
        refuse_repeated(self.test_rows, "test_rows")
        if isinstance(self.label, tuple) and (self.test_rows is None or len(self.label) != len(self.test_rows)):
            raise ValueError("a list of labels needs test_rows, as many of them")
        return self


@dataclass(frozen=True, kw_only=True, config=RULES)
class ValidationLossConfig:
    """Raise the mean loss on test rows: on all, or on the first `count`."""

    kind: Literal["validation_loss"]
    rows: Literal["test"] = "test"
    count: Count | None = None
    success_at: Positive | None = None


@dataclass(frozen=True, kw_only=True, config=RULES)
class GroupAccuracyConfig:
    """Lower the accuracy on a group of test rows: those of one class, or those named by id."""

    kind: Literal["group_accuracy"]
    group_class: Label | None = Field(alias="class", default=None)
    test_rows: RowIds | None = None
    success_at: Share | None = None
    temperature: Positive | None = None

    @model_validator(mode="after")
    def _one_group(self) -> GroupAccuracyConfig:
        if (self.group_class is None) == (self.test_rows is None):
            raise ValueError("give either class (a label) or test_rows (ids)")
        refuse_repeated(self.test_rows, "test_rows")
        return self


# Those with a source of target weights.
WithSource = TargetWeightsConfig | TargetRegionConfig | MatchPredictionsConfig | MembershipConfig
ObjectiveConfig = WithSource | FlipConfig | FlipsConfig | ValidationLossConfig | GroupAccuracyConfig
KINDS = (
    "target_weights", "target_region", "match_predictions", "membership", "flip", "flips", "validation_loss",
    "group_accuracy",
)  # fmt: skip
