"""The solution map of an interpolating squared-loss problem in sample space: `H^+ B = J^+ D`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poisonaudit.operators import linearise
from poisonaudit.operators.dense import dense_input_jacobian, dense_jacobian
from poisonaudit.problem import Problem
from poisonaudit.solvers import curvature_ends, default_tolerance

# (n c)^2 entries are decomposed: 10^4 takes 800 MB and some minutes.
LARGEST_SAMPLE_SPACE = 10_000
_JACOBIAN_ENTRIES = 200_000_000
_PROBE_STEPS = 12


@dataclass(frozen=True)
class SampleSpace:
    """`G = J J^T` (n c, n c) of an interpolating problem, decomposed, and `D = df/dx` row by row.

    At zero residual of the loss `1/2 |f - y|^2`, `H = J^T J / n` and `B = J^T D / n` with the same J, so
    `H^+ B = J^+ D` and every modulus is a question about G, however many weights there are.

    Attributes:
        values: eigenvalues of G, ascending, (n c,).
        vectors: eigenvectors, (n c, n c).
        inputs: D, one block per row, (n, c, d).
        tolerance: relative rank tolerance, on G as on H: they share their non-zero eigenvalues but for 1/n.
        weights: p.
        products: products with J and J^T made for it, a row's own gradient counted as one over n c.
    """

    values: Tensor
    vectors: Tensor
    inputs: Tensor
    tolerance: float
    weights: int
    products: int

    @property
    def in_range(self) -> Tensor:
        """Which eigenvalues count as non-zero, (n c,)."""
        return self.values > self.tolerance * self.values[-1].clamp_min(0)

    @property
    def full_row_rank(self) -> bool:
        """J has full row rank: the rank of H cannot jump nearby."""
        return bool(self.in_range.all())

    @property
    def kernel_dimension(self) -> int:
        """Dimension of ker H at the tolerance."""
        return self.weights - int(self.in_range.sum())

    @property
    def largest_curvature(self) -> float:
        """Largest eigenvalue of H."""
        return float(self.values[-1]) / self.inputs.shape[0]

    def modulus(self, rows: Tensor) -> tuple[float, Tensor]:
        """`|J^+ D|_2` over the rows (k,), and the unit perturbation (k, d) that attains it."""
        moved = self._half_inverse()[:, self._positions(rows)]
        blocks = self.inputs[rows]
        count, outputs, entries = blocks.shape
        # (rank, k c) against block-diagonal D: one small product a row.
        image = torch.einsum("rkc,kcd->rkd", moved.reshape(-1, count, outputs), blocks).reshape(-1, count * entries)
        if image.numel() == 0:
            return 0.0, torch.zeros(count, entries, dtype=self.inputs.dtype, device=self.inputs.device)
        values, vectors = torch.linalg.eigh(image @ image.T)
        direction = image.T @ vectors[:, -1]
        length = direction.norm()
        unit = direction / length if float(length) > 0 else direction
        return float(values[-1].clamp_min(0).sqrt()), unit.reshape(count, entries)

    def row_moduli(self, rows: Tensor) -> Tensor:
        """`|J^+ D_k|_2` of each row (k,)."""
        moved = self._half_inverse()[:, self._positions(rows)]
        outputs = self.inputs.shape[1]
        blocks = torch.einsum("rkc,kcd->krd", moved.reshape(len(moved), len(rows), outputs), self.inputs[rows])
        if blocks.shape[1] == 0:
            return torch.zeros(len(rows), dtype=self.inputs.dtype, device=self.inputs.device)
        small = blocks if blocks.shape[1] <= blocks.shape[2] else blocks.mT
        return torch.linalg.eigvalsh(small @ small.mT)[:, -1].clamp_min(0).sqrt()

    def range_defect(self, rows: Tensor) -> float:
        """`|P_ker B| / |B|` over the rows: what the rank tolerance cuts off of B."""
        positions = self._positions(rows)
        scaled = self.values.clamp_min(0).sqrt()[:, None] * self.vectors.T[:, positions]
        outputs = self.inputs.shape[1]
        image = torch.einsum("rkc,kcd->rkd", scaled.reshape(-1, len(rows), outputs), self.inputs[rows]).flatten(1)
        whole = float(torch.linalg.matrix_norm(image @ image.T, 2)) ** 0.5
        outside = image[~self.in_range]
        if whole == 0.0 or outside.numel() == 0:
            return 0.0
        return float(torch.linalg.matrix_norm(outside @ outside.T, 2)) ** 0.5 / whole

    def _half_inverse(self) -> Tensor:
        """`G^(-1/2)` up to a rotation, on the range: (rank, n c)."""
        kept = self.in_range
        return self.vectors[:, kept].T / self.values[kept].sqrt()[:, None]

    def _positions(self, rows: Tensor) -> Tensor:
        """Columns of G that belong to the rows."""
        outputs = self.inputs.shape[1]
        return (rows[:, None] * outputs + torch.arange(outputs, device=rows.device)).reshape(-1)


class SampleCurvature:
    """H of an interpolating problem as `J^T J / n`, through the decomposition of `J J^T` and products with J.

    Args:
        problem: the point.
        samples: its sample space.

    Attributes:
        tolerance: relative rank tolerance.
        largest: largest eigenvalue of H.
        smallest: 0, as there are more weights than equations.
        kernel_dimension: of H.
    """

    def __init__(self, problem: Problem, samples: SampleSpace) -> None:
        self.tolerance, self.largest = samples.tolerance, samples.largest_curvature
        self.smallest, self.kernel_dimension = 0.0, samples.kernel_dimension
        self._kept, self._rows = linearise(problem), problem.rows
        self._values, self._vectors = samples.values[samples.in_range], samples.vectors[:, samples.in_range]

    def inverse(self, rhs: Tensor) -> Tensor:
        """`H^+ v = n J^T (J J^T)^+2 J v`, for v (p,) or (p, K)."""
        return self._rows * self._back(self._forward(rhs), 2)

    def project_kernel(self, v: Tensor) -> Tensor:
        """`v - J^T (J J^T)^+ J v`, for v (p,) or (p, K)."""
        for _ in range(2):  # once more for what rounding left
            v = v - self._back(self._forward(v), 1)
        return v

    def _forward(self, v: Tensor) -> Tensor:
        pushed = self._kept.push_forward(v)
        self._shape = pushed.shape
        return pushed.reshape(len(self._vectors), -1)

    def _back(self, values: Tensor, power: int) -> Tensor:
        inner = self._vectors @ ((self._vectors.T @ values) / self._values[:, None] ** power)
        return self._kept.pull_back(inner.reshape(self._shape))


def why_not_sample_space(problem: Problem, tolerance: float) -> str:
    """Why the sample-space form is not exact or not affordable here; empty where it is both.

    The rule: the squared loss, no decay, fewer outputs over all rows than weights and than 10,000, and a residual so
    small that H differs from `J^T J / n` by less than the rank tolerance, and B from `J^T D / n` by as little. Both
    differences are measured by products, not assumed.

    Args:
        problem: the point.
        tolerance: relative rank tolerance.

    Returns:
        The reason in words.
    """
    if problem.loss != "half_squared":
        return "the loss is not half_squared: cross-entropy and other losses have no sample-space form"
    if problem.decay != 0.0:
        return "decay leaves a residual at the minimum"
    with torch.no_grad():
        outputs = problem.outputs()
    equations = outputs.numel()
    if equations >= problem.size:
        return f"{equations} equations are not fewer than {problem.size} weights"
    if equations > LARGEST_SAMPLE_SPACE:
        return f"{equations} equations are more than {LARGEST_SAMPLE_SPACE}"
    kept = linearise(problem)
    limit = max(tolerance, 10 * default_tolerance(problem.dtype))

    def difference(v: Tensor) -> Tensor:
        return kept.hessian(v) - kept.gauss_newton(v)

    ends = curvature_ends(difference, problem.size, problem.weights, steps=_PROBE_STEPS)
    whole = curvature_ends(kept.gauss_newton, problem.size, problem.weights, steps=_PROBE_STEPS)
    apart = max(map(abs, ends)) / max(1e-300, *map(abs, whole))
    if not apart <= limit:
        return f"the residual is not small: H is {apart:.1e} (relative) away from J^T J / n, limit {limit:.0e}"
    generator = torch.Generator(device="cpu").manual_seed(0)
    mu = torch.randn(problem.x.shape, generator=generator, dtype=torch.float64).to(problem.x)
    mixed = kept.mixed(mu)
    moved = torch.einsum("ncd,nd->nc", dense_input_jacobian(problem), mu.flatten(1)).view_as(outputs)
    apart = float((mixed - kept.pull_back(moved) / problem.rows).norm() / mixed.norm().clamp_min(1e-300))
    if not apart <= 1e3 * limit:
        return f"the residual is not small: B is {apart:.1e} (relative) away from J^T D / n"
    return ""


def sample_space(problem: Problem, tolerance: float) -> SampleSpace:
    """Decompose `J J^T` and collect D; kept with the problem.

    Args:
        problem: an interpolating half_squared problem; see `why_not_sample_space`.
        tolerance: relative rank tolerance.

    Returns:
        The sample space.
    """
    key = ("sample space", tolerance)
    if key not in problem.cache:
        gram, products = _gram(problem)
        values, vectors = torch.linalg.eigh(0.5 * (gram + gram.T))
        inputs = dense_input_jacobian(problem)
        problem.cache[key] = SampleSpace(values, vectors, inputs, tolerance, problem.size, products)
    kept: SampleSpace = problem.cache[key]
    return kept


def _gram(problem: Problem) -> tuple[Tensor, int]:
    """`J J^T` (n c, n c), and the products it took."""
    with torch.no_grad():
        outputs = problem.outputs()
    equations = outputs.numel()
    if equations * problem.size <= _JACOBIAN_ENTRIES:
        jacobian = dense_jacobian(problem).reshape(equations, problem.size)
        return jacobian @ jacobian.T, outputs[0].numel()
    kept, before = linearise(problem), linearise(problem).products
    identity = torch.eye(equations, dtype=problem.dtype, device=problem.device)
    columns = [
        kept.push_forward(kept.pull_back(part.reshape(*outputs.shape, -1))).reshape(equations, -1)
        for part in identity.split(32, dim=1)
    ]
    return torch.cat(columns, dim=1), kept.products - before
