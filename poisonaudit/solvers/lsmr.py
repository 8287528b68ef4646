"""LSMR as the reference: SciPy's, fed with products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from scipy.sparse.linalg import lsmr as scipy_lsmr
from torch import Tensor

from poisonaudit.solvers.solve import Doubled, Operator, Progress, Solve, by_columns, checked, default_accuracy

_MOST_ROUNDS = 4
# SciPy's reasons to stop, in words.
_ENDED = {
    0: "right-hand side is zero",
    1: "residual below the wanted accuracy",
    2: "residual orthogonal to the range: least-squares solution",
    3: "condition limit",
    4: "residual at rounding level",
    5: "residual orthogonal to the range, at rounding level",
    6: "condition at rounding level",
    7: "product limit",
}
_ADVICE = "LSMR works on A^T A and squares the condition: allow more products, add damping, or use Lanczos."


def lsmr(
    operator: Operator,
    rhs: Tensor,
    *,
    start: Tensor | None = None,
    accuracy: float | None = None,
    shift: float = 0.0,
    max_products: int = 4_000,
    progress: Progress | None = None,
) -> Solve:
    """LSMR of Fong and Saunders (2011) on `(A + shift I) v = b`: minimum norm, or nearest to `start`.

    This is `scipy.sparse.linalg.lsmr`. A reference should be somebody else's code; its vectors live on the CPU, so on
    a GPU each product copies p numbers there and back, which is small beside the product.

    Args:
        operator: A, symmetric, for (p,) of the type of `rhs`.
        rhs: b, (p,), or columns (p, K), solved one after the other.
        start: z, where the iteration starts, shaped like `rhs`; the solution found is `z + A^+ (b - A z)`.
        accuracy: wanted relative residual and optimality; default 1e-10 in float64, 1e-5 in float32.
        shift: added to every eigenvalue (not LSMR's own `damp`, which adds a square); absolute.
        max_products: most products for a column before the check; a step takes two.
        progress: called with a message and a fraction.

    Returns:
        A Solve whose residual was recomputed with the operator.
    """
    if rhs.dim() == 2:
        starts = iter(torch.zeros_like(rhs).T if start is None else start.T)
        return by_columns(
            lambda one: lsmr(
                operator,
                one,
                start=next(starts).contiguous(),
                accuracy=accuracy,
                shift=shift,
                max_products=max_products,
                progress=progress,
            ),
            rhs,
        )
    wanted = default_accuracy(rhs.dtype) if accuracy is None else accuracy
    product = Doubled(operator, rhs.dtype, shift)

    def multiply(v: Any) -> Any:
        image = product(torch.from_numpy(np.asarray(v, dtype=np.float64).reshape(-1)).to(rhs.device))
        if progress is not None and product.products % 20 == 0:
            progress(f"LSMR: {product.products} products", product.products / max_products)
        return image.cpu().numpy()

    size = rhs.numel()
    operate = LinearOperator((size, size), matvec=multiply, rmatvec=multiply, dtype=np.float64)
    wide = rhs.double()
    value = torch.zeros_like(wide) if start is None else start.double()
    steps, largest, slack = 0, 0.0, 0.1 * wanted
    # SciPy counts a residual below atol |A| |v| as reached, however large v is: tighten atol until |r| itself is small.
    for _ in range(_MOST_ROUNDS):
        left = max(1, (max_products - product.products) // 2)
        found = scipy_lsmr(
            operate,
            wide.cpu().numpy(),
            atol=slack,
            btol=0.5 * wanted,
            conlim=0.0,
            maxiter=left,
            x0=value.cpu().numpy() if bool(value.any()) else None,
        )
        value = torch.from_numpy(found[0]).to(rhs.device)
        ended, steps, largest = _ENDED[int(found[1])], steps + int(found[2]), max(largest, float(found[5]))
        loose = int(found[1]) in (1, 4) and float((product(value) - wide).norm()) > wanted * float(wide.norm())
        if not loose or product.products >= max_products:
            break
        slack *= 1e-2
    return checked(
        product,
        rhs,
        value,
        accuracy=wanted,
        largest=largest,
        tolerance=0.0,
        iterations=steps,
        ended=ended,
        advice=_ADVICE,
    )
