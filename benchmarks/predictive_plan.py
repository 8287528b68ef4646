"""The models of the study: drawn by a seed before anything is measured, none dropped."""

from __future__ import annotations

import functools
import random
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from poisonaudit import Problem, fit
from poisonaudit.attack import Budget
from poisonaudit.data import load_data
from poisonaudit.data.dataset import DataSet
from poisonaudit.models import build_model
from poisonaudit.verify import loose_trainer

SEED = 20261121
Training = Literal["tight", "loose 40", "loose 10"]

# Training rows; None for all of the split.
ROWS: dict[str, int | None] = {"digits": 400, "breast_cancer": None, "wine": None}
# 5 % of the rows; 16/255 of pixels, a tenth of a column's range in tables.
SHARE, PIXELS, COLUMNS = 0.05, 16 / 255, 0.1
# Relative gradient that training aims at: that of the model under audit, and that of all retraining and its controls,
# which also ends after so many gradient-sized evaluations, wherever it is.
TIGHT, RETRAINED, MOST_GRADIENTS = 1e-9, 1e-5, 1_500

# Hidden widths, small and large, and those of two hidden layers.
_WIDTHS = {"digits": ("8", "12", "8-8"), "breast_cancer": ("8", "16", "8-8"), "wine": ("8", "16", "8-8")}
_ENDS = {"digits": (64, 10), "breast_cancer": (30, 2), "wine": (13, 3)}
# (activation, which of the widths): how many models of a data set. A network of ReLUs has its minima on kinks, where
# the solution measures are not valid: so there are more smooth ones.
_NETWORKS = {
    ("", -1): 4,
    ("tanh", 0): 3,
    ("tanh", 1): 2,
    ("tanh", 2): 4,
    ("relu", 0): 2,
    ("relu", 1): 2,
    ("relu", 2): 3,
}
# From weak to strong. Two hidden layers collapse to a constant above 1e-2, so theirs end there.
_DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
_DECAYS_TWO_HIDDEN = (1e-4, 1e-3, 3e-3, 1e-2)
_NOISE = {0.0: 8, 0.1: 6, 0.2: 6}
_TRAINING: dict[Training, int] = {"tight": 14, "loose 40": 3, "loose 10": 3}


@dataclass(frozen=True)
class Model:
    """One model of the plan.

    Attributes:
        index: in the plan.
        data: data set.
        network: model name.
        decay: of the objective.
        noise: share of training rows that got another label.
        training: "tight" to a minimum, or so many epochs of Adam.
        seed: of weights, batches and label noise.
    """

    index: int
    data: str
    network: str
    decay: float
    noise: float
    training: Training
    seed: int

    @property
    def key(self) -> str:
        """Its name in the journal and in tables."""
        return (
            f"{self.index:02d} {self.data} {self.network}, decay {self.decay:g}, noise {self.noise:g}, {self.training}"
        )

    @property
    def convex(self) -> bool:
        """Whether its training has one minimum."""
        return self.network == "linear"

    @property
    def kinked(self) -> bool:
        """Whether its minima may lie on kinks, where the gradient does not vanish."""
        return "relu" in self.network

    def facts(self) -> dict[str, Any]:
        """For the result file."""
        return {"key": self.key, **asdict(self)}


def models() -> list[Model]:
    """All 60, twenty a data set: networks, decays, label noise and training drawn independently of each other."""
    found: list[Model] = []
    for data in ROWS:
        # Python's generator, whose shuffles are the same in every version.
        generator = random.Random(f"{SEED} {data}")

        def shuffled(counts: dict[Any, int], generator: random.Random = generator) -> list[Any]:
            every = [value for value, count in counts.items() for _ in range(count)]
            generator.shuffle(every)
            return every

        networks, levels = shuffled(_NETWORKS), shuffled(dict.fromkeys(range(4), 5))
        for kind, level, noise, training in zip(networks, levels, shuffled(_NOISE), shuffled(_TRAINING), strict=True):
            decays = _DECAYS_TWO_HIDDEN if kind[1] == 2 else _DECAYS
            seed = generator.randrange(1, 2**30)
            found.append(Model(len(found), data, _network(data, *kind), decays[level], noise, training, seed))
    return found


def _network(data: str, activation: str, width: int) -> str:
    if not activation:
        return "linear"
    inputs, outputs = _ENDS[data]
    return f"mlp:{inputs}-{_WIDTHS[data][width]}-{outputs}?activation={activation}"


@functools.cache
def data_of(name: str) -> DataSet:
    """The rows in float64."""
    return load_data(name, limit=ROWS[name]).to(torch.float64)


def test_rows(name: str) -> tuple[Tensor, Tensor]:
    """Held-out rows and their labels."""
    data = data_of(name)
    return data.x_test, data.y_test


def clean_problem(model: Model) -> Problem:
    """The problem that is trained, its weights still those of construction."""
    data = data_of(model.data)
    with torch.random.fork_rng():
        torch.manual_seed(model.seed)
        module = build_model(model.network, input_shape=data.input_shape, outputs=data.outputs).double()
    return Problem(module, "cross_entropy", data.x_train, _noisy(data, model), model.decay)


def _noisy(data: DataSet, model: Model) -> Tensor:
    """Labels of which a share is another class, drawn uniformly."""
    labels, generator = data.y_train.clone(), torch.Generator().manual_seed(model.seed)
    count = round(model.noise * len(labels))
    rows = torch.randperm(len(labels), generator=generator)[:count]
    steps = torch.randint(1, data.outputs, (count,), generator=generator)
    labels[rows] = (labels[rows] + steps) % data.outputs
    return labels


def trained(model: Model) -> Problem:
    """The model under audit: its problem at the weights of its own training."""
    untrained = clean_problem(model)
    if model.training == "tight":
        return fit(untrained, TIGHT, model.seed, start="fresh").problem
    return untrained.at(_loosely(model, untrained, model.seed))


def retrained(model: Model, problem: Problem, seed: int | None) -> tuple[Tensor, float | None]:
    """The model's own way of training on the rows of a problem.

    Args:
        model: says how.
        problem: rows, labels, decay and, for a tight minimum without a seed, the first weights.
        seed: of fresh weights and batches; None for the model's own start, which is warm where training is tight and
            else the seed that it was trained from.

    Returns:
        Flat weights (p,), and the relative gradient where training is tight.
    """
    if model.training != "tight":
        return _loosely(model, problem, model.seed if seed is None else seed), None
    begin: Any = {"start": "current"} if seed is None else {"start": "fresh", "seed": seed}
    reached = fit(problem.without_cache(), RETRAINED, dense_test=False, max_gradients=MOST_GRADIENTS, **begin)
    return reached.problem.weights, reached.relative_gradient


def _loosely(model: Model, problem: Problem, seed: int) -> Tensor:
    return loose_trainer(epochs=int(model.training.split()[1]))(problem, seed)


def budget_of(name: str) -> Budget:
    """What every attack on models of this data set may do."""
    data = data_of(name)
    if data.image_shape is not None:
        return Budget(radius=PIXELS, share=SHARE, box=data.box)
    return Budget(radius=COLUMNS, share=SHARE, box=data.box, scale=data.box[1] - data.box[0])


def flip_targets(name: str, count: int = 5) -> list[tuple[int, int]]:
    """Test rows and a wrong class for each, drawn once for all models of a data set: (position, wanted class)."""
    data, generator = data_of(name), torch.Generator().manual_seed(SEED)
    rows = torch.randperm(len(data.x_test), generator=generator)[:count].tolist()
    steps = torch.randint(1, data.outputs, (count,), generator=generator).tolist()
    return [(row, (int(data.y_test[row]) + step) % data.outputs) for row, step in zip(rows, steps, strict=True)]
