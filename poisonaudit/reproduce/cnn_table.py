"""The test with convolutional networks of Després and Pintore: bounds with max pooling explicit and implicit."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from poisonaudit.data import DataSet, load_data
from poisonaudit.errors import UsageError
from poisonaudit.lipschitz import LipschitzBounds, lipschitz_bounds
from poisonaudit.reproduce.bench import Bench
from poisonaudit.reproduce.cnn_checks import (
    accuracy_check,
    best_forms,
    cnn_checks,
    cnn_flags,
    pooling_factors,
    shares_of_forms,
)
from poisonaudit.reproduce.cnn_figures import bounds_by_network
from poisonaudit.reproduce.cnn_network import (
    BATCH,
    NAMES,
    RATE,
    STEPS,
    STEPS_IF_QUICK,
    Architecture,
    architectures,
    default_decay,
    parameters,
    trained,
)
from poisonaudit.reproduce.cnn_printed import COLUMNS, NORMS, POOLINGS, PRINTED, PRINTED_KEYS, Case
from poisonaudit.reproduce.result import DESPRES, Line, Reproduction

DATA = "digits"
# Test rows at which the search for the lower bound starts.
POINTS = 64
_KEPT = ("k_star", "k1", "k3", "k4", "k5", "certified", "lower")


def despres_cnn(bench: Bench) -> Reproduction:
    """The test with convolutional networks: K_* to K_5 of three CNNs, max pooling explicit and implicit, l1, l_inf."""
    begun = time.perf_counter()
    asked = bench.settings
    data = asked.data or DATA
    bench.voice.stage(f"loading {data}")
    rows = load_data(data, images=True, limit=asked.limit)
    if rows.classes is None:
        raise UsageError("PA397", f"{data} has no classes, and the networks classify. Pass other --data.")
    plans = architectures(rows.input_shape)
    plans = {name: plans[name] for name in (NAMES[:2] if asked.quick else NAMES)}
    decay = default_decay(rows.input_shape) if asked.decay is None else asked.decay
    steps = STEPS_IF_QUICK if asked.quick else STEPS
    bench.voice.note(
        f"networks {', '.join(plans)} on {data}: n = {len(rows.x_train):,} rows, decay {decay:g}, {steps:,} steps"
    )
    networks: dict[str, Mapping[str, Any]] = {}
    ours: dict[Case, Line] = {}
    for name, plan in plans.items():
        facts, lines = _measured(bench, name, plan, rows, decay, steps)
        networks[name] = facts
        ours |= lines
    table = [line for case in ours for line in (printed_line(case), ours[case])]
    accuracies = {name: float(facts["test_accuracy"]) for name, facts in networks.items()}
    checks = (*cnn_checks(ours), accuracy_check(accuracies))
    return Reproduction(
        name="despres-cnn",
        title="Convolutional networks: bounds with explicit and implicit max pooling",
        rows=tuple(table),
        notes=(
            *_notes(networks, data, rows, decay, steps),
            *(check.text for check in checks),
            shares_of_forms(ours),
            best_forms(ours),
            pooling_factors(),
        ),
        flags=cnn_flags(ours, accuracies),
        pictures=tuple(bounds_by_network(norm, ours) for norm in NORMS),
        settings={
            "data": data,
            "rows": len(rows.x_train),
            "test_rows": len(rows.x_test),
            "input_shape": list(rows.input_shape),
            "decay": decay,
            "optimiser": "Adam",
            "steps": steps,
            "batch": BATCH,
            "rate": RATE,
            "dtype": "training float32, bounds float64",
            "quick": asked.quick,
        },
        details={
            "networks": networks,
            "checks": [{"held": check.held, "text": check.text} for check in checks],
        },
        inputs=dict(rows.sources),
        seed=asked.seed,
        seconds=time.perf_counter() - begun,
        source=DESPRES,
        columns=COLUMNS,
        lead="Printed values above ours. The networks are not the source's, so only orders and ratios compare.",
    )


def printed_line(case: Case) -> Line:
    """What the source prints for a model, a form of pooling and a norm."""
    values = dict(zip(PRINTED_KEYS, PRINTED[case], strict=True))
    return Line(f"{_told(case)}, printed", {key: values.get(key) for key in COLUMNS})


def our_lines(model: nn.Module, name: str, x: Tensor, bench: Bench) -> dict[Case, Line]:
    """Bounds of one network in both norms and both forms of pooling.

    Args:
        model: trained.
        name: of the model, A, B or C.
        x: rows where the search for the lower bound starts.
        bench: gives the seed, and is told the progress.

    Returns:
        A line for each. Both forms are the same function: its lower bound is the larger one of both searches.
    """
    exact = copy.deepcopy(model).double().eval()
    found: dict[Case, tuple[LipschitzBounds, float]] = {}
    for norm in NORMS:
        for pooling in POOLINGS:
            bench.voice(f"model {name}: {pooling} max pooling, {norm}", len(found) / 4)
            started = time.perf_counter()
            bounds = lipschitz_bounds(exact, norm, x=x.double(), seed=bench.settings.seed, max_pool=pooling)
            found[name, pooling, norm] = (bounds, time.perf_counter() - started)
    lower = {norm: max(each.lower for each, _ in found.values() if each.norm == norm) for norm in NORMS}
    lines = {}
    for case, (bounds, seconds) in found.items():
        values = {key: getattr(bounds, key) for key in _KEPT} | {"lower": lower[case[2]], "seconds": seconds}
        winner = bounds.certified_winner
        remark = f"certified: {COLUMNS.get(winner, 'K_6' if winner == 'k6' else winner)}"
        lines[case] = Line(f"{_told(case)}, ours", {key: values[key] for key in COLUMNS}, remark)
    return lines


def _measured(
    bench: Bench, name: str, plan: Architecture, rows: DataSet, decay: float, steps: int
) -> tuple[Mapping[str, Any], dict[Case, Line]]:
    """One model, trained and bounded; both are kept."""
    seed = bench.settings.seed
    model = plan.build(rows.input_shape, rows.outputs, seed)
    state, facts = bench.kept(
        f"model-{name}",
        f"training model {name}",
        lambda: trained(model, rows, decay=decay, steps=steps, seed=seed, voice=bench.voice),
    )
    model.load_state_dict(state)

    def bounded() -> tuple[dict[str, Tensor], dict[str, Any]]:
        lines = our_lines(model, name, rows.x_test[:POINTS], bench)
        body = [
            {"case": list(case), "values": dict(line.values), "remark": line.remark} for case, line in lines.items()
        ]
        return {"points": rows.x_test[:POINTS]}, {"lines": body}

    _, kept = bench.kept(f"bounds-{name}", f"bounds of model {name}", bounded)
    lines: dict[Case, Line] = {}
    for each in kept["lines"]:
        case: Case = (each["case"][0], each["case"][1], each["case"][2])
        lines[case] = Line(f"{_told(case)}, ours", {key: each["values"][key] for key in COLUMNS}, each["remark"])
    told = {"layers": plan.told(rows.outputs), "parameters": parameters(model)}
    return {**told, **facts}, lines


def _told(case: Case) -> str:
    name, pooling, norm = case
    return f"{name}, {pooling}, {NORMS[norm]}"


def _notes(
    networks: Mapping[str, Mapping[str, Any]], data: str, rows: DataSet, decay: float, steps: int
) -> Sequence[str]:
    """What the networks are, and how the bounds are to be read."""
    layers = "; ".join(
        f"{name}: {facts['layers']} ({facts['parameters']:,} weights)" for name, facts in networks.items()
    )
    return (
        f"The source gives neither architectures nor details of training, and its data are MNIST. Ours, on {data}: "
        f"{layers}. Every convolution keeps the size of its pictures and has a ReLU behind it, as has the first dense "
        "layer; pools take 2 x 2.",
        f"Trained on {len(rows.x_train):,} rows by {steps:,} steps of Adam, batches of {BATCH}, rate {RATE:g} falling "
        f"along a cosine, mean cross-entropy + (decay/2) |w|^2 over all weights, decay {decay:g}. The source says "
        '"training with regularization (0.01)"; whether that is a decay of 0.01 or, as in lambda |w|^2, of 0.02 is not '
        "known. Bounds are of the logits, per unit of the scaled pixels (white is 1).",
        "Explicit: max(a, b) = a + relu(b - a), pair by pair, as ReLU layers of a chain (entries are not negative, so "
        "that a = relu(a)). Implicit: a pooling selects and has norm 1; K_* to K_4 are products over the stages "
        "between poolings, K_5 hands its row bounds on.",
        "Lower: the largest norm of the true Jacobian found at an input, the same for both forms. Certified: the "
        "smallest bound that holds with all rounding; the remark names it. Networks small enough to be written out as "
        "matrices, when explicit, have bounds beyond K_5 (K_6, the ellipsoid). Seconds: all bounds of a line, the "
        "search for the lower one included.",
    )
