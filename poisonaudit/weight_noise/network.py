"""Any network in eval mode as a function of its weight matrices, on a private copy."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from poisonaudit.errors import InputRefused, expect_kind, wrong_type
from poisonaudit.layers import changes_when_training
from poisonaudit.registry import unknown_name
from poisonaudit.row_by_row import why_not_row_by_row

Parameters = str | Sequence[str]
# Layers whose parameters rescale instead of mixing: no weight matrices, whatever their shape.
NORMALISATIONS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
_BATCHING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)
# Entries of all layers' outputs held in one pass: 128 MiB in float64.
_ENTRIES = 2**24
# Their squares are added up: within these no sum overflows, nor is a small one lost.
_LARGEST, _SMALLEST = 1e140, 1e-140


@dataclass(frozen=True)
class Network:
    """The map from weights to outputs at fixed inputs.

    Attributes:
        model: a copy of the user's model; nothing here changes its parameters.
        values: every parameter by name, detached.
        names: of those that are perturbed, in named_parameters() order; a tensor shared by layers comes once.
        left_out: names of the others.
        x: inputs (batch, ...).
        outputs: (batch, c), v; outputs of more dimensions are flattened.
        classes: whether the outputs of a row are a vector of at least two, whose largest names a class.
        activations: entries that all layers' outputs of one row have together.
    """

    model: nn.Module = field(repr=False)
    values: Mapping[str, Tensor] = field(repr=False)
    names: tuple[str, ...]
    left_out: tuple[str, ...]
    x: Tensor = field(repr=False)
    outputs: Tensor = field(repr=False)
    classes: bool
    activations: int

    def at(self, changed: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Outputs (rows, c) with some parameters replaced; differentiable, and fit for vmap."""
        # A copy, for the first layer may work in place.
        given: Tensor = functional_call(self.model, {**self.values, **changed}, (rows.clone(),))
        return given.reshape(len(given), -1)

    @property
    def batches(self) -> bool:
        """Whether several weights at once, by vmap, are known to be right and quick for its layers."""
        holders = (each for each in self.model.modules() if any(True for _ in each.parameters(recurse=False)))
        return all(type(module) in _BATCHING for module in holders)

    def chunks(self, per_row: int | None = None, entries: int = _ENTRIES) -> Iterator[slice]:
        """Slices of the rows, each of which fits in memory.

        Args:
            per_row: entries held for one row; the outputs of all layers by default.
            entries: held together.

        Yields:
            Slices in order, of at least one row each.
        """
        size = max(1, entries // max(per_row or self.activations, 1))
        for start in range(0, len(self.x), size):
            yield slice(start, min(start + size, len(self.x)))


def read_network(model: nn.Module, x: Tensor, parameters: Parameters = "matrices") -> Network:
    """Copy a model and choose which parameters are perturbed.

    Args:
        model: any module in eval mode that maps (batch, ...) to one tensor (batch, ...), each row by itself.
        x: inputs of the model's dtype and device; whole numbers (tokens) are passed on as they are.
        parameters: "matrices", those with two or more dimensions outside normalisation layers; "all", biases and
            normalisation parameters too; or names.

    Returns:
        The network with its outputs.

    Raises:
        InputRefused: PA120 train-mode layers, PA121 mixed dtypes or devices, PA127 x is no tensor, PA129 rows mixed or
            drawn at random, PA152 nothing to perturb, or not in a copy, PA210 NaN or infinite entries, PA211 shapes
            that do not fit.
    """
    _refuse_unfit(model, x)
    inner = copy.deepcopy(model).requires_grad_(False)
    values = {name: value.detach() for name, value in inner.named_parameters()}
    names = _chosen(inner, parameters)
    network = Network(inner, values, names, tuple(n for n in values if n not in names), x.detach(), x, False, 1)
    with torch.no_grad():
        with _OwnWeights(model):
            shape, activations = _look(network)
        network = Network(inner, values, names, network.left_out, x.detach(), x, False, activations)
        outputs = torch.cat([network.at({}, x[rows]) for rows in network.chunks()])
    _refuse_mixed_rows(network, outputs)
    classes = len(shape) == 1 and shape[0] > 1
    return Network(inner, values, names, network.left_out, x.detach(), outputs, classes, activations)


def plain_attention() -> AbstractContextManager[None]:
    """Attention by ordinary products: the fused kernels have no derivatives in forward mode."""
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def watching(hook: object, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Forward hooks that are taken off again.

    Args:
        hook: as register_forward_hook takes it.
        modules: whose calls are watched.

    Yields:
        Nothing.
    """
    handles = [module.register_forward_hook(hook) for module in modules]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _OwnWeights(TorchFunctionMode):
    """Refuses a copy whose forward computes with the original's parameters: noise in its own would not be felt."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(value): name for name, value in model.named_parameters(remove_duplicate=False)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the arguments of every function of torch."""
        for value in tree_leaves((args, kwargs)):
            if id(value) in self.names:
                raise InputRefused(
                    "PA152",
                    f"forward of a copy of the model uses {self.names[id(value)]} of the model itself, so "
                    "noise in the copy would not be felt. Do not patch forward; define it in the class.",
                )
        return func(*args, **(kwargs or {}))


def _look(network: Network) -> tuple[torch.Size, int]:
    """Shape of one row's output, and entries of all layers' outputs."""
    total = 0

    def count(module: nn.Module, given: object, output: object) -> None:
        nonlocal total
        total += output.numel() if isinstance(output, Tensor) else 0

    leaves = [module for module in network.model.modules() if not any(True for _ in module.children())]
    row = network.x[:1]
    try:
        with watching(count, leaves):
            found = functional_call(network.model, dict(network.values), (row.clone(),))
    except (RuntimeError, TypeError, ValueError, IndexError) as trouble:
        told = str(trouble).strip().partition("\n")[0] or type(trouble).__name__
        raise InputRefused(
            "PA211", f"the model fails on inputs of shape {tuple(network.x.shape)}: {told}. Pass inputs that fit it."
        ) from trouble
    if not isinstance(found, Tensor) or found.dim() == 0 or found.shape[0] != 1 or found.numel() == 0:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputRefused("PA211", f"the model returned {got} for 1 row. Return one tensor, (rows, outputs).")
    return found.shape[1:], max(total, row.numel(), found.numel())


def _chosen(model: nn.Module, parameters: Parameters) -> tuple[str, ...]:
    """Names of the parameters to perturb."""
    named = dict(model.named_parameters())
    if not isinstance(parameters, Iterable):
        raise wrong_type("weight noise", "parameters", parameters, "Pass 'matrices', 'all', or a list of names.")
    if not isinstance(parameters, str):
        for name in parameters:
            if name not in named:
                raise unknown_name(str(name), named, "parameter")
        found = [name for name in named if name in set(parameters)]
    elif parameters == "all":
        found = list(named)
    elif parameters == "matrices":
        scaling = {
            id(value) for module in model.modules() if isinstance(module, NORMALISATIONS)
            for value in module.parameters()
        }  # fmt: skip
        found = [name for name, value in named.items() if value.dim() >= 2 and id(value) not in scaling]
    else:
        raise unknown_name(parameters, ["matrices", "all"], "choice of parameters")
    if not found:
        raise InputRefused(
            "PA152", "the model has no weight matrix to perturb. Pass a net with one, or name parameters."
        )
    return tuple(found)


def _refuse_unfit(model: nn.Module, x: Tensor) -> None:
    expect_kind("model", model, nn.Module)
    expect_kind("x", x, Tensor)
    if x.layout != torch.strided:
        raise InputRefused("PA127", "x is sparse. Pass x.to_dense().")
    if x.dim() == 0 or x.numel() == 0:
        raise InputRefused(
            "PA211", f"inputs have shape {tuple(x.shape)}. Pass at least one row of at least one input, (batch, ...)."
        )
    if not bool(torch.isfinite(x).all()):
        raise InputRefused("PA210", "inputs hold NaN or infinite entries. Remove or impute those rows.")
    for name, module in model.named_modules():
        if module.training and changes_when_training(module):
            raise InputRefused(
                "PA120",
                f"layer {name or 'at the top'} ({type(module).__name__}) is in train mode. Call model.eval() first.",
            )
    for name, value in model.named_parameters():
        unlike = value.dtype != x.dtype if x.is_floating_point() else not value.is_floating_point()
        if unlike or value.device != x.device:
            raise InputRefused(
                "PA121",
                f"{name} is {value.dtype} on {value.device}, inputs {x.dtype} on {x.device}. "
                "Convert both to one dtype and device, float64 for audits.",
            )
        if not value.numel():
            raise InputRefused(
                "PA152", f"{name} has shape {tuple(value.shape)}, no entry. Pass a net with units in every layer."
            )
        if not bool(torch.isfinite(value).all()):
            raise InputRefused("PA210", f"{name} holds NaN or infinite entries. Pass other weights.")


def _refuse_mixed_rows(network: Network, outputs: Tensor) -> None:
    """Refuse what is no fixed function of single rows: every number here is per row, and rows are taken in chunks."""
    if not bool(torch.isfinite(outputs).all()):
        raise InputRefused("PA210", "the model's outputs hold NaN or infinite entries. Rescale the inputs.")
    largest = float(outputs.abs().max())
    if largest > _LARGEST or 0.0 < largest < _SMALLEST:
        raise InputRefused(
            "PA210",
            f"the model's largest output is {largest:.3g}, whose square leaves the range of float64. Rescale the last "
            "layer; relative numbers stay what they are.",
        )
    with torch.no_grad():
        why = why_not_row_by_row(lambda rows: network.at({}, rows), network.x, outputs)
    if why is not None:
        raise InputRefused(
            "PA129",
            f"the model's output for a row {why}, so there is no response of one row to weights. Use layers that "
            "treat every row by itself and draw nothing at random.",
        )


def entries_of(values: Mapping[str, Tensor], names: Sequence[str]) -> int:
    """Entries of some parameters together."""
    return sum(math.prod(values[name].shape) for name in names)
