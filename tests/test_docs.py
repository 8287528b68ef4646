"""The documentation's small cases are run as they stand."""

from __future__ import annotations

import dataclasses
import doctest
from pathlib import Path

import pytest

from poisonaudit.config.load import load_config
from poisonaudit.config.schema import AttackConfig, HardeningConfig, SearchConfig

DOCS = Path(__file__).parent.parent / "docs"
WITH_EXAMPLES = sorted(path for path in DOCS.glob("*.md") if ">>> " in path.read_text())


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.name)
def test_examples_print_what_is_printed(path: Path) -> None:
    result = doctest.testfile(str(path), module_relative=False)
    assert result.attempted > 5 and result.failed == 0


def recipes_in(page: str) -> list[str]:
    return [block.partition("```")[0] for block in (DOCS / page).read_text().split("```yaml\n")[1:]]


@pytest.mark.parametrize("block", recipes_in("guide.md"), ids=lambda block: block.partition("\n")[0])
def test_recipes_in_the_guide_are_well_formed(block: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(block)
    load_config(AttackConfig, [tmp_path / "recipe.yaml"])


def test_the_guide_shows_every_part_of_a_recipe() -> None:
    known = {field.name for field in dataclasses.fields(SearchConfig)} | {"hardening", "export", "search"}
    known |= {field.name for field in dataclasses.fields(HardeningConfig)}
    example = next(block for block in recipes_in("guide.md") if "search:" in block)
    assert all(f"{name}:" in example for name in known)


def test_every_page_is_reachable() -> None:
    linked = " ".join(path.read_text() for path in [DOCS.parent / "README.md", *DOCS.glob("*.md")])
    for path in DOCS.glob("*.md"):
        assert f"({path.name})" in linked or f"(docs/{path.name})" in linked, f"no page links to {path.name}"
