"""The formats a stored result can be rendered in, by name."""

from __future__ import annotations

from collections.abc import Callable

from poisonaudit.registry import lookup
from poisonaudit.report.exchange import render_junit, render_sarif
from poisonaudit.report.html import render_html
from poisonaudit.report.markdown import render_markdown
from poisonaudit.report.page import Result
from poisonaudit.report.tables import render_csv, render_json

# Every entry: (result, *, command="", title=None) -> text.
FORMATS: dict[str, Callable[..., str]] = {
    "html": render_html,
    "json": render_json,
    "csv": render_csv,
    "md": render_markdown,
    "sarif": render_sarif,
    "junit": render_junit,
}
SUFFIXES: dict[str, str] = {
    "html": ".html",
    "json": ".json",
    "csv": ".csv",
    "md": ".md",
    "sarif": ".sarif",
    "junit": ".junit.xml",
}


def render(result: Result, form: str, *, command: str = "", title: str | None = None) -> str:
    """Render a result in the named format.

    Args:
        result: a comparison, an audit or an attack.
        form: a key of `FORMATS`.
        command: the command line that reproduces the result, for the formats that show it.
        title: of the document, for the formats that have one.

    Returns:
        The document as text, to be stored as UTF-8.

    Raises:
        UsageError: PA301, no format has that name.
    """  # noqa: DOC502 - raised by lookup
    return lookup(FORMATS, form, "report format")(result, command=command, title=title)
