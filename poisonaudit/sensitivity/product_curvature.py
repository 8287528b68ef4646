"""Curvature through products only, for p beyond what a dense matrix allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from poisonaudit.errors import UsageError
from poisonaudit.operators import Linearisation, linearise
from poisonaudit.operators.memory import ROWS_SHARE
from poisonaudit.problem import Problem
from poisonaudit.solvers import (
    KrylovSpace,
    Nystroem,
    Progress,
    Solve,
    SolveState,
    block_lanczos,
    conjugate_gradients,
    curvature_ends,
    lsmr,
    minres,
    new_state,
    nystroem,
)
from poisonaudit.solvers.ends import short_curvature_ends
from poisonaudit.solvers.memory import basis_vectors, solve_bytes
from poisonaudit.solvers.solve import default_accuracy
from poisonaudit.solvers.state import digest_of

CurvatureName = Literal["hessian", "gauss_newton"]

# The kept space is cut back to half once it holds more vectors than this, or more than fit into so many bytes: beyond,
# orthogonalising costs more than the products that it saves.
_MOST_KEPT = 500
_KEPT_BYTES = 64_000_000
# Held whatever the bytes: 80 Ritz vectors and as many new directions.
_LEAST_KEPT = 160
_PRODUCTS = 2_000
_NYSTROEM_RANK = 100
# A basis beyond this, or of so many vectors, is compressed in the middle of a solve: past it a product takes less time
# than making it orthogonal, and a restart costs some products.
_BASIS_BYTES = 4_000_000_000
_MOST_VECTORS = 800
_MORE_A_COLUMN = 40
_PROBE_STEPS = 60
# With fewer a restarted solve hardly gets on.
_LEAST_BASIS = 40
# Of a memory limit, what stays free for what libraries take inside one operation: a convolution's workspace is not
# counted.
_UNSEEN_SHARE = 6


@dataclass
class _Kept:
    """What all solvers at one point share: the Krylov space of H, its ends, an unfinished solve."""

    space: KrylovSpace | None = None
    ends: tuple[float, float] | None = None
    state: SolveState | None = None


class ProductCurvature:
    """`A = H + damping * lambda_max I` through products.

    The Krylov space of the undamped H is kept with the point and serves every right-hand side, rank tolerance and
    damping at it; past some hundreds of vectors it is cut back to Ritz vectors of both ends, without a product. A solve
    that was interrupted, or met its product limit, goes on where it stopped when the same right-hand side is asked for
    again; `state` and `resume` carry it to another process.

    The dimension of the kernel is not known here (None): counting it would take the whole spectrum. `smallest` is an
    upper and `largest` a lower estimate, from 60 products kept in the space.

    Args:
        problem: the point.
        name: "hessian" or "gauss_newton".
        tolerance: relative rank tolerance.
        method: "lanczos", "minres", "lsmr", "cg" or "nystroem".
        damping: relative to lambda_max.
        accuracy: relative residual wanted; None for the default of the type.

    Raises:
        UsageError: PA307, the problem's memory limit leaves no room for the method.
    """

    kernel_dimension: int | None = None
    range_vectors: Tensor | None = None

    def __init__(
        self,
        problem: Problem,
        name: CurvatureName,
        tolerance: float,
        method: str = "lanczos",
        damping: float = 0.0,
        accuracy: float | None = None,
    ) -> None:
        kept = linearise(problem)
        self.tolerance = tolerance
        self.method = method
        self.accuracy = default_accuracy(problem.dtype) if accuracy is None else accuracy
        self.progress: Progress | None = None
        self.products = 0
        self._problem = problem
        self._name = name
        self._operator: Callable[[Tensor], Tensor] = kept.hessian if name == "hessian" else kept.gauss_newton
        self._most_vectors = _room(problem, kept, method)
        key = ("krylov", name)
        self._kept: _Kept = problem.cache.setdefault(key, _Kept())
        self._nystroem: Nystroem | None = None
        self.shift = damping * self._ends()[1] if damping > 0.0 else 0.0

    @property
    def smallest(self) -> float:
        """Smallest eigenvalue found, damping included; the true one is not above it."""
        return self._ends()[0] + self.shift

    @property
    def largest(self) -> float:
        """Largest eigenvalue found, damping included; the true one is not below it."""
        return self._ends()[1] + self.shift

    @property
    def state(self) -> SolveState | None:
        """The unfinished solve, if there is one; `to_tensors` saves it."""
        return self._kept.state

    def resume(self, state: SolveState) -> None:
        """Take up a saved solve: the next `solve` with its right-hand side goes on from it.

        Args:
            state: from `SolveState.from_tensors`; its space replaces the one kept here.
        """
        self._kept.space, self._kept.state = state.space, state

    def solve(self, rhs: Tensor) -> Solve:
        """Minimum-norm least-squares solution of `A v = rhs`, (p,) or (p, K)."""
        if self.method == "lanczos":
            return self._lanczos(rhs)
        if self.method == "minres":
            return minres(self._product, rhs, accuracy=self.accuracy, shift=self.shift, progress=self.progress)
        if self.method == "lsmr":
            return lsmr(self._product, rhs, accuracy=self.accuracy, shift=self.shift, progress=self.progress)
        if self.method == "nystroem" and self._nystroem is None:
            self._nystroem = nystroem(self._product, rhs if rhs.dim() == 1 else rhs[:, 0], _NYSTROEM_RANK, self.shift)
        return conjugate_gradients(
            self._product,
            rhs,
            tolerance=self.tolerance,
            accuracy=self.accuracy,
            shift=self.shift,
            preconditioner=self._nystroem,
            progress=self.progress,
        )

    def solve_from(self, start: Tensor, rhs: Tensor) -> Solve:
        """The solution nearest to `start`: `start + A^+ (rhs - A start)`, a solve that starts at `start`."""
        inner = rhs - (self._product(start) + self.shift * start)
        solve = self.solve(inner)
        # Residuals are of b where there is one, of what was left to solve where b is zero.
        given, left = rhs.double().norm(dim=0), inner.double().norm(dim=0)
        factor = torch.where(given > 0, left / given.clamp_min(1e-300), torch.ones_like(given))
        return replace(
            solve,
            value=start + solve.value,
            relative_residual=solve.relative_residual * float(factor.max()),
            products=solve.products + (1 if rhs.dim() == 1 else rhs.shape[1]),
        )

    def inverse(self, rhs: Tensor) -> Tensor:
        """`A^+ rhs`, (p,) or (p, K)."""
        return self.solve(rhs).value

    def project_kernel(self, z: Tensor) -> Tensor:
        """`z - A^+ A z`, (p,) or (p, K)."""
        return self.solve_from(z, torch.zeros_like(z)).value

    def note_stationarity(self) -> None:
        """Leave the relative gradient with the problem, from the curvature known here, not another Lanczos run."""
        if "relative_gradient" in self._problem.cache or self._name != "hessian":
            return
        length = float(linearise(self._problem).gradient.norm())
        scale = abs(self._ends()[1]) * float(self._problem.weights.norm())
        figure = length / scale if scale > 0 else float("inf")
        self._problem.cache["relative_gradient"] = figure if length > 0 else 0.0

    def _lanczos(self, rhs: Tensor) -> Solve:
        kept = self._kept
        digest = digest_of(rhs, self.shift, self.tolerance, self.accuracy)
        if kept.state is None or kept.state.digest != digest:
            kept.state = new_state(rhs, digest, self._space())
        before = self.products
        solve = block_lanczos(
            self._product,
            rhs,
            tolerance=self.tolerance,
            accuracy=self.accuracy,
            shift=self.shift,
            max_products=kept.state.products + _PRODUCTS * (1 if rhs.dim() == 1 else min(4, rhs.shape[1])),
            max_vectors=self._most_vectors or _largest_basis(rhs),
            largest_magnitude=0.0 if kept.ends is None else max(map(abs, kept.ends)),
            state=kept.state,
            progress=self.progress,
        )
        if solve.converged or solve.ended != "product limit":
            kept.state = None
            most = max(_LEAST_KEPT, min(_MOST_KEPT, _KEPT_BYTES // (8 * rhs.shape[0])))
            if self._most_vectors is not None:
                most = min(most, self._most_vectors // 2)
            if self._space().multiplied > most:
                self._space().compress(most // 2)
        return replace(solve, products=self.products - before)

    def _product(self, v: Tensor) -> Tensor:
        self.products += 1 if v.dim() == 1 else v.shape[1]
        return self._operator(v)

    def _ends(self) -> tuple[float, float]:
        """Ends of the undamped spectrum, from one random start; a Lanczos space keeps the products."""
        kept = self._kept
        if kept.ends is None:
            size, weights = self._problem.size, self._problem.weights
            if self.method == "lanczos":
                kept.state = None
                kept.ends = curvature_ends(self._product, size, weights, steps=_PROBE_STEPS, space=self._space())
            else:
                kept.ends = short_curvature_ends(self._product, size, weights, steps=_PROBE_STEPS)
        return kept.ends

    def _space(self) -> KrylovSpace:
        """The Krylov space of the point, made when the first solve needs it."""
        if self._kept.space is None:
            problem, precision = self._problem, torch.finfo(self._problem.dtype).eps
            if self._most_vectors is None:
                self._kept.space = KrylovSpace(problem.size, precision, problem.device)
            else:
                self._kept.space = KrylovSpace(problem.size, precision, problem.device, room=self._most_vectors)
        return self._kept.space


def _room(problem: Problem, kept: Linearisation, method: str) -> int | None:
    """Basis vectors that the memory limit leaves; None without a limit."""
    limit = problem.memory_limit
    if limit is None:
        return None
    left = limit - kept.memory_bytes - limit // ROWS_SHARE - limit // _UNSEEN_SHARE
    vectors = basis_vectors(left, problem.size)
    if method == "lanczos" and vectors < _LEAST_BASIS:
        least = solve_bytes(method, problem.size, vectors=_LEAST_BASIS, reserved=True)
        raise UsageError(
            "PA307",
            f"the memory limit leaves {max(0, left)} bytes for a solve with {problem.size} weights, {least} are needed "
            f"for {_LEAST_BASIS} basis vectors. Raise the limit, or use method='minres'.",
        )
    need = solve_bytes(method, problem.size, vectors=_NYSTROEM_RANK)
    if method != "lanczos" and left < need:
        raise UsageError("PA307", f"the memory limit leaves {left} bytes, {method} needs {need}. Raise the limit.")
    return min(_MOST_VECTORS, max(_LEAST_BASIS, vectors))


def _largest_basis(rhs: Tensor) -> int:
    columns = 1 if rhs.dim() == 1 else rhs.shape[1]
    return max(_LEAST_KEPT, min(_MOST_VECTORS + _MORE_A_COLUMN * columns, _BASIS_BYTES // (8 * rhs.shape[0])))
