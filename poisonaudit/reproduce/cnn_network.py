"""The convolutional networks of `despres-cnn`, and how they are trained.

The source gives neither architectures nor the details of training: these are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from poisonaudit.data import DataSet
from poisonaudit.errors import InputRefused
from poisonaudit.reproduce.bench import Made, Voice

NAMES = ("A", "B", "C")
# Pictures from this side on are treated like MNIST's, smaller ones like the bundled digits.
MNIST_SIDE, SMALLEST = 28, 8
STEPS, STEPS_IF_QUICK = 3000, 800
BATCH, RATE = 64, 2e-3
# The source's 0.01. Half of it for small pictures: under 0.01 the deepest network goes down to 92 %.
DECAY, DECAY_OF_SMALL = 1e-2, 5e-3
_SPOKEN = 50
_ROWS_AT_ONCE = 2000


@dataclass(frozen=True)
class Architecture:
    """Blocks of convolution, ReLU and 2 x 2 max pooling, then a hidden layer of ReLU units and the outputs.

    Attributes:
        channels: of each block's convolution; it keeps the size of its pictures.
        kernel: side of the convolutions' windows, odd.
        units: of the hidden dense layer.
    """

    channels: tuple[int, ...]
    kernel: int
    units: int

    def build(self, input_shape: tuple[int, ...], outputs: int, seed: int) -> nn.Sequential:
        """The network with PyTorch's own initial weights; the global generator is left as it was.

        Args:
            input_shape: (channels, height, width).
            outputs: classes.
            seed: of the weights.

        Returns:
            The network in float32.
        """
        before, height, width = input_shape
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for channels in self.channels:
                layers += [nn.Conv2d(before, channels, self.kernel, padding=self.kernel // 2), nn.ReLU()]
                layers.append(nn.MaxPool2d(2))
                before, height, width = channels, height // 2, width // 2
            widths = (before * height * width, self.units, outputs)
            layers.append(nn.Flatten())
            for place, (inner, outer) in enumerate(pairwise(widths)):
                layers += [nn.ReLU()] if place else []
                layers.append(nn.Linear(inner, outer))
        return nn.Sequential(*layers)

    def told(self, outputs: int) -> str:
        """The layers in words."""
        blocks = ", ".join(f"conv {channels} of {self.kernel} x {self.kernel}, pool" for channels in self.channels)
        return f"{blocks}, dense {self.units}, dense {outputs}"


def architectures(input_shape: tuple[int, ...]) -> dict[str, Architecture]:
    """Models A, B and C for pictures of a size: one, two and three blocks.

    Args:
        input_shape: (channels, height, width).

    Returns:
        Name -> architecture.

    Raises:
        InputRefused: PA132, the pictures are smaller than 8 x 8.
    """
    side = min(input_shape[1:])
    if side < SMALLEST:
        size = " x ".join(map(str, input_shape[1:]))
        raise InputRefused("PA132", f"three poolings take pictures from 8 x 8, these are {size}. Pass other --data.")
    channels, kernel = ((4, 8, 16), 5) if side >= MNIST_SIDE else ((8, 16, 32), 3)
    return {name: Architecture(channels[: place + 1], kernel, 32) for place, name in enumerate(NAMES)}


def default_decay(input_shape: tuple[int, ...]) -> float:
    """Weight decay where none is asked for."""
    return DECAY if min(input_shape[1:]) >= MNIST_SIDE else DECAY_OF_SMALL


def trained(model: nn.Module, rows: DataSet, *, decay: float, steps: int, seed: int, voice: Voice) -> Made:
    """Adam on batches of 64 drawn with replacement, cross-entropy with decay, its rate falling along a cosine.

    Args:
        model: with initial weights; trained in place.
        rows: training and test rows, with classes.
        decay: of the term (decay/2) |w|^2 over all weights, which Adam's gradient holds.
        steps: of Adam.
        seed: of the batches.
        voice: told the progress.

    Returns:
        The weights by name; and accuracies and the mean training loss without decay.
    """
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with torch.enable_grad():
        for step in range(steps):
            picked = torch.randint(len(rows.x_train), (BATCH,), generator=generator)
            optimiser.zero_grad()
            loss = functional.cross_entropy(model(rows.x_train[picked]), rows.y_train[picked])
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % _SPOKEN == 0:
                voice(f"step {step} of {steps:,}, loss {float(loss.detach()):.3f}", step / steps)
    model.eval()
    train, test = _outputs(model, rows.x_train), _outputs(model, rows.x_test)
    facts: Mapping[str, Any] = {
        "loss": float(functional.cross_entropy(train, rows.y_train)),
        "train_accuracy": float((train.argmax(1) == rows.y_train).double().mean()),
        "test_accuracy": float((test.argmax(1) == rows.y_test).double().mean()),
    }
    return dict(model.state_dict()), facts


def parameters(model: nn.Module) -> int:
    """How many weights a network has."""
    return sum(value.numel() for value in model.parameters())


@torch.no_grad()
def _outputs(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(_ROWS_AT_ONCE)])
