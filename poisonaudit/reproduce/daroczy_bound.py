"""Daroczy's figure 2: how the bound of theorem 3.2 follows depth, active units, their spread, norms and widths."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poisonaudit.reproduce.bench import Bench
from poisonaudit.reproduce.daroczy_figures import Curve, bound_by_depth
from poisonaudit.reproduce.result import DAROCZY, Line, Reproduction
from poisonaudit.tangent.moments import log_theorem32_if_normal
from poisonaudit.tangent.printed import log_theorem32_as_printed

INPUTS, OUTPUTS = 3072, 10
DEPTHS = range(2, 31)
COLUMNS: Mapping[str, str] = {
    "printed": "log10, as printed",
    "printed_gain": "its change",
    "appendix": "log10, appendix form",
    "appendix_gain": "its change",
    "corrected": "log10, corrected",
    "corrected_gain": "its change",
}
PEAKS = {"fixed": "the number of active units held at {0:g}", "growing": "{1:.0%} of the hidden units active"}


@dataclass(frozen=True)
class Setting:
    """What the bound depends on.

    Attributes:
        depth: k, number of weight matrices.
        width: of every hidden layer.
        largest: w_max of every matrix.
        mean: mu, active units.
        deviation: s.
    """

    depth: int = 5
    width: int = 100
    largest: float = 0.1
    mean: float = 200.0
    deviation: float = 20.0

    @property
    def weights(self) -> int:
        """N_theta."""
        hidden = (self.depth - 2) * self.width**2
        return INPUTS * self.width + hidden + self.width * OUTPUTS

    def scaled(self, depth: int) -> Setting:
        """Another depth, with the same share of units active and the same relative spread."""
        factor = (depth - 1) / (self.depth - 1)
        return dataclasses.replace(self, depth=depth, mean=factor * self.mean, deviation=factor * self.deviation)

    def bounds(self) -> dict[str, float]:
        """Common logarithms of the three forms."""
        entries, product = self.weights * INPUTS, self.depth * math.log(self.largest)
        paths = (self.depth - 1) * math.log(self.largest)
        forms = {
            "printed": log_theorem32_as_printed(entries, self.depth, product, self.mean, self.deviation),
            "appendix": log_theorem32_as_printed(
                entries, self.depth, product, self.mean, self.deviation, appendix=True
            ),
            "corrected": log_theorem32_if_normal(OUTPUTS * entries, self.depth, paths, self.mean, self.deviation),
        }
        return {name: value / math.log(10.0) for name, value in forms.items()}


BASE = Setting()
# Doubling each in turn; with the depth or the width, units and active units grow along.
DOUBLED: Mapping[str, Setting] = {
    "mean number of active units x 2": dataclasses.replace(BASE, mean=2 * BASE.mean),
    "their deviation x 2": dataclasses.replace(BASE, deviation=2 * BASE.deviation),
    "largest weights x 2": dataclasses.replace(BASE, largest=2 * BASE.largest),
    "width x 2, active units with it": dataclasses.replace(
        BASE, width=2 * BASE.width, mean=2 * BASE.mean, deviation=2 * BASE.deviation
    ),
    "hidden layers x 2, active units with them": BASE.scaled(2 * BASE.depth - 1),
    "hidden layers x 2, active units as before": dataclasses.replace(BASE, depth=2 * BASE.depth - 1),
}
VARIED: Mapping[str, tuple[str, Sequence[float]]] = {
    "mean": ("mean active units", (100.0, 200.0, 300.0)),
    "deviation": ("their deviation", (5.0, 20.0, 80.0)),
    "largest": ("largest weights", (0.01, 0.05, 0.2)),
    "width": ("width", (50.0, 100.0, 200.0)),
}


def daroczy_figure2(bench: Bench) -> Reproduction:
    """Figure 2: theorem 3.2 by depth for several means and spreads of active units, norms and widths; no data."""
    begun = time.perf_counter()
    bench.voice.note("theorem 3.2 as a formula; no data and no training")
    base = BASE.bounds()
    rows = [Line(_told(BASE), {key: base.get(key) for key in COLUMNS})]
    rows += [Line(told, _changed(setting, base)) for told, setting in DOUBLED.items()]
    return Reproduction(
        name="daroczy-figure2",
        title="Figure 2: the bound of theorem 3.2 by mean, variance, norm, width and depth",
        rows=tuple(rows),
        notes=_notes(),
        pictures=(
            bound_by_depth("fixed", {VARIED[key][0]: _curves(key, growing=False) for key in VARIED}),
            bound_by_depth("growing", {VARIED[key][0]: _curves(key, growing=True) for key in VARIED}),
        ),
        settings={"inputs": INPUTS, "outputs": OUTPUTS, **dataclasses.asdict(BASE)},
        details={"peaks": {told: _peaks(growing) for told, growing in (("fixed", False), ("growing", True))}},
        seed=bench.settings.seed,
        seconds=time.perf_counter() - begun,
        source=DAROCZY,
        columns=COLUMNS,
        lead="The paper prints four pictures and no numbers, nor the settings behind them.",
    )


def curve(setting: Setting, form: str, *, growing: bool) -> list[float]:
    """Common logarithm of a form by depth.

    Args:
        setting: at depth 5.
        form: "printed", "appendix" or "corrected".
        growing: active units grow with the hidden layers; otherwise their number stays.

    Returns:
        One for each of `DEPTHS`.
    """
    at = (setting.scaled(depth) if growing else dataclasses.replace(setting, depth=depth) for depth in DEPTHS)
    return [each.bounds()[form] for each in at]


def _curves(key: str, *, growing: bool) -> list[Curve]:
    found = []
    for value in VARIED[key][1]:
        changed = _with(key, value)
        values = {form: curve(changed, form, growing=growing) for form in ("printed", "corrected")}
        found.append(Curve(f"{value:g}", list(DEPTHS), values["printed"], values["corrected"]))
    return found


def _with(key: str, value: float) -> Setting:
    """The base with one factor changed; with the width, the active units grow along."""
    if key == "width":
        factor = value / BASE.width
        return dataclasses.replace(BASE, width=int(value), mean=factor * BASE.mean, deviation=factor * BASE.deviation)
    changes: dict[str, Any] = {key: value}
    return dataclasses.replace(BASE, **changes)


def _changed(setting: Setting, base: Mapping[str, float]) -> dict[str, float | None]:
    found = setting.bounds()
    gains = {f"{key}_gain": found[key] - base[key] for key in found}
    return {key: (found | gains)[key] for key in COLUMNS}


def _peaks(growing: bool) -> dict[str, dict[str, int]]:
    """Depth at which each form is largest, by the largest weight."""
    found: dict[str, dict[str, int]] = {}
    for largest in (0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0):
        setting = dataclasses.replace(BASE, largest=largest)
        curves = {form: curve(setting, form, growing=growing) for form in ("printed", "corrected")}
        found[f"{largest:g}"] = {form: DEPTHS[values.index(max(values))] for form, values in curves.items()}
    return found


def _told(setting: Setting) -> str:
    return (
        f"k = {setting.depth}, width {setting.width}, w_max {setting.largest:g}, active units {setting.mean:g} +- "
        f"{setting.deviation:g}"
    )


def _notes() -> tuple[str, ...]:
    gains = {told: setting.bounds()["corrected"] - BASE.bounds()["corrected"] for told, setting in DOUBLED.items()}
    ranked = sorted(gains, key=lambda told: -abs(gains[told]))
    order = "; ".join(f"{told}: {gains[told]:+.2f}" for told in ranked)
    peaks = []
    for name, told in PEAKS.items():
        found = _peaks(name == "growing")
        parts = [
            f"{largest}: {_peak(both['printed'])} and {_peak(both['corrected'])}" for largest, both in found.items()
        ]
        peaks.append(f"{told.format(BASE.mean, BASE.mean / ((BASE.depth - 1) * BASE.width))}: {', '.join(parts)}")
    return (
        f"The network of the paper's table 1: {INPUTS} inputs, {OUTPUTS} outputs, k - 1 hidden layers of equal width. "
        "The printed form and the appendix's are not bounds; the corrected one is, were the number of active units "
        "normal.",
        f"Change of log10 of the corrected bound when one factor is doubled: {order}. The paper: the most important "
        "factor is the depth, then the norms, then the variance of the number of active units.",
        f"Depth at which the printed and the corrected form are largest, by w_max, {'; '.join(peaks)}. The paper: with "
        "low norms the bound decreases beyond a certain depth. That holds for a fixed number of active units at any "
        "norm, for k^(-2k) wins in the end; with a fixed share of active units it takes norms below about 1 / (active "
        "units per layer).",
    )


def _peak(depth: int) -> str:
    """A depth, or that the curve has no top inside."""
    return f"k = {depth}" if depth < DEPTHS[-1] else f"beyond {DEPTHS[-1]}"
