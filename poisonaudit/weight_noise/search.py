"""The worst noise that can be found: projected gradient ascent, a lower bound of the worst case."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import vmap

from poisonaudit.arguments import whole_number
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.weight_noise.bounds import read_bounds, together
from poisonaudit.weight_noise.curve import TOGETHER
from poisonaudit.weight_noise.intervals import mean_of_roots
from poisonaudit.weight_noise.jacobians import pull_back, top_directions
from poisonaudit.weight_noise.network import Network, Parameters, entries_of, read_network
from poisonaudit.weight_noise.noise import Norm, as_matrix, checked_settings, noise_source
from poisonaudit.weight_noise.sampling import sample

if TYPE_CHECKING:
    import pandas as pd

# Entries of noise and layer outputs that are searched together: 64 MiB in float64.
_ENTRIES = 2**23
COLUMNS = ("layer", "first_order", "found", "bound", "rms_sampled", "found_over_rms", "found_over_bound")


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        values: (rows,), |dv| at the best noise.
        noise: by name (rows, *shape), that noise.
        start: (rows,), from which start it came: 0 and 1 are plus and minus the first-order direction.
    """

    values: Tensor
    noise: Mapping[str, Tensor] = field(repr=False)
    start: Tensor


def worst_case_search(
    model: nn.Module,
    x: Tensor,
    rho: float = 0.1,
    seed: int = 0,
    *,
    starts: int = 4,
    steps: int = 40,
    draws: int = 64,
    parameters: Parameters = "matrices",
    norm: Norm = "frobenius",
    layers: bool = True,
) -> pd.DataFrame:
    """How far chosen noise of the same size gets, beside random noise and the proved bound.

    For every input on its own, `|dv|` is maximised over `|eta| = rho |W|`. Random and worst-case noise are different
    questions: the first grows with `|J|_F / sqrt(numel W)`, the second with `|J|_2`. Errors: as `weight_noise`, and
    UsageError PA321 for bad starts or steps.

    Args:
        model: any network in eval mode; it is not modified.
        x: inputs (batch, ...), few: each is searched by itself.
        rho: noise norm per weight norm.
        seed: of random starts and of the random noise beside it.
        starts: of every search, at least 2: plus and minus the first-order direction, then random ones.
        steps: of every start, one forward and backward pass each.
        draws: of random noise.
        parameters: which are perturbed, as for `weight_noise`.
        norm: of the matrices: "frobenius" or "spectral".
        layers: whether to search each matrix alone as well as all at once.

    Returns:
        A row per matrix, then "all at once"; means over the inputs of `first_order` (what the first-order worst noise
        would do if the network were linear in it), `found` (|dv| attained: a lower bound of the worst case), `bound`
        (NaN where none is known), `rms_sampled`, and the ratios of those means. Computed in float64, whatever the
        model's dtype: in float32 rounding alone exceeds a bound that is attained, as it is in a last layer.
    """
    import pandas as pd

    rho, draws, seed = checked_settings(rho, draws, norm, seed)
    for word, value, least in (("starts", starts, 2), ("steps", steps, 1)):
        if (whole_number(value) or 0) < least:
            raise UsageError("PA321", f"{word} is {value!r}. Give a whole number of at least {least}.")
    network = _in_float64(model, x, parameters)
    noise = noise_source(network.values, network.names, norm, seed)
    bounds = read_bounds(network)
    slopes, directions, every = top_directions(network)
    groups = [([name], name) for name in network.names] if layers else []
    records = []
    for names, label in [*groups, (list(network.names), TOGETHER)]:
        radii = {name: rho * noise.sizes[name] for name in names}
        if label == TOGETHER:
            aimed, expected = joint_direction(network, every, radii)
        else:
            aimed, expected = directions, slopes[network.names.index(label)] * radii[label]
        found = search(network, radii, {name: aimed[name] for name in names}, norm, seed, starts, steps)
        bound, _ = together(bounds, {name: noise.sizes[name] for name in names}, rho, len(network.x))
        rms = mean_of_roots(sample(network, noise, names, [rho], draws).squares[0]).value
        best, limit = float(found.values.mean()), float(bound.mean())
        of_rms, of_bound = best / rms if rms else 0.0, best / limit if limit else 0.0
        records.append((label, float(expected.mean()), best, limit, rms, of_rms, of_bound))
    frame = pd.DataFrame.from_records(records, columns=list(COLUMNS))
    frame.attrs.update(rho=rho, norm=norm, starts=starts, steps=steps, draws=draws, seed=seed, inputs=len(network.x))
    frame.attrs["dtype"] = str(network.outputs.dtype).removeprefix("torch.")
    return frame


def _in_float64(model: nn.Module, x: Tensor, parameters: Parameters) -> Network:
    """The network in float64, if it runs there."""
    network = read_network(model, x, parameters)
    if network.outputs.dtype == torch.float64:
        return network
    try:
        return read_network(copy.deepcopy(model).double(), x.double() if x.is_floating_point() else x, parameters)
    except (InputRefused, TypeError, RuntimeError):
        return network


def joint_direction(network: Network, every: Tensor, radii: Mapping[str, float]) -> tuple[dict[str, Tensor], Tensor]:
    """A first-order worst noise in all parameters at once, and what it would do if the network were linear in it.

    With u fixed, `sum_i <u, J_i eta_i>` is largest at `eta_i = r_i J_i^T u / |J_i^T u|`; u is the leading eigenvector
    of `sum_i r_i^2 J_i J_i^T`.

    Args:
        network: with few rows.
        every: (parameters, rows, c, c), `J_i J_i^T`.
        radii: r_i by name, in the order of `every`.

    Returns:
        `(directions, lengths)`: unit noise by name, (rows, *shape); `|sum_i J_i eta_i|` is at least `<u, .>`, (rows,).
    """
    weights = torch.tensor(list(radii.values()), dtype=every.dtype, device=every.device)
    mixed = (every * weights.square().view(-1, 1, 1, 1)).sum(0)
    leading = torch.linalg.eigh(mixed).eigenvectors[..., -1]
    pulled = pull_back(network, leading.to(network.outputs), list(radii))
    lengths = [radius * pulled[name].flatten(1).double().norm(dim=1) for name, radius in radii.items()]
    scaled = {name: _scaled(part, 1.0, "frobenius") for name, part in pulled.items()}
    return scaled, torch.stack(lengths).sum(0)


def search(
    network: Network,
    radii: Mapping[str, float],
    aimed: Mapping[str, Tensor],
    norm: Norm,
    seed: int,
    starts: int,
    steps: int,
) -> Found:
    """Maximise |dv| of every row over `|eta_i| = r_i`.

    Each step moves from eta toward the largest point of the linearised objective on the sphere (`r G / |G|_F`, in the
    spectral norm `r U V^T` of the singular vectors of the gradient G), by a share that is halved when nothing is gained
    and doubled when something is: with the whole step it is the power iteration, monotone where `|dv|^2` is convex.

    Args:
        network: with few rows.
        radii: r_i by name.
        aimed: by name (rows, *shape), the direction of the first two starts.
        norm: of the sphere.
        seed: of the other starts.
        starts: per row.
        steps: per start.

    Returns:
        The best noise of every row over all starts and steps.
    """
    names, rows = list(radii), len(network.x)
    held = entries_of(network.values, names) + network.activations
    chunk = max(1, _ENTRIES // held)
    best = network.outputs.new_full((rows,), -1.0, dtype=torch.float64)
    start_of = torch.zeros(rows, dtype=torch.long)
    kept = {name: torch.zeros(rows, *network.values[name].shape).to(network.values[name]) for name in names}
    for start in range(starts):
        for first in range(0, rows, chunk):
            part = torch.arange(first, min(first + chunk, rows))
            begin = {name: _begin(network, name, aimed[name][part], radii[name], norm, seed, start) for name in names}
            found, noise = _climb(network, part, begin, radii, norm, steps)
            better = part[(found > best[part]).cpu()]
            chosen = better - first
            best[better], start_of[better] = found[chosen], start
            for name in names:
                kept[name][better] = noise[name][chosen]
    return Found(best, kept, start_of)


def _begin(network: Network, name: str, aimed: Tensor, radius: float, norm: Norm, seed: int, start: int) -> Tensor:
    if start < 2:
        return _scaled(aimed if start == 0 else -aimed, radius, norm)
    generator = torch.Generator().manual_seed(seed * 1000 + start)
    drawn = torch.randn(network.values[name].shape, generator=generator, dtype=torch.float64).to(aimed)
    return _scaled(drawn.expand_as(aimed).clone(), radius, norm)


def _climb(
    network: Network, part: Tensor, noise: dict[str, Tensor], radii: Mapping[str, float], norm: Norm, steps: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Ascent of some rows from one start each."""
    x, clean = network.x[part], network.outputs[part]
    values, slopes = _slopes(network, noise, x, clean)
    share = torch.ones_like(values)
    for _ in range(steps):
        trial = {}
        for name, eta in noise.items():
            goal = _furthest(slopes[name], eta, radii[name], norm)
            trial[name] = _scaled(eta + _wide(share, eta) * (goal - eta), radii[name], norm)
        reached, steeper = _slopes(network, trial, x, clean)
        gained = reached > values
        values = torch.where(gained, reached, values)
        for name in noise:
            mask = _wide(gained, noise[name])
            noise[name] = torch.where(mask, trial[name], noise[name])
            slopes[name] = torch.where(mask, steeper[name], slopes[name])
        share = torch.where(gained, (2.0 * share).clamp_max(1.0), 0.5 * share)
        if float(share.max()) < 1e-6:
            break
    return values.sqrt(), noise


def _slopes(
    network: Network, noise: Mapping[str, Tensor], x: Tensor, clean: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """`|dv|^2` of every row with its own noise, float64, and its gradients in the noise."""
    leaves = {name: value.detach().requires_grad_(True) for name, value in noise.items()}
    with torch.enable_grad():
        moved = {name: network.values[name] + eta for name, eta in leaves.items()}
        if len(x) == 1 or not network.batches:
            parts = [
                network.at({n: value[row] for n, value in moved.items()}, x[row : row + 1]) for row in range(len(x))
            ]
            outputs = torch.cat(parts)
        else:
            outputs = vmap(lambda values, row: network.at(values, row.unsqueeze(0))[0])(moved, x)
        squares = (outputs - clean).square().sum(1)
        found = torch.autograd.grad(squares.sum(), list(leaves.values()), materialize_grads=True)
    return squares.detach().double(), dict(zip(leaves, found, strict=True))


def _furthest(slope: Tensor, eta: Tensor, radius: float, norm: Norm) -> Tensor:
    """The point of the ball that goes furthest along the gradient; where that is zero, where we are."""
    if norm == "frobenius":
        goal = _scaled(slope, radius, norm)
    else:
        left, values, right = torch.linalg.svd(torch.stack([as_matrix(each) for each in slope]), full_matrices=False)
        alive = (values > 1e-12 * values[:, :1]).to(left)
        goal = radius * ((left * alive.unsqueeze(1)) @ right).reshape(slope.shape)
    still = slope.flatten(1).norm(dim=1) == 0
    return torch.where(_wide(still, eta), eta, goal)


def _scaled(values: Tensor, radius: float, norm: Norm) -> Tensor:
    """Each row of (rows, *shape) brought to the norm; rows of zeros stay."""
    if norm == "frobenius":
        sizes = values.flatten(1).norm(dim=1)
    else:
        sizes = torch.linalg.matrix_norm(torch.stack([as_matrix(each) for each in values]), 2)
    return torch.where(_wide(sizes > 0, values), values * _wide(radius / sizes, values), torch.zeros_like(values))


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """(rows,) with as many axes as `like`, and of its type unless it is a mask."""
    found = values.view(-1, *[1] * (like.dim() - 1))
    return found if values.dtype == torch.bool else found.to(like)
