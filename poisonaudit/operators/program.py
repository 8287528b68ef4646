"""A traced network as a list of pieces, or the name of what the R-operator does not know."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from poisonaudit.operators.pieces import ConvPiece, LinearPiece, Parameter, Piece, ScalePiece
from poisonaudit.operators.weightless import ElementwisePiece, LinearMapPiece, MaxPoolPiece, ReshapePiece
from poisonaudit.tracing import LayerTracer, needed_operations, operation_name, overwritten

_PIECEWISE_LINEAR = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh)
_SMOOTH = (nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.ELU, nn.Mish, nn.Softsign)
_AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_SILENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_LEAVES = (*_PIECEWISE_LINEAR, *_SMOOTH, *_AVERAGES, *_SILENT, nn.Linear, nn.Conv2d, nn.Flatten, nn.MaxPool2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

# Functions and tensor methods by name; those of torch and of torch.nn.functional share names.
_SMOOTH_NAMES = {"tanh", "gelu", "silu", "sigmoid", "softplus", "elu", "mish", "softsign"}
_PIECEWISE_NAMES = {"relu", "relu6", "leaky_relu", "hardtanh"}
_MAP_NAMES = {"avg_pool2d", "adaptive_avg_pool2d", "pad", "mean"}
_RESHAPE_NAMES = {"flatten", "view", "reshape"}
_SILENT_NAMES = {"contiguous", "dropout", "dropout2d"}


class Unknown(Exception):
    """The R-operator does not know this part of the network; the message names it."""


@dataclass(frozen=True)
class Step:
    """One piece, where its input comes from and where its output goes.

    `piece` None is an addition of two earlier outputs.
    """

    piece: Piece | None
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """Steps in order; output k is that of step k - 1, output 0 the network's input."""

    steps: tuple[Step, ...]
    outputs: Tensor


def build_program(module: nn.Module, parameters: Mapping[int, Parameter], x: Tensor) -> Program:
    """Trace a network in eval mode and run its primal pass.

    Args:
        module: the network; its own weights are not used.
        parameters: of every parameter, by the identity of the module's tensor.
        x: inputs (n, ...).

    Returns:
        The program, with the primal values cached in its pieces.

    Raises:
        Unknown: a layer, function or tracing construct the R-operator has no formula for.
    """
    for name, part in module.named_modules():
        hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
        if any(hooks):
            raise Unknown(f"layer {name or type(part).__name__} has hooks")
    # A single layer is traced as a network of one, or tracing would look inside it.
    module = nn.Sequential(module) if type(module) in (*_LEAVES, *_NORMS) else module
    try:
        graph = LayerTracer().trace(module)
    except Exception as trouble:  # tracing runs the user's forward on proxies; anything can go wrong in it
        raise Unknown(f"it cannot be traced ({' '.join(str(trouble).split())[:120]})") from trouble
    if (reason := overwritten(graph, module)) is not None:
        raise Unknown(reason)
    return _Runner(module, parameters, x).run(graph)


class _Runner:
    """Executes the traced graph once, turning every tensor operation into a step."""

    def __init__(self, module: nn.Module, parameters: Mapping[int, Parameter], x: Tensor) -> None:
        self.module, self.parameters, self.rows = module, parameters, x.shape[0]
        self.x = x
        self.steps: list[Step] = []
        self.values: dict[fx.Node, Any] = {}
        self.places: dict[fx.Node, int] = {}

    def run(self, graph: fx.Graph) -> Program:
        """Walk the nodes in order."""
        alive = needed_operations(graph)
        for node in graph.nodes:
            if node not in alive and node.op != "placeholder":
                continue
            if node.op == "placeholder":
                if self.places:
                    raise Unknown("it takes more than one input")
                self.values[node], self.places[node] = self.x, 0
            elif node.op == "output":
                result = node.args[0]
                if not isinstance(result, fx.Node) or result not in self.places:
                    raise Unknown("its output is not one tensor")
                if self.places[result] != len(self.steps):
                    # The last step has to be the output: an identity puts it there.
                    self._append(result, LinearMapPiece(lambda a: a), result)
                return Program(tuple(self.steps), self.values[result])
            elif node.op == "get_attr":
                raise Unknown(f"it uses the tensor {node.target} outside a layer")
            else:
                self._call(node)
        raise Unknown("it has no output")

    def _call(self, node: fx.Node) -> None:
        sources = [value for value in node.all_input_nodes if value in self.places]
        if not sources:
            raise Unknown(f"{node.target} does not depend on the input")
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            self._append(node, self._layer(str(node.target), layer), sources[0])
            return
        name = operation_name(node)
        if name in ("size", "dim", "getattr") or (name == "getitem" and node.args[0] not in self.places):
            self._plain(node)
        elif name == "add" and len(sources) == len(node.args) == 2 and not node.kwargs:
            self._add(node, sources)
        elif len(sources) == 1 and node.args and node.args[0] in self.places:
            piece = self._function(name, node)
            self._append(node, piece, sources[0])
        else:
            raise Unknown(f"the operation {name}")

    def _plain(self, node: fx.Node) -> None:
        """A size or a dimension: a number, computed on the spot."""
        arguments, options = self._concrete(node.args), self._concrete(node.kwargs)
        if node.op == "call_method":
            value = getattr(arguments[0], str(node.target))(*arguments[1:], **options)
        else:
            assert callable(node.target)
            value = node.target(*arguments, **options)
        if isinstance(value, Tensor):
            raise Unknown(f"the operation {node.target}")
        self.values[node] = value
        # Numbers are not outputs of steps, but `sources` looks for nodes that stem from the input.

    def _concrete(self, arguments: Any) -> Any:
        return fx.node.map_arg(arguments, lambda node: self.values[node])

    def _add(self, node: fx.Node, sources: list[fx.Node]) -> None:
        first, second = (self.values[source] for source in sources)
        if first.shape != second.shape:
            raise Unknown("an addition that broadcasts")
        self.values[node] = first + second
        self.steps.append(Step(None, (self.places[sources[0]], self.places[sources[1]])))
        self.places[node] = len(self.steps)

    def _append(self, node: fx.Node, piece: Piece | None, source: fx.Node) -> None:
        if piece is None:
            self.values[node], self.places[node] = self.values[source], self.places[source]
            return
        self.values[node] = piece.forward(self.values[source])
        if self.values[node].shape[0] != self.rows:
            raise Unknown(f"{node.target} mixes rows")
        self.steps.append(Step(piece, (self.places[source],)))
        self.places[node] = len(self.steps)

    def _layer(self, name: str, layer: nn.Module) -> Piece | None:
        """The piece of a layer of torch, None for one that changes nothing."""
        kind = type(layer)
        known = kind in _LEAVES or kind in _NORMS
        if getattr(kind, "linear_map", False) and not list(layer.parameters()):
            return LinearMapPiece(layer)
        if getattr(kind, "channel_affine", False):
            # A normalisation by fixed means and deviations: batch norm without gain and shift.
            return ScalePiece(layer.get_buffer("mean"), layer.get_buffer("deviation"), None, None)
        if not known or "forward" in vars(layer):
            raise Unknown(f"layer {name} ({kind.__name__})")
        if kind in _SILENT:
            return None
        if kind in _NORMS:
            return self._norm(name, layer)
        if isinstance(layer, nn.Linear):
            return LinearPiece(self._parameter(layer.weight), self._optional(layer.bias))
        if isinstance(layer, nn.Conv2d):
            if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
                raise Unknown(f"layer {name} (Conv2d with padding {layer.padding!r}, {layer.padding_mode})")
            return ConvPiece(layer, self._parameter(layer.weight), self._optional(layer.bias))
        if isinstance(layer, nn.Flatten):
            if (layer.start_dim, layer.end_dim) != (1, -1):
                raise Unknown(f"layer {name} (Flatten of other axes)")
            return ReshapePiece((-1,))
        if isinstance(layer, nn.MaxPool2d):
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            return MaxPoolPiece({key: getattr(layer, key) for key in names})
        if kind in _AVERAGES:
            return LinearMapPiece(layer)
        return ElementwisePiece(_outside_place(layer), kind in _PIECEWISE_LINEAR)

    def _norm(self, name: str, layer: Any) -> Piece:
        if layer.running_mean is None or layer.training:
            raise Unknown(f"layer {name} (batch norm without running statistics)")
        deviation = (layer.running_var + layer.eps).sqrt()
        return ScalePiece(layer.running_mean, deviation, self._optional(layer.weight), self._optional(layer.bias))

    def _function(self, name: str, node: fx.Node) -> Piece | None:
        """The piece of a function or method of one tensor."""
        arguments, options = self._concrete(node.args[1:]), dict(self._concrete(node.kwargs))
        if name in _SILENT_NAMES:
            if name != "contiguous" and options.get("training", True):
                raise Unknown("dropout in train mode")
            return None
        if name in _RESHAPE_NAMES:
            shape = _reshaped(name, self.values[node.args[0]], arguments, options)  # type: ignore[index]
            return ReshapePiece(shape)
        options.pop("inplace", None)
        if name in _PIECEWISE_NAMES | _SMOOTH_NAMES:
            function = getattr(functional, name, None) or getattr(torch, name)
            return ElementwisePiece(lambda a: function(a, *arguments, **options), name in _PIECEWISE_NAMES)
        if name in _MAP_NAMES:
            if name == "mean":
                axes = options.get("dim", arguments[0] if arguments else None)
                axes = (axes,) if isinstance(axes, int) else axes
                if axes is None or 0 in axes or any(axis % self.values[node.args[0]].dim() == 0 for axis in axes):  # type: ignore[index]
                    raise Unknown("a mean over rows")
            function = torch.mean if name == "mean" else getattr(functional, name)
            return LinearMapPiece(lambda a: function(a, *arguments, **options))
        if name == "getitem":
            index = arguments[0]
            if not isinstance(index, tuple) or index[0] != slice(None):
                raise Unknown("an index that picks rows")
            return LinearMapPiece(lambda a: operator.getitem(a, index))
        if name in ("mul", "truediv", "div") and len(arguments) == 1 and isinstance(arguments[0], int | float):
            factor = arguments[0] if name == "mul" else 1.0 / arguments[0]
            return LinearMapPiece(lambda a: a * factor)
        raise Unknown(f"the operation {name}")

    def _parameter(self, value: Tensor) -> Parameter:
        if id(value) not in self.parameters:
            raise Unknown("a weight that is not a parameter (parametrised or computed)")
        return self.parameters[id(value)]

    def _optional(self, value: Tensor | None) -> Parameter | None:
        return None if value is None else self._parameter(value)


def _reshaped(name: str, value: Tensor, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[int, ...]:
    """Shape of one row after a reshape that keeps rows apart."""
    method = getattr(torch.Tensor, name)
    result = method(value, *arguments, **options)
    if result.dim() == 0 or result.shape[0] != value.shape[0]:
        raise Unknown(f"{name} mixes rows")
    return tuple(result.shape[1:])


def _outside_place(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The same activation leaving its input alone."""
    if not getattr(layer, "inplace", False):
        return layer
    import copy

    other = copy.copy(layer)
    other.__dict__["inplace"] = False
    return other
