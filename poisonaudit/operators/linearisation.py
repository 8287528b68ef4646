"""One linearisation of the training problem, answering many products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from poisonaudit.errors import UsageError
from poisonaudit.operators.double_backward import DoubleBackward
from poisonaudit.operators.memory import PASSES_SHARE, ROWS_SHARE, Footprint, footprint
from poisonaudit.operators.precision import full_precision
from poisonaudit.operators.program import Unknown
from poisonaudit.operators.r_operator import ROperator
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name

PathName = Literal["auto", "general", "fast"]
_Part = ROperator | DoubleBackward

_PATHS = ("auto", "general", "fast")
_PROBE_ROWS = 4
# What the two paths may differ by on the probe, relative to the product; they add in different orders.
_AGREEMENT = {torch.float64: 1e-9, torch.float32: 2e-3}
# Temporaries of one block of columns; wider blocks are split. A CPU multiplies fastest while they stay in its cache.
_BLOCK_BYTES = {"cpu": 40_000_000}
_BLOCK_BYTES_ELSEWHERE = 2**30


class Linearisation:
    """Products with H, B, J and their adjoints at one point `(x, w)`, for vectors and for blocks of columns.

    The primal passes are made once. Products then take the hand-written R-operator where every layer has a formula
    (`path` "r_operator"), which is checked against the general path on a few rows when built, or double backward
    through a kept graph ("double_backward"), with the reason in `note`. A block of K columns has them along its last
    axis and counts as K products; one product costs about 1.3 to 2.2 gradients of the rows.

    With `rows` given, only those rows are held; they keep the factor 1/n of the whole problem, so products with B
    restricted to those rows are exact and cost only their share. Hessian products then hold only those rows' part,
    without decay.

    Memory: `memory_bytes` is what the kept passes hold plus what one product of one column needs on top, both counted
    on some of the rows and scaled to all (they grow in proportion). Above `memory_limit` the rows are split into
    chunks; where the passes alone do not fit they are rebuilt for every product, at about one gradient more. Blocks of
    columns run as many at a time as the limit allows.
    Gauss-Newton products on the general path keep another graph of the outputs, which is not counted.

    Args:
        problem: the point to linearise at.
        rows: positions (k,) in `problem.x`, or None for all.
        path: "auto", "general" (double backward) or "fast" (the R-operator, refused where it has no formula).
        memory_limit: bytes that kept passes and one product may take, None for no limit.

    Raises:
        UsageError: PA301, an unknown path; PA304, rows that are not there, or named twice; PA306, path="fast" where the
            R-operator does not apply; PA307, a limit below what one row needs. Products refuse directions of another
            shape or type (PA308).
    """

    def __init__(
        self,
        problem: Problem,
        rows: Tensor | None = None,
        *,
        path: PathName = "auto",
        memory_limit: int | None = None,
    ) -> None:
        if path not in _PATHS:
            raise unknown_name(path, _PATHS, "path")
        self.problem = problem
        self.rows = rows = None if rows is None else _positions(rows, problem)
        self.products = 0
        self._x = problem.x if rows is None else problem.x[rows]
        self._y = problem.y if rows is None else problem.y[rows]
        with full_precision(problem.dtype):
            self.note = "asked for" if path == "general" else _why_not_fast(problem, self._x, self._y)
            if path == "fast" and self.note:
                raise UsageError("PA306", f"the R-operator does not apply: {self.note}. Use path='auto'.")
            self._kind: type[_Part] = DoubleBackward if self.note else ROperator
            self._held: Footprint = footprint(lambda x, y: self._kind(problem, x, y), problem.size, self._x, self._y)
            self._limit = memory_limit
            self._chunk, self._keep = _chunking(self._held, len(self._x), memory_limit)
            self._parts = [self._build(span) for span in self._spans()] if self._keep else []
            if not self._keep:
                extra = f"passes are rebuilt for every product in chunks of {self._chunk} rows: memory limit"
                self.note = f"{self.note}; {extra}" if self.note else extra
            self._gradient = torch.zeros_like(problem.weights)
            for _, part in self._each():
                self._gradient += part.gradient
                del part
        if rows is None:
            self._gradient += problem.decay * problem.weights

    @property
    def path(self) -> str:
        """How products are made: "r_operator" or "double_backward"."""
        return "r_operator" if self._kind is ROperator else "double_backward"

    @property
    def memory_bytes(self) -> int:
        """Bytes that kept passes and one product take, by the stated model."""
        held = len(self._x) if self._keep else self._chunk
        return self._held.total(held, self._chunk)

    @property
    def gradient(self) -> Tensor:
        """`R(x, w)` (p,), or the rows' part of it."""
        return self._gradient

    def hessian(self, v: Tensor) -> Tensor:
        """`H v`: (p,) -> (p,), or (p, K) -> (p, K)."""
        return self._weights_in(self._checked(v, "v"), weights=True, inputs=False)[0]

    def mixed_adjoint(self, u: Tensor) -> Tensor:
        """`B^T u`: (p,) -> shaped like the rows' inputs, or (p, K) -> the same with K behind."""
        return self._weights_in(self._checked(u, "u"), weights=False, inputs=True)[1]

    def both_adjoint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """`(H u, B^T u)` from one pass."""
        return self._weights_in(self._checked(u, "u"), weights=True, inputs=True)

    def mixed(self, mu: Tensor) -> Tensor:
        """`B mu`: shaped like the rows' inputs -> (p,), or with K behind -> (p, K)."""
        return self._rows_in(
            self._checked(mu, "mu", self._x.shape),
            self._x.dim(),
            lambda part, block: part.second(None, block, weights=True, inputs=False)[0],
        )

    def gauss_newton(self, v: Tensor) -> Tensor:
        """`(J^T L'' J / n + decay) v`: the Hessian without the curvature of the network itself, (p,) or (p, K)."""

        def product(part: _Part, block: Tensor) -> Tensor:
            return part.pull_back(part.curve(part.push_forward(block)))

        result = self._sum(self._checked(v, "v"), product)
        return result if self.rows is not None else result + self.problem.decay * v

    def push_forward(self, v: Tensor) -> Tensor:
        """`J v`, the outputs' change along weights v: (p,) -> shaped like the outputs, (p, K) -> with K behind."""
        pieces: list[Tensor] = []
        self._checked(v, "v")
        for columns in self._blocks(v.reshape(len(v), -1)):
            block = columns.T.contiguous()
            rows = []
            for _, part in self._each():
                rows.append(part.push_forward(block))
                del part
            pieces.append(torch.cat(rows).movedim(1, -1))
        result = torch.cat(pieces, dim=-1)
        return result[..., 0] if v.dim() == 1 else result

    def pull_back(self, u: Tensor) -> Tensor:
        """`J^T u`: shaped like the outputs -> (p,), or with K behind -> (p, K)."""
        with torch.no_grad():
            outputs = self.problem.outputs(None, self._x[:1]).shape[1:]
        shape = torch.Size((len(self._x), *outputs))
        return self._rows_in(self._checked(u, "u", shape), len(shape), lambda part, block: part.pull_back(block))

    def _checked(self, one: Tensor, name: str, shape: torch.Size | None = None) -> Tensor:
        """A direction shaped like the weights, or as stated, with at most an axis of columns behind."""
        wanted = self.problem.weights.shape if shape is None else shape
        fits = isinstance(one, Tensor) and one.shape[: len(wanted)] == wanted and one.dim() <= len(wanted) + 1
        if not fits or 0 in one.shape or one.dtype != self.problem.dtype:
            got = f"{tuple(one.shape)} {one.dtype}" if isinstance(one, Tensor) else type(one).__name__
            raise UsageError(
                "PA308",
                f"{name} is {got}, {tuple(wanted)} {self.problem.dtype} is needed, with columns behind for a block. "
                "Give that shape and type.",
            )
        return one

    def _weights_in(self, v: Tensor, *, weights: bool, inputs: bool) -> tuple[Tensor, Tensor]:
        """H and B^T applied to directions in weight space; what is not asked for comes back empty."""
        one = v.dim() == 1
        hessian: list[Tensor] = []
        mixed: list[Tensor] = []
        for columns in self._blocks(v.reshape(len(v), -1)):
            block = columns.T.contiguous()
            total: Tensor | None = None
            rows: list[Tensor] = []
            for _, part in self._each():
                found, pulled = part.second(block, None, weights=weights, inputs=inputs)
                if found is not None:
                    total = found if total is None else total.add_(found)
                if pulled is not None:
                    rows.append(pulled)
                del part, found, pulled
            if total is not None:
                if self.rows is None and self.problem.decay:
                    total.add_(block, alpha=self.problem.decay)
                hessian.append(total.T)
            if inputs:
                mixed.append(_joined(rows, 0).movedim(1, -1))
        empty = v.new_empty(0)
        first = _joined(hessian, 1) if weights else empty
        second = _joined(mixed, -1) if inputs else empty
        if one:
            first = first[:, 0] if weights else first
            second = second[..., 0] if inputs else second
        return first.contiguous(), second.contiguous()

    def _rows_in(self, u: Tensor, dimensions: int, product: Callable[[_Part, Tensor], Any]) -> Tensor:
        """A product that takes one block a row, shaped (k, *s) or (k, *s, K), and gives weights."""
        one = u.dim() == dimensions
        wide = u[..., None] if one else u
        found = []
        for columns in self._blocks(wide):
            block = columns.movedim(-1, 1)
            total = torch.zeros(block.shape[1], self.problem.size, dtype=u.dtype, device=u.device)
            for span, part in self._each():
                total += product(part, block[span].contiguous())
                del part
            found.append(total.T)
        result = torch.cat(found, dim=1)
        return (result[:, 0] if one else result).contiguous()

    def _sum(self, v: Tensor, product: Callable[[_Part, Tensor], Tensor]) -> Tensor:
        found = []
        for columns in self._blocks(v.reshape(len(v), -1)):
            block = columns.T.contiguous()
            total = torch.zeros_like(block)
            for _, part in self._each():
                total += product(part, block)
                del part
            found.append(total.T)
        result = torch.cat(found, dim=1)
        return (result[:, 0] if v.dim() == 1 else result).contiguous()

    def _blocks(self, columns: Tensor) -> Iterator[Tensor]:
        """Split columns along the last axis so that temporaries stay small; counts the products."""
        self.products += columns.shape[-1]
        device = self._x.device.type
        room = _BLOCK_BYTES.get(device, _BLOCK_BYTES_ELSEWHERE)
        if self._limit is not None:
            room = min(room, self._limit - self._held.kept.at(len(self._x) if self._keep else self._chunk))
        at_once = room // self._held.product.at(self._chunk)
        if device == "cpu" and self._x.dim() == 4:
            # Blocks of pictures would have to be laid out anew for every convolution.
            at_once = 1
        with full_precision(self.problem.dtype):
            yield from columns.split(max(1, at_once), dim=-1)

    def _each(self) -> Iterator[tuple[slice, _Part]]:
        """The parts, kept or rebuilt one after the other; let go of each before the next, or two are held."""
        if self._keep:
            yield from zip(self._spans(), self._parts, strict=True)
        else:
            for span in self._spans():
                yield span, self._build(span)

    def _spans(self) -> list[slice]:
        count = len(self._x)
        return [slice(begin, min(begin + self._chunk, count)) for begin in range(0, count, self._chunk)]

    def _build(self, span: slice) -> _Part:
        return self._kind(self.problem, self._x[span], self._y[span])


def linearise(
    problem: Problem, rows: Tensor | None = None, *, path: PathName = "auto", memory_limit: int | None = None
) -> Linearisation:
    """The linearisation of `problem` (restricted to `rows`), built once and kept with the problem.

    Args:
        problem: the point.
        rows: positions (k,), None for all.
        path: see `Linearisation`.
        memory_limit: bytes, see `Linearisation`; None for the problem's own limit, of which all rows get half and
            some rows a tenth. The rest is for solves.

    Returns:
        The linearisation; the same one for the same arguments.
    """
    if memory_limit is None and problem.memory_limit is not None:
        memory_limit = problem.memory_limit // (PASSES_SHARE if rows is None else ROWS_SHARE)
    rows = None if rows is None else _positions(rows, problem)
    key = ("linearisation", None if rows is None else tuple(rows.tolist()), path, memory_limit)
    if key not in problem.cache:
        problem.cache[key] = Linearisation(problem, rows, path=path, memory_limit=memory_limit)
    kept: Linearisation = problem.cache[key]
    return kept


def _positions(rows: Tensor, problem: Problem) -> Tensor:
    """Positions of rows, each there and named once."""
    given = torch.as_tensor(rows, device=problem.device)
    whole = given.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if given.dim() != 1 or not len(given) or not whole:
        raise UsageError(
            "PA304", f"rows are {tuple(given.shape)} {given.dtype}. Give integer positions, (k,), at least one."
        )
    given = given.long()
    if int(given.min()) < 0 or int(given.max()) >= problem.rows or len(given.unique()) < len(given):
        raise UsageError(
            "PA304", f"rows must be among 0..{problem.rows - 1}, each once; got {given.tolist()[:8]}. Name others."
        )
    return given


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    """`torch.cat` that leaves a single part alone."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)


def _why_not_fast(problem: Problem, x: Tensor, y: Tensor) -> str:
    """Why the R-operator may not be used here; empty where it agrees with double backward on a few rows."""
    key = ("why not fast", tuple(x.shape[1:]))
    if key not in problem.cache:
        problem.cache[key] = _compare(problem, x[:_PROBE_ROWS], y[:_PROBE_ROWS])
    reason: str = problem.cache[key]
    return reason


def _compare(problem: Problem, x: Tensor, y: Tensor) -> str:
    try:
        fast = ROperator(problem, x, y)
    except Unknown as unknown:
        return f"no formula for this network: {unknown}"
    general = DoubleBackward(problem, x, y)
    generator = torch.Generator(device="cpu").manual_seed(0)
    v = torch.randn(2, problem.size, generator=generator, dtype=torch.float64).to(x)
    mu = torch.randn(x.shape[0], 2, *x.shape[1:], generator=generator, dtype=torch.float64).to(x)
    pairs = []
    for part in (fast, general):
        hessian, mixed = part.second(v, None, weights=True, inputs=True)
        pairs.append((part.gradient, hessian, mixed, part.second(None, mu, weights=True, inputs=False)[0]))
    for name, one, other in zip(("gradient", "H v", "B^T u", "B mu"), *pairs, strict=True):
        assert one is not None and other is not None
        scale = float(other.norm())
        apart = float((one - other).norm())
        if not apart <= _AGREEMENT[problem.dtype] * max(scale, 1e-30) + 1e-30 and not math.isclose(apart, 0.0):
            return f"it differs from double backward in {name} by {apart / max(scale, 1e-300):.1e} (relative)"
    return ""


def _chunking(held: Footprint, rows: int, limit: int | None) -> tuple[int, bool]:
    """Rows at once, and whether their passes are kept."""
    if limit is None or held.total(rows, rows) <= limit:
        return rows, True
    needs = (held.building, held.product)
    fitting = min((limit - held.kept.at(rows) - need.fixed) // need.row for need in needs)
    if fitting >= 1:
        # The passes fit, the temporaries of a product over all rows do not.
        return min(rows, fitting), True
    fitting = min((limit - held.kept.fixed - need.fixed) // (held.kept.row + need.row) for need in needs)
    if fitting < 1:
        need = held.total(1, 1)
        raise UsageError("PA307", f"the memory limit is {limit} bytes, one row needs {need}. Raise the limit.")
    return min(rows, fitting), False
