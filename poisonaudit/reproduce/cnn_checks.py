"""What the source claims of its table, and what theory says, looked for in ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from poisonaudit.reproduce.cnn_printed import ACCURACY, COLUMNS, NORMS, POOLINGS, PRINTED, PRINTED_KEYS, Case
from poisonaudit.reproduce.result import Line

# Orders hold up to rounding.
_ROUNDING = 1e-10
# In the printed table explicit bounds are at least 74 times the implicit ones.
FAR = 10.0
# Below, a network has not learned enough for its bounds to mean anything.
LEARNED = 0.9
_UPPER = ("k_star", "k1", "k3", "k4", "k5", "certified")


@dataclass(frozen=True)
class Check:
    """A claim, looked at.

    Attributes:
        held: whether the table bears it out.
        text: the claim, the verdict and the numbers.
    """

    held: bool
    text: str


def cnn_checks(ours: Mapping[Case, Line]) -> tuple[Check, ...]:
    """The order of the bounds, K_5 below K_4, implicit below explicit, and the lower bound below all others.

    Args:
        ours: case -> its line.

    Returns:
        One check for each.
    """
    claims = (
        ("K_4 <= min(K_1, K_3) <= K_*", "K_4 / min(K_1, K_3)", _order),
        ("K_5 <= K_4", "K_5 / K_4", _fifth),
        ("lower <= every bound", "lower / smallest bound", _lower),
    )
    found = []
    for claim, ratio, look in claims:
        looked = [each for line in ours.values() if (each := look(line.values)) is not None]
        held = sum(good for good, _ in looked)
        without = f"; {len(ours) - len(looked)} lines have no K_4" if len(looked) < len(ours) else ""
        between = f"{ratio} from {min(r for _, r in looked):.3g} to {max(r for _, r in looked):.3g}" if looked else ""
        text = f"{_verdict(held == len(looked))}, {claim}: in {held} of {len(looked)} lines{without}. {between}."
        found.append(Check(held == len(looked), text))
    return (*found, *(_poolings(ours, key) for key in ("k_star", "k4")))


def accuracy_check(accuracies: Mapping[str, float]) -> Check:
    """Whether the networks classify as well as the source's.

    Args:
        accuracies: model -> share of the test rows.

    Returns:
        The check; better is held too.
    """
    told = ", ".join(f"{name} {value:.1%}" for name, value in accuracies.items())
    held = all(value >= ACCURACY[0] for value in accuracies.values())
    return Check(held, f"{_verdict(held)}, test accuracy of 95 % at least (the source: 95 to 97 %): {told}.")


def cnn_flags(ours: Mapping[Case, Line], accuracies: Mapping[str, float]) -> tuple[str, ...]:
    """What contradicts the theory, and networks that have not learned; empty where there is nothing.

    Implicit bounds above explicit ones contradict the source's table, but no theorem: they are no flag.

    Args:
        ours: case -> its line.
        accuracies: model -> share of the test rows.

    Returns:
        One sentence for each.
    """
    found = []
    for line in ours.values():
        value = line.values
        for (good, ratio), claim in (
            (_order(value) or (True, 0.0), "K_4 <= min(K_1, K_3) <= K_*"),
            (_fifth(value) or (True, 0.0), "K_5 <= K_4"),
            (_lower(value), "lower <= every bound"),
        ):
            if not good:
                found.append(f"{line.label}: {claim} does not hold ({ratio:.3g}).")
    for name, accuracy in accuracies.items():
        if accuracy < LEARNED:
            found.append(f"{name} classifies {accuracy:.1%} of the test rows: it has not learned its task.")
    return tuple(found)


def shares_of_forms(ours: Mapping[Case, Line]) -> str:
    """How much of K_* K_4 leaves in either form, which decides how far apart the forms are."""
    told = []
    for form in POOLINGS:
        values = [line.values for (_, pooling, _), line in ours.items() if pooling == form]
        shares = [fourth / star for each in values if (fourth := each["k4"]) is not None and (star := each["k_star"])]
        told.append(f"from {min(shares):.2%} to {max(shares):.2%} in the {form} form" if shares else f"{form}: unknown")
    return (
        f"K_4 is {' and '.join(told)} of its K_*. The cascade's ReLUs stay in one chain, where the parts of a maximum "
        "cancel again; the implicit form starts anew at every pooling and gives the signs of what came before away."
    )


def best_forms(ours: Mapping[Case, Line]) -> str:
    """The smaller certified bound of both forms; both are sound."""
    told = []
    for name, norm in dict.fromkeys((case[0], case[2]) for case in ours):
        bounds = {form: ours[name, form, norm].values["certified"] for form in POOLINGS}
        values = {form: bound for form, bound in bounds.items() if bound is not None}
        if not values:
            continue
        form = min(values, key=lambda each: values[each])
        told.append(f"{name} {NORMS[norm]} {values[form]:.4g} ({form})")
    return f"Both forms bound the same function, so the smaller one counts. Certified: {', '.join(told)}."


def pooling_factors() -> str:
    """What the printed table says of the source's own explicit form."""
    shares = {
        norm: [PRINTED[name, "explicit", norm][0] / PRINTED[name, "implicit", norm][0] for name in ("B", "C")]
        for norm in NORMS
    }
    told = " and ".join(f"{after / before:.2f} in {NORMS[norm]}" for norm, (before, after) in shares.items())
    return (
        f"Explicit over implicit K_* as printed grows from B to C by {told}: one more pooling. Ours costs 4 x 4 in "
        "l^inf (the two levels of a 2 x 2 window) and 2 x 2 in l^1, so that the source's form differs from ours where "
        "l^1 is concerned."
    )


def _order(value: Mapping[str, float | None]) -> tuple[bool, float] | None:
    star, first, third, fourth = (value[key] for key in PRINTED_KEYS)
    if star is None or first is None or third is None or fourth is None:
        return None
    least = min(first, third)
    return fourth <= least * (1 + _ROUNDING) and least <= star * (1 + _ROUNDING), _over(fourth, least)


def _fifth(value: Mapping[str, float | None]) -> tuple[bool, float] | None:
    fourth, fifth = value["k4"], value["k5"]
    if fourth is None or fifth is None:
        return None
    return fifth <= fourth * (1 + _ROUNDING), _over(fifth, fourth)


def _lower(value: Mapping[str, float | None]) -> tuple[bool, float]:
    least = min((number for key in _UPPER if (number := value[key]) is not None), default=math.inf)
    lower = value["lower"] or 0.0
    return lower <= least * (1 + _ROUNDING), _over(lower, least)


def _poolings(ours: Mapping[Case, Line], key: str) -> Check:
    """Explicit over implicit, ours and printed."""
    place = PRINTED_KEYS.index(key)
    told, ratios = [], []
    for name, pooling, norm in ours:
        if pooling != POOLINGS[0]:
            continue
        pair = [ours[name, form, norm].values[key] for form in POOLINGS]
        if pair[0] is None or not pair[1]:
            continue
        printed = PRINTED[name, POOLINGS[0], norm][place] / PRINTED[name, POOLINGS[1], norm][place]
        ratios.append(pair[0] / pair[1])
        told.append(f"{name} {NORMS[norm]} {ratios[-1]:.3g} ({printed:.3g})")
    far, below = sum(ratio >= FAR for ratio in ratios), sum(ratio > 1.0 for ratio in ratios)
    held = far == len(ratios)
    return Check(
        held,
        f"{_verdict(held)}, implicit {COLUMNS[key]} far below the explicit one (a tenth at most): in {far} of "
        f"{len(ratios)} cases; below it in {below}. Explicit over implicit, ours (printed): {', '.join(told)}.",
    )


def _over(part: float, whole: float) -> float:
    """A ratio; NaN over 0, as of a network that lost all its weights."""
    return part / whole if whole else math.nan


def _verdict(held: bool) -> str:
    return "Held" if held else "Not held"
