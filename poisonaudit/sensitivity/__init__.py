"""How the set of training solutions moves with the training data, to first order and along the path."""

from poisonaudit.sensitivity.coderivative import Coderivative, coderivative
from poisonaudit.sensitivity.curvature import Curvature, solver_for
from poisonaudit.sensitivity.graphical_derivative import GraphicalDerivative, graphical_derivative
from poisonaudit.sensitivity.modulus import Modulus, lipschitz_modulus
from poisonaudit.sensitivity.path import Path, follow_path
from poisonaudit.sensitivity.row_moduli import row_moduli
from poisonaudit.sensitivity.solution_set import SolutionSet, pompeiu_hausdorff
from poisonaudit.sensitivity.theorem2 import theorem2_moduli, theorem3_modulus

__all__ = [
    "Coderivative",
    "Curvature",
    "GraphicalDerivative",
    "Modulus",
    "Path",
    "SolutionSet",
    "coderivative",
    "follow_path",
    "graphical_derivative",
    "lipschitz_modulus",
    "pompeiu_hausdorff",
    "row_moduli",
    "solver_for",
    "theorem2_moduli",
    "theorem3_modulus",
]
