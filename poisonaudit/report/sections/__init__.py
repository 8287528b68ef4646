"""One section of the report per file: a function from the page to plain data, and a template that shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from poisonaudit.report.page import Page
from poisonaudit.report.sections import (
    comparison_table,
    convergence,
    detection,
    environment,
    fragile_rows,
    hardening,
    lipschitz_bounds,
    measure_plots,
    method,
    other_attacks,
    poisoned_rows,
    predicted_retrained,
    reproduce,
    tangent_bounds,
    threat_model,
    untested,
    verdict,
)


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes:
        title: its heading.
        template: file name in `templates/`.
        context: what the template reads as `c`.
    """

    title: str
    template: str
    context: Callable[[Page], Mapping[str, Any]]


# Order of the report. A new section is one file here, one template and one line.
SECTIONS: dict[str, Section] = {
    "verdict": Section("Verdict", "verdict.html", verdict.context),
    "threat-model": Section("Threat model and budget", "threat_model.html", threat_model.context),
    "comparison": Section("Comparison", "comparison_table.html", comparison_table.context),
    "measures": Section("Measures", "measure_plots.html", measure_plots.context),
    "lipschitz-bounds": Section(
        "Lipschitz bounds and certified radii", "lipschitz_bounds.html", lipschitz_bounds.context
    ),
    "tangent-bounds": Section("Tangent sensitivity under its bounds", "tangent_bounds.html", tangent_bounds.context),
    "fragile-rows": Section("Most fragile training rows", "fragile_rows.html", fragile_rows.context),
    "poisoned-rows": Section("Poisoned beside clean rows", "poisoned_rows.html", poisoned_rows.context),
    "retraining": Section("Predicted against retrained", "predicted_retrained.html", predicted_retrained.context),
    "hardening": Section("Hardened variants", "hardening.html", hardening.context),
    "other-attacks": Section("Beside other attacks", "other_attacks.html", other_attacks.context),
    "detection": Section("Detectors and rows to inspect", "detection.html", detection.context),
    "untested": Section("What was not tested", "untested.html", untested.context),
    "method": Section("Method and limits", "method.html", method.context),
    "convergence": Section("Convergence and conditioning", "convergence.html", convergence.context),
    "reproduce": Section("How to reproduce", "reproduce.html", reproduce.context),
    "environment": Section("Environment", "environment.html", environment.context),
}
