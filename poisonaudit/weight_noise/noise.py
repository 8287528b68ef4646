"""Isotropic noise of an exact norm for every parameter: one stream per seed, parameter and draw."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from poisonaudit.arguments import finite_number, whole_number
from poisonaudit.errors import UsageError
from poisonaudit.registry import unknown_name

Norm = Literal["frobenius", "spectral"]
NORMS: tuple[Norm, ...] = ("frobenius", "spectral")
# Draws behind the mean of |G|_F^2 / |G|_2^2 over Gaussian matrices, which has no closed form.
_RANK_DRAWS = 400


def checked_settings(
    rho: Any, draws: Any, norm: str = "frobenius", seed: Any = 0, probes: Any = None
) -> tuple[float, int, int]:
    """Settings of `weight_noise`, refused where no noise can be drawn for them.

    Returns:
        rho, draws and seed as plain numbers.

    Raises:
        UsageError: PA321, rho is not a finite number above 0, draws or probes is not a whole number of at least 2, or
            seed is not a whole number of at least 0; PA301, an unknown norm.
    """
    size, count, start = finite_number(rho), whole_number(draws), whole_number(seed)
    if size is None or size <= 0.0:
        raise UsageError("PA321", f"rho is {rho!r}; it is noise norm per weight norm. Give a finite number above 0.")
    for word, given in (("draws", draws), ("probes", 2 if probes is None else probes)):
        if (whole_number(given) or 0) < 2:
            raise UsageError("PA321", f"{word} is {given!r}; a standard error needs 2. Give a whole number from 2 on.")
    if start is None or start < 0:
        raise UsageError("PA321", f"seed is {seed!r}; streams of noise are numbered from 0. Give a whole number.")
    if norm not in NORMS:
        raise unknown_name(str(norm), NORMS, "matrix norm")
    return size, count or 0, start


def as_matrix(values: Tensor) -> Tensor:
    """A parameter as the matrix whose norms are meant: (first dimension, all others); a vector as one column."""
    return values.reshape(values.shape[0], -1) if values.dim() > 0 else values.reshape(1, 1)


def size_of(values: Tensor, norm: Norm) -> float:
    """The named norm of a parameter, in float64."""
    matrix = as_matrix(values.detach()).double()
    return float(matrix.norm() if norm == "frobenius" else torch.linalg.matrix_norm(matrix, 2))


@dataclass(frozen=True)
class Noise:
    """Where the noise of every parameter comes from.

    `eta = rho |W| G / |G|`, G with independent N(0, 1) entries and |.| the named norm of `as_matrix`: isotropic, of the
    exact norm `rho |W|`. G depends on the seed, the parameter's name and the number of the draw alone: not on the dtype
    or device, nor on which other parameters, draws or sizes are asked for.

    Attributes:
        values: parameters by name.
        sizes: |W| by name, in the named norm.
        norm: "frobenius" or "spectral".
        seed: of all streams.
    """

    values: Mapping[str, Tensor]
    sizes: Mapping[str, float]
    norm: Norm
    seed: int

    def unit(self, name: str, draw: int) -> Tensor:
        """G / |G| times |W|: the noise at rho = 1, float64 on the CPU."""
        drawn = gaussian(tuple(self.values[name].shape), self.seed, name, draw)
        return drawn * (self.sizes[name] / size_of(drawn, self.norm))

    def units(self, names: Sequence[str], draw: int) -> dict[str, Tensor]:
        """The same for several parameters."""
        return {name: self.unit(name, draw) for name in names}

    def added(self, units: Mapping[str, Tensor], rho: float) -> dict[str, Tensor]:
        """`W + rho * unit` by name, in the parameters' dtype and on their device."""
        return {name: self.values[name] + (rho * unit).to(self.values[name]) for name, unit in units.items()}


def noise_source(values: Mapping[str, Tensor], names: Sequence[str], norm: Norm, seed: int) -> Noise:
    """Noise for the named parameters.

    Args:
        values: parameters by name.
        names: of those that are perturbed.
        norm: in which |eta| = rho |W|.
        seed: of the streams.

    Returns:
        The source.
    """
    return Noise({name: values[name] for name in names}, {n: size_of(values[n], norm) for n in names}, norm, seed)


def gaussian(shape: tuple[int, ...], seed: int, name: str, draw: int) -> Tensor:
    """Independent N(0, 1) entries of a stream of their own, float64 on the CPU."""
    stream = np.random.default_rng([seed, zlib.crc32(name.encode()), draw])
    return torch.from_numpy(np.asarray(stream.standard_normal(shape)))


def isotropic_factor(values: Tensor, norm: Norm) -> float:
    """`s` with `E eta eta^T = (rho |W| s)^2 I` over the entries of the noise.

    The Frobenius norm makes it `1 / sqrt(numel)`. With the spectral norm eta has the law of `P eta Q` for orthogonal
    P and Q, so its covariance is a multiple of the identity still, and the trace gives
    `s^2 = E[|G|_F^2 / |G|_2^2] / numel`: a mean of 400 draws, good to about a percent or better.

    Args:
        values: the parameter.
        norm: of the noise.

    Returns:
        s.
    """
    entries = max(values.numel(), 1)
    rows, columns = as_matrix(values).shape
    if norm == "frobenius" or min(rows, columns) == 1:
        return entries**-0.5
    # Singular values depend on the shape alone: a few draws suffice for large matrices, where they concentrate.
    draws = max(8, min(_RANK_DRAWS, 2**24 // (entries * min(rows, columns))))
    ratios = []
    for draw in range(draws):
        drawn = gaussian((rows, columns), 0, "stable rank", draw)
        ratios.append(float((drawn.norm() / torch.linalg.matrix_norm(drawn, 2)).square()))
    return math.sqrt(sum(ratios) / draws / entries)
