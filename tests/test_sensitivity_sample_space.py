"""The sample-space form against the weights' form, closed forms, and its rule of use."""

from __future__ import annotations

import pytest
import torch
from conftest import LinearRows, mlp

from poisonaudit import Problem, fit, lipschitz_modulus, row_moduli
from poisonaudit.errors import UsageError
from poisonaudit.sensitivity.sample_space import why_not_sample_space


def interpolating(outputs: int = 2) -> Problem:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(9, outputs, generator=generator, dtype=torch.float64)
    fitted = fit(Problem(mlp([4, 16, outputs]), "half_squared", x, y), tolerance=1e-13)
    assert fitted.converged
    return fitted.problem


@pytest.mark.parametrize("outputs", [1, 2])
def test_both_forms_agree(outputs: int) -> None:
    problem = interpolating(outputs)
    for rows in (None, torch.tensor([4, 0])):
        samples, weights = (lipschitz_modulus(problem, rows, form=form) for form in ("samples", "weights"))
        assert samples.form == "samples" and weights.form == "weights"
        assert samples.value == pytest.approx(weights.value, rel=1e-6)
        assert samples.details["kernel_dimension"] == weights.details["kernel_dimension"] == problem.size - 9 * outputs
        assert abs(float((samples.direction * weights.direction).sum())) == pytest.approx(1.0, abs=1e-5)
        one, other = row_moduli(problem, rows, form="samples"), row_moduli(problem, rows, form="weights")
        assert one.tolist() == pytest.approx(other.tolist(), rel=1e-6)
    assert lipschitz_modulus(problem).form == "samples"
    assert "full row rank" in lipschitz_modulus(problem).reason


def test_linear_regression_in_closed_form() -> None:
    """f = w.x with more weights than rows: J = X, D_k = w^T, so kappa_k = |w| sqrt((X X^T)^-1_kk)."""
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w = torch.linspace(-1, 1, 8, dtype=torch.float64)
    problem = Problem(LinearRows(w.tolist()), "half_squared", x, x @ w)
    inverse = torch.linalg.inv(x @ x.T)
    assert row_moduli(problem).tolist() == pytest.approx((w.norm() * inverse.diagonal().sqrt()).tolist(), rel=1e-9)
    exact = float(w.norm() * torch.linalg.eigvalsh(inverse)[-1].sqrt())
    found = lipschitz_modulus(problem)
    assert found.form == "samples" and found.value == pytest.approx(exact, rel=1e-9)


def test_the_rule_refuses_what_is_not_exact() -> None:
    problem = interpolating()
    decayed = Problem(problem.module(), "half_squared", problem.x, problem.y, decay=1e-3)
    off = problem.at(problem.weights + 0.01)
    labels = torch.arange(9) % 2
    classifier = Problem(problem.module(), "cross_entropy", problem.x, labels)
    few = Problem(LinearRows([1.0, 2.0]), "half_squared", problem.x[:, :2], problem.x[:, :2].sum(1))
    for other, word in (
        (decayed, "decay"),
        (off, "residual is not small"),
        (classifier, "cross-entropy"),
        (few, "not fewer"),
    ):
        assert word in why_not_sample_space(other, 1e-9)
        with pytest.raises(UsageError, match="PA305"):
            lipschitz_modulus(other, form="samples")
    assert why_not_sample_space(problem, 1e-9) == ""


def test_an_unknown_form_is_refused(toy: Problem) -> None:
    with pytest.raises(UsageError, match="PA301"):
        lipschitz_modulus(toy, form="sample")  # type: ignore[arg-type]


def test_duplicated_rows_are_found_in_sample_space_too() -> None:
    x = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.5]], dtype=torch.float64)
    w = torch.tensor([1.0, 2.0, 0.5, 0.1], dtype=torch.float64)
    x = torch.nn.functional.pad(x, (0, 1))
    problem = Problem(LinearRows(w.tolist()), "half_squared", x, x @ w)
    assert why_not_sample_space(problem, 1e-9) == ""
    assert not lipschitz_modulus(problem).finite
    assert torch.isinf(row_moduli(problem)).tolist() == [True, True, False]
    assert torch.isfinite(row_moduli(problem, test_jumps=False)).all()
