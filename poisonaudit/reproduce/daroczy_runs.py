"""Training as in Daroczy's appendix D, epoch by epoch, and what is measured of the network on the way."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from poisonaudit.data import DataSet, load_data
from poisonaudit.models import build_model
from poisonaudit.reproduce.bench import Bench, Made, Voice
from poisonaudit.tangent import sensitivity_factors
from poisonaudit.tangent.factors import EQUATIONS

DATA = "digits"
HIDDEN = (100, 100, 100, 100)
BATCH = 64
RATE = 0.05
DECAY = 5e-4
OPTIMISERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}


@dataclass(frozen=True)
class Plan:
    """What to train on, and how much of it.

    Attributes:
        data: name of the data set.
        rows: training and test rows, flat, float32.
        decay: weight decay of the optimiser.
        epochs: passes over the training rows.
        every: epochs from one measurement to the next.
        measured: sensitivities are taken on the first so many training and test rows.
        runs: seeds per optimiser.
        device: where to compute.
        seed: the first seed.
    """

    data: str
    rows: DataSet
    decay: float
    epochs: int
    every: int
    measured: int
    runs: int
    device: str
    seed: int

    @property
    def widths(self) -> tuple[int, ...]:
        """From the inputs to the classes."""
        return (self.rows.x_train[0].numel(), *HIDDEN, self.rows.outputs)

    @property
    def seeds(self) -> range:
        """Of the runs."""
        return range(self.seed, self.seed + self.runs)

    @property
    def settings(self) -> dict[str, Any]:
        """As plain data, for the result."""
        return {
            "data": self.data,
            "rows": len(self.rows.x_train),
            "test_rows": len(self.rows.x_test),
            "network": "-".join(map(str, self.widths)),
            "epochs": self.epochs,
            "measured_every": self.every,
            "rows_of_sensitivities": [min(self.measured, len(x)) for x in (self.rows.x_train, self.rows.x_test)],
            "batch": BATCH,
            "rate": RATE,
            "decay": self.decay,
            "initial_weights": "uniform, +- sqrt(1 / fan-in)",
            "dtype": "float32; losses, means and bounds float64",
            "device": self.device,
        }


@dataclass(frozen=True)
class States:
    """One training run, measured at some epochs.

    Attributes:
        optimiser: "SGD" or "Adam".
        seed: of initial weights and batches.
        epochs: (t,) measured after so many.
        measured: (t,) each: train_loss, train_accuracy, test_loss, test_accuracy on all rows.
        factors: name of an equation -> (t,) ratio of sensitivities, NaN where it is 0 / 0.
    """

    optimiser: str
    seed: int
    epochs: Tensor
    measured: Mapping[str, Tensor]
    factors: Mapping[str, Tensor]

    def estimated(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, accuracy by way of the error rate, and accuracy read literally, (t,) each, by an equation."""
        factor = self.factors[name]
        accuracy = self.measured["train_accuracy"]
        return factor * self.measured["train_loss"], 1.0 - factor * (1.0 - accuracy), factor * accuracy


def make_plan(bench: Bench) -> Plan:
    """Load the data and settle what the settings leave open: CIFAR-10 with a root, digits without.

    Args:
        bench: says on what.

    Returns:
        The plan.
    """
    asked = bench.settings
    real = asked.root is not None
    data = f"cifar10:{asked.root}" if real else DATA
    bench.voice.stage(f"loading {data}")
    plan = Plan(
        data=data,
        rows=load_data(data, limit=asked.limit),
        decay=DECAY if asked.decay is None else asked.decay,
        epochs=6 if asked.quick else 50 if real else 60,
        every=2 if asked.quick else 1 if real else 3,
        measured=64 if asked.quick else 1000 if real else 450,
        runs=2 if asked.quick else 3 if real else 4,
        device=asked.device,
        seed=asked.seed,
    )
    bench.voice.note(
        f"{'-'.join(map(str, plan.widths))} on {data}: n = {len(plan.rows.x_train):,} rows, batches of {BATCH}, rate "
        f"{RATE:g}, decay {plan.decay:g}, {plan.epochs} epochs"
    )
    return plan


def initial(plan: Plan, seed: int) -> nn.Module:
    """The network with weights and biases uniform in `+- sqrt(1 / N_(i-1))`, in eval mode."""
    name = "mlp:" + "-".join(map(str, plan.widths))
    model = build_model(name, input_shape=(plan.widths[0],), outputs=plan.widths[-1]).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                reach = math.sqrt(1.0 / layer.in_features)
                for value in (layer.weight, layer.bias):
                    value.uniform_(-reach, reach, generator=generator)
    return model.to(plan.device).eval()


def train(model: nn.Module, plan: Plan, optimiser: str, seed: int, voice: Voice) -> Iterator[int]:
    """Train in place on mean cross-entropy.

    Args:
        model: at its initial weights.
        plan: the rows and how long.
        optimiser: key of `OPTIMISERS`.
        seed: of the batches.
        voice: told how far it is.

    Yields:
        The number of epochs done, after each.
    """
    x, y = plan.rows.x_train.to(plan.device), plan.rows.y_train.to(plan.device)
    steps = OPTIMISERS[optimiser](model.parameters(), lr=RATE, weight_decay=plan.decay)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, plan.epochs + 1):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            rows = batch.to(plan.device)
            steps.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            steps.step()
        voice(f"{optimiser}, seed {seed}: epoch {epoch} of {plan.epochs}", epoch / plan.epochs)
        yield epoch


def states(bench: Bench, plan: Plan, optimiser: str, seed: int) -> States:
    """One run, measured every few epochs; kept as a stage.

    Args:
        bench: keeps the stage.
        plan: what to train on.
        optimiser: key of `OPTIMISERS`.
        seed: of initial weights and batches.

    Returns:
        The run.
    """
    kept, _ = bench.kept(
        f"states-{optimiser.lower()}-{seed}",
        f"training and measuring, {optimiser}, seed {seed}",
        lambda: _measured(plan, optimiser, seed, bench.voice),
    )
    own = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    return States(
        optimiser=optimiser,
        seed=seed,
        epochs=kept["epochs"],
        measured={name: kept[name] for name in own},
        factors={name: kept[name] for name in EQUATIONS if name in kept},
    )


def _measured(plan: Plan, optimiser: str, seed: int, voice: Voice) -> Made:
    rows = plan.rows
    x_train, x_test = (x[: plan.measured].to(plan.device) for x in (rows.x_train, rows.x_test))
    model = initial(plan, seed)
    earlier = copy.deepcopy(model)
    found: dict[str, list[float]] = {}
    for epoch in train(model, plan, optimiser, seed, voice):
        if epoch % plan.every == 0:
            values: dict[str, float] = {"epochs": epoch}
            for part, x, y in (("train", rows.x_train, rows.y_train), ("test", rows.x_test, rows.y_test)):
                values[f"{part}_loss"], values[f"{part}_accuracy"] = loss_and_accuracy(model, x, y, plan.device)
            values |= _factors(model, x_train, x_test, earlier)
            for name, value in values.items():
                found.setdefault(name, []).append(value)
        earlier = copy.deepcopy(model)  # of the epoch before, as eq. 5 has it
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}, {"seed": seed}


def _factors(model: nn.Module, x_train: Tensor, x_test: Tensor, earlier: nn.Module) -> dict[str, float]:
    """Every ratio, NaN where there is none, as in a training that went to infinity."""
    if not all(bool(torch.isfinite(value).all()) for net in (model, earlier) for value in net.parameters()):
        return dict.fromkeys(EQUATIONS, math.nan)
    found = sensitivity_factors(model, x_train, x_test, earlier)
    return {name: math.nan if factor.value is None else factor.value for name, factor in found.items()}


@torch.no_grad()
def loss_and_accuracy(model: nn.Module, x: Tensor, y: Tensor, device: str) -> tuple[float, float]:
    """Mean cross-entropy and share of right predictions, chunk by chunk."""
    losses, right = 0.0, 0.0
    for start in range(0, len(x), 4096):
        outputs = model(x[start : start + 4096].to(device)).double()
        labels = y[start : start + 4096].to(device)
        losses += float(nn.functional.cross_entropy(outputs, labels, reduction="sum"))
        right += float((outputs.argmax(1) == labels).sum())
    return losses / len(x), right / len(x)
