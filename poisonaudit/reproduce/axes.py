"""Logarithmic axes whose labels are plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def logarithmic(rescale: Callable[[str], Any], axis: Any) -> None:
    """Make an axis logarithmic and label it 0.001, 1000, 1e+06.

    The labels that matplotlib makes by itself are mathematical text, which pictures here do not parse.

    Args:
        rescale: `set_xscale` or `set_yscale` of the axes.
        axis: their `xaxis` or `yaxis`.
    """
    rescale("log")
    axis.set_major_formatter(lambda value, position: f"{value:g}")
