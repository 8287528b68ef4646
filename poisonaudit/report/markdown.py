"""The same results as Markdown, for an issue or a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from poisonaudit.report.comparison import units
from poisonaudit.report.formats import number, printable, state, usable
from poisonaudit.report.measures_guide import guide
from poisonaudit.report.page import Page, Result, make_page
from poisonaudit.report.rivals import rivals
from poisonaudit.report.sections import detection, method, threat_model, untested, verdict
from poisonaudit.report.sections.comparison_table import beside, kinds_of
from poisonaudit.report.trials import TRAININGS
from poisonaudit.results import Measure

_MARKDOWN = str.maketrans(
    {
        "&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", "`": "\\`", "*": "\\*", "_": "\\_", "[": "\\[", "]": "\\]",
        "\\": "\\\\", "#": "\\#", "\n": " ", "\r": " ",
    }
)  # fmt: skip


def render_markdown(result: Result, *, command: str = "", title: str | None = None) -> str:
    """Verdict, comparison, attacks and limits as Markdown for an issue or a pull request.

    Args:
        result: what to show.
        command: the command line that reproduces the result.
        title: of the document.

    Returns:
        GitHub-flavoured Markdown in which no user text is taken for markup.
    """
    page = make_page(result, command, title)
    outcome, sentence = verdict.overall(page.gates)
    lines = [
        f"# {escaped(page.title)}",
        "",
        f"**{outcome.capitalize() if outcome == 'NO RULE' else outcome}.** {sentence}",
        "",
    ]
    if page.gates:
        rows = [[gate.outcome, gate.rule, gate.subject or "all", gate.fact] for gate in page.gates]
        lines += [*table(["Outcome", "Rule", "Applied to", "Fact"], rows), ""]
    lines += cost_lines(page)
    lines += [f"- {escaped(fact)}" for fact in verdict.facts(page)] + [""]
    if page.audits:
        lines += ["## Comparison", "", *comparison_lines(page), ""]
    if page.findings:
        lines += ["## Predicted against retrained", "", *attack_lines(page), ""]
    lines += other_attack_lines(page) + detection_lines(page)
    lines += ["## Threat model", ""]
    lines += [
        f"- {escaped(f'{name} ({version}): {ident} {text}')}" for name, version, ident, text in threat_model.FRAMEWORKS
    ]
    lines += ["", "## What was not tested", ""]
    lines += [f"- {escaped(text)}" for text in (*untested.gaps(page), *untested.ALWAYS)]
    lines += ["", "## Method and limits", "", *(f"- **{name}.** {text}" for name, text in method.POINTS), ""]
    if page.command:
        lines += ["## How to reproduce", "", *(f"    {line}" for line in page.command.splitlines()), ""]
    return printable("\n".join(lines))


def cost_lines(page: Page) -> list[str]:
    """Per model the smallest budget that retraining confirmed; empty if no attack was searched."""
    rows = []
    for line in verdict.costs(page):
        found, cost = line["found"], line["cost"]
        if cost is None:
            rows.append([line["model"], "not searched", "–", "–"])
        else:
            amount = f"{cost.amount}{f' ({cost.expected})' if cost.expected else ''}"
            remark = "; ".join(text for text in (cost.bracket, cost.reason) if text)
            rows.append([line["model"], amount, remark or "–", f"{found.label}: {found.quantity.goal}"])
    head = ["Model", "Smallest budget verified by retraining", "Smaller budgets", "Attack and goal"]
    return [*table(head, rows), ""] if rows else []


def comparison_lines(page: Page) -> list[str]:
    """Measures as rows, models as columns."""
    rows = []
    for name in page.measure_ids:
        measures = [audit.measures.get(name) for audit in page.audits]
        cells = [
            state(m)
            if m is None or state(m) != "measured"
            else f"{number(m.number)}{_behind(name, m, measures)}{'' if usable(m) else ' (not valid)'}"
            for m in measures
        ]
        told = units(measures) or [next(m.unit for m in measures if m is not None)]
        unit = told[0] if len(told) == 1 else "different units, not ranked together"
        rows.append([f"{guide(name).name} ({name}; {unit})", " or ".join(kinds_of(measures)), *cells])
    return table(["Measure", "Kind", *page.labels], rows)


def _behind(name: str, measure: Measure, measures: Sequence[Measure | None]) -> str:
    told = beside(name, measure, by_unit=len(units(measures)) > 1, by_kind=len(kinds_of(measures)) > 1)
    return f" ({told})" if told else ""


def attack_lines(page: Page) -> list[str]:
    """One line per training of every attack, then the sentences."""
    rows = []
    for found in page.findings:
        word = found.quantity.word
        rows.append([found.label, word, "prediction", str(number(found.predicted)), "–", "–", found.standing])
        for trial in (trial for group in found.groups for trial in group.trials):
            agrees = "not counted" if trial.confirms is None else "agrees" if trial.confirms else "contradicts"
            shown = [str(number(value)) for value in (trial.value, trial.ratio, trial.control)]
            name = trial.name if trial.training == "tight" else f"{trial.name}, {TRAININGS[trial.training].lower()}"
            rows.append([found.label, word, name, *shown, agrees])
    head = ["Attack", "Quantity", "Training", "Value", "Retrained / predicted", "Control", "Standing"]
    sentences = [
        f"- **{escaped(f.label)}** on {escaped(f.model)}: {escaped(' '.join((f.sentence, *f.remarks)))}"
        for f in page.findings
    ]
    return [*table(head, rows), "", *sentences]


def other_attack_lines(page: Page) -> list[str]:
    """Every attack beside others on the same rows, budget and retraining."""
    rows = []
    for found in page.findings:
        for line in rivals(found):
            counts = line.tally
            mean = f"{number(counts.mean)}{f' ({counts.spread})' if counts.spread else ''}"
            shown = [str(number(counts.warm)), mean, counts.rate or "–", counts.accuracy or "–"]
            if not line.applicable:
                shown = [f"not applicable: {line.reason}" if line.reason else "not applicable", "–", "–", "–"]
            elif counts.empty:
                shown = ["not retrained", "–", "–", "–"]
            rows.append([found.label, line.name, *shown, str(number(line.gradients)), str(number(line.seconds, 3))])
    head = ["Attack", "Beside", "Warm start", "Fresh seeds", "Success", "Accuracy change", "Gradients", "Seconds"]
    return ["## Beside other attacks (same rows, budget, retraining)", "", *table(head, rows), ""] if rows else []


def detection_lines(page: Page) -> list[str]:
    """What poison detectors found, and how early orders of inspection meet the poisoned rows."""
    found_by, met_by = [], []
    for found in page.findings:
        for line in detection.detectors(found):
            pairs = zip((*line.figures, line.flagged), (*line.beside, ""), strict=True)
            figures = [f"{number(value)}{f' ({told})' if told else ''}" for value, told in pairs]
            if not line.applicable:
                figures = [f"not applicable: {line.reason}" if line.reason else "not applicable", *["–"] * 5]
            left = "–" if line.filtered is None else line.filtered.rate or str(number(line.filtered.mean))
            found_by.append([found.label, line.name, *figures, left])
        for order in detection.rankings(found):
            recall = ", ".join(f"{number(value, 3)} at {100 * share:g} %" for share, value in order.recall.items())
            if not order.applicable:
                recall = f"not applicable: {order.reason}" if order.reason else "not applicable"
            met_by.append([found.label, order.name, recall, str(number(order.precision)), str(number(order.by_chance))])
    heads = [name.capitalize() for _, name in detection.FIGURES]
    lines = []
    if found_by:
        head = ["Attack", "Detector", *heads, "Flagged", "Success after dropping them"]
        lines += ["## Poison detectors", "", *table(head, found_by), ""]
    if met_by:
        head = ["Attack", "Order", "Share of the poisoned rows met", "Average precision", "By chance"]
        lines += ["## Which rows to inspect first", "", *table(head, met_by), ""]
    return lines


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(text if text == '---' else escaped(text) for text in line)} |" for line in lines]


def escaped(text: str) -> str:
    """A text in which Markdown and HTML see nothing."""
    return text.translate(_MARKDOWN)
