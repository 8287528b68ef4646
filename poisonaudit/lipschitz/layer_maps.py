"""What each layer and function computes, as an affine map, an activation or a max pooling."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from poisonaudit.layers import SLOPES
from poisonaudit.lipschitz.activations import Activation, activation_of, unfit
from poisonaudit.lipschitz.functions import Unknown, layer_of
from poisonaudit.lipschitz.graph import Window
from poisonaudit.lipschitz.linear_maps import Identity, LinearMap, Matrix, Scale, Shape
from poisonaudit.lipschitz.pieces import as_tensor
from poisonaudit.lipschitz.rearrangement import Rearrangement
from poisonaudit.lipschitz.window_maps import Average, Convolution


@dataclass(frozen=True, eq=False)
class Affine:
    """A linear map and a constant.

    Attributes:
        map: the linear map.
        shift: what is added, None for nothing.
        terms: sum of the absolute values the shift was computed from; None where it stands in the model as it is.
    """

    map: LinearMap
    shift: Tensor | None = None
    terms: Tensor | None = None


_SILENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d)
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_SHUFFLES = (nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad1d, nn.ZeroPad2d)
_REARRANGEMENTS = {
    "flatten", "view", "reshape", "getitem", "permute", "transpose", "squeeze", "unsqueeze", "narrow", "contiguous",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "pad", "flip", "roll", "movedim", "select", "unflatten",
}  # fmt: skip
_SILENT_FUNCTIONS = {"dropout", "dropout1d", "dropout2d", "alpha_dropout"}


def elementwise(layer: Any, shape: Shape) -> Activation | None:
    """The activation that a layer of torch is, None if it is none.

    Args:
        layer: any.
        shape: of a row.

    Returns:
        The activation, or None.

    Raises:
        Unknown: one with a forward of its own, or with slopes without limit.
    """
    kind = type(layer)
    if kind not in SLOPES or kind in _SILENT:
        return None
    if "forward" in vars(layer):
        raise Unknown("has a forward of its own")
    if kind is nn.PReLU and layer.weight.numel() not in (1, shape[0]):
        raise Unknown(f"has {layer.weight.numel()} slopes, gets rows of shape {shape}")
    if kind is nn.PReLU and layer.weight.numel() > 1:
        layer = _ChannelSlopes(layer.weight, shape)
    if (fact := unfit(layer, kind)) is not None:
        raise Unknown(fact)
    found = activation_of(layer, kind)
    if not all(bool(torch.isfinite(end).all()) for end in found.ends(shape)):
        raise Unknown("has slopes without limit")
    return found


class _ChannelSlopes(nn.Module):
    """PReLU with one slope a channel, whatever axes come before a row's."""

    def __init__(self, weight: Tensor, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(_double(weight).reshape(-1, *[1] * (len(shape) - 1)), requires_grad=False)

    def forward(self, z: Tensor) -> Tensor:
        """Elementwise."""
        return torch.where(z > 0, z, self.weight * z)


def window_of(layer: Any, shape: Shape) -> Window | None:
    """The max pooling that a layer of torch is, None if it is none."""
    if type(layer) not in _POOLS:
        return None
    axes = 1 if isinstance(layer, nn.MaxPool1d) else 2
    if layer.return_indices or len(shape) != axes + 1:
        raise Unknown("returns positions" if layer.return_indices else f"sees rows of shape {shape}")
    kernel = _each(layer.kernel_size, axes)
    stride = kernel if layer.stride is None else _each(layer.stride, axes)
    return Window(kernel, stride, _each(layer.padding, axes), _each(layer.dilation, axes), bool(layer.ceil_mode))


def affine_of(layer: Any, shape: Shape) -> Affine:
    """The affine map of a layer in eval mode.

    Args:
        layer: any.
        shape: of a row.

    Returns:
        The map and its bias.

    Raises:
        Unknown: there is none, or no bound is proved for it.
    """
    kind = type(layer)
    if "forward" in vars(layer):
        raise Unknown("has a forward of its own")
    if kind in _SILENT:
        if layer.training and kind is not nn.Identity:
            raise Unknown("is in train mode; call eval() first")
        return Affine(Identity(shape))
    if isinstance(layer, nn.Linear) and kind.forward is nn.Linear.forward:
        return _linear(layer, shape)
    if isinstance(layer, _CONVOLUTIONS) and kind.forward in (nn.Conv1d.forward, nn.Conv2d.forward):
        return _convolution(layer, shape)
    if kind in _NORMS:
        return _norm(layer, shape)
    if kind in _AVERAGES:
        return Affine(_average(layer, shape))
    if kind in _ADAPTIVE:
        return Affine(_adaptive(layer, shape))
    if kind is nn.Flatten or kind in _SHUFFLES or kind is nn.Unflatten:
        return Affine(rearrangement(layer, shape))
    if getattr(kind, "channel_affine", False):
        return _standardisation(layer, shape)
    if getattr(kind, "linear_map", False) and not list(layer.parameters()):
        return Affine(rearrangement(layer, shape))
    raise Unknown("has no proved bound")


def function_of(name: str, shape: Shape, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The same for a function or method of one tensor.

    Args:
        name: of the function, without underscores around it.
        shape: of a row.
        arguments: after the tensor.
        options: by keyword.

    Returns:
        An Affine, an Activation or a Window.

    Raises:
        Unknown: no bound is proved for it.
    """
    layer = layer_of(name, len(shape), arguments, options)
    if layer is not None:
        found: Any = elementwise(layer, shape) or window_of(layer, shape)
        return found if found is not None else affine_of(layer, shape)
    if name in _SILENT_FUNCTIONS:
        training = options.get("training", arguments[1] if len(arguments) > 1 else True)
        if training:
            raise Unknown("is in train mode; call eval() first")
        return Affine(Identity(shape))
    if name in _REARRANGEMENTS:
        method = getattr(functional, name, None) if name == "pad" or "shuffle" in name else None
        if name == "getitem":
            return Affine(rearrangement(lambda rows: rows[arguments[0]], shape))
        if name == "pad" and options.get("value", 0) not in (0, None):
            raise Unknown("pads with a number other than 0")
        if method is None:
            return Affine(rearrangement(lambda rows: getattr(rows, name)(*arguments, **options), shape))
        return Affine(rearrangement(lambda rows: method(rows, *arguments, **options), shape))
    if name == "mean":
        return Affine(_mean(shape, arguments, options))
    if name == "neg":
        return Affine(Scale(torch.tensor(-1.0, dtype=torch.float64), shape, -1))
    if name in ("mul", "truediv", "div") and len(arguments) == 1 and not options:
        return Affine(_scaled(name, shape, arguments[0]))
    raise Unknown("has no proved bound")


def rearrangement(function: Callable[[Tensor], Tensor], shape: Shape) -> LinearMap:
    """A map that only moves entries; refused where it does anything else, or mixes rows."""
    try:
        found = Rearrangement(function, shape)
        generator = torch.Generator().manual_seed(0)
        trial = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        alone = torch.cat([function(row[None]) for row in trial])
    except (RuntimeError, IndexError, TypeError, ValueError) as trouble:
        raise Unknown(f"cannot be applied to rows of shape {shape} ({str(trouble).splitlines()[0][:80]})") from None
    if alone.shape[0] != 2 or not torch.equal(alone, found.apply(trial)):
        raise Unknown("mixes rows, or does more than move entries")
    return found


def _linear(layer: nn.Linear, shape: Shape) -> Affine:
    if shape[-1] != layer.in_features:
        raise Unknown(f"takes {layer.in_features} inputs, gets rows of shape {shape}")
    bias = None
    if layer.bias is not None:
        bias = _double(layer.bias).expand(*shape[:-1], layer.out_features)
    return Affine(Matrix(_double(layer.weight), shape[:-1]), bias)


def _convolution(layer: Any, shape: Shape) -> Affine:
    axes = len(layer.kernel_size)
    if len(shape) != axes + 1 or shape[0] != layer.in_channels:
        raise Unknown(f"takes {layer.in_channels} channels and {axes} axes, gets rows of shape {shape}")
    if layer.padding_mode != "zeros":
        raise Unknown(f"pads by {layer.padding_mode!r}; zero padding is known")
    padding = layer.padding
    if padding == "valid":
        padding = (0,) * axes
    elif padding == "same":
        spans = [step * (length - 1) for step, length in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(span % 2 for span in spans):
            raise Unknown("pads by 'same' unevenly; odd kernels are known")
        padding = tuple(span // 2 for span in spans)
    found = Convolution(
        _double(layer.weight), shape, tuple(layer.stride), tuple(padding), tuple(layer.dilation), layer.groups
    )
    if min(found.shape_out) < 1:
        raise Unknown(f"has a window larger than rows of shape {shape}")
    bias = None if layer.bias is None else _per_channel(_double(layer.bias), found.shape_out)
    return Affine(found, bias)


def _norm(layer: Any, shape: Shape) -> Affine:
    if layer.training or layer.running_mean is None:
        raise Unknown("is in train mode; call eval() first" if layer.training else "scales by statistics of its batch")
    if shape[0] != layer.num_features:
        raise Unknown(f"takes {layer.num_features} channels, gets rows of shape {shape}")
    factor = 1.0 / (_double(layer.running_var) + layer.eps).sqrt()
    shift = -_double(layer.running_mean) * factor
    terms = shift.abs()
    if layer.affine:
        weight, bias = _double(layer.weight), _double(layer.bias)
        factor, shift, terms = factor * weight, shift * weight + bias, terms * weight.abs() + bias.abs()
    if not bool(torch.isfinite(factor).all()):
        raise Unknown("divides by the root of a variance that is not positive")
    # The sum, the root (which halves errors), the quotient and the product.
    return Affine(Scale(_per_channel(factor, shape), shape, 4), _per_channel(shift, shape), _per_channel(terms, shape))


def _standardisation(layer: Any, shape: Shape) -> Affine:
    mean, deviation = (_double(layer.get_buffer(name)) for name in ("mean", "deviation"))
    factor = 1.0 / deviation
    shift = _per_channel(-mean * factor, shape)
    return Affine(Scale(_per_channel(factor, shape), shape, 1), shift, shift.abs())


def _average(layer: Any, shape: Shape) -> LinearMap:
    axes = len(shape) - 1
    kernel = _each(layer.kernel_size, axes)
    stride = kernel if layer.stride is None else _each(layer.stride, axes)
    padding = _each(layer.padding, axes)
    if getattr(layer, "divisor_override", None) is not None and layer.divisor_override < 0:
        raise Unknown("divides by a negative number")
    windows = [(hop, pad, length - 1) for hop, pad, length in zip(stride, padding, kernel, strict=True)]
    terms = math.prod(kernel)
    shared = math.prod(-(-length // hop) for length, hop in zip(kernel, stride, strict=True))
    return Average(layer, shape, terms, shared, windows)


def _adaptive(layer: Any, shape: Shape) -> LinearMap:
    sizes = layer(torch.zeros(1, *shape, dtype=torch.float64)).shape[2:]
    terms = math.prod(-(-size // out) + 1 for size, out in zip(shape[1:], sizes, strict=True))
    plain = all(size % out == 0 for size, out in zip(shape[1:], sizes, strict=True))
    spans = [size // out for size, out in zip(shape[1:], sizes, strict=True)]
    windows = [(span, 0, span - 1) for span in spans] if plain else ()
    return Average(layer, shape, terms, 1 if plain else 2 ** len(sizes), windows)


def _mean(shape: Shape, arguments: tuple[Any, ...], options: dict[str, Any]) -> LinearMap:
    axes = options.get("dim", options.get("axis", arguments[0] if arguments else None))
    keep = bool(options.get("keepdim", arguments[1] if len(arguments) > 1 else False))
    chosen = (axes,) if isinstance(axes, int) else axes
    if chosen is None or any(axis % (len(shape) + 1) == 0 for axis in chosen):
        raise Unknown("averages over rows")
    terms = math.prod(shape[axis % (len(shape) + 1) - 1] for axis in chosen)
    return Average(functools.partial(torch.mean, dim=tuple(chosen), keepdim=keep), shape, terms, 1)


def _scaled(name: str, shape: Shape, factor: Any) -> LinearMap:
    if isinstance(factor, bool) or not isinstance(factor, int | float | Tensor):
        raise Unknown("is of two tensors that depend on the input")
    # A plain number in torch's default precision would be rounded to float32.
    number = as_tensor(factor).to(torch.float64)
    if not bool(torch.isfinite(number).all()):
        raise Unknown("is by a number that is NaN or infinite")
    if number.dim() > len(shape):
        if number.shape[0] != 1:
            raise Unknown("has one number a row")
        number = number[0]
    if torch.broadcast_shapes(number.shape, shape) != shape:
        raise Unknown("makes a tensor larger")
    divides = "div" in name
    if divides and not bool((number != 0).all()):
        raise Unknown("divides by 0")
    return Scale(1.0 / number if divides else number, shape, 1 if divides else 0)


def _per_channel(values: Tensor, shape: Shape) -> Tensor:
    """One number a channel (or one for all) as a row's shape."""
    if values.numel() == 1:
        return values.reshape([1] * len(shape)).expand(shape)
    return values.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def _each(value: Any, axes: int) -> Shape:
    return (int(value),) * axes if isinstance(value, int) else tuple(int(each) for each in value)


def _double(values: Tensor) -> Tensor:
    """A detached float64 copy on the CPU; float64 holds every float32, bfloat16 and float16 number."""
    return values.detach().to("cpu", torch.float64)
