"""How sensitive are feedforward networks to weight changes: the answer by depth, width and layer."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poisonaudit.data import DataSet, load_data
from poisonaudit.models import build_model
from poisonaudit.reproduce.bench import Bench, Made
from poisonaudit.reproduce.noise_figures import Point, Sweep, by_layer, by_size, by_width
from poisonaudit.reproduce.result import Line, Reproduction
from poisonaudit.reproduce.training_runs import accuracy, train
from poisonaudit.weight_noise import RHOS, TOGETHER, weight_noise, weight_noise_curve, worst_case_search

SOURCE = 'the question "How sensitive are feedforward Neural Network to weight changes?" (2019) and its answers'
DATA = "digits"
INPUTS, OUTPUTS = 64, 10
RHO = 0.1
# (L, m): L weight matrices, hidden layers of m units.
SHAPES = ((2, 64), (4, 64), (8, 64), (4, 16), (4, 256))
SHAPES_IF_QUICK = ((2, 16), (3, 16), (3, 32))
DRAWS, DRAWS_IF_QUICK = 64, 16
NETS, NETS_IF_QUICK = 4, 2
EPOCHS, EPOCHS_IF_QUICK = 20, 4
ROWS, SEARCHED = 100, 3
KINDS: Mapping[str, str] = {"he": "He", "trained": "trained"}
COLUMNS: Mapping[str, str] = {
    "formula": "rms, formula",
    "sampled": "rms, sampled",
    "error": "standard error",
    "flips": "flips",
    "found": "worst found / rms",
    "bound": "worst bound / rms",
    "rms_bound": "rms bound / rms",
}
# Standard errors by which sampling may miss the formula where that is exact.
_FAR = 4.5


# Of `measure`, in the order of COLUMNS.
_RANDOM = ("formula", "sampled", "error", "flips")
# (kind, shape) -> layers in order, then all at once.
Points = dict[tuple[str, str], list[Point]]


@dataclass(frozen=True)
class Shape:
    """One of the family: L weight matrices, m units in each hidden layer."""

    depth: int
    width: int

    @property
    def spec(self) -> str:
        """As a model's name."""
        return f"mlp:{'-'.join(map(str, [INPUTS, *[self.width] * (self.depth - 1), OUTPUTS]))}"

    @property
    def label(self) -> str:
        """For rows and legends."""
        return f"L = {self.depth}, m = {self.width}"


def weight_noise_family(bench: Bench) -> Reproduction:
    """ReLU networks of L layers and m units: noise of 10 % in one weight matrix or in all, random and worst case."""
    begun = time.perf_counter()
    settings = bench.settings
    quick = settings.quick
    shapes = [Shape(*each) for each in (SHAPES_IF_QUICK if quick else SHAPES)]
    draws = settings.draws or (DRAWS_IF_QUICK if quick else DRAWS)
    rows = load_data(DATA).to(torch.float64)
    x = rows.x_test[:ROWS]
    bench.voice.note(
        f"{len(shapes)} shapes, He-initialised and trained on {DATA}, ReLU, rho = {RHO:g}, {draws} draws a matrix, "
        f"{len(x)} test rows, seed {settings.seed}"
    )
    points: Points = {}
    accuracies: dict[str, float] = {}
    for shape in shapes:
        for kind in KINDS:
            told = f"{KINDS[kind]}, {shape.label}"
            models = _models(bench, rows, shape, kind)
            if kind == "trained":
                accuracies[shape.label] = accuracy(models[0], rows.x_test, rows.y_test)
            _, facts = bench.kept(
                f"noise-{kind}-{shape.depth}-{shape.width}",
                f"noise in {told}",
                lambda models=models: _measured(models, x, draws, settings.seed),  # type: ignore[misc]
            )
            points[kind, shape.label] = [dict(point) for point in facts["points"]]
    swept = next(shape for shape in shapes[::-1] if shape.width == max(each.width for each in shapes[:3]))
    sweeps = _sweeps(bench, rows, swept, x, draws)
    lines = [
        line for kind in KINDS for shape in shapes for line in _lines(KINDS[kind], shape, points[kind, shape.label])
    ]
    return Reproduction(
        name="weight-noise",
        title="How sensitive are feedforward networks to weight changes?",
        rows=tuple(lines),
        notes=_notes(points, shapes, accuracies, draws),
        flags=noise_flags(points),
        pictures=(
            by_layer({KINDS[kind]: _panel(points, kind, shapes) for kind in KINDS}, RHO),
            by_width({KINDS[kind]: _widths(points, kind, shapes) for kind in KINDS}, RHO),
            by_size(sweeps, swept.label),
        ),
        settings={
            "rho": RHO, "draws": draws, "rows": len(x), "searched_rows": SEARCHED, "norm": "Frobenius",
            "inputs": INPUTS, "outputs": OUTPUTS, "nets": NETS_IF_QUICK if quick else NETS,
            "epochs": EPOCHS_IF_QUICK if quick else EPOCHS, "data": DATA, "dtype": "float64",
            "shapes": [shape.label for shape in shapes],
        },
        details={
            "test_accuracy": accuracies,
            "sweep": {f"{sweep.kind}, {sweep.layer}": sweep.as_dict() for sweep in sweeps},
        },
        inputs=dict(rows.sources),
        seed=settings.seed,
        seconds=time.perf_counter() - begun,
        source=SOURCE,
        columns=COLUMNS,
        lead=(
            f"|dv| / |v|, root mean square over test rows and draws, when W_i gets noise of {100 * RHO:g} % of its "
            "Frobenius norm; random noise beside chosen noise."
        ),
    )  # fmt: skip


def he_network(shape: Shape, seed: int) -> nn.Module:
    """Weights N(0, 2 / fan-in) (the last N(0, 1 / fan-in)), no biases.

    Args:
        shape: L and m.
        seed: of the weights.

    Returns:
        The network in eval mode, float64.
    """
    model = build_model(f"{shape.spec}?bias=false", input_shape=(INPUTS,), outputs=OUTPUTS, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    matrices = list(model.parameters())
    with torch.no_grad():
        for place, weight in enumerate(matrices, 1):
            gain = 2.0 if place < len(matrices) else 1.0
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.copy_(drawn * math.sqrt(gain / weight.shape[1]))
    return model


def measure(model: nn.Module, x: Tensor, draws: int, seed: int, *, searched: bool) -> list[dict[str, float | None]]:
    """Every layer alone and all at once: relative root mean square, flips, and the worst case over the random one.

    Args:
        model: of the family.
        x: inputs.
        draws: of noise.
        seed: of the noise.
        searched: whether to search for the worst case as well, on the first rows.

    Returns:
        By the keys of COLUMNS, layers in order, then all at once.
    """
    frame = weight_noise(model, x, RHO, draws, seed, extended=True)
    joint = frame.attrs["joint"]
    keys = ("relative_formula", "relative_rms", "relative_error", "flip_rate")
    alone: list[dict[str, float | None]] = [
        {key: float(row[name]) for key, name in zip(_RANDOM, keys, strict=True)} for _, row in frame.iterrows()
    ]
    keys = ("rms_formula", "rms", "standard_error", "flip_rate")
    found: list[dict[str, float | None]] = [
        *alone, {key: float(joint[name]) for key, name in zip(_RANDOM, keys, strict=True)}
    ]  # fmt: skip
    values = dict(model.named_parameters())
    for point, name, worst, rms in zip(
        found, frame["layer"], frame["worst_case"].tolist(), frame["rms_sampled"].tolist(), strict=False
    ):
        # E|eta z|^2 = |eta|_F^2 |z|^2 / columns, so that the worst case shrinks by the root of the columns.
        point["rms_bound"] = worst / rms / values[str(name)].shape[1] ** 0.5
    found[-1]["rms_bound"] = None
    chosen = worst_case_search(model, x[:SEARCHED], RHO, seed, starts=3, steps=25, draws=draws) if searched else None
    for place, point in enumerate(found):
        line = None if chosen is None else chosen.iloc[place]
        point["found"] = None if line is None else float(line["found_over_rms"])
        point["bound"] = None if line is None else float(line["bound"] / line["rms_sampled"])
    return found


def averaged(nets: Sequence[Sequence[Mapping[str, float | None]]]) -> list[dict[str, float | None]]:
    """Means over networks of what `measure` found; the standard error is that of the noise, the networks given.

    Args:
        nets: per network, layers in order, then all at once.

    Returns:
        The same for all; worst cases are of the networks that were searched.
    """
    found = []
    for parts in zip(*nets, strict=True):
        line: dict[str, float | None] = {}
        for key in COLUMNS:
            known = [part[key] for part in parts if part[key] is not None]
            numbers = [float(value) for value in known if value is not None]
            if key == "error":
                line[key] = math.sqrt(sum(value**2 for value in numbers)) / len(numbers)
            else:
                line[key] = sum(numbers) / len(numbers) if numbers else None
        found.append(line)
    return found


def noise_flags(points: Points) -> tuple[str, ...]:
    """What contradicts the theory; empty if all is well.

    Args:
        points: (kind, shape) -> layers in order, then all at once.

    Returns:
        Sentences.
    """
    found = []
    for (kind, shape), layers in points.items():
        told = f"{KINDS[kind]}, {shape}"
        last = layers[-2]
        if abs((last["sampled"] or 0.0) - (last["formula"] or 0.0)) > _FAR * (last["error"] or 0.0):
            found.append(f"{told}: the last layer is off its exact value by more than chance.")
        for place, point in enumerate(layers, 1):
            name = f"i = {place}" if place < len(layers) else TOGETHER
            if (point["found"] or 0.0) > (point["bound"] or math.inf) * (1.0 + 1e-9):
                found.append(f"{told}, {name}: the search exceeds the bound.")
            # Equal in a last layer, where both are exact: sampling may fall on either side.
            chance = _FAR * (point["error"] or 0.0) / (point["sampled"] or 1.0)
            if point["rms_bound"] is not None and point["rms_bound"] < 1.0 - chance:
                found.append(f"{told}, {name}: the sampled movement exceeds its bound.")
    return tuple(found)


def _models(bench: Bench, rows: DataSet, shape: Shape, kind: str) -> list[nn.Module]:
    """Random networks, or one that is trained here or was before an interrupt."""
    settings = bench.settings
    if kind == "he":
        count = NETS_IF_QUICK if settings.quick else NETS
        return [he_network(shape, settings.seed * 1000 + each) for each in range(count)]
    model = build_model(shape.spec, input_shape=(INPUTS,), outputs=OUTPUTS, seed=settings.seed, dtype=torch.float64)

    def make() -> Made:
        epochs = EPOCHS_IF_QUICK if settings.quick else EPOCHS
        seconds = train(model, rows, None, 0.0, seed=settings.seed, epochs=epochs, voice=bench.voice)
        return dict(model.state_dict()), {"seconds": seconds}

    name = f"weights-{shape.depth}-{shape.width}"
    state, _ = bench.kept(name, f"training {shape.label}", make)
    model.load_state_dict(dict(state))
    return [model.eval()]


def _measured(models: Sequence[nn.Module], x: Tensor, draws: int, seed: int) -> Made:
    """As a stage to keep: only the first network is searched."""
    nets = [measure(model, x, draws, seed, searched=place == 0) for place, model in enumerate(models)]
    return {"rows": torch.tensor(len(x))}, {"points": averaged(nets)}


def _sweeps(bench: Bench, rows: DataSet, shape: Shape, x: Tensor, draws: int) -> list[Sweep]:
    """One matrix in the middle and all at once, from 0.1 % to 200 %."""
    found = []
    for kind in KINDS:
        model = _models(bench, rows, shape, kind)[0]

        def make(model: nn.Module = model) -> Made:
            frame = weight_noise_curve(model, x, RHOS, draws, bench.settings.seed)
            middle = frame["layer"].unique()[1 + shape.depth // 2]
            curves = {TOGETHER: frame[frame["layer"] == TOGETHER], "one": frame[frame["layer"] == middle]}
            kept = ("relative_rms", "relative_low", "relative_high", "flip_rate")
            return {"rows": torch.tensor(len(x))}, {
                name: {key: part[key].tolist() for key in kept} for name, part in curves.items()
            }

        _, facts = bench.kept(f"sweep-{kind}", f"{KINDS[kind]}, {shape.label}: sizes of noise", make)
        found += [Sweep(KINDS[kind], name, RHOS, **facts[key]) for key, name in
                  ((TOGETHER, TOGETHER), ("one", f"matrix {1 + shape.depth // 2}"))]  # fmt: skip
    return found


def _lines(kind: str, shape: Shape, points: Sequence[Point]) -> list[Line]:
    names = [*(f"i = {place}" for place in range(1, len(points))), TOGETHER]
    return [
        Line(f"{kind}, {shape.label}, {name}", {key: point[key] for key in COLUMNS})
        for name, point in zip(names, points, strict=True)
    ]


def _notes(points: Points, shapes: Sequence[Shape], accuracies: Mapping[str, float], draws: int) -> tuple[str, ...]:
    he = [point["sampled"] or 0.0 for shape in shapes for point in points["he", shape.label][:-1]]
    trained = [point["sampled"] or 0.0 for shape in shapes for point in points["trained", shape.label][:-1]]
    every = [point for found in points.values() for point in found]
    off = [abs((point["sampled"] or 0.0) / (point["formula"] or 1.0) - 1.0) for point in every]
    random = [point["found"] for point in every if point["found"] is not None]
    loose = [point["bound"] / point["found"] for point in every if point["bound"] and point["found"]]
    told = ", ".join(f"{label} {share:.1%}" for label, share in accuracies.items())
    return (
        "The expected value: E|dv|^2 = rho^2 |B_i|_F^2 |z_(i-1)|^2 |W_i|_F^2 / numel(W_i) to first order, with "
        "B_i = dv/dh_i and z_(i-1) the clean input of layer i; exact for the last layer at any rho.",
        "A bound of it at any rho, without biases, if every |W_j|_F <= M: E|dv|^2 <= (rho M^L |x|)^2 / n_(i-1), with "
        "n_(i-1) the columns of W_i. Without the division it bounds |dv| for every noise, and rank-one matrices attain "
        "it. So over the whole family random noise is weaker than chosen noise at least by the root of the width.",
        f"He-initialised networks without biases: the ratio of E|dv|^2 and E|v|^2 over the weights is rho^2 to first "
        f"order, whatever L, m and i, and L rho^2 for all at once. Found for one matrix: {min(he):.1%} to "
        f"{max(he):.1%} at rho = {RHO:.0%}.",
        f"Trained networks (test accuracy: {told}): {min(trained):.1%} to {max(trained):.1%} for one matrix.",
        f"Sampled over formula: off by {max(off):.0%} at most. Chosen noise found by gradient ascent moves the outputs "
        f"{min(random):.1f} to {max(random):.0f} times as far as random noise of the same size; the proved bound is "
        f"{min(loose):.2f} to {max(loose):.3g} times what was found. Random and worst-case noise are different "
        "questions.",
        f"{draws} draws; standard errors are of the noise alone, the networks and rows given. He: means over networks, "
        f"the first of which was searched. Worst cases: of the first {SEARCHED} rows, over the random movement of the "
        "same rows. rms bound: the worst-case bound over the root of the columns, over the sampled movement.",
    )


def _panel(points: Points, kind: str, shapes: Sequence[Shape]) -> dict[str, list[Point]]:
    return {shape.label: points[kind, shape.label] for shape in shapes}


def _widths(points: Points, kind: str, shapes: Sequence[Shape]) -> list[tuple[int, Point]]:
    """Width and the middle matrix, at the depth that most widths have."""
    depths = [shape.depth for shape in shapes]
    depth = max(depths, key=depths.count)
    chosen = sorted((shape for shape in shapes if shape.depth == depth), key=lambda shape: shape.width)
    return [(shape.width, points[kind, shape.label][depth // 2]) for shape in chosen]
