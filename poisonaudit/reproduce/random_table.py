"""The table of random matrices of Després and Pintore: K and its bounds over K_* for 8-10-6-3 networks."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from poisonaudit.lipschitz import exact_constant, lipschitz_bounds
from poisonaudit.reproduce.bench import Bench, Made
from poisonaudit.reproduce.despres_figures import ratio_histograms
from poisonaudit.reproduce.result import DESPRES, Line, Reproduction

DRAWS, DRAWS_IF_QUICK = 1000, 100
WIDTHS = (8, 10, 6, 3)
COLUMNS: Mapping[str, str] = {
    "k": "K/K_*",
    "k1": "K_1/K_*",
    "k2": "K_2/K_*",
    "k3": "K_3/K_*",
    "k4": "K_4/K_*",
    "k5": "K_5/K_*",
}
# Not in the source's table: what the toolkit adds on either side of K.
BESIDE = ("ellipsoid", "lower")
STATISTICS = ("Maximum", "Average", "Minimum", "Standard deviation")
# Of 1,000 draws, in the order of STATISTICS.
PRINTED: Mapping[str, tuple[float, float, float, float]] = {
    "k": (0.2772, 0.1422, 0.0595, 0.0343),
    "k1": (0.5786, 0.4539, 0.3703, 0.0350),
    "k2": (0.6789, 0.3256, 0.1597, 0.0685),
    "k3": (0.8023, 0.5461, 0.2897, 0.0813),
    "k4": (0.4608, 0.2875, 0.1604, 0.0483),
}
_PRINTED_DRAWS = 1000
_BLOCK = 250
# Averages further apart than this many standard errors of their difference are flagged.
_FAR = 4.0


def despres_random(bench: Bench) -> Reproduction:
    """Random 8-10-6-3 networks: exact K and K_1 to K_5 over K_*, their spread beside the printed one."""
    begun = time.perf_counter()
    settings = bench.settings
    count = settings.draws or (DRAWS_IF_QUICK if settings.quick else DRAWS)
    bench.voice.note(f"{count:,} networks {'-'.join(map(str, WIDTHS))} with N(0, 1) weights, seed {settings.seed}")
    networks = drawn(count, settings.seed)
    found: dict[str, list[Tensor]] = {key: [] for key in (*COLUMNS, *BESIDE)}
    seconds = 0.0
    for first in range(0, count, _BLOCK):
        part = networks[first : first + _BLOCK]
        text = f"draws {first + 1} to {first + len(part)} of {count:,}"
        # The size of the block is in the name: a run with other --draws never takes it for its own.
        tensors, facts = bench.kept(f"draws-{first}-{len(part)}", text, lambda part=part: _measured(part, bench))  # type: ignore[misc]
        seconds += float(facts["enumeration_seconds"])
        for key, values in found.items():
            values.append(tensors[key])
    ratios = {key: torch.cat(values) for key, values in found.items()}
    compared = {key: difference(ratios[key], PRINTED[key]) for key in PRINTED}
    return Reproduction(
        name="despres-random",
        title="Random 8-10-6-3 networks: K and its bounds over K_*",
        rows=tuple(_rows(ratios, compared)),
        notes=_notes(ratios, settings.seed, seconds),
        flags=random_flags(ratios, compared),
        pictures=(
            ratio_histograms(
                {COLUMNS[key]: ratios[key] for key in COLUMNS}, {COLUMNS[key]: PRINTED[key] for key in PRINTED}
            ),
        ),
        settings={"norm": "linf", "draws": count, "widths": list(WIDTHS), "weights": "N(0, 1)", "dtype": "float64"},
        details={
            "standard_errors": {key: _error_of_mean(values) for key, values in ratios.items()},
            "standard_errors_between_averages": compared,
            "averages_beside": {key: float(ratios[key].mean()) for key in BESIDE},
            "smallest_of_k1_to_k4": _shares(ratios),
            "enumeration_seconds": seconds,
        },
        seed=settings.seed,
        seconds=time.perf_counter() - begun,
        source=DESPRES,
        columns=COLUMNS,
        lead=f"Printed statistics of 1,000 draws above ours of {count:,}.",
    )


def drawn(count: int, seed: int) -> list[list[Tensor]]:
    """Networks with N(0, 1) weights, one after the other from one generator.

    Args:
        count: how many.
        seed: of the generator; the first networks do not depend on `count`.

    Returns:
        Per network `[W_0, W_1, W_2]`, (10, 8), (6, 10), (3, 6), float64.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = tuple(zip(WIDTHS[1:], WIDTHS[:-1], strict=True))
    return [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes] for _ in range(count)]


def ratios_of(matrices: Sequence[Tensor]) -> tuple[dict[str, float], float]:
    """K and every bound of one network over its K_*.

    Args:
        matrices: `[W_0, W_1, W_2]`.

    Returns:
        Ratios by the keys of the columns, with those beside them; and the seconds that K took.
    """
    started = time.perf_counter()
    k = exact_constant(matrices)
    seconds = time.perf_counter() - started
    bounds = lipschitz_bounds(matrices)
    values = {key: getattr(bounds, key) for key in (*COLUMNS, *BESIDE) if key != "k"} | {"k": k}
    return {key: math.nan if value is None else value / bounds.k_star for key, value in values.items()}, seconds


def difference(values: Tensor, printed: tuple[float, float, float, float]) -> float:
    """Our average minus the printed one, in standard errors of that difference.

    Args:
        values: ours, one per draw.
        printed: maximum, average, minimum, standard deviation of 1,000 draws.

    Returns:
        About N(0, 1) if both are draws from one distribution.
    """
    _, mean, _, deviation = printed
    error = math.sqrt(_error_of_mean(values) ** 2 + deviation**2 / _PRINTED_DRAWS)
    return (float(values.mean()) - mean) / error


def random_flags(ratios: Mapping[str, Tensor], compared: Mapping[str, float]) -> tuple[str, ...]:
    """Averages that differ from the printed ones by more than chance, and bounds below K; empty if all is well."""
    found = [
        f"{COLUMNS[key]}: the averages differ by {value:.1f} standard errors."
        for key, value in compared.items()
        if not abs(value) <= _FAR
    ]
    for key in (*(key for key in COLUMNS if key != "k"), "ellipsoid"):
        below = int((ratios[key] < ratios["k"] * (1.0 - 1e-10)).sum())
        if below:
            found.append(f"{key} is below K, which it bounds, in {below} draws.")
    above = int((ratios["lower"] > ratios["k"] * (1.0 + 1e-10)).sum())
    if above:
        found.append(f"lower is above K in {above} draws.")
    return tuple(found)


def _measured(networks: Sequence[Sequence[Tensor]], bench: Bench) -> Made:
    """Ratios of a block of networks, as a stage to keep."""
    rows: list[dict[str, float]] = []
    total = 0.0
    for place, matrices in enumerate(networks, 1):
        row, seconds = ratios_of(matrices)
        rows.append(row)
        total += seconds
        bench.voice(f"network {place} of {len(networks)}", place / len(networks))
    facts: dict[str, Any] = {"enumeration_seconds": total}
    return {key: torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in (*COLUMNS, *BESIDE)}, facts


def _rows(ratios: Mapping[str, Tensor], compared: Mapping[str, float]) -> list[Line]:
    ours = {key: _statistics(ratios[key]) for key in COLUMNS}
    rows = []
    for place, name in enumerate(STATISTICS):
        printed = {key: PRINTED[key][place] if key in PRINTED else None for key in COLUMNS}
        rows += [Line(f"{name}, printed", printed), Line(f"{name}, ours", {key: ours[key][place] for key in COLUMNS})]
    told = "our average minus the printed one over the standard error of that difference"
    rows.append(Line("Difference in standard errors", {key: compared.get(key) for key in COLUMNS}, told))
    return rows


def _statistics(values: Tensor) -> tuple[float, float, float, float]:
    return float(values.max()), float(values.mean()), float(values.min()), float(values.std())


def _error_of_mean(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


def _shares(ratios: Mapping[str, Tensor]) -> dict[str, float]:
    """In which share of the draws each of the source's bounds is the smallest of them."""
    names = ("k1", "k2", "k3", "k4")
    best = torch.stack([ratios[name] for name in names]).argmin(0)
    return {name: float((best == place).double().mean()) for place, name in enumerate(names)}


def _notes(ratios: Mapping[str, Tensor], seed: int, seconds: float) -> tuple[str, ...]:
    count = len(ratios["k"])
    shares = _shares(ratios)
    gain = ratios["k5"] / ratios["k4"]
    means = {key: float(ratios[key].mean()) for key in ("k1", "k2", "k3", "k4")}
    best = min(means, key=lambda key: means[key]).replace("k", "K_")
    beside = {key: float(ratios[key].mean()) for key in BESIDE}
    return (
        "l_inf. The last row compares the averages. Largest and smallest values of so many draws vary from seed to "
        "seed; their differences say nothing.",
        f"Seed {seed}; the source does not give one. The entries are drawn layer by layer from one generator.",
        f"K is exact: all 2^16 gate patterns of every network, {1e3 * seconds / count:.2f} ms each. The signs of the 8 "
        "inputs and the 6 gates of the second hidden layer are enumerated, the 10 gates of the first are maximised in "
        "closed form, and all combinations are one matrix product.",
        f"Of K_1 to K_4, K_4 is the smallest in {shares['k4']:.1%} of the draws and K_2 in {shares['k2']:.1%}. "
        f"On average {best} is the smallest of the four; the source finds K_4 the best.",
        f"K_5, not in the source, is never above K_4: {float(gain.mean()):.3f} of it on average, from "
        f"{float(gain.min()):.3f} to {float(gain.max()):.3f}.",
        f"Beside them, on average: this toolkit's ellipsoid bound {beside['ellipsoid']:.3f} of K_*, and the largest "
        f"Jacobian norm found at an input {beside['lower']:.3f} (without biases; below K, whose gates may not occur "
        "together).",
    )
