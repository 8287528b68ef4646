"""The inner problem: make a goal small over the budget at the estimated weights `w - H^+ B mu`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from poisonaudit.attack.perturbations import PerturbationSet
from poisonaudit.errors import UsageError
from poisonaudit.operators import linearise
from poisonaudit.problem import Problem
from poisonaudit.registry import unknown_name
from poisonaudit.sensitivity import solver_for

MethodName = Literal["apg", "adam", "lbfgsb"]
# How a run ends that met its limit of products.
PRODUCT_LIMIT = "product limit"
# Iterations in a row that may gain less than the wanted accuracy before the run stops.
_PATIENCE = 3
# Of the radius, Adam's first step length in every entry.
_ADAM_STEP = 0.2


class WeightMap(Protocol):
    """A linear map from perturbations of some rows to moves of the weights, counted from `weights`."""

    @property
    def weights(self) -> Tensor:
        """What moves are counted from."""
        ...

    @property
    def products(self) -> int:
        """Operator products used so far."""
        ...

    def step(self, mu: Tensor) -> Tensor:
        """The move for mu (k, ...)."""
        ...

    def adjoint(self, slope: Tensor) -> Tensor:
        """The transpose of `step`, (k, ...)."""
        ...


class InnerGoal(Protocol):
    """What the inner problem asks of a goal: every `Goal` has it, and so have functions that are no objective."""

    @property
    def convex(self) -> bool:
        """It is convex in the weights, so that lower bounds can be proved."""
        ...

    def value(self, weights: Tensor) -> float:
        """The number to be made small."""
        ...

    def gradient(self, weights: Tensor) -> Tensor:
        """Its gradient in the weights, (p,)."""
        ...


class EstimatedMap:
    """`mu -> -H^+ B mu`: where training goes to first order when some rows move.

    Args:
        problem: linearised here; its inputs may be poisoned already, mu is counted from them.
        rows: positions (k,) that mu lives on.

    Attributes:
        weights: the weights that moves are counted from, (p,).
        products: operator products used so far.
    """

    def __init__(self, problem: Problem, rows: Tensor) -> None:
        self.weights = problem.weights
        self.products = 0
        self._mixed = linearise(problem, rows)
        self._curvature = solver_for(problem)

    def step(self, mu: Tensor) -> Tensor:
        """`-H^+ B mu` for mu (k, ...) on the rows: one solve, (p,)."""
        return -self._solve(self._mixed.mixed(mu.contiguous()))

    def adjoint(self, slope: Tensor) -> Tensor:
        """`-B^T H^+ g`, the transpose of `step`: one solve, (k, ...)."""
        return -self._mixed.mixed_adjoint(self._solve(slope))

    def _solve(self, rhs: Tensor) -> Tensor:
        solved = self._curvature.solve(rhs)
        self.products += solved.products + 1
        return solved.value


@dataclass(frozen=True, eq=False)
class InnerStep:
    """Result of the inner minimisation.

    Attributes:
        mu: the best point found (k, ...), inside the set.
        value: goal at the estimated weights there.
        lower_bound: no admissible mu has a smaller goal at the estimated weights; None where that was not proved: the
            goal is not convex in the weights, or the method gives no bound.
        iterations: steps made.
        products: operator products used.
        ended: how it ended, in words.
    """

    mu: Tensor
    value: float
    lower_bound: float | None
    iterations: int
    products: int
    ended: str


@dataclass(frozen=True, eq=False)
class _Inner:
    """What all methods share; `weights` and `mu` at a point go together, so that no solve is made twice."""

    model: WeightMap
    goal: InnerGoal
    allowed: PerturbationSet
    origin: Tensor
    start: float
    accuracy: float
    max_iterations: int
    max_products: float
    seed: int

    def spent(self) -> bool:
        return self.model.products >= self.max_products

    def slope(self, weights: Tensor) -> Tensor:
        """Gradient of the goal in mu, from the estimated weights."""
        return self.model.adjoint(self.goal.gradient(weights))


def minimise_estimate(
    model: WeightMap,
    goal: InnerGoal,
    allowed: PerturbationSet,
    origin: Tensor,
    *,
    method: MethodName = "apg",
    accuracy: float = 1e-3,
    max_iterations: int = 200,
    max_products: int | None = None,
    seed: int = 0,
) -> InnerStep:
    """Minimise `goal(w - H^+ B (mu - origin))` over an admissible set.

    "apg": accelerated projected gradient (Beck and Teboulle, 2009) with backtracking and restart. For a goal that is
    convex in the weights every gradient also gives a certified lower bound, since the linear maximiser over the set is
    exact, and the run stops at a stated gap. "adam": projected Adam. "lbfgsb": SciPy's L-BFGS-B, on the host, for sets
    that are boxes. A step costs one solve and one adjoint solve with each. All stop where three steps in a row gain
    less than `accuracy` of the goal at the start, or at the limit of products.

    Args:
        model: linearised at the inputs `clean + origin`.
        goal: bound to the clean problem.
        allowed: admissible total perturbations of the clean rows, convex.
        origin: perturbation that the model is linearised at (k, ...), admissible; also the start.
        method: "apg", "adam" or "lbfgsb".
        accuracy: relative to the goal's size at the start.
        max_iterations: most steps.
        max_products: most operator products, looked at before each step; None for no limit.
        seed: of the power iteration's start.

    Returns:
        The best point found.

    Raises:
        UsageError: PA301, no method has that name; PA378, the set is not convex, or for "lbfgsb" no box.
    """
    if method not in METHODS:
        raise unknown_name(str(method), tuple(METHODS), "inner method")
    if not allowed.convex or (method == "lbfgsb" and allowed.norm != "linf"):
        raise UsageError(
            "PA378",
            f"the inner method {method!r} does not take a set with norm {allowed.norm!r}"
            f"{'' if allowed.convex else ' that is not convex'}. Use apg or adam, on the relaxed set.",
        )
    limit = math.inf if max_products is None else model.products + max_products
    start = goal.value(model.weights)
    return METHODS[method](_Inner(model, goal, allowed, origin, start, accuracy, max_iterations, limit, seed))


def _accelerated(inner: _Inner) -> InnerStep:
    """FISTA with restart; weights at extrapolated points come free, for they are linear in mu."""
    model, goal, allowed, origin = inner.model, inner.goal, inner.allowed, inner.origin
    before, wanted = model.products, inner.accuracy * abs(inner.start)
    convex = goal.convex
    lipschitz = _first_lipschitz(inner)
    if lipschitz == 0.0:
        return InnerStep(
            origin, inner.start, None, 0, model.products - before, "no effect of the inputs on the weights"
        )
    mu = point = best = origin
    weights = extrapolated = model.weights
    value = best_value = inner.start
    momentum, bound, iterations, idle, ended = 1.0, -math.inf, 0, 0, "iteration limit"
    while iterations < inner.max_iterations:
        if inner.spent():
            ended = PRODUCT_LIMIT
            break
        iterations += 1
        gradient, at_point = inner.slope(extrapolated), goal.value(extrapolated)
        if convex:
            vertex = allowed.best_linear(-gradient)
            bound = max(bound, at_point + float((gradient * (vertex - point)).sum()))
        while True:
            new = allowed.project(point - gradient / lipschitz)
            change = new - point
            length = float(change.square().sum())
            new_weights = extrapolated + (model.step(change) if length > 0 else 0.0)
            new_value = goal.value(new_weights)
            model_value = at_point + float((gradient * change).sum()) + 0.5 * lipschitz * length
            if new_value <= model_value + 1e-12 * abs(at_point) or length == 0.0 or inner.spent():
                break
            lipschitz *= 2.0
        if float((gradient * (new - mu)).sum()) > 0:
            momentum = 1.0
        following = 0.5 * (1 + math.sqrt(1 + 4 * momentum**2))
        share = (momentum - 1) / following
        point = new + share * (new - mu)
        extrapolated = new_weights + share * (new_weights - weights)
        # A certified gap is the better judge; without one small gains are.
        idle = idle + 1 if abs(value - new_value) <= (1e-6 if convex else 1.0) * wanted else 0
        mu, weights, value, momentum = new, new_weights, new_value, following
        if value < best_value:
            best, best_value = mu, value
        if convex and best_value - bound <= wanted:
            ended = "gap reached"
            break
        if idle >= _PATIENCE:
            ended = "no more progress"
            break
    proved = bound if convex and bound > -math.inf else None
    return InnerStep(best, best_value, proved, iterations, model.products - before, ended)


def _adam(inner: _Inner) -> InnerStep:
    """Projected Adam whose step length falls as a cosine over the iterations."""
    model, goal, allowed = inner.model, inner.goal, inner.allowed
    before, wanted = model.products, inner.accuracy * abs(inner.start)
    mu = best = inner.origin
    weights, best_value = model.weights, inner.start
    first, second = torch.zeros_like(mu), torch.zeros_like(mu)
    steps, idle, iterations, ended = min(inner.max_iterations, 60), 0, 0, "iteration limit"
    for iterations in range(1, steps + 1):
        if inner.spent():
            iterations, ended = iterations - 1, PRODUCT_LIMIT
            break
        gradient = inner.slope(weights)
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient.square()
        length = _ADAM_STEP * allowed.radius * 0.5 * (1 + math.cos(math.pi * (iterations - 1) / steps))
        direction = (first / (1 - 0.9**iterations)) / ((second / (1 - 0.99**iterations)).sqrt() + 1e-300)
        new = allowed.project(mu - length * direction)
        weights, mu = weights + model.step(new - mu), new
        value = goal.value(weights)
        idle = idle + 1 if best_value - value <= wanted else 0
        if value < best_value:
            best, best_value = mu, value
        if idle >= 5 * _PATIENCE:
            ended = "no more progress"
            break
    return InnerStep(best, best_value, None, iterations, model.products - before, ended)


def _lbfgsb(inner: _Inner) -> InnerStep:
    """SciPy's L-BFGS-B on the box."""
    from scipy.optimize import minimize

    model, goal, origin = inner.model, inner.goal, inner.origin
    before = model.products
    low, high = inner.allowed.limits()
    best, best_value = origin, inner.start

    def value_and_slope(flat: Any) -> tuple[float, Any]:
        nonlocal best, best_value
        mu = torch.from_numpy(flat).to(origin).view_as(origin)
        weights = model.weights + model.step(mu - origin)
        value = goal.value(weights)
        if value < best_value:
            best, best_value = inner.allowed.project(mu), value
        return value, inner.slope(weights).detach().double().cpu().numpy().ravel()

    def watch(_flat: Any) -> None:
        if inner.spent():
            raise StopIteration

    options: Any = {"maxiter": inner.max_iterations, "ftol": 1e-2 * inner.accuracy}
    found = minimize(
        value_and_slope,
        origin.detach().double().cpu().numpy().ravel(),
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(low.double().cpu().ravel().tolist(), high.double().cpu().ravel().tolist(), strict=True)),
        callback=watch,
        options=options,
    )
    ended = PRODUCT_LIMIT if inner.spent() else "no more progress" if found.success else str(found.message)
    return InnerStep(best, best_value, None, int(found.nit), model.products - before, ended)


METHODS: dict[str, Callable[[_Inner], InnerStep]] = {"apg": _accelerated, "adam": _adam, "lbfgsb": _lbfgsb}


def _first_lipschitz(inner: _Inner, iterations: int = 6) -> float:
    """Slightly enlarged curvature of the goal along the map, after a few power steps; backtracking corrects it.

    For a goal that is half a squared distance the curvature is that of `B^T H^+ H^+ B`; for another it is found from
    differences of the goal's gradient.

    Returns:
        The constant, 0 where inputs do not move the weights at all.
    """
    model, goal, origin = inner.model, inner.goal, inner.origin
    generator = torch.Generator().manual_seed(inner.seed)
    probe = torch.randn(origin.shape, generator=generator, dtype=origin.dtype).to(origin.device)
    largest, base = 0.0, goal.gradient(model.weights)
    for _ in range(iterations):
        if inner.spent():
            break
        probe = probe / probe.norm()
        moved = model.step(probe)
        length = float(moved.norm())
        if length == 0.0:
            break
        share = 1e-4 * max(1.0, float(model.weights.norm())) / length
        curved = (goal.gradient(model.weights + share * moved) - base) / share
        largest = max(largest, abs(float(moved.dot(curved))))
        # Where the goal is flat the map's own curvature still tells how far inputs move the weights.
        probe = model.adjoint(curved if float(curved.norm()) > 0 else moved)
        if float(probe.norm()) == 0.0:
            break
    if largest > 0.0:
        return 1.1 * largest
    slope = inner.slope(model.weights)
    return float(slope.norm()) / max(inner.allowed.radius, 1e-300)
