"""Euclidean operator norms, and bounds of them, of the layers that errors pass through."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from poisonaudit.weight_noise.noise import as_matrix

# Multiplications of singular values over frequencies beyond which only the cheap bound of a convolution is taken.
_FOURIER_WORK = 2e10
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def matrix_gain(weight: Tensor) -> float:
    """`|W|_2` of a parameter as a matrix."""
    return float(torch.linalg.matrix_norm(as_matrix(weight.detach()).double(), 2))


def overlap(layer: Convolution) -> float:
    """Bound on |unfold(z)| / |z|: the root of how many patches an entry of the input is in."""
    counts = (
        math.ceil(size / (stride // math.gcd(stride, dilation)))
        for size, stride, dilation in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    )
    return math.prod(counts) ** 0.5


def patch_norms(layer: Convolution, z: Tensor) -> Tensor:
    """`|unfold(z)|_F` of every row: all patches under the kernel, those that overlap counted each."""
    energy = z.double().square().sum(1, keepdim=True)
    ones = energy.new_ones(1, 1, *layer.kernel_size)
    convolve: Any = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[len(layer.kernel_size) - 1]
    found = convolve(energy, ones, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
    return found.flatten(1).sum(1).clamp_min(0.0).sqrt()


def convolution_gain(layer: Convolution, size: tuple[int, ...]) -> float:
    """Bound on the operator norm of a zero-padded convolution without its bias.

    On a torus so large that nothing wraps around, every output is one of the cyclic convolution's with that stride,
    whatever the padding. In frequencies the stride folds those that differ by multiples of 1/s onto one: the norm is
    the largest of `|[W(omega_1) ... W(omega_m)]|_2 / sqrt(m)` over the folded sets of m and the groups. The other bound
    is `|W|_2` of the kernel as a matrix times `overlap`. The smaller one counts.

    Args:
        layer: the convolution.
        size: of the input's pixels.

    Returns:
        The bound; of the kernel's exact entries, not rounded outwards.
    """
    weight = layer.weight.detach().double()
    cheap = matrix_gain(weight) * overlap(layer)
    grid = [
        -(-(n + d * (k - 1)) // s) * s
        for n, d, k, s in zip(size, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    ]
    grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
    rows, columns = grouped.shape[1:3]
    work = math.prod(grid) * layer.groups * rows * columns * min(rows, columns)
    if work > _FOURIER_WORK:
        return cheap
    spread = weight.new_zeros(*grouped.shape[:3], *grid)
    steps: Any = tuple(slice(None, d * (k - 1) + 1, d) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
    spread[(..., *steps)] = grouped
    waves = torch.fft.fftn(spread, dim=tuple(range(3, 3 + len(grid))))
    for axis, stride in enumerate(layer.stride):
        # (groups, rows, columns * stride, ...): frequencies that fold onto each other stand side by side.
        folded = waves.unflatten(3 + axis, (stride, -1)).movedim(3 + axis, 3).flatten(2, 3)
        waves = folded / stride**0.5
    return min(cheap, float(torch.linalg.matrix_norm(waves.flatten(3).permute(0, 3, 1, 2), 2).max()))


def batch_norm_gain(layer: Any) -> float:
    """Largest factor of a channel of batch normalisation with its stored statistics."""
    scale = torch.rsqrt(layer.running_var.detach().double() + layer.eps)
    return float((scale if layer.weight is None else scale * layer.weight.detach().double().abs()).max())


def average_gain(layer: Any, size: tuple[int, ...]) -> float:
    """Exact norm of average pooling: that of the one-dimensional pooling of each axis, multiplied.

    Args:
        layer: AvgPool1d, AvgPool2d, AdaptiveAvgPool1d or AdaptiveAvgPool2d.
        size: of the input's pixels.

    Returns:
        The norm.
    """
    axes = len(size)
    adaptive = isinstance(layer, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d)
    found = 1.0
    for axis, length in enumerate(size):
        eye = torch.eye(length, dtype=torch.float64).unsqueeze(1)
        if adaptive:
            wanted = each(layer.output_size, axes)[axis]
            pooled = nn.functional.adaptive_avg_pool1d(eye, length if wanted is None else wanted)
        else:
            kernel, stride, padding = (
                each(value, axes)[axis] for value in (layer.kernel_size, layer.stride, layer.padding)
            )
            pooled = nn.functional.avg_pool1d(eye, kernel, stride, padding, layer.ceil_mode, layer.count_include_pad)
        found *= float(torch.linalg.matrix_norm(pooled.flatten(1), 2))
    return found


def maximum_gain(layer: Any, axes: int) -> float:
    """Bound for max pooling: |max a - max b| <= |a - b| in each window, and an entry is in so many of them."""
    parts = [each(value, axes) for value in (layer.kernel_size, layer.stride, layer.dilation)]
    counts = (
        math.ceil(size / (stride // math.gcd(stride, dilation))) for size, stride, dilation in zip(*parts, strict=True)
    )
    return math.prod(counts) ** 0.5


def each(value: Any, count: int) -> tuple[Any, ...]:
    """A setting for each axis: one number stands for all."""
    return tuple(value) if isinstance(value, tuple | list) else (value,) * count
