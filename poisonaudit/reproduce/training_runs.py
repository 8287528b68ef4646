"""Train one network with one penalty at one strength, and measure what can be proved of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from poisonaudit.data import DataSet
from poisonaudit.lipschitz import lipschitz_bounds, lipschitz_penalty
from poisonaudit.lipschitz.local import certified_radii
from poisonaudit.reproduce.bench import Made, Voice

BATCH = 128
LEARNING_RATE = 2e-3
# Bisection leaves multiples of 0.005, so that the radii of the table are among those tried; the last digits are there
# for accuracy at 0.1 to count a radius of 0.1.
LARGEST, STEPS = 0.32 * (1.0 + 1e-12), 6
RADII = (0.02, 0.05, 0.1)


def half_squared_norm(model: nn.Module) -> Tensor:
    """`|w|^2 / 2` over all parameters: plain weight decay as a penalty."""
    return 0.5 * torch.stack([values.square().sum() for values in model.parameters()]).sum()


def margin_penalty(model: nn.Module) -> Tensor:
    """The smooth maximum of K_5 over all differences of two logits."""
    return lipschitz_penalty(model, reduction="smooth", margins=True)


PENALTIES: Mapping[str, Callable[[nn.Module], Tensor]] = {
    "decay": half_squared_norm,
    "k5": lipschitz_penalty,
    "margins": margin_penalty,
}


def train(
    model: nn.Module,
    rows: DataSet,
    penalty: Callable[[nn.Module], Tensor] | None,
    strength: float,
    *,
    seed: int,
    epochs: int,
    voice: Voice,
) -> float:
    """Minimise cross-entropy + strength * penalty by Adam, in place.

    A strong penalty from the first step on would shrink a deep network to zero before it has learned anything. So
    the strength rises linearly over the first half of the steps; the learning rate falls linearly over the other half.

    Args:
        model: at its initial weights.
        rows: training rows.
        penalty: a scalar of the model; None for none.
        strength: its factor.
        seed: of the batches.
        epochs: passes over the rows.
        voice: told how far it is.

    Returns:
        Seconds, those of an optimiser's first step in a process (imports) apart.
    """
    x, y = rows.x_train, rows.y_train
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    optimiser.zero_grad()
    optimiser.step()  # without gradients: it changes nothing
    begun = time.perf_counter()
    steps, step = epochs * -(-len(x) // BATCH), 0
    for epoch in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            done = step / steps
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, 2.0 * (1.0 - done))
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            if penalty is not None:
                loss = loss + min(1.0, 2.0 * done) * strength * penalty(model)
            loss.backward()
            optimiser.step()
            step += 1
        voice(f"epoch {epoch + 1} of {epochs}", (epoch + 1) / epochs)
    return time.perf_counter() - begun


def measure(model: nn.Module, rows: DataSet, certified: int, seed: int) -> Made:
    """Accuracy, bounds in l_inf and certified radii of a trained network, as a stage to keep.

    Args:
        model: in eval mode.
        rows: training and test rows, inputs in [0, 1].
        certified: radii are certified on so many test rows, the first ones.
        seed: of the search for the lower bound.

    Returns:
        Radii and whether predictions are right, (certified,); and the numbers.
    """
    bounds = lipschitz_bounds(model, x=rows.x_test, seed=seed)
    begun = time.perf_counter()
    found = certified_radii(
        model, rows.x_test[:certified], rows.y_test[:certified], largest=LARGEST, steps=STEPS, box=(0.0, 1.0)
    )
    at = zip(RADII, found.accuracy(RADII), strict=True)
    facts: dict[str, Any] = {
        "train_accuracy": accuracy(model, rows.x_train, rows.y_train),
        "test_accuracy": accuracy(model, rows.x_test, rows.y_test),
        "k5": bounds.k5,
        "upper": bounds.certified,
        "winner": bounds.certified_winner,
        "lower": bounds.lower,
        **{f"certified_{radius:g}": share for radius, share in at},
        "median_radius": found.median,
        "certify_seconds": time.perf_counter() - begun,
    }
    return {"radii": found.radii, "correct": found.correct}, facts


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of rows whose largest output is that of the label."""
    return float((model(x).argmax(1) == y).double().mean())
