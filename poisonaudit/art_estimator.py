"""Classifiers of the Adversarial Robustness Toolbox, and sessions with it that leave no trace in global state."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

Bound = Tensor | float


def art_classifier(
    model: nn.Module,
    input_shape: tuple[int, ...],
    classes: int,
    box: tuple[Bound, Bound] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    device_type: Literal["cpu", "gpu"] = "cpu",
    kind: Any = None,
) -> Any:
    """ART's `PyTorchClassifier` with the cross-entropy; ART works in float32.

    Args:
        model: float32 module in eval mode that ART may have for itself (it moves it to its device).
        input_shape: of one row.
        classes: number of outputs.
        box: (lower, upper) limits of the inputs, numbers or tensors like one row.
        reduction: of the loss over a batch.
        device_type: "gpu" means the GPU where torch sees one, else the CPU.
        kind: subclass of `PyTorchClassifier` to build instead.

    Returns:
        The estimator.
    """
    if kind is None:
        from art.estimators.classification import PyTorchClassifier

        kind = PyTorchClassifier
    return kind(
        model=model,
        loss=nn.CrossEntropyLoss(reduction=reduction),
        input_shape=input_shape,
        nb_classes=classes,
        clip_values=_clip_values(box),
        device_type=device_type,
    )


@contextlib.contextmanager
def art_session(seed: int) -> Iterator[None]:
    """Seed the global numpy and torch states that ART draws from, put both back afterwards, keep ART's warnings out."""
    state = np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=devices):
            warnings.simplefilter("ignore")
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
    finally:
        np.random.set_state(state)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep ART's own progress bars and prints off the console."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _clip_values(box: tuple[Bound, Bound] | None) -> Any:
    """The box as ART takes it: two numbers where all entries agree, else two arrays."""
    if box is None:
        return None
    lower, upper = (torch.as_tensor(end).float().cpu() for end in box)
    single = bool((lower == lower.reshape(-1)[0]).all() and (upper == upper.reshape(-1)[0]).all())
    if single:
        return float(lower.reshape(-1)[0]), float(upper.reshape(-1)[0])
    return lower.numpy(), upper.numpy()
