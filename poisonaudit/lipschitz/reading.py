"""Read a module into a graph by symbolic tracing, or refuse by name what the bounds are not proved for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from poisonaudit.errors import InputRefused
from poisonaudit.layers import leaves
from poisonaudit.lipschitz.activations import Activation
from poisonaudit.lipschitz.dense_graph import graph_of
from poisonaudit.lipschitz.explicit_pooling import pooling_levels
from poisonaudit.lipschitz.functions import Unknown
from poisonaudit.lipschitz.graph import Edge, Graph, Node, Window
from poisonaudit.lipschitz.layer_maps import Affine, affine_of, elementwise, function_of, window_of
from poisonaudit.lipschitz.linear_maps import Identity, LinearMap, Shape, composed
from poisonaudit.lipschitz.network import DenseNetwork, read_network
from poisonaudit.lipschitz.rearrangement import Rearrangement
from poisonaudit.lipschitz.refusals import (
    REFUSED,
    refuse_another_function,
    refuse_hooks,
    refuse_weights,
    refuse_what_fails,
    refused,
)
from poisonaudit.lipschitz.unit import TINY, gamma
from poisonaudit.tracing import LayerTracer, needed_operations, operation_name, overwritten

# Activations whose values are never negative.
_NOT_NEGATIVE = ("ReLU", "ReLU6", "Sigmoid", "Softplus", "Hardsigmoid")


@dataclass(frozen=True, eq=False)
class _Value:
    """A tensor on the way: a linear map of a node's value, plus a bias."""

    node: int
    map: LinearMap
    bias: Tensor
    bias_terms: Tensor
    bias_error: Tensor


def read_graph(model: nn.Module, shape: Shape, *, explicit_pooling: bool = False) -> Graph:
    """The graph of a network in eval mode, in float64.

    Args:
        model: traced by torch.fx; its weights are converted exactly.
        shape: of one input row.
        explicit_pooling: write max pooling as a cascade of ReLU layers.

    Returns:
        The graph; nodes that do not lead to the output are left out.

    Raises:
        InputRefused: PA130, a part of the network that the bounds are not proved for, by name.
    """
    refuse_weights(model)
    refuse_hooks(model)
    wrapped = nn.Sequential(model) if LayerTracer().is_leaf_module(model, "") else model
    try:
        traced = LayerTracer().trace(wrapped)
    except Exception as trouble:  # tracing runs the user's forward on proxies; anything can go wrong in it
        reason = " ".join(str(trouble).split())[:160]
        raise InputRefused(
            REFUSED,
            f"the network cannot be traced ({reason}). Bounds need every operation, whatever the data. "
            "Take control flow that depends on values out of forward.",
        ) from trouble
    if (fact := overwritten(traced, wrapped)) is not None:
        raise refused(fact)
    with torch.no_grad():
        try:
            graph = _Reader(wrapped, shape, explicit_pooling).run(traced)
            refuse_another_function(model, graph)
        except InputRefused:
            raise
        except Exception:  # what cannot be read in one of countless ways mostly cannot be run either
            refuse_what_fails(model, shape)
            raise
    return graph


def read_dense(model: nn.Module, shape: Shape | None) -> tuple[DenseNetwork, Graph]:
    """A net of Linear layers as matrices and as a graph, compared with the net itself.

    Args:
        model: nested nn.Sequential, or nn.Linear.
        shape: of one input row; None for a vector as long as the first layer takes.

    Returns:
        Both forms.

    Raises:
        InputRefused: PA130, it is no such net, takes no such rows as vectors, or does not compute what its layers say.
    """
    network = read_network(model)
    # A Linear layer takes rows of more axes one by one, and other layers then take the first axis for channels.
    first = next((leaf for leaf in leaves(model) if leaf.kind not in (nn.Identity, nn.Dropout)), None)
    vectors = shape is None or len(shape) == 1 or (first is not None and first.flattens)
    if not vectors or (shape is not None and math.prod(shape) != network.weights[0].shape[1]):
        raise refused(f"rows of shape {shape} are not what its first layer takes as vectors")
    graph = graph_of(network)
    refuse_another_function(model, graph)
    return network, graph


class _Reader:
    """Walks the traced operations, and composes linear ones until a node is due."""

    def __init__(self, model: nn.Module, shape: Shape, explicit: bool) -> None:
        self.model, self.shape, self.explicit = model, shape, explicit
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []
        self.values: dict[fx.Node, Any] = {}

    def run(self, traced: fx.Graph) -> Graph:
        """All operations in order."""
        alive = needed_operations(traced)
        for node in traced.nodes:
            if node.op == "placeholder":
                if self.nodes:
                    raise refused("it takes more than one input")
                self.values[node] = self._start()
            elif node not in alive:
                continue
            elif node.op == "output":
                value = self.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
                if not isinstance(value, _Value):
                    raise refused("its output is not one tensor that depends on the input")
                return self._finish(value)
            elif node.op == "get_attr":
                self.values[node] = _attribute(self.model, str(node.target))
            elif node.op == "call_module":
                self.values[node] = self._layer(node)
            else:
                self.values[node] = self._function(node)
            found = self.values.get(node)
            if isinstance(found, _Value) and not math.prod(found.bias.shape):
                raise refused(f"nothing is left of a row behind {node.name}")
        raise refused("it has no output")

    def _start(self) -> _Value:
        nothing = torch.zeros(self.shape, dtype=torch.float64)
        self.nodes.append(Node("input", self.shape, None, nothing, nothing, nothing))
        return _Value(0, Identity(self.shape), nothing, nothing, nothing)

    def _finish(self, value: _Value) -> Graph:
        self._node("output", [value])
        return _pruned(self.nodes, self.edges)

    def _node(
        self, name: str, values: list[_Value], activation: Activation | None = None, window: Window | None = None
    ) -> _Value:
        """A new node that adds the values up."""
        shapes = {value.map.shape_out for value in values}
        if len(shapes) != 1:
            raise refused(f"{name} adds tensors of shapes {sorted(shapes)}")
        shape = shapes.pop()
        bias = torch.stack([value.bias for value in values]).sum(0)
        terms = torch.stack([value.bias_terms for value in values]).sum(0)
        error = torch.stack([value.bias_error for value in values]).sum(0) + gamma(len(values)) * terms
        node = Node(name, shape, activation, bias, terms, error if len(values) > 1 else values[0].bias_error, window)
        self.nodes.append(node)
        position = len(self.nodes) - 1
        self.edges += [Edge(value.node, position, value.map) for value in values]
        after = node.shape_after
        nothing = torch.zeros(after, dtype=torch.float64)
        return _Value(position, Identity(after), nothing, nothing, nothing)

    def _layer(self, node: fx.Node) -> _Value:
        name = str(node.target)
        layer = self.model.get_submodule(name)
        if len(node.all_input_nodes) != 1 or len(node.args) != 1 or node.kwargs:
            raise refused(f"layer {name} ({type(layer).__name__}) takes more than one tensor")
        value = self.values[node.all_input_nodes[0]]
        if not isinstance(value, _Value):
            raise refused(f"layer {name} ({type(layer).__name__}) does not see the input")
        shape = value.map.shape_out
        try:
            activation = elementwise(layer, shape)
            window = window_of(layer, shape)
            if window is not None and self.explicit:
                return self._cascade(name, value, window)
            if activation is not None or window is not None:
                return self._node(name, [value], activation, window)
            return _applied(value, affine_of(layer, shape))
        except Unknown as trouble:
            raise refused(f"layer {name} ({type(layer).__name__}) {trouble}") from trouble

    def _function(self, node: fx.Node) -> Any:
        """A function or method: of tensors that depend on the input, or of plain numbers."""
        name = operation_name(node)
        arguments: tuple[Any, ...] = fx.node.map_arg(node.args, lambda each: self.values[each])
        options = dict(fx.node.map_arg(node.kwargs, lambda each: self.values[each]))
        # Every function of torch calls its first tensor "input", but for cat and its like.
        first = next((word for word in ("input", "tensors") if word in options), None)
        if not arguments and first is not None:
            arguments = (options.pop(first),)
        if len(arguments) == 1 and "other" in options:
            arguments = (*arguments, options.pop("other"))
        parts = [value for value in _flat(arguments) + _flat(options) if isinstance(value, _Value)]
        if not parts:
            return _plain(node, name, arguments, options)
        if name in ("size", "dim", "getattr", "shape", "ndimension"):
            return _size(name, arguments)
        if name in ("add", "sub") and not options and len(arguments) == 2:
            return self._sum(name, arguments)
        if name in ("cat", "concat", "concatenate"):
            return self._cat(name, arguments, options)
        if name == "mul" and len(arguments) == 2 and not isinstance(arguments[0], _Value):
            arguments = arguments[::-1]
        if len(parts) != 1 or not isinstance(arguments[0], _Value):
            raise refused(f"the operation {name} of several tensors")
        try:
            found = function_of(name, parts[0].map.shape_out, arguments[1:], options)
        except (Unknown, TypeError, ValueError) as trouble:
            raise refused(f"the operation {name} {trouble}") from trouble
        if isinstance(found, Window):
            return self._cascade(name, parts[0], found) if self.explicit else self._node(name, parts, window=found)
        if isinstance(found, Activation):
            return self._node(name, parts, found)
        return _applied(parts[0], found)

    def _cascade(self, name: str, value: _Value, window: Window) -> _Value:
        """A max pooling as dense ReLU layers."""
        source = self.nodes[value.node]
        positive = (
            isinstance(value.map, Identity)
            and not bool(value.bias.any())
            and source.activation is not None
            and source.activation.name in _NOT_NEGATIVE
        )
        try:
            levels = list(pooling_levels(window, value.map.shape_out, positive))
        except Unknown as trouble:
            raise refused(f"max pooling {name} {trouble}") from trouble
        for level in levels:
            value = _applied(value, Affine(level.before))
            if level.activation is not None:
                value = self._node(f"{name} (level {level.number})", [value], level.activation)
        return value

    def _sum(self, name: str, arguments: tuple[Any, ...]) -> _Value:
        """Two tensors, or a tensor and a constant."""
        sign = -1.0 if name == "sub" else 1.0
        first, second = arguments
        if isinstance(first, _Value) and isinstance(second, _Value):
            return self._node(name, [first, second if sign > 0 else _negative(second)])
        if isinstance(first, _Value):
            return _shifted(first, sign * _constant(name, second))
        return _shifted(second if sign > 0 else _negative(second), _constant(name, first))

    def _cat(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> _Value:
        """Tensors side by side: each placed among zeros, and added."""
        values = list(arguments[0])
        axis = options.get("dim", options.get("axis", arguments[1] if len(arguments) > 1 else 0))
        if not all(isinstance(value, _Value) for value in values):
            raise refused(f"the operation {name} with a constant")
        dims = len(values[0].map.shape_out)
        axis = axis - 1 if axis > 0 else axis + dims if -dims <= axis < 0 else -1
        if axis < 0:
            raise refused(f"the operation {name} along the axis of rows")
        sizes = [value.map.shape_out[axis] for value in values]
        placed = []
        for number, value in enumerate(values):
            before, after = sum(sizes[:number]), sum(sizes[number + 1 :])
            placing = Rearrangement(_placing(axis, before, after), value.map.shape_out)
            placed.append(_applied(value, Affine(placing)))
        return self._node(name, placed)


def _placing(axis: int, before: int, after: int) -> Callable[[Tensor], Tensor]:
    """Puts zeros before and after along an axis of each row."""

    def place(rows: Tensor) -> Tensor:
        trailing = rows.dim() - 2 - axis
        return torch.nn.functional.pad(rows, (*[0, 0] * trailing, before, after))

    return place


def _applied(value: _Value, affine: Affine) -> _Value:
    """A further affine map of a value."""
    step, shift = affine.map, affine.shift
    bias = step.apply(value.bias[None])[0]
    terms, error = step.absolute().apply(torch.stack([value.bias_terms, value.bias_error]))
    # A bias that was 0 so far is still exactly 0.
    error = (error + gamma(step.roundings + 4) * terms) * (1.0 + gamma(step.roundings + 8))
    if bool(value.bias.any()):
        error = error + TINY
    if shift is not None:
        bias, terms = bias + shift, terms + (shift.abs() if affine.terms is None else affine.terms)
        if affine.terms is not None or bool(value.bias.any()):
            error = error + gamma(16) * terms
    return _Value(value.node, composed(value.map, step), bias, terms, error)


def _shifted(value: _Value, shift: Tensor | float) -> _Value:
    bias = value.bias + shift
    if bias.shape != value.bias.shape:
        raise refused("an addition that makes a tensor larger")
    terms = value.bias_terms + torch.as_tensor(shift, dtype=torch.float64).abs()
    error = value.bias_error + (gamma(2) * terms if bool(value.bias.any()) else 0.0)
    return _Value(value.node, value.map, bias, terms, error)


def _negative(value: _Value) -> _Value:
    found: Affine = function_of("neg", value.map.shape_out, (), {})
    return _applied(value, found)


def _constant(name: str, value: Any) -> Tensor | float:
    """A number, or a tensor that does not depend on the input, without its axis of rows."""
    if isinstance(value, Tensor):
        if value.dim() and value.shape[0] == 1:
            value = value[0]
        found = value.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(found).all()):
            raise refused(f"the operation {name} with NaN or infinity")
        return found
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refused(f"the operation {name} with {type(value).__name__}")
    if not math.isfinite(value):
        raise refused(f"the operation {name} with NaN or infinity")
    return float(value)


def _attribute(model: nn.Module, target: str) -> Tensor:
    """A parameter or buffer that forward uses directly."""
    found: Any = model
    for part in target.split("."):
        found = getattr(found, part)
    if not isinstance(found, Tensor):
        raise refused(f"it uses {target}, a {type(found).__name__}")
    return found.detach()


def _plain(node: fx.Node, name: str, arguments: Any, options: Any) -> Any:
    """An operation on numbers and constants, done on the spot."""
    if node.op == "call_method":
        return getattr(arguments[0], str(node.target))(*arguments[1:], **options)
    if not callable(node.target):
        raise refused(f"the operation {name}")
    return node.target(*arguments, **options)


def _size(name: str, arguments: tuple[Any, ...]) -> Any:
    """Shape questions; a row count of 1 stands for any."""
    shape = (1, *arguments[0].map.shape_out)
    if name in ("dim", "ndimension"):
        return len(shape)
    if name == "getattr":
        if arguments[1] == "shape":
            return torch.Size(shape)
        if arguments[1] == "ndim":
            return len(shape)
        raise refused(f"it asks for the attribute {arguments[1]} of a tensor")
    return torch.Size(shape) if len(arguments) == 1 else shape[arguments[1]]


def _pruned(nodes: list[Node], edges: list[Edge]) -> Graph:
    """Without nodes that no path from the input to the output passes."""
    forward, backward = {0}, {len(nodes) - 1}
    for edge in edges:
        if edge.source in forward:
            forward.add(edge.target)
    for edge in reversed(edges):
        if edge.target in backward:
            backward.add(edge.source)
    alive = sorted(forward & backward)
    if not alive or alive[0] != 0:
        raise refused("its output does not depend on its input")
    place = {old: new for new, old in enumerate(alive)}
    kept = tuple(
        Edge(place[edge.source], place[edge.target], edge.map)
        for edge in edges
        if edge.source in place and edge.target in place
    )
    return Graph(tuple(nodes[old] for old in alive), kept)


def _flat(values: Any) -> list[Any]:
    if isinstance(values, dict):
        return [part for value in values.values() for part in _flat(value)]
    if isinstance(values, list | tuple):
        return [part for value in values for part in _flat(value)]
    return [values]
