"""What no tangent sensitivity is computed for, refused in one line by every function."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.tangent import (
    activation_patterns,
    estimate_test_loss,
    pattern_log_probability,
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


class Drawing(nn.Module):
    """Draws at random, mixes the rows, or neither."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.line, self.which = nn.Linear(4, 3), which

    def forward(self, x: Tensor) -> Tensor:
        h = self.line(x).tanh()
        if self.which == "mixes":
            return h - h.mean(0)
        return nn.functional.dropout(h, 0.5, training=True) if self.which == "draws" else h


ANY_NET = [tangent_mean, tangent_sensitivity, tangent_sensitivity_normalised, tangent_sensitivity_probes]


@pytest.mark.parametrize("function", ANY_NET)
@pytest.mark.parametrize("which", ["draws", "mixes"])
def test_what_is_no_function_of_single_rows_is_refused(function: Callable[[Any, Any], Any], which: str) -> None:
    function(Drawing("").eval(), X)
    with pytest.raises(InputRefused, match="PA129 the model's output for a row"):
        function(Drawing(which).eval(), X)


@pytest.mark.parametrize("layer", [nn.MultiheadAttention(4, 2, dropout=0.5), nn.LSTM(4, 3, 2, dropout=0.5)])
def test_layers_that_draw_in_train_mode_are_refused(layer: nn.Module) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layer

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.unsqueeze(0)
            return (self.inner(tokens, tokens, tokens) if layer is not lstm else self.inner(tokens))[0].squeeze(0)

    lstm = layer if isinstance(layer, nn.LSTM) else None
    with pytest.raises(InputRefused, match="PA120 layer inner is in train mode"):
        tangent_sensitivity(Wrapped().train(), X)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_nets_without_units_and_odd_tensors_are_refused(function: Callable[[Any, Any], Any]) -> None:
    with pytest.raises(InputRefused, match=r"PA122 0\.weight has shape \(0, 4\)"):
        function(nn.Sequential(nn.Linear(4, 0), nn.ReLU(), nn.Linear(0, 3)).eval(), X)
    with pytest.raises(InputRefused, match="PA211"):
        function(small(), X[:, :0])
    with pytest.raises(InputRefused, match="PA127 x is sparse"):
        function(small(), X.to_sparse())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"probes": 2.5}, "PA324 probes is 2.5"),
        ({"max_probes": 10.5}, "PA324 max_probes is 10.5"),
        ({"rows_together": 1.5}, "PA324 rows_together is 1.5"),
        ({"relative_error": "a"}, "PA324 relative_error is 'a'"),
        ({"level": None}, "PA324 level is None"),
        ({"seed": "a"}, "PA324 seed is 'a'"),
        ({"outputs": None}, "PA301 unknown outputs convention"),
    ],
)
def test_arguments_of_other_types_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        tangent_sensitivity_probes(small(), X, **given)


def test_rows_and_labels_of_estimates_have_to_fit() -> None:
    y = torch.tensor([0, 1, 2])
    for train, test, error, told in (
        (X, X, UsageError, "PA314 .* for train"),
        ((X, y.numpy()), X, InputRefused, "PA127 labels"),
        ((X, y), X[:, :3], InputRefused, "PA211 a row has 3"),
        ((X[:, :3], y), X, InputRefused, "PA211 a row has 3"),
        ((X, y), X[:0], InputRefused, "PA211"),
    ):
        with pytest.raises(error, match=told):
            estimate_test_loss(small(), train, test)  # type: ignore[arg-type]
    with pytest.raises(InputRefused, match="PA212 patterns have shape .* 3 rows"):
        pattern_log_probability(small(), X, torch.ones(2, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_half_precision_is_half_as_exact(dtype: torch.dtype, activation: type[nn.Module]) -> None:
    model, x = nn.Sequential(nn.Linear(12, 4), activation(), nn.Linear(4, 2)).eval(), torch.rand(3, 12)
    exact = tangent_sensitivity(model.double(), x.double())
    found = tangent_sensitivity(model.to(dtype), x.to(dtype))
    assert found.dtype == dtype and torch.allclose(found.double(), exact, rtol=0.05)
