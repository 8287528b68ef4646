"""Sets of perturbations: laws for every norm, and nearest points and best corners against enumeration and solvers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import Tensor

from poisonaudit.attack import Budget, PerturbationSet
from poisonaudit.errors import UsageError

NORMS = ("linf", "l2", "l1", "l0")


def case(
    seed: int, norm: str, *, scaled: bool = False, stepped: bool = False, boxed: bool = True
) -> tuple[PerturbationSet, Tensor, Tensor]:
    """A set over a few small rows, a point to project, and the rows."""
    rng = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng, dtype=torch.float64)

    count, width = 1 + seed % 3, 1 + seed % 5
    steps = torch.where(uniform(width) > 0.4, 0.05 + 0.1 * uniform(width), torch.zeros(width, dtype=torch.float64))
    x = uniform(count, width)
    budget = Budget(
        radius=float(10 ** (1.6 * uniform(1) - 1.2)),
        rows=count,
        norm=norm,  # type: ignore[arg-type]
        box=(-0.2 * uniform(width), 0.7 + 0.3 * uniform(width)) if boxed else None,
        entries=1 + int(width * float(uniform(1)) * 0.9) if norm == "l0" else None,
        scale=0.3 + uniform(width) if scaled else None,
        immutable=[0] if seed % 2 and width > 1 else None,
        spacing=steps if stepped else None,
    )
    return budget.around(x), (uniform(count, width) - 0.5) * 10 ** float(2.5 * uniform(1) - 1), x


@settings(max_examples=250, deadline=None)
@given(seed=st.integers(0, 10**6), norm=st.sampled_from(NORMS), scaled=st.booleans(), boxed=st.booleans())
def test_projections_are_inside_and_idempotent(seed: int, norm: str, scaled: bool, boxed: bool) -> None:
    for stepped in (False, True) if norm in ("linf", "l0") else (False,):
        allowed, z, _ = case(seed, norm, scaled=scaled, stepped=stepped, boxed=boxed)
        point = allowed.project(z)
        assert allowed.violation(point) <= 1e-12 and allowed.used(point) <= 1 + 1e-12
        torch.testing.assert_close(allowed.project(point), point, rtol=0, atol=1e-13)
        assert allowed.violation(torch.zeros_like(z)) == 0.0
        assert allowed.violation(allowed.best_linear(z)) <= 1e-12
        assert allowed.convex == (norm != "l0" and not stepped)
        if norm != "l0":
            assert allowed.relaxed().violation(point) <= 1e-12
        assert allowed.relaxed().convex


@settings(max_examples=250, deadline=None)
@given(seed=st.integers(0, 10**6), norm=st.sampled_from(NORMS[:3]), scaled=st.booleans(), boxed=st.booleans())
def test_convex_projections_satisfy_the_variational_inequality(seed: int, norm: str, scaled: bool, boxed: bool) -> None:
    allowed, z, _ = case(seed, norm, scaled=scaled, boxed=boxed)
    point = allowed.project(z)
    # <z - P z, y - P z> <= 0 for every y of the set characterises P z; the worst y is a best corner.
    worst = allowed.best_linear(z - point)
    assert float(((z - point) * (worst - point)).sum(1).max()) <= 1e-10 * (1 + float(z.norm()) ** 2)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), scaled=st.booleans())
def test_l1_corners_are_those_of_linear_programming(seed: int, scaled: bool) -> None:
    allowed, c, _ = case(seed, "l1", scaled=scaled)
    gains = allowed.gain(c)
    unit = torch.ones(c.shape[1], dtype=torch.float64) if allowed.scale is None else allowed.scale
    for i, row in enumerate(c):
        # mu = up - down, both >= 0.
        limits = [*zip(itertools.repeat(0.0), allowed.upper[i].tolist(), strict=False)]
        limits += [(0.0, -low) for low in allowed.lower[i].tolist()]
        found = linprog(
            torch.cat([-row, row]).numpy(),
            A_ub=torch.cat([1 / unit, 1 / unit])[None].numpy(),
            b_ub=[allowed.radius],
            bounds=limits,
        )
        assert -found.fun == pytest.approx(float(gains[i]), rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_scaled_l2_corners_and_projections_against_a_general_solver(seed: int) -> None:
    allowed, z, _ = case(seed, "l2", scaled=True)
    assert allowed.scale is not None
    unit, nearest, best = allowed.scale.numpy(), allowed.project(z), allowed.best_linear(z)
    for i in range(len(z)):
        wanted = z[i].numpy()
        bounds = list(zip(allowed.lower[i].tolist(), allowed.upper[i].tolist(), strict=True))
        ball = {"type": "ineq", "fun": lambda mu: allowed.radius**2 - ((mu / unit) ** 2).sum()}
        settings_ = {"bounds": bounds, "constraints": ball, "method": "SLSQP"}
        options = {"ftol": 1e-15, "maxiter": 500}
        start = np.zeros(len(wanted))
        found = minimize(lambda mu, w=wanted: 0.5 * ((mu - w) ** 2).sum(), start, **settings_, options=options)
        assert float((nearest[i] - z[i]).norm()) <= np.linalg.norm(found.x - wanted) + 1e-6 * (1 + float(z[i].norm()))
        found = minimize(lambda mu, w=wanted: -(mu * w).sum(), start, **settings_, options=options)
        assert float((best[i] * z[i]).sum()) >= -found.fun - 1e-6 * (1 + abs(found.fun))


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), scaled=st.booleans(), stepped=st.booleans())
def test_sparse_points_against_every_support(seed: int, scaled: bool, stepped: bool) -> None:
    allowed, z, _ = case(seed, "l0", scaled=scaled, stepped=stepped)
    every = dense_twin(allowed)
    nearest, best = allowed.project(z), allowed.gain(z)
    width, count = z.shape[1], allowed.entries
    assert count is not None
    for i in range(len(z)):
        distances, gains = [], []
        for support in itertools.combinations(range(width), min(count, width)):
            mask = torch.zeros(width, dtype=torch.bool)
            mask[list(support)] = True
            distances.append(float((torch.where(mask, every.project(z)[i], 0.0) - z[i]).norm()))
            gains.append(float((torch.where(mask, every.best_linear(z)[i], 0.0) * z[i]).sum()))
        assert float((nearest[i] - z[i]).norm()) == pytest.approx(min(distances), abs=1e-12)
        assert float(best[i]) == pytest.approx(max(gains), abs=1e-12)


def dense_twin(allowed: PerturbationSet) -> PerturbationSet:
    """The same limits without the bound on the number of entries."""
    return PerturbationSet(
        allowed.lower, allowed.upper, allowed.radius, "linf", scale=allowed.scale, spacing=allowed.spacing
    )


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), scaled=st.booleans())
def test_whole_steps_against_every_step(seed: int, scaled: bool) -> None:
    allowed, z, _ = case(seed, "linf", scaled=scaled, stepped=True)
    assert allowed.spacing is not None
    nearest, best = allowed.project(z), allowed.best_linear(z)
    reach = allowed.radius * (allowed.scale if allowed.scale is not None else torch.ones_like(z[0]))
    for i, j in itertools.product(range(len(z)), range(z.shape[1])):
        low, high = max(float(allowed.lower[i, j]), -float(reach[j])), min(float(allowed.upper[i, j]), float(reach[j]))
        step = float(allowed.spacing[j])
        if step == 0.0:
            assert float(nearest[i, j]) == pytest.approx(min(max(float(z[i, j]), low), high), abs=1e-15)
            continue
        whole = [k * step for k in range(-400, 401) if low - 1e-9 <= k * step <= high + 1e-9]
        assert abs(float(nearest[i, j] - z[i, j])) == pytest.approx(
            min(abs(w - float(z[i, j])) for w in whole), abs=1e-9
        )
        assert float(best[i, j] * z[i, j]) == pytest.approx(max(w * float(z[i, j]) for w in whole), abs=1e-9)


def test_closed_forms() -> None:
    x = torch.tensor([[0.5, 0.9, 0.5]], dtype=torch.float64)
    z = torch.tensor([[1.0, -0.4, 0.1]], dtype=torch.float64)
    l1 = Budget(radius=0.5, rows=1, norm="l1").around(x)
    # Soft threshold at .45: (.55 - .05, 0, 0) and so on; |(1, .4, .1) - .5|+ = (.5, 0, 0).
    torch.testing.assert_close(l1.project(z), torch.tensor([[0.5, 0.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(l1.best_linear(z), torch.tensor([[0.5, 0.0, 0.0]], dtype=torch.float64))
    # The box holds the first entry at .2, so that the second gets the rest.
    boxed = Budget(radius=0.5, rows=1, norm="l1", box=(0.0, 0.7)).around(x)
    torch.testing.assert_close(boxed.best_linear(z), torch.tensor([[0.2, -0.3, 0.0]], dtype=torch.float64))
    l0 = Budget(radius=0.3, rows=1, norm="l0", entries=2).around(x)
    torch.testing.assert_close(l0.project(z), torch.tensor([[0.3, -0.3, 0.0]], dtype=torch.float64))
    assert l0.used(l0.project(z)) == 1.0
    whole = Budget(radius=0.35, rows=1, spacing={0: 0.1}, immutable=[2], scale=[1.0, 2.0, 1.0]).around(x)
    torch.testing.assert_close(whole.project(z), torch.tensor([[0.3, -0.4, 0.0]], dtype=torch.float64))


def test_channels_of_pictures_stay_and_have_units_of_their_own() -> None:
    x = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    allowed = Budget(radius=0.1, rows=2, immutable=[1], scale=[1.0, 1.0, 3.0], box=(0.0, 1.0)).around(x)
    best = allowed.best_linear(torch.ones_like(x))
    assert best[:, 0].unique().tolist() == [0.1] and not best[:, 1].any()
    assert best[:, 2].unique().tolist() == pytest.approx([0.3])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"norm": "l0"}, "entries"),
        ({"entries": 2}, "entries"),
        ({"norm": "l0", "entries": 0}, "entries"),
        ({"norm": "l2", "spacing": {0: 1.0}}, "whole steps"),
        ({"immutable": [5]}, "entries 0..2"),
        ({"immutable": torch.zeros(4, dtype=torch.bool)}, "one row"),
        ({"scale": [1.0, 2.0]}, "one row"),
        ({"scale": [1.0, 0.0, 1.0]}, "positive"),
        ({"spacing": {0: -1.0}}, "steps"),
        ({"spacing": {7: 1.0}}, "entries 0..2"),
    ],
)
def test_refusals(given: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match="PA369") as caught:
        Budget(radius=0.1, rows=1, **given).around(torch.rand(1, 3))  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_everything_set_is_described() -> None:
    budget = Budget(radius=1, rows=1, norm="l0", entries=3, spacing={1: 0.5}, immutable=[0], scale=[1.0, 2.0])
    body = budget.describe()
    assert {key: body[key] for key in ("entries", "spacing", "immutable", "scale")} == {
        "entries": 3,
        "spacing": {"1": 0.5},
        "immutable": [0],
        "scale": [1.0, 2.0],
    }
