"""ART estimators whose activations come from a split model; imported late, since `import art` takes seconds."""

from __future__ import annotations

from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

LAYER = "features"


class FeatureClassifier(PyTorchClassifier):  # type: ignore[misc]
    """`PyTorchClassifier` of a Sequential (features, head); ART's own `get_activations` leaves a hook at every call."""

    def get_activations(
        self, x: Any, layer: int | str | None = None, batch_size: int = 128, framework: bool = False
    ) -> Any:
        """What goes into the head: a tensor with its graph if `framework`, else an array.

        Args:
            x: rows, tensor or array.
            layer: ignored, there is one.
            batch_size: ignored.
            framework: whether a tensor comes back.

        Returns:
            (m, f).
        """
        rows = x if isinstance(x, Tensor) else torch.from_numpy(x)
        with torch.set_grad_enabled(framework):
            found = self.model.features(rows.to(self.device))
        return found if framework else found.cpu().numpy()


class CentreClassifier(FeatureClassifier):
    """Answers ART's Bullseye Polytope so that its loss becomes the one of the paper.

    ART 1.20.1 asks for the features of the base rows where the paper has those of the target, and takes the mean over
    the features of each poison where the paper has the mean over poisons. With the target's features for the first and
    an axis in front of the second, the same code computes `|mean_k phi(x_k) - phi(t)| / |phi(t)|`.

    Attributes:
        centre: features of the target (f,).
    """

    centre: Tensor

    def get_activations(
        self, x: Any, layer: int | str | None = None, batch_size: int = 128, framework: bool = False
    ) -> Any:
        """The target's features (1, f) for an array of base rows, those of the poisons (1, k, f) for a tensor.

        Args:
            x: rows, tensor or array.
            layer: ignored, there is one.
            batch_size: ignored.
            framework: whether a tensor comes back.

        Returns:
            As above.
        """
        if isinstance(x, Tensor):
            return super().get_activations(x, layer, batch_size, framework)[None]
        return self.centre[None]
