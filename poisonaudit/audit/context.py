"""What a measure gets to see, and the memory in which measures of one family share their work."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from poisonaudit.problem import Problem

Value = TypeVar("Value")
Progress = Callable[[str, float | None], None]

# Seconds above which a measure is skipped unless it was named.
COST_LIMIT = 300.0


@dataclass(frozen=True)
class Context:
    """One model under audit.

    Attributes:
        problem: the trained model with its training rows.
        test: (x_test, y_test), or None.
        rows: positions of the training rows that are measured, or None for all.
        seed: of everything drawn.
        classification: whether the outputs are class scores.
        box: (lower, upper) of the inputs, each shaped like a row, or None.
        row_ids: name of every training row in the data's own order, or None for its position.
        image_shape: (channels, height, width) of a row as a picture, or None.
        feature_names: names of a row's entries, or none.
        named: ids the user asked for one by one: these run whatever they cost.
        progress: called with a message and a fraction.
    """

    problem: Problem
    test: tuple[Tensor, Tensor] | None = None
    rows: Tensor | None = None
    seed: int = 0
    classification: bool = True
    box: tuple[Tensor, Tensor] | None = None
    row_ids: Sequence[int] | None = None
    image_shape: tuple[int, ...] | None = None
    feature_names: tuple[str, ...] = ()
    named: frozenset[str] = frozenset()
    progress: Progress | None = None
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """Compute a value the first time it is asked for; an error is kept and raised again, lack of memory excepted.

        Args:
            key: name of the value.
            compute: makes it.

        Returns:
            The value.

        Raises:
            Exception: what `compute` raised, now or the first time.
        """
        if key not in self._kept:
            try:
                self._kept[key] = compute()
            except (MemoryError, torch.OutOfMemoryError):
                # A kept error would hold on to the tensors of its frames.
                raise
            except Exception as error:
                self._kept[key] = error
                raise
        kept = self._kept[key]
        if isinstance(kept, Exception):
            raise kept
        value: Value = kept
        return value

    @property
    def model(self) -> nn.Module:
        """The model in eval mode, a copy shared by the measures; none of them changes it."""
        return self.once("model", self.problem.module)

    @property
    def evaluation_rows(self) -> Tensor:
        """The test inputs; the training inputs where there are none."""
        return self.problem.x if self.test is None else self.test[0]

    @property
    def evaluation_labels(self) -> Tensor:
        """Labels of `evaluation_rows`: class numbers (n,) for classification, targets otherwise."""
        labels = self.problem.y if self.test is None else self.test[1]
        return labels.argmax(1) if self.classification and labels.is_floating_point() and labels.dim() == 2 else labels

    @property
    def evaluated_on(self) -> str:
        """In words, for details."""
        return f"{len(self.evaluation_rows)} {'training' if self.test is None else 'test'} rows"

    @property
    def outputs(self) -> int:
        """Number of outputs of one row."""
        with torch.no_grad():
            return self.once("outputs", lambda: self.problem.outputs(x=self.problem.x[:1]).numel())

    @property
    def has_classes(self) -> bool:
        """Whether measures about classes apply: class labels, and at least two outputs."""
        labels = self.evaluation_labels
        return self.classification and self.outputs >= 2 and labels.dim() == 1 and not labels.is_floating_point()

    def too_dear(self, measure: str, seconds: float) -> str:
        """Reason to skip a measure of this estimated cost, or nothing."""
        if seconds <= COST_LIMIT or measure in self.named:
            return ""
        return f"skipped: cost, about {seconds / 60:.0f} minutes; name {measure} to run it"
