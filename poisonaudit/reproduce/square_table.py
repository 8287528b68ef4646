"""The table for x^2 of Després and Pintore: bounds of a network whose Lipschitz constant is known, by depth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from poisonaudit.lipschitz import (
    LipschitzBounds,
    exact_constant,
    exact_work,
    lipschitz_bounds,
    square_model,
    square_network,
)
from poisonaudit.reproduce.bench import Bench
from poisonaudit.reproduce.despres_figures import errors_by_depth, lines_by_depth
from poisonaudit.reproduce.result import DESPRES, Line, Reproduction

DEPTH = 6
# Enumeration of up to a few seconds.
ENUMERATED = 2.0**34
COLUMNS: Mapping[str, str] = {
    "lower": "L",
    "k": "K",
    "k_star": "K_*",
    "k1": "K_1",
    "k2": "K_2",
    "k3": "K_3",
    "k4": "K_4",
    "k5": "K_5",
    "error": "error",
}
# L, K_*, K_1, K_2, K_3, K_4 by depth, as printed.
PRINTED_KEYS = ("lower", "k_star", "k1", "k2", "k3", "k4")
PRINTED: Mapping[int, tuple[float, ...]] = {
    1: (1.5, 3.0, 2.0, 1.5, 2.0, 1.5),
    2: (1.75, 9.0, 3.53125, 3.64531, 3.0, 1.75),
    3: (1.875, 33.0, 6.92187, 6.45925, 4.0, 1.875),
    4: (1.93875, 129.0, 14.42877, 12.45882, 5.0, 1.93875),
    5: (1.96875, 513.0, 30.75637, 24.68184, 6.0, 1.96875),
    6: (1.984375, 2049.0, 66.00227, 49.24501, 7.0, 1.984375),
}
MISPRINT, MEANT = 1.93875, 1.9375
# Printed with five decimals, some of them cut off rather than rounded.
_PRINTED_ERROR = 1e-5
_ROUNDING = 1e-10


def despres_square(bench: Bench) -> Reproduction:
    """The network for x^2: the source's table of bounds by depth, with K_5, K itself and the approximation error."""
    begun = time.perf_counter()
    deepest = bench.settings.depth or DEPTH
    bench.voice.stage("bounds of the networks for x^2")
    bench.voice.note(f"networks for x^2 of 1 to {deepest} hidden layers, l_inf")
    ours: list[Line] = []
    rows: list[Line] = []
    for depth in range(1, deepest + 1):
        bench.voice(f"depth {depth} of {deepest}", depth / deepest)
        printed, line = printed_line(depth), our_line(depth, bench.settings.seed)
        rows += [line] if printed is None else [printed, line]
        ours.append(line)
    error_bounds = [4.0**-depth / 3.0 for depth in range(1, deepest + 1)]
    return Reproduction(
        name="despres-square",
        title="The network for x^2: Lipschitz constant and bounds by depth",
        rows=tuple(rows),
        notes=_notes(ours),
        flags=square_flags(ours),
        pictures=(
            lines_by_depth(
                "bounds",
                "Bounds of the network for x^2 by depth",
                {COLUMNS[key]: [line.values[key] for line in ours] for key in ("k_star", "k1", "k2", "k3", "k4", "k5")},
                ("L = K", [line.values["lower"] for line in ours]),
                {f"{COLUMNS[key]}, printed": _printed(key) for key in ("k_star", "k1", "k2", "k3", "k4")},
            ),
            errors_by_depth(
                "errors",
                "Error of the network for x^2 by depth",
                {"measured": [line.values["error"] for line in ours]},
                ("4^-l / 3", error_bounds),
            ),
        ),
        settings={"norm": "linf", "depth": deepest, "dtype": "float64"},
        details={"error_bounds": error_bounds},
        seed=bench.settings.seed,
        seconds=time.perf_counter() - begun,
        source=DESPRES,
        columns=COLUMNS,
        lead="Printed values above ours, by depth l.",
        digits=7,
    )


def printed_line(depth: int) -> Line | None:
    """What the source prints for a depth; None beyond its table."""
    if depth not in PRINTED:
        return None
    values = dict(zip(PRINTED_KEYS, PRINTED[depth], strict=True))
    remark = f"misprint of {MEANT} in L, K_4" if MISPRINT in values.values() else ""
    return Line(f"l = {depth}, printed", {key: values.get(key) for key in COLUMNS}, remark)


def our_line(depth: int, seed: int) -> Line:
    """Ours for a depth.

    Args:
        depth: hidden layers l.
        seed: of the search for the lower bound.

    Returns:
        The row: L is the largest slope found on the network itself, K the maximum over all gates.
    """
    points = nodes(depth)
    middles = points[1::2]
    bounds = lipschitz_bounds(square_model(depth), "linf", x=middles[-512:, None], seed=seed)
    with torch.no_grad():
        error = float((square_model(depth)(points[:, None])[:, 0] - points.square()).abs().max())
    found = bound_values(bounds) | {
        "k": enumerated(square_network(depth)),
        "error": error,
    }
    return Line(f"l = {depth}, ours", {key: found[key] for key in COLUMNS})


def bound_values(bounds: LipschitzBounds) -> dict[str, float | None]:
    """The bounds by the keys of a column."""
    return {key: getattr(bounds, key) for key in ("lower", "k_star", "k1", "k2", "k3", "k4", "k5")}


def nodes(depth: int) -> Tensor:
    """Multiples of 2^-(l+1) in [0, 1]: the kinks of the network, and the middles between them.

    The network interpolates x^2 at the multiples of 2^-l and is linear between them, so the difference is a parabola
    there, largest in the middle: the maximum over these points is the maximum over [0, 1], not an estimate of it.

    Args:
        depth: hidden layers l.

    Returns:
        2^(l+1) + 1 points in ascending order.
    """
    count = 2 ** (depth + 1)
    return torch.arange(count + 1, dtype=torch.float64) / count


def enumerated(matrices: Sequence[Tensor]) -> float | None:
    """K in l_inf where that takes a few seconds at most, else None."""
    return exact_constant(matrices) if exact_work(matrices) <= ENUMERATED else None


def square_flags(ours: Sequence[Line]) -> tuple[str, ...]:
    """What contradicts the source or the theory; empty where nothing does."""
    found = []
    for depth, line in enumerate(ours, 1):
        value = line.values
        if depth in PRINTED:
            for key, printed in zip(PRINTED_KEYS, PRINTED[depth], strict=True):
                meant = MEANT if printed == MISPRINT else printed
                number = value[key]
                if number is None or abs(number - meant) > _PRINTED_ERROR:
                    found.append(f"l = {depth}: {COLUMNS[key]} is {number}, printed {printed}.")
        constant = 2.0 - 2.0**-depth
        for key in ("lower", "k", "k4", "k5"):
            number = value[key]
            if number is not None and abs(number - constant) > _ROUNDING:
                found.append(f"l = {depth}: {COLUMNS[key]} is {number}, and 2 - 2^-l is {constant}.")
        error, expected = value["error"], 4.0 ** -(depth + 1)
        if error is None or abs(error - expected) > 1e-3 * expected:
            found.append(f"l = {depth}: the error is {error}, and 4^-(l+1) is {expected}.")
    return tuple(found)


def _printed(key: str) -> list[float | None]:
    place = PRINTED_KEYS.index(key)
    return [values[place] for values in PRINTED.values()]


def _notes(ours: Sequence[Line]) -> tuple[str, ...]:
    """How to read the table."""
    differences = [
        abs(number - printed)
        for line, values in zip(ours, PRINTED.values(), strict=False)
        for key, printed in zip(PRINTED_KEYS, values, strict=True)
        if printed != MISPRINT and (number := line.values[key]) is not None
    ]
    return (
        "K_* and K_1 to K_5 are upper bounds. L is attained: the largest slope found on the network, searched from "
        "the middles between its kinks. K is exact, the largest norm over all gates, shown where enumerating them "
        "takes a few seconds at most. Where L = K_5, up to rounding, the Lipschitz constant is proved: it is 2 - "
        "2^-l.",
        f"The slides print {MISPRINT} at l = 4, for L and for K_4. 2 - 2^-4 is {MEANT}. The largest difference between"
        f" any other printed value and ours is {max(differences):.1e}; some are cut off after five decimals rather "
        "than rounded.",
        "K_5, this toolkit's norm of the sum, takes O(l^2) products where K_4 takes 2^l; beyond 12 hidden layers K_4 "
        "is left out.",
        "K_2 depends on how a matrix is split between two layers: by the thin singular value decomposition, with "
        "square roots of the singular values on either side and the outermost matrices kept as they are.",
        "The error, on [0, 1], is exact as well: the network interpolates x^2 at the multiples of 2^-l and is linear "
        "between them, so the largest difference is that at the middles, 4^-(l+1), and it is measured at all of "
        "them. The source's 4^-l / 3, a sum of suprema, is an upper bound: 4/3 of the error.",
        "The slides start the series x^2 = x - sum g_r / 4^r at r = 0; it holds from r = 1 on, as in their error "
        "estimate.",
    )
