"""The 1,797 handwritten digits that come with scikit-learn: 8 x 8 pixels, ten classes."""

from __future__ import annotations

import numpy as np

from poisonaudit.data.dataset import Source
from poisonaudit.errors import UsageError
from poisonaudit.spec import Spec
from poisonaudit.store import sha256_bytes

SIDE = 8
LARGEST = 256


def read_digits(spec: Spec) -> Source:
    """`digits`: pixels / 16, in [0, 1]; ?size=32 resizes (bilinear), ?split=N.

    Args:
        spec: no argument.

    Returns:
        Rows (1797, 1, size, size).

    Raises:
        UsageError: PA334 an argument was given, PA335 a size outside 4..256.
    """
    from sklearn.datasets import load_digits

    spec.allow("split", "size")
    if spec.argument:
        raise UsageError(
            "PA334",
            f"{spec.text}: digits come with the package and take no file. Pass --data digits.",
        )
    size = spec.integer("size", SIDE)
    if not 4 <= size <= LARGEST:
        raise UsageError(
            "PA335",
            f"{spec.text}: ?size={size} is not in 4..{LARGEST}. Pass ?size=32, for example.",
        )
    bunch = load_digits()
    images = (bunch.images / 16.0).astype(np.float32)[:, None]
    preprocessing: dict[str, object] = {"divide_by": 16}
    if size != SIDE:
        images = resize(images, size)
        preprocessing["resize"] = {"from": SIDE, "to": size, "method": "bilinear"}
    return Source(
        name="digits",
        x=images,
        y=bunch.target.astype(np.int64),
        classes=tuple(str(name) for name in bunch.target_names),
        image_shape=(1, size, size),
        sources={"digits": sha256_bytes(bunch.images.tobytes(), bunch.target.tobytes())},
        preprocessing=preprocessing,
        limits=(np.zeros((1, size, size)), np.ones((1, size, size))),
    )


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Pictures (n, channels, h, w) in [0, 1], bilinearly resized to size x size."""
    import torch
    from torch.nn.functional import interpolate

    resized = interpolate(torch.from_numpy(images), size=(size, size), mode="bilinear", align_corners=False)
    return resized.clamp_(0, 1).numpy()
