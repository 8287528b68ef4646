"""Symbolic tracing of a network into its layers and functions, shared by those who read it piece by piece."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

# Class attributes by which a layer of one's own says what it is: a linear map, or an affine map of each channel.
_WINDOWS = ("kernel_size", "stride", "padding")
_AVERAGING = (*_WINDOWS, "ceil_mode", "count_include_pad")
_MAXIMISING = (*_WINDOWS, "dilation", "ceil_mode", "return_indices")
# Pooling as functions: the layer each is, and the options in their order.
POOLING_FUNCTIONS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "avg_pool1d": (nn.AvgPool1d, _AVERAGING),
    "avg_pool2d": (nn.AvgPool2d, (*_AVERAGING, "divisor_override")),
    "adaptive_avg_pool1d": (nn.AdaptiveAvgPool1d, ("output_size",)),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d, ("output_size",)),
    "max_pool1d": (nn.MaxPool1d, _MAXIMISING),
    "max_pool2d": (nn.MaxPool2d, _MAXIMISING),
}
_DECLARED = ("linear_map", "channel_affine")
# What may hand on the memory of its input: views, and layers that change nothing.
_SHARING_LAYERS = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
_SHARING = {
    *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel", "detach"),
    *("transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "T", "mT", "adjoint", "real"),
    *("getitem", "narrow", "select", "chunk", "split", "tensor_split", "unbind", "diagonal", "unfold"),
    *("expand", "expand_as", "broadcast_to", "contiguous", "to", "type", "double", "float", "type_as", "data"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "identity"),
    *("as_strided", "hsplit", "vsplit", "dsplit", "atleast_1d", "atleast_2d", "atleast_3d", "requires_grad_", "pad"),
}
# `a += b` and its like, by the name of the operator.
_IN_PLACE = {
    f"i{name}": name
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
}
_OVERWRITING = {*_IN_PLACE, "setitem", "delitem"}


class _Proxy(fx.Proxy):
    """Records `a += b` as what it is; torch.fx alone writes it down as `a = a + b`, though `a` changes in place."""

    def __setitem__(self, index: Any, value: Any) -> None:
        """Recorded like any operation; nothing reads its result."""
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _recorded(name: str) -> Any:
    target = getattr(operator, name)

    def method(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _operator in _IN_PLACE:
    setattr(_Proxy, f"__{_operator}__", _recorded(_operator))


class LayerTracer(fx.Tracer):
    """Traces into user modules; torch's own layers, and those that declare what they are, stay whole."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Leaves are torch's own layers, and those marked `linear_map` or `channel_affine`."""
        declared = any(getattr(type(module), mark, False) for mark in _DECLARED)
        return declared or super().is_leaf_module(module, name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A stand-in that records operations in place too."""
        return _Proxy(node, self)


def needed_operations(graph: fx.Graph) -> set[fx.Node]:
    """Operations that the output depends on."""
    found: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def overwritten(graph: fx.Graph, module: nn.Module) -> str | None:
    """What the network writes into a tensor that it reads again: one value to a reader of the graph, two when it runs.

    Args:
        graph: of the module.
        module: the network.

    Returns:
        The operation that overwrites, None if every tensor is read as it was made.
    """
    owner: dict[fx.Node, fx.Node] = {}
    version: dict[fx.Node, int] = {}
    writer: dict[fx.Node, tuple[int, str]] = {}
    alive = needed_operations(graph)
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node in alive:
            for source in inputs:
                latest, name = writer.get(owner[source], (0, ""))
                if version[source] != latest:
                    return f"{name} changes a tensor in place that {node.name} reads"
        written = _written(node, module)
        if written is not None:
            root = owner[written]
            if root.op == "get_attr":
                return f"{node.name} changes {root.target}, which belongs to the network"
            writer[root] = (writer.get(root, (0, ""))[0] + 1, node.name)
        sharing = written is not None or _shares(node, module)
        owner[node] = owner[written or inputs[0]] if sharing and inputs else node
        version[node] = writer.get(owner[node], (0, ""))[0]
    return None


def operation_name(node: fx.Node) -> str:
    """The name of a function, method or operator, the same whether it works in place: `relu_` is "relu"."""
    name = _name(node).strip("_")
    return _IN_PLACE.get(name, name)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))


def _written(node: fx.Node, module: nn.Module) -> fx.Node | None:
    """The tensor an operation writes its result into."""
    first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if node.op == "call_module":
        return first if getattr(module.get_submodule(str(node.target)), "inplace", False) else None
    if node.op not in ("call_function", "call_method"):
        return None
    name = _name(node)
    target = node.kwargs.get("out")
    if isinstance(target, fx.Node):
        return target
    first = first if first is not None else node.all_input_nodes[0] if node.all_input_nodes else None
    ending = name.endswith("_") and not name.startswith("_") and name != "requires_grad_"
    return first if ending or name.strip("_") in _OVERWRITING or _inplace(node) else None


def _inplace(node: fx.Node) -> bool:
    """Whether a function is told to work in place, by name or by position."""
    if node.kwargs.get("inplace", False):
        return True
    code = getattr(node.target, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code is not None else ()
    place = names.index("inplace") if "inplace" in names else len(node.args)
    return place < len(node.args) and node.args[place] is not False


def _shares(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), _SHARING_LAYERS)
    if _name(node) == "getattr":
        return str(node.args[1]) in _SHARING
    return node.op in ("call_function", "call_method") and _name(node).strip("_") in _SHARING
