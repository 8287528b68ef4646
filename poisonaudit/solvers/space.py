"""An orthonormal basis with the operator's image of it, kept from one right-hand side to the next."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poisonaudit.errors import NumericalFailure
from poisonaudit.solvers.solve import Operator

# Vectors that a new space has room for.
FIRST_ROOM = 32
# Directions this much shorter than the longest are made orthogonal once more.
_KEPT = 0.1
# A pass leaves what it takes away times the error of the basis, which would feed on itself: another one follows until
# there is hardly anything to take away.
_CLEAN = 1e-3
_MOST_PASSES = 4
_MOST_OPEN = 64
# One stretch of all vectors that is rotated at once.
STRETCH_BYTES = 4_000_000


def grown(held: int) -> int:
    """Vectors that a space makes room for when it holds as many as it can: little more, as both lie in memory then."""
    return held + max(FIRST_ROOM, held // 8)


class KrylovSpace:
    """Orthonormal vectors V, the first m of them multiplied: `A V_m = V T` with T (M, m), exactly to rounding.

    A block Krylov space of one block of right-hand sides, or of several, one after the other: later ones find all
    products of the earlier ones in T and pay none for them. What a product adds is orthogonalised against its
    neighbours, then against all of V until a pass finds hardly anything.

    T belongs to A. For `A + s I` it is T with s added on the diagonal, so one space serves every damping.

    Args:
        size: p.
        precision: unit roundoff of the operator, which says what is noise in an image.
        device: where V lives; T stays on the CPU.
        room: vectors to make room for at once; without it the room grows, and a copy is made whenever it does.
    """

    def __init__(self, size: int, precision: float, device: torch.device | None = None, room: int = FIRST_ROOM) -> None:
        self.precision = precision
        self.count = 0
        self.multiplied = 0
        self.runs = 0
        self.magnitude = 0.0
        # Whether all vectors are known to lie in the range of A, so that no solution in V has a kernel part.
        self.pure = True
        self._room = room
        self._rows = torch.empty(room, size, dtype=torch.float64, device=device)
        self._small = torch.zeros(room, room, dtype=torch.float64)

    @property
    def size(self) -> int:
        """Length p of the vectors."""
        return self._rows.shape[1]

    @property
    def open(self) -> int:
        """Number of vectors that were not multiplied yet."""
        return self.count - self.multiplied

    @property
    def vectors(self) -> Tensor:
        """V as rows, (M, p)."""
        return self._rows[: self.count]

    @property
    def small(self) -> Tensor:
        """T, (M, m)."""
        return self._small[: self.count, : self.multiplied]

    @classmethod
    def restored(cls, vectors: Tensor, small: Tensor, precision: float, runs: int, magnitude: float) -> KrylovSpace:
        """The space again from what `vectors` and `small` gave.

        Args:
            vectors: (M, p).
            small: (M, m).
            precision: as for the class.
            runs: right-hand sides that were put in.
            magnitude: largest image length seen.

        Returns:
            An equal space.
        """
        space = cls(vectors.shape[1], precision, vectors.device)
        space._reserve(len(vectors))
        space.count, space.multiplied = small.shape
        space._rows[: space.count] = vectors
        space._small[: small.shape[0], : small.shape[1]] = small
        space.runs, space.magnitude = runs, magnitude
        return space

    def enter(self, block: Tensor) -> Tensor:
        """Put columns in, new directions last.

        Args:
            block: (p, K), unit or zero columns, float64.

        Returns:
            Their coefficients (M, K) in V.
        """
        before = self.count
        try:
            coefficients = self._represent(block.T, 10 * torch.finfo(torch.float64).eps)
        except BaseException:
            self.count = before
            raise
        self.runs += 1
        return coefficients

    def turn(self, directions: Tensor, floor: float) -> tuple[int, Tensor | None]:
        """Rotate the open vectors so that the first of them span given directions.

        Args:
            directions: (open, k), coefficients in the open vectors.
            floor: singular values up to it count as zero: what is dropped stays open and may be asked for later.

        Returns:
            How many are needed, and the rotation (open, open) to apply to the last rows of coefficients, or None.
        """
        left, values, _ = torch.linalg.svd(directions, full_matrices=True)
        rank = int((values > floor).sum())
        if rank in (0, self.open):
            return rank, None
        first, last = self.multiplied, self.count
        turned, images = left.T.to(self._rows.device) @ self._rows[first:last], left.T @ self._small[first:last, :first]
        self._rows[first:last], self._small[first:last, :first] = turned, images
        return rank, left.T

    def multiply(self, operator: Operator, width: int) -> None:
        """Multiply the first `width` open vectors.

        Args:
            operator: A for float64 columns (p, K), or (p,) where `width` is 1.
            width: how many.

        Raises:
            NumericalFailure: PA401, the product is not finite.
        """
        first = self.multiplied
        block = self._rows[first : first + width]
        images = operator(block[0])[None] if width == 1 else operator(block.T.contiguous()).T
        longest = float(images.norm(dim=1).max())
        if not math.isfinite(longest):
            raise NumericalFailure(
                "PA401",
                "a product with the Hessian is NaN or infinite. Check the loss at these weights; rescale inputs.",
            )
        self.magnitude = max(self.magnitude, longest)
        floor = self._noise()
        before = self.count
        try:
            coefficients = self._represent(images, floor, near=slice(max(0, first - width), first + width))
        except BaseException:
            # An interrupt must not leave vectors without their part of T: the space goes on as it was.
            self.count = before
            raise
        self._small[: self.count, first : first + width] = coefficients
        self.multiplied += width

    def combine(self, coefficients: Tensor) -> Tensor:
        """`V_m y` for coefficients (m, K): (p, K)."""
        return self._rows[: len(coefficients)].T @ coefficients.to(self._rows.device)

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values (m,), their coefficients (m, m) and their residual lengths (m,); values ascending."""
        m = self.multiplied
        square = self.small[:m]
        values, vectors = torch.linalg.eigh(0.5 * (square + square.T))
        return values, vectors, (self.small[m:] @ vectors).norm(dim=0)

    def compress(self, most: int) -> None:
        """Keep at most `most` multiplied vectors: Ritz vectors, of the largest magnitudes and of the smallest.

        The residuals of all Ritz vectors lie in the open vectors, so `A V = V T` stays exact without a product (a
        thick restart, Wu and Simon, 2000). Open vectors that no residual needs go too.

        Args:
            most: vectors to keep.
        """
        m = self.multiplied
        if m == 0:
            self.count = 0
            return
        values, vectors, residuals = self.ritz()
        order = values.abs().argsort(descending=True)
        if m > most:
            # Large ones are found first and hinder most; small ones pay only once they are settled.
            rest = order[most - most // 4 :]
            settled = rest[residuals[rest] <= 1e-3 * float(values.abs().max())].flip(0)[: most // 4]
            large = order[~torch.isin(order, settled)][: most - len(settled)]
            order = torch.cat([large, settled])
        left, sizes, _ = torch.linalg.svd(self.small[m:] @ vectors[:, order], full_matrices=False)
        floor = 10 * self.precision * self.magnitude
        keep = left[:, : min(_MOST_OPEN, max(1, most // 2), int((sizes > floor).sum()))]
        outer = keep.T @ self.small[m:] @ vectors[:, order]
        lost = self.small[m:] @ vectors[:, order] - keep @ outer
        order, outer = order[lost.norm(dim=0) <= floor], outer[:, lost.norm(dim=0) <= floor]
        basis = torch.zeros(self.count, len(order) + keep.shape[1], dtype=torch.float64)
        basis[:m, : len(order)] = vectors[:, order]
        basis[m:, len(order) :] = keep
        self._replace(basis, torch.cat([torch.diag(values[order]), outer]))

    def keep_range(self) -> None:
        """Give up what may have a part in the kernel of A, one vector for each open one, at no product.

        `A V z` lies in the range; where z has no image in the open vectors, `A V z` is in the multiplied part of V, and
        so is known `A A V z`. What is kept is the space that would have come of starting from `A b` instead of b.
        """
        m = self.multiplied
        self.pure = True
        if m == 0:
            self.count = 0
            return
        inner = torch.eye(m, dtype=torch.float64)
        if self.open:
            left, sizes, _ = torch.linalg.svd(self.small[m:].T, full_matrices=False)
            rank = int((sizes > 1e-14 * self.magnitude).sum())
            # The rest of an orthonormal basis that begins with the rows of the open part.
            inner = torch.linalg.qr(left[:, :rank], mode="complete")[0][:, rank:]
        left, sizes, _ = torch.linalg.svd(self.small[:m] @ inner, full_matrices=False)
        # Weak images carry their rounding into the kernel.
        images = torch.zeros(self.count, int((sizes > 1e-6 * self.magnitude).sum()), dtype=torch.float64)
        images[:m] = left[:, : images.shape[1]]
        second = self.small @ images[:m]
        square = images.T @ second
        left, sizes, _ = torch.linalg.svd(second - images @ square, full_matrices=False)
        room = min(len(images) - images.shape[1], int((sizes > self._noise()).sum()))
        opened = left[:, :room]
        for _ in range(2):
            # Short directions carry the rounding of long ones.
            opened, _ = torch.linalg.qr(opened - images @ (images.T @ opened))
        basis = torch.cat([images, opened], dim=1)
        self._replace(basis, basis.T @ second)

    def _noise(self) -> float:
        """Length up to which a part of an image is rounding."""
        return 10 * self.precision * self.magnitude * max(1, self.count) ** 0.5

    def _replace(self, basis: Tensor, small: Tensor) -> None:
        """Change over to the vectors `V basis`, of which `small` is the new T."""
        turned = basis.T.to(self._rows.device)
        wide = max(1, STRETCH_BYTES // (8 * max(1, self.count)))
        for begin in range(0, self.size, wide):
            # In place: there may be no room for both.
            part = self._rows[:, begin : begin + wide]
            part[: len(turned)] = turned @ part[: self.count]
        self.count, self.multiplied = small.shape
        room = max(self._room, self.count + FIRST_ROOM)
        if len(self._rows) > 2 * room:
            self._move(room)
        self._small = torch.zeros(len(self._rows), len(self._rows), dtype=torch.float64)
        self._small[: small.shape[0], : small.shape[1]] = small

    def _represent(self, rows: Tensor, floor: float, near: slice | None = None) -> Tensor:
        """Coefficients (M, k) of rows (k, p) in V, which grows by what is new in them."""
        coefficients = torch.zeros(len(rows), self.count, dtype=torch.float64)
        if near is not None and near.stop > near.start:
            basis = self._rows[near]
            part = rows @ basis.T
            rows = rows - part @ basis
            coefficients[:, near] += part.cpu()
        rows = self._outside(rows, coefficients)
        if len(rows) == 1:
            length = float(rows.norm())
            directions, outer = rows / max(length, 1e-300), torch.full((1, 1), length, dtype=torch.float64)
            if length <= floor:
                return coefficients.T
        else:
            basis, triangle = torch.linalg.qr(rows.T)
            left, sizes, right = torch.linalg.svd(triangle.cpu())
            new = int((sizes > floor).sum())
            if new == 0:
                return coefficients.T
            directions = (basis @ left[:, :new].to(basis.device)).T
            outer = (sizes[:new, None] * right[:new]).T
            if float(sizes[new - 1]) < _KEPT * float(rows.norm(dim=1).max()):
                # Short directions carry the rounding of long ones.
                inner = torch.zeros(new, self.count, dtype=torch.float64)
                directions, triangle = torch.linalg.qr(self._outside(directions, inner).T)
                directions = directions.T
                coefficients += outer @ inner
                outer = outer @ triangle.T.cpu()
        new = len(directions)
        self._reserve(self.count + new)
        self._rows[self.count : self.count + new] = directions
        self.count += new
        return torch.cat([coefficients, outer], dim=1).T

    def _outside(self, rows: Tensor, coefficients: Tensor) -> Tensor:
        """The part of rows outside the span; what was inside is added to the coefficients."""
        if self.count == 0:
            return rows
        basis = self.vectors
        for _ in range(_MOST_PASSES):
            part = rows @ basis.T
            rows = torch.addmm(rows, part, basis, alpha=-1.0)
            coefficients += part.cpu()
            if bool((part.norm(dim=1) <= _CLEAN * rows.norm(dim=1)).all()):
                break
        return rows

    def _reserve(self, rows: int) -> None:
        held = len(self._rows)
        if rows <= held:
            return
        small = self._small
        self._move(max(rows, grown(held)))
        self._small = torch.zeros(len(self._rows), len(self._rows), dtype=torch.float64)
        self._small[:held, :held] = small

    def _move(self, room: int) -> None:
        """Change over to another size."""
        rows = torch.empty(room, self.size, dtype=torch.float64, device=self._rows.device)
        rows[: self.count] = self._rows[: self.count]
        self._rows = rows
