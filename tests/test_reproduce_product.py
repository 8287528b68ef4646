"""The network for x y: the source's series on its mesh, Yarotsky's formula, exact errors, bounds in order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator

from poisonaudit.errors import UsageError
from poisonaudit.lipschitz import square_model
from poisonaudit.reproduce import REPRODUCTIONS, Bench, Line, Reproduction
from poisonaudit.reproduce.product_network import FORMS, product_model, product_network
from poisonaudit.reproduce.product_table import grid, product_flags


def lines(result: Reproduction, word: str) -> list[Line]:
    found = [row for row in result.rows if isinstance(row, Line) and word in row.label]
    assert found
    return found


@pytest.fixture(scope="module")
def product() -> Reproduction:
    return REPRODUCTIONS["despres-product"](Bench())


def hats(points: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Piecewise linear interpolation of values at the 13 vertices; Delaunay's triangulation of them is the mesh."""

    def interpolate(values: NDArray[np.float64]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = LinearNDInterpolator(VERTICES, values)(points)
        return result

    return interpolate


# A..I by rows from the lower left, then alpha..delta around the centre.
VERTICES = np.array(
    [*((x, y) for y in (-1.0, 0.0, 1.0) for x in (-1.0, 0.0, 1.0)), (-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]
)
# Lambda_1 = alpha - beta + gamma - delta; Lambda_2 = D - A + B - C + F - E - G + H - I.
LAMBDA = np.array([[0] * 9 + [1, -1, 1, -1], [-1, 1, -1, 1, -1, 1, -1, 1, -1] + [0] * 4], dtype=float)


def series(points: NDArray[np.float64], terms: int) -> NDArray[np.float64]:
    """The source's sum over n < terms of e_0(Lambda^n) / 4^n, hat function by hat function."""
    total = np.zeros(len(points))
    for power in range(terms):
        basis = hats(points)
        total += basis(VERTICES.prod(1)) / 4.0**power
        # Rounding must not leave the square, where interpolation ends.
        points = np.clip(np.column_stack([basis(row) for row in LAMBDA]), -1.0, 1.0)
    return total


def test_the_sources_recursion_holds_on_its_mesh() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    basis = hats(points)
    moved = np.column_stack([basis(row) for row in LAMBDA])
    assert np.allclose(points.prod(1), basis(VERTICES.prod(1)) + moved.prod(1) / 4.0, atol=1e-13)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_the_network_is_the_sources_series(depth: int) -> None:
    points = np.random.default_rng(depth).uniform(-1, 1, (1000, 2))
    with torch.no_grad():
        ours = product_model(depth)(torch.tensor(points))[:, 0].numpy()
    assert np.allclose(ours, series(points, depth), atol=1e-12)


@pytest.mark.parametrize("depth", [1, 4])
def test_yarotskys_network_is_his_formula(depth: int) -> None:
    points = 2.0 * torch.rand(500, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1.0
    model = square_model(depth)
    with torch.no_grad():
        squares = [model(part.abs()[:, None] / 2.0)[:, 0] for part in (points.sum(1), points[:, 0], points[:, 1])]
        assert torch.allclose(
            product_model(depth, "yarotsky")(points)[:, 0], 2.0 * (squares[0] - squares[1] - squares[2])
        )


@pytest.mark.parametrize(("form", "factor"), [("source", 0.25), ("yarotsky", 1.0)])
def test_product_errors_are_the_closed_forms(product: Reproduction, form: str, factor: float) -> None:
    told = {"source": "source", "yarotsky": "Yarotsky"}[form]
    for depth, line in enumerate(lines(product, told), 1):
        assert line.values["error"] == pytest.approx(factor * 4.0**-depth, rel=1e-12)
    points = 2.0 * torch.rand(200_000, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 1.0
    for depth in (1, 3):
        with torch.no_grad():
            error = float((product_model(depth, form)(points)[:, 0] - points.prod(1)).abs().max())
        assert 0.9 * factor * 4.0**-depth < error <= factor * 4.0**-depth


def test_product_bounds_are_in_order_and_k_is_attained(product: Reproduction) -> None:
    assert product.flags == () and len(product.rows) == 12
    for depth, line in enumerate(lines(product, "source"), 1):
        value = {key: number for key, number in line.values.items() if number is not None}
        constant = 2 - 2.0**-depth
        assert value["lower"] == pytest.approx(constant, rel=1e-13)
        assert value.get("k", constant) == pytest.approx(constant, rel=1e-13)
        assert value["k5"] == pytest.approx(2 * constant, rel=1e-13) == value["k4"]
        assert value["k4"] <= min(value["k1"], value["k3"]) <= max(value["k1"], value["k3"]) <= value["k_star"]
        assert constant <= value["k2"]
    assert [line.values["k"] is not None for line in lines(product, "source")] == [True] * 5 + [False]
    for depth, line in enumerate(lines(product, "Yarotsky"), 1):
        value = {key: number for key, number in line.values.items() if number is not None}
        assert value["lower"] == pytest.approx(2 * (2 - 2.0**-depth), rel=1e-12)
        assert value["lower"] <= value.get("k", math.inf) <= value["k5"] * (1 + 1e-12) or "k" not in value


def test_product_network_holds_the_models_weights_and_refuses_other_forms() -> None:
    assert [tuple(weight.shape) for weight in product_network(2)] == [(4, 2), (6, 4), (6, 6), (1, 6)]
    assert [tuple(weight.shape) for weight in product_network(1, "yarotsky")] == [(6, 2), (9, 6), (1, 9)]
    with pytest.raises(UsageError, match="PA301"):
        product_model(2, "sorce")
    with pytest.raises(UsageError, match="PA303"):
        product_model(0)


def test_deep_grids_are_drawn_and_still_meet_the_largest_error() -> None:
    points = grid(9, seed=4)
    assert len(points) == 2**18 and torch.equal(points, grid(9, seed=4))
    assert float(points.abs().max()) <= 1.0
    for form, factor in (("source", 0.25), ("yarotsky", 1.0)):
        with torch.no_grad():
            error = float((product_model(9, form)(points)[:, 0] - points.prod(1)).abs().max())
        assert error == pytest.approx(factor * 4.0**-9, rel=1e-9)


def test_product_flags_a_bound_below_what_is_attained(product: Reproduction) -> None:
    found = {form: lines(product, {"source": "source", "yarotsky": "Yarotsky"}[form]) for form in FORMS}
    low = dataclasses.replace(found["source"][0], values={**found["source"][0].values, "k2": 1.4})
    (told,) = product_flags({**found, "source": [low, *found["source"][1:]]})
    assert "a bound of 1.4 is below 1.5" in told
    off = dataclasses.replace(found["yarotsky"][1], values={**found["yarotsky"][1].values, "error": 0.07})
    (told,) = product_flags({**found, "yarotsky": [found["yarotsky"][0], off]})
    assert told.startswith("Yarotsky, l = 2: the error is 0.07")
