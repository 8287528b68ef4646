"""The verdict: rules first, then what retraining says in plain words, failures as visible as successes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from poisonaudit.report.comparison import ORDER_RULE
from poisonaudit.report.costs import cheapest
from poisonaudit.report.findings import GOAL_RULE, RULE, Finding, Standing
from poisonaudit.report.formats import state, usable
from poisonaudit.report.page import Page
from poisonaudit.report.rivals import outdone
from poisonaudit.results import GateOutcome


def context(page: Page) -> dict[str, Any]:
    """Overall outcome, rule outcomes, plain sentences and one row of marks per attack."""
    outcome, sentence = overall(page.gates)
    return {
        "outcome": outcome,
        "sentence": sentence,
        "gates": page.gates,
        "costs": costs(page),
        "facts": facts(page),
        "findings": page.findings,
        "marks": [[mark(trial.confirms) for trial in found.trials] for found in page.findings],
        "rule": RULE,
        "goal_rule": GOAL_RULE,
        "order_rule": ORDER_RULE if len(page.audits) > 1 else "",
    }


def costs(page: Page) -> list[dict[str, Any]]:
    """Per model the smallest budget that retraining confirmed, one line per goal; empty if no attack was searched."""
    groups = [(label, page.findings_of(position)) for position, label in enumerate(page.labels)]
    placed = {id(found) for _, findings in groups for found in findings}
    for found in page.findings:
        if id(found) not in placed:
            # An attack on a model that was not audited here stands under the name it was given.
            mates = [other for other in page.findings if other.model == found.model and id(other) not in placed]
            groups.append((found.model, mates))
            placed |= {id(other) for other in mates}
    lines = [(label, cheapest(findings)) for label, findings in groups]
    return (
        [{"model": label, "found": found, "cost": cost} for label, pairs in lines for found, cost in pairs]
        + [{"model": label, "found": None, "cost": None} for label, pairs in lines if not pairs]
        if any(pairs for _, pairs in lines)
        else []
    )


def overall(gates: Sequence[GateOutcome]) -> tuple[str, str]:
    """One outcome for the whole page: a failure outweighs an open question, which outweighs a pass."""
    if not gates:
        return "NO RULE", "No pass rule (--fail-on) was set, so nothing here passed or failed. The facts are:"
    counts = Counter(gate.outcome for gate in gates)
    told = ", ".join(f"{counts[name]} {name}" for name in ("FAIL", "INCONCLUSIVE", "PASS") if counts[name])
    worst = next(name for name in ("FAIL", "INCONCLUSIVE", "PASS") if counts[name] or name == "PASS")
    return worst, f"{len(gates)} rule{'s' if len(gates) != 1 else ''} applied: {told}."


def mark(confirms: bool | None) -> str:
    """Name of the mark for one retraining."""
    return "open" if confirms is None else "yes" if confirms else "no"


def facts(page: Page) -> list[str]:
    """What the data says, in plain sentences; nothing is left out because it is a failure."""
    told: list[str] = []
    if page.findings:
        told.append(standings(page.findings))
        told.append(goals(page.findings))
        for found in page.findings:
            told.extend(f"{found.label}: {text}" for text in (found.caution, found.loosened, outdone(found)) if text)
    else:
        told.append("No attack was crafted and retrained, so every number about poisoning here is a prediction.")
    if len(page.audits) > 1:
        told.append(f"Of {len(page.audits)} models, the order stated below puts {page.labels[0]} first.")
    if page.audits:
        told.append(measured(page))
    else:
        told.append("No model was audited.")
    return told


def standings(findings: Sequence[Finding]) -> str:
    """How many predictions retraining confirmed and how many it did not."""
    counts = Counter(found.standing for found in findings)
    words: dict[Standing, str] = {
        "confirmed": "{} confirmed by retraining",
        "partly confirmed": "{} partly confirmed",
        "not confirmed": "{} not confirmed",
        "not predicted": "{} without a valid prediction",
        "not judged": "{} that could not be judged",
        "not retrained": "{} not retrained",
    }
    parts = ", ".join(text.format(counts[name]) for name, text in words.items() if counts[name])
    return f"{len(findings)} attack{'s' if len(findings) != 1 else ''}: {parts}."


def goals(findings: Sequence[Finding]) -> str:
    """In how many retrainings the attacker got what was wanted."""
    judged = [trial for found in findings for trial in found.judged]
    votes = [bool(trial.reached) for trial in judged]
    if not votes:
        return "No retraining is stored that tells whether an attacker's goal was reached."
    won = sum(votes)
    told = f"The attackers' goals were reached in {won} and missed in {len(votes) - won} of {len(votes)} retrainings"
    anyway = sum(bool(trial.reached and trial.control_reached) for trial in judged)
    return f"{told}; in {anyway} of the {won} the clean control reaches the goal as well." if anyway else f"{told}."


def measured(page: Page) -> str:
    """How many numbers may be used and why the others may not."""
    all_measures = [measure for audit in page.audits for measure in audit.measures.values()]
    states = Counter(state(measure) for measure in all_measures)
    valid = sum(usable(measure) for measure in all_measures)
    flagged = states["measured"] - valid
    infinite = sum(measure.infinite for measure in all_measures)
    others = [f"{count} {name}" for name, count in states.items() if name != "measured"]
    extra = ", ".join([*([f"{flagged} flagged as not valid"] if flagged else []), *others])
    tail = f"; {extra}" if extra else ""
    unbounded = f" {infinite} {'number is' if infinite == 1 else 'numbers are'} infinite." if infinite else ""
    return f"{valid} of {len(all_measures)} numbers are valid{tail}.{unbounded}"
