"""The test for x y of Després and Pintore: bounds and errors of the networks for a product, by depth."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from poisonaudit.lipschitz import lipschitz_bounds
from poisonaudit.reproduce.bench import Bench
from poisonaudit.reproduce.despres_figures import errors_by_depth, lines_by_depth
from poisonaudit.reproduce.product_network import FORMS, product_model, product_network
from poisonaudit.reproduce.result import DESPRES, Line, Reproduction
from poisonaudit.reproduce.square_table import COLUMNS as SQUARE_COLUMNS
from poisonaudit.reproduce.square_table import DEPTH, bound_values, enumerated

# The lower bound is what was attained here, not L itself.
COLUMNS: Mapping[str, str] = {**SQUARE_COLUMNS, "lower": "lower"}
TOLD = {"source": "source", "yarotsky": "Yarotsky"}
# Largest error times 4^l.
ERRORS = {"source": 0.25, "yarotsky": 1.0}
_MOST_POINTS = 2**18
_JACOBIANS = 512


def despres_product(bench: Bench) -> Reproduction:
    """The network for x y: bounds, what is attained and the uniform error by depth, beside Yarotsky's multiplier."""
    begun = time.perf_counter()
    deepest, seed = bench.settings.depth or DEPTH, bench.settings.seed
    bench.voice.stage("bounds of the networks for x y")
    bench.voice.note(f"networks for x y from {deepest} and fewer terms, l_inf")
    lines: dict[str, list[Line]] = {form: [] for form in FORMS}
    for form, found in lines.items():
        for depth in range(1, deepest + 1):
            bench.voice(f"{TOLD[form]}, depth {depth} of {deepest}", depth / deepest)
            found.append(product_line(form, depth, seed))
    source = lines["source"]
    return Reproduction(
        name="despres-product",
        title="The network for x y: bounds and error by depth",
        rows=tuple(line for found in lines.values() for line in found),
        notes=_notes(source),
        flags=product_flags(lines),
        pictures=(
            lines_by_depth(
                "bounds",
                "Bounds of the source's network for x y by depth",
                {
                    COLUMNS[key]: [line.values[key] for line in source]
                    for key in ("k_star", "k1", "k2", "k3", "k4", "k5")
                },
                ("lower", [line.values["lower"] for line in source]),
            ),
            errors_by_depth(
                "errors",
                "Largest error of the networks for x y by depth",
                {TOLD[form]: [line.values["error"] for line in found] for form, found in lines.items()},
            ),
        ),
        settings={
            "norm": "linf",
            "depth": deepest,
            "domain": "[-1, 1]^2",
            "dtype": "float64",
            "most_points": _MOST_POINTS,
        },
        seed=seed,
        seconds=time.perf_counter() - begun,
        source=DESPRES,
        columns=COLUMNS,
        lead="Ours, by depth l, the number of terms; the source shows a figure without numbers.",
        digits=6,
    )


def product_line(form: str, depth: int, seed: int) -> Line:
    """Bounds and error of one network.

    Args:
        form: "source" or "yarotsky".
        depth: terms l.
        seed: of the points and of the search for the lower bound.

    Returns:
        The row.
    """
    model = product_model(depth, form)
    points = grid(depth, seed)
    with torch.no_grad():
        error = float((model(points)[:, 0] - points.prod(1)).abs().max())
    generator = torch.Generator().manual_seed(seed)
    # Bounds hold on R^2, and Yarotsky's network is steepest outside the square; the source's next to its corner.
    starts = 4.0 * torch.rand(_JACOBIANS, 2, generator=generator, dtype=torch.float64) - 2.0
    starts[0] = 1.0 - 2.0 ** -(depth + 2)
    bounds = lipschitz_bounds(model, "linf", x=starts, seed=seed)
    found = bound_values(bounds) | {"k": enumerated(product_network(depth, form)), "error": error}
    return Line(f"{TOLD[form]}, l = {depth}", {key: found[key] for key in COLUMNS})


def grid(depth: int, seed: int) -> Tensor:
    """Points of [-1, 1]^2 whose coordinates are multiples of 2^-(l+1), all of them or 2^18 drawn ones.

    (x + y) / 2, (x - y) / 2, x / 2 and y / 2 then meet both the kinks of the x^2 networks, where their error is 0, and
    the middles between, where it is largest, in every combination that occurs.

    Args:
        depth: terms l.
        seed: of the draw.

    Returns:
        (n, 2), exact in float64.
    """
    half = 2 ** (depth + 1)
    if (2 * half + 1) ** 2 <= _MOST_POINTS:
        axis = torch.arange(-half, half + 1, dtype=torch.float64)
        return torch.cartesian_prod(axis, axis) / half
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-half, half + 1, (_MOST_POINTS, 2), generator=generator).to(torch.float64) / half


def product_flags(lines: Mapping[str, Sequence[Line]]) -> tuple[str, ...]:
    """What contradicts the closed forms or the order of the bounds; empty where nothing does."""
    found = []
    for form, rows in lines.items():
        for depth, line in enumerate(rows, 1):
            value = line.values
            error, expected = value["error"], ERRORS[form] * 4.0**-depth
            if error is None or abs(error - expected) > 1e-3 * expected:
                found.append(f"{line.label}: the error is {error}, and its closed form {expected}.")
            constant = 2.0 - 2.0**-depth
            for key in ("lower", "k") if form == "source" else ():
                number = value[key]
                if number is not None and abs(number - constant) > 1e-10:
                    found.append(f"{line.label}: {COLUMNS[key]} is {number}, and 2 - 2^-l is {constant}.")
            attained = max(number for key in ("lower", "k") if (number := value[key]) is not None)
            least = min(number for key in ("k1", "k2", "k3", "k4", "k5") if (number := value[key]) is not None)
            if attained > least * (1.0 + 1e-10):
                found.append(f"{line.label}: a bound of {least} is below {attained}, which is attained.")
    return tuple(found)


def _notes(source: Sequence[Line]) -> tuple[str, ...]:
    """How to read the table."""
    k5, lower = source[-1].values["k5"], source[-1].values["lower"]
    ratio = k5 / lower if k5 is not None and lower else math.nan
    return (
        "The slides give T = e_0 + (T o Lambda) / 4 and Lambda as sums of hat functions; the mesh and the figure with"
        " their bounds are not in the text. The factor 1/4, the 4 + 9 hat functions and their signs fit the mesh of "
        "four unit squares on [-1, 1]^2, each cut by both diagonals, and with it the formula holds exactly.",
        "In a = (x + y) / 2 and b = (x - y) / 2 the first l terms are S_l(|a|) - S_l(|b|) with the network S_l for "
        "t^2. That is the network here: one layer of four neurons for |a| and |b|, then two networks for t^2 side by "
        "side, l + 1 hidden layers in all. Bounds depend on the representation; the source's own is not known.",
        "Yarotsky's multiplier is 2 (S_l(|x + y| / 2) - S_l(|x| / 2) - S_l(|y| / 2)): three networks for t^2.",
        "lower is attained at an input (of R^2, not only of the square). K is exact (over all gates; shown where that"
        " takes a few seconds at most). The others are upper bounds; K_2 where no layer is wider than 16.",
        "The source's network has L = K = 2 - 2^-l; x y itself has 2 on [-1, 1]^2. K_3, K_4 and K_5 bound both "
        "partial derivatives one by one and add them up, though the gates that make one largest do not make the other"
        f" so: K_5 is {ratio:.4g} times what is attained at the last depth. That K_4 is optimal for x^2 does not carry"
        " over to x y.",
        "The error, on [-1, 1]^2, is exact: 4^-(l+1) for the source's network, where one square meets a kink and "
        "the other the middle between kinks, and 4^-l for Yarotsky's, where two are off and the third is not. "
        "The points measured contain such places; from l = 7 on they are a drawn part of all of them.",
    )
