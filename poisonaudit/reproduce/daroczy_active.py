"""Daroczy's figure 1 (and 4): how many hidden units are active before and after training, and is that normal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from poisonaudit.reproduce.bench import Bench, Made
from poisonaudit.reproduce.daroczy_figures import histograms, histograms_by_layer
from poisonaudit.reproduce.daroczy_runs import HIDDEN, Plan, initial, loss_and_accuracy, make_plan, train
from poisonaudit.reproduce.result import DAROCZY, Line, Reproduction
from poisonaudit.tangent.moments import empirical_moment, log_absolute_moment, orders
from poisonaudit.tangent.patterns import ActivationPatterns, activation_patterns, normality

COLUMNS: Mapping[str, str] = {
    "units": "units",
    "mean": "mean",
    "share": "share of units",
    "deviation": "deviation",
    "skewness": "skewness",
    "kurtosis": "excess kurtosis",
    "p_normal": "p, if normal",
    "moment": "moment / normal's",
}
WHEN = ("before", "after")
PARTS = ("training", "test")
OPTIMISER = "SGD"
_REJECTED = 0.01


@dataclass(frozen=True)
class Counted:
    """Activation patterns of one set of rows under one set of weights.

    Attributes:
        when: "before" or "after" training.
        part: "training" or "test".
        patterns: the counts.
    """

    when: str
    part: str
    patterns: ActivationPatterns


def daroczy_figure1(bench: Bench) -> Reproduction:
    """Figure 1: number of active units per row, in all and by layer, before and after training, with normality."""
    begun = time.perf_counter()
    plan = make_plan(bench)
    tensors, facts = bench.kept("weights", f"training, {OPTIMISER}, seed {plan.seed}", lambda: _trained(bench, plan))
    found = []
    for when in WHEN:
        model = initial(plan, plan.seed)
        prefix = f"{when}."
        state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        model.load_state_dict(state)
        for part, x in zip(PARTS, (plan.rows.x_train, plan.rows.x_test), strict=True):
            bench.voice(f"active units, {when} training, {part} rows")
            found.append(Counted(when, part, activation_patterns(model, x.to(plan.device))))
    lines = tuple(line for one in found for line in lines_of(one))
    return Reproduction(
        name="daroczy-figure1",
        title="Figure 1: active units before and after training",
        rows=lines,
        notes=_notes(plan, found, lines, facts),
        pictures=(
            histograms({(one.when, one.part): one.patterns.total for one in found}),
            histograms_by_layer({(one.when, one.part): one.patterns.active for one in found}, max(HIDDEN)),
        ),
        settings=plan.settings | {"optimiser": OPTIMISER},
        details={
            "distinct_patterns": {f"{one.when}, {one.part}": one.patterns.distinct for one in found},
            **facts,
        },
        inputs=dict(plan.rows.sources),
        seed=plan.seed,
        seconds=time.perf_counter() - begun,
        source=DAROCZY,
        columns=COLUMNS,
        lead="The paper prints histograms and no numbers; its assumption is that the total is normal.",
    )


def lines_of(one: Counted) -> list[Line]:
    """The total and every layer: mean, spread, shape, and the moment that theorem 3.2 needs over a normal one's."""
    patterns = one.patterns
    counts = [("all layers", sum(patterns.units), patterns.total)]
    counts += [(f"layer {layer + 1}", units, patterns.active[:, layer]) for layer, units in enumerate(patterns.units)]
    order = 2 * orders(len(patterns.units) + 1)[0]
    return [
        Line(f"{told}, {one.when} training, {one.part} rows", described(values, units, order))
        for told, units, values in counts
    ]


def described(counts: Tensor, units: int, order: int) -> dict[str, float | None]:
    """Numbers of one distribution of counts.

    Args:
        counts: (n,) active units.
        units: how many there are.
        order: of the moment that is compared with that of a normal distribution of the same mean and deviation.

    Returns:
        By the keys of COLUMNS; None where all rows have the same count.
    """
    from scipy.stats import kurtosis, skew

    values = counts.double().cpu()
    mean, deviation = float(values.mean()), float(values.std()) if len(values) > 1 else 0.0
    varied = deviation > 0.0
    normal = log_absolute_moment(order, mean, deviation)
    own = empirical_moment([int(count) for count in counts.tolist()], order)
    return {
        "units": float(units),
        "mean": mean,
        "share": mean / units,
        "deviation": deviation,
        "skewness": float(skew(values.numpy())) if varied else None,
        "kurtosis": float(kurtosis(values.numpy())) if varied else None,
        "p_normal": normality(counts).p_value,
        "moment": float(own) / math.exp(normal) if own and normal < 700.0 else None,
    }


def _trained(bench: Bench, plan: Plan) -> Made:
    model = initial(plan, plan.seed)
    kept = _named(model, "before")
    for _ in train(model, plan, OPTIMISER, plan.seed, bench.voice):
        pass
    rows = plan.rows
    train_loss, train_accuracy = loss_and_accuracy(model, rows.x_train, rows.y_train, plan.device)
    test_loss, test_accuracy = loss_and_accuracy(model, rows.x_test, rows.y_test, plan.device)
    facts = {
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
    }
    return kept | _named(model, "after"), facts


def _named(model: nn.Module, when: str) -> dict[str, Tensor]:
    return {f"{when}.{name}": value.detach().clone() for name, value in model.state_dict().items()}


def _notes(plan: Plan, found: Sequence[Counted], lines: Sequence[Line], facts: Mapping[str, float]) -> tuple[str, ...]:
    from scipy.stats import ks_2samp

    totals = [line for line in lines if line.label.startswith("all layers")]
    layers = [line for line in lines if not line.label.startswith("all layers")]
    mean = {(one.when, one.part): one.patterns.mean for one in found}
    sets = {(one.when, one.part): one.patterns.total.double().cpu().numpy() for one in found}
    apart = ks_2samp(sets["after", "training"], sets["after", "test"])
    distinct = {(one.when, one.part): (one.patterns.distinct, len(one.patterns.total)) for one in found}
    patterns = "; ".join(f"{when}, {part}: {some:,} of {rows:,}" for (when, part), (some, rows) in distinct.items())
    return (
        f"After {plan.epochs} epochs: accuracy {facts['train_accuracy']:.1%} on training and "
        f"{facts['test_accuracy']:.1%} on test rows.",
        f"Training moves the mean number of active units of {sum(HIDDEN)} from {mean['before', 'training']:.1f} to "
        f"{mean['after', 'training']:.1f} on training rows and from {mean['before', 'test']:.1f} to "
        f"{mean['after', 'test']:.1f} on test rows. After it, training and test rows differ by at most "
        f"{apart.statistic:.3f} in the distribution of the total (Kolmogorov and Smirnov, p {apart.pvalue:.2g}).",
        f"Normality by skewness and kurtosis (D'Agostino and Pearson): rejected at {_REJECTED:g} for "
        f"{rejected(totals)} of {len(totals)} totals and {rejected(layers)} of {len(layers)} layers. Counts are whole "
        "numbers, so enough rows reject any shape.",
        "moment / normal's: E T^(2(k-2)), which theorem 3.2 needs, over that of a normal T of equal mean and "
        "deviation. Near 1, normality is good enough for the bound whatever the test says.",
        f"Distinct activation patterns among the rows: {patterns}. Where nearly every row has its own, relative "
        "frequencies of patterns say nothing, as the paper expects.",
    )


def rejected(lines: Sequence[Line]) -> int:
    """How many are not normal; a constant count is not either."""
    return sum(line.values["p_normal"] is None or line.values["p_normal"] < _REJECTED for line in lines)
