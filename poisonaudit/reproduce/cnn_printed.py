"""The printed table of the test with convolutional networks (MNIST) of Després and Pintore."""

from __future__ import annotations

from collections.abc import Mapping

# Model, form of max pooling, norm.
Case = tuple[str, str, str]

POOLINGS = ("explicit", "implicit")
# Names of the norms -> as the source writes them.
NORMS: Mapping[str, str] = {"l1": "l^1", "linf": "l^inf"}
COLUMNS: Mapping[str, str] = {
    "k_star": "K_*",
    "k1": "K_1",
    "k3": "K_3",
    "k4": "K_4",
    "k5": "K_5",
    "certified": "certified",
    "lower": "lower",
    "seconds": "seconds",
}
PRINTED_KEYS = ("k_star", "k1", "k3", "k4")
PRINTED: Mapping[Case, tuple[float, float, float, float]] = {
    ("A", "explicit", "l1"): (1.058e5, 1.107e4, 9.377e3, 2.222e3),
    ("A", "implicit", "l1"): (1.562e2, 4.721e1, 5.191e1, 2.739e1),
    ("A", "explicit", "linf"): (1.565e6, 1.734e5, 2.993e5, 4.756e4),
    ("A", "implicit", "linf"): (3.678e3, 9.021e2, 1.859e3, 6.424e2),
    ("B", "explicit", "l1"): (1.712e7, 7.353e5, 1.599e5, 3.626e4),
    ("B", "implicit", "l1"): (4.280e2, 1.423e2, 1.772e2, 1.016e2),
    ("B", "explicit", "linf"): (2.878e7, 3.171e6, 4.590e6, 6.804e5),
    ("B", "implicit", "linf"): (1.151e4, 2.823e3, 6.203e3, 2.294e3),
    ("C", "explicit", "l1"): (4.950e8, 1.910e7, 3.120e6, 7.327e5),
    ("C", "implicit", "l1"): (7.735e2, 2.337e2, 1.853e2, 1.230e2),
    ("C", "explicit", "linf"): (8.241e8, 7.749e7, 9.068e7, 1.170e7),
    ("C", "implicit", "linf"): (2.060e4, 4.570e3, 6.574e3, 2.307e3),
}
ACCURACY = (0.95, 0.97)
