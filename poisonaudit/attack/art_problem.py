"""The training problem behind a `PyTorchClassifier` of the Adversarial Robustness Toolbox (ART)."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from poisonaudit.attack.art_arrays import DTYPES, class_numbers, floating, tensor
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name


def problem_from_classifier(
    classifier: Any, x: ArrayLike, y: ArrayLike, decay: float = 0.0, dtype: str = "float64"
) -> Problem:
    """`J(w; x)` as the classifier is trained: its standardisation inside the model, mean cross-entropy, decay.

    The classifier and its model are read, never changed: the Problem holds a copy in eval mode, on the classifier's
    device, and hooks that ART left on the model (`get_activations` leaves one a layer) are not on the copy.

    Args:
        classifier: `art.estimators.classification.PyTorchClassifier`.
        x: training rows (n, ...), in the classifier's input units, before its standardisation.
        y: class numbers (n,) or (n, 1), or one-hot rows (n, classes).
        decay: weight of `|w|^2 / 2` in training, the `weight_decay` of SGD.
        dtype: "float64" or "float32".

    Returns:
        The problem at the classifier's present weights.

    Raises:
        UsageError: PA344, it is trained on another objective; PA301, no dtype has that name.
        InputRefused: PA211, x or y do not fit; PA212, labels out of range; and what `Problem` refuses.
    """
    refuse_classifier(classifier)
    if dtype not in DTYPES:
        raise unknown_name(str(dtype), DTYPES, "dtype")
    device = classifier.device
    rows = floating(x, "x")
    labels = class_numbers(y, classifier.nb_classes, "y")
    if len(labels) != len(rows):
        raise InputRefused("PA211", f"x has {len(rows)} rows, y {len(labels)} labels. Give one label per row.")
    model = copy.deepcopy(classifier.model).eval().to(DTYPES[dtype])
    model.zero_grad(set_to_none=True)
    _remove_hooks_of_art(model)
    layer = _standardisation(classifier.preprocessing, rows)
    if layer is not None:
        layer = layer.to(dtype=DTYPES[dtype], device=device)
        model = nn.Sequential(OrderedDict(standardise=layer, model=model)).eval()
    return Problem(model, "cross_entropy", tensor(rows, dtype, device), torch.as_tensor(labels, device=device), decay)


def refuse_classifier(classifier: Any) -> None:
    """Refuse a classifier whose training is not mean cross-entropy of a fixed function of inputs and weights.

    Args:
        classifier: a `PyTorchClassifier`.

    Raises:
        UsageError: PA344, its loss, preprocessing or defences make it another objective.
    """
    loss = classifier.loss
    if type(loss) is not nn.CrossEntropyLoss:
        raise _refused(
            f"the classifier's loss is {type(loss).__name__}",
            "the solution map is that of mean cross-entropy over raw scores",
            "Pass loss=torch.nn.CrossEntropyLoss() and a model without a final softmax.",
        )
    if loss.reduction != "mean" or loss.weight is not None or loss.label_smoothing != 0.0 or loss.ignore_index >= 0:
        raise _refused(
            f"the classifier's CrossEntropyLoss has reduction={loss.reduction!r}, "
            f"weight={'None' if loss.weight is None else 'given'}, label_smoothing={loss.label_smoothing:g}, "
            f"ignore_index={loss.ignore_index}",
            "only the plain mean over rows is known here, and another loss has another minimum",
            "Pass torch.nn.CrossEntropyLoss() as it comes, or use poisonaudit.Problem with a loss of your own.",
        )
    if classifier.preprocessing_defences:
        names = ", ".join(type(each).__name__ for each in classifier.preprocessing_defences)
        raise _refused(
            f"the classifier has preprocessing_defences ({names})",
            "they change the rows between the poison and the training loss, mostly without a derivative, so that no "
            "prediction would hold",
            "Attack the classifier without them, and fit one with them on the poisoned rows to see what they save.",
        )
    given = classifier.preprocessing
    if given is not None and not _is_standardisation(given):
        raise _refused(
            f"the classifier's preprocessing is {type(given).__name__}",
            "only a standardisation by fixed mean and deviation can be put inside the model",
            "Pass preprocessing=(mean, std), or make the preprocessing the model's first layer.",
        )


def box_of(classifier: Any, dtype: str = "float64") -> tuple[Tensor | float, Tensor | float] | None:
    """The classifier's `clip_values` as limits of a row.

    Args:
        classifier: a `PyTorchClassifier`.
        dtype: of limits that differ between entries.

    Returns:
        (lower, upper): numbers where all entries share them, else tensors shaped like one row; None without
        `clip_values`.

    Raises:
        UsageError: PA362, limits for each entry that do not fit one row.
    """
    if classifier.clip_values is None:
        return None
    lower, upper = (np.asarray(end, dtype=np.float64) for end in classifier.clip_values)
    if lower.size == upper.size == 1:
        return lower.item(), upper.item()
    shape = tuple(classifier.input_shape)
    try:
        # ART asks for one limit a feature: they may come flat, or in any form that broadcasts to one row.
        lower, upper = (
            end.reshape(shape) if end.size == np.prod(shape) else np.broadcast_to(end, shape) for end in (lower, upper)
        )
    except ValueError:
        raise UsageError(
            "PA362",
            f"clip_values have shapes {lower.shape} and {upper.shape}, one row is {shape}. Give two numbers, or limits "
            "shaped like one row.",
        ) from None
    return tensor(lower, dtype, classifier.device), tensor(upper, dtype, classifier.device)


class _Standardise(nn.Module):
    """`(x - mean) / deviation` with fixed numbers that broadcast to the rows."""

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, x: Tensor) -> Tensor:
        """Rows as the model sees them."""
        return (x - self.get_buffer("mean")) / self.get_buffer("deviation")


class _StandardiseChannels(_Standardise):
    """The same with one number, or one number for each entry along the first axis of a row."""

    # Read by the R-operator: an affine map of each channel by `mean` and `deviation`.
    channel_affine: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        """Rows as the model sees them."""
        shape = (-1, *[1] * (x.dim() - 2))
        return (x - self.get_buffer("mean").view(shape)) / self.get_buffer("deviation").view(shape)


def _standardisation(preprocessing: Any, rows: NDArray[Any]) -> _Standardise | None:
    """The classifier's standardisation as a layer, None where it changes nothing."""
    if preprocessing is None:
        return None
    from art.preprocessing.standardisation_mean_std.utils import broadcastable_mean_std

    mean, deviation = broadcastable_mean_std(rows, preprocessing.mean, preprocessing.std)
    if not mean.any() and (deviation == 1).all():
        return None
    numbers = torch.from_numpy(np.array(mean)), torch.from_numpy(np.array(deviation))
    channels = mean.ndim == rows.ndim and mean.size == mean.shape[1]
    if mean.size == 1 or channels or mean.ndim == 1 == rows.ndim - 1:
        return _StandardiseChannels(*(number.flatten() for number in numbers))
    return _Standardise(*numbers)


def _is_standardisation(preprocessing: Any) -> bool:
    from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd
    from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch

    known = isinstance(preprocessing, StandardisationMeanStd | StandardisationMeanStdPyTorch)
    return known and bool(preprocessing.apply_fit) and bool(preprocessing.apply_predict)


def _remove_hooks_of_art(model: nn.Module) -> None:
    # They would write every pass of ours into the user's classifier.
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", "").split(".")[0] == "art":
                del module._forward_hooks[key]


def _refused(got: str, why: str, advice: str) -> UsageError:
    return UsageError("PA344", f"{got}; {why}. {advice}")
