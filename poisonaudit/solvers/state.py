"""What a long solve has reached, as plain tensors: kept in memory, or saved and taken up again later."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from poisonaudit.errors import UsageError
from poisonaudit.solvers.space import KrylovSpace

_NUMBERS = ("products", "iterations", "rounds", "width", "next_check", "entered", "steps", "doubts")


@dataclass
class SolveState:
    """A block Lanczos solve between two products; `block_lanczos` goes on from it as if it had not stopped.

    Attributes:
        space: basis and images, the larger part of the state.
        digest: sha256 of the right-hand side, damping, tolerance and accuracy it belongs to.
        value: solution of the rounds that are closed, (p, K) float64.
        residual: true residual `b - A value` of it, (p, K).
        lengths: column norms of the residual as it entered the space, (K,).
        target: coefficients of the entered columns, (M, K).
        products: made so far, the checks at the end of calls not included.
        iterations: block steps made.
        rounds: closed rounds.
        width: open vectors to multiply next.
        next_check: number of multiplied vectors at which the small problem is solved next.
        entered: whether the residual is in the space.
        steps: block steps since it was entered.
        doubts: number of multiplied vectors before which the small problem is not solved in full again.
    """

    space: KrylovSpace
    digest: str
    value: Tensor
    residual: Tensor
    lengths: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    target: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    products: int = 0
    iterations: int = 0
    rounds: int = 0
    width: int = 0
    next_check: int = 0
    entered: int = 0
    steps: int = 0
    doubts: int = 0

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors, for safetensors or another format without code in it."""
        space = self.space
        numbers = [int(getattr(self, name)) for name in _NUMBERS]
        return {
            "vectors": space.vectors.clone(),
            "small": space.small.clone(),
            "space_numbers": torch.tensor(
                [space.precision, float(space.runs), space.magnitude, float(space.pure)], dtype=torch.float64
            ),
            "numbers": torch.tensor(numbers, dtype=torch.int64),
            "digest": torch.tensor(list(bytes.fromhex(self.digest)), dtype=torch.uint8),
            "value": self.value.clone(),
            "residual": self.residual.clone(),
            "lengths": self.lengths.clone(),
            "target": self.target.clone(),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> SolveState:
        """The state again.

        Args:
            tensors: what `to_tensors` gave.

        Returns:
            An equal state.

        Raises:
            UsageError: PA304, a tensor is missing or of another shape.
        """
        try:
            precision, runs, magnitude, pure = tensors["space_numbers"].tolist()
            vectors, small = tensors["vectors"], tensors["small"].cpu()
            if vectors.dim() != 2 or small.shape[0] != len(vectors) or small.shape[1] > small.shape[0]:
                raise ValueError("vectors and small do not fit")
            numbers = dict(zip(_NUMBERS, tensors["numbers"].tolist(), strict=True))
            space = KrylovSpace.restored(vectors, small, precision, int(runs), magnitude)
            space.pure = bool(pure)
            return cls(
                space=space,
                digest=bytes(tensors["digest"].tolist()).hex(),
                value=tensors["value"].clone(),
                residual=tensors["residual"].clone(),
                lengths=tensors["lengths"].clone(),
                target=tensors["target"].cpu().clone(),
                **numbers,
            )
        except (KeyError, ValueError, TypeError) as trouble:
            raise UsageError(
                "PA304", f"the tensors are no solver state ({trouble}). Pass what SolveState.to_tensors() gave."
            ) from trouble


def digest_of(rhs: Tensor, shift: float, tolerance: float, accuracy: float) -> str:
    """The sha256 that ties a state to its question."""
    found = hashlib.sha256(rhs.detach().cpu().contiguous().numpy().tobytes())
    found.update(repr((tuple(rhs.shape), str(rhs.dtype), shift, tolerance, accuracy)).encode())
    return found.hexdigest()
