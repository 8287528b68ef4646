"""Symbolic tracing of a network into its layers and functions, shared by those who read it piece by piece."""

from __future__ import annotations

from torch import fx, nn

# Class attributes by which a layer of one's own says what it is: a linear map, or an affine map of each channel.
_DECLARED = ("linear_map", "channel_affine")


class LayerTracer(fx.Tracer):
    """Traces into user modules; torch's own layers, and those that declare what they are, stay whole."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Leaves are torch's own layers, and those marked `linear_map` or `channel_affine`."""
        declared = any(getattr(type(module), mark, False) for mark in _DECLARED)
        return declared or super().is_leaf_module(module, name)


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
