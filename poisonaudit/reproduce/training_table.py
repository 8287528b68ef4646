"""Training with the bound (an open question of Després and Pintore): what a penalty on K_5 buys, beside plain decay."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poisonaudit.data import DataSet, load_data
from poisonaudit.lipschitz import lipschitz_penalty
from poisonaudit.models import build_model
from poisonaudit.reproduce.bench import Bench, Made, Settings
from poisonaudit.reproduce.result import DESPRES, Line, Reproduction
from poisonaudit.reproduce.training_figures import bound_against_accuracy, certified_accuracy
from poisonaudit.reproduce.training_runs import BATCH, LEARNING_RATE, PENALTIES, RADII, measure, train

DATA = "digits"
MODELS = ("mlp:64-64-64-10", "mlp:64-64-64-64-64-10")
MODELS_IF_QUICK = ("mlp:64-16-10",)
STRENGTHS: Mapping[str, tuple[float, ...]] = {
    "decay": (1e-3, 3e-3, 1e-2, 3e-2),
    "k5": (3e-4, 1e-3, 3e-3, 1e-2),
    "margins": (3e-4, 1e-3, 3e-3),
}
STRENGTHS_IF_QUICK = {"decay": (1e-2,), "k5": (1e-2,), "margins": (3e-3,)}
TOLD = {"none": "no penalty", "decay": "decay", "k5": "K_5", "margins": "K_5 of margins"}
EPOCHS, EPOCHS_IF_QUICK = 100, 12
CERTIFIED, CERTIFIED_IF_QUICK = 200, 24
COLUMNS: Mapping[str, str] = {
    "train_accuracy": "accuracy, training",
    "test_accuracy": "accuracy, test",
    "k5": "K_5",
    "upper": "certified bound",
    "lower": "lower bound",
    "ratio": "bound / lower",
    **{f"certified_{radius:g}": f"certified at {radius:g}" for radius in RADII},
    "median_radius": "median radius",
    "seconds": "seconds",
}
# Accuracies this near count as equal.
EQUAL = 0.01
# Less than this share of the rows that a network without penalty gets right: the penalty has won.
_COLLAPSED = 0.5


@dataclass(frozen=True)
class Run:
    """One trained network.

    Attributes:
        model: its name.
        method: "none" or a key of PENALTIES.
        strength: factor of the penalty; 0 for none.
        numbers: by the keys of COLUMNS.
        radii: (n,) certified l_inf radii of test rows, 0 where the prediction is wrong.
        correct: (n,) whether it is right.
    """

    model: str
    method: str
    strength: float
    numbers: Mapping[str, float | None]
    radii: Tensor
    correct: Tensor

    @property
    def label(self) -> str:
        """Widths, method and strength."""
        told = TOLD[self.method] if self.method == "none" else f"{TOLD[self.method]} {self.strength:g}"
        return f"{shortened(self.model)}, {told}"

    def number(self, key: str) -> float:
        """A number that every run has."""
        value = self.numbers[key]
        return float("nan") if value is None else value


def lipschitz_training(bench: Bench) -> Reproduction:
    """Digits nets trained with K_5 as a penalty and with decay: accuracy, bounds and certified accuracy by strength."""
    begun = time.perf_counter()
    settings = bench.settings
    models = (settings.model,) if settings.model else MODELS_IF_QUICK if settings.quick else MODELS
    epochs = EPOCHS_IF_QUICK if settings.quick else EPOCHS
    certified = CERTIFIED_IF_QUICK if settings.quick else CERTIFIED
    rows = load_data(DATA).to(torch.float64)
    for model in models:
        # What the penalty is not proved for is refused before the first training.
        lipschitz_penalty(build_model(model, input_shape=tuple(rows.input_shape), outputs=rows.outputs))
    planned = list(_planned(settings))
    bench.voice.note(
        f"{len(models) * len(planned)} trainings on {DATA}, {len(rows.x_train):,} rows, {epochs} epochs, seed "
        f"{settings.seed}; radii of {certified} test rows"
    )
    runs = []
    for place, model in enumerate(models, 1):
        for method, strength in planned:
            name = f"{place}-{method}-{strength:g}"
            runs.append(_run(bench, rows, (model, method, strength), name, epochs, certified))
    by_model = [[run for run in runs if run.model == model] for model in models]
    return Reproduction(
        name="lipschitz-training",
        title="Training with the bound: what a penalty on K_5 buys",
        rows=tuple(Line(run.label, run.numbers, _remark(run, found[0])) for found in by_model for run in found),
        notes=(*_notes(rows, certified, settings.seed), *(compared(found) for found in by_model)),
        flags=training_flags(runs),
        pictures=(
            certified_accuracy({shortened(found[0].model): _curves(found) for found in by_model}, certified),
            bound_against_accuracy({shortened(found[0].model): _points(found) for found in by_model}),
        ),
        settings={
            "norm": "linf",
            "data": DATA,
            "models": list(models),
            "epochs": epochs,
            "batch": BATCH,
            "optimiser": f"Adam, {LEARNING_RATE:g}",
            "certified_rows": certified,
            "dtype": "float64",
        },
        details={"within_one_point": {shortened(found[0].model): _winners(found) for found in by_model}},
        inputs=dict(rows.sources),
        seed=settings.seed,
        seconds=time.perf_counter() - begun,
        source=f"{DESPRES}, open questions",
        columns=COLUMNS,
        lead="The source asks whether its bound can be trained with; it prints no numbers.",
    )


def shortened(model: str) -> str:
    """A model's name without the word that all have."""
    return model.removeprefix("mlp:")


def winners(runs: Sequence[Run]) -> dict[str, Run]:
    """Per method the run with the smallest certified bound among those as accurate as without penalty.

    Args:
        runs: of one network, the first without penalty.

    Returns:
        Method -> run, for methods that have one whose test accuracy is at most a point below.
    """
    least = runs[0].number("test_accuracy") - EQUAL - 1e-9
    found: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.number("upper")):
        if run.number("test_accuracy") >= least:
            found.setdefault(run.method, run)
    return {method: found[method] for method in TOLD if method in found}


def compared(runs: Sequence[Run]) -> str:
    """What the methods reach at equal accuracy, in words.

    Args:
        runs: of one network, the first without penalty.

    Returns:
        A sentence or two; the same words whoever wins.
    """
    found = winners(runs)
    last = f"certified_{RADII[-1]:g}"
    parts = [
        f"{run.label.split(', ')[1]}: bound {run.number('upper'):.4g}, {run.number(last):.1%} certified at "
        f"{RADII[-1]:g}, accuracy {run.number('test_accuracy'):.1%}"
        for run in found.values()
    ]
    text = (
        f"{shortened(runs[0].model)}, the smallest certified bound of each method at most a point of test accuracy "
        f"below training without penalty: {'; '.join(parts)}."
    )
    absent = [TOLD[run.method] for run in runs if run.method not in found]
    if absent:
        text += f" Nothing that accurate came of {', '.join(dict.fromkeys(absent))}."
    own = [found[method] for method in ("k5", "margins") if method in found]
    if own and "decay" in found:
        best = min(own, key=lambda run: run.number("upper"))
        ratio = best.number("upper") / found["decay"].number("upper")
        gain = 100.0 * (best.number(last) - found["decay"].number(last))
        text += (
            f" The better penalty on K_5 has {ratio:.2f} of the bound of decay there, and {gain:+.1f} points of "
            f"certified accuracy at {RADII[-1]:g}."
        )
    return text


def training_flags(runs: Sequence[Run]) -> tuple[str, ...]:
    """What contradicts the theory or the purpose; empty if all is well.

    Args:
        runs: all.

    Returns:
        Sentences.
    """
    found = []
    plain = {run.model: run for run in runs if run.method == "none"}
    for run in runs:
        if run.number("lower") > run.number("upper"):
            found.append(f"{run.label}: the lower bound is above the upper one.")
        if run.number("upper") > run.number("k5") * (1.0 + 1e-6):
            found.append(f"{run.label}: the certified bound is above K_5.")
        if run.method == "k5" and not run.number("k5") < plain[run.model].number("k5"):
            found.append(f"{run.label}: the penalty did not lower K_5.")
    return tuple(found)


def _planned(settings: Settings) -> Iterator[tuple[str, float]]:
    yield "none", 0.0
    chosen = STRENGTHS_IF_QUICK if settings.quick else STRENGTHS
    for method, strengths in chosen.items():
        for strength in strengths if settings.strengths is None else sorted(settings.strengths):
            yield method, float(strength)


def _run(bench: Bench, rows: DataSet, which: tuple[str, str, float], name: str, epochs: int, certified: int) -> Run:
    """Train and measure, or take what an interrupted run has left."""
    model, method, strength = which
    seed = bench.settings.seed
    module = build_model(model, input_shape=tuple(rows.input_shape), outputs=rows.outputs, seed=seed)
    told = f"{shortened(model)}, {TOLD[method]}" + (f" {strength:g}" if strength else "")

    def make() -> Made:
        seconds = train(module, rows, PENALTIES.get(method), strength, seed=seed, epochs=epochs, voice=bench.voice)
        return dict(module.state_dict()), {"seconds": seconds}

    # The weights alone, under their own names: `audit --model M --weights FILE` takes the file.
    state, training = bench.kept(f"weights-{name}", f"training {told}", make)
    module.load_state_dict(dict(state))
    module.eval()
    tensors, facts = bench.kept(f"radii-{name}", f"certifying {told}", lambda: measure(module, rows, certified, seed))
    lower, upper = float(facts["lower"]), float(facts["upper"])
    numbers: dict[str, Any] = {**facts, **training, "ratio": upper / lower if lower else None}
    return Run(model, method, strength, {key: numbers[key] for key in COLUMNS}, tensors["radii"], tensors["correct"])


def _remark(run: Run, plain: Run) -> str:
    if run.number("test_accuracy") < _COLLAPSED * plain.number("test_accuracy"):
        return "the penalty outweighs the data"
    return ""


def _curves(runs: Sequence[Run]) -> list[tuple[str, str, Tensor, bool]]:
    """Method, name, sorted radii of right predictions as shares of all, and whether it is the method's best."""
    best = {run.label for run in winners(runs).values()}
    return [
        (run.method, TOLD[run.method], torch.where(run.correct, run.radii, -1.0), run.label in best) for run in runs
    ]


def _points(runs: Sequence[Run]) -> dict[str, list[tuple[float, float]]]:
    """Name of the method -> test accuracy and certified bound of each run, strength ascending."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        found.setdefault(run.method, []).append((run.number("test_accuracy"), run.number("upper")))
    return found


def _winners(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    return {
        method: {"strength": run.strength, **{key: run.number(key) for key in ("test_accuracy", "upper")}}
        for method, run in winners(runs).items()
    }


def _notes(rows: DataSet, certified: int, seed: int) -> tuple[str, ...]:
    count = len(rows.x_test)
    return (
        "Cross-entropy plus strength times the penalty, ReLU, the same initial weights and batches in all runs of a "
        "network. decay: |w|^2 / 2 over all weights and biases. K_5: its largest row. K_5 of margins: the smooth "
        "maximum over the differences of two logits. All strengths rise over the first half of training.",
        "certified bound: of logits in l_inf over all inputs, with all rounding. lower bound: attained at some input. "
        "seconds: of training.",
        f"certified at r: share of the first {certified} test rows that are right and provably stay so when every "
        "pixel moves by up to r within [0, 1]. Radii are multiples of 0.005, and 0 for wrong rows.",
        f"One seed ({seed}) per strength. One test row is {1 / count:.2%} of accuracy and {1 / certified:.2%} of "
        "certified accuracy; differences of a point of accuracy are chance. The strengths compared below are chosen "
        "with the test rows they are measured on, for all methods alike.",
    )
