"""How each operation of a network passes an error on, in the Euclidean norm of a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from poisonaudit.layers import SLOPES, SOFTPLUS_THRESHOLD, steepest
from poisonaudit.tracing import POOLING_FUNCTIONS, operation_name
from poisonaudit.weight_noise.gains import (
    CONVOLUTIONS,
    average_gain,
    batch_norm_gain,
    convolution_gain,
    matrix_gain,
    maximum_gain,
    overlap,
    patch_norms,
)

# Bound on |z' - z| per row, (rows,); None where nothing before is perturbed.
Error = Tensor | None
# Errors of the operation's inputs and radii of the noise by parameter -> error of its value.
Rule = Callable[[Sequence[Error], Mapping[str, float]], Error]

_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_LARGEST = (nn.MaxPool1d, nn.MaxPool2d)
# |softmax'| <= 1/2: v^T (diag p - p p^T) v is the variance of v under p, at most (max v - min v)^2 / 4 <= |v|^2 / 2.
_GAINS: dict[type[nn.Module], float] = {nn.Softmax: 0.5, nn.Flatten: 1.0, nn.Unflatten: 1.0}
# Functions and methods that rearrange, leave out or bend each row by slopes of at most 1.
_SLOPES = dict.fromkeys(("relu", "relu_", "relu6", "tanh", "hardtanh", "softplus", "clone", "contiguous"), 1.0) | {
    "sigmoid": 0.25,
    "silu": 1.0998394,
    "gelu": 1.1289931,
    "mish": 1.0884982,
}
_REARRANGING = ("flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "unflatten")
_SHAPES = ("size", "dim", "numel")


class NoBound(Exception):
    """No bound is known; says why."""


@dataclass(frozen=True)
class Known:
    """What all chunks of rows share.

    Attributes:
        names: id of a parameter -> its name.
        gains: (id of a layer, size of its input) -> bound of its operator norm, once found.
    """

    names: Mapping[int, str]
    gains: dict[tuple[int, tuple[int, ...]], float] = field(default_factory=dict)

    def gain(self, module: nn.Module, size: tuple[int, ...], find: Callable[[], float]) -> float:
        """The gain of a layer, from before or found now."""
        key = (id(module), size)
        if key not in self.gains:
            self.gains[key] = find()
        return self.gains[key]


def rule_of(reader: fx.Interpreter, node: fx.Node, given: Sequence[Any], value: Any, known: Known) -> Rule:
    """The rule of one operation at its clean values.

    Args:
        reader: holds the modules.
        node: the operation.
        given: clean values of `node.all_input_nodes`.
        value: its clean value, (rows, ...).
        known: names of the parameters, and gains found before.

    Returns:
        A function from errors and radii to an error; raises NoBound where something perturbed enters what is not
        known here.
    """
    if node.op == "placeholder":
        return lambda errors, radii: None
    if node.op == "get_attr":
        name = known.names.get(id(value), "")
        return lambda errors, radii: _constant(radii.get(name, 0.0))
    if node.op == "call_module":
        return _layer(str(node.target), reader.fetch_attr(str(node.target)), node, given, value, known)
    return _function(node, given, value)


def _constant(radius: float) -> Error:
    """The error of a parameter itself: one number for all rows."""
    return torch.tensor(radius, dtype=torch.float64) if radius > 0 else None


def _layer(path: str, module: Any, node: fx.Node, given: Sequence[Any], value: Any, known: Known) -> Rule:
    kind = type(module)
    held = [known.names.get(id(parameter), "") for parameter in module.parameters()]
    unknown = _unknown(f"layer {path} ({kind.__name__})", held)
    alone = len(given) == 1 and len(node.args) == 1 and not node.kwargs and isinstance(value, Tensor)
    if not alone or not isinstance(given[0], Tensor) or len(value) != len(given[0]):
        return unknown
    if kind is nn.Linear or kind in CONVOLUTIONS:
        return _weighted(module, given[0], value, known, unknown)
    gain = _gain_of(module, given[0])
    if gain is None:
        return unknown

    def scaled(errors: Sequence[Error], radii: Mapping[str, float]) -> Error:
        if any(radii.get(name, 0.0) > 0 for name in held):
            return unknown(errors, radii)
        return _times(gain, errors[0])

    return scaled


def _gain_of(module: Any, z: Tensor) -> float | None:
    """Bound on the slope of a layer whose parameters stay, None where none is known."""
    kind = type(module)
    if kind in SLOPES:
        return None if kind is nn.Softplus and module.threshold < SOFTPLUS_THRESHOLD else steepest(module)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.training and module.running_var is not None:
        return batch_norm_gain(module)
    if kind in _POOLS or kind in _LARGEST:
        # Without an axis of channels PyTorch takes the rows for them.
        if (
            z.dim() != (3 if kind.__name__.endswith("1d") else 4)
            or getattr(module, "divisor_override", None) is not None
        ):
            return None
        return maximum_gain(module, z.dim() - 2) if kind in _LARGEST else average_gain(module, tuple(z.shape[2:]))
    if kind is nn.Flatten and module.start_dim == 0:
        return None
    if kind in _GAINS:
        return _GAINS[kind]
    declared = getattr(kind, "linear_norm", None)
    return float(declared) if getattr(kind, "linear_map", False) and declared is not None else None


def _weighted(module: Any, z: Tensor, value: Tensor, known: Known, unknown: Rule) -> Rule:
    """`e_out <= (gain + r * reach) e + r |patches of z| + r_b sqrt(positions)` for a Linear layer or a convolution."""
    # eta as a matrix multiplies the patches under the kernel: their Frobenius norm is `patch_norms` for z, and at most
    # `reach` times that of the error for the error.
    if isinstance(module, nn.Linear):
        gain, reach = known.gain(module, (), lambda: matrix_gain(module.weight)), 1.0
        sizes = z.double().flatten(1).norm(dim=1)
    elif module.padding_mode != "zeros" or z.dim() != module.weight.dim():
        return unknown
    else:
        size = tuple(z.shape[2:])
        gain, reach = known.gain(module, size, lambda: convolution_gain(module, size)), overlap(module)
        sizes = patch_norms(module, z)
    weight = known.names.get(id(module.weight), "")
    bias = known.names.get(id(module.bias), "") if module.bias is not None else ""
    positions = value[0].numel() / len(module.weight)

    def passed(errors: Sequence[Error], radii: Mapping[str, float]) -> Error:
        radius, shift = radii.get(weight, 0.0), radii.get(bias, 0.0) * positions**0.5
        before = errors[0]
        if before is None and radius == 0.0 and shift == 0.0:
            return None
        grown = torch.zeros_like(sizes) if before is None else (gain + radius * reach) * before
        return grown + radius * sizes + shift

    return passed


def _function(node: fx.Node, given: Sequence[Any], value: Any) -> Rule:
    name = operation_name(node)
    plain = [each for each in node.args if not isinstance(each, fx.Node)]
    unknown = _unknown(f"operation {name}", [])
    if name in _SHAPES or (name == "getattr" and plain == ["shape"]):
        return lambda errors, radii: None
    tensors = [place for place, each in enumerate(given) if isinstance(each, Tensor)]
    if not isinstance(value, Tensor) or not tensors:
        return unknown
    # An operand that comes twice, as in x + x, is one input node.
    times = [_occurs(node.args, source) for source in node.all_input_nodes]
    if name == "cat" and all(len(given[place]) == len(value) for place in tensors):
        return lambda errors, radii: _joined([n**0.5 * e for n, e in zip(times, errors, strict=True) if e is not None])
    if name in ("add", "sub") and not node.kwargs:
        factors = [_repeated(each, value) for each in given]

        def added(errors: Sequence[Error], radii: Mapping[str, float]) -> Error:
            found = []
            for error, factor, count in zip(errors, factors, times, strict=True):
                if error is not None:
                    if factor is None:
                        return unknown(errors, radii)
                    found.append(count * factor * error)
            return _sum(found)

        return added
    if len(tensors) != 1 or len(value) != len(given[tensors[0]]) or times[tensors[0]] != 1:
        return unknown
    only = tensors[0]
    gain = _gain(name, node, plain, given[only], value)
    if gain is None:
        return unknown
    return lambda errors, radii: _times(gain, errors[only])


def _occurs(args: Any, source: fx.Node) -> int:
    if isinstance(args, tuple | list):
        return sum(_occurs(part, source) for part in args)
    return int(args is source)


def _gain(name: str, node: fx.Node, plain: Sequence[Any], z: Tensor, value: Tensor) -> float | None:
    """Bound on the slope of a function of one tensor and plain settings, None where none is known."""
    if name == "softplus" and not _threshold(node) >= SOFTPLUS_THRESHOLD:
        return None
    if name in _SLOPES:
        return _SLOPES[name]
    if name in ("mul", "truediv") and len(plain) == 1 and isinstance(plain[0], int | float):
        factor = abs(float(plain[0]))
        if name == "mul":
            return factor
        return 1.0 / factor if factor and isinstance(node.args[0], fx.Node) else None
    if name in _REARRANGING:
        swaps_rows = name in ("permute", "transpose") and not _keeps_rows(name, plain, z.dim())
        return None if swaps_rows or value.numel() != z.numel() else 1.0
    if name == "mean" and value.numel():
        return math.sqrt(value.numel() / z.numel())
    if name == "getitem":
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        return 1.0 if all(isinstance(part, slice | int | type(None) | type(...)) for part in index) else None
    if name == "dropout" and torch.equal(value, z):
        return 1.0
    return _pooled(name, node, z) if name in POOLING_FUNCTIONS else None


def _threshold(node: fx.Node) -> float:
    """Beyond which the function softplus is linear; NaN where the network computes it as it runs."""
    given = node.kwargs.get("threshold", node.args[2] if len(node.args) > 2 else SOFTPLUS_THRESHOLD)
    return float(given) if isinstance(given, int | float) else math.nan


def _pooled(name: str, node: fx.Node, z: Tensor) -> float | None:
    """Bound on the slope of a pooling."""
    kind, names = POOLING_FUNCTIONS[name]
    options = dict(zip(("input", *names), node.args, strict=False)) | dict(node.kwargs)
    tensor = options.pop("input", None)
    # Sizes that the network computes as it runs are nodes too.
    if not isinstance(tensor, fx.Node) or any(isinstance(each, fx.Node) for each in options.values()):
        return None
    return _gain_of(kind(**options), z)


def _keeps_rows(name: str, plain: Sequence[Any], axes: int) -> bool:
    order = list(plain[0]) if len(plain) == 1 and isinstance(plain[0], tuple | list) else list(plain)
    if not all(isinstance(axis, int) for axis in order) or not order:
        return False
    places = [axis % axes for axis in order]
    return places[0] == 0 if name == "permute" else 0 not in places


def _repeated(part: Any, whole: Tensor) -> float | None:
    """How broadcasting one operand stretches its error; None if it does not hold one row per row."""
    if not isinstance(part, Tensor):
        return None
    if isinstance(part, nn.Parameter):
        return math.sqrt(whole[0].numel() / part.numel()) if part.numel() else None
    if part.dim() != whole.dim() or len(part) != len(whole) or not part.numel():
        return None
    return math.sqrt(whole.numel() / part.numel())


def _sum(errors: Sequence[Tensor]) -> Error:
    if not errors:
        return None
    total = errors[0]
    for other in errors[1:]:
        total = total + other
    return total


def _times(gain: float, error: Error) -> Error:
    return None if error is None else gain * error


def _joined(errors: Sequence[Tensor]) -> Error:
    total = _sum([error.square() for error in errors])
    return None if total is None else total.sqrt()


def _unknown(what: str, held: Sequence[str]) -> Rule:
    def refuse(errors: Sequence[Error], radii: Mapping[str, float]) -> Error:
        if any(error is not None for error in errors) or any(radii.get(name, 0.0) > 0 for name in held):
            raise NoBound(f"no bound is known for {what}")
        return None

    return refuse
