"""Did a measure foresee what poison did? What the toolkit's own study found, in a sentence beside each measure.

The study (docs/predictive_validity.md) scored sixty small networks, poisoned each at one budget and trained again.
Numbers are Spearman correlations within data sets with 95 % bootstrap intervals, and only those that Holm's correction
over all measures and damages leaves standing; they are positive where worse scores went with more damage.
"""

from __future__ import annotations

from collections.abc import Mapping

Interval = tuple[float, float, float]

STUDY = "predictive_validity"
MODELS = 60
# Damage -> what it is, in words.
_DAMAGES = {
    "loss_own": "the rise of the test loss, training from the same start",
    "margin_own": "what chosen wrong classes gained, training from the same start",
    "margin_fresh": "what chosen wrong classes gained, training from fresh seeds",
}
# Measure -> damage -> correlation, lower and upper end.
HELD: Mapping[str, Mapping[str, Interval]] = {
    "tangent.sensitivity": {
        "loss_own": (0.69, 0.48, 0.84),
        "margin_own": (0.71, 0.51, 0.83),
        "margin_fresh": (0.53, 0.26, 0.74),
    },
    "tangent.sensitivity_normalised": {
        "loss_own": (0.70, 0.48, 0.85),
        "margin_own": (0.79, 0.62, 0.87),
        "margin_fresh": (0.57, 0.29, 0.77),
    },
    "lipschitz.upper.linf": {
        "loss_own": (0.65, 0.44, 0.82),
        "margin_own": (0.77, 0.60, 0.84),
        "margin_fresh": (0.55, 0.27, 0.74),
    },
    "lipschitz.upper.l1": {
        "loss_own": (0.68, 0.46, 0.83),
        "margin_own": (0.78, 0.62, 0.86),
        "margin_fresh": (0.57, 0.28, 0.77),
    },
    "lipschitz.lower.linf": {
        "loss_own": (0.65, 0.44, 0.82),
        "margin_own": (0.77, 0.60, 0.85),
        "margin_fresh": (0.55, 0.27, 0.75),
    },
    "lipschitz.lower.l1": {
        "loss_own": (0.68, 0.46, 0.83),
        "margin_own": (0.78, 0.62, 0.86),
        "margin_fresh": (0.57, 0.28, 0.77),
    },
    "lipschitz.certified_radius_median": {"loss_own": (0.50, 0.26, 0.68)},
    "art.clever": {"loss_own": (0.58, 0.36, 0.74), "margin_own": (0.56, 0.34, 0.70)},
    "art.loss_sensitivity": {"margin_own": (0.47, 0.21, 0.65)},
    "art.shapr": {"margin_fresh": (-0.48, -0.66, -0.22)},
}
# Measure -> models on which it gave a valid number.
SCORED: Mapping[str, int] = {
    **dict.fromkeys(HELD, MODELS),
    "solution.modulus": 28,
    "solution.row_modulus_max": 28,
    "solution.poison_budget": 28,
    "solution.theorem2_max": 28,
    "solution.theorem3": 28,
    "tangent.bound_path": 33,
    "tangent.bound_theorem31": 33,
    "tangent.bound_theorem32": 33,
    "weight_noise.rms": MODELS,
    "weight_noise.flip_rate": MODELS,
    "weight_noise.condition_relative_max": MODELS,
    "art.empirical_robustness": MODELS,
}


def foresight(measure: str) -> str:
    """Whether the measure ordered the study's models by the damage that poison did; "" where it was not studied."""
    models = SCORED.get(measure)
    if models is None:
        return ""
    held = HELD.get(measure, {})
    where = f"{models} small networks" if models == MODELS else f"the {models} small networks on which it was valid"
    if not held:
        return (
            f"Not shown. Among {where}, poisoned and trained again, its rank correlations with seven kinds of damage "
            "may be chance once all tests are corrected for."
        )
    told = "; ".join(f"{_DAMAGES[damage]} ({_figures(*found)})" for damage, found in held.items())
    if all(high < 0 for _, _, high in held.values()):
        return (
            f"Against its promise. Among {where}, poisoned and trained again, better scores went with more of {told}."
        )
    return (
        f"In part. Among {where}, poisoned and trained again, worse scores went with more of: {told}. The norm of the "
        "input Jacobian, which needs no audit, did no worse. No score foresaw the accuracy lost, or how many rows "
        "flipped, from fresh seeds."
    )


def _figures(value: float, low: float, high: float) -> str:
    return f"rank correlation {value:.2f}, {low:.2f} to {high:.2f}"
