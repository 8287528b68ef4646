"""The modulus against dense references and closed forms, and where it is infinite."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import LinearRows, mlp
from torch import nn

from poisonaudit import Problem, fit, graphical_derivative, lipschitz_modulus, row_moduli, theorem2_moduli
from poisonaudit.errors import UsageError
from poisonaudit.operators import dense_hessian, dense_mixed


def linear_problem(x: list[list[float]], w: list[float]) -> Problem:
    rows = torch.tensor(x, dtype=torch.float64)
    return Problem(LinearRows(w), "half_squared", rows, rows @ torch.tensor(w, dtype=torch.float64))


@pytest.mark.parametrize(("delta", "printed"), [(1.0, 2.29), (0.1, 20.0)])
def test_collinear_rows_and_theorem3(delta: float, printed: float) -> None:
    """f = w.x with rows (1, 0), (1, delta): kappa = |J^-1 D|_2, while theorem 3 says 2.0 whatever delta is."""
    problem = linear_problem([[1.0, 0.0], [1.0, delta]], [1.0, 1.0])
    inverse = torch.linalg.inv(problem.x)
    w = problem.weights
    columns = torch.cat([inverse[:, k : k + 1] * w[None, :] for k in range(2)], dim=1)
    exact = float(torch.linalg.matrix_norm(columns, 2))
    modulus = lipschitz_modulus(problem)
    assert modulus.value == pytest.approx(exact, rel=1e-9)
    assert modulus.value == pytest.approx(printed, rel=5e-3)
    layer = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(w[None])
    as_matrix = Problem(layer, "half_squared", problem.x, problem.y[:, None])
    assert 2**0.5 * float(theorem2_moduli(as_matrix).max()) == pytest.approx(2.0)


def test_duplicated_rows_are_infinite_not_1_62() -> None:
    problem = linear_problem([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [1.0, 2.0, 0.5])
    modulus = lipschitz_modulus(problem)
    assert not modulus.finite and math.isinf(modulus.value)
    assert modulus.truncated == pytest.approx(1.62, abs=5e-3)
    whole, half = modulus.details["displacement_ratios"][0]
    assert half == pytest.approx(2 * whole, rel=0.01) and whole > 100 * modulus.truncated


@pytest.mark.parametrize("form", ["samples", "weights"])
@pytest.mark.parametrize("delta", [1e-2, 1e-3, 1e-4])
def test_an_ill_conditioned_pair_does_not_hide_duplicated_rows(delta: float, form: str) -> None:
    rows = [[1.0, 0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0, 0], [0, 0, 0, 1.0, 0, 0], [0, 0, 0, 1.0, delta, 0]]
    problem = linear_problem(rows, [1.0, 2.0, 0.5, 1.0, 1.0, 1.0])
    modulus = lipschitz_modulus(problem, form=form)  # type: ignore[arg-type]
    assert not modulus.finite and modulus.details["rows_changing_rank"] == [0, 1]
    moduli = row_moduli(problem, form=form)  # type: ignore[arg-type]
    assert moduli.isinf().tolist() == [True, True, False, False]
    # The truth: however little row 0 leaves row 1, the nearest solution of the moved rows is at distance 2.
    for size in (1e-3, 1e-5):
        x = problem.x.clone()
        x[0, 1] += size
        nearest = torch.linalg.lstsq(x, (problem.x - x) @ problem.weights, driver="gelsd").solution
        assert float(nearest.norm()) == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("form", ["samples", "weights"])
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_a_duplicated_row_of_an_interpolating_net_is_found(seed: int, form: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    x[1] = x[0]
    module = mlp([3, 25, 1], seed=seed)
    problem = Problem(module, "half_squared", x, module(x).detach())
    modulus = lipschitz_modulus(problem, form=form)  # type: ignore[arg-type]
    assert not modulus.finite and modulus.details["rows_changing_rank"] == [0, 1]
    assert row_moduli(problem, form=form).isinf().nonzero().flatten().tolist() == [0, 1]  # type: ignore[arg-type]
    assert row_moduli(problem, torch.tensor([5, 1]), form=form).isinf().tolist() == [False, True]  # type: ignore[arg-type]
    # Apart, the rows have a modulus, and nothing is reported.
    x[1] += 0.5
    apart = Problem(module, "half_squared", x, module(x).detach())
    assert lipschitz_modulus(apart).finite and bool(row_moduli(apart).isfinite().all())


@pytest.mark.parametrize("seed", [11, 16, 24])
def test_a_kink_nearby_is_no_change_of_rank(seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    x = torch.randn(3, 2, dtype=torch.float64)
    with torch.no_grad():  # unit 0 is 2e-4 below its kink at row 0
        net[0].bias[0] = -(net[0].weight[0] @ x[0]) - 2e-4
    problem = Problem(net, "half_squared", x, net(x).detach())
    mu = torch.zeros_like(x)
    mu[0] = 1e-7
    assert graphical_derivative(problem, mu).validity.ok
    assert row_moduli(problem, form="weights").tolist() == pytest.approx(
        row_moduli(problem, form="samples").tolist(), rel=1e-6
    )


def test_a_row_that_only_rounding_moves_is_not_infinite() -> None:
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(5)
    x, y = torch.randn(14, 2, dtype=torch.float64), torch.randint(0, 3, (14,), generator=generator)
    problem = fit(Problem(nn.Linear(2, 3).double(), "cross_entropy", x, y)).problem
    moduli = row_moduli(problem)
    assert bool(moduli.isfinite().all()) and float(moduli.max()) <= lipschitz_modulus(problem).value * (1 + 1e-6)
    assert math.isfinite(lipschitz_modulus(problem, torch.tensor([7])).value)


def test_interpolating_net_with_a_kernel_is_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(12, 1, generator=generator, dtype=torch.float64)
    problem = fit(Problem(mlp([5, 20, 1]), "half_squared", x, y), tolerance=1e-13).problem
    modulus = lipschitz_modulus(problem)
    assert modulus.finite
    assert modulus.details["kernel_dimension"] == problem.size - 12
    # The sample-space form holds at interpolation: kappa^2 = lambda_max(D^T (J J^T)^-1 D).
    from poisonaudit.operators.dense import dense_input_jacobian, dense_jacobian

    jacobian, inputs = dense_jacobian(problem)[:, 0], dense_input_jacobian(problem)[:, 0]
    inverse = torch.linalg.inv(jacobian @ jacobian.T)
    gram = inputs @ inputs.T  # D is block-diagonal: D (.) D^T = diag(|d_k|^2) row by row
    diagonal = torch.diag(gram.diagonal().sqrt())
    exact = float(torch.linalg.eigvalsh(diagonal @ inverse @ diagonal)[-1].sqrt())
    assert modulus.value == pytest.approx(exact, rel=1e-6)


def test_range_defect_is_infinite() -> None:
    """f = w1 x1 + 0 w2: moving x2 changes the gradient along w2, where H has no curvature at residual r != 0."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.w

    x = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([0.0, 2.0], dtype=torch.float64)  # residuals +1 and -1 at the minimum w1 = 1
    modulus = lipschitz_modulus(Problem(Half(), "half_squared", x, y))
    assert math.isinf(modulus.value)
    assert "leaves the range" in modulus.reason
    assert torch.isinf(row_moduli(Problem(Half(), "half_squared", x, y))).all()


def test_against_dense_svd(digits_tanh: Problem) -> None:
    rows = torch.tensor([3, 50, 120])
    hessian, mixed = dense_hessian(digits_tanh), dense_mixed(digits_tanh, rows)
    moved = torch.linalg.solve(hessian, mixed.permute(1, 0, 2).reshape(digits_tanh.size, -1))
    left, singular, right = torch.linalg.svd(moved, full_matrices=False)
    modulus = lipschitz_modulus(digits_tanh, rows)
    assert modulus.value == pytest.approx(float(singular[0]), rel=1e-8)
    direction = modulus.direction[rows].reshape(-1)
    assert abs(float(direction.dot(right[0]))) == pytest.approx(1.0, abs=1e-6)
    assert float(modulus.direction.norm()) == pytest.approx(1.0)
    untouched = torch.ones(digits_tanh.rows, dtype=torch.bool)
    untouched[rows] = False
    assert not modulus.direction[untouched].any()
    per_row = [float(torch.linalg.matrix_norm(moved[:, 64 * i : 64 * (i + 1)], 2)) for i in range(3)]
    assert row_moduli(digits_tanh, rows).tolist() == pytest.approx(per_row, rel=1e-8)
    # Law: max_k kappa_k <= kappa <= sqrt(sum kappa_k^2).
    assert max(per_row) <= modulus.value <= math.sqrt(sum(value**2 for value in per_row))


def test_theorem2_over_all_weights_is_below_the_row_modulus() -> None:
    """Erratum 4, at an interpolating minimum with scalar output."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    problem = fit(
        Problem(mlp([4, 15, 1]), "half_squared", x, torch.sin(x.sum(1, keepdim=True))), tolerance=1e-13
    ).problem
    from poisonaudit.operators.dense import dense_input_jacobian, dense_jacobian

    weights, inputs = dense_jacobian(problem)[:, 0], dense_input_jacobian(problem)[:, 0]
    factor_all = inputs.norm(dim=1) / weights.norm(dim=1)
    assert bool((factor_all <= row_moduli(problem) * (1 + 1e-9)).all())
    # One weight matrix: |df/dx_k| / |df/dW|_F.
    first = weights[:, : 15 * 4]
    assert torch.allclose(theorem2_moduli(problem, layer=0), inputs.norm(dim=1) / first.norm(dim=1), rtol=1e-9)
    both = torch.stack([theorem2_moduli(problem, layer=0), theorem2_moduli(problem, layer=1)]).amax(0)
    assert torch.equal(theorem2_moduli(problem), both)


def test_theorem2_with_several_outputs_is_the_operator_norm(digits_tanh: Problem) -> None:
    from poisonaudit.operators.dense import dense_input_jacobian, dense_jacobian

    small = digits_tanh.with_data(digits_tanh.x)
    weights = dense_jacobian(small)[:4, :, : 64 * 12]
    inputs = dense_input_jacobian(small)[:4]
    exact = [float(torch.linalg.matrix_norm(torch.linalg.pinv(weights[k]) @ inputs[k], 2)) for k in range(4)]
    assert theorem2_moduli(small, layer=0)[:4].tolist() == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("rows", [[], [0, 0], [-1], [10_000], [[1]]])
def test_bad_rows_are_refused(toy: Problem, rows: list[int]) -> None:
    with pytest.raises(UsageError, match="PA304"):
        lipschitz_modulus(toy, torch.tensor(rows, dtype=torch.long))


def test_masks_and_fractions_are_refused(toy: Problem) -> None:
    for rows in (torch.tensor([True, False]), torch.tensor([0.0, 1.9])):
        with pytest.raises(UsageError, match="PA304"):
            row_moduli(toy, rows)


def test_single_precision_agrees(toy: Problem) -> None:
    modulus = lipschitz_modulus(toy.to(torch.float32))
    assert modulus.finite and modulus.value == pytest.approx(0.4, rel=1e-5)


def test_a_point_that_is_not_stationary_says_so() -> None:
    x = torch.rand(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    modulus = lipschitz_modulus(Problem(mlp([4, 5, 3]), "cross_entropy", x, torch.arange(30) % 3, decay=1e-2))
    assert not modulus.validity.ok and any("not stationary" in reason for reason in modulus.validity.reasons)
