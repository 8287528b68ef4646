"""Options of baselines: what each may be, checked before any work, by recipes and by the baselines themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from poisonaudit.arguments import damping_share, finite_number, whole_number
from poisonaudit.errors import UsageError
from poisonaudit.registry import unknown_name

SURROGATES = ("cross_entropy", "objective")


@dataclass(frozen=True)
class _Rule:
    """What an option may be: a test, the same in words, and the code of its refusal."""

    fits: Callable[[Any], bool]
    words: str
    code: str = "PA304"


def refuse_bad_options(name: str, **options: Any) -> None:
    """Refuse values that no run can have; options without a rule are left to the baseline.

    Args:
        name: of the baseline.
        options: as given.

    Raises:
        UsageError: PA301, no surrogate has that name; PA367, steps below 1; PA304, another value is of the wrong kind
            or out of range.
    """
    for option, value in options.items():
        if option == "surrogate" and value not in SURROGATES:
            raise unknown_name(str(value), SURROGATES, "surrogate")
        rule = _RULES.get(option)
        if rule is not None and not rule.fits(value):
            raise UsageError(
                rule.code,
                f"{name}: {option} is {value!r}; {rule.words} is needed. Correct it, or leave it out for the default.",
            )


def _above(value: Any) -> bool:
    return (finite_number(value) or 0.0) > 0.0


def _several(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and all(map(_above, value))


def _test_rows(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and [isinstance(each, Tensor) for each in value] == [True, True])


_COUNT = _Rule(lambda value: (whole_number(value) or 0) >= 1, "a whole number >= 1")
_RATE = _Rule(_above, "a number above 0")
_RULES: dict[str, _Rule] = {
    "steps": _Rule(_COUNT.fits, _COUNT.words, "PA367"),
    "restarts": _COUNT,
    "rate": _RATE,
    "learning_rate": _RATE,
    "similarity_coeffs": _Rule(_several, "a list of numbers above 0"),
    "enough": _Rule(lambda value: (-1.0 if (found := finite_number(value)) is None else found) >= 0.0, "a number >= 0"),
    "damping": _Rule(lambda value: damping_share(value) is not None, "a share of lambda_max from 0 to 1e6"),
    "as_shipped": _Rule(lambda value: isinstance(value, bool), "true or false"),
    "test": _Rule(_test_rows, "a pair (x, y) of tensors"),
}
