"""Mean tangent sensitivity over a data set, by the cheapest way that is open, with what it is uncertain by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused
from poisonaudit.registry import unknown_name
from poisonaudit.tangent import dense
from poisonaudit.tangent.chain import dense_chain, fitting
from poisonaudit.tangent.checks import check_convention, check_model
from poisonaudit.tangent.probes import tangent_sensitivity_probes
from poisonaudit.tangent.sensitivity import closed_form, has_closed_form

Method = Literal["closed form", "second derivatives", "probes"]
METHODS: tuple[Method, ...] = ("closed form", "second derivatives", "probes")

# Seconds per second derivative, measured on small nets.
_SECOND_DERIVATIVE = 5e-8
# Seconds of exact second derivatives before probes take over.
_PATIENCE = 20.0


@dataclass(frozen=True, eq=False)
class TangentMean:
    """Mean of `|S(x)|_F^2` over the rows.

    Attributes:
        value: the mean.
        method: "closed form" and "second derivatives" are exact for these rows, "probes" estimates.
        values: (batch,) of each row.
        by_layer: (k,) means of what each layer contributes, for fully connected nets; else None.
        row_standard_error: standard error from the rows, seen as a sample; 0 for one row.
        probe_standard_error: standard error from the probes; 0 where exact.
        interval: 95 % confidence interval of the mean over these rows, from the probes; None where exact.
        probes: random vectors that each row met; 0 where exact.
    """

    value: float
    method: Method
    values: Tensor
    by_layer: Tensor | None
    row_standard_error: float
    probe_standard_error: float
    interval: tuple[float, float] | None
    probes: int

    @property
    def exact(self) -> bool:
        """Whether the number is exact for these rows, up to rounding."""
        return self.method != "probes"

    @property
    def standard_error(self) -> float:
        """Standard error from rows and probes together."""
        return (self.row_standard_error**2 + self.probe_standard_error**2) ** 0.5


def tangent_mean(
    model: nn.Module,
    x: Tensor,
    outputs: str = "jacobian",
    *,
    normalised: bool = False,
    method: str | None = None,
    relative_error: float = 0.05,
    max_probes: int = 1000,
    seed: int = 0,
) -> TangentMean:
    """Mean of `|S(x)|_F^2` over rows: a closed form if there is one, second derivatives if cheap, else probes.

    Errors: UsageError PA301 for another `outputs` or `method`; InputRefused as `tangent_sensitivity` and
    `tangent_sensitivity_probes`, PA150 `method="closed form"` for a net without one.

    Args:
        model: module in eval mode, of one dtype.
        x: inputs (batch, ...) of the same dtype and device.
        outputs: "jacobian" or "sum".
        normalised: weight each parameter's part by its square, as `tangent_sensitivity_normalised` does.
        method: one of `METHODS` instead of the cheapest.
        relative_error: standard error of the mean asked of probes, relative to the mean.
        max_probes: most probes for a row.
        seed: of the probes.

    Returns:
        The mean, how it was found, and its standard errors.
    """
    summed = check_convention(outputs)
    check_model(model, x)
    chosen = cheapest(model, x, outputs) if method is None else method
    if chosen == "closed form":
        chain = dense_chain(model, x)
        if chain is None or not has_closed_form(chain, summed=summed):
            raise InputRefused("PA150", "the net has no closed form within reach. Leave the method open.")
        layers = closed_form(fitting(chain, x), x, summed=summed, normalised=normalised)
        return _exact("closed form", layers.sum(1), layers.double().mean(0))
    if chosen == "second derivatives":
        return _exact("second derivatives", dense.dense_form(model, x, summed=summed, normalised=normalised), None)
    if chosen != "probes":
        raise unknown_name(chosen, METHODS, "method")
    found = tangent_sensitivity_probes(
        model, x, outputs, relative_error=relative_error, max_probes=max_probes, normalised=normalised, seed=seed
    )
    return TangentMean(
        value=found.mean,
        method="probes",
        values=found.values,
        by_layer=None,
        row_standard_error=found.row_standard_error,
        probe_standard_error=found.standard_error,
        interval=found.interval,
        probes=found.probes,
    )


def cheapest(model: nn.Module, x: Tensor, outputs: str = "jacobian") -> Method:
    """The method that `tangent_mean` takes.

    Args:
        model: module in eval mode.
        x: inputs (batch, ...).
        outputs: "jacobian" or "sum".

    Returns:
        A closed form where there is one; second derivatives where a row has at most `dense.DENSE_LIMIT` of them and
        all rows take seconds; else probes.
    """
    summed = check_convention(outputs)
    if has_closed_form(dense_chain(model, x), summed=summed):
        return "closed form"
    entries = dense.dense_entries(model, x, summed=summed)
    quick = entries <= dense.DENSE_LIMIT and _SECOND_DERIVATIVE * entries * len(x) <= _PATIENCE
    return "second derivatives" if quick else "probes"


def largest_rows(values: Tensor, count: int = 10) -> list[int]:
    """Positions of the rows with the largest values, largest first.

    Args:
        values: (batch,).
        count: at most so many.

    Returns:
        Positions; of equal values the earlier row comes first.
    """
    order = torch.sort(values, descending=True, stable=True).indices
    return [int(position) for position in order[:count]]


def _exact(method: Method, values: Tensor, by_layer: Tensor | None) -> TangentMean:
    numbers = values.double()
    spread = float(numbers.std()) / len(numbers) ** 0.5 if len(numbers) > 1 else 0.0
    return TangentMean(float(numbers.mean()), method, values, by_layer, spread, 0.0, None, 0)
