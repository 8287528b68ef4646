"""The worked example of the source paper: a narrow ReLU network for x^2, whose Lipschitz constant is known.

Després and Pintore, "Certified computable Lipschitz bounds for deep neural networks": `x - x^2` is the sum
over r >= 1 of `g_r(x) / 4^r`, with `g_r` the r-fold composition of the hat function g. With the
representation `g(t) = 1 - relu(2 t - 1) - relu(1 - 2 t)` the bounds take the golden values that the tests of
this package check.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poisonaudit.errors import UsageError


def square_network(depth: int) -> list[Tensor]:
    """The weight matrices of the x^2 network with `depth` hidden layers of three ReLU neurons.

    Args:
        depth: number l of hidden layers, at least 1.

    Returns:
        `[W_0, ..., W_l]` in float64: (3, 1), then l - 1 times (3, 3), then (1, 3). In l_inf: K_* = 1 + 2 *
        4^(l-1), K_3 = l + 1, K_4 = K_5 = L = 2 - 2^-l.

    Raises:
        UsageError: PA303, `depth` is not a positive integer.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise UsageError("PA303", f"depth is {depth!r}. It counts hidden layers. Pass an integer of at least 1.")
    matrices = [torch.tensor([[1.0], [2.0], [-2.0]], dtype=torch.float64)]
    for layer in range(1, depth):
        share = 4.0**-layer
        rows = [[1.0, share, share], [0.0, -2.0, -2.0], [0.0, 2.0, 2.0]]
        matrices.append(torch.tensor(rows, dtype=torch.float64))
    share = 4.0**-depth
    matrices.append(torch.tensor([[1.0, share, share]], dtype=torch.float64))
    return matrices


def square_model(depth: int) -> nn.Sequential:
    """The same network as a module, with the biases that make it approximate x^2.

    Args:
        depth: number l of hidden layers, at least 1.

    Returns:
        float64 module, (n, 1) -> (n, 1); within 4^-l / 3 of x^2 on [0, 1].
    """
    matrices = square_network(depth)
    layers: list[nn.Module] = []
    for position, matrix in enumerate(matrices):
        linear = nn.Linear(matrix.shape[1], matrix.shape[0], dtype=torch.float64)
        # Neuron 1 carries x + sum (1 - g_r) / 4^r, neurons 2 and 3 the two kinks of the next hat.
        shift = torch.tensor([0.0, -1.0 if position == 0 else 1.0, 1.0 if position == 0 else -1.0])
        if position == depth:
            shift = torch.tensor([-sum(4.0**-layer for layer in range(1, depth + 1))], dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(matrix)
            linear.bias.copy_(shift)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
