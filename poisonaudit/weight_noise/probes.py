"""Where exact Jacobians do not fit: unbiased squared norms from random directions, spectral norms by Lanczos."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp, vjp

from poisonaudit.errors import NumericalFailure
from poisonaudit.weight_noise.network import Network, plain_attention
from poisonaudit.weight_noise.noise import gaussian


def push(network: Network, directions: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """`sum_i J_i E_i` of every row: (rows, c), in one forward pass of dual numbers, or two backward ones.

    Args:
        network: what to differentiate.
        directions: E_i by name, shaped like the parameters.
        rows: inputs.

    Returns:
        The directional derivative.
    """
    point = {name: network.values[name] for name in directions}
    moved = {name: value.to(network.values[name]) for name, value in directions.items()}
    with plain_attention(), warnings.catch_warnings():
        # Forward mode in torch 2.15 compiles its decompositions with a deprecated part of itself.
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        try:
            found: Any = jvp(lambda values: network.at(values, rows), (point,), (moved,))
            tangent: Tensor = found[1]
        except (NotImplementedError, RuntimeError):
            tangent = _pushed_backwards(network, point, moved, rows)
    return tangent


def squared_norms(network: Network, probes: int, seed: int) -> Tensor:
    """Squared directional derivatives `|J_i G_k|^2` along Gaussian directions: their mean over k is `|J_i|_F^2`.

    Args:
        network: what to differentiate.
        probes: directions per parameter; one serves all rows, so that probes are the independent units.
        seed: of the directions.

    Returns:
        (parameters, probes, rows), float64.
    """
    found = []
    for name in network.names:
        shape = tuple(network.values[name].shape)
        for probe in range(probes):
            direction = gaussian(shape, seed, f"probe of {name}", probe)
            parts = [
                push(network, {name: direction}, network.x[rows]) for rows in network.chunks(2 * network.activations)
            ]
            found.append(torch.cat(parts).double().square().sum(1))
    return torch.stack(found).reshape(len(network.names), probes, -1)


def spectral_norms(network: Network, tolerance: float = 1e-10) -> Tensor:
    """`|J_i|_2` of every parameter and row: the root of the largest eigenvalue of `u -> J_i (J_i^T u)`, by Lanczos.

    Each step is one backward pass and one forward pass of dual numbers of a single row.

    Args:
        network: what to differentiate.
        tolerance: relative, of the eigenvalue.

    Returns:
        (parameters, rows), float64.

    Raises:
        NumericalFailure: PA404, Lanczos did not converge.
    """
    found = [
        [_largest(network, name, network.x[row : row + 1], tolerance) for row in range(len(network.x))]
        for name in network.names
    ]
    return torch.tensor(found, dtype=torch.float64, device=network.x.device)


def _largest(network: Network, name: str, row: Tensor, tolerance: float) -> float:
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    def outputs_at(value: Tensor) -> Tensor:
        return network.at({name: value}, row)[0]

    weight = network.values[name]
    with plain_attention():
        linearised: Any = vjp(outputs_at, weight)
    outputs, pull = linearised

    def product(vector: Any) -> Any:
        u = torch.as_tensor(np.asarray(vector).reshape(-1), dtype=outputs.dtype, device=outputs.device)
        (slope,) = pull(u)
        return push(network, {name: slope}, row)[0].detach().double().cpu().numpy()

    count = outputs.numel()
    start = gaussian((count,), 0, "start", 0).numpy()
    if not float(torch.as_tensor(product(start)).norm()) > 0:
        return 0.0
    if count < 3:  # ARPACK wants more outputs than eigenvalues
        dense = np.stack([product(column) for column in np.eye(count)])
        return float(np.sqrt(max(np.linalg.eigvalsh((dense + dense.T) / 2)[-1], 0.0)))
    operator = LinearOperator((count, count), matvec=product, dtype=np.float64)
    rounding = 1e-6 if outputs.dtype == torch.float32 else 0.0
    try:
        values = eigsh(operator, k=1, which="LA", v0=start, tol=max(tolerance, rounding), return_eigenvectors=False)
    except ArpackNoConvergence as trouble:
        raise NumericalFailure(
            "PA404", f"Lanczos did not find the largest singular value of dv/d{name}. Use fewer rows, or float64."
        ) from trouble
    return float(np.sqrt(max(float(values[-1]), 0.0)))


def _pushed_backwards(network: Network, point: dict[str, Tensor], moved: dict[str, Tensor], rows: Tensor) -> Tensor:
    """J E as the derivative of `s -> <J^T s, E>`: for operations without a forward-mode rule."""
    leaves = {name: value.detach().requires_grad_(True) for name, value in point.items()}
    with torch.enable_grad():
        outputs = network.at(leaves, rows)
        if not outputs.requires_grad:
            return torch.zeros_like(outputs)
        weights = torch.zeros_like(outputs, requires_grad=True)
        slopes = torch.autograd.grad(
            outputs, list(leaves.values()), weights, create_graph=True, materialize_grads=True
        )  # fmt: skip
        along = torch.stack([(slope * moved[name]).sum() for name, slope in zip(leaves, slopes, strict=True)]).sum()
        (tangent,) = torch.autograd.grad(along, weights, materialize_grads=True)
    return tangent.detach()
