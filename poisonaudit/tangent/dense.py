"""Tangent sensitivity of any small eval-mode net by its exact second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import jacrev

from poisonaudit.errors import InputRefused
from poisonaudit.tangent.functional import Network, second_derivatives_exist

# Second derivatives of one row: outputs x parameters x inputs. 10^7 of them are 80 MB in float64.
DENSE_LIMIT = 10_000_000


def dense_entries(model: nn.Module, x: Tensor, *, summed: bool) -> int:
    """Number of second derivatives of one row, outputs x parameters x inputs.

    Errors: InputRefused PA211 rows the model cannot take, PA155 an output that is not one tensor by rows.

    Args:
        model: any module in eval mode.
        x: inputs (batch, ...).
        summed: whether the outputs are summed first.

    Returns:
        The count.
    """
    network = Network(model)
    outputs = network.output_shape(x[:1]).numel()
    return (1 if summed else outputs) * network.size * x[0].numel()


def dense_form(model: nn.Module, x: Tensor, *, summed: bool, normalised: bool = False) -> Tensor:
    """`|S(x)|_F^2` of every row, shape (batch,), row by row.

    Args:
        model: any module in eval mode made of operations that torch.func can differentiate twice.
        x: inputs (batch, ...).
        summed: differentiate the sum of the outputs instead of each output.
        normalised: weight the square of each entry by the square of its parameter.

    Returns:
        (batch,) in the dtype of x.

    Raises:
        InputRefused: PA151, a row has more than `DENSE_LIMIT` second derivatives.
    """
    entries = dense_entries(model, x, summed=summed)
    if entries > DENSE_LIMIT:
        raise InputRefused(
            "PA151",
            f"a row has {entries:,} second derivatives (outputs x parameters x inputs), the dense form takes "
            f"{DENSE_LIMIT:,}. Use tangent_sensitivity_probes, which estimates with a standard error.",
        )
    network = Network(model)
    parameters = network.parameters

    def outputs_of(values: dict[str, Tensor], row: Tensor) -> Tensor:
        result = network(values, row.unsqueeze(0))
        return result.sum().reshape(1) if summed else result.reshape(-1)

    second = jacrev(jacrev(outputs_of, argnums=1), argnums=0)

    def squares(row: Tensor) -> Tensor:
        # Blocks are (outputs, *row, *parameter), so that a parameter lines up from behind.
        blocks = second(parameters, row)
        parts = [(block * parameters[name] if normalised else block).square().sum() for name, block in blocks.items()]
        return torch.stack(parts).sum()

    with second_derivatives_exist():
        return torch.stack([squares(row) for row in x])
