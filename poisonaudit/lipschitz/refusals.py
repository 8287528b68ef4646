"""What a network must be before it is read as a graph, and after: refusals in one line."""

from __future__ import annotations

import copy

import torch
from torch import nn

from poisonaudit.errors import InputRefused
from poisonaudit.lipschitz.graph import Graph

REFUSED = "PA130"
# Room for parts that a network computes in single precision; what is looked for are other functions.
_SAME = 1e-3


def refuse_hooks(model: nn.Module) -> None:
    """Hooks, which can change what a layer computes."""
    for name, part in model.named_modules():
        if part._forward_hooks or part._forward_pre_hooks:
            raise refused(f"layer {name or type(part).__name__} has hooks, which can change what it computes")


def refuse_another_function(model: nn.Module, graph: Graph) -> None:
    """Refuse a network that does not compute what its operations say, as when its forward keeps a state."""
    try:
        own = copy.deepcopy(model).to("cpu", torch.float64).eval()
    except Exception:  # a module of one's own may refuse to be copied or converted
        return
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(2, *graph.nodes[0].shape, generator=generator, dtype=torch.float64)
    found = graph.values(rows)[-1].flatten(1)
    for _ in range(2):
        try:
            wanted = own(rows.clone()).flatten(1)
        except Exception:  # tensors it keeps elsewhere than in buffers stay where they are
            return
        scale = float(wanted.abs().nan_to_num(posinf=0.0).max())
        if wanted.shape != found.shape or not torch.allclose(
            found, wanted.double(), rtol=_SAME, atol=_SAME * scale, equal_nan=True
        ):
            raise refused("it computes something else than its operations, read one by one")


def refuse_weights(model: nn.Module) -> None:
    """Weights without values, or with values a bound would mean nothing for."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(value) or value.is_meta:
            raise refused(f"{name} has no values yet; load or initialise it first")
        if value.is_complex():
            raise refused(f"{name} is {value.dtype}; real numbers were expected")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise refused(f"{name} holds NaN or infinity")


def refused(fact: str) -> InputRefused:
    """The one line about a part that no bound is proved for."""
    return InputRefused(
        REFUSED, f"{fact}. The bounds are proved for the layers listed in docs/lipschitz.md. Replace that part."
    )
