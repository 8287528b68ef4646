"""Tangent sensitivity of any eval-mode net by random probes: unbiased, with a standard error."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poisonaudit.arguments import finite_number, whole_number
from poisonaudit.errors import UsageError
from poisonaudit.tangent.checks import check_convention, check_model
from poisonaudit.tangent.functional import Network, second_derivatives_exist
from poisonaudit.tangent.probe_interval import mean_interval, row_error

# Rows of a group share the random vector, so that one pass serves them all; groups do not. Twice as many rows a
# group hardly lower the error of the mean.
ROWS_TOGETHER = 16
# Draws of group means before the number of probes is settled, and at least that many after it: squared norms are
# skewed, and with fewer the interval covers less than it says.
PILOT = 24
_FEWEST = 48
# The pilot's variance is itself uncertain.
_MARGIN = 2.0


@dataclass(frozen=True, eq=False)
class ProbedSensitivity:
    """Estimates of `|S(x)|_F^2` and of its mean over the rows.

    Attributes:
        values: (batch,) unbiased estimates, means over the probes.
        standard_errors: (batch,) theirs; rows of one group of `rows_together` rows are correlated.
        mean: of the values.
        standard_error: of the mean, over the probes; the rows are taken as given.
        interval: confidence interval of the mean over these rows, `mean exp(-+ t se / mean)`.
        level: its level.
        probes: random vectors that each row met.
        pilot: passes of a group that only served to settle that number.
        reached: whether the standard error is within the relative error asked for.
        row_standard_error: standard error that the rows, seen as a sample, bring to the mean; 0 for one row.
    """

    values: Tensor
    standard_errors: Tensor
    mean: float
    standard_error: float
    interval: tuple[float, float]
    level: float
    probes: int
    pilot: int
    reached: bool
    row_standard_error: float


def tangent_sensitivity_probes(
    model: nn.Module,
    x: Tensor,
    outputs: str = "jacobian",
    *,
    relative_error: float = 0.05,
    max_probes: int = 1000,
    probes: int | None = None,
    normalised: bool = False,
    level: float = 0.95,
    rows_together: int = ROWS_TOGETHER,
    seed: int = 0,
) -> ProbedSensitivity:
    """Estimate `|S(x)|_F^2` of each row and its mean, for any net in eval mode.

    A probe draws Gaussian v over the parameters and a random sign s for each row and output, and takes
    `g_b = grad_x sum_(b,c) s_bc (df_c/dtheta . v) = sum_c s_bc S_bc^T v`; then `E |g_b|^2 = sum_c |S_bc|_F^2`. With one
    sign per row ("sum") it is `|sum_c S_bc|_F^2`. A probe costs about four gradients, whatever the numbers of
    outputs, parameters and inputs.

    Stopping as soon as a standard error is small enough would stop on samples that happen to be low and narrow: means
    then come out low by a tenth of a standard error or more, and 95 % intervals cover 88 to 93 %. So a pilot settles
    the number of probes, its draws are thrown away, and the probes that count are drawn afresh: the mean is unbiased
    and the interval that of a fixed number. The error can then end slightly above what was asked (`reached`).

    Errors: UsageError PA301 for another `outputs`, PA324 for numbers out of range; InputRefused as
    `tangent_sensitivity` without PA151, PA155 an output that is not one tensor by rows, PA156 a layer that torch
    cannot differentiate twice.

    Args:
        model: module in eval mode, of one dtype; tied weights count once.
        x: inputs (batch, ...) of the same dtype and device.
        outputs: "jacobian" sums `|S_c|^2` over the outputs c; "sum" takes f := sum of the outputs.
        relative_error: standard error of the mean asked for, relative to the mean.
        max_probes: most probes for a row.
        probes: this number instead, without a pilot; at least 2.
        normalised: weight each parameter's part by its square, as `tangent_sensitivity_normalised` does.
        level: of the interval.
        rows_together: rows that share a random vector; 1 makes rows independent, at more cost.
        seed: of the random vectors and signs.

    Returns:
        The estimates, values in the dtype and on the device of x.
    """
    summed = check_convention(outputs)
    _check_numbers(relative_error, max_probes, probes, level, rows_together, seed)
    check_model(model, x)
    network = Network(model)
    network.output_shape(x[:1])
    generator = torch.Generator(device=x.device).manual_seed(seed)
    groups = x.split(rows_together)

    def draw(group: int) -> Tensor:
        return probe(network, groups[group], summed=summed, normalised=normalised, generator=generator)

    with second_derivatives_exist():
        pilot = 0
        count = probes
        if count is None:
            pilot, count = _settled(draw, [len(group) for group in groups], relative_error, max_probes)
        drawn = [torch.stack([draw(group) for _ in range(count)]) for group in range(len(groups))]
    return _summarised(drawn, x, level, relative_error, pilot)


def probe(network: Network, x: Tensor, *, summed: bool, normalised: bool, generator: torch.Generator) -> Tensor:
    """One unbiased draw of `|S(x)|_F^2` for each row, (batch,) in float64; rows share the random vector.

    Args:
        network: the net as a function of its parameters.
        x: inputs (batch, ...).
        summed: one sign per row instead of one per output, so that outputs are summed first.
        normalised: scale the random vector by the parameters.
        generator: on the device of x.

    Returns:
        Squared norms of `sum_c s_bc S_bc^T v`.
    """
    with torch.enable_grad():
        parameters = {name: value.detach().requires_grad_(True) for name, value in network.parameters.items()}
        point = x.detach().requires_grad_(True)
        # A layer in place must not meet the leaf itself.
        values = network(parameters, point.clone()).reshape(len(x), -1)
        if summed:
            total = values.sum()
        else:
            signs = torch.randint(0, 2, values.shape, generator=generator, device=x.device) * 2 - 1
            total = (signs * values).sum()
        # <grad_theta sum s f, v> is sum s (df/dtheta . v) and needs no forward-mode rules.
        slopes = torch.autograd.grad(total, list(parameters.values()), create_graph=True, materialize_grads=True)
        along = torch.zeros((), dtype=x.dtype, device=x.device)
        for slope, value in zip(slopes, parameters.values(), strict=True):
            v = torch.randn(value.shape, generator=generator, dtype=x.dtype, device=x.device)
            along = along + (slope * (v * value.detach() if normalised else v)).sum()
        if not along.requires_grad:
            return torch.zeros(len(x), dtype=torch.float64, device=x.device)
        (moved,) = torch.autograd.grad(along, point, materialize_grads=True)
    return moved.reshape(len(x), -1).double().square().sum(1)


def fewest_passes(rows: int, rows_together: int = ROWS_TOGETHER) -> int:
    """Passes of a group of rows that `tangent_sensitivity_probes` makes at least, pilot included.

    Args:
        rows: number of rows.
        rows_together: rows that share a random vector.

    Returns:
        The count.
    """
    groups = math.ceil(rows / rows_together)
    used, rounds = _pilot(groups)
    return len(used) * rounds + groups * _fewest(groups)


def pass_seconds(model: nn.Module, x: Tensor, *, rows_together: int = ROWS_TOGETHER, seed: int = 0) -> float:
    """Seconds that one pass of a group of rows takes, the smaller of two measurements after a first one.

    Errors: InputRefused as `tangent_sensitivity_probes`.

    Args:
        model: module in eval mode.
        x: inputs (batch, ...); the first group is used.
        rows_together: rows of a group.
        seed: of the random vectors.

    Returns:
        Wall time.
    """
    check_model(model, x)
    network, rows = Network(model), x[:rows_together]
    network.output_shape(rows[:1])
    generator = torch.Generator(device=x.device).manual_seed(seed)
    taken = []
    with second_derivatives_exist():
        for _ in range(3):
            begun = time.perf_counter()
            # The sum comes to the host, so that an accelerator has finished.
            float(probe(network, rows, summed=False, normalised=False, generator=generator).sum())
            taken.append(time.perf_counter() - begun)
    return min(taken[1:])


def _fewest(groups: int) -> int:
    return max(2, math.ceil(_FEWEST / groups))


def _pilot(groups: int) -> tuple[list[int], int]:
    """Groups that the pilot looks at, at most eight spread over all, and probes of each."""
    used = sorted({round(position * (groups - 1) / 7) for position in range(8)}) if groups > 8 else list(range(groups))
    return used, max(2, math.ceil(PILOT / len(used)))


def _settled(
    draw: Callable[[int], Tensor], sizes: list[int], relative_error: float, max_probes: int
) -> tuple[int, int]:
    """Passes of the pilot, and the number of probes it asks for."""
    count = len(sizes)
    used, rounds = _pilot(count)
    means = torch.stack([torch.stack([draw(group).mean() for _ in range(rounds)]) for group in used])
    least = _fewest(count)
    centre = float(means.mean())
    if centre == 0.0:
        return rounds * len(used), min(least, max_probes)
    # Every group of the pilot stands for count / len(used) groups of the mean.
    spread = float(means.var(1).mean()) / count / centre**2
    needed = math.ceil(_MARGIN * spread / relative_error**2)
    return rounds * len(used), min(max(least, needed), max_probes)


def _summarised(drawn: list[Tensor], x: Tensor, level: float, relative_error: float, pilot: int) -> ProbedSensitivity:
    count, rows = len(drawn[0]), len(x)
    values = torch.cat([group.mean(0) for group in drawn])
    errors = torch.cat([group.std(0) for group in drawn]) / count**0.5
    mean = float(values.mean())
    # Groups are independent; inside a group only whole means are.
    error, interval = mean_interval(
        [group.mean(1).cpu() for group in drawn], [group.shape[1] / rows for group in drawn], level
    )
    return ProbedSensitivity(
        values=values.to(x.dtype),
        standard_errors=errors.to(x.dtype),
        mean=mean,
        standard_error=error,
        interval=interval,
        level=level,
        probes=count,
        pilot=pilot,
        reached=error <= relative_error * mean,
        row_standard_error=row_error(values, errors, error**2),
    )


def _check_numbers(
    relative_error: object, max_probes: object, probes: object, level: object, rows_together: object, seed: object
) -> None:
    wrong = ""
    if not (finite_number(relative_error) or 0.0) > 0.0:
        wrong = f"relative_error is {relative_error!r}; it must be above 0"
    elif (whole_number(max_probes) or 0) < 2:
        wrong = f"max_probes is {max_probes!r}; a standard error needs 2"
    elif probes is not None and (whole_number(probes) or 0) < 2:
        wrong = f"probes is {probes!r}; a standard error needs 2"
    elif not 0.0 < (finite_number(level) or 0.0) < 1.0:
        wrong = f"level is {level!r}; it must lie between 0 and 1"
    elif (whole_number(rows_together) or 0) < 1:
        wrong = f"rows_together is {rows_together!r}; it must be at least 1"
    elif whole_number(seed) is None:
        wrong = f"seed is {seed!r}; it must be a whole number"
    if wrong:
        raise UsageError("PA324", f"{wrong}. Give another number.")
