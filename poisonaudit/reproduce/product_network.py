"""ReLU networks for x y on [-1, 1]^2, built from the network for x^2.

Després and Pintore write T(x, y) = x y as `T = e_0 + (T o Lambda) / 4` with piecewise linear `e_0` and
`Lambda : [-1, 1]^2 -> [-1, 1]^2`. On the mesh of four unit squares, each cut into four triangles by its diagonals, with
vertices A..I (rows from the lower left) and centres alpha..delta, `e_0` interpolates x y, and
`Lambda_1 = phi_alpha - phi_beta + phi_gamma - phi_delta`,
`Lambda_2 = phi_D - phi_A + phi_B - phi_C + phi_F - phi_E - phi_G + phi_H - phi_I` with the hat functions phi.

In the coordinates `a = (x + y) / 2`, `b = (x - y) / 2`, where `x y = a^2 - b^2`, it falls apart: with the hat g of the
x^2 network, `Lambda` maps `(a, b)` to `(g(|a|) - 1/2, 1/2 - g(|b|))`, and `e_0 = (|a| - g(|a|)/4) - (|b| - g(|b|)/4)`.
Since `g(|g(t) - 1/2|) = 1 - g(g(t))` on [0, 1], the first l terms of `T = sum_n 4^-n e_0 o Lambda^n` add up to
`S_l(|a|) - S_l(|b|)` with the x^2 network `S_l(t) = t - sum_(r<=l) g_r(t) / 4^r`. That is the network here: one layer
for the absolute values and two networks for x^2 side by side.

Yarotsky's multiplier (2017), which the slides name as the influential one, takes three:
`x y ~ 2 (S_l(|x + y| / 2) - S_l(|x| / 2) - S_l(|y| / 2))`.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from poisonaudit.errors import UsageError
from poisonaudit.lipschitz import square_model
from poisonaudit.registry import unknown_name

# Linear forms of (x, y) whose absolute values enter a network for t^2, and the weight of each square.
FORMS: dict[str, tuple[tuple[tuple[float, float], float], ...]] = {
    "source": (((0.5, 0.5), 1.0), ((0.5, -0.5), -1.0)),
    "yarotsky": (((0.5, 0.5), 2.0), ((0.5, 0.0), -2.0), ((0.0, 0.5), -2.0)),
}


def product_model(depth: int, form: str = "source") -> nn.Sequential:
    """The network for x y that uses x^2 networks of `depth` hidden layers.

    Args:
        depth: terms l of the series, at least 1.
        form: "source" (Després and Pintore) or "yarotsky".

    Returns:
        float64 module, (n, 2) -> (n, 1), with l + 1 hidden layers. On [-1, 1]^2 its largest error is 4^-(l+1) for
        "source" and 4^-l for "yarotsky".

    Raises:
        UsageError: PA301, unknown form; PA303, `depth` is not a positive integer.
    """
    if form not in FORMS:
        raise UsageError("PA301", unknown_name(form, FORMS, "form").message)
    squares = [layer for layer in square_model(depth) if isinstance(layer, nn.Linear)]
    rows = torch.tensor([row for row, _ in FORMS[form]], dtype=torch.float64)
    factors = torch.tensor([factor for _, factor in FORMS[form]], dtype=torch.float64)
    count = len(rows)
    with torch.no_grad():
        # |t| = relu(t) + relu(-t), summed by the first matrix of each square.
        both = torch.stack([rows, -rows], 1).reshape(2 * count, 2)
        pairs = [(both, torch.zeros(2 * count, dtype=torch.float64))]
        for position, layer in enumerate(squares):
            weight = layer.weight @ torch.ones(1, 2, dtype=torch.float64) if position == 0 else layer.weight
            pairs.append((torch.block_diag(*[weight] * count), layer.bias.repeat(count)))
        weight, bias = pairs[-1]
        pairs[-1] = (factors[None, :] @ weight, factors[None, :] @ bias)
        return nn.Sequential(*itertools.chain(*((_linear(*pair), nn.ReLU()) for pair in pairs)))[:-1]


def product_network(depth: int, form: str = "source") -> list[Tensor]:
    """The weight matrices of `product_model`.

    Args:
        depth: terms l of the series.
        form: "source" or "yarotsky".

    Returns:
        `[W_0, ..., W_(l+1)]` in float64.
    """
    return [layer.weight.detach() for layer in product_model(depth, form) if isinstance(layer, nn.Linear)]


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer
