"""From results to reports: compare models, render one self-contained page, tables and exchange formats."""

from __future__ import annotations

from poisonaudit.report.comparison import ORDER_RULE, compare
from poisonaudit.report.exchange import render_junit, render_sarif
from poisonaudit.report.html import render_html
from poisonaudit.report.markdown import render_markdown
from poisonaudit.report.render import FORMATS, SUFFIXES, render
from poisonaudit.report.tables import render_csv, render_json

__all__ = [
    "FORMATS",
    "ORDER_RULE",
    "SUFFIXES",
    "compare",
    "render",
    "render_csv",
    "render_html",
    "render_json",
    "render_junit",
    "render_markdown",
    "render_sarif",
]
