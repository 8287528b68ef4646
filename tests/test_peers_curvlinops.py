"""The coderivative of a test loss against the influence of feature perturbations computed with curvlinops."""

from __future__ import annotations

import pytest
import torch
from conftest import digits_rows
from torch import nn

from poisonaudit import Problem, coderivative, fit

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize("method", ["dense", "lanczos"])
@pytest.mark.parametrize("inverse", ["matrix", "cg"])
def test_influence_of_features_on_a_test_loss(method: str, inverse: str) -> None:
    import curvlinops
    from curvlinops.examples import IdentityLinearOperator

    x, y = digits_rows(90)
    decay = 1e-2
    problem = fit(Problem(nn.Linear(64, 10).double(), "cross_entropy", x[:60], y[:60], decay), tolerance=1e-12).problem
    model, loss = problem.module().requires_grad_(True), nn.CrossEntropyLoss()
    weights = list(model.parameters())

    # Theirs: the Hessian of the mean loss as a linear operator; decay adds a multiple of the identity.
    hessian = curvlinops.HessianLinearOperator(model, loss, weights, [(problem.x, problem.y)], progressbar=False)
    tested = torch.autograd.grad(loss(model(x[60:]), y[60:]), weights)
    flat = torch.cat([part.reshape(-1) for part in tested])
    if inverse == "matrix":
        dense = hessian @ torch.eye(problem.size, dtype=torch.float64)
        moved = torch.linalg.solve(dense + decay * torch.eye(problem.size, dtype=torch.float64), flat)
    else:
        shift = decay * IdentityLinearOperator([part.shape for part in weights], problem.device, problem.dtype)
        solver = curvlinops.CGInverseLinearOperator(hessian + shift, eps=0, tolerance=1e-9, max_iter=2_000)
        moved = solver @ flat
    inputs = problem.x.clone().requires_grad_(True)
    slopes = torch.autograd.grad(loss(model(inputs), problem.y), weights, create_graph=True)
    stacked = torch.cat([part.reshape(-1) for part in slopes])
    (pulled,) = torch.autograd.grad(stacked, inputs, moved)
    influence = -pulled

    ours = coderivative(problem, flat, method=method)
    assert float((ours.value - influence).norm() / influence.norm()) < 1e-5
