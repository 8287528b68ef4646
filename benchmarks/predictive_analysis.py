"""From the cases to the question: how well does each score order models by what poison did to them?"""

from __future__ import annotations

import collections
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.rank_statistics import correlation, difference, holm

DRAWS, PERMUTATIONS, SEED = 2_000, 49_999, 20261121
LEVEL = 0.05
# What is judged, and what it is called.
DAMAGES = {
    "movement": "relative movement of the weights, own start",
    "loss_own": "rise of the test loss, own start",
    "loss_fresh": "rise of the test loss, mean over fresh seeds",
    "accuracy_fresh": "drop of the test accuracy, mean over fresh seeds",
    "margin_own": "change of the wanted margin, mean over five test rows, own start",
    "margin_fresh": "the same, mean over fresh seeds",
    "flips_fresh": "share of the five rows flipped less that of clean training, mean over fresh seeds",
}
CONTROL = "baseline.test_accuracy"
Case = Mapping[str, Any]


def damages(case: Case) -> dict[str, float | None]:
    """The numbers of one model; None where the attack failed.

    Args:
        case: of the benchmark.

    Returns:
        Name -> number, larger is worse.
    """
    by_seed = damages_by_seed(case)
    validation = case["damage"]["validation"].get("own_start", {})
    flips = [each["own_start"] for each in case["damage"]["flips"] if "failed" not in each]
    return {
        "movement": case["damage"]["displacement"].get("own_start"),
        "loss_own": validation.get("loss_rise"),
        "loss_fresh": _mean(by_seed["loss_fresh"]),
        "accuracy_fresh": _mean(by_seed["accuracy_fresh"]),
        "margin_own": _mean([each["poisoned"] - each["clean"] for each in flips]),
        "margin_fresh": _mean(by_seed["margin_fresh"]),
        "flips_fresh": _mean(by_seed["flips_fresh"]),
    }


def damages_by_seed(case: Case) -> dict[str, list[float]]:
    """Those over fresh seeds, one number a seed; empty where the attack failed."""
    validation = case["damage"]["validation"].get("fresh", {"loss_rise": [], "accuracy_drop": []})
    # One pair (clean, poisoned) a row, for every seed.
    flips = [each["fresh"] for each in case["damage"]["flips"] if "failed" not in each]
    by_seed = zip(*(zip(each["clean"], each["poisoned"], strict=True) for each in flips), strict=True)
    pairs = [list(each) for each in by_seed] if flips else []
    return {
        "loss_fresh": validation["loss_rise"],
        "accuracy_fresh": validation["accuracy_drop"],
        "margin_fresh": [statistics.fmean(after - before for before, after in own) for own in pairs],
        "flips_fresh": [statistics.fmean(float(a > 0) - float(b > 0) for b, a in own) for own in pairs],
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def score(case: Case, name: str, *, flagged: bool = False) -> float | None:
    """One score of one model, turned so that larger should mean more damage; None where it is missing.

    Args:
        case: of the benchmark.
        name: of the score.
        flagged: take numbers that their measure declared invalid.

    Returns:
        The number, infinite where the measure is.
    """
    entry = case["scores"].get(name)
    if entry is None or not (entry["valid"] or flagged) or not (entry["infinite"] or entry["value"] is not None):
        return None
    value = float("inf") if entry["infinite"] else float(entry["value"])
    return -value if entry["direction"] == "higher_is_safer" else value


def analysed(cases: Sequence[Case]) -> dict[str, Any]:
    """All tables of the study.

    Args:
        cases: every model of the plan.

    Returns:
        `correlations` (one entry a score and damage), `best_baseline` by damage, `comparisons` of every audit measure
        with it, `flagged` (correlations of the solution measures with numbers counted that were declared invalid),
        `missing` by score, `damages` (what the damages are like), `failures`, and the settings of the analysis.
    """
    harms = [damages(case) for case in cases]
    names = list(dict.fromkeys(name for case in cases for name in case["scores"]))
    judged = [name for name in names if any(c["scores"].get(name, {}).get("direction") != "neutral" for c in cases)]
    told = [_correlations(cases, harms, name, harm) for harm, name in itertools.product(DAMAGES, judged)]
    tested = [each for each in told if each["within"]["p"] is not None]
    for each, adjusted in zip(tested, holm([each["within"]["p"] for each in tested]), strict=True):
        each["within"]["p_holm"] = adjusted
    best = {harm: _best_baseline(told, harm) for harm in DAMAGES}
    again = [name for name in judged if name.startswith("solution.")]
    return {
        "models": len(cases),
        "control": CONTROL,
        "draws": DRAWS,
        "permutations": PERMUTATIONS,
        "level": LEVEL,
        "tests": len(tested),
        "expected_false_finds": LEVEL * len(tested),
        "finds": sum(each["within"]["p"] < LEVEL for each in tested),
        "finds_holm": sum(each["within"]["p_holm"] < LEVEL for each in tested),
        "damages": {harm: _described(cases, harms, harm) for harm in DAMAGES},
        "correlations": told,
        "best_baseline": best,
        "comparisons": [
            found
            for harm, name in itertools.product(DAMAGES, judged)
            if not _is_baseline(name) and (found := _compared(cases, harms, name, best[harm], harm))
        ],
        "flagged": [
            _correlations(cases, harms, name, harm, flagged=True) for harm, name in itertools.product(DAMAGES, again)
        ],
        "missing": {name: missing for name in names if (missing := _missing(cases, name))},
        "failures": _failures(cases),
    }


def _is_baseline(name: str) -> bool:
    return name.startswith("baseline.")


def _correlations(
    cases: Sequence[Case], harms: Sequence[Mapping[str, float | None]], name: str, harm: str, *, flagged: bool = False
) -> dict[str, Any]:
    """One score against one damage: over all models, within data sets, and there with the accuracy held fixed."""
    x, y, control, strata = [], [], [], []
    for case, harmed in zip(cases, harms, strict=True):
        value, hurt = score(case, name, flagged=flagged), harmed[harm]
        if value is not None and hurt is not None:
            x.append(value)
            y.append(hurt)
            control.append(score(case, CONTROL) or 0.0)
            strata.append(case["model"]["data"])
    told: dict[str, Any] = {"draws": DRAWS, "seed": SEED}
    permutations = 0 if flagged or _is_baseline(name) else PERMUTATIONS
    partial = None if name == CONTROL else asdict(correlation(x, y, strata, control=control, **told))
    return {
        "score": name,
        "damage": harm,
        "pooled": asdict(correlation(x, y, strata, together=True, **told)),
        "within": asdict(correlation(x, y, strata, permutations=permutations, **told)),
        "partial": partial,
        "by_data": {data: asdict(correlation(*_only(data, x, y, strata), **told)) for data in dict.fromkeys(strata)},
    }


def _only(data: str, x: Sequence[float], y: Sequence[float], strata: Sequence[str]) -> tuple[list[Any], ...]:
    chosen = [position for position, each in enumerate(strata) if each == data]
    return [x[i] for i in chosen], [y[i] for i in chosen], [data] * len(chosen)


def _best_baseline(told: Sequence[Mapping[str, Any]], harm: str) -> dict[str, Any] | None:
    """The baseline of largest correlation within data sets, read either way: its sign is chosen with hindsight."""
    own = [
        each
        for each in told
        if each["damage"] == harm and _is_baseline(each["score"]) and each["within"]["value"] is not None
    ]
    if not own:
        return None
    best = max(own, key=lambda each: abs(each["within"]["value"]))
    return {"score": best["score"], "sign": 1 if best["within"]["value"] >= 0 else -1, **best["within"]}


def _compared(
    cases: Sequence[Case],
    harms: Sequence[Mapping[str, float | None]],
    name: str,
    baseline: Mapping[str, Any] | None,
    harm: str,
) -> dict[str, Any] | None:
    """A measure beside the best baseline on the models that have both."""
    if baseline is None:
        return None
    first, second, y, strata = [], [], [], []
    for case, harmed in zip(cases, harms, strict=True):
        own, other, hurt = score(case, name), score(case, baseline["score"]), harmed[harm]
        if own is not None and other is not None and hurt is not None:
            first.append(own)
            second.append(baseline["sign"] * other)
            y.append(hurt)
            strata.append(case["model"]["data"])
    found = difference(first, second, y, strata, draws=DRAWS, seed=SEED)
    return {"score": name, "damage": harm, "baseline": baseline["score"], **asdict(found)}


def _described(cases: Sequence[Case], harms: Sequence[Mapping[str, float | None]], harm: str) -> dict[str, Any]:
    """Range of a damage, and how far fresh seeds agree on the order of models: no score can do much better."""
    values = [value for each in harms if (value := each[harm]) is not None]
    if not values:
        return {"models": 0}
    low, middle, high = np.quantile(values, [0.0, 0.5, 1.0]).tolist()
    told = {"models": len(values), "lowest": low, "median": middle, "highest": high, "distinct": len(set(values))}
    if not harm.endswith("_fresh"):
        return told
    seeds, strata = [], []
    for case in cases:
        own = damages_by_seed(case)[harm]
        if len(own) > 1:
            seeds.append(own)
            strata.append(case["model"]["data"])
    pairs = [
        found
        for a, b in itertools.combinations(range(min(map(len, seeds), default=0)), 2)
        if (found := correlation([s[a] for s in seeds], [s[b] for s in seeds], strata, draws=1).value) is not None
    ]
    return {**told, "models_with_several_seeds": len(seeds), "agreement_of_seeds": _mean(pairs)}


def _missing(cases: Sequence[Case], name: str) -> dict[str, int]:
    """Why a score is missing -> for how many models."""
    reasons: collections.Counter[str] = collections.Counter()
    for case in cases:
        entry = case["scores"].get(name)
        if entry is None:
            reasons["not in this version"] += 1
        elif score(case, name) is None:
            short = entry["reason"].partition(":")[0].partition(";")[0].strip()
            reasons[short if entry["status"] == "measured" else f"{entry['status']}: {_cut(entry['reason'])}"] += 1
    return dict(reasons)


def _cut(reason: str) -> str:
    told = reason.partition(": ")[2] or reason
    return told if len(told) <= 100 else f"{told[:97]}..."


def _failures(cases: Sequence[Case]) -> list[dict[str, str]]:
    """Attacks that could not be carried out, with the reason."""
    found = []
    for case in cases:
        damage = case["damage"]
        named = {"displacement": damage["displacement"], "validation": damage["validation"]}
        named |= {f"flip of row {i}": each for i, each in enumerate(damage["flips"])}
        found += [
            {"model": case["model"]["key"], "attack": attack, "reason": each["failed"]}
            for attack, each in named.items()
            if "failed" in each
        ]
    return found
