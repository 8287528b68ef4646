"""Test loss and accuracy estimated without test labels (Daroczy, section 4), beside "test = train" and errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused, expect_kind, wrong_type
from poisonaudit.tangent.factors import BASELINE, EQUATIONS, Factor, sensitivity_factors

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Estimate:
    """What one equation says of the test rows.

    Attributes:
        name: key of `EQUATIONS`; "test_equals_train" is the baseline.
        equation: what its factor is.
        factor: by which it multiplies; None where it is 0 / 0.
        loss: factor times the training loss.
        loss_standard_error: of that, from the sampling of training and test rows, to first order.
        accuracy: `1 - factor (1 - training accuracy)`: errors grow as the loss does.
        accuracy_standard_error: of that.
        accuracy_as_printed: factor times the training accuracy, read literally.
        loss_error: loss minus the measured test loss; None without test labels.
        accuracy_error: accuracy minus the measured one.
    """

    name: str
    equation: str
    factor: float | None
    loss: float | None
    loss_standard_error: float | None
    accuracy: float | None
    accuracy_standard_error: float | None
    accuracy_as_printed: float | None
    loss_error: float | None
    accuracy_error: float | None


@dataclass(frozen=True)
class Scored:
    """Cross-entropy and accuracy on some rows.

    Attributes:
        loss: mean cross-entropy.
        loss_standard_error: of the mean; None for one row.
        accuracy: share of rows predicted right.
        accuracy_standard_error: of the share; None for one row.
    """

    loss: float
    loss_standard_error: float | None
    accuracy: float
    accuracy_standard_error: float | None


@dataclass(frozen=True)
class EstimatedLoss:
    """All estimates for one net.

    Attributes:
        train: measured on the training rows.
        test: measured on the test rows; None without labels.
        estimates: in the order of `EQUATIONS`, the baseline "test = train" first.
    """

    train: Scored
    test: Scored | None
    estimates: tuple[Estimate, ...]

    @property
    def baseline(self) -> Estimate:
        """Test = train."""
        return self.estimates[0]

    def __getitem__(self, name: str) -> Estimate:
        """An estimate by its name."""
        return next(each for each in self.estimates if each.name == name)

    def to_frame(self) -> pandas.DataFrame:
        """One row per estimate."""
        import dataclasses

        import pandas

        return pandas.DataFrame([dataclasses.asdict(each) for each in self.estimates])


def estimate_test_loss(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    x_test: Tensor,
    y_test: Tensor | None = None,
    previous: nn.Module | None = None,
) -> EstimatedLoss:
    """Estimate cross-entropy and accuracy on test rows from those on training rows (Daroczy, eq. 5 to 7).

    Every estimate is the training loss times a ratio of sensitivities, `sensitivity_factors`. The baseline takes 1 for
    the ratio. Measured on digits no ratio does better than that, so always read them beside it.

    Errors: as `sensitivity_factors`; InputRefused PA212, labels that are not classes of the net.

    Args:
        model: Sequential of Linear and ReLU or LeakyReLU, in eval mode.
        train: training inputs (n, ...) and class numbers (n,).
        x_test: test inputs (m, ...).
        y_test: class numbers (m,); with them errors are told.
        previous: the same net one epoch earlier, for eq. 5.

    Returns:
        The estimates with standard errors.
    """
    if not isinstance(train, tuple | list) or len(train) != 2:
        raise wrong_type("estimate_test_loss", "train", train, "Pass (inputs, labels).")
    factors = sensitivity_factors(model, train[0], x_test, previous)
    losses, right = _scores(model, *train)
    measured = None if y_test is None else _scored(*_scores(model, x_test, y_test))
    estimates = [_estimate(name, factor, losses, right, measured) for name, factor in factors.items()]
    return EstimatedLoss(_scored(losses, right), measured, tuple(estimates))


def _scores(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and whether predictions are right, float64 (n,) each."""
    expect_kind("labels", y, Tensor)
    with torch.no_grad():
        outputs = model(x).double()
    whole = not (y.is_floating_point() or y.is_complex()) and y.shape == (len(x),)
    if outputs.dim() != 2 or not whole or not bool(((y >= 0) & (y < outputs.shape[1])).all()):
        raise InputRefused(
            "PA212",
            f"labels of shape {tuple(y.shape)} and type {y.dtype} are no classes of a net with outputs "
            f"{tuple(outputs.shape)}. Pass whole numbers (n,) below the number of outputs.",
        )
    return nn.functional.cross_entropy(outputs, y, reduction="none"), (outputs.argmax(1) == y).double()


def _scored(losses: Tensor, right: Tensor) -> Scored:
    return Scored(float(losses.mean()), _of_mean(losses), float(right.mean()), _of_mean(right))


def _of_mean(values: Tensor) -> float | None:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else None


def _estimate(name: str, factor: Factor, losses: Tensor, right: Tensor, measured: Scored | None) -> Estimate:
    ratio = factor.value
    if ratio is None:
        return Estimate(name, EQUATIONS[name], *([None] * 8))
    loss, loss_error = _times(factor, ratio, losses)
    wrong, wrong_error = _times(factor, ratio, 1.0 - right)
    return Estimate(
        name=name,
        equation=EQUATIONS[name],
        factor=ratio,
        loss=loss,
        loss_standard_error=loss_error,
        accuracy=1.0 - wrong,
        accuracy_standard_error=wrong_error,
        accuracy_as_printed=ratio * float(right.mean()),
        loss_error=None if measured is None else loss - measured.loss,
        accuracy_error=None if measured is None else 1.0 - wrong - measured.accuracy,
    )


def _times(factor: Factor, ratio: float, values: Tensor) -> tuple[float, float | None]:
    """Ratio times a mean over training rows, and its standard error: the same rows move both."""
    mean = float(values.mean())
    if len(values) < 2 or len(factor.test) < 2:
        return ratio * mean, None
    by_train = values - mean * factor.train.to(values)
    by_test = mean * factor.test.to(values)
    variance = float(by_train.var()) / len(by_train) + float(by_test.var()) / len(by_test)
    return ratio * mean, ratio * math.sqrt(variance)


__all__ = ["BASELINE", "EQUATIONS", "Estimate", "EstimatedLoss", "Scored", "estimate_test_loss"]
