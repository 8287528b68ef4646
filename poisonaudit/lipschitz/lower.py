"""Lower bounds: the largest Jacobian norm that a network attains at some input.

Only points where the network certainly is differentiable count (see `jacobians.KINK`); by Rademacher's theorem almost
every input qualifies. The search is a sign ascent on a smoothed Jacobian from several starts; the score is always the
true one. Nothing keeps the search inside the range of the data unless a ball is given: global bounds are global too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poisonaudit.lipschitz.graph import Graph
from poisonaudit.lipschitz.jacobians import induced_norms, jacobian_rows, local_slopes, smoothed_slopes

RANDOM_STARTS = 1024
FEWEST_STARTS = 16
ASCENTS = 24
FEWEST_ASCENTS = 4
STEPS = 60
FEWEST_STEPS = 8
_BLOCK_ENTRIES = 2**22
_ASCENT_WORK = 1e10


def attained_norm(
    graph: Graph,
    norm: str,
    points: Tensor | None,
    seed: int,
    *,
    ball: tuple[Tensor, float] | None = None,
    search_work: float = _ASCENT_WORK,
) -> float:
    """The largest norm of the true Jacobian found.

    Args:
        graph: of the network.
        norm: "linf", "l1" or "l2", the induced norm.
        points: (n, *shape) to look at first; None looks at N(0, I), in a ball at uniform points.
        seed: of the random points and of the ascents.
        ball: (centre (*shape), radius): the search stays in this l_inf ball.
        search_work: multiplications that the search may take, about.

    Returns:
        A norm attained at some input (up to float64 rounding); 0 if no point qualified.
    """
    generator = torch.Generator().manual_seed(seed)
    work = max(1.0, 2.0 * graph.nodes[-1].size * sum(edge.map.work for edge in graph.edges))
    if points is None:
        count = max(FEWEST_STARTS, min(RANDOM_STARTS, int(search_work / work)))
        points = _random_points(graph, count, ball, generator)
    values = attained_norms(graph, norm, points)
    best = float(values.max())
    if not graph.activations() and all(node.window is None for node in graph.nodes):
        return max(0.0, best)  # the Jacobian is the same everywhere
    # Wide networks get fewer ascents and steps; four passes a step.
    ascents = max(FEWEST_ASCENTS, min(ASCENTS, int(search_work / (4.0 * work * FEWEST_STEPS))))
    order = values.argsort(descending=True, stable=True)[:ascents]
    starts = points[order]
    if len(starts) < ascents or float(values[order].min()) < 0.0:
        # Too few usable points (or points on kinks): add copies a little way off.
        starts = starts.repeat(math.ceil(ascents / len(starts)), *[1] * (starts.dim() - 1))[:ascents]
        noise = torch.randn(starts.shape, generator=generator, dtype=torch.float64)
        starts = torch.cat([starts, _inside(starts + 0.1 * _size(starts, ball) * noise, ball)])
    steps = max(FEWEST_STEPS, min(STEPS, int(search_work / (4.0 * work * len(starts)))))
    return max(0.0, best, _ascend(graph, norm, starts, steps, ball))


def attained_norms(graph: Graph, norm: str, points: Tensor) -> Tensor:
    """True Jacobian norm per point, (n,); -1 where differentiability is not certain."""
    outputs = graph.nodes[-1].size
    block = max(1, _BLOCK_ENTRIES // (max(node.size for node in graph.nodes) * outputs))
    found = []
    for part in points.split(block):
        local = local_slopes(graph, part)
        norms = induced_norms(jacobian_rows(graph, local.slopes, local.chosen, len(part)), norm)
        usable = local.smooth & torch.isfinite(norms)
        found.append(torch.where(usable, norms, torch.full_like(norms, -1.0)))
    return torch.cat(found)


def _ascend(graph: Graph, norm: str, starts: Tensor, steps: int, ball: tuple[Tensor, float] | None) -> float:
    """Sign ascent on the norm, jumps of slopes smoothed over a width that shrinks with the steps."""
    outputs = graph.nodes[-1].size
    block = max(1, _BLOCK_ENTRIES // (max(node.size for node in graph.nodes) * outputs))
    best = -1.0
    for part in starts.split(block):
        points, size = part.clone(), _size(part, ball)
        for step in range(steps):
            share = step / (steps - 1)
            points.requires_grad_(True)
            with torch.enable_grad():
                slopes, chosen = smoothed_slopes(graph, points, 0.3 * 0.1**share)
                total = induced_norms(jacobian_rows(graph, slopes, chosen, len(points)), norm).sum()
                # Without activations, or where no output follows the input, there is nothing to climb.
                (gradient,) = torch.autograd.grad(total, points, allow_unused=True) if total.requires_grad else (None,)
            if gradient is None:
                return best
            move = 0.3 * 0.02**share * size * gradient.nan_to_num(0.0, 0.0, 0.0).sign()
            points = _inside(points.detach() + move, ball)
            best = max(best, float(attained_norms(graph, norm, points).max()))
    return best


def _random_points(graph: Graph, count: int, ball: tuple[Tensor, float] | None, generator: torch.Generator) -> Tensor:
    shape = (count, *graph.nodes[0].shape)
    if ball is None:
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    centre, radius = ball
    return centre + radius * (2.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1.0)


def _inside(points: Tensor, ball: tuple[Tensor, float] | None) -> Tensor:
    if ball is None:
        return points
    centre, radius = ball
    return torch.minimum(torch.maximum(points, centre - radius), centre + radius)


def _size(points: Tensor, ball: tuple[Tensor, float] | None) -> Tensor:
    """The unit of the steps per point: the ball's radius, or the mean |entry| (1 at the origin)."""
    shape = (-1, *[1] * (points.dim() - 1))
    if ball is not None:
        return torch.full((len(points),), 2.0 * ball[1], dtype=torch.float64).reshape(shape)
    size = points.flatten(1).abs().mean(1)
    return torch.where(size > 0.0, size, torch.ones_like(size)).reshape(shape)
