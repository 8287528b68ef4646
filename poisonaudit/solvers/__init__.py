"""Least-squares and extremal-value solvers; every solve says how it ended."""

from poisonaudit.solvers.cg import conjugate_gradients
from poisonaudit.solvers.dense import DenseSpectrum
from poisonaudit.solvers.lanczos import block_lanczos, curvature_ends, new_state
from poisonaudit.solvers.lsmr import lsmr
from poisonaudit.solvers.minres import minres
from poisonaudit.solvers.nystroem import Nystroem, nystroem
from poisonaudit.solvers.solve import Doubled, Operator, Progress, Solve, default_accuracy, default_tolerance
from poisonaudit.solvers.space import KrylovSpace
from poisonaudit.solvers.state import SolveState

__all__ = [
    "DenseSpectrum",
    "Doubled",
    "KrylovSpace",
    "Nystroem",
    "Operator",
    "Progress",
    "Solve",
    "SolveState",
    "block_lanczos",
    "conjugate_gradients",
    "curvature_ends",
    "default_accuracy",
    "default_tolerance",
    "lsmr",
    "minres",
    "new_state",
    "nystroem",
]
