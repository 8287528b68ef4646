"""Results as real runs store them, with every awkward case, for the report tests; and tests of these samples."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

from sklearn.datasets import load_digits

from poisonaudit.report import compare
from poisonaudit.results import AttackResult, AuditResult, Comparison, GateOutcome, Measure

HOSTILE = "<script>alert(1)</script>"
HOSTILE_QUOTE = '"><img src=x onerror=alert(2)>'
COMMAND = "poisonaudit compare runs/a runs/b runs/c --fail-on 'attack.flip_success>0.5' --out report"
ENVIRONMENT = {
    "python": "3.11.2",
    "torch": "2.15.0",
    "numpy": "2.4.1",
    "threads": 1,
    "device": "cpu",
    "platform": "Linux",
}


@cache
def digit(row: int) -> list[int]:
    return [int(value * 255 / 16) for value in load_digits().data[row]]


def picture(row: int, change: int = 0) -> dict[str, Any]:
    pixels = [
        min(max(p + (change if (i * 7 + row) % 3 else -change), 0), 255) if i % 4 else p
        for i, p in enumerate(digit(row))
    ]
    return {"shape": [8, 8], "pixels": pixels}


def measures(
    scale: float, *, valid: bool = True, infinite: bool = False, fragile: list[dict[str, Any]]
) -> list[Measure]:
    why = "" if valid else f"the relative gradient is 3.1e-04, above 1e-06 {HOSTILE}"
    weight = "weight norm per input norm"
    curvature = {
        "kernel_dimension": 0,
        "tolerance": 1e-9,
        "largest_curvature": 2.31 * scale,
        "smallest_curvature": 1e-3,
    }
    bounds = {
        "k_star": 5210.4 * scale,
        "k1": 2011.0,
        "k2": None,
        "k3": 1500.2,
        "k4": 702.1,
        "k5": 688.3,
        "ellipsoid": 211.9 * scale,
        "certified": 211.9 * scale,
        "certified_winner": "ellipsoid",
        "restarts": [],
    }
    curve = {"radius": [0.0, 0.01 / scale, 0.02 / scale], "certified_accuracy": [0.95, 0.52, 0.0]}
    certified = {"rows": "100 of 450 test rows, drawn with seed 0", "within": "all inputs", "curve": curve}
    low, high = "lower_is_safer", "higher_is_safer"
    modulus = None if infinite else 41.73 * scale
    return [
        Measure("stationarity.relative_gradient", 3.2e-11 if valid else 3.1e-4, "relative", "exact", low, seconds=0.1),
        Measure("solution.modulus", modulus, weight, "exact", low, valid, why, {**curvature, "infinite": infinite}),
        Measure("solution.row_modulus_max", 3.217 * scale, weight, "exact", low, valid, why, {"fragile": fragile}, 1.2),
        Measure("solution.poison_budget", 0.0123 / scale, "input norm", "estimate", high, valid, why, {}, 0.0),
        Measure("solution.theorem2_max", 0.916 * scale, weight, "estimate", low, valid, "a proxy, not a bound"),
        Measure("solution.theorem3", 14.1 * scale, weight, "estimate", low, valid, "a proxy, not a bound"),
        Measure("tangent.sensitivity", 88.1 * scale, "squared norm", "exact", low, True, "", {}, 0.3),
        Measure("tangent.bound_path", 3.5e9 * scale**4, "squared norm", "upper", low, True, "", {}, 0.3),
        Measure("lipschitz.upper.linf", 211.9 * scale, "logit per input", "upper", low, True, "ellipsoid", bounds, 0.2),
        Measure("lipschitz.lower.linf", 98.7 * scale, "logit per input", "lower", low, True, "", {}, 0.2),
        Measure("lipschitz.certified_radius_median", 0.0104 / scale, "input units", "lower", high, True, "",
                certified, 0.2),
        Measure("weight_noise.rms", 0.171 * scale, "relative", "statistic", low, True, "64 draws", {}, 0.2),
        Measure("weight_noise.flip_rate", 0.0312, "share of rows", "statistic", low, True, "64 draws", {}, 0.2),
        Measure("art.clever", None, "input norm", "estimate", high, False, "skipped: cost", {"status": "skipped"}),
    ]  # fmt: skip


def fragile_pictures(scale: float) -> list[dict[str, Any]]:
    return [
        {
            "row": 17 * k,
            "label": int(k % 10),
            "value": (3.217 - 0.09 * k) * scale,
            "picture": picture(17 * k),
            "features": None,
        }
        for k in range(12)
    ]


def fragile_features() -> list[dict[str, Any]]:
    names = ["mean radius", "mean texture", HOSTILE, "mean area", "worst concave points"]
    return [
        {
            "row": k,
            "label": k % 2,
            "value": 1.1 - 0.1 * k,
            "picture": None,
            "features": {n: 0.37 * k - j for j, n in enumerate(names)},
        }
        for k in range(6)
    ]


def audit(model: str, data: str, found: list[Measure], seed: int = 0, **recipe: Any) -> AuditResult:
    return AuditResult(
        model=model,
        data=data,
        measures={measure.id: measure for measure in found},
        inputs={"data": "a3" * 32, "weights": f"{abs(seed) + 10:02x}" * 32},
        environment=ENVIRONMENT,
        seed=seed,
        recipe={"loss": "cross_entropy", "decay": 1e-3, "rows": 400, "dtype": "float64", "converged": True, **recipe},
    )


def outcome(quantity: str, value: float | None, *, success: bool | None = None, **more: Any) -> dict[str, Any]:
    side = {"displacement_norm": 0.62, "success": success, "test_accuracy": 0.953, "train_loss": 0.118}
    return {quantity: value, **side, **({"cosine": 0.41} if quantity == "movement" else {"prediction": 3}), **more}


def attack(
    name: str,
    model: str,
    kind: str,
    predicted: float | None,
    warm: float | None,
    fresh: list[float],
    control: float,
    *,
    data: str = "digits",
    valid: bool = True,
    reasons: tuple[str, ...] = (),
    phi: float | None = 0.12,
    stuck: tuple[int, ...] = (),
    pictures: int = 8,
) -> AttackResult:
    quantity = "movement" if kind == "target_weights" else "margin"

    def one(value: float | None, **more: Any) -> dict[str, Any]:
        success = None if value is None else value > (0.5 if quantity == "movement" else 0.0)
        return outcome(quantity, value, success=success, relative_gradient=4.1e-11, seconds=1.9, **more)

    trained = [one(value, seed=seed, converged=seed not in stuck) for seed, value in enumerate(fresh)]
    clean = [one(control + 0.02 * seed, seed=seed, converged=True) for seed in range(len(fresh))]
    won = sum(item["success"] for item in trained)
    rate = {"successes": won, "trials": len(fresh), "lower": 0.094, "upper": 0.992, "level": 0.95}
    summary = {"success": rate, "control_success": {"successes": 0, "trials": len(fresh)}}
    objective = (
        {"kind": kind, "row": 12, "label": 3} if kind == "flip" else {"kind": kind, "weights": "label flips 3 to 8"}
    )
    rows = [17 * k + 3 for k in range(20)]
    return AttackResult(
        name=name,
        model=model,
        data=data,
        recipe={"objective": objective, "loss": "cross_entropy", "decay": 1e-3},
        budget={"rows": 20, "share": 0.05, "norm": "linf", "radius": 16 / 255, "unit": "pixel", "box": [0.0, 1.0],
                "choice": "adjoint"},
        rows=rows,
        predicted={**one(predicted), "phi": phi, "valid": valid, "reasons": list(reasons)},
        retrained={"warm": one(warm, converged=True), "fresh": trained, "summary": summary},
        control={"warm": one(control, converged=True), "fresh": clean},
        pictures=[
            {"row": row, "label": row % 10, "clean": picture(row), "poisoned": picture(row, 4 + row % 12)}
            for row in rows[:pictures]
        ],
        inputs={"data": "a3" * 32},
        environment=ENVIRONMENT,
        seed=1,
    )  # fmt: skip


TANH, LINEAR, WIDE = "mlp:64-32-10?activation=tanh", "linear", f"mlp:30-16-2 {HOSTILE}"


def audits() -> list[AuditResult]:
    tanh = measures(1.0, fragile=fragile_pictures(1.0))
    linear = measures(0.31, fragile=fragile_pictures(0.31))
    linear[6] = Measure("tangent.sensitivity", None, "squared norm", "exact", "lower_is_safer", False,
                        "a model with one layer has no hidden gates", {"status": "not applicable"})  # fmt: skip
    linear[12] = Measure("weight_noise.flip_rate", None, "share of rows", "statistic", "lower_is_safer", False,
                         "PA420 the draws did not agree. 64 is too few.", {"status": "failed"})  # fmt: skip
    wide = measures(2.6, valid=False, infinite=True, fragile=fragile_features())
    facts = {"parameters": 2410, "train_accuracy": 1.0, "test_accuracy": 0.967}
    return [
        audit(LINEAR, "digits", linear, parameters=650, train_accuracy=0.99, test_accuracy=0.951),
        audit(TANH, "digits", tanh, seed=1, **facts),
        audit(WIDE, "breast_cancer", wide, seed=2, warnings=[f"2 rows of {HOSTILE_QUOTE} appear twice"]),
    ]


def attacks() -> list[AttackResult]:
    far = ("phi is 0.83, above 0.3", f"the path corrector stopped early {HOSTILE}")
    return [
        attack("push-5-percent", LINEAR, "target_weights", 0.24, 0.26, [0.25, 0.262], 0.0),
        attack("push-50-percent", LINEAR, "target_weights", 0.93, 0.92, [0.91, 0.55], 0.0),
        attack("flip-one", LINEAR, "flip", 0.8, -0.4, [-0.5, -0.2], -2.4),
        attack("flip-one", TANH, "flip", 2.1, 2.6, [1.9, 3.0, -0.7], -4.4, stuck=(2,)),
        attack(
            "push-label-flip", TANH, "target_weights", 0.31, 0.07, [0.03, 0.05], 0.0, valid=False, reasons=far, phi=0.83
        ),
        attack(f"flip {HOSTILE}", WIDE, "flip", 1.4, 1.7, [1.5], 0.6, data="breast_cancer", pictures=0),
    ]


def gates() -> tuple[GateOutcome, ...]:
    return (
        GateOutcome("attack.movement>0.5", "FAIL", "attack.movement is 0.73, above 0.5", LINEAR),
        GateOutcome("attack.flip_success>0.5", "PASS", "attack.flip_success is 0, not above 0.5", LINEAR),
        GateOutcome("solution.modulus>100", "INCONCLUSIVE", f"solution.modulus is not valid {HOSTILE}", WIDE),
    )


def sample(with_gates: bool = True) -> Comparison:
    return compare([*attacks(), *audits()], gates=gates() if with_gates else (), environment=ENVIRONMENT)


def test_samples_survive_storage() -> None:
    body = sample().to_json()
    again = Comparison.from_json(json.loads(json.dumps(body, allow_nan=False)))
    assert again.to_json() == body


def test_samples_hold_the_awkward_cases() -> None:
    every = [measure for item in sample().audits for measure in item.measures.values()]
    assert {measure.status for measure in every} == {"measured", "not applicable", "skipped", "failed"}
    assert any(measure.number == math.inf for measure in every) and not all(measure.valid for measure in every)
