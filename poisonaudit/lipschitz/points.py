"""The user's points, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from poisonaudit.errors import InputRefused
from poisonaudit.lipschitz.pieces import as_tensor, layout_of


def points_of(x: object, width: int) -> Tensor:
    """Check the user's points and flatten each row.

    Args:
        x: anything `torch.as_tensor` takes, (n, ...) with `width` entries a row.
        width: inputs of the network.

    Returns:
        (n, width) in float64 on the CPU.

    Raises:
        InputRefused: PA230, the points do not fit the network or are not finite.
    """
    if (layout := layout_of(x)) is not None:
        raise InputRefused("PA230", f"x is a {layout} tensor. Rows are read in full. Pass x.to_dense().")
    try:
        points = as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputRefused("PA230", f"x is not an array of numbers ({error}). Pass (n, {width}) values.") from error
    if points.is_complex():
        raise InputRefused("PA230", f"x is {points.dtype}. Networks of real numbers take real rows. Pass x.real.")
    shape = tuple(points.shape)
    if points.ndim < 2 or len(points) == 0 or points[0].numel() != width:
        raise InputRefused("PA230", f"x has shape {shape}. The network takes {width} inputs. Pass rows of {width}.")
    points = points.reshape(len(points), width).to(torch.float64)
    if not bool(torch.isfinite(points).all()):
        raise InputRefused("PA230", "x holds NaN or infinity. The Jacobian has no value there. Clean the rows first.")
    return points
