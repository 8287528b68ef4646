"""What a reproduction found: the paper's printed numbers beside ours, and the pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from poisonaudit.results import finite

REPRODUCTION_SCHEMA = "poisonaudit/reproduction/1"
DESPRES = "Després and Pintore, Lipschitz stability of deep neural networks in view of applications (slides)"
DAROCZY = "Daróczy, Tangent space sensitivity and distribution of linear regions in ReLU networks"
WANG = "Wang, Wang and Ban, Set-valued sensitivity analysis of deep neural networks, AAAI 2025"

LEAD = "Printed values beside ours, with both scalings, and beside retraining."

# Key of a number in a `Row` -> heading of its column, in the order shown.
COLUMNS: Mapping[str, str] = {
    "printed": "Printed",
    "ours_mean": 'Ours, 1/n ("mean")',
    "ours_paper": 'Ours, 1/|K| ("paper")',
    "retrained": "Retrained",
}


@dataclass(frozen=True)
class Row:
    """One quantity of a table or figure.

    Attributes:
        label: what it is, with its unit.
        printed: the paper's number, None where it prints none.
        ours_mean: ours, with 1/n in both terms of the derivative (the true derivative of the mean loss).
        ours_paper: ours, with the paper's 1/|K| in the mixed term. Equal to `ours_mean` where no derivative enters.
        retrained: the same quantity at the solution that retraining reaches.
        remark: what to know about this row.
    """

    label: str
    printed: float | None = None
    ours_mean: float | None = None
    ours_paper: float | None = None
    retrained: float | None = None
    remark: str = ""

    @property
    def numbers(self) -> tuple[float | None, ...]:
        """The four numbers, in the order of `COLUMNS`."""
        return tuple(getattr(self, key) for key in COLUMNS)

    def to_json(self) -> dict[str, Any]:
        """The row as plain data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Line:
    """One row of a table that has columns of its own.

    Attributes:
        label: what it is about.
        values: key of a column -> its number, None where there is none; the keys are those of the table's `columns`.
        remark: what to know about this row.
    """

    label: str
    values: Mapping[str, float | None]
    remark: str = ""

    @property
    def numbers(self) -> tuple[float | None, ...]:
        """The numbers, in the order of the columns."""
        return tuple(self.values.values())

    def to_json(self) -> dict[str, Any]:
        """The row as plain data, a key for each column."""
        return {"label": self.label, **self.values, "remark": self.remark}


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        name: of its file, without the suffix.
        title: short.
        text: what is to be seen, in words.
        svg: an SVG element for a page; see `picture_file` for the form that stands alone.
    """

    name: str
    title: str
    text: str
    svg: str = field(repr=False)

    @property
    def file(self) -> str:
        """Name of its file in a run."""
        return f"{self.name}.svg"


@dataclass(frozen=True)
class Reproduction:
    """One table or figure of a source paper, computed again.

    Attributes:
        name: as in `poisonaudit ls reproductions`.
        title: what of the paper it is.
        rows: printed numbers beside ours; a `Line` where the table has columns of its own.
        notes: what has to be known to read them: readings, conventions, errors of the paper, with figures.
        flags: reasons not to trust a number in it, the retrained column above all; empty where there are none.
        pictures: figures.
        settings: what it was computed on and how, resolved.
        details: further figures behind the rows, plain data.
        inputs: input name -> sha256.
        seed: the seed used.
        seconds: wall time of this process, stages kept from an interrupted run not counted.
        source: the paper.
        columns: key of a number -> heading of its column, the same keys in every row.
        lead: what the numbers are, in a sentence.
        digits: significant digits shown.
    """

    name: str
    title: str
    rows: Sequence[Row | Line]
    notes: Sequence[str] = ()
    flags: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    source: str = WANG
    columns: Mapping[str, str] = field(default_factory=lambda: dict(COLUMNS))
    lead: str = LEAD
    digits: int = 4

    def to_json(self) -> dict[str, Any]:
        """The `poisonaudit/reproduction/1` form; holds no NaN or Infinity, and pictures by file name."""
        kept = ("name", "title", "source", "notes", "flags", "settings", "details", "inputs", "seed", "seconds")
        body = {"schema": REPRODUCTION_SCHEMA, **{key: getattr(self, key) for key in kept}}
        body["columns"] = dict(self.columns)
        body["rows"] = [row.to_json() for row in self.rows]
        body["figures"] = [{"file": item.file, "title": item.title, "text": item.text} for item in self.pictures]
        plain: dict[str, Any] = finite(body)
        return plain
