"""The training problem: model, loss, decay and data as one smooth function of flat weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from poisonaudit.errors import InputRefused, expect_kind, wrong_type
from poisonaudit.layers import changes_when_training
from poisonaudit.losses import resolve_loss
from poisonaudit.row_by_row import why_not_row_by_row

Loss = str | Callable[[Tensor, Tensor], Tensor]


class Problem:
    """`J(w; x) = (1/n) sum_i L(f(x_i, w), y_i) + (decay/2) |w|^2` at one point `(x, w)`.

    A Problem is a value: the model is copied, and `at` and `with_data` return new Problems.

    Args:
        model: a module in eval mode as far as dropout and normalisation go; its parameters now are `w`.
        loss: "cross_entropy", "half_squared", or a callable `(outputs, y) -> (n,)`.
        x: training inputs, shape (n, ...), of the model's dtype and device.
        y: integer labels (n,), or real targets shaped like the outputs.
        decay: weight of `|w|^2 / 2`, over all p entries, biases included.
        memory_limit: bytes that one linearisation here and the solves with it may hold together, None for no limit.
            Rows are then taken in chunks, and a Krylov basis is restarted when its share is full.

    Raises:
        InputRefused: PA120 train-mode layers, PA121 mixed dtypes or devices, PA122 no parameters, PA123 a bad
            decay or memory limit, PA127 a model of the wrong kind, PA129 a model that mixes rows, draws at random,
            uses a module twice or freezes some of its parameters, PA210 NaN or infinite entries, PA211 shapes that do
            not fit, PA212 labels out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        x: Tensor,
        y: Tensor,
        decay: float = 0.0,
        *,
        memory_limit: int | None = None,
    ) -> None:
        _refuse_other_types(model, x, y, decay, memory_limit)
        _refuse_unusable(model, x, decay)
        # Layers that train differently were refused; eval mode also settles those that look at `training` themselves.
        self._module = copy.deepcopy(model).requires_grad_(False).eval()
        named = dict(self._module.named_parameters())
        self.names: tuple[str, ...] = tuple(named)
        self.shapes: tuple[torch.Size, ...] = tuple(value.shape for value in named.values())
        self._sizes = [value.numel() for value in named.values()]
        self.weights: Tensor = torch.cat([value.detach().reshape(-1) for value in named.values()]).clone()
        _refuse_nonfinite(self.weights, "weights", "PA124", "Train the model again, or pass other weights.")
        self.x: Tensor = x.detach().clone()
        self.y: Tensor = y.detach().clone()
        self.decay = float(decay)
        self.memory_limit = memory_limit
        self.loss: Loss = loss
        with torch.no_grad():
            outputs = _first_outputs(self)
            _refuse_mixed_rows(self, outputs)
        self.loss_per_row, self.y = resolve_loss(loss, outputs, self.y)
        # Expensive facts about this point (kept graph, factorised curvature), filled by operators/ and sensitivity/.
        self.cache: dict[Any, Any] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of weights and inputs."""
        return self.weights.dtype

    @property
    def device(self) -> torch.device:
        """Device of weights and inputs."""
        return self.weights.device

    @property
    def rows(self) -> int:
        """Number n of training rows."""
        return self.x.shape[0]

    @property
    def size(self) -> int:
        """Number p of weights."""
        return self.weights.numel()

    def parameters(self, weights: Tensor) -> dict[str, Tensor]:
        """Split flat weights (p,) into named tensors; differentiable."""
        parts = torch.split(weights, self._sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def outputs(self, weights: Tensor | None = None, x: Tensor | None = None) -> Tensor:
        """Model outputs at flat weights (default: this point) for inputs x (default: the training rows)."""
        point = self.weights if weights is None else weights
        # The fused attention kernels cannot be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH):
            result: Tensor = functional_call(self._module, self.parameters(point), (self.x if x is None else x,))
        return result

    def losses(self, weights: Tensor | None = None, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Loss of each row (n,), decay not included."""
        return self.loss_per_row(self.outputs(weights, x), self.y if y is None else y)

    def objective(self, weights: Tensor | None = None, x: Tensor | None = None) -> Tensor:
        """`J(w; x)`, a scalar; differentiable in both arguments."""
        point = self.weights if weights is None else weights
        return self.losses(point, x).sum() / self.rows + 0.5 * self.decay * point.dot(point)

    def gradient(self, weights: Tensor | None = None, x: Tensor | None = None) -> Tensor:
        """`R(x, w) = grad_w J`, shape (p,)."""
        point = (self.weights if weights is None else weights).detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.objective(point, x), point)
        return gradient

    def at(self, weights: Tensor) -> Problem:
        """The same problem at other weights (p,).

        Returns:
            A new Problem.

        Raises:
            InputRefused: PA125, the shape or dtype differs; PA124, NaN or infinite entries.
        """
        if weights.shape != self.weights.shape or weights.dtype != self.dtype:
            raise InputRefused(
                "PA125",
                f"weights are {tuple(weights.shape)} {weights.dtype}, this problem has "
                f"{tuple(self.weights.shape)} {self.dtype}. Flatten in named_parameters() order.",
            )
        _refuse_nonfinite(weights, "weights", "PA124", "Check the step that produced them.")
        return self._replace(weights=weights.detach().to(self.device).clone())

    def with_data(self, x: Tensor) -> Problem:
        """The same problem with other inputs, shaped like the present ones; labels stay.

        Returns:
            A new Problem.

        Raises:
            InputRefused: PA211, the shape differs; PA121, the dtype differs; PA210, NaN or infinite entries.
        """
        if x.shape != self.x.shape:
            raise InputRefused(
                "PA211",
                f"new inputs are {tuple(x.shape)}, the training rows are {tuple(self.x.shape)}. Keep the shape.",
            )
        if x.dtype != self.dtype:
            raise InputRefused("PA121", f"new inputs are {x.dtype}, the problem is {self.dtype}. Convert with .to().")
        _refuse_nonfinite(x, "inputs", "PA210", "Remove or impute those rows.")
        return self._replace(x=x.detach().to(self.device).clone())

    def to(self, dtype: torch.dtype) -> Problem:
        """The same problem in another floating type.

        Returns:
            A new Problem; real targets are converted too.
        """
        y = self.y.to(dtype) if self.y.is_floating_point() else self.y
        return Problem(
            self.module().to(dtype), self.loss, self.x.to(dtype), y, self.decay, memory_limit=self.memory_limit
        )

    def module(self) -> nn.Module:
        """A fresh copy of the model holding this point's weights, in eval mode."""
        model = copy.deepcopy(self._module)
        with torch.no_grad():
            for name, value in self.parameters(self.weights).items():
                model.get_parameter(name).copy_(value)
        return model.eval()

    def without_cache(self, keep: str = "") -> Problem:
        """The same point without spaces and factors that earlier work left: they change the last bits of a repetition.

        Args:
            keep: first word of the cache keys that stay, e.g. "dense" for matrices, which are the same every time.

        Returns:
            A new Problem.
        """
        other = self._replace()
        other.cache = {key: value for key, value in self.cache.items() if isinstance(key, tuple) and key[0] == keep}
        return other

    def _replace(self, **changes: Tensor) -> Problem:
        other = copy.copy(self)
        other.__dict__.update(changes)
        # A factorised Hessian of a neighbour still preconditions along one run; all else belongs to one point only.
        other.cache = {key: self.cache[key] for key in ("preconditioner",) if key in self.cache}
        return other

    def __repr__(self) -> str:
        loss = self.loss if isinstance(self.loss, str) else getattr(self.loss, "__name__", "callable")
        return f"Problem(p={self.size}, n={self.rows}, loss={loss}, decay={self.decay:g}, {self.dtype})"


def expect_problem(problem: object, function: str) -> None:
    """Refuse anything but a Problem where one is needed.

    Args:
        problem: what was passed.
        function: that needs it.

    Raises:
        UsageError: PA314, it is something else.
    """
    if not isinstance(problem, Problem):
        raise wrong_type(function, "problem", problem, "Pass poisonaudit.Problem(model, loss, x, y, decay).")


def expect_weights(problem: object, weights: object, function: str) -> None:
    """Refuse weights that are not those of a problem's model.

    Args:
        problem: whose weights they are to be.
        weights: what was passed.
        function: that needs them.

    Raises:
        InputRefused: PA125, they are no tensor (p,).
    """
    expect_problem(problem, function)
    assert isinstance(problem, Problem)
    if not isinstance(weights, Tensor) or weights.shape != problem.weights.shape:
        got = tuple(weights.shape) if isinstance(weights, Tensor) else f"a {type(weights).__name__}"
        raise InputRefused(
            "PA125",
            f"{function} got weights {got}, this problem has {tuple(problem.weights.shape)}. Flatten in "
            "named_parameters() order.",
        )


def _refuse_other_types(model: object, x: object, y: object, decay: object, memory_limit: object) -> None:
    """Refuse arguments of the wrong kind before anything is asked of them."""
    for name, value, kind in (("model", model, nn.Module), ("x", x, Tensor), ("y", y, Tensor)):
        expect_kind(name, value, kind)
    if isinstance(decay, bool) or not isinstance(decay, int | float):
        raise InputRefused("PA123", f"decay is {decay!r}; it must be a finite number >= 0. Pass decay=0 for none.")
    whole = isinstance(memory_limit, int) and not isinstance(memory_limit, bool)
    if memory_limit is not None and not (whole and memory_limit > 0):  # type: ignore[operator]
        raise InputRefused(
            "PA123", f"memory_limit is {memory_limit!r}; it must be a whole number of bytes > 0. Pass 2 * 10**9, say."
        )


def _first_outputs(problem: Problem) -> Tensor:
    """The model's outputs on the training rows, its failure told in one line."""
    try:
        outputs = problem.outputs()
    except (RuntimeError, TypeError, ValueError, IndexError) as trouble:
        raise InputRefused(
            "PA211",
            f"the model fails on inputs of shape {tuple(problem.x.shape)}: {_first_line(trouble)}. "
            "Pass inputs that fit it.",
        ) from trouble
    if not isinstance(outputs, Tensor) or outputs.dim() == 0 or outputs.shape[0] != problem.rows:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputRefused("PA211", f"the model returned {got} for {problem.rows} rows. Return one tensor, (n, ...).")
    return outputs


def _first_line(trouble: Exception) -> str:
    return str(trouble).strip().partition("\n")[0] or type(trouble).__name__


def _refuse_mixed_rows(problem: Problem, outputs: Tensor) -> None:
    """Refuse a model whose output for a row depends on the other rows, or on chance.

    The loss is a sum over rows and products are made row by row or in chunks: for such a model they are of another
    function than the one that is trained.
    """
    _refuse_nonfinite(outputs, "the model's outputs", "PA210", "Rescale the inputs, or train the model again.")
    try:
        why = why_not_row_by_row(lambda rows: problem.outputs(x=rows), problem.x, outputs)
    except (RuntimeError, ValueError, IndexError) as trouble:
        raise InputRefused(
            "PA129",
            f"the model fails on single rows: {_first_line(trouble)}. Use layers that treat every row by itself.",
        ) from trouble
    if why is not None:
        raise InputRefused(
            "PA129",
            f"the model's output for a row {why}, so the loss is no sum over rows. Use layers that treat every row "
            "by itself (batch norm with running statistics) and draw nothing at random.",
        )


def _refuse_unusable(model: nn.Module, x: Tensor, decay: float) -> None:
    """Refuse what no solution-map number can be computed for."""
    for name, module in model.named_modules():
        if module.training and changes_when_training(module):
            raise InputRefused(
                "PA120",
                f"layer {name or type(module).__name__} ({type(module).__name__}) is in train mode, so the loss is not "
                "a fixed function of the weights. Call model.eval() first.",
            )
    places: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if places.setdefault(id(module), name) != name and any(True for _ in module.parameters()):
            raise InputRefused(
                "PA129",
                f"the module {places[id(module)]} is used again as {name}. Use two modules, with tied weights if they "
                "are to be the same.",
            )
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    if frozen and len(frozen) < sum(1 for _ in model.parameters()):
        raise InputRefused(
            "PA129",
            f"{len(frozen)} parameters are frozen (first {frozen[0]}), the others are not, and all would be taken as "
            "trained. Call model.requires_grad_(True), or pass the trained part with the frozen part's outputs as x.",
        )
    values = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
    if not any(True for _ in model.parameters()):
        raise InputRefused(
            "PA122", "the model has no parameters, so there is nothing to audit. Pass a trainable module."
        )
    kinds = {value.dtype for value in values} | {x.dtype}
    if len(kinds) > 1 or x.dtype not in (torch.float32, torch.float64):
        listed = ", ".join(sorted(str(kind) for kind in kinds))
        raise InputRefused(
            "PA121",
            f"dtypes are mixed ({listed}). Convert model and inputs to one of float32 or float64 (for audits).",
        )
    devices = {value.device for value in values} | {x.device}
    if len(devices) > 1:
        raise InputRefused("PA121", f"devices are mixed ({', '.join(sorted(map(str, devices)))}). Move all to one.")
    if not 0.0 <= decay < float("inf"):
        raise InputRefused("PA123", f"decay is {decay}; it must be a finite number >= 0. Pass decay=0 for none.")
    if x.dim() == 0 or x.shape[0] == 0:
        raise InputRefused("PA211", f"inputs have shape {tuple(x.shape)}; at least one row is needed. Pass (n, ...).")
    _refuse_nonfinite(x, "inputs", "PA210", "Remove or impute those rows.")


def _refuse_nonfinite(values: Tensor, what: str, code: str, action: str) -> None:
    """Refuse NaN and infinity, saying how many and where the first is."""
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        first = tuple(int(index) for index in bad.nonzero()[0])
        raise InputRefused(
            code,
            f"{what}: {int(bad.sum())} of {values.numel()} entries are NaN or infinite, first at {first}. {action}",
        )
