"""Tables and figures of the source papers, computed again: printed values beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from poisonaudit.reproduce.bench import Bench, Settings, Silence, Voice
from poisonaudit.reproduce.cnn_table import despres_cnn
from poisonaudit.reproduce.daroczy_active import daroczy_figure1
from poisonaudit.reproduce.daroczy_bound import daroczy_figure2
from poisonaudit.reproduce.daroczy_estimates import daroczy_figure3, daroczy_table2
from poisonaudit.reproduce.landscape import wang_figure4
from poisonaudit.reproduce.noise_table import weight_noise_family
from poisonaudit.reproduce.product_table import despres_product
from poisonaudit.reproduce.random_table import despres_random
from poisonaudit.reproduce.result import COLUMNS, REPRODUCTION_SCHEMA, Line, Picture, Reproduction, Row
from poisonaudit.reproduce.square_table import despres_square
from poisonaudit.reproduce.tables import wang_table1, wang_table2, wang_table3
from poisonaudit.reproduce.toy import wang_toy
from poisonaudit.reproduce.training_table import lipschitz_training
from poisonaudit.reproduce.writing import render_html, write_reproduction

# A new reproduction is one function in a file here and one line in this table and in TAKEN.
REPRODUCTIONS: dict[str, Callable[[Bench], Reproduction]] = {
    "wang-toy": wang_toy,
    "wang-table1": wang_table1,
    "wang-table2": wang_table2,
    "wang-table3": wang_table3,
    "wang-figure4": wang_figure4,
    "despres-square": despres_square,
    "despres-random": despres_random,
    "despres-product": despres_product,
    "lipschitz-training": lipschitz_training,
    "despres-cnn": despres_cnn,
    "daroczy-figure1": daroczy_figure1,
    "daroczy-figure2": daroczy_figure2,
    "daroczy-figure3": daroczy_figure3,
    "daroczy-table2": daroczy_table2,
    "weight-noise": weight_noise_family,
}

_ON_DATA = frozenset("root data model weights limit decay seed device tolerance max_gradients quick".split())
_TRAINED = frozenset("root limit decay seed device quick".split())
# Which of the settings each one has a use for; `quick` may change nothing.
TAKEN: Mapping[str, frozenset[str]] = {
    "wang-toy": frozenset({"seed", "device", "quick"}),
    "wang-table1": _ON_DATA,
    "wang-table2": _ON_DATA,
    "wang-table3": _ON_DATA,
    "wang-figure4": _ON_DATA,
    "despres-square": frozenset({"seed", "quick", "depth"}),
    "despres-random": frozenset({"seed", "quick", "draws"}),
    "despres-product": frozenset({"seed", "quick", "depth"}),
    "lipschitz-training": frozenset({"seed", "quick", "model", "strengths"}),
    "despres-cnn": frozenset({"data", "limit", "decay", "seed", "quick"}),
    "daroczy-figure1": _TRAINED,
    "daroczy-figure2": frozenset({"seed", "quick"}),
    "daroczy-figure3": _TRAINED,
    "daroczy-table2": _TRAINED,
    "weight-noise": frozenset({"seed", "quick", "draws"}),
}
# Smallest and largest value of whole-number settings.
RANGES: Mapping[str, tuple[int, int]] = {"depth": (1, 16), "draws": (2, 100_000)}

__all__ = [
    "COLUMNS",
    "RANGES",
    "REPRODUCTIONS",
    "REPRODUCTION_SCHEMA",
    "TAKEN",
    "Bench",
    "Line",
    "Picture",
    "Reproduction",
    "Row",
    "Settings",
    "Silence",
    "Voice",
    "render_html",
    "write_reproduction",
]
