"""Networks that the Lipschitz benchmarks share: dense ReLU nets, trained on digits without decay, by seed."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Name -> hidden layers, width.
SHAPES = {"2x32": (2, 32), "4x64": (4, 64), "8x32": (8, 32)}
# The first so many of the shuffled 1,797 digits train, the rest test.
TRAIN_ROWS = 1_400
# Training goes on until every training digit is right at the end of an epoch.
EPOCHS, MOST_EPOCHS, BATCH = 100, 400, 64


@dataclass(frozen=True, eq=False)
class Trained:
    """A network with the digits it has not seen.

    Attributes:
        model: Linear and ReLU in turn, float64, in eval mode.
        test_x: (n, 64), pixels in [0, 1].
        test_y: (n,).
        train_accuracy: share of the training digits it gets right.
        test_accuracy: share of the test digits.
    """

    model: nn.Sequential
    test_x: Tensor
    test_y: Tensor
    train_accuracy: float
    test_accuracy: float

    @property
    def matrices(self) -> list[Tensor]:
        """The weights, first layer first."""
        return [layer.weight.detach() for layer in self.model if isinstance(layer, nn.Linear)]

    @property
    def facts(self) -> dict[str, float]:
        """For the result file."""
        return {"train_accuracy": self.train_accuracy, "test_accuracy": self.test_accuracy}


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test digits, split by a fixed seed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(bunch.data / 16.0)[order]
    y = torch.from_numpy(bunch.target).long()[order]
    return x[:TRAIN_ROWS], y[:TRAIN_ROWS], x[TRAIN_ROWS:], y[TRAIN_ROWS:]


@functools.cache
def trained(shape: str, seed: int = 0) -> Trained:
    """A net of SHAPES, trained by Adam with PyTorch's defaults; the same on every call.

    Args:
        shape: "2x32", hidden layers times width.
        seed: of the initial weights, which are PyTorch's, and of the batches.

    Returns:
        The network.
    """
    layers, width = SHAPES[shape]
    x, y, test_x, test_y = digits()
    sizes = [64, *[width] * layers, 10]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        modules: list[nn.Module] = []
        for columns, rows in itertools.pairwise(sizes):
            modules += [nn.Linear(columns, rows, dtype=torch.float64), nn.ReLU()]
    model = nn.Sequential(*modules[:-1])
    optimiser = torch.optim.Adam(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(MOST_EPOCHS):
        if epoch >= EPOCHS and bool((model(x).argmax(1) == y).all()):
            break
        for batch in torch.randperm(len(y), generator=generator).split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimiser.step()
    model.eval().requires_grad_(False)
    accuracy = [
        float((model(rows).argmax(1) == classes).double().mean()) for rows, classes in ((x, y), (test_x, test_y))
    ]
    return Trained(model, test_x, test_y, *accuracy)
