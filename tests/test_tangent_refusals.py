"""What no tangent sensitivity is computed for, refused in one line by every function."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from poisonaudit.errors import InputRefused
from poisonaudit.tangent import (
    activation_patterns,
    soft_tangent_sensitivity,
    tangent_bounds,
    tangent_mean,
    tangent_sensitivity,
    tangent_sensitivity_by_layer,
    tangent_sensitivity_normalised,
    tangent_sensitivity_probes,
)

X = torch.rand(3, 4)
FUNCTIONS: list[Callable[[Any, Any], Any]] = [
    activation_patterns,
    soft_tangent_sensitivity,
    tangent_bounds,
    tangent_mean,
    tangent_sensitivity,
    tangent_sensitivity_by_layer,
    tangent_sensitivity_normalised,
    tangent_sensitivity_probes,
]


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("x", [X.numpy(), X.tolist(), "abc", None])
def test_inputs_have_to_be_a_tensor(function: Callable[[Any, Any], Any], x: Any) -> None:
    with pytest.raises(InputRefused, match=f"PA127 x is a {type(x).__name__}"):
        function(small(), x)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("model", [None, lambda z: z])
def test_a_model_has_to_be_a_module(function: Callable[[Any, Any], Any], model: Any) -> None:
    with pytest.raises(InputRefused, match="PA127 model is a"):
        function(model, X)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_without_values_are_refused(function: Callable[[Any, Any], Any], value: float) -> None:
    model = small()
    model[2].weight.data[0, 0] = value
    with pytest.raises(InputRefused, match=r"PA124 2\.weight holds NaN"):
        function(model, X)


def test_statistics_without_values_are_refused_and_masks_are_not() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model.register_buffer("mask", torch.full((2,), -torch.inf))
    assert tangent_sensitivity(model, X).shape == (3,)
    model[1].running_var.fill_(torch.nan)
    with pytest.raises(InputRefused, match=r"PA124 1\.running_var"):
        tangent_sensitivity(model, X)
