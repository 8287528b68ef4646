"""How much memory a solve takes, and how many basis vectors a limit leaves."""

from __future__ import annotations

from poisonaudit.solvers.space import FIRST_ROOM, STRETCH_BYTES, grown

# Float64 vectors of length p beside a basis, as counted: for one right-hand side, and for each further one.
_BESIDE_A_BASIS = (14, 8)
_SHORT_RECURRENCE = (12, 2)
# Matrices p x p of the problem's type: H, its eigenvectors, and what LAPACK works in; a Cholesky factor takes one less.
_DENSE = 4
# Blocks of p x rank in the construction of the preconditioner.
_NYSTROEM = 5


def solve_bytes(
    method: str, size: int, *, itemsize: int = 8, columns: int = 1, vectors: int = 0, reserved: bool = False
) -> int:
    """Most bytes that a solve holds at once, the passes of the linearisation not included.

    A model: vectors are counted, small matrices are not. A Krylov basis grows in steps, and old and new room exist
    together while it does; with a memory limit its room is reserved instead.

    Args:
        method: "dense", "lanczos", "minres", "lsmr", "cg" or "nystroem".
        size: p.
        itemsize: bytes of one entry of the problem.
        columns: right-hand sides K.
        vectors: basis vectors ("lanczos": one for each product and start), or the rank ("nystroem").
        reserved: whether room for all vectors was made at once.

    Returns:
        Bytes.
    """
    one = 8 * size
    if method == "dense":
        return _DENSE * itemsize * size**2
    if method == "nystroem":
        return one * (_NYSTROEM * vectors + _SHORT_RECURRENCE[0])
    if method != "lanczos":
        return one * (_SHORT_RECURRENCE[0] + _SHORT_RECURRENCE[1] * (columns - 1))
    beside = one * (_BESIDE_A_BASIS[0] + _BESIDE_A_BASIS[1] * (columns - 1))
    if reserved:
        return one * vectors + beside + STRETCH_BYTES
    room = highest = FIRST_ROOM
    while room < vectors:
        highest = room + grown(room)
        room = grown(room)
    return one * max(highest, room) + beside


def basis_vectors(limit: int, size: int, columns: int = 1) -> int:
    """Basis vectors for which `solve_bytes("lanczos", ..., reserved=True)` stays within a limit.

    Args:
        limit: bytes.
        size: p.
        columns: right-hand sides at once.

    Returns:
        How many; zero or less where there is room for none.
    """
    return (limit - solve_bytes("lanczos", size, columns=columns, reserved=True)) // (8 * size)
