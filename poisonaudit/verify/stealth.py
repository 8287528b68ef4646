"""How much damage a poison does for how visible it is: a curve over radii and numbers of rows, and its area."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from poisonaudit.attack.budget import Budget
from poisonaudit.attack.crafting import craft
from poisonaudit.attack.objectives import Objective
from poisonaudit.attack.outcome import TestRows, outcome
from poisonaudit.attack.poison import Poison
from poisonaudit.errors import UsageError
from poisonaudit.problem import Problem
from poisonaudit.results import finite
from poisonaudit.training import Progress
from poisonaudit.verify.detectors import DETECTORS, Detection, default_share, detect, judge
from poisonaudit.verify.effects import effect, effect_name
from poisonaudit.verify.retrained import Control
from poisonaudit.verify.retraining import retrain
from poisonaudit.verify.statistics import mean_and_error

if TYPE_CHECKING:
    import pandas as pd

    from poisonaudit.verify.retrained import Retrained

Key = tuple[float, int]
Crafter = Callable[[Problem, Objective, Budget, int], Poison]


@dataclass(frozen=True)
class StealthCurve:
    """Damage beside detectability of attacks that differ in radius and number of rows.

    With A the largest AUROC over the detectors, counted as 1/2 where it is below, detectability is `2 A - 1` and
    stealth is `1 - detectability`, both in [0, 1]: stealth 1 is invisible to every detector, 0 is told apart perfectly.
    The attacker is not adaptive: the poisons were not made to evade these detectors. The largest of several AUROCs of
    few rows lies above 1/2 by chance (`auroc_p_value` tells), so stealth comes out rather too low than too high.

    Attributes:
        points: one per budget, plain data: `radius`, `rows`, `share`, `norm`, `damage`, `damage_standard_error`,
            `damage_control`, `stealth`, `detectability`, `best_detector`, `auroc` (detector -> mean over the models,
            None where it does not apply), `auroc_p_value` (detector -> of the first model), `auroc_unpoisoned`
            (detector -> the same rows in clean training: what is found there is the choice of rows, not the poison),
            `perceptibility` (`|delta| / |x|` over the poisoned rows, Frobenius), `fresh_runs`, `converged`,
            `predicted`, `seconds`.
        damage: which effect the damage is, see `poisonaudit.verify.effects.effect_name`.
        judged_on: "fresh" (means over fresh seeds) or "warm".
        detectors: names.
        objective: as described by itself.
    """

    points: Sequence[Mapping[str, Any]]
    damage: str
    judged_on: str
    detectors: tuple[str, ...]
    objective: Mapping[str, Any] = field(default_factory=dict)

    @property
    def front(self) -> list[tuple[float, float]]:
        """The attacker's Pareto front: (stealth, damage) ascending in stealth, descending in damage.

        Every point is one that no other beats in both. Doing nothing, (1, 0), is always among the choices.
        """
        pairs = {(float(point["stealth"]), float(point["damage"])) for point in self.points if _is_on_the_map(point)}
        best, front = -math.inf, []
        for stealth, damage in sorted(pairs | {(1.0, 0.0)}, key=lambda pair: (-pair[0], -pair[1])):
            if damage > best:
                best = damage
                front.append((stealth, damage))
        return front[::-1]

    @property
    def area(self) -> float | None:
        """Area under damage over stealth from 0 to 1, trapezoid over the front, in units of the damage; an estimate.

        Below the least stealthy point of the front the damage stays what it is there. Between two points it is
        interpolated: an attacker who draws one of the two attacks at random gets that in expectation. None where no
        detector applied.
        """
        if not any(_is_on_the_map(point) for point in self.points):
            return None
        front = self.front
        corners = [(0.0, front[0][1]), *front]
        return math.fsum((b[0] - a[0]) * 0.5 * (a[1] + b[1]) for a, b in zip(corners, corners[1:], strict=False))

    def to_frame(self) -> pd.DataFrame:
        """One row per budget, a column `auroc_NAME` per detector, and whether the point is `on_front`."""
        import pandas as pd

        front = set(self.front)
        lines = []
        for point in self.points:
            line = {key: value for key, value in point.items() if not isinstance(value, Mapping)}
            line |= {f"auroc_{name}": point["auroc"].get(name) for name in self.detectors}
            line["on_front"] = _is_on_the_map(point) and (point["stealth"], point["damage"]) in front
            lines.append(line)
        return pd.DataFrame(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain data with `area` and `front`; no NaN or infinity."""
        return finite({**dataclasses.asdict(self), "front": self.front, "area": self.area})


def budget_grid(budget: Budget, radii: Sequence[float], rows: Sequence[int | float]) -> list[Budget]:
    """Copies of a budget over radii and numbers of rows.

    Args:
        budget: everything else; its choice of rows has to be "adjoint" or "random".
        radii: largest norms.
        rows: whole numbers of rows, or shares of all rows as floats in (0, 1].

    Returns:
        One budget per pair, radius first.

    Raises:
        UsageError: PA360 and PA361, values out of range; PA361 too where the budget names its rows.
    """
    if not isinstance(budget.choice, str):
        raise UsageError("PA361", "the budget names its rows, so their number is fixed. Pass choice='adjoint'.")
    return [
        dataclasses.replace(
            budget,
            radius=radius,
            rows=None if isinstance(count, float) else count,
            share=count if isinstance(count, float) else None,
        )
        for radius in radii
        for count in rows
    ]


def stealth_damage(
    problem: Problem,
    objective: Objective,
    budgets: Sequence[Budget],
    *,
    fresh: int | Sequence[int] = 0,
    seed: int = 0,
    detectors: Sequence[str] | None = None,
    damage: str | None = None,
    steps: int = 12,
    tolerance: float = 1e-10,
    test: TestRows | None = None,
    crafter: Crafter | None = None,
    already: Mapping[Key, Mapping[str, Any]] | None = None,
    store: Callable[[Key, dict[str, Any]], None] | None = None,
    progress: Progress | None = None,
) -> StealthCurve:
    """Craft, retrain and try to detect a poison for every budget.

    Damage is the effect after retraining, from clean training of the same start: the mean over the fresh seeds, or of
    the warm start where there are none. Detectors look at the same retrained models.

    Args:
        problem: clean, at the clean solution.
        objective: of the attacker.
        budgets: distinct in (radius, number of rows), see `budget_grid`.
        fresh: fresh seeds as in `retrain`; 0 for warm only.
        seed: of crafting, of the fresh seeds and of detectors.
        detectors: names from `DETECTORS`; None for all.
        damage: which effect; None for the objective's own (movement, margin_change, ...), "success" for the success
            rate.
        steps: of crafting.
        tolerance: relative gradient of the retrainings.
        test: (x, y) for accuracies.
        crafter: (problem, objective, budget, seed) -> Poison in the place of `craft`.
        already: points from an earlier run, by (radius, rows); they are not computed again.
        store: called with key and point as soon as a point is there.
        progress: called with a message and a fraction.

    Returns:
        The curve, points in the order of the budgets.

    Raises:
        UsageError: PA301, an unknown detector or effect; PA393, two budgets are alike in radius and rows, or an earlier
            point is of another damage, start or set of detectors; PA385, in one of them no entry of a row can move.
    """
    names = tuple(DETECTORS if detectors is None else detectors)
    keys = [(float(budget.radius), budget.count(problem.rows)) for budget in budgets]
    if len(set(keys)) < len(keys):
        raise UsageError("PA393", "two budgets have the same radius and number of rows. Keep one of each.")
    for budget in budgets:
        budget.remarks(problem.x)
    judged_on = "warm" if fresh == 0 or fresh == () or fresh == [] else "fresh"
    kind = effect_name(outcome(problem, problem.weights, objective), damage)
    run = _Run(problem, objective, names, kind, judged_on, seed, tolerance, test, fresh)
    points: list[Mapping[str, Any]] = []
    for index, (key, budget) in enumerate(zip(keys, budgets, strict=True)):
        if already is not None and key in already:
            points.append(run.fitting(already[key]))
            continue
        if progress is not None:
            progress(f"radius {key[0]:g}, {key[1]} rows", index / len(keys))
        begun = time.perf_counter()
        if crafter is None:
            poison = craft(problem, objective, budget, seed, steps=steps, tolerance=tolerance, test=test)
        else:
            poison = crafter(problem, objective, budget, seed)
        point = {**run.point(poison), "radius": key[0], "rows": key[1], "norm": budget.norm}
        point["seconds"] = time.perf_counter() - begun
        point = finite(point)
        points.append(point)
        if store is not None:
            store(key, point)
    return StealthCurve(tuple(points), run.damage, judged_on, names, objective.describe())


@dataclass
class _Run:
    """What all points share; the clean training and what detectors say of it are made once."""

    problem: Problem
    objective: Objective
    names: tuple[str, ...]
    damage: str
    judged_on: str
    seed: int
    tolerance: float
    test: TestRows | None
    fresh: int | Sequence[int]
    control: Control | None = None
    unpoisoned: list[dict[str, Detection]] = field(default_factory=list)

    def fitting(self, point: Mapping[str, Any]) -> Mapping[str, Any]:
        """An earlier point, refused where it measured something else."""
        own = (self.damage, self.judged_on, set(self.names))
        if (point.get("damage_is"), point.get("judged_on"), set(point.get("auroc", ()))) != own:
            raise UsageError(
                "PA393",
                f"the stored point at radius {point.get('radius')}, {point.get('rows')} rows is of "
                f"{point.get('damage_is')} ({point.get('judged_on')}) and detectors "
                f"{', '.join(point.get('auroc', ())) or 'none'}; this run is of {self.damage} ({self.judged_on}) and "
                f"{', '.join(self.names)}. Start anew, or ask for the same.",
            )
        return point

    def point(self, poison: Poison) -> dict[str, Any]:
        """Retrain with the poison and let the detectors look."""
        judged = retrain(
            self.problem,
            poison,
            self.fresh,
            loose=False,
            seed=self.seed,
            objective=self.objective,
            test=self.test,
            tolerance=self.tolerance,
            control=self.control,
        )
        self.control = judged.control
        runs, cleans = self._judged(judged)
        damages = [effect(run.outcome, self.damage) for run in runs]
        mean, error = mean_and_error(damages)
        control, _ = mean_and_error([effect(run.outcome, self.damage) for run in cleans])
        poisoned = poison.poisoned(self.problem)
        share = default_share(len(poison.rows), self.problem.rows)
        seen = [
            detect(poisoned, run.weights, self.names, expected_share=share, seed=self.seed + index)
            for index, run in enumerate(runs)
        ]
        if not self.unpoisoned:
            # AUROC needs scores only, and those do not depend on the expected share.
            self.unpoisoned = [
                detect(self.problem, run.weights, self.names, expected_share=share, seed=self.seed + index)
                for index, run in enumerate(cleans)
            ]
        found, p_values = self._auroc(seen, poison.rows)
        there = {name: value for name, value in found.items() if value is not None}
        best = max(there, key=lambda name: there[name], default=None)
        detectability = None if best is None else 2.0 * max(0.5, there[best]) - 1.0
        rows = self.problem.x[poison.rows]
        return {
            "share": len(poison.rows) / self.problem.rows,
            "damage": mean,
            "damage_is": self.damage,
            "damage_standard_error": error,
            "damage_control": control,
            "judged_on": self.judged_on,
            "stealth": None if detectability is None else 1.0 - detectability,
            "detectability": detectability,
            "best_detector": best,
            "auroc": found,
            "auroc_p_value": p_values,
            "auroc_unpoisoned": self._auroc(self.unpoisoned, poison.rows)[0],
            "perceptibility": _ratio(float(poison.delta.norm()), float(rows.norm())),
            "fresh_runs": len(judged.fresh),
            "converged": all(run.converged for run in runs),
            "predicted": effect(poison.predicted, self.damage) if "displacement_norm" in poison.predicted else None,
        }

    def _judged(self, judged: Retrained) -> tuple[Sequence[Any], Sequence[Any]]:
        """The poisoned runs that count, and the clean ones of the same starts."""
        if self.judged_on == "warm":
            return [judged.warm], [judged.control.warm]
        return judged.fresh, judged.control.fresh

    def _auroc(
        self, seen: Sequence[Mapping[str, Detection]], rows: Tensor
    ) -> tuple[dict[str, float | None], dict[str, float | None]]:
        """Mean AUROC over the models, and the p-value of the first one's, by detector."""
        found: dict[str, float | None] = {}
        p_values: dict[str, float | None] = {}
        for name in self.names:
            figures = [judge(each[name], rows) for each in seen]
            values = [each["auroc"] for each in figures if each["auroc"] is not None]
            found[name] = mean_and_error(values)[0]
            p_values[name] = figures[0]["auroc_p_value"]
        return found, p_values


def _is_on_the_map(point: Mapping[str, Any]) -> bool:
    return point["stealth"] is not None and point["damage"] is not None


def _ratio(value: float, reference: float) -> float | None:
    return value / reference if reference > 0 else None
