"""Products by double backward through one kept graph: slower than the R-operator, right for any network."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from poisonaudit.problem import Problem

Dot = Tensor | None

# From here on it is worth finding out whether columns go faster together.
_BLOCK = 8


class DoubleBackward:
    """Second derivatives of the rows' part of J at one point, for K directions at once.

    Directions in the weights are (K, p), in the inputs (n, K, *s), in the outputs (n, K, *c).

    Args:
        problem: the point.
        x: the rows' inputs, (n, *s).
        y: their labels.
    """

    def __init__(self, problem: Problem, x: Tensor, y: Tensor) -> None:
        self.problem, self.rows, self._y = problem, x.shape[0], y
        self._together: bool | None = None
        with torch.enable_grad():
            self._w = problem.weights.detach().clone().requires_grad_(True)
            self._x = x.detach().clone().requires_grad_(True)
            self._outputs = problem.outputs(self._w, self._x)
            value = problem.loss_per_row(self._outputs, y).sum() / problem.rows
            self._grad_w, self._grad_x = torch.autograd.grad(
                value, (self._w, self._x), create_graph=True, materialize_grads=True
            )
        self._output_graph: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def gradient(self) -> Tensor:
        """The rows' part of R, (p,)."""
        return self._grad_w.detach()

    def second(self, v: Dot, mu: Dot, *, weights: bool, inputs: bool) -> tuple[Dot, Dot]:
        """(H v, B^T v) without decay for v (K, p), each only if asked for; or B mu for mu (n, K, *s)."""
        if v is None:
            assert mu is not None and not inputs
            (found,) = self._pull(self._grad_x, (self._w,), mu.transpose(0, 1))
            return found, None
        assert mu is None
        leaves = ((self._w,) if weights else ()) + ((self._x,) if inputs else ())
        parts = list(self._pull(self._grad_w, leaves, v))
        first = parts.pop(0) if weights else None
        return first, parts.pop(0).transpose(0, 1) if inputs else None

    def push_forward(self, v: Tensor) -> Tensor:
        """`J v`, (n, K, *c): the derivative of `J^T u` in u is J^T, so pulling back through it pushes forward."""
        probe, pulled, _, _ = self._graphs()
        (found,) = self._pull(pulled, (probe,), v)
        return found.transpose(0, 1)

    def pull_back(self, u: Tensor) -> Tensor:
        """`J^T u` for u (n, K, *c): (K, p)."""
        (found,) = self._pull(self._outputs, (self._w,), u.transpose(0, 1))
        return found

    def curve(self, tangent: Tensor) -> Tensor:
        """The loss's curvature in the outputs, times tangents (n, K, *c)."""
        _, _, outputs, slope = self._graphs()
        (found,) = self._pull(slope, (outputs,), tangent.transpose(0, 1))
        return found.transpose(0, 1)

    def _graphs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Graphs for J v and L'', made when first asked for."""
        if self._output_graph is None:
            with torch.enable_grad():
                probe = torch.zeros_like(self._outputs, requires_grad=True)
                (pulled,) = torch.autograd.grad(
                    self._outputs, self._w, probe, create_graph=True, materialize_grads=True
                )
                outputs = self._outputs.detach().requires_grad_(True)
                value = self.problem.loss_per_row(outputs, self._y).sum() / self.problem.rows
                (slope,) = torch.autograd.grad(value, outputs, create_graph=True, materialize_grads=True)
            self._output_graph = (probe, pulled, outputs, slope)
        return self._output_graph

    def _pull(self, output: Tensor, leaves: tuple[Tensor, ...], cotangents: Tensor) -> tuple[Tensor, ...]:
        """Vector-Jacobian products for cotangents (K, *output): zero where nothing depends on a leaf."""
        count = cotangents.shape[0]
        if not output.requires_grad:
            return tuple(leaf.new_zeros(count, *leaf.shape) for leaf in leaves)

        def one_by_one() -> tuple[Tensor, ...]:
            columns = [_grad(output, leaves, one.contiguous(), False) for one in cotangents]
            return tuple(torch.stack(part) for part in zip(*columns, strict=True))

        if count < _BLOCK or self._together is False:
            return one_by_one()

        def together() -> tuple[Tensor, ...]:
            with warnings.catch_warnings():
                # "performance drop": a layer without a batching rule; the timing below notices.
                warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
                return _grad(output, leaves, cotangents.contiguous(), True)

        if self._together is None:
            return self._choose(one_by_one, together)
        return together()

    def _choose(
        self, one_by_one: Callable[[], tuple[Tensor, ...]], together: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Try both ways once; layers without a batching rule settle it."""
        begun = time.perf_counter()
        apart = one_by_one()
        middle = time.perf_counter()
        try:
            found = together()
        except RuntimeError:
            self._together = False
            return apart
        self._together = time.perf_counter() - middle < middle - begun
        return found


def _grad(output: Tensor, leaves: tuple[Tensor, ...], cotangent: Tensor, batched: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        output, leaves, cotangent, retain_graph=True, materialize_grads=True, is_grads_batched=batched
    )
