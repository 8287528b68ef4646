"""Lower bounds: the largest Jacobian norm that the network attains at some input.

Only points where the network is differentiable count. A neuron whose pre-activation is within 1e-9 of a kink of
its activation (zero for ReLU), relative to the sum of the absolute terms it was computed from, may be on the kink or
on either side of it, and the point is left out (unless no path of active neurons leads there, so that it is
constant nearby). By
Rademacher's theorem almost every input qualifies. The search is a sign ascent on a smoothed Jacobian from
several starts; the score is always the true one. Nothing keeps the search inside the range of the data: the
bounds beside it are global too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from poisonaudit.errors import InputRefused
from poisonaudit.lipschitz.network import DenseNetwork, scaled
from poisonaudit.lipschitz.pieces import as_tensor

RANDOM_STARTS = 1024
FEWEST_STARTS = 32
ASCENTS = 24
FEWEST_ASCENTS = 4
STEPS = 60
FEWEST_STEPS = 10
_BLOCK_ENTRIES = 2**22
_ASCENT_WORK = 1e10
# Rounding moves a pre-activation by about 1e-16 of its terms; the rest is room for growth in deep nets.
_KINK = 1e-9


def lower_bound(network: DenseNetwork, norm: str, x: Tensor | None, seed: int) -> float:
    """The largest norm of the true Jacobian found.

    Args:
        network: the network.
        norm: "linf", "l1" or "l2", the induced norm.
        x: (n, n_0) float64 points to look at first; None looks at N(0, I).
        seed: of the random points and of the ascents.

    Returns:
        A norm attained at some input (up to float64 rounding); 0 if no point qualified.
    """
    generator = torch.Generator().manual_seed(seed)
    width = network.weights[0].shape[1]
    matrices, exponent = _scaled_matrices(network)
    work = _work(matrices)
    count = max(FEWEST_STARTS, min(RANDOM_STARTS, int(_ASCENT_WORK / work)))
    points = torch.randn(count, width, generator=generator, dtype=torch.float64) if x is None else x
    values = _attained(network, matrices, norm, points)
    best = float(values.max())
    # Otherwise the Jacobian is the same everywhere.
    if not all(activation.changes_nothing for activation in network.activations):
        # Wide networks get fewer ascents and steps; four passes a step.
        ascents = max(FEWEST_ASCENTS, min(ASCENTS, int(_ASCENT_WORK / (4.0 * work * FEWEST_STEPS))))
        order = values.argsort(descending=True, stable=True)[:ascents]
        starts = points[order]
        if len(starts) < ascents or float(values[order].min()) < 0.0:
            # Too few usable points (or points on kinks): add copies a little way off.
            starts = starts.repeat(math.ceil(ascents / len(starts)), 1)[:ascents]
            size = _size(starts)
            noise = torch.randn(starts.shape, generator=generator, dtype=torch.float64)
            starts = torch.cat([starts, starts + 0.1 * size * noise])
        steps = max(FEWEST_STEPS, min(STEPS, int(_ASCENT_WORK / (4.0 * work * len(starts)))))
        best = max(best, _ascend(network, matrices, norm, starts, steps))
    try:
        return max(0.0, math.ldexp(best, exponent))
    except OverflowError:
        return math.inf


def points_of(x: object, width: int) -> Tensor:
    """Check the user's points and flatten each row.

    Args:
        x: anything `torch.as_tensor` takes, (n, ...) with `width` entries a row.
        width: inputs of the network.

    Returns:
        (n, width) in float64 on the CPU.

    Raises:
        InputRefused: PA230, the points do not fit the network or are not finite.
    """
    try:
        points = as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputRefused("PA230", f"x is not an array of numbers ({error}). Pass (n, {width}) values.") from error
    shape = tuple(points.shape)
    if points.ndim < 2 or len(points) == 0 or points[0].numel() != width or points.is_complex():
        raise InputRefused("PA230", f"x has shape {shape}. The network takes {width} inputs. Pass rows of {width}.")
    points = points.reshape(len(points), width).to(torch.float64)
    if not bool(torch.isfinite(points).all()):
        raise InputRefused("PA230", "x holds NaN or infinity. The Jacobian has no value there. Clean the rows first.")
    return points


def _scaled_matrices(network: DenseNetwork) -> tuple[list[Tensor], int]:
    """The weights as scaled matrices and one common exponent, for Jacobian products that cannot overflow."""
    pairs = [scaled(weight) for weight in network.weights]
    return [matrix for matrix, _ in pairs], sum(power for _, power in pairs)


def _work(matrices: Sequence[Tensor]) -> float:
    """Multiplications and additions behind the Jacobian at one point."""
    return 2.0 * min(matrices[0].shape[1], matrices[-1].shape[0]) * sum(matrix.numel() for matrix in matrices)


def _attained(network: DenseNetwork, matrices: Sequence[Tensor], norm: str, points: Tensor) -> Tensor:
    """True Jacobian norm per point, (n,), scaled; -1 where differentiability is not certain."""
    widest = max(max(matrix.shape) for matrix in matrices)
    outer = min(matrices[0].shape[1], matrices[-1].shape[0])
    block = max(1, _BLOCK_ENTRIES // (widest * outer))
    values = []
    for part in torch.tensor_split(points, math.ceil(len(points) / block)):
        slopes, smooth = _slopes(network, part)
        norms = _norms(_jacobian(matrices, slopes, len(part)), norm)
        values.append(torch.where(smooth & torch.isfinite(norms), norms, torch.full_like(norms, -1.0)))
    return torch.cat(values)


def _slopes(network: DenseNetwork, points: Tensor) -> tuple[list[Tensor], Tensor]:
    """Derivatives of the activations at each point, and whether the point certainly is off every kink."""
    h = points
    smooth = torch.ones(len(points), dtype=torch.bool)
    moving = torch.ones_like(points)  # 1 where a neuron may depend on the input near the point
    slopes = []
    for weight, bias, activation in zip(network.weights, network.biases, network.activations, strict=False):
        z = h @ weight.T + bias
        terms = h.abs() @ weight.abs().T + bias.abs()
        moving = (moving @ (weight != 0.0).to(torch.float64).T > 0.0).to(torch.float64)
        slope = activation.slopes(z)
        for kink in activation.kinks:
            certain = ((z - kink).abs() > _KINK * (terms + abs(kink))) | (moving == 0.0)
            smooth &= certain.all(1)
        smooth &= torch.isfinite(z).all(1)
        moving = moving * (~activation.constant(slope)).to(torch.float64)
        h = activation.module(z)
        slopes.append(slope)
    return slopes, smooth


def _jacobian(matrices: Sequence[Tensor], slopes: Sequence[Tensor], count: int) -> Tensor:
    """`W_l D_l ... D_1 W_0` per point, (count, n_(l+1), n_0), multiplied from the narrower end."""
    if matrices[-1].shape[0] <= matrices[0].shape[1]:
        product = matrices[-1].expand(count, -1, -1)
        for matrix, slope in zip(reversed(matrices[:-1]), reversed(slopes), strict=True):
            product = (product * slope[:, None, :]) @ matrix
        return product
    product = matrices[0].expand(count, -1, -1)
    for matrix, slope in zip(matrices[1:], slopes, strict=True):
        product = matrix @ (slope[:, :, None] * product)
    return product


def _norms(jacobian: Tensor, norm: str) -> Tensor:
    """Induced norm per point: largest absolute row sum (linf), column sum (l1) or singular value (l2)."""
    if norm == "l2":
        if not bool(torch.isfinite(jacobian).all()):  # the decomposition would raise
            finite = torch.isfinite(jacobian).flatten(1).all(1)
            norms = _norms(jacobian.where(finite[:, None, None], torch.zeros(())), norm)
            return norms.where(finite, torch.full_like(norms, math.inf))
        return torch.linalg.matrix_norm(jacobian, 2)
    return jacobian.abs().sum(2 if norm == "linf" else 1).amax(1)


def _ascend(network: DenseNetwork, matrices: Sequence[Tensor], norm: str, starts: Tensor, steps: int) -> float:
    """Sign ascent on the Jacobian norm, kinks smoothed to sigmoids that sharpen as the steps shrink."""
    points = starts.clone()
    size = _size(points)
    best = -1.0
    for step in range(steps):
        share = step / (steps - 1)
        points.requires_grad_(True)
        slopes = _smoothed(network, points, width=0.3 * 0.1**share)
        total = _norms(_jacobian(matrices, slopes, len(points)), norm).sum()
        (gradient,) = torch.autograd.grad(total, points)
        with torch.no_grad():
            points = points.detach() + 0.3 * 0.02**share * size * gradient.nan_to_num(0.0, 0.0, 0.0).sign()
            best = max(best, float(_attained(network, matrices, norm, points).max()))
    return best


def _size(points: Tensor) -> Tensor:
    """Mean |entry| per point, the unit of the steps, (n, 1); 1 for a point at the origin."""
    size = points.abs().mean(1, keepdim=True)
    return torch.where(size > 0.0, size, torch.ones_like(size))


def _smoothed(network: DenseNetwork, points: Tensor, width: float) -> list[Tensor]:
    """Differentiable stand-ins for the slopes; a kink spreads over `width` times the layer's mean |z|."""
    h, slopes = points, []
    for weight, bias, activation in zip(network.weights, network.biases, network.activations, strict=False):
        z = h @ weight.T + bias
        spread = width * z.detach().abs().mean(1, keepdim=True).clamp_min(1e-300)
        h, slope = activation.smoothed(z, spread)
        slopes.append(slope)
    return slopes
