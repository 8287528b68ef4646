"""Where a reproduction works: its settings, its messages, and its finished stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from poisonaudit.results import finite
from poisonaudit.store import RunFolder

Made = tuple[Mapping[str, Tensor], Mapping[str, Any]]


class Voice(Protocol):
    """Whom a reproduction tells what it is doing; itself the `progress(message, fraction)` of the library."""

    def __call__(self, message: str, fraction: float | None = None) -> None:
        """Progress within a stage."""

    def stage(self, text: str) -> None:
        """A stage begins."""

    def note(self, text: str) -> None:
        """A message that stays."""

    def warn(self, text: str) -> None:
        """A warning that stays."""


class Silence:
    """A Voice that says nothing."""

    def __call__(self, message: str, fraction: float | None = None) -> None:
        """Nothing."""

    def stage(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Settings:
    """What a reproduction is asked to run on; None leaves the choice to it.

    Attributes:
        root: folder of CIFAR-10 as its makers pack it; with it data is `cifar10:ROOT` and the model ResNet-56.
        data: another data set, by name.
        model: architecture, by name.
        weights: file of trained weights; None trains first.
        limit: first so many training rows.
        decay: weight decay of the training problem, `(decay/2) |w|^2`; None for 5e-4 with a root, else 5e-3; in
            despres-cnn 1e-2 for pictures from 28 x 28 on.
        seed: of initial weights, of the choice of rows and of draws.
        device: where to compute.
        tolerance: relative gradient that trainings aim for; None for 1e-9 in float64 and 1e-6 in float32.
        max_gradients: most gradient-sized evaluations of one training, beyond which its column is flagged.
        quick: fewer rows, draws, steps or networks and coarser pictures.
        depth: largest depth of the networks for x^2 and x y; None for 6.
        draws: random networks; None for 1,000, or 100 if quick. In weight-noise draws of noise; None for 64, or 16.
        strengths: of every penalty in lipschitz-training; None for its own.
    """

    root: str | None = None
    data: str | None = None
    model: str | None = None
    weights: str | None = None
    limit: int | None = None
    decay: float | None = None
    seed: int = 0
    device: str = "cpu"
    tolerance: float | None = None
    max_gradients: int | None = None
    quick: bool = False
    depth: int | None = None
    draws: int | None = None
    strengths: Sequence[float] | None = None


@dataclass(frozen=True)
class Bench:
    """Settings, voice and, in a run, the folder that keeps finished stages.

    Attributes:
        settings: what was asked for.
        voice: told what is going on.
        folder: of the run; None keeps nothing.
    """

    settings: Settings = field(default_factory=Settings)
    voice: Voice = field(default_factory=Silence)
    folder: RunFolder | None = None

    def kept(self, name: str, text: str, make: Callable[[], Made]) -> Made:
        """The stored stage `stage-NAME.safetensors`, or a new one, stored at once.

        Args:
            name: of the stage.
            text: what to tell the user.
            make: does the work: tensors by name, and plain facts about them.

        Returns:
            Tensors (on the CPU where they were stored) and facts.
        """
        file = f"stage-{name}.safetensors"
        if self.folder is not None and self.folder.exists(file):
            self.voice.note(f"{text}: kept from before")
            return self.folder.read_tensors(file), self.folder.read_metadata(file)
        self.voice.stage(text)
        tensors, facts = make()
        if self.folder is not None:
            on_cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            self.folder.write_tensors(file, on_cpu, finite(dict(facts)))
        return tensors, facts
