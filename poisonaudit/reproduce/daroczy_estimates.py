"""Daroczy's figure 3 and table 2: test loss and accuracy estimated by eq. 5 to 7, beside "test loss = train loss"."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.reproduce.bench import Bench
from poisonaudit.reproduce.daroczy_figures import DRAWN, along_training, gains
from poisonaudit.reproduce.daroczy_runs import OPTIMISERS, Plan, States, make_plan, states
from poisonaudit.reproduce.result import DAROCZY, Line, Picture, Reproduction
from poisonaudit.tangent.expected_matrix import ROWS
from poisonaudit.tangent.factors import BASELINE, EQUATIONS

TOLD: Mapping[str, str] = {
    "test_equals_train": "test = train",
    "eq5": "eq. 5, corrected",
    "eq5_as_printed": "eq. 5, as printed",
    "eq5_log": "eq. 5, logarithm",
    "eq6": "eq. 6, corrected",
    "eq6_as_printed": "eq. 6, as printed",
    "eq7": "eq. 7, mean of norms",
    "eq7_own_patterns": "eq. 7, own patterns",
    "eq7_as_printed": "eq. 7, norm of the mean",
    "constant": "control, 0.98 throughout",
}
# A ratio that knows nothing of the network, to see what one a little below 1 is worth by itself.
CONTROL, CONSTANT = "constant", 0.98
# Table 2: mean absolute errors of cross-entropy and of accuracy, at the lines that are nearest to what it names.
PRINTED: Mapping[str, tuple[float, float]] = {
    "eq5_log": (5.3e-4, 9.2e-3),
    "eq6_as_printed": (7.7e-4, 9.8e-3),
    "eq7": (4.2e-4, 1.1e-2),
}
TABLE: Mapping[str, str] = {
    "printed_loss": "cross-entropy, printed",
    "loss": "cross-entropy, ours",
    "loss_error": "its standard error",
    "loss_gain": "minus test = train",
    "loss_gain_error": "its standard error",
    "printed_accuracy": "accuracy, printed",
    "accuracy": "accuracy, ours",
    "accuracy_error": "its standard error",
    "accuracy_gain": "minus test = train",
    "accuracy_gain_error": "its standard error",
    "accuracy_literal": "accuracy, read literally",
    "literal_gain": "minus test = train",
    "literal_gain_error": "its standard error",
    "correlation": "rank correlation with the gap",
}
QUANTITIES: Mapping[str, str] = {
    "cross-entropy": "loss_gain",
    "accuracy": "accuracy_gain",
    "accuracy read literally": "literal_gain",
}
FIGURE: Mapping[str, str] = {
    "loss": "mean absolute error, cross-entropy",
    "loss_bias": "mean error, cross-entropy",
    "accuracy": "mean absolute error, accuracy",
    "accuracy_bias": "mean error, accuracy",
    "last_loss": "cross-entropy after the last epoch",
    "last_accuracy": "accuracy after the last epoch",
}


@dataclass(frozen=True)
class Score:
    """How one estimate did in several runs.

    Attributes:
        loss: (r,) mean absolute error of the estimated test loss, over the states of each run.
        accuracy: (r,) the same for accuracy by way of the error rate.
        literal: (r,) the same for accuracy times the factor.
        loss_gain: (r,) `loss` minus that of "test = train" on the same states; below 0 is better.
        accuracy_gain: (r,) the same for accuracy.
        literal_gain: (r,) the same for accuracy times the factor.
        correlation: mean over runs of the rank correlation of the estimated with the measured gap; None without one.
        missing: states without a factor.
    """

    loss: Tensor
    accuracy: Tensor
    literal: Tensor
    loss_gain: Tensor
    accuracy_gain: Tensor
    literal_gain: Tensor
    correlation: float | None
    missing: int


def daroczy_table2(bench: Bench) -> Reproduction:
    """Table 2: errors of test loss and accuracy estimated by eq. 5, 6 and 7, beside those of "test = train"."""
    begun = time.perf_counter()
    plan = make_plan(bench)
    runs = {name: [states(bench, plan, name, seed) for seed in plan.seeds] for name in OPTIMISERS}
    scores = {optimiser: scored([controlled(run) for run in found]) for optimiser, found in runs.items()}
    lines = [
        _line(optimiser, name, score, printed=optimiser == next(iter(OPTIMISERS)))
        for optimiser, found in scores.items()
        for name, score in found.items()
    ]
    return Reproduction(
        name="daroczy-table2",
        title="Table 2: mean absolute errors of estimated test loss and accuracy",
        rows=tuple(lines),
        notes=(verdict(scores), *_notes(plan, runs)),
        pictures=tuple(_gains(quantity, field, scores) for quantity, field in QUANTITIES.items()),
        settings=plan.settings | {"optimisers": list(runs), "seeds": list(plan.seeds)},
        details={
            "equations": dict(EQUATIONS),
            "runs": {f"{run.optimiser} {run.seed}": _along(run) for found in runs.values() for run in found},
        },
        inputs=dict(plan.rows.sources),
        seed=plan.seed,
        seconds=time.perf_counter() - begun,
        source=DAROCZY,
        columns=TABLE,
        digits=3,
        lead="Mean absolute errors over the states of a training, averaged over runs; standard errors over runs.",
    )


def daroczy_figure3(bench: Bench) -> Reproduction:
    """Figure 3: estimated beside measured test loss and accuracy by epoch, one training with SGD."""
    begun = time.perf_counter()
    plan = make_plan(bench)
    run = states(bench, plan, next(iter(OPTIMISERS)), plan.seed)
    loss = {"measured": run.measured["test_loss"]} | {name: run.estimated(name)[0] for name in DRAWN}
    accuracy = {"measured": run.measured["test_accuracy"]} | {name: run.estimated(name)[1] for name in DRAWN}
    gap = {name: values - run.measured["train_loss"] for name, values in loss.items()}
    score = scored([run])
    better = [TOLD[name] for name, found in score.items() if float(found.loss_gain[0]) < 0.0]
    return Reproduction(
        name="daroczy-figure3",
        title="Figure 3: estimated and measured test loss and accuracy along training",
        rows=(_measured_line(run), *(_figure_line(run, name) for name in run.factors)),
        notes=(
            "In this one training, the mean absolute error of the test loss is below that of test = train for: "
            f"{', '.join(better) or 'no estimate'}. One training has no standard error: daroczy-table2 has several.",
            *_notes(plan, {run.optimiser: [run]}),
        ),
        pictures=(
            along_training("loss", "Test cross-entropy", run.epochs, loss),
            along_training("accuracy", "Test accuracy", run.epochs, accuracy),
            along_training("gap", "Test minus training cross-entropy", run.epochs, gap),
        ),
        settings=plan.settings | {"optimiser": run.optimiser},
        details={"equations": dict(EQUATIONS), "run": _along(run)},
        inputs=dict(plan.rows.sources),
        seed=plan.seed,
        seconds=time.perf_counter() - begun,
        source=DAROCZY,
        columns=FIGURE,
        lead="The paper prints curves and no numbers.",
    )


def scored(runs: Sequence[States]) -> dict[str, Score]:
    """Errors of every estimate in the runs of one optimiser.

    Args:
        runs: at least one.

    Returns:
        Name of the equation -> its score. States without a factor are left out, for "test = train" as well where the
        two are compared.
    """
    return {name: _score(name, runs) for name in runs[0].factors}


def controlled(run: States) -> States:
    """The run with the control among its ratios."""
    return dataclasses.replace(run, factors={**run.factors, CONTROL: torch.full_like(run.factors[BASELINE], CONSTANT)})


def standard_error(values: Tensor) -> float | None:
    """Of a mean over runs; None for one run."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else None


def better(values: Tensor) -> bool | None:
    """Whether differences over runs have a mean below 0 at the two-sided level 0.05 (Student); None if not told.

    Args:
        values: (r,) differences; below 0 is better.

    Returns:
        True below, False above, None where the interval holds 0 or there is one run.
    """
    from scipy.stats import t

    error = standard_error(values)
    if error is None:
        return None
    reach = float(t.ppf(0.975, len(values) - 1)) * error
    mean = float(values.mean())
    return None if abs(mean) <= reach else mean < 0.0


def verdict(scores: Mapping[str, Mapping[str, Score]]) -> str:
    """Does any estimate beat "test = train", in words; the same words whatever came out.

    Args:
        scores: optimiser -> equation -> score.

    Returns:
        A few sentences.
    """
    parts, compared, runs = [], 0, 0
    for quantity, field in QUANTITIES.items():
        told: dict[bool | None, list[str]] = {True: [], False: [], None: []}
        for optimiser, found in scores.items():
            for name, score in found.items():
                if name != BASELINE:
                    values = getattr(score, field)
                    told[better(values)].append(f"{TOLD[name]} ({optimiser}, {_signed(values)})")
                    compared, runs = compared + 1, len(values)
        parts.append(
            f"{quantity}: better than test = train: {'; '.join(told[True]) or 'none'}. Worse: "
            f"{'; '.join(told[False]) or 'none'}. Not to be told apart: {'; '.join(told[None]) or 'none'}."
        )
    return (
        f"Does an estimate beat test = train? Differences of mean absolute errors, mean +- standard error over {runs} "
        f"run{'' if runs == 1 else 's'}, Student at 0.05: {' '.join(parts)} Of {compared} comparisons, one in forty "
        "comes out better by chance."
    )


def _score(name: str, runs: Sequence[States]) -> Score:
    rows, missing, correlations = [], 0, []
    for run in runs:
        own, base = _errors(run, name), _errors(run, BASELINE)
        kept = torch.isfinite(own).all(0) & torch.isfinite(base).all(0)
        missing += int((~kept).sum())
        own, base = own[:, kept].abs(), base[:, kept].abs()
        means = own.mean(1)
        rows.append(torch.cat([means, means - base.mean(1)]))
        correlations.append(_rank_correlation(run, name, kept))
    table = torch.stack(rows)
    known = [value for value in correlations if value is not None]
    correlation = sum(known) / len(known) if known else None
    loss, accuracy, literal, loss_gain, accuracy_gain, literal_gain = table.T
    return Score(loss, accuracy, literal, loss_gain, accuracy_gain, literal_gain, correlation, missing)


def _errors(run: States, name: str) -> Tensor:
    """Loss, accuracy and literal accuracy minus the measured, (3, t)."""
    loss, accuracy, literal = run.estimated(name)
    measured = run.measured
    return torch.stack(
        [loss - measured["test_loss"], accuracy - measured["test_accuracy"], literal - measured["test_accuracy"]]
    )


def _rank_correlation(run: States, name: str, kept: Tensor) -> float | None:
    """Of the estimated with the measured gap between test and training loss over the states."""
    from scipy.stats import spearmanr

    estimated = (run.estimated(name)[0] - run.measured["train_loss"])[kept]
    gap = (run.measured["test_loss"] - run.measured["train_loss"])[kept]
    if len(gap) < 3 or len(estimated.unique()) < 2 or len(gap.unique()) < 2:
        return None
    return float(spearmanr(estimated.numpy(), gap.numpy()).statistic)


def _line(optimiser: str, name: str, score: Score, *, printed: bool) -> Line:
    own = PRINTED.get(name, (None, None)) if printed else (None, None)
    baseline = name == BASELINE
    values = {
        "printed_loss": own[0],
        "loss": float(score.loss.mean()),
        "loss_error": standard_error(score.loss),
        "loss_gain": None if baseline else float(score.loss_gain.mean()),
        "loss_gain_error": None if baseline else standard_error(score.loss_gain),
        "printed_accuracy": own[1],
        "accuracy": float(score.accuracy.mean()),
        "accuracy_error": standard_error(score.accuracy),
        "accuracy_gain": None if baseline else float(score.accuracy_gain.mean()),
        "accuracy_gain_error": None if baseline else standard_error(score.accuracy_gain),
        "accuracy_literal": float(score.literal.mean()),
        "literal_gain": None if baseline else float(score.literal_gain.mean()),
        "literal_gain_error": None if baseline else standard_error(score.literal_gain),
        "correlation": score.correlation,
    }
    remark = f"{score.missing} states without a factor" if score.missing else ""
    return Line(f"{optimiser}, {TOLD[name]}", {key: values[key] for key in TABLE}, remark)


def _gains(quantity: str, field: str, scores: Mapping[str, Mapping[str, Score]]) -> Picture:
    named = {
        optimiser: {TOLD[name]: getattr(score, field) for name, score in found.items()}
        for optimiser, found in scores.items()
    }
    return gains(quantity, named)


def _measured_line(run: States) -> Line:
    last = {
        "last_loss": float(run.measured["test_loss"][-1]),
        "last_accuracy": float(run.measured["test_accuracy"][-1]),
    }
    return Line("measured on test rows", {key: last.get(key) for key in FIGURE})


def _figure_line(run: States, name: str) -> Line:
    errors = _errors(run, name)[:2]
    kept = errors[:, torch.isfinite(errors).all(0)]
    loss, accuracy, _ = run.estimated(name)
    values = {
        "loss": float(kept[0].abs().mean()),
        "loss_bias": float(kept[0].mean()),
        "accuracy": float(kept[1].abs().mean()),
        "accuracy_bias": float(kept[1].mean()),
        "last_loss": float(loss[-1]),
        "last_accuracy": float(accuracy[-1]),
    }
    missing = errors.shape[1] - kept.shape[1]
    return Line(TOLD[name], values, f"{missing} states without a factor" if missing else "")


def _along(run: States) -> dict[str, list[float | None]]:
    every = {"epoch": run.epochs, **run.measured, **run.factors}
    return {
        name: [value if math.isfinite(value) else None for value in values.tolist()] for name, values in every.items()
    }


def _signed(values: Tensor) -> str:
    error = standard_error(values)
    return f"{float(values.mean()):+.2g}" + ("" if error is None else f" +- {error:.1g}")


def _notes(plan: Plan, runs: Mapping[str, Sequence[States]]) -> tuple[str, ...]:
    ends = "; ".join(
        f"{run.optimiser}, seed {run.seed}: {float(run.measured['train_loss'][-1]):.3g} / "
        f"{float(run.measured['test_loss'][-1]):.3g}, {float(run.measured['test_accuracy'][-1]):.1%}"
        for found in runs.values()
        for run in found
    )
    counts = [min(plan.measured, len(x)) for x in (plan.rows.x_train, plan.rows.x_test)]
    return (
        f"Training and test loss, and test accuracy, after {plan.epochs} epochs: {ends}.",
        "An estimate is the training loss times a ratio of sensitivities: of eq. 5 the sensitivity one epoch earlier "
        "over that now, of eq. 6 and 7 test rows over training rows. test = train takes 1. Accuracy: 1 - ratio x "
        "(share of wrong predictions in training); the paper does not say how it estimates accuracy. The table has the "
        "literal reading too, ratio x accuracy. It is at odds with the other: where the ratio is below 1 it says that "
        "test rows have a lower loss and a lower accuracy. As test accuracy is mostly the lower one, a ratio a little "
        f"below 1 gains by it, whatever made it so: the control takes {CONSTANT:g} throughout.",
        "Corrected: eq. 5 keeps the factor 1 / min_i w_max_i^2, which changes while training; eq. 6 takes E T^(2q) of "
        "theorem 3.2 as corrected; eq. 7, a quotient of two matrices in print, takes means of |S|_F^2 under soft "
        'gates, or with each row\'s own pattern. "Norm of the mean" puts the norm around the printed matrices instead. '
        "Eq. 5, logarithm: of the whole bound of theorem 3.1, so that factors that do not change count too.",
        f"Losses and accuracies are of all rows; sensitivities of the first {counts[0]:,} training and {counts[1]:,} "
        f"test rows, the norm of the mean of at most {ROWS} of each.",
        "Table 2 prints errors of 4.2e-4 to 7.7e-4 in cross-entropy beside 0.9 to 1.1 % in accuracy. Per row and in "
        "nats the former would be out of proportion; were the paper's loss divided by its batch of 64 once more, they "
        "would be 0.027 to 0.049. It does not say, nor does it print the error of test = train.",
    )
