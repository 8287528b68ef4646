"""A net as a function of its parameters, for derivatives in both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from poisonaudit.errors import InputRefused


class Network:
    """`f(theta, x)` of a module; parameters that are tied or used twice count once and move together.

    Args:
        model: module in eval mode.

    Attributes:
        parameters: name -> value, each parameter once, without gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.parameters: dict[str, Tensor] = {}
        # functional_call puts values back in the order of names; a module met under two names would keep a copy.
        self._places: dict[str, str] = {}
        first: dict[int, str] = {}
        for prefix, module in model.named_modules():
            for own, value in module.named_parameters(recurse=False):
                place = f"{prefix}.{own}" if prefix else own
                name = first.setdefault(id(value), place)
                self._places[place] = name
                self.parameters.setdefault(name, value.detach())

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(value.numel() for value in self.parameters.values())

    def __call__(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs (batch, ...) at these parameters; attention in its form that can be differentiated twice."""
        values = {place: parameters[name] for place, name in self._places.items()}
        with sdpa_kernel(SDPBackend.MATH):
            result: Tensor = functional_call(self._model, values, (x,), tie_weights=False)
        return result

    def output_shape(self, row: Tensor) -> torch.Size:
        """Shape of the outputs of one row (1, ...), without the row.

        Args:
            row: inputs (1, ...).

        Returns:
            The shape.

        Raises:
            InputRefused: PA211, the model cannot take such rows; PA155, its output is not one tensor by rows.
        """
        try:
            with torch.no_grad():
                outputs = self(self.parameters, row)
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputRefused(
                "PA211",
                f"the model cannot take rows of shape {tuple(row.shape[1:])}: {_line(error)}. Pass other rows.",
            ) from error
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != row.shape[:1]:
            got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputRefused(
                "PA155",
                f"for one row the model gives {got}, which is not one tensor with the rows in front. "
                "Wrap it so that it returns its logits.",
            )
        return outputs.shape[1:]


@contextmanager
def second_derivatives_exist() -> Iterator[None]:
    """Turn torch's refusal to differentiate an operator twice into ours.

    Yields:
        Nothing.

    Raises:
        InputRefused: PA156, the operator by name.
    """
    try:
        yield
    except RuntimeError as error:
        if "is not implemented" not in str(error) and "double backward" not in str(error):
            raise
        raise InputRefused(
            "PA156",
            f"torch has no second derivative of a layer: {_line(error)}. Write that layer with other operators.",
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
