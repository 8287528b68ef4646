from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from poisonaudit.attack import Budget
from poisonaudit.errors import UsageError


def sample_case(seed: int, norm: str, boxed: bool = True):
    rng = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=rng, dtype=torch.float64)

    rows, columns = 1 + seed % 4, 1 + seed % 5
    x = uniform(rows, columns)
    lower = -0.2 * uniform(columns) * (uniform(columns) > 0.3)
    upper = 0.7 + 0.3 * uniform(columns)  # some rows lie outside: their entries may stay
    radius = float(10 ** (2 * uniform(1) - 1.5))
    budget = Budget(radius=radius, rows=rows, norm=norm, box=(lower, upper) if boxed else None)
    z = (uniform(rows, columns) - 0.5) * 10 ** float(3 * uniform(1) - 1)
    return budget.around(x), z, x, lower, upper


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 10**6), norm=st.sampled_from(["linf", "l2"]), boxed=st.booleans())
def test_projection_is_inside_idempotent_and_nonexpansive(seed, norm, boxed):
    allowed, z, *_ = sample_case(seed, norm, boxed)
    point = allowed.project(z)
    assert allowed.violation(point) <= 1e-12
    torch.testing.assert_close(allowed.project(point), point, rtol=0, atol=1e-14)
    other = allowed.project(z.flip(0) * 0.7)
    assert (other - point).norm() <= (z.flip(0) * 0.7 - z).norm() * (1 + 1e-12)
    # the variational inequality <z - P z, y - P z> <= 0 for y in the set characterises the projection
    for share in (0.0, 0.3, 1.0):
        inside = allowed.best_linear(z - point) * share
        assert ((z - point) * (inside - point)).flatten(1).sum(1).max() <= 1e-10 * (1 + z.norm() ** 2)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_l2_projection_is_the_nearest_point_found_by_a_general_solver(seed):
    allowed, z, *_ = sample_case(seed, "l2")
    point = allowed.project(z)
    for i in range(len(z)):
        found = minimize(
            lambda mu, i=i: 0.5 * float(((mu - z[i].numpy()) ** 2).sum()),
            np.zeros(z.shape[1]),
            jac=lambda mu, i=i: mu - z[i].numpy(),
            bounds=list(zip(allowed.lower[i].tolist(), allowed.upper[i].tolist(), strict=True)),
            constraints={
                "type": "ineq",
                "fun": lambda mu: allowed.radius**2 - mu @ mu,
                "jac": lambda mu: -2 * mu,
            },
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        ours = float((point[i] - z[i]).norm())
        assert ours <= np.linalg.norm(found.x - z[i].numpy()) + 1e-6 * (1 + ours)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), norm=st.sampled_from(["linf", "l2"]))
def test_best_linear_beats_every_other_point_and_the_reference(seed, norm):
    allowed, c, *_ = sample_case(seed, norm)
    best = allowed.best_linear(c)
    assert allowed.violation(best) <= 1e-12
    gain = allowed.gain(c)
    torch.testing.assert_close(gain, (c * best).sum(1))
    rng = torch.Generator().manual_seed(seed)
    for _ in range(30):
        other = allowed.project(torch.randn(c.shape, generator=rng, dtype=torch.float64) * allowed.radius * 2)
        assert ((c * other).sum(1) <= gain + 1e-12 * (1 + gain.abs())).all()
    for i in range(len(c)):
        low, high = allowed.lower[i], allowed.upper[i]
        if norm == "linf":
            low, high = low.clamp(min=-allowed.radius), high.clamp(max=allowed.radius)
            bounds = list(zip(low.tolist(), high.tolist(), strict=True))
            assert math.isclose(-linprog(-c[i].numpy(), bounds=bounds).fun, float(gain[i]), rel_tol=1e-9, abs_tol=1e-12)
        else:  # weak duality: min over the multiplier of the Lagrangian's maximum, evaluated on a fine grid
            multipliers = torch.logspace(-12, 4, 4001, dtype=torch.float64)[:, None] * float(c[i].norm())
            norm = float(c[i].norm())
            inner = (c[i] / (2 * multipliers)).clamp(low, high)
            dual = (c[i] * inner - multipliers * inner.square()).sum(1) + multipliers[:, 0] * allowed.radius**2
            assert float(gain[i]) <= float(dual.min()) + 1e-9
            assert float(gain[i]) >= float(dual.min()) * (1 - 1e-4) - 1e-9 * (1 + norm)


def test_closed_forms():
    x = torch.tensor([[0.5, 0.9]], dtype=torch.float64)
    linf = Budget(radius=0.2, rows=1, box=(0.0, 1.0)).around(x)
    one = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(linf.project(one), torch.tensor([[0.2, 0.1]], dtype=torch.float64))
    torch.testing.assert_close(linf.best_linear(-one), torch.tensor([[-0.2, -0.2]], dtype=torch.float64))
    l2 = Budget(radius=0.5, rows=1, norm="l2").around(x)
    torch.testing.assert_close(l2.project(3 * one), one * 0.5 / math.sqrt(2))
    l2 = Budget(radius=0.5, rows=1, norm="l2", box=(0.0, 1.0)).around(x)
    want = torch.tensor([[math.sqrt(0.25 - 0.01), 0.1]], dtype=torch.float64)
    torch.testing.assert_close(l2.project(3 * one), want)
    torch.testing.assert_close(l2.best_linear(one), want)
    assert l2.used(want) == pytest.approx(1.0)


def test_a_row_outside_the_box_may_stay_or_come_back_but_not_go_further():
    x = torch.tensor([[1.3, 0.5], [0.2, 0.2]], dtype=torch.float64)
    allowed = Budget(radius=0.1, rows=2, box=(0.0, 1.0)).around(x)
    assert allowed.outside == 1
    assert allowed.upper[0, 0] == 0.0
    up, down = allowed.best_linear(torch.ones_like(x)), allowed.best_linear(-torch.ones_like(x))
    assert up[0, 0] == 0.0
    assert down[0, 0] == pytest.approx(-0.1)
    assert allowed.violation(torch.zeros_like(x)) == 0.0


def test_huge_and_tiny_directions_stay_inside():
    x = torch.full((2, 3), 0.5, dtype=torch.float64)
    allowed = Budget(radius=0.3, rows=2, norm="l2", box=(0.0, 1.0)).around(x)
    for scale in (1e-300, 1e300):
        direction = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 1.0]], dtype=torch.float64) * scale
        best = allowed.best_linear(direction)
        assert torch.isfinite(best).all() and allowed.violation(best) <= 1e-15
        assert best[1].tolist() == pytest.approx([0.0, 0.0, 0.3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_radius_whose_square_is_no_number_is_refused(dtype, norm):
    x = torch.full((2, 3), 0.5, dtype=dtype)
    direction = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 1.0]], dtype=dtype)
    kind = torch.finfo(dtype)
    for reach in (kind.max**0.6, kind.tiny**0.6):
        units = torch.tensor([1.0, 1.0, reach], dtype=torch.float64)
        for sizes in ({"radius": reach}, {"radius": 1.0, "scale": units}):
            budget = Budget(rows=2, norm=norm, **sizes)
            with pytest.raises(UsageError, match="PA360 radius is .*square"):
                budget.around(x)
            with pytest.raises(UsageError, match="PA360"):
                budget.remarks(x)
    # Right at the limits projections still give points of the set.
    for radius in (2e3 * kind.tiny**0.5, 5e-4 * kind.max**0.5):
        allowed = Budget(radius=radius, rows=2, norm=norm).around(x)
        for found in (allowed.best_linear(direction), allowed.project(4 * radius * direction)):
            assert found.isfinite().all() and found.any()
            assert allowed.used(found) == pytest.approx(1.0, rel=1e-5)


def test_counts_and_description():
    assert Budget(radius=1.0, share=0.05).count(300) == 15
    assert Budget(radius=1.0, share=0.001).count(300) == 1
    assert Budget(radius=1.0, choice=[3, 1]).count(10) == 2
    body = Budget(radius=1, rows=2, norm="l2", box=(torch.zeros(3), 1.0)).describe()
    assert body == {
        "rows": 2,
        "share": None,
        "radius": 1.0,
        "norm": "l2",
        "box": [0.0, 1.0],
        "choice": "adjoint",
    }
    assert Budget(radius=1, choice=torch.tensor([4, 2])).describe()["choice"] == [4, 2]
    columns = Budget(radius=1, rows=1, box=(torch.tensor([-1.5, 0.0]), 2.0)).describe()
    assert columns["box"] == [[-1.5, 0.0], 2.0]
    many = torch.linspace(-1.0, 0.5, 1200).view(3, 20, 20)
    assert Budget(radius=1, rows=1, box=(many, 2.0)).describe()["box"] == ["1200 entries from -1 to 0.5", 2.0]
    assert Budget(radius=1, rows=1).describe()["box"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ({"radius": 0.0, "rows": 1}, "PA360", "radius"),
        ({"radius": math.nan, "rows": 1}, "PA360", "radius"),
        ({"radius": 1.0, "rows": 1, "norm": "l_inf"}, "PA301", "'linf'"),
        ({"radius": 1.0, "rows": 1, "choice": "adjoin"}, "PA301", "'adjoint'"),
        ({"radius": 1.0}, "PA361", "exactly one"),
        ({"radius": 1.0, "rows": 1, "share": 0.1}, "PA361", "exactly one"),
        ({"radius": 1.0, "rows": 0}, "PA361", ">= 1"),
        ({"radius": 1.0, "rows": 2.5}, "PA361", "whole"),
        ({"radius": 1.0, "share": 1.5}, "PA361", "(0, 1]"),
        ({"radius": 1.0, "share": 0.0}, "PA361", "(0, 1]"),
        ({"radius": 1.0, "rows": 3, "choice": [1]}, "PA361", "positions"),
        ({"radius": 1.0, "choice": [1, 1]}, "PA363", "twice"),
        ({"radius": 1.0, "choice": []}, "PA363", "non-empty"),
        ({"radius": 1.0, "rows": 1, "box": (1.0, 0.0)}, "PA362", "exceeds"),
        ({"radius": 1.0, "rows": 1, "box": (torch.zeros(2), torch.ones(3))}, "PA362", "shapes"),
        ({"radius": 1.0, "rows": 1, "box": (math.nan, 1.0)}, "PA362", "NaN"),
    ],
)
def test_bad_budgets_are_refused(arguments, code, words):
    with pytest.raises(UsageError) as caught:
        Budget(**arguments)
    assert caught.value.code == code and words in str(caught.value)


def test_budgets_that_do_not_fit_the_problem_are_refused():
    with pytest.raises(UsageError, match="PA361 .*at most 10"):
        Budget(radius=1.0, rows=11).count(10)
    with pytest.raises(UsageError, match="PA363 .*0..9"):
        Budget(radius=1.0, choice=[10]).count(10)
    with pytest.raises(UsageError, match="PA362 .*one row is"):
        Budget(radius=1.0, rows=1, box=(torch.zeros(3), torch.ones(3))).around(torch.zeros(1, 2))
