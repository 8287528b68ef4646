"""One linearisation of the training problem, kept as a graph, answering many products."""

from __future__ import annotations

import torch
from torch import Tensor

from poisonaudit.problem import Problem


class Linearisation:
    """Second derivatives of `J` at one point `(x, w)` by double backward through one kept graph.

    With `rows` given, only those rows are in the graph; they keep the factor 1/n of the whole problem, so products
    with the mixed derivative B restricted to those rows are exact and cost only their share. Hessian products then
    hold only those rows' part, without decay.

    `products` counts every product answered; one costs about two gradients of the rows in the graph.

    Args:
        problem: the point to linearise at.
        rows: positions (k,) in `problem.x`, or None for all.
    """

    def __init__(self, problem: Problem, rows: Tensor | None = None) -> None:
        self.problem = problem
        self.rows = rows
        self.products = 0
        x = problem.x if rows is None else problem.x[rows]
        y = problem.y if rows is None else problem.y[rows]
        with torch.enable_grad():
            self._w = problem.weights.detach().clone().requires_grad_(True)
            self._x = x.detach().clone().requires_grad_(True)
            self._outputs = problem.outputs(self._w, self._x)
            value = problem.loss_per_row(self._outputs, y).sum() / problem.rows
            if rows is None:
                value = value + 0.5 * problem.decay * self._w.dot(self._w)
            self._grad_w, self._grad_x = torch.autograd.grad(
                value, (self._w, self._x), create_graph=True, materialize_grads=True
            )
        self._y = y
        self._gauss_newton_graph: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def gradient(self) -> Tensor:
        """`R(x, w)` (p,), or the rows' part of it."""
        return self._grad_w.detach()

    def hessian(self, v: Tensor) -> Tensor:
        """`H v`: (p,) -> (p,)."""
        return self._columns(self._grad_w, (self._w,), v)[0]

    def mixed(self, mu: Tensor) -> Tensor:
        """`B mu`: shaped like the rows' inputs -> (p,)."""
        return self._columns(self._grad_x, (self._w,), mu)[0]

    def mixed_adjoint(self, u: Tensor) -> Tensor:
        """`B^T u`: (p,) -> shaped like the rows' inputs."""
        return self._columns(self._grad_w, (self._x,), u)[0]

    def both_adjoint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """`(H u, B^T u)` from one backward pass."""
        hessian, mixed = self._columns(self._grad_w, (self._w, self._x), u)
        return hessian, mixed

    def _columns(self, output: Tensor, leaves: tuple[Tensor, ...], cotangent: Tensor) -> tuple[Tensor, ...]:
        """Pull one cotangent back, or each of a block along the last axis."""
        if cotangent.dim() == output.dim():
            self.products += 1
            return _pull_back(output, leaves, cotangent)
        self.products += cotangent.shape[-1]
        parts = [_pull_back(output, leaves, column) for column in cotangent.unbind(-1)]
        return tuple(torch.stack(part, dim=-1) for part in zip(*parts, strict=True))

    def gauss_newton(self, v: Tensor) -> Tensor:
        """`(J^T L'' J / n + decay) v`: the Hessian without the curvature of the network itself, (p,) -> (p,)."""
        self.products += 1
        probe, pulled, outputs, loss_gradient = self._gauss_newton_parts()
        (pushed,) = _pull_back(pulled, (probe,), v)
        (curved,) = _pull_back(loss_gradient, (outputs,), pushed)
        (result,) = _pull_back(self._outputs, (self._w,), curved)
        return result if self.rows is not None else result + self.problem.decay * v

    def push_forward(self, v: Tensor) -> Tensor:
        """`J v`, the outputs' change along weights v: (p,) -> shaped like the outputs."""
        self.products += 1
        probe, pulled, _, _ = self._gauss_newton_parts()
        return _pull_back(pulled, (probe,), v)[0]

    def pull_back(self, u: Tensor) -> Tensor:
        """`J^T u`: shaped like the outputs -> (p,)."""
        self.products += 1
        return _pull_back(self._outputs, (self._w,), u)[0]

    def _gauss_newton_parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Graphs for J v (the derivative of J^T u in u is J^T, so pulling back through it pushes forward) and L''."""
        if self._gauss_newton_graph is None:
            with torch.enable_grad():
                probe = torch.zeros_like(self._outputs, requires_grad=True)
                (pulled,) = torch.autograd.grad(
                    self._outputs, self._w, probe, create_graph=True, materialize_grads=True
                )
                outputs = self._outputs.detach().requires_grad_(True)
                value = self.problem.loss_per_row(outputs, self._y).sum() / self.problem.rows
                (loss_gradient,) = torch.autograd.grad(value, outputs, create_graph=True, materialize_grads=True)
            self._gauss_newton_graph = (probe, pulled, outputs, loss_gradient)
        return self._gauss_newton_graph


def linearise(problem: Problem, rows: Tensor | None = None) -> Linearisation:
    """The linearisation of `problem` (restricted to `rows`), built once and kept with the problem."""
    key = ("linearisation", None if rows is None else tuple(rows.tolist()))
    if key not in problem.cache:
        problem.cache[key] = Linearisation(problem, rows)
    kept: Linearisation = problem.cache[key]
    return kept


def _pull_back(outputs: Tensor, inputs: tuple[Tensor, ...], cotangent: Tensor) -> tuple[Tensor, ...]:
    """Vector-Jacobian product; zero where the outputs do not depend on an input at all."""
    if not outputs.requires_grad:
        return tuple(torch.zeros_like(value) for value in inputs)
    return torch.autograd.grad(outputs, inputs, cotangent, retain_graph=True, materialize_grads=True)
