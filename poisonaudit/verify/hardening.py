"""How decay, the number of training rows and a smaller modulus change the verified cost of an attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poisonaudit.attack import Budget, outcome
from poisonaudit.attack.objectives import Objective
from poisonaudit.attack.outcome import TestRows
from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem
from poisonaudit.sensitivity import lipschitz_modulus
from poisonaudit.training import Progress, fit, relative_gradient
from poisonaudit.verify.cost import verified_cost
from poisonaudit.verify.cost_result import VerifiedCost

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "label",
    "decay",
    "rows",
    "kappa",
    "kappa_valid",
    "relative_gradient",
    "train_accuracy",
    "test_accuracy",
    "over",
    "value",
    "lower",
    "upper",
    "unit",
    "predicted",
    "monotone",
    "reason",
)


@dataclass(frozen=True)
class Hardened:
    """One variant of a victim and what it costs to attack it.

    Attributes:
        label: name of the variant.
        decay: it was trained with.
        rows: it was trained on.
        kappa: Lipschitz modulus of its solution map over all rows; infinite where the map jumps.
        kappa_valid: may kappa be trusted.
        kappa_reason: why not, or on which condition it is finite.
        relative_gradient: how stationary the variant is.
        train_accuracy: on its clean training rows; None for regression.
        test_accuracy: on the test rows; None without any.
        cost: the verified cost with its bracket.
    """

    label: str
    decay: float
    rows: int
    kappa: float
    kappa_valid: bool
    kappa_reason: str
    relative_gradient: float
    train_accuracy: float | None
    test_accuracy: float | None
    cost: VerifiedCost

    def record(self) -> dict[str, Any]:
        """One flat row of the comparison, with the keys of `COLUMNS`."""
        known = {key: getattr(self, key) for key in COLUMNS if hasattr(self, key)}
        return {key: known[key] if key in known else getattr(self.cost, key) for key in COLUMNS}

    def to_json(self) -> dict[str, Any]:
        """Plain data: the flat row, with an infinite kappa told beside it, and the whole search under `cost`."""
        return {
            **self.record(),
            "kappa_infinite": math.isinf(self.kappa),
            "kappa_reason": self.kappa_reason,
            "cost": self.cost.to_json(),
        }


@dataclass(frozen=True)
class HardeningComparison:
    """Variants of one victim, in the order given.

    Attributes:
        variants: one per problem.
    """

    variants: Sequence[Hardened]

    def to_frame(self) -> pd.DataFrame:
        """One row per variant with the columns `COLUMNS`."""
        import pandas as pd

        return pd.DataFrame.from_records([variant.record() for variant in self.variants], columns=list(COLUMNS))

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data, one entry per variant."""
        return [variant.to_json() for variant in self.variants]


def compare_hardening(
    problems: Mapping[str, Problem],
    objective_of: Callable[[Problem], Objective],
    budget: Budget,
    *,
    test: TestRows | None = None,
    progress: Progress | None = None,
    **search: Any,
) -> HardeningComparison:
    """Verified cost of one attack on several variants of a victim, beside what may explain it.

    Args:
        problems: label -> variant at its own clean solution; see `variants`.
        objective_of: the objective for one variant.
        budget: the same for all.
        test: (x, y) for the accuracy.
        progress: called with a message and a fraction.
        **search: passed to `verified_cost`.

    Returns:
        One entry per variant.
    """
    found = []
    for label, problem in problems.items():

        def saying(message: str, fraction: float | None, label: str = label) -> None:
            if progress is not None:
                progress(f"{label}: {message}", fraction)

        cost = verified_cost(problem, objective_of(problem), budget, progress=saying, **search)
        found.append(hardened(label, problem, cost, test))
    return HardeningComparison(tuple(found))


def hardened(label: str, problem: Problem, cost: VerifiedCost, test: TestRows | None = None) -> Hardened:
    """The entry of one variant whose cost is known.

    Args:
        label: name of the variant.
        problem: at its clean solution.
        cost: of attacking it.
        test: (x, y) for the accuracy.

    Returns:
        The entry, with kappa over all rows.
    """
    modulus = lipschitz_modulus(problem)
    figures = outcome(problem, problem.weights, test=test)
    return Hardened(
        label=label,
        decay=problem.decay,
        rows=problem.rows,
        kappa=modulus.value,
        kappa_valid=modulus.validity.ok,
        kappa_reason="; ".join((*modulus.validity.reasons, modulus.reason)),
        relative_gradient=relative_gradient(problem),
        train_accuracy=figures["train_accuracy"],
        test_accuracy=figures["test_accuracy"],
        cost=cost,
    )


def variants(
    problem: Problem,
    *,
    decays: Sequence[float] = (),
    row_counts: Sequence[int] = (),
    seed: int = 0,
    tolerance: float = 1e-10,
    progress: Progress | None = None,
) -> dict[str, Problem]:
    """The problem trained again from fresh weights: at each decay on all rows, and on the first rows at its own decay.

    Args:
        problem: gives model, loss, rows and the other of decay and number of rows.
        decays: weights of the decay.
        row_counts: numbers of training rows; of nested sets, so that more rows only add.
        seed: of the fresh weights.
        tolerance: relative gradient of each training.
        progress: called with a message and a fraction.

    Returns:
        Label ("decay 0.01", "60 rows") -> fitted Problem. Where training fell short, the relative gradient of the
        comparison says so.

    Raises:
        UsageError: PA347, a number of rows that is not there.
    """
    wanted = {decay_label(decay): variant(problem, decay=decay) for decay in decays}
    wanted |= {rows_label(count): variant(problem, rows=count) for count in row_counts}
    return {
        label: fit(each, tolerance, seed, start="fresh", progress=progress).problem for label, each in wanted.items()
    }


def variant(problem: Problem, *, decay: float | None = None, rows: int | None = None) -> Problem:
    """The problem with another decay or fewer rows, not trained again.

    Args:
        problem: as it is.
        decay: None for its own.
        rows: how many of its first rows; None for all.

    Returns:
        A new Problem at the same weights.

    Raises:
        UsageError: PA347, a number of rows that is not there.
        InputRefused: PA123, a bad decay.
    """
    count = problem.rows if rows is None else rows
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= problem.rows:
        raise UsageError(
            "PA347", f"{rows} rows are asked for, the problem has 1..{problem.rows}. Ask for some of those."
        )
    return Problem(
        problem.module(),
        problem.loss,
        problem.x[:count],
        problem.y[:count],
        problem.decay if decay is None else decay,
        memory_limit=problem.memory_limit,
    )


def decay_label(decay: float) -> str:
    """Name of a variant with another decay."""
    return f"decay {decay:.12g}"


def rows_label(rows: int) -> str:
    """Name of a variant with fewer rows."""
    return f"{rows} rows"
