"""ART's poison detectors on features that were computed beforehand."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

# Its remark on narrow layers goes to stderr; the detection's note carries it instead.
_LOGGER = "art.defences.detector.poison.activation_defence"


def feature_classifier(width: int, classes: int) -> Any:
    """An ART classifier whose only layer hands on the features that it is given.

    ART's detectors read the last layer that ART knows, which in an `nn.Sequential` is the logits and in any other
    module the output; the papers read the activations before it. Given the features as its inputs, an identity lets the
    detectors work on the right ones, in double precision, and ART's hooks stay off the user's model.

    Args:
        width: number of features.
        classes: number of classes.

    Returns:
        An `art.estimators.classification.PyTorchClassifier`; for `get_activations` only.
    """
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model=nn.Sequential(nn.Identity()),
        loss=nn.CrossEntropyLoss(),
        input_shape=(width,),
        nb_classes=classes,
        device_type="cpu",
    )


@contextmanager
def art_session(seed: int) -> Iterator[None]:
    """Seed the global numpy state that ART draws from, put it back afterwards, and keep ART's remarks out.

    Args:
        seed: any integer.

    Yields:
        Nothing.
    """
    state, logger = np.random.get_state(), logging.getLogger(_LOGGER)
    disabled = logger.disabled
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import art  # noqa: F401  (its first import must not warn outside either)

            logger.disabled = True
            np.random.seed(seed % 2**32)
            yield
    finally:
        np.random.set_state(state)
        logger.disabled = disabled


def what_art_said(trouble: Exception) -> str:
    """An exception of ART in one line."""
    return " ".join(f"ART could not compute it ({type(trouble).__name__}: {trouble})".split())
