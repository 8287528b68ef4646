"""The tables of docs/predictive_validity.md, from the result file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.predictive_analysis import DAMAGES

PAGE = Path(__file__).parent.parent / "docs" / "predictive_validity.md"
BEGIN, END = "<!-- results: written by python -m benchmarks.predictive_validity --docs -->", "<!-- end of results -->"
_DESCRIBED = ("lowest", "median", "highest", "agreement_of_seeds")
_HEADS = {
    "movement": "movement",
    "loss_own": "loss, own start",
    "loss_fresh": "loss, fresh",
    "accuracy_fresh": "accuracy, fresh",
    "margin_own": "margin, own start",
    "margin_fresh": "margin, fresh",
    "flips_fresh": "flips, fresh",
}


def rewrite(record: Mapping[str, Any], page: Path = PAGE) -> None:
    """Replace what stands between the two marks of the page.

    Args:
        record: the result file.
        page: to be changed in place.

    Raises:
        ValueError: the page lacks the marks.
    """
    text = page.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page.name} lacks the lines {BEGIN!r} and {END!r}. Put them where the tables belong.")
    page.write_text(f"{head}{BEGIN}\n\n{results(record)}\n{END}{tail}")


def results(record: Mapping[str, Any]) -> str:
    """The section in Markdown."""
    found = record["summary"]
    machine, versions = record["machine"], record["versions"]
    parts = [
        f"{found['models']} models, {record['date']}, {machine['processor']}, torch {versions['torch']}.",
        "### What the poison did",
        _table(
            ("damage", "models", "lowest", "median", "highest", "agreement of seeds"),
            [
                (f"{_HEADS[harm]}: {DAMAGES[harm]}", each["models"], *(_number(each.get(key)) for key in _DESCRIBED))
                for harm, each in found["damages"].items()
            ],
        ),
        "### Rank correlation within data sets",
        _reading(found),
        _correlations(found["correlations"], "within"),
        f"### The same with {found['control']} held fixed",
        _correlations(found["correlations"], "partial"),
        "### Over all models at once",
        _correlations(found["correlations"], "pooled"),
        "### Beside the best baseline",
        _baselines(found),
        _comparisons(found["comparisons"]),
        "### Solution measures, numbers that were declared invalid counted too",
        _correlations(found["flagged"], "within"),
        "### What is missing",
        _missing(found),
    ]
    return "\n\n".join(parts) + "\n"


def _reading(found: Mapping[str, Any]) -> str:
    return (
        f"{found['tests']} tests of audit measures: {found['expected_false_finds']:.1f} would come out below "
        f"{found['level']:g} if nothing predicted anything, {found['finds']} did, and {found['finds_holm']} do after "
        "Holm's correction for all of them (bold)."
    )


def _correlations(entries: Sequence[Mapping[str, Any]], form: str) -> str:
    """One row a score, one column a damage."""
    names = list(dict.fromkeys(each["score"] for each in entries))
    cells = {(each["score"], each["damage"]): _cell(each[form]) for each in entries}
    rows = [(_code(name), *(cells[name, harm] for harm in DAMAGES)) for name in names]
    return _table(("score", *_HEADS.values()), rows)


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["value"] is None:
        return "none" if entry is None else f"none (n = {entry['models']})"
    told = f"{_signed(entry['value'])} ({_signed(entry['low'])} to {_signed(entry['high'])}; {entry['models']})"
    adjusted = entry.get("p_holm")
    return f"**{told}**" if adjusted is not None and adjusted < 0.05 else told


def _baselines(found: Mapping[str, Any]) -> str:
    told = []
    for harm, each in found["best_baseline"].items():
        if each is not None:
            turned = "" if each["sign"] > 0 else ", read the other way round"
            told.append(f"{_HEADS[harm]}: {_code(each['score'])} ({_signed(abs(each['value']))}{turned})")
    return f"Best baseline, chosen with hindsight, by damage: {'; '.join(told)}."


def _comparisons(entries: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(each["score"] for each in entries))
    cells = {(each["score"], each["damage"]): _cell(each) for each in entries}
    rows = [(_code(name), *(cells.get((name, harm), "none") for harm in DAMAGES)) for name in names]
    return _table(("correlation less that of the best baseline", *_HEADS.values()), rows)


def _missing(found: Mapping[str, Any]) -> str:
    rows = [
        (_code(name), sum(reasons.values()), "; ".join(f"{reason} ({count})" for reason, count in reasons.items()))
        for name, reasons in found["missing"].items()
    ]
    told = _table(("score", "models", "why"), rows) if rows else "No score is missing for any model."
    failed = [f"- {each['model']}, {each['attack']}: {each['reason']}" for each in found["failures"]]
    return told + "\n\n" + ("\n".join(["Attacks that failed:", "", *failed]) if failed else "No attack failed.")


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(name: str) -> str:
    return f"`{name}`"


def _signed(value: float | None) -> str:
    return "none" if value is None else f"{value:+.2f}".replace("+0.", "+.").replace("-0.", "-.")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
