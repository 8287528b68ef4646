"""Tables and figures of the source papers, computed again: printed values beside ours and beside retraining."""

from __future__ import annotations

from collections.abc import Callable

from poisonaudit.reproduce.bench import Bench, Settings, Silence, Voice
from poisonaudit.reproduce.landscape import wang_figure4
from poisonaudit.reproduce.result import COLUMNS, REPRODUCTION_SCHEMA, Picture, Reproduction, Row
from poisonaudit.reproduce.tables import wang_table1, wang_table2, wang_table3
from poisonaudit.reproduce.toy import wang_toy
from poisonaudit.reproduce.writing import render_html, write_reproduction

# A new reproduction is one function in a file here and one line in this table.
REPRODUCTIONS: dict[str, Callable[[Bench], Reproduction]] = {
    "wang-toy": wang_toy,
    "wang-table1": wang_table1,
    "wang-table2": wang_table2,
    "wang-table3": wang_table3,
    "wang-figure4": wang_figure4,
}

__all__ = [
    "COLUMNS",
    "REPRODUCTIONS",
    "REPRODUCTION_SCHEMA",
    "Bench",
    "Picture",
    "Reproduction",
    "Row",
    "Settings",
    "Silence",
    "Voice",
    "render_html",
    "write_reproduction",
]
