"""The documentation's small cases are run as they stand."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
WITH_EXAMPLES = sorted(path for path in DOCS.glob("*.md") if ">>> " in path.read_text())


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.name)
def test_examples_print_what_is_printed(path: Path) -> None:
    result = doctest.testfile(str(path), module_relative=False)
    assert result.attempted > 5 and result.failed == 0


def test_every_page_is_reachable() -> None:
    linked = " ".join(path.read_text() for path in [DOCS.parent / "README.md", *DOCS.glob("*.md")])
    for path in DOCS.glob("*.md"):
        assert f"({path.name})" in linked or f"(docs/{path.name})" in linked, f"no page links to {path.name}"
