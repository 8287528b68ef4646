"""Which training rows may move, and in which space their moduli are computed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name
from poisonaudit.results import Validity
from poisonaudit.sensitivity.sample_space import SampleSpace, sample_space, why_not_sample_space
from poisonaudit.solvers import default_tolerance
from poisonaudit.training import relative_gradient
from poisonaudit.validity import assess

Form = Literal["auto", "weights", "samples"]


def checked_rows(problem: Problem, rows: Tensor | None) -> Tensor:
    """Positions (k,) on the problem's device; all of them for None.

    Args:
        problem: gives the number of rows.
        rows: integer positions, each once.

    Returns:
        The positions.

    Raises:
        UsageError: PA304, a mask, fractions, no rows, positions out of range or named twice.
    """
    if rows is None:
        return torch.arange(problem.rows, device=problem.device)
    positions = torch.as_tensor(rows, device=problem.device)
    if positions.numel() and (positions.is_floating_point() or positions.dtype == torch.bool):
        raise UsageError("PA304", f"rows are {positions.dtype}. Give integer positions, (k,), not a mask.")
    positions = positions.long()
    if positions.dim() != 1 or positions.numel() == 0:
        raise UsageError("PA304", f"rows have shape {tuple(positions.shape)}. Give a list of row positions, (k,).")
    if int(positions.min()) < 0 or int(positions.max()) >= problem.rows:
        raise UsageError(
            "PA304",
            f"rows run from {int(positions.min())} to {int(positions.max())}; there are rows 0..{problem.rows - 1}.",
        )
    if positions.unique().numel() != positions.numel():
        raise UsageError("PA304", "rows name a position twice. Give each position once.")
    return positions


def sample_space_for(problem: Problem, tolerance: float | None, form: Form) -> tuple[SampleSpace | None, str]:
    """The sample space where it is to be used, else None and why not.

    Args:
        problem: the point.
        tolerance: relative rank tolerance, None for the default.
        form: "auto", "weights" or "samples".

    Returns:
        `(space or None, reason)`.

    Raises:
        UsageError: PA301, an unknown form; PA305, "samples" where the form is not exact.
    """
    if form not in ("auto", "weights", "samples"):
        raise unknown_name(form, ("auto", "weights", "samples"), "form")
    if form == "weights":
        return None, "not asked for"
    cut = default_tolerance(problem.dtype) if tolerance is None else tolerance
    key = ("why not samples", cut)
    if key not in problem.cache:
        problem.cache[key] = why_not_sample_space(problem, cut)
    reason: str = problem.cache[key]
    if not reason:
        return sample_space(problem, cut), ""
    if form == "samples":
        raise UsageError("PA305", f"form 'samples' is not exact here: {reason}. Use form='weights'.")
    return None, reason


def sample_space_validity(problem: Problem, samples: SampleSpace) -> Validity:
    """May numbers from the sample space be trusted at this point.

    Args:
        problem: the point.
        samples: its sample space.

    Returns:
        The verdict; curvature is that of J J^T, which has no negative end.
    """
    return assess(
        problem,
        relative_gradient=relative_gradient(problem),
        smallest=0.0,
        largest=samples.largest_curvature,
        kernel_dimension=samples.kernel_dimension,
        tolerance=samples.tolerance,
    )
