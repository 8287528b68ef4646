"""What this report does not cover, from the data and in general."""

from __future__ import annotations

from typing import Any

from poisonaudit.quantities import QUANTITIES
from poisonaudit.report.formats import items_of, mapping_of, state
from poisonaudit.report.page import Page

ALWAYS = (
    "Poison that adds, removes or relabels training rows: the attacks here change the inputs of existing rows only.",
    "Backdoors with a trigger at prediction time, and tampering with weights, training code or supply chain.",
    "Attackers who know less than everything: the attacks here see the model, the data and the training procedure.",
    "Training procedures other than the stored one; a different optimiser or stopping rule may move more or less.",
    "Privacy, fairness and evasion at prediction time, except where a measure above names them.",
)

# Optional entries of an attack -> what is not known without any of them.
ENTRIES = {
    "loose": "No model was retrained loosely, as in practice; what tight minima show may be less or more there.",
    "baselines": "No other attack was run on the same rows, budget and retraining.",
    "detectors": "No poison detector was run on the poisoned data.",
    "inspection": "No ranking of training rows was tried for finding the poisoned ones.",
    "verified_cost": "No search was made for the smallest budget at which an attack succeeds.",
    "hardening": "No variant of an attacked model (other decay, fewer rows) was searched for its cost.",
}


def context(page: Page) -> dict[str, Any]:
    """Gaps found in these results, measures without a number, and the standing limits."""
    return {"gaps": gaps(page), "missing": missing(page), "always": ALWAYS}


def gaps(page: Page) -> list[str]:
    """What could have been done with these models and was not."""
    told: list[str] = []
    for position, label in enumerate(page.labels):
        kinds = {found.quantity.kind for found in page.findings_of(position)}
        missed = [each.attack for kind, each in QUANTITIES.items() if kind not in kinds]
        if not kinds:
            told.append(f"{label}: no attack was crafted, so nothing was proved by retraining.")
        elif missed:
            told.append(f"{label}: no attack of the kind {', '.join(missed)}.")
    for found in page.findings:
        seeds = len(items_of(mapping_of(found.attack.retrained).get("fresh")))
        if seeds < 5:
            many = "no fresh seed" if not seeds else f"only {seeds} fresh seed{'s' if seeds != 1 else ''}"
            told.append(f"{found.label}: {many} retrained; success rates from so few runs are coarse.")
        if not mapping_of(found.attack.control):
            told.append(f"{found.label}: no clean control was stored.")
    told += [text for entry, text in ENTRIES.items() if page.findings and not entry_stored(page, entry)]
    if not page.audits:
        told.append("No model was audited.")
    return told


def entry_stored(page: Page, entry: str) -> bool:
    """Whether some attack carries an optional entry."""
    if entry == "loose":
        return any(group.training == "loose" for found in page.findings for group in found.groups)
    return any(getattr(found.attack, entry) for found in page.findings)


def missing(page: Page) -> list[dict[str, str]]:
    """Every measure without a number: not applicable, skipped or failed, with the reason; none of these is a pass."""
    return [
        {"label": label, "id": name, "state": state(measure), "reason": measure.reason}
        for label, audit in zip(page.labels, page.audits, strict=True)
        for name, measure in audit.measures.items()
        if state(measure) != "measured"
    ]
