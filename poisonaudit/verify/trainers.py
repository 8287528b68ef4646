"""Training as practitioners do it: minibatches, a fixed number of epochs, no polishing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from poisonaudit.errors import InputRefused, NumericalFailure, UsageError
from poisonaudit.layers import changes_when_training
from poisonaudit.owner_training import seeded
from poisonaudit.problem import Problem
from poisonaudit.training import initialise
from poisonaudit.warm_up import in_statistics_of

_SGD_MOMENTUM = 0.9


@dataclass(frozen=True)
class MinibatchTrainer:
    """A trainer `(problem, seed) -> weights (p,)` by minibatches from a fresh initialisation.

    Each step lowers `(1/|b|) sum_{i in b} L(f(x_i, w), y_i) + (decay/2) |w|^2` over a batch b, with the problem's own
    decay over all p entries: as a term of the loss, so that momentum and adaptive rates see it (L2 regularisation, not
    decoupled weight decay). Every epoch takes all rows once in a new order, split into batches of nearly equal size. A
    model with batch normalisation or dropout is trained in train mode; its weights are then rewritten for the problem's
    batch statistics, so that they stand for the same function of a row. Initialisation, order, dropout and
    augmentation follow from the seed; global generators stay as they were.

    Attributes:
        optimiser: "adam" (Kingma and Ba 2015, betas .9 and .999) or "sgd".
        epochs: passes over the rows.
        batch_size: most rows in a batch.
        learning_rate: at the start.
        momentum: of SGD.
        schedule: "constant", or "cosine" from the learning rate to 0 over all steps (Loshchilov and Hutter 2017).
        crop_padding: pictures only: zeros on each side before a random crop back to size; 0 for none.
        flip: pictures only: each picture is mirrored left to right with probability 1/2.
    """

    optimiser: Literal["adam", "sgd"]
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = _SGD_MOMENTUM
    schedule: Literal["constant", "cosine"] = "constant"
    crop_padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        counts = self.epochs >= 0 and self.batch_size >= 1 and self.crop_padding >= 0
        rates = 0.0 < self.learning_rate < math.inf and 0.0 <= self.momentum < 1.0
        if not (counts and rates) or self.optimiser not in _OPTIMISERS or self.schedule not in ("constant", "cosine"):
            raise UsageError(
                "PA304",
                f"the trainer got {self!r}. Use adam or sgd, constant or cosine, epochs and crop_padding >= 0, "
                "batch_size >= 1, learning_rate > 0 and momentum in [0, 1).",
            )

    @property
    def gradients(self) -> int:
        """Gradient-sized evaluations of one training: its passes over the rows."""
        return self.epochs

    def __str__(self) -> str:
        """What it does, in words."""
        name = {"adam": "Adam", "sgd": f"SGD with momentum {self.momentum:g}"}[self.optimiser]
        varied = [f"crops with padding {self.crop_padding}"] * bool(self.crop_padding) + ["mirroring"] * self.flip
        parts = [name, f"{self.epochs} epochs", f"batches of {self.batch_size}"]
        parts += [f"learning rate {self.learning_rate:g}, {self.schedule}", *varied]
        return f"{', '.join(parts)}; not polished"

    def __call__(self, problem: Problem, seed: int) -> Tensor:
        """Train from fresh weights.

        Args:
            problem: gives model, loss, rows and decay; not changed.
            seed: of everything random.

        Returns:
            Flat weights (p,), in the problem's dtype, on its device.

        Raises:
            InputRefused: PA126, a module cannot be initialised; PA211, augmentation of rows that are no pictures.
            NumericalFailure: PA441, the weights left the finite numbers.
        """
        if (self.crop_padding or self.flip) and problem.x.dim() != 4:
            raise InputRefused(
                "PA211",
                f"augmentation takes pictures (n, channels, height, width), the rows are {tuple(problem.x.shape)}. "
                "Leave crop_padding and flip out.",
            )
        begin = problem.at(initialise(problem, seed))
        module = begin.module().requires_grad_(True).train()
        norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
        for layer in norms:
            layer.reset_running_stats()
        with seeded(seed, problem.device), torch.enable_grad():
            self._run(problem, module, seed)
        module = module.requires_grad_(False).eval()
        if norms:
            module = in_statistics_of(problem.module(), module)
        weights = _flat(module).detach()
        if not bool(torch.isfinite(weights).all()):
            raise NumericalFailure(
                "PA441",
                f"training by minibatches ({self}) from seed {seed} left the finite numbers. Lower its learning rate, "
                "rescale the inputs, or pass loose=False.",
            )
        return weights

    def _run(self, problem: Problem, module: nn.Module, seed: int) -> None:
        """All steps, in place."""
        batches = -(-problem.rows // self.batch_size)
        if any(changes_when_training(layer) for layer in module.modules()):
            # Batch normalisation has no variance of one row.
            batches = max(1, min(batches, problem.rows // 2))
        optimiser = _OPTIMISERS[self.optimiser](module, self)
        steps = self.epochs * batches
        cosine = self.schedule == "cosine"
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(self.epochs):
            order = torch.randperm(problem.rows, generator=generator).to(problem.device)
            for index, picked in enumerate(order.tensor_split(batches)):
                share = (epoch * batches + index) / steps if cosine else 0.0
                for group in optimiser.param_groups:
                    group["lr"] = 0.5 * (1.0 + math.cos(math.pi * share)) * self.learning_rate
                optimiser.zero_grad()
                x = augmented(problem.x[picked], self.crop_padding, self.flip, generator)
                losses, weights = problem.loss_per_row(module(x), problem.y[picked]), _flat(module)
                (losses.mean() + 0.5 * problem.decay * weights.dot(weights)).backward()
                optimiser.step()


_OPTIMISERS: dict[str, Callable[[nn.Module, MinibatchTrainer], torch.optim.Optimizer]] = {
    "adam": lambda module, given: torch.optim.Adam(module.parameters(), lr=given.learning_rate),
    "sgd": lambda module, given: torch.optim.SGD(module.parameters(), given.learning_rate, given.momentum),
}


def loose_trainer(
    epochs: int = 40,
    batch_size: int = 64,
    learning_rate: float = 1e-2,
    optimiser: Literal["adam", "sgd"] = "adam",
) -> MinibatchTrainer:
    """Loose training: a fixed number of epochs of Adam with a cosine rate, stopped where they end.

    What a poison does to tight minima overstates what it does to models that are trained like this, so both are
    reported side by side.

    Args:
        epochs: passes over the rows.
        batch_size: most rows in a batch.
        learning_rate: at the start.
        optimiser: "adam", or "sgd" with momentum .9.

    Returns:
        A trainer for `retrain`.

    Raises:
        UsageError: PA304, an argument is out of range.
    """
    return MinibatchTrainer(optimiser, epochs, batch_size, learning_rate, schedule="cosine")


def sgd_trainer(
    epochs: int = 100,
    batch_size: int = 128,
    learning_rate: float = 0.1,
    momentum: float = _SGD_MOMENTUM,
    schedule: Literal["constant", "cosine"] = "cosine",
    *,
    crop_padding: int = 0,
    flip: bool = False,
) -> MinibatchTrainer:
    """SGD with momentum and a cosine rate, the usual recipe for picture networks.

    Args:
        epochs: passes over the rows.
        batch_size: most rows in a batch.
        learning_rate: at the start.
        momentum: heavy ball, not Nesterov's.
        schedule: "cosine" to 0, or "constant".
        crop_padding: pictures only: zeros on each side before a random crop back to size; 4 is usual for CIFAR.
        flip: pictures only: mirror each left to right with probability 1/2.

    Returns:
        A trainer for `retrain`.

    Raises:
        UsageError: PA304, an argument is out of range.
    """
    return MinibatchTrainer("sgd", epochs, batch_size, learning_rate, momentum, schedule, crop_padding, flip)


def augmented(x: Tensor, crop_padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random crops of the padded pictures and random mirroring, drawn for each picture by itself.

    Args:
        x: pictures (n, channels, height, width).
        crop_padding: zeros on each side, 0 for no crop.
        flip: whether to mirror with probability 1/2.
        generator: on the CPU.

    Returns:
        New pictures of the same shape; x itself where nothing is asked for.
    """
    if crop_padding:
        count, _, height, width = x.shape
        padded = nn.functional.pad(x, [crop_padding] * 4)
        corner = torch.randint(0, 2 * crop_padding + 1, (2, count, 1), generator=generator).to(x.device)
        down = corner[0] + torch.arange(height, device=x.device)
        right = corner[1] + torch.arange(width, device=x.device)
        each = torch.arange(count, device=x.device)[:, None, None]
        # Indices around a slice put its dimension last.
        x = padded[each, :, down[:, :, None], right[:, None, :]].movedim(-1, 1)
    if flip:
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(-1), x)
    return x


def _flat(module: nn.Module) -> Tensor:
    return torch.cat([value.reshape(-1) for value in module.parameters()])
