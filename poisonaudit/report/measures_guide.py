"""What each measure is called, what it means and what it does not mean, in sentences for the reader of a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Guide:
    """Words for one measure.

    Attributes:
        name: what it is called in running text.
        means: what a reader may conclude.
        does_not_mean: what a reader must not conclude.
    """

    name: str
    means: str
    does_not_mean: str


FAMILIES: dict[str, str] = {
    "attack": "Attacks put to the proof by retraining",
    "stationarity": "Is the model at a minimum of its training loss?",
    "solution": "Sensitivity of the training solution to its data",
    "tangent": "Tangent sensitivity",
    "lipschitz": "Lipschitz bounds of the network in its input",
    "weight_noise": "Noise on the weights",
    "art": "Robustness scores of the Adversarial Robustness Toolbox",
}

_LIPSCHITZ_UPPER = (
    "A proved ceiling: no two inputs can change the logits by more than this factor times their distance.",
    "It is not what an attacker reaches; the true constant lies between the lower and the upper bound. It concerns "
    "inputs at prediction time, not training data.",
)
_LIPSCHITZ_LOWER = (
    "The steepest slope of the logits that was actually found; the true constant is at least this.",
    "A small value does not prove a flat network: the search may have missed a steeper place.",
)
_NOT_TANGENT = (
    "It can be many orders of magnitude above the exact mean, which the details have beside it: do not rank models by "
    "it, nor read it as a measure of poisoning or of test loss."
)

GUIDES: dict[str, Guide] = {
    "stationarity.relative_gradient": Guide(
        "Relative gradient of the training loss",
        "How close the weights are to a point where training would stop. Below 10⁻⁶ the solution measures are valid.",
        "A small value does not make the model accurate or safe; it only makes the other numbers meaningful.",
    ),
    "solution.modulus": Guide(
        "Lipschitz modulus of the solution map",
        "To first order, how far the trained weights move per unit of change over all measured training rows. "
        "Infinite means that an arbitrarily small change of the data can move the solution set by a finite distance.",
        "Weights that move need not change predictions, and a larger poison leaves the range of a first-order number.",
    ),
    "solution.row_modulus_max": Guide(
        "Largest modulus of a single training row",
        "How far the weights move, to first order, per unit of change of the most influential row alone.",
        "It does not say that this row is wrong or poisoned, only that the model leans on it.",
    ),
    "solution.poison_budget": Guide(
        "Poison budget for a 1 % weight change",
        "The least total perturbation of the training inputs that moves the weights by 1 % of their norm, first order.",
        "1 % of the weight norm is a yardstick, not a harm; below this budget single predictions may still change.",
    ),
    "solution.theorem2_max": Guide(
        "Per-row factor of the set-valued theorem 2",
        "A cheap proxy for the row modulus, shown so that published numbers can be compared.",
        "It is not a bound: the true modulus can be several times larger. Do not base a decision on it.",
    ),
    "solution.theorem3": Guide(
        "Whole-set factor of the set-valued theorem 3",
        "A cheap proxy for the modulus over all rows: the square root of n times the largest row factor.",
        "It is not a bound and has no fixed order to the true modulus. Do not base a decision on it.",
    ),
    "tangent.sensitivity": Guide(
        "Mean tangent sensitivity over test rows",
        "How strongly the slope of the outputs in the weights depends on the input, squared and averaged. Where it is "
        "an estimate, the details give its standard error.",
        "It changes when layers are rescaled without changing the function, so compare like-built models only. The "
        "standard error says how far other test rows could move it.",
    ),
    "tangent.sensitivity_normalised": Guide(
        "Tangent sensitivity, rescaling removed",
        "The same quantity, each weight's part multiplied by its square. With ReLU-like activations it does not change "
        "when neurons are rescaled without changing the function.",
        "It is not a predictor of test loss, nor a measure of poisoning by itself.",
    ),
    "tangent.bound_path": Guide(
        "Path bound of the tangent sensitivity",
        "No input has a larger tangent sensitivity: the paths through the network, each worth the largest weight of "
        "every layer it crosses.",
        _NOT_TANGENT,
    ),
    "tangent.bound_theorem31": Guide(
        "Theorem 3.1 bound of the tangent sensitivity (corrected form)",
        "No input has a larger tangent sensitivity. Cruder than the path bound: every layer counts as the widest one, "
        "the output included.",
        _NOT_TANGENT,
    ),
    "tangent.bound_theorem32": Guide(
        "Theorem 3.2 bound of the tangent sensitivity (corrected form)",
        "The mean tangent sensitivity over these rows is at most this, by the number of units active in each row.",
        "It bounds the mean over the rows looked at, not every input. " + _NOT_TANGENT,
    ),
    "lipschitz.upper.linf": Guide("Upper Lipschitz bound, maximum norm", *_LIPSCHITZ_UPPER),
    "lipschitz.upper.l1": Guide("Upper Lipschitz bound, sum norm", *_LIPSCHITZ_UPPER),
    "lipschitz.lower.linf": Guide("Lower Lipschitz bound, maximum norm", *_LIPSCHITZ_LOWER),
    "lipschitz.lower.l1": Guide("Lower Lipschitz bound, sum norm", *_LIPSCHITZ_LOWER),
    "lipschitz.certified_radius_median": Guide(
        "Median certified radius",
        "For half of the test rows no change below this size in any feature can alter the predicted class.",
        "It certifies against changed inputs at prediction time, not against poisoned training data.",
    ),
    "weight_noise.rms": Guide(
        "Output change under 10 % weight noise",
        "Root mean square relative change of the outputs when every weight matrix and kernel receives random noise of "
        "10 % of its norm. The curve shows it from 0.1 to 200 %, with 95 % intervals over the draws.",
        "Random noise is not an attacker: chosen noise of the same size moves the outputs many times as far. Few rows "
        "with small outputs can carry the number; the median row stands in the details.",
    ),
    "weight_noise.flip_rate": Guide(
        "Predictions flipped by 10 % weight noise",
        "Share of test predictions that change when every weight matrix and kernel receives random noise of 10 % of "
        "its norm. The curve shows it from 0.1 to 200 %, with 95 % intervals over the draws.",
        "A low rate does not bound what a chosen change of the weights can do. No flip in 64 draws leaves room for a "
        "rate of up to 6 %.",
    ),
    "weight_noise.condition_relative_max": Guide(
        "Largest relative condition number of a layer",
        "How much the worst small change of the most delicate weight matrix, relative to its Frobenius norm, is "
        "amplified in the output; median row. The bars show every matrix.",
        "It is a linearisation at the current weights and holds for small changes only; random changes do much less.",
    ),
    "art.clever": Guide(
        "CLEVER score",
        "An estimate of the l_2 distance to the nearest input that the model gives another class, median over test "
        "rows.",
        "It is an estimate from sampled slopes, not a certificate: it has been seen below proved radii and above "
        "attacks. It concerns prediction time, not training.",
    ),
    "art.loss_sensitivity": Guide(
        "Loss sensitivity",
        "Mean size of the loss gradient in the input over test rows.",
        "It is local and first order; a small value can hide steep slopes nearby, and a sure model has small gradients "
        "however near its decision boundary is.",
    ),
    "art.empirical_robustness": Guide(
        "Empirical robustness",
        "Mean least relative perturbation with which one gradient sign step (FGSM) changed a prediction, over the test "
        "rows on which it did.",
        "Another attack may need less. Rows on which the attack failed are not in the mean, so look at the share that "
        "was fooled. It concerns prediction time, not training.",
    ),
    "art.shapr": Guide(
        "SHAPr, most exposed training row",
        "How much the most exposed training row contributes to answering test rows by their nearest training row in "
        "the space of the model's outputs: a high value means that the outputs remember this row.",
        "It is no membership attack and no privacy guarantee. The mean over all rows is an accuracy, and nearly every "
        "row of a good model is above 0, which ART's documentation calls a leak.",
    ),
    "art.pdtp": Guide(
        "Pointwise differential training privacy",
        "Largest factor by which leaving out one training row and training again, warm, changed a predicted "
        "probability. 1 is no visible change.",
        "It is found on the rows that were left out, not a bound over all. Probabilities are compared in steps of 1 %, "
        "so near 0 one step already gives 3, and 199 is the most it can show.",
    ),
    "attack.movement": Guide(
        "Movement toward target weights, retrained",
        "Share of the way to the attacker's target weights that retraining on poisoned data really went, "
        "mean over fresh seeds (1 is all the way), worst attack on this model.",
        "A small value is about the attacks that were tried at their budget, not about attacks in general.",
    ),
    "attack.flip_success": Guide(
        "Flipped prediction, retrained",
        "Share of fresh-seed retrainings in which the chosen test row, or enough of several, got the attacker's label, "
        "worst attack on this model.",
        "Zero is not proof of safety: another row, budget or method may succeed.",
    ),
    "attack.verified_cost": Guide(
        "Cheapest poison verified by retraining",
        "Smallest budget with which an attack tried here was confirmed by retraining to reach its goal: training rows, "
        "or the radius of each row where that was searched; the unit says which. More is safer. Where a smaller budget "
        "was shown to fail, the remark says so.",
        "It is an upper bound: a better attack may need less, and no value means that no attack tried here got there, "
        "not that none can. It holds for the rest of the budget (the remark has it) and one goal, so compare only like "
        "with like; costs in different units are not ranked together. A predicted cost beside it is not verified.",
    ),
}


def family_of(measure: str) -> str:
    """The part of a measure id before the first dot."""
    return measure.split(".", 1)[0]


def by_family(measures: Iterable[str]) -> dict[str, list[str]]:
    """Measure ids grouped by family: the families known here in their order, then others as they come."""
    groups: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for measure in measures:
        groups.setdefault(family_of(measure), []).append(measure)
    return {family: names for family, names in groups.items() if names}


def family_title(family: str) -> str:
    """The heading of a family; third-party families go by their own name."""
    return FAMILIES.get(family, f"Further measures: {family}")


def guide(measure: str) -> Guide:
    """The words for a measure; third-party measures get neutral ones."""
    return GUIDES.get(
        measure,
        Guide(
            measure,
            "A measure added to this audit; its unit and kind are stated beside it.",
            "This report has no description of it: read the documentation of the package that provides it.",
        ),
    )
