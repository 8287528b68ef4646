"""The upper bounds K_*, K_1, K_3, K_4 and K_5 of a chain in plain float64.

Notation of Després and Pintore: `C_(j,i) = W_(j-1) c_(j-1) W_(j-2) ... c_(i+1) W_i` is the signed product
through the centre slopes c (1/2 for ReLU) from node i to node j; node 0 is the input, node l + 1 the output.
A slope is centre plus radius rho times a number in [-1, 1], neuron by neuron, so the Jacobian is a sum over
subsets of the hidden layers, in which every chosen layer r cuts the product and contributes diag(rho_r).

`N` is the induced l_inf norm, or the spectral norm where `chain.norm` is "l2". Of non-negative matrices both
grow with the entries, so the norm of an entrywise bound is a bound. `K_5 <= K_4` and `K_5 <= K_3` always; `K_4 <=
K_3` and `K_1 <= K_*` are theorems where centre and radius are the same in a whole layer; `K_4 <= K_1` and `K_3 <=
K_*` hold in l_inf alone, where a matrix and its absolute values have the same norm.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from poisonaudit.lipschitz.network import Chain

K4_HIDDEN_LAYERS = 12
# In l_2 every subset keeps a whole matrix.
K4_ENTRIES = 2**25


def norm_linf(matrix: Tensor) -> float:
    """The induced l_inf norm: the largest absolute row sum (0 for a matrix without entries)."""
    return float(matrix.abs().sum(1).max()) if matrix.numel() else 0.0


def norm_l2(matrix: Tensor) -> float:
    """The spectral norm (0 for a matrix without entries, infinite where the decomposition fails)."""
    if not matrix.numel():
        return 0.0
    try:
        return float(torch.linalg.matrix_norm(matrix, 2))
    except RuntimeError:  # torch.linalg.LinAlgError is one
        return float("inf")


def norm_in(chain: Chain, matrix: Tensor) -> float:
    """The norm that the chain is bounded in."""
    return norm_l2(matrix) if chain.norm == "l2" else norm_linf(matrix)


def product_bound(chain: Chain) -> float:
    """K_*: the product of the layers' norms and steepest slopes."""
    value = 1.0
    for weight in chain.weights:
        value *= norm_in(chain, weight)
    for slopes in chain.steepest:
        value *= float(slopes.max())
    return value


def absolute_product_bound(chain: Chain) -> float:
    """K_3 = N(|W_l| ... |W_0|), times the steepest slopes: in l_inf one vector through the absolute network."""
    if chain.norm == "l2":
        return norm_l2(absolute_product(chain))
    return float(_absolute(chain, torch.ones(chain.weights[0].shape[1], 1, dtype=torch.float64)).max())


def absolute_product(chain: Chain) -> Tensor:
    """`|W_l| s_l |W_(l-1)| ... s_1 |W_0|` with the steepest slopes s, (n_(l+1), n_0), scaled."""
    return _absolute(chain, None)


def _absolute(chain: Chain, seed: Tensor | None) -> Tensor:
    carried = _on(chain.weights[0].abs(), seed)
    for slopes, weight in zip(chain.steepest, chain.weights[1:], strict=True):
        carried = weight.abs() @ (slopes[:, None] * carried)
    return carried


def subset_norm_bound(chain: Chain) -> float:
    """K_1 (Combettes and Pesquet): its 2^l terms are paths, summed here by a recursion over O(l^2) norms."""
    totals = [1.0] + [0.0] * (chain.hidden + 1)
    for start, end, product in _centre_products(chain):
        totals[end] += norm_in(chain, product * chain.radii[start - 1] if start else product) * totals[start]
    return totals[-1]


def subset_absolute_bound(chain: Chain) -> float | None:
    """K_4: the sum over subsets of the norm of products of absolute blocks.

    Every subset is one column (in l_2: n_0 columns); node j collects the columns of all subsets that end there, so
    that the 2^l products are a few matrix products.

    Args:
        chain: the network.

    Returns:
        The bound, or None beyond 12 hidden layers (4,096 subsets), and in l_2 where the subsets take over 256 MiB.
        Layers of constant slopes, such as those between two maps without an activation, do not count.
    """
    inputs = chain.weights[0].shape[1]
    size = inputs if chain.norm == "l2" else 1
    widest = max(weight.shape[0] for weight in chain.weights)
    # A layer of constant slopes is never chosen.
    chosen = {place for place, radii in enumerate(chain.radii, 1) if bool(radii.any())}
    if len(chosen) > K4_HIDDEN_LAYERS or (size > 1 and 2 ** len(chosen) * size * widest > K4_ENTRIES):
        return None
    last = chain.hidden + 1
    seed = torch.eye(inputs, dtype=torch.float64) if chain.norm == "l2" else torch.ones(inputs, 1, dtype=torch.float64)
    columns: list[list[Tensor]] = [[] for _ in range(chain.hidden + 2)]
    columns[0].append(seed)
    joined: dict[int, Tensor] = {}
    for start, end, product in _centre_products(chain):
        if not {start, end} <= chosen | {0, last}:
            continue
        if start not in joined:  # by now every block that ends at `start` has been seen
            met = torch.cat(columns[start], 1)
            joined = {start: chain.radii[start - 1][:, None] * met if start else met}
        columns[end].append(product.abs() @ joined[start])
    found = torch.cat(columns[-1], 1)
    if chain.norm == "l2":
        return sum(norm_l2(block) for block in found.split(inputs, 1))
    return float(found.amax(0).sum())


def norm_of_sum_bound(chain: Chain) -> float:
    """K_5: the norm of the sum instead of K_4's sum of norms, at any depth; in l_inf it carries one vector per node."""
    if chain.norm == "l2":
        centre, radius = signed_interval(chain)
        return norm_l2(centre.abs() + radius)
    return float(row_bounds(chain).max())


def row_bounds(chain: Chain) -> Tensor:
    """K_5 before the maximum: a bound of every absolute row sum, (n_(l+1),), scaled; autograd can follow it."""
    through, around = _summed(chain, chain.weights[0].new_ones(chain.weights[0].shape[1], 1), signed=False)
    return (through + around)[:, 0]


def signed_interval(chain: Chain, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Bounds of every entry of `J seed` over all slopes: |J seed - centre| <= radius.

    With the identity as seed, |centre| + radius is K_5 before the norm is taken.

    Args:
        chain: the network.
        seed: (n_0, b); the identity if None.

    Returns:
        `(C_(l+1,0) seed, radius)`, both (n_(l+1), b), scaled.
    """
    return _summed(chain, seed, signed=True)


def _on(matrix: Tensor, seed: Tensor | None) -> Tensor:
    """`matrix @ seed`, where None stands for the identity."""
    return matrix if seed is None else matrix @ seed


def _summed(chain: Chain, seed: Tensor | None, *, signed: bool) -> tuple[Tensor, Tensor]:
    """`V_(l+1)` of V_0 = seed, V_j = sum_(i<j) |C_(j,i)| rho_i V_i (rho_0 = 1), its term i = 0 and the others."""
    # `signed` takes |C_(j,0) seed| instead of |C_(j,0)| seed, and leaves the sign of that term of V_(l+1).
    last = chain.hidden + 1
    columns = (chain.weights[0] if seed is None else seed).shape[1]
    # One sum per node; that of the input is the seed itself.
    sums = [torch.empty(0), *(w.new_zeros(w.shape[0], columns) for w in chain.weights)]
    through = sums[-1]
    for start, end, product in _centre_products(chain):
        if start == 0:
            term = _on(product if signed else product.abs(), seed)
            if end == last:
                through = term
            else:
                sums[end] += term.abs()
            continue
        if end == start + 1:  # every term of V_start has been added by now
            sums[start] = chain.radii[start - 1][:, None] * sums[start]
        if product.is_cuda or bool(chain.radii[start - 1].any()):  # a GPU would have to be waited for
            sums[end] += product.abs() @ sums[start]
    return through, sums[-1]


def _centre_products(chain: Chain) -> Iterator[tuple[int, int, Tensor]]:
    """Yield `(i, j, C_(j,i))`, i ascending and then j ascending; one product is alive at a time."""
    last = chain.hidden + 1
    for start in range(last):
        product = chain.weights[start]
        yield start, start + 1, product
        for end in range(start + 2, last + 1):
            product = chain.weights[end - 1] @ (chain.centres[end - 2][:, None] * product)
            yield start, end, product
