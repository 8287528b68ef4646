"""A reproduction as files: results.json, table.csv, table.md, one SVG per figure, reproduction.html."""

from __future__ import annotations

import csv
import io
import re
from functools import cache
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader
from markupsafe import Markup

from poisonaudit.report.formats import flat, printable
from poisonaudit.report.html import content_policy, stylesheet, templates
from poisonaudit.report.markdown import table as markdown_table
from poisonaudit.reproduce.result import Picture, Reproduction
from poisonaudit.results import finite
from poisonaudit.store import RunFolder

_TEMPLATES = Path(__file__).parent / "templates"
# What the page's style sheet gives the classes of `report.svg`, for pictures that stand alone.
_COLOURS = {
    "ink": "#1c1f24",
    "muted": "#5c6470",
    "grid": "#d7dbe0",
    "paper": "#ffffff",
    "accent": "#1f5fa8",
    "second": "#b4540a",
    "control": "#2c7a3f",
    "warn": "#b3261e",
}


def write_reproduction(folder: RunFolder, result: Reproduction, command: str = "") -> None:
    """Write every form of the result into a run.

    Args:
        folder: of the run.
        result: what was found.
        command: the command line, for the page.
    """
    folder.write_json("results.json", result.to_json())
    folder.write_text("table.csv", render_csv(result))
    folder.write_text("table.md", render_markdown(result))
    for picture in result.pictures:
        folder.write_text(picture.file, picture_file(picture))
    folder.write_text("reproduction.html", render_html(result, command))


def render_csv(result: Reproduction) -> str:
    """One line per row, all digits; empty where there is no number."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["quantity", *result.columns, "remark"])
    for row in result.rows:
        numbers = ["" if finite(value) is None else repr(value) for value in row.numbers]
        writer.writerow([row.label, *numbers, row.remark])
    return buffer.getvalue()


def render_markdown(result: Reproduction) -> str:
    """The table, then flags and notes."""
    head = ["Quantity", *result.columns.values(), "Remark"]
    digits = result.digits
    rows = [[row.label, *(short(value, digits) for value in row.numbers), row.remark] for row in result.rows]
    lines = [f"# {result.title}", "", result.source + ".", "", *markdown_table(head, rows), ""]
    if result.flags:
        lines += ["Not to be trusted as it stands:", "", *(f"- {text}" for text in result.flags), ""]
    lines += [f"- {text}" for text in result.notes]
    return printable("\n".join(lines)) + "\n"


def render_html(result: Reproduction, command: str = "") -> str:
    """One self-contained page: no script, nothing from outside, a strict content policy, everything escaped.

    Args:
        result: what to show.
        command: the command line that gives it.

    Returns:
        The page.
    """
    style = stylesheet()
    page = (
        page_templates()
        .get_template("reproduction.html")
        .render(
            result=result,
            columns=result.columns,
            command=command,
            style=Markup(style),  # noqa: S704 - our own file, no user data
            policy=content_policy(style),
            pictures=[(picture, Markup(picture.svg)) for picture in result.pictures],  # noqa: S704 - drawn by report.svg
            settings=flat(finite(dict(result.settings))),
        )
    )
    return printable(page)


@cache
def page_templates() -> Environment:
    """The report's templates and macros, with this room's own beside them."""
    shared = templates()
    loaders = [FileSystemLoader(_TEMPLATES), *([shared.loader] if shared.loader is not None else [])]
    return shared.overlay(loader=ChoiceLoader(loaders))


def picture_file(picture: Picture) -> str:
    """The SVG with its name space and its colours, so that it stands alone."""
    rules = [f".{kind}-{name}{{{kind}:{colour}}}" for name, colour in _COLOURS.items() for kind in ("fill", "stroke")]
    opening = re.match(r"<svg[^>]*>", picture.svg)
    if opening is None:
        return picture.svg
    head = opening.group(0).replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    style = f'<style>{"".join(rules)}</style><rect width="100%" height="100%" fill="#ffffff"/>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}{style}{picture.svg[opening.end() :]}\n'


def short(value: float | None, digits: int = 4) -> str:
    """A few significant digits, a dash where there is no number."""
    return "–" if finite(value) is None else f"{value:.{digits}g}"
