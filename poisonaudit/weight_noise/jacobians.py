"""Exact Jacobians of the outputs in each parameter, per row, as c x c Gram matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poisonaudit.weight_noise.network import Network, watching

# Entries of Jacobians, gradients and unfolded inputs held at once: 256 MiB in float64.
_ENTRIES = 2**25
# More entries than this for one row do not fit: 1 GiB in float64.
FITS = 2**27
# Relative difference to plain backpropagation beyond which a layer is not what its class says.
_SAME = {torch.float64: 1e-7, torch.float32: 1e-2}
_Layer = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class Grams:
    """`J_i J_i^T` with `J_i = dv/dW_i`, (c, numel of W_i), for some rows.

    Attributes:
        rows: which rows.
        values: (parameters, rows, c, c), float64.
    """

    rows: slice
    values: Tensor


def fits(network: Network) -> bool:
    """Whether exact Jacobians of one row fit in memory: c times the layers' outputs and c times the largest matrix."""
    outputs = network.outputs.shape[1]
    largest = max(network.values[name].numel() for name in network.names)
    return outputs * max(network.activations, largest) <= FITS


def grams(network: Network) -> Iterator[Grams]:
    """Exact Gram matrices of all rows, as many rows at a time as memory allows.

    A Linear layer or convolution computes `h_t = W z_t` at every position t of its output (one position for a plain
    layer; z_t is the patch under the kernel), so `J[a, (o, k)] = sum_t B[a, (o, t)] z[k, t]` with `B = dv/dh`: one
    backward pass per output gives B of all layers and rows at once. With one position it is
    `J J^T = |z|^2 B B^T`, hence `|J|_F = |B|_F |z|` and `|J|_2 = |B|_2 |z|`. Each parameter found this way is compared
    with plain backpropagation; what is used otherwise (functions of parameters, norms, attention) is differentiated
    row by row.

    Args:
        network: what to differentiate.

    Yields:
        Matrices of consecutive rows.
    """
    layers = _layers(network)
    found = {name for name, uses in layers.items() if uses}
    outputs = network.outputs.shape[1]
    largest = max(network.values[name].numel() for name in network.names)
    # Patches of a 3 x 3 kernel are nine times its input; B and J come once per output.
    per_row = outputs * (network.activations + largest) + 9 * network.activations
    for place, rows in enumerate(network.chunks(per_row, _ENTRIES)):
        taken, unlike = _by_layer(network, {n: layers[n] for n in found}, rows, check=place == 0)
        found -= unlike
        rest = [name for name in network.names if name not in found]
        taken |= _by_row(network, rest, rows)
        yield Grams(rows, torch.stack([taken[name] for name in network.names]))


def top_directions(network: Network) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The first-order worst noise of every row, for each parameter alone.

    Args:
        network: with few rows; each takes c backward passes.

    Returns:
        `(slopes, directions, grams)`: (parameters, rows) `|J_i|_2`; by name (rows, *shape) the unit right singular
        vector `J_i^T u / |J_i^T u|`, zero where the slope is; (parameters, rows, c, c).
    """
    every = torch.cat([part.values for part in grams(network)], dim=1)
    values, vectors = torch.linalg.eigh(every)
    leading = vectors[..., -1].to(network.outputs)  # (parameters, rows, c)
    pulled = [pull_back(network, leading[i], [name])[name] for i, name in enumerate(network.names)]
    directions = {name: unit_rows(part) for name, part in zip(network.names, pulled, strict=True)}
    return values[..., -1].clamp_min(0.0).sqrt(), directions, every


def pull_back(network: Network, weights: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """`J_i^T u` of every row: by name (rows, *shape). weights: (rows, c), u."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for row in range(len(network.x)):
        leaves = _leaves(network, names)
        with torch.enable_grad():
            value = (network.at(leaves, network.x[row : row + 1]) * weights[row : row + 1]).sum()
            slopes = _slopes(value, leaves)
        for name, slope in zip(names, slopes, strict=True):
            found[name].append(slope)
    return {name: torch.stack(parts) for name, parts in found.items()}


def unit_rows(values: Tensor) -> Tensor:
    """Each row of (rows, ...) divided by its norm; rows of zeros stay."""
    norms = values.flatten(1).norm(dim=1).view(-1, *[1] * (values.dim() - 1))
    return torch.where(norms > 0, values / norms, torch.zeros_like(values))


def _leaves(network: Network, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: network.values[name].detach().requires_grad_(True) for name in names}


def _slopes(value: Tensor, leaves: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a number; zero in parameters that do not enter it."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves.values())
    return torch.autograd.grad(value, list(leaves.values()), retain_graph=True, materialize_grads=True)


def _layers(network: Network) -> dict[str, list[_Layer]]:
    """By name the layers that use a parameter as their weight, if all who hold it are Linear or plain convolutions."""
    names = {id(value): name for name, value in network.model.named_parameters()}
    holders: dict[str, list[_Layer]] = {name: [] for name in network.names}
    other = set()
    for module in network.model.modules():
        for key, value in module._parameters.items():
            name = names.get(id(value)) if value is not None else None
            if name is None or name not in holders:
                continue
            if key == "weight" and _plain(module):
                holders[name].append(module)  # type: ignore[arg-type]
            else:
                other.add(name)
    return {name: [] if name in other else found for name, found in holders.items()}


def _plain(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return False


def _by_layer(
    network: Network, layers: Mapping[str, Sequence[_Layer]], rows: slice, *, check: bool
) -> tuple[dict[str, Tensor], set[str]]:
    """Gram matrices of parameters that layers apply, and names of those that are used some other way as well."""
    if not layers:
        return {}, set()
    owner = {id(module): name for name, modules in layers.items() for module in modules}
    calls: list[tuple[str, _Layer, Tensor, Tensor]] = []
    unlike: set[str] = set()
    count = len(network.x[rows])

    def note(module: _Layer, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        name = owner[id(module)]
        if given and len(given[0]) != count:
            unlike.add(name)  # tokens of all rows in one batch, or in front of the rows
        elif given:  # what came by name is missed here, and found out by the comparison
            calls.append((name, module, given[0].detach(), output))
        # What follows may work in place; the recorded output has to stay what the layer computed.
        return output.clone()

    watched = list({id(module): module for modules in layers.values() for module in modules}.values())
    leaves = _leaves(network, list(layers))
    with torch.enable_grad():
        with watching(note, watched):
            outputs = network.at(leaves, network.x[rows])
        calls = [call for call in calls if call[0] not in unlike]
        if not calls or not outputs.requires_grad:
            return {}, set(layers)
        results = [output for *_, output in calls]
        slopes: list[list[Tensor]] = [[] for _ in calls]
        for column in range(outputs.shape[1]):
            parts = torch.autograd.grad(outputs[:, column].sum(), results, retain_graph=True, materialize_grads=True)
            for kept, part in zip(slopes, parts, strict=True):
                kept.append(part)
        reference = _reference(outputs, leaves) if check else {}
    uses: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers if name not in unlike}
    for (name, module, given, _), kept in zip(calls, slopes, strict=True):
        uses[name].append((_outgoing(module, torch.stack(kept, 1)), _entering(module, given)))
    probe = _probe(outputs)
    unlike |= {
        name
        for name, wanted in reference.items()
        if name in uses and not _agree(_sum_of_uses(uses[name], probe, wanted), wanted, len(outputs))
    }
    return {name: _gram(used, outputs) for name, used in uses.items() if name not in unlike}, unlike


def _outgoing(module: _Layer, slopes: Tensor) -> Tensor:
    """(rows, c, *output) to (rows, c, groups, outputs of a group, positions)."""
    rows, outputs = slopes.shape[:2]
    if isinstance(module, nn.Linear):
        return slopes.reshape(rows, outputs, 1, -1, slopes.shape[-1]).transpose(3, 4)
    return slopes.reshape(rows, outputs, module.groups, module.out_channels // module.groups, -1)


def _entering(module: _Layer, given: Tensor) -> Tensor:
    """What the weight multiplies: (rows, groups, entries of the weight per output, positions)."""
    rows = len(given)
    if isinstance(module, nn.Linear):
        return given.reshape(rows, 1, -1, given.shape[-1]).transpose(2, 3)
    if isinstance(module, nn.Conv1d):
        given, sizes = given.unsqueeze(2), [(1, n) for n in (*module.kernel_size, *module.dilation, *module.stride)]
        patches = nn.functional.unfold(given, sizes[0], sizes[1], (0, int(module.padding[0])), sizes[2])
    else:
        padding = (int(module.padding[0]), int(module.padding[1]))
        patches = nn.functional.unfold(given, module.kernel_size, module.dilation, padding, module.stride)
    return patches.reshape(rows, module.groups, -1, patches.shape[-1])


def _gram(uses: Sequence[tuple[Tensor, Tensor]], outputs: Tensor) -> Tensor:
    """(rows, c, c) of the sum of the Jacobians of all uses."""
    if not uses:
        return outputs.new_zeros(*outputs.shape, outputs.shape[1], dtype=torch.float64)
    first, entering = uses[0]
    if len(uses) == 1 and first.shape[2] == first.shape[-1] == 1:
        slopes = first.flatten(2).double()
        return slopes @ slopes.transpose(1, 2) * entering.double().square().sum((1, 2, 3)).view(-1, 1, 1)
    jacobian = torch.stack([_jacobian(out, into) for out, into in uses]).sum(0)
    return (jacobian @ jacobian.transpose(1, 2)).double()


def _jacobian(out: Tensor, into: Tensor) -> Tensor:
    """(rows, c, entries of the weight): outputs of all c together, as one product per row and group."""
    rows, outputs, groups, channels, positions = out.shape
    stacked = out.transpose(1, 2).reshape(rows, groups, outputs * channels, positions)
    product = (stacked @ into.transpose(2, 3)).view(rows, groups, outputs, -1)
    return product.transpose(1, 2).flatten(2)


def _probe(outputs: Tensor) -> Tensor:
    """A weight for every row and output, to compare two ways of differentiating."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)


def _reference(outputs: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`sum over rows of J^T u` by plain backpropagation."""
    return dict(zip(leaves, _slopes((outputs * _probe(outputs)).sum(), leaves), strict=True))


def _sum_of_uses(uses: Sequence[tuple[Tensor, Tensor]], weights: Tensor, like: Tensor) -> Tensor:
    """`sum over rows of J^T u` from outgoing slopes and entering patches. weights: (rows, c), u."""
    total = torch.zeros_like(like)
    for out, into in uses:
        mixed = (out * weights.view(*weights.shape, 1, 1, 1)).sum(1)
        total = total + (mixed @ into.transpose(2, 3)).sum(0).reshape(like.shape)
    return total


def _agree(found: Tensor, wanted: Tensor, rows: int) -> bool:
    limit = _SAME.get(wanted.dtype, 1e-1) * float(wanted.norm()) + 1e-30 * rows
    return float((found - wanted).norm()) <= limit


def _by_row(network: Network, names: Sequence[str], rows: slice) -> dict[str, Tensor]:
    """Gram matrices of any parameters: one backward pass for every row and output."""
    if not names:
        return {}
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for row in network.x[rows]:
        leaves = _leaves(network, names)
        with torch.enable_grad():
            outputs = network.at(leaves, row.unsqueeze(0))[0]
            slopes = [_slopes(output, leaves) for output in outputs]
        for place, name in enumerate(names):
            jacobian = torch.stack([part[place].flatten() for part in slopes]).double()
            found[name].append(jacobian @ jacobian.T)
    return {name: torch.stack(parts) for name, parts in found.items()}
