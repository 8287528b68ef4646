"""Block Lanczos with full reorthogonalisation, and least squares in the space it builds and keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from poisonaudit.errors import UsageError
from poisonaudit.solvers.small import Projected, glance, projected
from poisonaudit.solvers.solve import Doubled, Operator, Progress, Solve, checked, default_accuracy
from poisonaudit.solvers.space import KrylovSpace
from poisonaudit.solvers.state import SolveState, digest_of

# The small problem is looked at after every step up to here, then after every twentieth more.
_EVERY_STEP = 12
_MOST_ROUNDS = 4
# Directions in which the residuals hardly differ wait: they stay open.
_DISTINCT = 1e-3

_REACHED = "residual below the wanted accuracy"
_ORTHOGONAL = "residual orthogonal to the range: least-squares solution"
_EXHAUSTED = "Krylov space exhausted"
_LIMIT = "product limit"
_FULL = "space full"
_ADVICE = {
    _LIMIT: "Allow more products, raise the rank tolerance (the spectrum has no gap there), or add damping.",
    _EXHAUSTED: "The space holds no better solution at this rank tolerance: lower it, or compute in float64.",
    _REACHED: "The products are not accurate enough for this residual: compute in float64, or accept a larger one.",
}


def block_lanczos(
    operator: Operator,
    rhs: Tensor,
    *,
    tolerance: float,
    accuracy: float | None = None,
    shift: float = 0.0,
    max_products: int = 600,
    max_vectors: int | None = None,
    largest_magnitude: float = 0.0,
    space: KrylovSpace | None = None,
    state: SolveState | None = None,
    progress: Progress | None = None,
) -> Solve:
    """Minimum-norm least-squares solutions of `(A + shift I) V = B` in one block Krylov space.

    The first block is B without its dependent columns; each later one holds the new directions that the residuals of
    the unfinished columns need. The small problem `min |c - T y|` is solved by an SVD that drops singular values up to
    `tolerance * |A|`. It stops when every column's residual is below `accuracy`, or, outside the range of A, orthogonal
    to that range (bound on `|A r| / (|A| |r|)` below a tenth of `accuracy`). There the residuals are the kernel parts
    of B, and all kernel parts in the space are combinations of them, so taking those out of the solution leaves the
    one of minimum norm (lifting, Liu, Milzarek and Roosta, 2023). Where the spectrum has no gap at the tolerance,
    this truncation (of singular values of T) and that of a dense decomposition (of eigenvalues of A)
    give different vectors of nearly equal residual.

    A space kept from earlier right-hand sides is searched first, at no product. The true residual is computed at the
    end; where it is larger than the space says (float32 products), it becomes the next right-hand side.

    Args:
        operator: A, symmetric, for (p,) and (p, K) of the type of `rhs`.
        rhs: B, (p,) or (p, K).
        tolerance: relative rank tolerance.
        accuracy: wanted relative residual; default 1e-10 in float64, 1e-5 in float32.
        shift: added to every eigenvalue; absolute.
        max_products: most products, those of earlier calls with the same state included, the final check not.
        max_vectors: most basis vectors held (8 p bytes each); at the limit the space is compressed
            to a third, and the residual becomes the next right-hand side.
        largest_magnitude: |A| if known; else the largest singular value of T.
        space: to be searched and grown; None for a fresh one.
        state: filled as the solve goes on; pass it again to go on after an interrupt or the product limit.
        progress: called with a message and a fraction.

    Returns:
        A Solve whose residual was recomputed with the operator.

    Raises:
        UsageError: PA304, the state belongs to another right-hand side, damping, tolerance or accuracy.
    """
    wanted = default_accuracy(rhs.dtype) if accuracy is None else accuracy
    product = Doubled(operator, rhs.dtype)
    columns = (rhs if rhs.dim() == 2 else rhs[:, None]).double()
    digest = digest_of(rhs, shift, tolerance, wanted)
    # After compression to a third (and half as many open vectors) a block still has to fit in.
    most = None if max_vectors is None else max(max_vectors, 4 * columns.shape[1] + 8)
    if state is None:
        state = new_state(rhs, digest, space)
    elif state.digest == "":
        state.digest = digest
    elif state.digest != digest:
        raise UsageError(
            "PA304",
            "the solver state belongs to another right-hand side, damping, tolerance or accuracy. "
            "Pass the same ones again, or start afresh without a state.",
        )
    run = _Run(product, state, columns.norm(dim=0), shift, tolerance, wanted, largest_magnitude)
    run.limits(max_products, most, progress)
    while True:
        if not bool((state.residual.norm(dim=0) > 0).any()):
            ended, value, residual = "right-hand side is zero", state.value, state.residual
            break
        if not state.entered and state.rounds == 0 and not state.space.pure and shift == 0.0:
            state.space.keep_range()
        ended, found = run.extend()
        state.space.pure = False
        value = state.value + state.space.combine(found.coefficients) * state.lengths
        # The check sees the value as it is handed out.
        value = value.to(rhs.dtype).double()
        residual = columns - product(value) - shift * value
        if ended == _LIMIT:
            break
        improved = bool((residual.norm(dim=0) <= 0.5 * state.residual.norm(dim=0)).any())
        met = bool((residual.norm(dim=0) <= wanted * run.scales).all())
        state.products += columns.shape[1]
        state.rounds += 1
        again = ended == _FULL or (bool((found.residuals * state.lengths <= wanted * run.scales).all()) and improved)
        if met or not again or (ended != _FULL and state.rounds >= _MOST_ROUNDS):
            break
        state.value, state.residual, state.entered = value, residual, 0
        if ended == _FULL:
            state.space.compress(max(1, (most or 3) // 3))
    if shift == 0.0 and ended == _REACHED:
        state.space.pure = True
    elif shift == 0.0 and ended in (_ORTHOGONAL, _EXHAUSTED):
        value = _lifted(value, residual, residual.norm(dim=0) > wanted * run.scales).to(rhs.dtype).double()
        residual = columns - product(value)
    handed = value.to(rhs.dtype)
    return checked(
        _Shifted(product, shift),
        rhs,
        handed if rhs.dim() == 2 else handed[:, 0],
        residual=-residual if rhs.dim() == 2 else -residual[:, 0],
        accuracy=wanted,
        largest=max(largest_magnitude, state.space.magnitude) + abs(shift),
        tolerance=tolerance,
        iterations=state.iterations,
        ended=ended,
        advice=_ADVICE.get(ended, _ADVICE[_LIMIT]),
    )


def _lifted(value: Tensor, residual: Tensor, outside: Tensor) -> Tensor:
    """The value without its parts along the residuals of the columns that lie outside the range."""
    if not bool(outside.any()):
        return value
    lengths = residual[:, outside].norm(dim=0)
    basis, sizes, _ = torch.linalg.svd(residual[:, outside] / lengths, full_matrices=False)
    basis = basis[:, sizes > 1e-8 * sizes[0]]
    return value - basis @ (basis.T @ value)


class _Shifted(Doubled):
    """The product with the shift on, counting with the one without."""

    def __init__(self, inner: Doubled, shift: float) -> None:
        super().__init__(inner.operator, inner.dtype, shift)
        self.products = inner.products


def new_state(rhs: Tensor, digest: str = "", space: KrylovSpace | None = None) -> SolveState:
    """A state before the first product, to be passed to `block_lanczos`, which fills it.

    Args:
        rhs: the right-hand side.
        digest: ties it to a question; left to `block_lanczos` if empty.
        space: to be searched and grown; None for a fresh one.

    Returns:
        The state.
    """
    columns = (rhs if rhs.dim() == 2 else rhs[:, None]).double()
    precision = torch.finfo(rhs.dtype).eps
    held = KrylovSpace(rhs.shape[0], precision, rhs.device) if space is None else space
    return SolveState(held, digest, torch.zeros_like(columns), columns.clone())


class _Run:
    """One solve: grows the state's space until the small problem is solved well enough."""

    def __init__(
        self,
        product: Doubled,
        state: SolveState,
        scales: Tensor,
        shift: float,
        tolerance: float,
        accuracy: float,
        largest: float,
    ) -> None:
        self.product, self.state, self.scales = product, state, scales
        self.shift, self.tolerance, self.accuracy, self.largest = shift, tolerance, accuracy, largest
        self.orthogonal = max(0.1 * accuracy, 20 * state.space.precision)

    def limits(self, max_products: int, max_vectors: int | None, progress: Progress | None) -> None:
        """What ends the run early."""
        self.max_products, self.max_vectors, self.progress = max_products, max_vectors, progress

    def extend(self) -> tuple[str, Projected]:
        """Enter the residual if it is not in the space yet, then multiply until done: how it ended, the solution."""
        state, space = self.state, self.state.space
        if not state.entered:
            state.lengths = state.residual.norm(dim=0)
            state.target = space.enter(state.residual / state.lengths.clamp_min(1e-300))
            state.entered, state.width, state.steps, state.doubts = 1, 0, 0, 0
            state.next_check = space.multiplied
        while True:
            if space.multiplied >= state.next_check:
                found, ended = self._look()
                if ended:
                    return ended, found
                pause = 1 if state.steps <= _EVERY_STEP else space.multiplied // 20
                state.next_check = space.multiplied + max(1, pause)
            if state.products + state.width > self.max_products and state.products > 0:
                return _LIMIT, self._project()
            if self.max_vectors is not None and space.count + state.width > self.max_vectors:
                return _FULL, self._project()
            width = state.width
            space.multiply(self.product, width)
            state.products += width
            state.iterations += 1
            state.steps += 1
            self._pad()
            if space.multiplied < state.next_check:
                images = space.small[space.multiplied :, space.multiplied - width :]
                state.width = self._turn(images, 1e-8 * space.magnitude)
                if state.width == 0:
                    state.next_check = space.multiplied

    def _look(self) -> tuple[Projected, str]:
        """Solve the small problem, and choose what to multiply next; the word is empty where it goes on."""
        state, space = self.state, self.state.space
        wanted = 0.9 * self.accuracy * self.scales.cpu() / state.lengths.cpu().clamp_min(1e-300)
        zero = state.lengths.cpu() == 0
        final = glance(self._shifted(), state.target, max(self.largest, space.magnitude))
        done = zero | (final.residuals <= wanted) | (final.optimality <= self.orthogonal)
        if bool(done.all()) and space.multiplied >= state.doubts:
            final = self._project()
            small_enough = zero | (final.residuals <= wanted)
            done = small_enough | (final.optimality <= self.orthogonal)
            if bool(done.all()):
                return final, _REACHED if bool(small_enough.all()) else _ORTHOGONAL
            state.doubts = space.multiplied + max(1, space.multiplied // 20)
        elif bool(done.all()):
            done = zero
        if self.progress is not None:
            worst = float((final.residuals * state.lengths.cpu() / self.scales.cpu().clamp_min(1e-300)).max())
            self.progress(f"solve: {state.products} products, residual {worst:.1e}", None)
        missing = ~done
        opened = final.left[space.multiplied :, missing] / final.residuals[missing].clamp_min(1e-300)
        state.width = 0
        if space.open and bool((opened.norm(dim=0) >= 0.1).all()):
            state.width = self._turn(opened, _DISTINCT)
        if not state.width and space.open and state.iterations:
            last = space.small[space.multiplied :, max(0, space.multiplied - max(1, state.target.shape[1])) :]
            state.width = self._turn(last, 1e-8 * space.magnitude)
        if not state.width and space.open:
            state.width = self._turn(opened, 1e-14)
        if not state.width:
            return self._project(), _EXHAUSTED
        return final, ""

    def _project(self) -> Projected:
        return projected(self._shifted(), self.state.target, self.tolerance, self.largest)

    def _shifted(self) -> Tensor:
        small = self.state.space.small.clone()
        small.diagonal().add_(self.shift)
        return small

    def _turn(self, directions: Tensor, floor: float) -> int:
        space, target = self.state.space, self.state.target
        width, rotation = space.turn(directions, floor)
        if rotation is not None:
            target[space.multiplied :] = rotation @ target[space.multiplied :]
        return width

    def _pad(self) -> None:
        """Vectors that came since have no part in the target."""
        state = self.state
        missing = state.space.count - len(state.target)
        state.target = torch.cat([state.target, torch.zeros(missing, state.target.shape[1], dtype=torch.float64)])


def curvature_ends(
    operator: Operator, size: int, like: Tensor, *, steps: int = 60, seed: int = 0, space: KrylovSpace | None = None
) -> tuple[float, float]:
    """Smallest and largest eigenvalue as the extreme Ritz values of one Lanczos run from a random start.

    Ritz values lie inside the spectrum: the smallest is an upper, the largest a lower estimate.

    Args:
        operator: v -> A v, symmetric.
        size: p.
        like: gives dtype and device.
        steps: products.
        seed: of the start.
        space: grown by the run, for solves to search later.

    Returns:
        `(smallest, largest)`.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    start = torch.randn(size, generator=generator, dtype=torch.float64).to(like.device)
    held = KrylovSpace(size, torch.finfo(like.dtype).eps, like.device) if space is None else space
    product = Doubled(operator, like.dtype)
    held.pure = False
    entered = held.enter((start / start.norm())[:, None])
    width, _ = held.turn(entered[held.multiplied :], 1e-12)
    made = 0
    while width and made < min(steps, size):
        held.multiply(product, 1)
        made += 1
        width, _ = held.turn(held.small[held.multiplied :, held.multiplied - 1 :], 10 * held.precision * held.magnitude)
        width = min(width, 1)
    ritz, _, _ = held.ritz()
    return float(ritz[0]), float(ritz[-1])
