"""`folder:DIR`: pictures in one folder a class, split by us or into train and test folders."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np

from poisonaudit.data.dataset import Source
from poisonaudit.data.pictures import SIZES, Array, damaged, picture_source, read_capped, root_of
from poisonaudit.errors import InputRefused, UsageError
from poisonaudit.spec import Spec

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".pgm", ".ppm"}
_TEST_NAMES = ("test", "val")
MAX_PICTURES = 500_000
MAX_PIXELS = 4096 * 4096
MAX_TOTAL = 4 * 2**30


def read_folder(spec: Spec) -> Source:
    """`folder:DIR`: DIR/CLASS/*.png, or DIR/train/CLASS and DIR/test/CLASS. ?size=N, ?channels=1|3, ?split=N.

    Pictures of one size are taken as they are; mixed sizes need ?size. Without ?channels they are grey where every
    picture is. Sizes are read from the headers before anything is decoded; links that leave DIR and archives are not
    followed.

    Args:
        spec: argument is the folder.

    Returns:
        The pictures, classes in alphabetical order.

    Raises:
        InputRefused: PA201 no such folder, PA202 damaged pictures, PA204 beyond the caps, PA205 no classes in it, PA206
            a link out of the folder, PA211 mixed sizes.
        UsageError: PA335, ?channels is neither 1 nor 3.
    """
    root = root_of(spec)
    test_name = next((name for name in _TEST_NAMES if (root / name).is_dir()), None)
    own_split = test_name is not None and (root / "train").is_dir()
    spec.allow("size", "channels", *(() if own_split else ("split",)))
    channels = spec.integer("channels", 0)
    if channels not in (0, 1, 3):
        raise UsageError("PA335", f"{spec.text}: ?channels={channels} is not 1 or 3. Pass ?channels=3.")
    size = spec.integer("size", 0)
    if size and not SIZES[0] <= size <= SIZES[1]:
        raise UsageError("PA335", f"{spec.text}: ?size={size} is not in {SIZES[0]}..{SIZES[1]}. Pass ?size=32.")
    tops = [root / "train", root / str(test_name)] if own_split else [root]
    classes = sorted({entry.name for top in tops for entry in top.iterdir() if entry.is_dir()})
    listed = [_listing(spec, root, top, classes) for top in tops]
    if len(classes) < 2 or not listed[0]:
        raise InputRefused(
            "PA205",
            f"{spec.text} has {len(classes)} class folders with {len(listed[0])} pictures. Put the pictures of each "
            f"class in a folder of its own, as {', '.join(sorted(_SUFFIXES))}.",
        )
    paths = [path for part in listed for path, _ in part]
    grey = _check_headers(spec, root, paths, size)
    wanted = channels or (1 if grey else 3)
    digest = hashlib.sha256()
    parts = [_decoded(root, part, wanted, size, digest) for part in listed]
    return picture_source(
        Spec(spec.text, spec.name, spec.argument, {key: value for key, value in spec.options.items() if key != "size"}),
        parts[0],
        parts[1] if own_split else None,
        tuple(classes),
        {root.name: digest.digest()},
        notes=(f"pictures were resized to {size} x {size} (bilinear)",) if size else (),
    )


def _listing(spec: Spec, root: Path, top: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Pictures under one top folder with their class numbers, in a stable order."""
    found = []
    inside = root.resolve()
    for number, name in enumerate(classes):
        for folder, folders, files in os.walk(top / name):
            folders.sort()
            for file in sorted(files):
                path = Path(folder) / file
                if path.suffix.lower() not in _SUFFIXES:
                    continue
                if not path.resolve().is_relative_to(inside):
                    raise InputRefused(
                        "PA206", f"{path.relative_to(root)} is a link out of {spec.argument}. Copy the picture there."
                    )
                found.append((path, number))
    if len(found) > MAX_PICTURES:
        raise InputRefused("PA204", f"{spec.text} holds {len(found)} pictures, the cap is {MAX_PICTURES}.")
    return found


def _check_headers(spec: Spec, root: Path, paths: list[Path], size: int) -> bool:
    """Refuse oversized and mixed pictures before decoding one; True where all are grey."""
    from PIL import Image

    shapes: dict[tuple[int, int], Path] = {}
    grey, total = True, 0
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as picture:
                    shape, mode = picture.size, picture.mode
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            shape, mode = (MAX_PIXELS, 2), "RGB"
        except (OSError, SyntaxError, ValueError) as error:
            raise damaged(path, error) from error
        if shape[0] * shape[1] > MAX_PIXELS:
            raise InputRefused("PA204", f"{path.relative_to(root)} is larger than {MAX_PIXELS} pixels. Leave it out.")
        grey = grey and mode in ("1", "L", "I;16")
        shapes.setdefault(shape, path)
        total += 3 * (size**2 if size else shape[0] * shape[1])
    if not size and len(shapes) > 1:
        (one, first), (other, second) = list(shapes.items())[:2]
        raise InputRefused(
            "PA211",
            f"{spec.text} mixes sizes: {first.relative_to(root)} is {one[0]}x{one[1]}, {second.relative_to(root)} "
            f"{other[0]}x{other[1]}. Pass ?size=N.",
        )
    if total > MAX_TOTAL:
        raise InputRefused("PA204", f"{spec.text} decodes to {total} bytes, the cap is {MAX_TOTAL}. Pass a ?size.")
    return grey


def _decoded(
    root: Path, listing: list[tuple[Path, int]], channels: int, size: int, digest: hashlib._Hash
) -> tuple[Array, Array]:
    """Pictures (n, channels, height, width) uint8 and labels; what was read goes into the digest."""
    from PIL import Image

    pictures = []
    for path, label in listing:
        digest.update(f"{path.relative_to(root)}\0{label}\0".encode())
        digest.update(hashlib.sha256(read_capped(path)).digest())
        try:
            with Image.open(path) as picture:
                flat = picture.convert("L" if channels == 1 else "RGB")
                if size:
                    flat = flat.resize((size, size), Image.Resampling.BILINEAR)
                pictures.append(np.asarray(flat).reshape(flat.height, flat.width, channels).transpose(2, 0, 1))
        except (OSError, SyntaxError, ValueError) as error:
            raise damaged(path, error) from error
    return np.stack(pictures), np.array([label for _, label in listing], dtype=np.int64)
