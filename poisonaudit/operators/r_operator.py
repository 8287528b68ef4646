"""Pearlmutter's R-operator: products by formula, layer by layer, over primal values computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from poisonaudit.operators.pieces import Dot, Parameter, Piece, channels_last
from poisonaudit.operators.program import Program, Step, Unknown, build_program
from poisonaudit.operators.weightless import ElementwisePiece
from poisonaudit.problem import Problem


class ROperator:
    """Second derivatives of the rows' part of J at one point, for K directions at once.

    Directions in the weights are (K, p), in the inputs (n, K, *s), in the outputs (n, K, *c).

    Args:
        problem: the point.
        x: the rows' inputs, (n, *s).
        y: their labels.

    Raises:
        Unknown: the network holds something without a formula.
    """

    def __init__(self, problem: Problem, x: Tensor, y: Tensor) -> None:
        self.problem, self.rows = problem, x.shape[0]
        with torch.no_grad():
            self._program = self._build(x)
            self._loss = _LossPart(problem, self._program.outputs, y)
            self._delta_x = self._backward(self._loss.slope)

    def _build(self, x: Tensor) -> Program:
        problem = self.problem
        module, parameters, begin = problem._module, {}, 0
        values = problem.parameters(problem.weights)
        for name, own in module.named_parameters():
            end = begin + own.numel()
            value = values[name]
            laid_out = channels_last(value) if value.dim() == 4 else value.contiguous()
            parameters[id(own)] = Parameter(begin, end, laid_out)
            begin = end
        return build_program(module, parameters, x)

    def _backward(self, slope: Tensor) -> Tensor:
        """Primal backward pass: every piece learns the adjoint of its output."""
        adjoints: list[Dot] = [None] * (len(self._program.steps) + 1)
        adjoints[-1] = slope
        for index in range(len(self._program.steps), 0, -1):
            step, delta = self._program.steps[index - 1], adjoints[index]
            adjoints[index] = None
            if delta is None:
                raise Unknown("a branch that the output does not use")
            for source in step.sources:
                carried = delta if step.piece is None else step.piece.backward(delta)
                known = adjoints[source]
                adjoints[source] = carried if known is None else known + carried
        assert adjoints[0] is not None
        return adjoints[0]

    @property
    def gradient(self) -> Tensor:
        """The rows' part of R, (p,)."""
        return self.pull_back(self._loss.slope[:, None])[0]

    @torch.no_grad()
    def push_forward(self, v: Tensor) -> Tensor:
        """`J v` for v (K, p): tangents of the outputs, (n, K, *c)."""
        return self._tangents(v, None)[0]

    def _tangents(self, v: Dot, mu: Dot) -> tuple[Tensor, list[Dot]]:
        """Tangent of the outputs, (n, K, *c), with the tangents that the backward pass needs."""
        steps = self._program.steps
        dots: list[Dot] = [mu, *[None] * len(steps)]
        last = _last_uses(steps)
        for index, step in enumerate(steps, start=1):
            source = step.sources[0]
            # Large blocks cost more to allocate than to multiply: write over a tangent nobody reads again.
            owned = source > 0 and _is_fresh(steps[source - 1].piece) and last[source] == (index, False)
            if step.piece is None:
                first, second = (dots[one] for one in step.sources)
                if first is None or second is None:
                    dots[index] = second if first is None else first
                else:
                    dots[index] = first.add_(second) if owned and first is not second else first + second
            elif isinstance(step.piece, ElementwisePiece):
                dots[index] = step.piece.tangent(dots[source], v, overwrite=owned)
            else:
                dots[index] = step.piece.tangent(dots[step.sources[0]], v)
            for source in step.sources:
                if last[source] == (index, False):
                    dots[source] = None
        result = dots[-1]
        if result is None:
            count = v.shape[0] if v is not None else mu.shape[1] if mu is not None else 1
            shape = self._program.outputs.shape
            result = self._program.outputs.new_zeros(shape[0], count, *shape[1:])
        return result, dots

    @torch.no_grad()
    def second(self, v: Dot, mu: Dot, *, weights: bool, inputs: bool) -> tuple[Dot, Dot]:
        """Derivative of (grad_w J, grad_x J) along (v, mu), each only if asked for.

        Returns:
            (H v, B^T v) without decay where mu is None; where v is None, the first is B mu.
        """
        tangent, dots = self._tangents(v, mu)
        return self._adjoint(self._loss.curve(tangent), dots, v, weights=weights, inputs=inputs)

    @torch.no_grad()
    def pull_back(self, u: Tensor) -> Tensor:
        """`J^T u` for u (n, K, *c): (K, p)."""
        dots: list[Dot] = [None] * (len(self._program.steps) + 1)
        found = self._adjoint(u, dots, None, weights=True, inputs=False)[0]
        assert found is not None
        return found

    @torch.no_grad()
    def curve(self, tangent: Tensor) -> Tensor:
        """The loss's curvature in the outputs, times tangents (n, K, *c)."""
        return self._loss.curve(tangent)

    def _adjoint(self, top: Tensor, dots: list[Dot], v: Dot, *, weights: bool, inputs: bool) -> tuple[Dot, Dot]:
        steps, problem = self._program.steps, self.problem
        count = top.shape[1]
        gradient = top.new_zeros(count, problem.size) if weights else None
        adjoints: list[Dot] = [None] * (len(steps) + 1)
        adjoints[-1] = top
        owned = [False] * len(adjoints)
        for index in range(len(steps), 0, -1):
            step, ddelta = steps[index - 1], adjoints[index]
            adjoints[index] = None
            for source in step.sources:
                wanted = source > 0 or inputs
                if step.piece is None:
                    carried = ddelta
                else:
                    overwrite = {"overwrite": owned[index]} if step.piece.overwrites else {}
                    carried = step.piece.adjoint(ddelta, dots[source], v, gradient, wanted, **overwrite)
                if carried is not None and wanted:
                    known = adjoints[source]
                    if known is not None:
                        carried = known.add_(carried) if owned[source] else known + carried
                    adjoints[source] = carried
                    owned[source] = known is not None or _is_fresh(step.piece)
        found = adjoints[0]
        if inputs and found is None:
            shape = self._delta_x.shape
            found = top.new_zeros(shape[0], count, *shape[1:])
        return gradient, found if inputs else None


class _LossPart:
    """Slope and curvature of the mean loss in the outputs."""

    def __init__(self, problem: Problem, outputs: Tensor, y: Tensor) -> None:
        self.problem, self.outputs, self.y = problem, outputs, y
        self.scale = 1.0 / problem.rows
        if problem.loss == "cross_entropy":
            self.probability = outputs.softmax(1)
            self.slope = self.probability.clone()
            self.slope[torch.arange(len(y), device=y.device), y] -= 1.0
            self.slope *= self.scale
        elif problem.loss == "half_squared":
            self.slope = (outputs - y) * self.scale
        else:
            with torch.enable_grad():
                self.leaf = outputs.detach().requires_grad_(True)
                value = problem.loss_per_row(self.leaf, y).sum() * self.scale
                (self.graph,) = torch.autograd.grad(value, self.leaf, create_graph=True, materialize_grads=True)
            self.slope = self.graph.detach()

    def curve(self, tangent: Tensor) -> Tensor:
        """`L''` times tangents (n, K, *c)."""
        if self.problem.loss == "cross_entropy":
            weighted = tangent * self.probability[:, None]
            return (weighted - self.probability[:, None] * weighted.sum(2, keepdim=True)).mul_(self.scale)
        if self.problem.loss == "half_squared":
            return tangent * self.scale
        if not self.graph.requires_grad:
            return torch.zeros_like(tangent)
        columns = [
            torch.autograd.grad(self.graph, self.leaf, one.contiguous(), retain_graph=True, materialize_grads=True)[0]
            for one in tangent.unbind(1)
        ]
        return torch.stack(columns, dim=1)


def _is_fresh(piece: Piece | None) -> bool:
    return piece is not None and piece.fresh


def _last_uses(steps: tuple[Step, ...]) -> dict[int, tuple[int, bool]]:
    """For every output, the last step that reads it and whether the backward pass reads its tangent."""
    found: dict[int, tuple[int, bool]] = {}
    for index, step in enumerate(steps, start=1):
        for source in step.sources:
            piece = step.piece
            kept = found.get(source, (0, False))[1] or (piece is not None and piece.keeps_input)
            found[source] = (index, kept)
    return found
