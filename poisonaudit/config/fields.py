"""The kinds of value that configurations are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

RULES = ConfigDict(extra="forbid", strict=True)


def _fraction(value: Any) -> Any:
    """Turn `"16/255"` into a number; anything else is left to pydantic."""
    if isinstance(value, str):
        top, slash, bottom = value.partition("/")
        try:
            return float(top) / float(bottom) if slash else float(top)
        except (ValueError, ZeroDivisionError):
            return value
    return value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Radius = Annotated[float, BeforeValidator(_fraction), Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**53)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(min_length=1)]
Label = Annotated[int | str, Field(description="class number or class name")]
RowIds = Annotated[tuple[int, ...], Field(min_length=1)]


def refuse_repeated(ids: tuple[int, ...] | None, key: str) -> None:
    """Row ids that are given twice.

    Args:
        ids: as given.
        key: where.

    Raises:
        ValueError: an id is given twice; pydantic makes it a refusal.
    """
    if ids is not None and len(set(ids)) < len(ids):
        raise ValueError(f"{key} names a row twice")
