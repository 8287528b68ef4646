"""The one-way flow of imports, and the file sizes that keep rooms readable."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "poisonaudit"

# What may be imported by everybody: values and vocabulary, no work.
COMMON = {"arguments", "errors", "registry", "spec", "results", "losses", "problem"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "registry": {"errors"},
    "spec": {"errors", "registry"},
    "results": set(),
    "arguments": set(),
    "quantities": set(),
    "layers": {"errors"},
    "tracing": set(),
    "losses": {"errors", "registry"},
    "row_by_row": set(),
    "row_statistics": set(),
    "problem": {"errors", "layers", "losses", "row_by_row"},
    "data": {"errors", "registry", "spec", "store"},
    "models": {"errors", "registry", "spec", "store", "code_files"},
    "code_files": {"errors", "spec", "store"},
    "store": {"errors", "results"},
    "operators": COMMON | {"tracing"},
    "solvers": COMMON,
    "krylov_newton": COMMON | {"operators", "solvers"},
    "newton": COMMON | {"operators", "solvers", "krylov_newton", "validity"},
    "warm_up": {"layers"},
    "owner_training": COMMON | {"warm_up"},
    "training": COMMON | {"operators", "solvers", "newton", "warm_up"},
    "validity": COMMON,
    "sensitivity": COMMON | {"operators", "solvers", "newton", "training", "validity"},
    "lipschitz": {"errors", "registry", "results", "layers", "tracing"},
    "tangent": {"arguments", "errors", "registry", "results", "layers", "row_by_row"},
    "weight_noise": {"arguments", "errors", "registry", "results", "layers", "row_by_row", "row_statistics", "tracing"},
    "art_estimator": set(),
    "audit": COMMON
    | {
        "art_estimator",
        "row_statistics",
        "operators",
        "solvers",
        "training",
        "validity",
        "sensitivity",
        "lipschitz",
        "tangent",
        "weight_noise",
    },
    "attack": COMMON
    | {"art_estimator", "owner_training", "operators", "solvers", "training", "validity", "sensitivity"},
    "verify": COMMON
    | {
        "layers",
        "training",
        "validity",
        "owner_training",
        "warm_up",
        "sensitivity",
        "attack",
        "code_files",
        "quantities",
    },
    "gates": {"errors", "registry", "results", "quantities", "audit"},
    "report": {"errors", "registry", "results", "quantities"},
    "config": {"arguments", "errors", "registry", "results", "spec"},
    "reproduce": COMMON
    | {
        "data",
        "models",
        "store",
        "operators",
        "training",
        "validity",
        "sensitivity",
        "lipschitz",
        "tangent",
        "weight_noise",
        "report",
    },
}


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_rooms(path: Path) -> set[str]:
    """Rooms a file imports anywhere, inside functions too; type-checking imports count as well."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "poisonaudit" and len(parts) > 1:
                rooms.add(parts[1])
    return rooms


FILES = sorted(path for path in PACKAGE.rglob("*.py") if "catalogue" not in path.relative_to(PACKAGE).parts[:-1])


def test_every_room_has_a_rule() -> None:
    rooms = {room(path) for path in FILES} - {"__init__", "cli"}
    assert rooms == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_flow_one_way(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        assert "cli" not in imported_rooms(path) and "config" not in imported_rooms(path)
        return
    rooms = {name for name in imported_rooms(path) if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()}
    if here != "cli":
        beyond = rooms - ALLOWED[here] - {here}
        assert not beyond, f"{here} imports {sorted(beyond)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_the_rule_itself_is_acyclic() -> None:
    left = {name: set(targets) & set(ALLOWED) for name, targets in ALLOWED.items()}
    while left:
        free = [name for name, targets in left.items() if not targets]
        assert free, f"cycle among {sorted(left)}"
        for name in free:
            left.pop(name)
        for targets in left.values():
            targets.difference_update(free)


def test_no_file_tells_of_the_machine_it_was_written_on() -> None:
    tree = PACKAGE.parent
    for folder in ("poisonaudit", "tests", "docs", "attacks", "configs", "benchmarks"):
        for path in (tree / folder).rglob("*"):
            if path.is_file() and path.suffix in {".py", ".md", ".yaml", ".json", ".toml", ".html", ".csv"}:
                text = path.read_text(errors="ignore")
                for mark in ("/wo" + "rk/", "/ro" + "ot/", "pypi" + "."):
                    assert mark not in text, f"{path}: {mark}"
